// SPDX-License-Identifier: LGPL-3.0-or-later

package rp_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/hostnet/hostnettest"
	"github.com/ethmcast/mdcs/rp/mesh"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/receipts"
)

// liar is an RP of the allow-list that speaks mdcsmesh/1 and sends LINK_HELLOs as an RP does, grants what
// it is asked for, replicates nothing, and says what a test wants besides.
type liar struct {
	t           *testing.T
	key         *ecdsa.PrivateKey
	id          linkstate.ID
	incarnation ids.Incarnation
	begun       time.Time
	udp         *net.UDPConn
	server      *p2p.Server
	cost        uint32 // of its links, as it says
	points      []*host
	wg          sync.WaitGroup
	quit        chan struct{}

	mu       sync.Mutex
	sequence uint64 // of its adverts
	ends     map[enode.ID]*liarEnd
	over     int // connections that ended
	keys     map[keyID]proto.GroupKey
}

// liarEnd is a link of a liar to one RP.
type liarEnd struct {
	at       *host
	index    ids.Session // of the session of the liar
	rw       p2p.MsgReadWriter
	hello    *mesh.Hello    // of the RP
	key      auth.Key       // to the RP
	numbers  uint64         // of LINK_HELLOs
	beats    uint64         // of HEARTBEATs
	echo     uint32         // the newest stamp of the RP,
	echoAt   time.Time      // and when it came
	hears    bool           // the RP says that it hears
	messages map[uint64]int // by code, that came
}

// liarKeys are keys of RPs whose ids are above all that others are likely to have, or below.
func liarKeys(t *testing.T, n int, low bool) (keys []*ecdsa.PrivateKey) {
	for len(keys) < n {
		key, err := crypto.GenerateKey()
		require.NoError(t, err)
		if id := linkstate.IDOf(enode.PubkeyToIDV4(&key.PublicKey)); low && id>>56 == 0 || !low && id>>63 == 1 {
			keys = append(keys, key)
		}
	}
	return keys
}

// newLiar connects a liar at an address to RPs.
func newLiar(t *testing.T, key *ecdsa.PrivateKey, at netip.Addr, cost uint32, points []*host) *liar {
	l := &liar{
		t: t, key: key, id: linkstate.IDOf(enode.PubkeyToIDV4(&key.PublicKey)), begun: time.Now(), cost: cost, points: points,
		quit: make(chan struct{}), ends: make(map[enode.ID]*liarEnd), keys: make(map[keyID]proto.GroupKey),
	}
	var err error
	l.incarnation, err = linkstate.DrawIncarnation(l.id, rand.Reader)
	require.NoError(t, err)
	in := *points[0]
	in.addr = at
	in.in(func() { l.udp, err = net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0))) })
	require.NoError(t, err)
	l.server = startServer(t, key, points[0].node, nil, func(c *p2p.Config) {
		c.Dialer = &in
		c.StaticNodes = nil
		for _, p := range points {
			c.StaticNodes = append(c.StaticNodes, p.node)
		}
		c.Protocols = []p2p.Protocol{{Name: mesh.Name, Version: mesh.Version, Length: mesh.Length, Run: l.run}}
	})
	l.wg.Go(l.listen)
	l.wg.Go(l.greet)
	t.Cleanup(l.gone)
	return l
}

