// SPDX-License-Identifier: LGPL-3.0-or-later

package measure

import (
	"fmt"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/testnet/topology"
)

// headers is what a frame carries besides the datagram: Ethernet, IPv6 and UDP.
const headers = 14 + 40 + 8

// Frames are the lengths in bytes of the Ethernet frames, without preamble, FCS
// and gap, that carry an object once as mDCS datagrams without parity: one per
// 1168 bytes (SPEC 4).
func Frames(object int) []int {
	var frames []int
	for ; object > 0; object -= wire.MaxPayload {
		frames = append(frames, headers+wire.HeaderSize+min(object, wire.MaxPayload))
	}
	return frames
}

// Framed is the sum of [Frames].
func Framed(object int) (bytes uint64) {
	for _, f := range Frames(object) {
		bytes += uint64(f)
	}
	return bytes
}

// Floor are lower bounds of a delay, in ms, with both access lines in them. They
// know neither jitter nor loss, nor the time that a node needs.
type Floor struct {
	Physical   float64 // along the path of least delay, whatever the policy
	BGP        float64 // along the path that BGP chooses
	Serialised float64 // likewise, until the last byte of the object has arrived
}

// Sample is a pair with its floors.
type Sample struct {
	Pair
	Floor
}

// Overhead is the delay above the floor of BGP with serialisation, in ms.
func (s Sample) Overhead() float64 { return s.Delay - s.Serialised }

// Floors computes the floors between the nodes of a network.
type Floors struct {
	nodes         []topology.Host
	lines         map[string]topology.Line
	physical, bgp *topology.Paths
}

// NewFloors prepares the floors. The numbers of pairs refer to nodes.
func NewFloors(t *topology.Topology, nodes []topology.Host) *Floors {
	f := &Floors{nodes: nodes, lines: make(map[string]topology.Line), physical: t.Physical(), bgp: t.BGP()}
	for _, h := range t.Hosts {
		f.lines[h.Name] = h.Line
	}
	for _, l := range t.Links {
		f.lines[l.Name()] = l.Line
	}
	for _, x := range t.IXPs {
		for _, m := range x.Members {
			f.lines[x.PortName(m.AS)] = m.Line
		}
	}
	return f
}

// Between are the floors of an object of a size in bytes.
func (f *Floors) Between(origin, node, object int) (Floor, error) {
	from, to := f.nodes[origin], f.nodes[node]
	physical, ok := f.physical.Delay(from, to)
	if !ok {
		return Floor{}, fmt.Errorf("floor from %s to %s: no path", from.Name, to.Name)
	}
	bgp, ok := f.bgp.Delay(from, to)
	if !ok {
		return Floor{}, fmt.Errorf("floor from %s to %s: no path by policy", from.Name, to.Name)
	}
	var path []topology.Line
	for _, name := range f.bgp.Lines(from, to) {
		path = append(path, f.lines[name])
	}
	return Floor{
		Physical:   millis(physical),
		BGP:        millis(bgp),
		Serialised: millis(lastByte(Frames(object), path)),
	}, nil
}

// Samples gives the pairs their floors, where sizes[tx] is in bytes.
func (f *Floors) Samples(pairs []Pair, sizes []int) ([]Sample, error) {
	type key struct{ origin, node, size int }
	known := make(map[key]Floor)
	samples := make([]Sample, len(pairs))
	for i, p := range pairs {
		k := key{p.Origin, p.Node, sizes[p.Tx]}
		floor, ok := known[k]
		if !ok {
			var err error
			if floor, err = f.Between(k.origin, k.node, k.size); err != nil {
				return nil, err
			}
			known[k] = floor
		}
		samples[i] = Sample{p, floor}
	}
	return samples, nil
}

// lastByte is when the last byte of frames arrives that are sent back to back
// along idle lines. Each line takes a frame in as a whole before it passes it on,
// and passes one on while the next one comes in.
func lastByte(frames []int, path []topology.Line) time.Duration {
	var last time.Duration
	free := make([]time.Duration, len(path)) // when each line has sent what it got
	for _, bytes := range frames {
		last = 0
		for i, l := range path {
			last = max(last, free[i])
			if l.Rate > 0 {
				last += time.Duration(float64(bytes) * 8 / float64(l.Rate) * float64(time.Second))
			}
			free[i] = last
			last += l.Delay
		}
	}
	return last
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
