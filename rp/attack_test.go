// SPDX-License-Identifier: LGPL-3.0-or-later

package rp_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/front/rlpx"
	"github.com/ethmcast/mdcs/rp/hostnet/hostnettest"
)

// siege is an rpd with two sites. All addresses of a site are those of one namespace:
//
//	+- home ------------------+      +- rp ------------------------+      +- site -------------------+
//	| 2001:db8:b::/48      h0 +-veth-+ rp1  2001:db8:ffff::1   rp0 +-veth-+ s0  2001:db8:a::/48      |
//	| peers that are honest   |      | rpd                         |      | an attacker              |
//	+-------------------------+      +-----------------------------+      +--------------------------+
type siege struct {
	t              *testing.T
	rp, site, home netns.NsHandle
	node           *enode.Node
	daemon         *daemon
	copies         []*tap // what rpd sends to the sites
}

const (
	siegeControl, siegeData = 30500, 30501

	// siegeEgress is egress_total, bytes per second: less than the copies of what is
	// published would take, and so much that a quarter of the burst holds a datagram of each
	// site, as the shares of sites need.
	siegeEgress = 5_000_000
)

var siegeRP = netip.MustParseAddr("2001:db8:ffff::1")

func newSiege(t *testing.T) *siege {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	s := &siege{t: t, rp: newNamespace(t), site: newNamespace(t), home: newNamespace(t)}
	set := func(name, value string) {
		require.NoError(t, os.WriteFile("/proc/sys/net/ipv6/"+name, []byte(value), 0))
	}
	address := func(dev, addr string) netlink.Link {
		link, err := netlink.LinkByName(dev)
		require.NoError(t, err)
		if addr != "" {
			a, err := netlink.ParseAddr(addr)
			require.NoError(t, err)
			a.Flags = unix.IFA_F_NODAD
			require.NoError(t, netlink.AddrAdd(link, a))
		}
		require.NoError(t, netlink.LinkSetUp(link))
		return link
	}
	route := func(r netlink.Route, to string) {
		_, dst, err := net.ParseCIDR(to)
		require.NoError(t, err)
		r.Dst = dst
		require.NoError(t, netlink.RouteAdd(&r))
	}
	hostnettest.In(t, s.rp, func() {
		set("conf/default/accept_dad", "0")
		address("lo", siegeRP.String()+"/128")
		for _, far := range []struct {
			dev, peer string
			ns        netns.NsHandle
		}{{"rp0", "s0", s.site}, {"rp1", "h0", s.home}} {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = far.dev
			require.NoError(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: far.peer, PeerNamespace: netlink.NsFd(far.ns)}))
		}
	})
	for _, x := range []struct {
		ns                   netns.NsHandle
		near, far, link, all string
	}{{s.site, "rp0", "s0", "2001:db8:1::", "2001:db8:a::/48"}, {s.home, "rp1", "h0", "2001:db8:2::", "2001:db8:b::/48"}} {
		hostnettest.In(t, s.rp, func() {
			link := address(x.near, x.link+"1/64")
			route(netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(x.link + "2")}, x.all)
		})
		hostnettest.In(t, x.ns, func() {
			set("conf/default/accept_dad", "0")
			set("ip_nonlocal_bind", "1")
			link := address(x.far, x.link+"2/64")
			route(netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(x.link + "1")}, siegeRP.String()+"/128")
			lo, err := netlink.LinkByName("lo")
			require.NoError(t, err)
			route(netlink.Route{LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL}, x.all)
			s.copies = append(s.copies, newTap(t, x.far))
		})
	}

	key, err := crypto.GenerateKey()
	require.NoError(t, err)
	keyFile := filepath.Join(t.TempDir(), "nodekey")
	require.NoError(t, crypto.SaveECDSA(keyFile, key))
	s.node = enode.NewV4(&key.PublicKey, siegeRP.AsSlice(), siegeControl, 0)
	config := filepath.Join(t.TempDir(), "rpd.toml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `
[node]
key_file = %q
address = %q
control_port = %d
data_port = %d
[chain]
network_id = %d
genesis = "0x%x"
[datapath]
engine = "socket"
[limits]
egress_total = %d
[admin]
listen = "[::1]:9300"
socket = ""
`, keyFile, siegeRP, siegeControl, siegeData, testNetwork, testGenesis, siegeEgress), 0o600))
	s.daemon = (&island{t: t, rp: s.rp, config: config, binary: buildDaemon(t)}).start()
	require.Eventually(t, func() bool {
		fd, err := s.dial(s.home, netip.MustParseAddr("2001:db8:b::1"))
		if err == nil {
			fd.Close()
		}
		return err == nil
	}, patience, 50*time.Millisecond, "rpd does not listen: %s", s.daemon.logged())
	return s
}

// dial connects to the control port from an address.
func (s *siege) dial(ns netns.NsHandle, from netip.Addr) (conn net.Conn, err error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: patience, KeepAlive: -1}
	hostnettest.In(s.t, ns, func() {
		conn, err = d.Dial("tcp6", netip.AddrPortFrom(siegeRP, siegeControl).String())
	})
	return conn, err
}

// metrics returns what rpd measures of itself and counts, by name with labels, and by name
// summed up over labels.
func (s *siege) metrics() map[string]float64 {
	s.t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
			hostnettest.In(s.t, s.rp, func() { conn, err = (&net.Dialer{}).DialContext(ctx, network, addr) })
			return conn, err
		},
	}, Timeout: patience}
	r, err := client.Get("http://[::1]:9300/metrics")
	require.NoError(s.t, err)
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	require.NoError(s.t, err)
	sum := make(map[string]float64)
	for _, m := range regexp.MustCompile(`(?m)^(\w+)(\{.*\})? (\S+)$`).FindAllStringSubmatch(string(text), -1) {
		v, err := strconv.ParseFloat(m[3], 64)
		require.NoError(s.t, err)
		sum[m[1]] += v
		if m[2] != "" {
			sum[m[1]+m[2]] = v
		}
	}
	return sum
}

// scheduled returns how long the threads of rpd ran, and how long they were ready to run and
// did not.
func (d *daemon) scheduled() (ran, waited time.Duration) {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", d.cmd.Process.Pid))
	for _, name := range threads {
		var r, w time.Duration
		if text, err := os.ReadFile(name); err == nil { // else it has ended
			_, _ = fmt.Sscan(string(text), &r, &w)
		}
		ran, waited = ran+r, waited+w
	}
	return ran, waited
}

// heap is the memory of rpd in bytes: all that it has, and half of the heap at which it
// collects garbage next, which was in use at the end of the last collection.
func heap(metrics map[string]float64) (all, live float64) {
	return metrics["go_memstats_heap_inuse_bytes"] + metrics["go_memstats_stack_inuse_bytes"], metrics["go_memstats_next_gc_bytes"] / 2
}

// tap counts the datagrams that come from the data port of rpd on an interface.
type tap struct {
	fd          int
	data, bytes atomic.Uint64 // DATA and their bytes
	others      atomic.Uint64 // all others
	done        chan struct{}
}

// newTap counts from now on, in the namespace of this thread.
func newTap(t *testing.T, dev string) *tap {
	link, err := net.InterfaceByName(dev)
	require.NoError(t, err)
	filter, err := bpf.Assemble([]bpf.Instruction{ // udp, from the data port
		bpf.LoadAbsolute{Off: 20, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDP, SkipTrue: 3},
		bpf.LoadAbsolute{Off: 54, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: siegeData, SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{Val: 0},
	})
	require.NoError(t, err)
	program := make([]unix.SockFilter, len(filter))
	for i, f := range filter {
		program[i] = unix.SockFilter{Code: f.Op, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20))
	require.NoError(t, unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}))
	require.NoError(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}))
	protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_IPV6))
	require.NoError(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: link.Index}))
	p := &tap{fd: fd, done: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(p.count)
	t.Cleanup(func() {
		close(p.done)
		wg.Wait()
		unix.Close(fd)
	})
	return p
}

func (p *tap) count() {
	const headers = 14 + 40 + 8
	b := make([]byte, 1<<16)
	for {
		n, err := unix.Read(p.fd, b)
		switch {
		case err == nil && n > headers && wire.Type(b[headers]&15) == wire.Data:
			p.data.Add(1)
			p.bytes.Add(uint64(n - headers))
		case err == nil:
			p.others.Add(1)
		}
		select {
		case <-p.done:
			return
		default:
		}
	}
}

// missed is how many datagrams were not counted.
func (p *tap) missed() int {
	st, err := unix.GetsockoptTpacketStats(p.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return -1
	}
	return int(st.Drops)
}

// visitor is a connection to rpd on which the test says everything.
type visitor struct {
	*rlpx.Conn
	fd   net.Conn
	addr netip.Addr
	key  *ecdsa.PrivateKey
	wmu  sync.Mutex

	// Of a member.
	udp     *net.UDPConn
	welcome *proto.Welcome
	sends   auth.Key // the hop key of what it sends
	seq     uint64
	echoes  atomic.Uint64
}

// visit connects, shakes hands, and says which chain it is of.
func (s *siege) visit(ns netns.NsHandle, from netip.Addr) (*visitor, error) {
	fd, err := s.dial(ns, from)
	if err != nil {
		return nil, err
	}
	v := &visitor{fd: fd, addr: from}
	if v.key, err = crypto.GenerateKey(); err != nil {
		return nil, err
	}
	_ = fd.SetDeadline(time.Now().Add(patience))
	if v.Conn, err = rlpx.Dial(fd, v.key, s.node.Pubkey()); err == nil {
		err = v.WriteHello(fd, rlpx.NewHello(v.key, "visitor", []p2p.Cap{{Name: proto.Name, Version: proto.Version}}))
	}
	if err == nil {
		_, err = v.ReadHello(fd)
	}
	if err == nil {
		err = v.send(goodStatus())
	}
	if err != nil {
		fd.Close()
		return nil, err
	}
	return v, nil
}

func (v *visitor) close() {
	v.fd.Close()
	if v.udp != nil {
		v.udp.Close()
	}
}

func (v *visitor) send(m proto.Message) error {
	payload, err := proto.Encode(m)
	if err != nil {
		return err
	}
	return v.write(rlpx.BaseLength+m.Code(), payload)
}

// write sends a message of any kind.
func (v *visitor) write(code uint64, payload []byte) error {
	v.wmu.Lock()
	defer v.wmu.Unlock()
	return v.Write(v.fd, code, payload)
}

// next returns the next message of mdcs/1.
func (v *visitor) next() (proto.Message, error) {
	for {
		code, payload, err := v.Read(v.fd, proto.MaxMessage, nil)
		switch {
		case err != nil:
			return nil, err
		case code == rlpx.DisconnectMsg:
			return nil, fmt.Errorf("disconnected: %w", rlpx.ParseDisconnect(payload))
		case code == rlpx.PingMsg:
			if err := v.write(rlpx.PongMsg, []byte{0xc0}); err != nil {
				return nil, err
			}
		case code >= rlpx.BaseLength:
			return proto.Decode(code-rlpx.BaseLength, payload)
		}
	}
}

// listen reads to the end.
func (v *visitor) listen() {
	for {
		if _, err := v.next(); err != nil {
			return
		}
	}
}

// join is visit by a peer that becomes a member.
func (s *siege) join(ns netns.NsHandle, from netip.Addr, standby bool) (*visitor, error) {
	v, err := s.visit(ns, from)
	if err != nil {
		return nil, err
	}
	hostnettest.In(s.t, ns, func() {
		v.udp, err = net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)))
	})
	if err == nil {
		m := goodJoin(v.udp.LocalAddr().(*net.UDPAddr).AddrPort().Port())
		m.Standby = standby
		err = v.send(m)
	}
	if err != nil {
		v.close()
		return nil, err
	}
	go func() { // answers PROBEs, and takes whatever comes
		b := make([]byte, 2048)
		for {
			n, err := v.udp.Read(b)
			if err != nil {
				return
			}
			h, payload, verdict := wire.Parse(b[:n])
			switch {
			case verdict != wire.Pass:
			case h.Type == wire.Echo:
				v.echoes.Add(1)
			case h.Type == wire.Probe:
				_ = v.send(&proto.ProbeAck{Nonce: [wire.NonceSize]byte(payload), Size: uint16(n)})
			}
		}
	}()
	for {
		m, err := v.next()
		if leave, ok := m.(*proto.Leave); ok {
			err = fmt.Errorf("leave: %v", leave.Reason)
		}
		if err != nil {
			v.close()
			return nil, err
		}
		if welcome, ok := m.(*proto.Welcome); ok {
			v.welcome = welcome
			v.sends, _ = auth.HopKeys(enode.PubkeyToIDV4(&v.key.PublicKey), s.node.ID(), auth.Share{1}, welcome.Share)
			_ = v.fd.SetDeadline(time.Time{})
			return v, nil
		}
	}
}

// publish sends one DATA of full size.
func (v *visitor) publish() error {
	i := slices.IndexFunc(v.welcome.Keys, func(k proto.GroupKey) bool { return k.Active })
	if i < 0 {
		return errors.New("no active key")
	}
	v.seq++
	const size = wire.MaxDatagram - wire.HeaderSize
	k := &v.welcome.Keys[i]
	h := wire.Header{
		Type: wire.Data, Epoch: k.Epoch, Session: v.welcome.Session, Group: testGroup, Sequence: v.seq,
		K: 1, N: 1, PayloadLen: size, ObjectLen: size, ObjectID: v.seq,
	}
	b := append(h.Append(nil), make([]byte, size)...)
	wire.SetPayloadTag(b, k.Key.PayloadTag(b))
	wire.SetHopTag(b, v.sends.HopTag(b))
	_, err := v.udp.WriteToUDPAddrPort(b, netip.AddrPortFrom(siegeRP, siegeData))
	return err
}

// assault is what an attacker does with a whole /48 until stop is closed.
type assault struct {
	*siege
	stop chan struct{}
	wg   sync.WaitGroup

	sources            atomic.Uint64 // addresses, each of a /64 of its own
	connections, joins atomic.Uint64 // that came about
	ends               atomic.Uint64 // of connections
}

// source returns an address that was not used before, as long as the /48 has one.
func (a *assault) source() netip.Addr {
	n := a.sources.Add(1)
	b := netip.MustParseAddr("2001:db8:a::").As16()
	binary.BigEndian.PutUint16(b[6:], uint16(n))
	binary.BigEndian.PutUint16(b[14:], uint16(1+n>>16))
	return netip.AddrFrom16(b)
}

func (a *assault) over() bool {
	select {
	case <-a.stop:
		return true
	default:
		return false
	}
}

// pause waits, less when the assault ends.
func (a *assault) pause(d time.Duration) {
	select {
	case <-time.After(d):
	case <-a.stop:
	}
}

// keep holds on to a connection until the RP or the assault ends it.
func (a *assault) keep(fd net.Conn) {
	a.connections.Add(1)
	a.wg.Go(func() {
		ended := make(chan struct{})
		a.wg.Go(func() {
			select {
			case <-ended:
			case <-a.stop:
			}
			fd.Close()
		})
		_, _ = io.Copy(io.Discard, fd)
		close(ended)
		a.ends.Add(1)
	})
}

// wave has n attackers each do something again and again, with a new address and key.
func (a *assault) wave(n int, do func() error) {
	for range n {
		a.wg.Go(func() {
			for !a.over() {
				if err := do(); err != nil {
					a.pause(20 * time.Millisecond)
				}
			}
		})
	}
}

// member has attackers join, and each do something until it fails or the assault ends.
func (a *assault) member(n int, standby, reads bool, do func(*visitor) error) {
	a.wave(n, func() error {
		v, err := a.join(a.site, a.source(), standby)
		if err != nil {
			return err
		}
		a.connections.Add(1)
		a.joins.Add(1)
		var reader sync.WaitGroup
		if reads {
			reader.Go(v.listen)
		}
		for err == nil && !a.over() {
			_ = v.fd.SetWriteDeadline(time.Now().Add(5 * time.Second))
			err = do(v)
		}
		v.close()
		reader.Wait()
		a.ends.Add(1)
		return err
	})
}

// begin attacks by everything that a site has. The numbers are those of attackers at a
// time.
func (a *assault) begin() {
	a.members()
	a.pause(2 * time.Second) // they have sessions, so that the rest of the site does not displace them

	// Who connects and says nothing, or says a part of a handshake.
	a.wave(4, func() error {
		fd, err := a.dial(a.site, a.source())
		if err != nil {
			return err
		}
		if rand.N(2) == 0 {
			_, _ = fd.Write([]byte{1, 200, 4, 4})
		}
		a.keep(fd)
		return nil
	})
	// Who shakes hands and never joins.
	a.wave(2, func() error {
		v, err := a.visit(a.site, a.source())
		if err != nil {
			return err
		}
		a.keep(v.fd)
		return nil
	})
	// Who joins and does not answer PROBEs, from all connections that it gets.
	a.wave(4, func() error {
		v, err := a.visit(a.site, a.source())
		if err != nil {
			return err
		}
		a.keep(v.fd)
		return v.send(goodJoin(9))
	})
	// Who claims large messages before it has a session.
	a.wave(4, func() error {
		v, err := a.visit(a.site, a.source())
		if err != nil {
			return err
		}
		v.SetSnappy(false)
		bomb := append([]byte{0xff, 0xff, 0xff, 0x07}, make([]byte, 10_000)...) // claims 16 MB
		err = v.write(rlpx.PingMsg, bomb)
		a.keep(v.fd)
		return err
	})
}

// members joins with the sessions that a site may have.
func (a *assault) members() {
	// Members that do what the protocol allows, all of it.
	absurd := []proto.Counter{{Ingress: 1, Group: testGroup, Received: 1<<64 - 1, Lost: 1<<64 - 1, Duplicates: 1<<64 - 1}}
	places := make([]proto.Place, proto.MaxPlaces)
	for i := range places {
		places[i] = proto.Place{Ingress: 1, Group: testGroup, Sequence: 1<<64 - 1 - uint64(i)}
	}
	marks := func(v *visitor) []proto.Mark {
		marks := slices.Clone(v.welcome.Marks)
		for i := range marks {
			marks[i].Sequence = 0
		}
		return marks
	}
	a.member(8, true, true, func(v *visitor) error {
		a.pause(time.Second)
		return errors.Join(v.send(&proto.Activate{Marks: marks(v)}), v.send(&proto.Deactivate{}))
	})
	a.member(8, false, true, func(v *visitor) error {
		a.pause(1100 * time.Millisecond)
		return v.send(&proto.Announce{Counters: absurd})
	})
	a.member(16, false, true, func(v *visitor) error {
		a.pause(time.Millisecond)
		return v.publish()
	})
	for _, m := range []proto.Message{&proto.Confirm{Places: places}, &proto.ProbeAck{}, &proto.RekeyAck{ID: 1 << 31}} {
		a.member(2, false, true, func(v *visitor) error { return v.send(m) })
	}
	a.member(2, false, true, func(v *visitor) error { return v.write(rlpx.PongMsg, make([]byte, rlpx.MaxBase)) })
	// Members that hold the largest message back from its last byte on.
	a.member(32, true, true, func(v *visitor) error {
		part := make([]byte, proto.MaxMessage)
		for i := range part {
			part[i] = byte(rand.Uint32())
		}
		var frame bytes.Buffer
		if err := v.Write(&frame, rlpx.BaseLength, part); err != nil {
			return err
		}
		if _, err := v.fd.Write(frame.Bytes()[:frame.Len()-1]); err != nil {
			return err
		}
		a.pause(9 * time.Second)
		return io.EOF
	})
	// Members that read nothing of what they are sent.
	a.member(64, false, false, func(v *visitor) error {
		a.pause(2100 * time.Millisecond)
		return errors.Join(v.write(rlpx.PingMsg, []byte{0xc0}), v.send(&proto.Announce{Counters: absurd}))
	})
	// Who breaks the protocol and comes again.
	for _, m := range []proto.Message{&proto.Activate{}, &proto.Announce{Counters: absurd}, goodJoin(9), &proto.Redirect{}} {
		a.member(2, true, true, func(v *visitor) error { return v.send(m) })
	}
	a.member(4, false, true, func(v *visitor) error {
		junk := make([]byte, rand.N(2000))
		for i := range junk {
			junk[i] = byte(rand.Uint32())
		}
		return v.write(rlpx.BaseLength+rand.Uint64N(proto.Length), junk)
	})
	a.member(2, false, true, func(v *visitor) error {
		return errors.Join(v.write(rlpx.PingMsg, []byte{0xc0}), v.write(rlpx.HelloMsg, []byte{0xc0}))
	})
}

// attackTime is how long TestAttackOfASite attacks; MDCS_ATTACK sets another time.
const attackTime = 20 * time.Second

// fewestSources is how many addresses an attack needs.
const fewestSources = 500

// A site that attacks by all that it has harms nobody but itself: peers of another site join
// at once, get copies and publish, the limit of all copies holds, and neither memory nor log grows
// with what the site does.
func TestAttackOfASite(t *testing.T) {
	length := attackTime
	if text := os.Getenv("MDCS_ATTACK"); text != "" {
		var err error
		length, err = time.ParseDuration(text)
		require.NoError(t, err)
	}
	s := newSiege(t)
	honest, err := s.join(s.home, netip.MustParseAddr("2001:db8:b:1::1"), false)
	require.NoError(t, err)
	t.Cleanup(honest.close)
	var all sync.WaitGroup
	all.Go(honest.listen)
	t.Cleanup(func() { honest.close(); all.Wait() })

	var calm, took []time.Duration // of honest joins, before the attack and during it
	join := func(i int) time.Duration {
		from := time.Now()
		v, err := s.join(s.home, netip.MustParseAddr(fmt.Sprintf("2001:db8:b:%x::1", 2+i%256)), false)
		require.NoError(t, err, "an honest peer is not let in: %s", s.daemon.logged())
		defer v.close()
		took := time.Since(from)
		require.NoError(t, v.send(&proto.Leave{}))
		return took
	}
	for i := range 5 {
		calm = append(calm, join(i))
	}

	all0, live0 := heap(s.metrics())
	lines0 := strings.Count(s.daemon.logged(), "\n")
	var bytes0 uint64
	for _, p := range s.copies {
		bytes0 += p.bytes.Load()
	}
	began := time.Now()
	a := &assault{siege: s, stop: make(chan struct{})}
	a.begin()
	end := sync.OnceFunc(func() { close(a.stop); a.wg.Wait() })
	t.Cleanup(end)

	var most, mostLive float64
	announced := time.Now()
	enough := func() bool { return a.sources.Load() >= fewestSources || time.Since(began) > length+patience }
	for i := 0; time.Since(began) < length || !enough(); i++ {
		took = append(took, join(i))
		now, live := heap(s.metrics())
		most, mostLive = max(most, now-all0), max(mostLive, live-live0)
		require.NoError(t, honest.publish())
		if time.Since(announced) > 5*time.Second {
			require.NoError(t, honest.send(&proto.Announce{}))
			announced = time.Now()
		}
		time.Sleep(250 * time.Millisecond)
	}
	copied := -bytes0
	var datagrams, home uint64
	for i, p := range s.copies {
		copied += p.bytes.Load()
		datagrams += p.data.Load()
		if i == 1 {
			home = p.data.Load()
		}
	}
	attacked := time.Since(began)
	m := s.metrics()
	ran, waited := s.daemon.scheduled()
	s.daemon.end(syscall.SIGKILL) // nobody waits for its answers
	end()
	for _, p := range s.copies {
		require.Zero(t, p.missed(), "datagrams were not counted")
	}
	limit := siegeEgress * (attacked.Seconds() + 0.25) // with what may go at once
	lines := strings.Count(s.daemon.logged(), "\n") - lines0

	slices.Sort(calm)
	slices.Sort(took)
	load, _ := os.ReadFile("/proc/loadavg")
	t.Logf("attack of %v: %d addresses, %d connections, %d joins, %d connections ended; load %s", attacked.Round(time.Millisecond),
		a.sources.Load(), a.connections.Load(), a.joins.Load(), a.ends.Load(), strings.TrimSpace(string(load)))
	t.Logf("%d honest joins: median %v, slowest %v; before the attack %v and %v", len(took), took[len(took)/2].Round(time.Millisecond),
		took[len(took)-1].Round(time.Millisecond), calm[len(calm)/2].Round(time.Millisecond), calm[len(calm)-1].Round(time.Millisecond))
	t.Logf("memory: %+.1f MB at most with garbage, %+.1f MB in use; goroutines %.0f, files %.0f", most/1e6, mostLive/1e6, m["go_goroutines"], m["process_open_fds"])
	t.Logf("rpd ran for %v and waited for %v until the machine had a CPU for it", ran.Round(time.Millisecond), waited.Round(time.Millisecond))
	t.Logf("copies: %d datagrams, %d of these to the honest site, %.1f %% of egress_total", datagrams, home, 100*float64(copied)/(siegeEgress*attacked.Seconds()))
	t.Logf("the honest publisher: %d of %d datagrams were replicated", honest.echoes.Load(), honest.seq)
	t.Logf("log: %d lines in %v", lines, attacked.Round(time.Second))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if m[name] != 0 && regexp.MustCompile(`^mdcs_rp_(connections|refusals|violations|bans|sessions|joins|strangers|idle)`).MatchString(name) {
			t.Logf("%s %.0f", name, m[name])
		}
	}

	require.GreaterOrEqual(t, a.sources.Load(), uint64(fewestSources), "this was no attack")
	require.NotZero(t, a.joins.Load(), "this was no attack")
	require.NotZero(t, m[`mdcs_rp_datagrams_total{verdict="over_rate"}`], "nothing was published that the limit could hold back")
	require.NotZero(t, home)
	require.Less(t, took[len(took)/2], time.Second)
	require.Less(t, took[len(took)-1], 10*time.Second)
	require.GreaterOrEqual(t, 10*honest.echoes.Load(), 9*uint64(honest.seq), "the honest site has its share of the copies; some ECHOs may not arrive")
	require.LessOrEqual(t, float64(copied), 1.05*limit)
	require.Less(t, mostLive, 64e6)
	require.Less(t, float64(lines), 100*max(1, attacked.Minutes()), "%s", s.daemon.logged())
}