// run is one connection.
func (l *liar) run(peer *p2p.Peer, rw p2p.MsgReadWriter) error {
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.ends, peer.ID())
		l.over++
	}()
	l.mu.Lock()
	e := &liarEnd{rw: rw, index: ids.Session(len(l.ends) + l.over + 1), messages: make(map[uint64]int)}
	l.mu.Unlock()
	for _, p := range l.points {
		if p.node.ID() == peer.ID() {
			e.at = p
		}
	}
	own := mesh.Hello{
		NetworkID: testNetwork, Genesis: testGenesis, Incarnation: l.incarnation, Session: e.index, Share: auth.Share{7},
		DataPort: l.udp.LocalAddr().(*net.UDPAddr).AddrPort().Port(),
	}
	if err := e.send(&own); err != nil {
		return err
	}
	for {
		msg, err := rw.ReadMsg()
		if err != nil {
			return err
		}
		b, err := io.ReadAll(msg.Payload)
		if err != nil {
			return err
		}
		l.mu.Lock()
		e.messages[msg.Code]++
		var answer any
		if state, err := linkstate.Decode(msg.Code, b); err == nil {
			switch m := state.(type) {
			case *linkstate.Graft:
				ack := &linkstate.GraftAck{ID: m.ID}
				for _, r := range m.Routes {
					ack.Granted = append(ack.Granted, r.Ingress)
				}
				answer = ack
			case *linkstate.Adverts: // so that the RPs know of links to it
				m.Ack = false
				for _, o := range l.ends {
					if o != e {
						go func() { _ = o.send(m) }()
					}
				}
			}
		} else if m, err := mesh.Decode(msg.Code, b); err == nil {
			switch m := m.(type) {
			case *mesh.Hello:
				e.hello = m
				e.key, _ = auth.HopKeys(enode.PubkeyToIDV4(&l.key.PublicKey), peer.ID(), own.Share, m.Share)
				l.ends[peer.ID()] = e
			case *mesh.Keys:
				for _, k := range m.Keys {
					l.keys[keyID{k.Ingress, k.Group, k.Epoch}] = k
				}
				answer = &mesh.KeysAck{ID: m.ID}
			}
		}
		l.mu.Unlock()
		if answer != nil {
			if err := e.send(answer); err != nil {
				return err
			}
		}
	}
}

// send sends a message.
func (e *liarEnd) send(m any) (err error) {
	var b []byte
	var code uint64
	switch m := m.(type) {
	case linkstate.Message:
		code = m.Code()
		b, err = linkstate.Encode(m)
	case mesh.Message:
		code = m.Code()
		b, err = mesh.Encode(m)
	}
	if err != nil {
		return err
	}
	return e.raw(code, b)
}

func (e *liarEnd) raw(code uint64, b []byte) error {
	return e.rw.WriteMsg(p2p.Msg{Code: code, Size: uint32(len(b)), Payload: newReader(b)})
}

// listen takes the stamps of LINK_HELLOs.
func (l *liar) listen() {
	var b [wire.MaxDatagram]byte
	for {
		n, _, err := l.udp.ReadFromUDPAddrPort(b[:])
		if err != nil {
			return
		}
		h, _, v := wire.Parse(b[:n])
		if v != wire.Pass || h.Type != wire.LinkHello {
			continue
		}
		raw := wire.HelloOf(b[:n])
		hello, err := linkstate.ParseHello(raw[:])
		if err != nil {
			continue
		}
		l.mu.Lock()
		for _, e := range l.ends {
			if e.index == h.Session {
				e.echo, e.echoAt, e.hears = hello.Stamp, time.Now(), hello.Up
			}
		}
		l.mu.Unlock()
	}
}

// greet sends LINK_HELLOs, and an advert as often as an RP may.
func (l *liar) greet() {
	for i := 0; ; i++ {
		select {
		case <-l.quit:
			return
		case <-time.After(linkstate.TreeInterval / 2):
		}
		for _, e := range l.all() {
			l.hello(e)
		}
		if i%20 == 0 {
			l.advert(nil)
		}
	}
}

// hello sends one LINK_HELLO.
func (l *liar) hello(e *liarEnd) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := linkstate.Hello{Stamp: uint32(time.Since(l.begun).Microseconds()), Interval: 100, Up: true}
	if !e.echoAt.IsZero() {
		// Its links shall be the shortest: it held the stamp for longer. What is too long is not believed.
		lie := uint32(0)
		if l.cost == 1 {
			lie = mathrand.Uint32N(2000)
		}
		h.Echoes, h.Echo, h.Hold = true, e.echo, uint32(time.Since(e.echoAt).Microseconds())+lie
	}
	e.numbers++
	b := wire.NewLinkHello(e.hello.Session, e.numbers, [wire.HelloSize]byte(h.Append(nil)))
	l.datagram(e, b[:])
}

// datagram sends a datagram with the right hop tag.
func (l *liar) datagram(e *liarEnd, b []byte) {
	wire.SetHopTag(b, e.key.HopTag(b))
	l.bare(e, b)
}

