// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import (
	"encoding/binary"
	"encoding/json"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// Class says what a frame is for.
type Class uint8

const (
	Data      Class = iota // mDCS: DATA, sent for the first time
	Repair                 // mDCS: DATA that another RP got before, and the types that version 1 reserves
	Control                // mDCS: the other datagrams, and RLPx with a replication point
	Eth                    // RLPx between Ethereum nodes
	Discovery              // UDP at a port of RLPx
	Libp2p                 // TCP and UDP
	BGP                    // and BFD, which watches its neighbours
	Other                  // the rest: ICMPv6, fragments, any extension header, IPv4
	NumClasses
)

var classNames = [NumClasses]string{"data", "repair", "control", "eth", "discovery", "libp2p", "bgp", "other"}

func (c Class) String() string {
	if c < NumClasses {
		return classNames[c]
	}
	return fmt.Sprintf("class-%d", uint8(c))
}

// MarshalText is String.
func (c Class) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (c *Class) UnmarshalText(text []byte) error {
	for i, name := range classNames {
		if name == string(text) {
			*c = Class(i)
			return nil
		}
	}
	return fmt.Errorf("unknown class %q", text)
}

// Ports are those by which frames are told apart, at either end; 0 matches nothing.
type Ports struct {
	Eth       uint16 `json:"eth"`        // devp2p of an Ethereum node, TCP and UDP
	RPControl uint16 `json:"rp_control"` // devp2p of a replication point, TCP and UDP
	RPData    uint16 `json:"rp_data"`    // mDCS datagrams, UDP
	PeerData  uint16 `json:"peer_data"`  // mDCS datagrams, UDP
	Libp2p    uint16 `json:"libp2p"`     // TCP and UDP
}

// Ports of RFC 4271 section 8.2, RFC 5881 section 4 and RFC 5883 section 5.
const (
	portBGP         = 179
	portBFD         = 3784
	portBFDMultihop = 4784
)

// Lengths of headers, and offsets in them.
const (
	ethernetHeader = 14
	ipv6Header     = 40
	udpHeader      = 8
	tcpHeader      = 20

	offEtherType  = 12
	offNextHeader = ethernetHeader + 6
	offTransport  = ethernetHeader + ipv6Header
)

// classify tells what an Ethernet frame is for. A cut one is as good as a whole
// one: it looks at no length.
func (p *Ports) classify(frame []byte) Class {
	if len(frame) < offTransport || binary.BigEndian.Uint16(frame[offEtherType:]) != unix.ETH_P_IPV6 {
		return Other
	}
	transport := frame[offTransport:]
	switch next := frame[offNextHeader]; {
	case next == unix.IPPROTO_UDP && len(transport) >= udpHeader:
		return p.classifyUDP(portsOf(transport), transport[udpHeader:])
	case next == unix.IPPROTO_TCP && len(transport) >= tcpHeader:
		return p.classifyTCP(portsOf(transport))
	}
	return Other
}

// pair is source and destination port.
type pair struct{ source, destination uint16 }

func portsOf(transport []byte) pair {
	return pair{binary.BigEndian.Uint16(transport), binary.BigEndian.Uint16(transport[2:])}
}

func (p pair) has(port uint16) bool {
	return port != 0 && (p.source == port || p.destination == port)
}

func (p *Ports) classifyTCP(ports pair) Class {
	switch {
	case ports.has(p.RPControl):
		return Control
	case ports.has(p.Eth):
		return Eth
	case ports.has(p.Libp2p):
		return Libp2p
	case ports.has(portBGP):
		return BGP
	}
	return Other
}

func (p *Ports) classifyUDP(ports pair, payload []byte) Class {
	switch {
	case ports.has(p.RPData), ports.has(p.PeerData):
		return classifyDatagram(payload)
	case ports.has(p.Eth), ports.has(p.RPControl):
		return Discovery
	case ports.has(p.Libp2p):
		return Libp2p
	case ports.destination == portBFD, ports.destination == portBFDMultihop:
		return BGP
	}
	return Other
}

// classifyDatagram looks at the first bytes of a datagram (spec: 4.1 to 4.3).
func classifyDatagram(b []byte) Class {
	if len(b) < wire.HeaderSize || b[0]>>4 != wire.Version {
		return Other
	}
	switch wire.Type(b[0] & 15) {
	case wire.Data:
		if b[1]&wire.FlagRepublished != 0 {
			return Repair
		}
		return Data
	case wire.Echo, wire.Heartbeat, wire.Probe, wire.LinkHello:
		return Control
	}
	return Repair
}

// Count is a number of frames, with their Ethernet headers but without preamble,
// FCS and gap, as the counters of interfaces.
type Count struct {
	Frames uint64 `json:"frames"`
	Bytes  uint64 `json:"bytes"`
}

func (c *Count) add(bytes int) {
	c.Frames++
	c.Bytes += uint64(bytes)
}

// Plus is the sum of two counts.
func (c Count) Plus(other Count) Count {
	return Count{c.Frames + other.Frames, c.Bytes + other.Bytes}
}

// Classes counts by class. In JSON it is an object by the names of the classes.
type Classes [NumClasses]Count

// MarshalJSON writes all classes, also the empty ones.
func (c Classes) MarshalJSON() ([]byte, error) {
	byClass := make(map[Class]Count, NumClasses)
	for i, n := range c {
		byClass[Class(i)] = n
	}
	return json.Marshal(byClass)
}

// UnmarshalJSON is the inverse of MarshalJSON.
func (c *Classes) UnmarshalJSON(text []byte) error {
	var byClass map[Class]Count
	if err := json.Unmarshal(text, &byClass); err != nil {
		return err
	}
	*c = Classes{}
	for class, n := range byClass {
		c[class] = n
	}
	return nil
}

// Direction counts the frames of one direction of a link, since the start or the
// last [Wire.Clear]. A frame that waits on the link is not counted yet. To take a
// link down, make it a blackhole before its ends go down: what was under way then
// counts as LostBlackhole, and else as LostRefused.
type Direction struct {
	Classes       Classes `json:"classes"`        // handed on at the far end
	LostRandom    Count   `json:"lost_random"`    // by Params.Loss
	LostQueue     Count   `json:"lost_queue"`     // would have waited longer than Params.Queue
	LostBlackhole Count   `json:"lost_blackhole"` // by Params.Blackhole
	LostCut       Count   `json:"lost_cut"`       // longer than a slot of the ring
	LostRefused   Count   `json:"lost_refused"`   // the far interface was down or its queue full
	LostRing      uint64  `json:"lost_ring"`      // frames that found all slots taken; nobody knows their bytes
}

// Forwarded is the sum of the classes.
func (d *Direction) Forwarded() Count {
	var sum Count
	for _, n := range d.Classes {
		sum = sum.Plus(n)
	}
	return sum
}

// Lost is the sum of all losses, without the bytes of LostRing.
func (d *Direction) Lost() Count {
	return d.LostRandom.Plus(d.LostQueue).Plus(d.LostBlackhole).Plus(d.LostCut).Plus(d.LostRefused).
		Plus(Count{Frames: d.LostRing})
}

// failed is the number of frames that the machine lost, not the link.
func (d *Direction) failed() uint64 {
	return d.LostCut.Frames + d.LostRefused.Frames + d.LostRing
}

// Counters are those of a link; AB is the direction from interface A to B.
type Counters struct {
	Link string    `json:"link"`
	AB   Direction `json:"ab"`
	BA   Direction `json:"ba"`
}