// bare sends bytes as a datagram.
func (l *liar) bare(e *liarEnd, b []byte) {
	_, _ = l.udp.WriteToUDPAddrPort(b, netip.AddrPortFrom(e.at.rp, e.hello.DataPort))
}

// all returns the links of which the RP is known.
func (l *liar) all() (ends []*liarEnd) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.points {
		if e := l.ends[p.node.ID()]; e != nil {
			ends = append(ends, e)
		}
	}
	return ends
}

// up waits until all RPs hear the liar.
func (l *liar) up() {
	l.t.Helper()
	require.Eventually(l.t, func() bool {
		ends := l.all()
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(ends) == len(l.points) && !slices.ContainsFunc(ends, func(e *liarEnd) bool { return !e.hears })
	}, patience, 5*time.Millisecond)
}

// say sends messages to all RPs, as far as they take them.
func (l *liar) say(all ...any) {
	for _, e := range l.all() {
		for _, m := range all {
			_ = e.send(m)
		}
	}
}

// advert says that it has links to all RPs, after a change.
func (l *liar) advert(edit func(*linkstate.Advert)) {
	l.mu.Lock()
	l.sequence++
	a := linkstate.Advert{Origin: l.id, Incarnation: l.incarnation, Epoch: uint64(l.begun.Unix()), Sequence: l.sequence, Budget: 100}
	l.mu.Unlock()
	for _, p := range l.points {
		a.Links = append(a.Links, linkstate.Link{Neighbour: linkstate.IDOf(p.node.ID()), Cost: l.cost})
	}
	slices.SortFunc(a.Links, func(a, b linkstate.Link) int {
		if a.Neighbour < b.Neighbour {
			return -1
		}
		return 1
	})
	if edit != nil {
		edit(&a)
	}
	s, err := linkstate.Sign(a, l.key)
	if err != nil {
		l.t.Error(err)
		return
	}
	l.say(&linkstate.Adverts{Adverts: []linkstate.Aged{{Signed: s}}})
}

// gone ends all that the liar does.
func (l *liar) gone() {
	select {
	case <-l.quit:
		return
	default:
	}
	close(l.quit)
	l.server.Stop()
	l.udp.Close()
	l.wg.Wait()
}

// ended reports how many of its connections ended.
func (l *liar) ended() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.over
}

// datagrams sends what no RP sends: malformed, of nobody, repeated, of streams of which the liar is no
// upstream, with right tags and sequences far ahead.
func (l *liar) datagrams() {
	l.mu.Lock()
	var keys []proto.GroupKey
	for _, k := range l.keys {
		keys = append(keys, k)
	}
	l.mu.Unlock()
	for _, e := range l.all() {
		for size := range 70 {
			b := make([]byte, size)
			_, _ = rand.Read(b)
			l.bare(e, b)
		}
		for code := range byte(8) {
			for _, session := range []ids.Session{e.hello.Session, 0, math.MaxUint32} {
				b := make([]byte, wire.HeaderSize+10)
				_, _ = rand.Read(b)
				b[0], b[1] = wire.Version, code
				binary.BigEndian.PutUint32(b[4:], uint32(session))
				l.datagram(e, b)
			}
		}
		for _, k := range keys {
			for i := range uint64(130) {
				l.poison(e, k, 1<<20+32*i, 1<<20+32*i+5)
			}
			l.poison(e, k, 1<<44-1, 1<<44-1)
			l.poison(e, k, 0, math.MaxUint64)
		}
	}
}

// poison sends a DATA with one sequence and a HEARTBEAT with another one, with right tags.
func (l *liar) poison(e *liarEnd, k proto.GroupKey, data, beat uint64) {
	payload := "made up"
	h := wire.Header{
		Type: wire.Data, HopLimit: 9, Epoch: k.Epoch, Session: e.hello.Session, Group: k.Group, Ingress: k.Ingress, Sequence: data, K: 1, N: 1,
		PayloadLen: uint16(len(payload)), ObjectLen: uint32(len(payload)), ObjectID: data,
	}
	b := append(h.Append(nil), payload...)
	wire.SetPayloadTag(b, k.Key.PayloadTag(b))
	l.datagram(e, b)
	e.beats++
	h = wire.Header{
		Type: wire.Heartbeat, HopLimit: 9, Epoch: k.Epoch, Session: e.hello.Session, Group: k.Group, Ingress: k.Ingress, Sequence: beat, ObjectID: e.beats,
	}
	b = h.Append(nil)
	wire.SetPayloadTag(b, k.Key.PayloadTag(b))
	l.datagram(e, b)
}

// lies are what liars do that break no rule, and what ends in a ban.
func lies(first, third ids.Incarnation) (harmless []func(*liar), banned map[string]func(*liar)) {
	graft := func(ingress ...ids.Incarnation) *linkstate.Graft {
		m := &linkstate.Graft{ID: 1}
		for _, i := range ingress {
			m.Routes = append(m.Routes, linkstate.GraftRoute{Ingress: i, Marks: []linkstate.Mark{{Group: testGroup}}})
		}
		return m
	}
	both := []ids.Incarnation{min(first, third), max(first, third)}
	times := func(n int, m func(i int) any) func(*liar) {
		return func(l *liar) {
			for i := range n {
				l.say(m(i))
			}
		}
	}
	harmless = []func(*liar){
		(*liar).datagrams,
		times(8, func(i int) any {
			m := graft()
			for k := range ids.Incarnation(linkstate.MaxRoutes) {
				m.Routes = append(m.Routes, linkstate.GraftRoute{Ingress: 0x70000000 + ids.Incarnation(i)*linkstate.MaxRoutes + k})
			}
			return m
		}),
		times(300, func(int) any { return graft(both...) }),
		times(3, func(int) any { return &linkstate.Prune{Ingress: both} }),
		times(50, func(i int) any { return &linkstate.GraftAck{ID: uint32(i), Granted: both[:1], Refused: both[1:]} }),
		times(30, func(i int) any { return &linkstate.RouteSum{Sum: uint32(i)} }),
		times(30, func(int) any { return &linkstate.Serving{Ingress: both} }),
		times(30, func(int) any { return &linkstate.Serving{} }),
		times(30, func(i int) any {
			return &linkstate.Digest{Sums: append(make([]uint32, linkstate.Buckets-1), uint32(i))}
		}),
		times(30, func(i int) any {
			return &linkstate.Offer{Versions: []linkstate.Version{{Origin: linkstate.ID(i + 1), Epoch: math.MaxUint64, Sequence: math.MaxUint64}}}
		}),
		times(30, func(i int) any {
			return &linkstate.Request{Origins: []linkstate.ID{linkstate.ID(i + 1), math.MaxUint64}}
		}),
		times(30, func(i int) any { return &linkstate.Acked{Hash: linkstate.Hash{byte(i)}} }),
		times(10, func(i int) any {
			return &mesh.Keys{ID: uint32(1000 + i), Wait: 100, Keys: []proto.GroupKey{
				{Ingress: first, Group: testGroup, Key: auth.Key{66}}, {Ingress: third, Group: testGroup, Epoch: 1, Key: auth.Key{66}},
			}}
		}),
		times(30, func(i int) any {
			return &mesh.Report{Reports: []receipts.Report{{
				Key:   receipts.Key{Ingress: third, Group: testGroup, Sequence: uint64(i)},
				Count: receipts.Count{Sent: math.MaxUint32, Confirmed: math.MaxUint32},
			}}}
		}),
		func(l *liar) {
			l.advert(func(a *linkstate.Advert) {
				a.Links = append(a.Links, linkstate.Link{Neighbour: math.MaxUint64, Cost: 1})
			})
			l.advert(func(a *linkstate.Advert) { a.Links = a.Links[:1] })
			l.advert(func(a *linkstate.Advert) { a.Budget, a.Publishes = 0, true })
		},
	}
	banned = map[string]func(*liar){
		"graft of ingress 0":    func(l *liar) { l.say(graft(0)) },
		"another's incarnation": func(l *liar) { l.advert(func(a *linkstate.Advert) { a.Incarnation, a.Publishes = first, true }) },
		"signed for another": func(l *liar) {
			l.advert(func(a *linkstate.Advert) {
				a.Origin, a.Sequence = linkstate.IDOf(l.points[0].node.ID()), math.MaxUint64
			})
		},
		"acknowledges nothing": func(l *liar) { l.say(&mesh.KeysAck{ID: 4711}) },
		"second Hello": func(l *liar) {
			l.say(&mesh.Hello{NetworkID: testNetwork, Genesis: testGenesis, Incarnation: l.incarnation, DataPort: 1, Session: 1})
		},
		"digests without end": times(200, func(i int) any {
			return &linkstate.Digest{Sums: append(make([]uint32, linkstate.Buckets-1), uint32(i))}
		}),
		"hellos without end": func(l *liar) {
			for range 4000 {
				for _, e := range l.all() {
					l.hello(e)
				}
				time.Sleep(100 * time.Microsecond)
			}
		},
	}
	garbage := [][]byte{{0xff, 0x01}, nil, {0xc3, 0xc2, 0xc1, 0xc0}}
	for i, code := range []uint64{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, mesh.Length - 1} {
		banned[fmt.Sprintf("garbage as message 0x%02x", code)] = func(l *liar) {
			for _, e := range l.all() {
				_ = e.raw(code, garbage[i%len(garbage)])
			}
		}
	}
	return harmless, banned
}

// Whatever RPs of the allow-list say and send that are no parents, what is published at the first RP
// arrives at the others, all of it, once. Whoever breaks the protocol is banned.
//
// A liar that is the parent takes the stream, and lies about it, while the third hangs. When it is
// gone, the stream at rest is as it was, and all that is published arrives.
//
//	first --- third --- second       each liar has links to all, the parent not to the third
func TestXDPHostileNeighbours(t *testing.T)    { hostileNeighbours(t, "xdp") }
func TestSocketHostileNeighbours(t *testing.T) { hostileNeighbours(t, "socket") }

func hostileNeighbours(t *testing.T, engine string) {
	_, kinds := lies(1, 2)
	keys := append(liarKeys(t, 1, true), liarKeys(t, 1+len(kinds), false)...)
	addr := func(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fd00:7::1:%x", i+1)) }
	var nodes []*enode.Node
	for i, key := range keys {
		nodes = append(nodes, enode.NewV4(&key.PublicKey, addr(i).AsSlice(), 1, 0))
	}
	a := newArchipelago(t, [2]int{0, 1}, engine, nodes...)
	hostnettest.In(t, a.island.hosts, func() {
		link, err := netlink.LinkByName("h0")
		require.NoError(t, err)
		for i := range keys {
			at, err := netlink.ParseAddr(addr(i).String() + "/64")
			require.NoError(t, err)
			at.Flags = unix.IFA_F_NODAD
			require.NoError(t, netlink.AddrAdd(link, at))
		}
	})
	daemons := []*daemon{a.startAt(a.island.hosts, a.configs[0]), a.start(), a.startAt(a.island.hosts, a.configs[2])}
	for _, d := range daemons {
		d.says("replication point serves")
		d.says("mesh link up")
	}
	var peers []*lightPeer
	for _, h := range a.hosts {
		peers = append(peers, newPeer(t, nil, peerOptions{host: h}))
	}
	members(t, peers...)
	incarnation := func(p *lightPeer) ids.Incarnation { return p.member.RP.Incarnation }
	first, third := see(peers[0], incarnation), see(peers[2], incarnation)

	published := uint64(0)
	publish := func() {
		published++
		peers[0].publish(fmt.Sprint("datagram ", published))
	}
	has := func(p *lightPeer, seq uint64) int {
		return see(p, func(p *lightPeer) int { return p.sequences[sequence{first, seq}] })
	}
	whole := func(from uint64, at ...*lightPeer) {
		t.Helper()
		for _, p := range at {
			require.Eventually(t, func() bool { return has(p, published) > 0 }, patience, time.Millisecond)
			lost, twice := 0, 0
			for seq := from; seq <= published; seq++ {
				switch n := has(p, seq); {
				case n == 0:
					lost++
				case n > 1:
					twice++
				}
			}
			require.Zero(t, lost, "lost of %d", published-from+1)
			require.Zero(t, twice)
		}
	}
	arrives := func(at ...*lightPeer) {
		t.Helper()
		require.Eventually(t, func() bool {
			publish()
			time.Sleep(100 * time.Millisecond)
			return !slices.ContainsFunc(at, func(p *lightPeer) bool { return has(p, published) == 0 })
		}, patience, time.Millisecond)
	}
	arrives(peers[1:]...) // a loaded machine may let members in sooner than the mesh is whole
	begin := published

	// Liars that are no parents.
	harmless, banned := lies(first, third)
	quit, flowed := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(flowed)
		for {
			select {
			case <-quit:
				return
			case <-time.After(5 * time.Millisecond):
				publish()
			}
		}
	}()
	const far = 1 << 20
	one := newLiar(t, keys[1], addr(1), far, a.hosts[:])
	one.up()
	require.Eventually(t, func() bool {
		one.say(&linkstate.Graft{ID: 1, Routes: []linkstate.GraftRoute{{Ingress: first}}})
		one.mu.Lock()
		defer one.mu.Unlock()
		return len(one.keys) > 0
	}, patience, time.Second)
	for _, lie := range harmless {
		lie(one)
		time.Sleep(20 * time.Millisecond)
	}
	require.Zero(t, one.ended())
	var wg sync.WaitGroup
	i := 2
	for name, lie := range banned {
		l := newLiar(t, keys[i], addr(i), far, a.hosts[:])
		i++
		wg.Go(func() {
			l.up()
			lie(l)
			for end := time.Now().Add(patience); l.ended() < len(a.hosts); time.Sleep(5 * time.Millisecond) {
				if time.Now().After(end) {
					t.Errorf("%s: %d of 3 links ended", name, l.ended())
					break
				}
			}
			l.gone()
		})
	}
	wg.Wait()
	one.gone()
	close(quit)
	<-flowed
	// The links between the three stand all the time, unless this machine is too slow for them.
	var lost []string
	for _, d := range daemons {
		for _, h := range a.hosts {
			lost = append(lost, d.lost(h.node.ID())...)
		}
	}
	if len(lost) == 0 {
		whole(begin, peers[1:]...)
	} else {
		t.Logf("links of honest RPs were lost, nothing is said of what arrived: %q", lost)
	}
	for _, d := range daemons {
		require.Contains(t, d.logged(), "neighbour banned")
	}
	t.Logf("%d liars, %d datagrams to 2 receivers", 1+len(banned), published)

	// A liar that is the parent of the second, because the third hangs.
	require.NoError(t, daemons[2].cmd.Process.Signal(syscall.SIGSTOP))
	parent := newLiar(t, keys[0], addr(0), 1, a.hosts[:2])
	parent.up()
	ends := parent.all()
	var key proto.GroupKey
	require.Eventually(t, func() bool {
		_ = ends[0].send(&linkstate.Graft{ID: 1, Routes: []linkstate.GraftRoute{{Ingress: first}}})
		parent.mu.Lock()
		defer parent.mu.Unlock()
		for id, k := range parent.keys {
			if id.ingress == first {
				key = k
				return true
			}
		}
		return false
	}, patience, time.Second)
	lie := func() {
		for i := range uint64(128) {
			parent.poison(ends[1], key, published+1000+32*i, published+10_000)
		}
		time.Sleep(100 * time.Millisecond)
	}
	believed := func() bool {
		return see(peers[1], func(p *lightPeer) uint64 { return p.heartbeats[first] }) > published
	}
	require.Eventually(t, func() bool { lie(); return believed() }, patience, time.Millisecond, "it is no parent")
	require.NoError(t, daemons[2].cmd.Process.Signal(syscall.SIGCONT))
	for range 40 { // meanwhile the stream rests, and the third is found again
		lie()
	}
	gone := time.Now()
	parent.gone()
	require.Eventually(t, func() bool { return !believed() }, patience, time.Millisecond)
	t.Logf("whole %v after the liar is gone", time.Since(gone).Round(time.Millisecond))
	arrives(peers[1])
	from := published + 1
	for range 100 {
		publish()
		time.Sleep(5 * time.Millisecond)
	}
	whole(from, peers[1])
}

// lost returns what the daemon says of the loss of an RP that it was linked with.
func (d *daemon) lost(id enode.ID) (lines []string) {
	for line := range strings.SplitSeq(d.logged(), "\n") {
		if strings.Contains(line, "rp="+id.TerminalString()) && (strings.Contains(line, "mesh link down") || strings.Contains(line, "neighbour is not heard")) {
			lines = append(lines, line)
		}
	}
	return lines
}
