// SPDX-License-Identifier: LGPL-3.0-or-later

package rp_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"io"
	randv2 "math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/receipt"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp"
)

// lightPeer is a peer without a geth: devp2p, the joiner, a UDP socket, and a book
// of what arrived.
type lightPeer struct {
	t      *testing.T
	opt    peerOptions
	key    *ecdsa.PrivateKey
	udp    *net.UDPConn
	server *p2p.Server
	wg     sync.WaitGroup

	mu      sync.Mutex
	joiner  *proto.Joiner // nil without a connection
	send    func(proto.Message)
	member  *proto.Joined // nil when not a member
	keys    map[keyID]proto.GroupKey
	retired []ids.Incarnation
	served  int // resumed, or activated
	seq     uint64
	confirm *receipt.Confirms // nil when it confirms nothing
	book
}

type keyID struct {
	ingress ids.Incarnation
	group   ids.Group
	epoch   uint8
}

// book is what arrived, in order.
type book struct {
	sequences  map[sequence]int // DATA, whatever its session
	data       []wire.Header    // DATA with right session and tags
	payloads   []string
	echoes     []wire.Header
	heartbeats map[ids.Incarnation]uint64 // newest sequence by ingress RP
	probes     int
	bad        []string // datagrams that should not have come
	left       []error
	receipts   []proto.ObjectReceipt
	counters   proto.Counters // the newest
}

type sequence struct {
	ingress ids.Incarnation
	number  uint64
}

// peerOptions are the ways in which a peer differs from a good one.
type peerOptions struct {
	deaf    bool // does not answer PROBEs
	silent  bool // does not announce itself
	chain   byte // another genesis, when not 0
	ssm     bool // wishes mode ssm, and hears nothing by the channel
	resumes bool // goes on with its membership on the next connection
	standby bool // joins in standby
	secret  bool // does not tell what it has
	stays   bool // publishes and listens as before when the connection is lost, until it is a member again

	// host is where the peer is, nil for the loopback interface.
	host *host
}

// host is a place that an RP is reached from.
type host struct {
	addr netip.Addr   // of the peer
	rp   netip.Addr   // of the RP
	node *enode.Node  // the RP
	in   func(func()) // runs a function there
}

func (o peerOptions) mode() proto.DeliveryMode {
	if o.ssm {
		return proto.ModeSSM
	}
	return proto.ModeUnicast
}

// newPeer starts a peer that joins an RP and stays connected to it.
func newPeer(t *testing.T, point *rp.RP, opt peerOptions) *lightPeer {
	t.Helper()
	key, err := crypto.GenerateKey()
	require.NoError(t, err)
	if opt.host == nil {
		opt.host = &host{addr: loopback.Addr(), rp: loopback.Addr(), node: point.Self(), in: func(f func()) { f() }}
	}
	var udp *net.UDPConn
	opt.host.in(func() {
		udp, err = net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(opt.host.addr, 0)))
	})
	require.NoError(t, err)
	p := &lightPeer{t: t, opt: opt, key: key, udp: udp, keys: make(map[keyID]proto.GroupKey)}
	if !opt.secret {
		p.confirm = receipt.NewConfirms(randv2.New(randv2.NewPCG(1, uint64(p.addr().Port()))))
	}
	p.heartbeats, p.sequences = make(map[ids.Incarnation]uint64), make(map[sequence]int)
	p.connect()
	p.wg.Go(p.receive)
	t.Cleanup(func() {
		p.server.Stop()
		p.udp.Close()
		p.wg.Wait()
	})
	return p
}

// connect connects the peer, anew when it was connected before: devp2p itself waits
// for half a minute before it dials a node again.
func (p *lightPeer) connect() {
	if p.server != nil {
		p.server.Stop()
	}
	p.server = startServer(p.t, p.key, p.opt.host.node, p.run, func(c *p2p.Config) { c.Dialer = p.opt.host })
}

// Dial implements p2p.NodeDialer.
func (h *host) Dial(ctx context.Context, n *enode.Node) (conn net.Conn, err error) {
	addr, _ := n.TCPEndpoint()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(h.addr, 0))}
	h.in(func() { conn, err = d.DialContext(ctx, "tcp6", addr.String()) })
	return conn, err
}

// startServer starts devp2p with mdcs/1 alone and dials one node.
func startServer(t *testing.T, key *ecdsa.PrivateKey, node *enode.Node, run func(*p2p.Peer, p2p.MsgReadWriter) error, edit ...func(*p2p.Config)) *p2p.Server {
	t.Helper()
	server := &p2p.Server{Config: p2p.Config{
		PrivateKey:  key,
		Name:        "light-peer",
		MaxPeers:    10,
		DialRatio:   1,
		NoDiscovery: true,
		StaticNodes: []*enode.Node{node},
		Protocols:   []p2p.Protocol{{Name: proto.Name, Version: proto.Version, Length: proto.Length, Run: run}},
	}}
	for _, f := range edit {
		f(&server.Config)
	}
	require.NoError(t, server.Start())
	return server
}

// run is the peer's side of mdcs/1 on one connection.
func (p *lightPeer) run(peer *p2p.Peer, rw p2p.MsgReadWriter) error {
	messages, done := make(chan proto.Message), make(chan struct{})
	defer close(done)
	go func() {
		defer close(messages)
		for {
			m, err := readMessage(rw)
			if err != nil {
				return
			}
			select {
			case messages <- m:
			case <-done:
				return
			}
		}
	}()
	genesis := testGenesis
	genesis[31] ^= p.opt.chain
	p.mu.Lock()
	p.send = func(m proto.Message) { _ = p2p.Send(rw, m.Code(), m) }
	if p.opt.resumes && p.joiner != nil {
		p.joiner.Reconnected()
	} else {
		p.joiner = p.newJoiner(peer.ID(), genesis)
	}
	p.perform()
	p.mu.Unlock()

	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case m, ok := <-messages:
			p.mu.Lock()
			if !ok {
				switch {
				case p.opt.resumes:
					p.send = func(proto.Message) {}
					p.joiner.Disconnected(time.Now())
				case p.opt.stays:
					p.joiner = nil
				default:
					p.joiner.Fail(time.Now(), errors.New("connection lost"))
				}
				p.perform()
				if !p.opt.resumes {
					p.joiner = nil
				}
				p.mu.Unlock()
				return io.EOF
			}
			if err := p.joiner.Handle(time.Now(), m); err != nil {
				p.t.Logf("peer: %v", err)
			}
			p.perform()
			p.mu.Unlock()
		case now := <-tick.C:
			p.mu.Lock()
			p.joiner.Tick(now)
			p.perform()
			if p.confirm != nil {
				if places := p.confirm.Tick(now); places != nil {
					p.send(&proto.Confirm{Places: places})
				}
			}
			p.mu.Unlock()
		}
	}
}

// newJoiner returns a joiner that wants to be a member.
func (p *lightPeer) newJoiner(point enode.ID, genesis [32]byte) *proto.Joiner {
	j := proto.NewJoiner(proto.JoinerConfig{
		Self:      enode.PubkeyToIDV4(&p.key.PublicKey),
		Remote:    point,
		NetworkID: testNetwork,
		Genesis:   genesis,
		Groups:    []ids.Group{testGroup},
		Publish:   true,
		Port:      p.addr().Port(),
		Mode:      p.opt.mode(),
		Rand:      rand.Reader,
	})
	if p.opt.standby {
		j.WantStandby(time.Now())
	} else {
		j.Want(time.Now(), true)
	}
	return j
}

func readMessage(rw p2p.MsgReader) (proto.Message, error) {
	msg, err := rw.ReadMsg()
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(msg.Payload)
	if err != nil {
		return nil, err
	}
	return proto.Decode(msg.Code, b)
}

// perform does what the joiner wants. p.mu is held.
func (p *lightPeer) perform() {
	if p.joiner == nil {
		return
	}
	for _, a := range p.joiner.Actions() {
		switch a := a.(type) {
		case proto.Send:
			if _, echo := a.Message.(*proto.ProbeAck); echo && p.opt.deaf {
				continue
			}
			p.send(a.Message)
		case proto.Subscribe:
			p.joiner.Subscribed(true)
			p.perform()
		case proto.Joined:
			p.member, p.seq = &a, 0
			p.install(a.Keys, nil)
		case proto.Install:
			p.install(a.Keys, a.Retired)
		case proto.ActivateDue:
			p.send(&proto.Activate{})
		case proto.Served:
			p.served++
			p.install(a.Keys, nil)
		case proto.Counted:
			p.counters = a.Counters
		case proto.Receipted:
			p.receipts = append(p.receipts, a.Objects...)
		case proto.AnnounceDue:
			if !p.opt.silent {
				p.send(&proto.Announce{})
			}
		case proto.Left:
			p.member = nil
			p.left = append(p.left, a.Err)
		}
	}
}

func (p *lightPeer) install(keys []proto.GroupKey, retired []ids.Incarnation) {
	for _, k := range keys {
		if k.Active {
			for id, old := range p.keys {
				if id.ingress == k.Ingress && id.group == k.Group {
					old.Active = false
					p.keys[id] = old
				}
			}
		}
		p.keys[keyID{k.Ingress, k.Group, k.Epoch}] = k
	}
	p.retired = append(p.retired, retired...)
}

// receive books datagrams until the socket closes.
func (p *lightPeer) receive() {
	b := make([]byte, 2048)
	for {
		n, src, err := p.udp.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		p.mu.Lock()
		p.datagram(src, slices.Clone(b[:n]))
		p.mu.Unlock()
	}
}

func (p *lightPeer) datagram(_ netip.AddrPort, b []byte) {
	h, payload, v := wire.Parse(b)
	if v != wire.Pass {
		p.bad = append(p.bad, "form: "+v.String())
		return
	}
	if h.Type == wire.Probe {
		p.probes++
		if p.joiner != nil {
			p.joiner.Probe([wire.NonceSize]byte(payload), len(b))
			p.perform()
		}
		return
	}
	if h.Type == wire.Data {
		p.sequences[sequence{h.Ingress, h.Sequence}]++
	}
	switch {
	case p.member == nil && p.joiner != nil && p.joiner.State() == proto.JoinerJoining:
		return // overtook the Welcome
	case p.member == nil:
		p.bad = append(p.bad, "not a member: "+h.String())
		return
	case h.Session != p.member.ReceiveSession || !p.member.ReceiveKey.CheckHopTag(b, h.HopTag):
		p.bad = append(p.bad, "hop: "+h.String())
		return
	}
	if p.joiner != nil {
		p.joiner.Heard(time.Now())
	}
	switch h.Type {
	case wire.Data:
		k, ok := p.keys[keyID{h.Ingress, h.Group, h.Epoch}]
		if !ok || !k.Key.CheckPayloadTag(b, h.PayloadTag) {
			p.bad = append(p.bad, "payload: "+h.String())
			return
		}
		p.data = append(p.data, h)
		p.payloads = append(p.payloads, string(payload))
		if h.AsksReceipt() && p.confirm != nil {
			p.confirm.Asked(time.Now(), h.ObjectID, proto.Place{Ingress: h.Ingress, Group: h.Group, Sequence: h.Sequence}, true)
		}
	case wire.Echo:
		p.echoes = append(p.echoes, h)
	case wire.Heartbeat:
		p.heartbeats[h.Ingress] = h.Sequence
	}
}

func (p *lightPeer) addr() netip.AddrPort { return p.udp.LocalAddr().(*net.UDPAddr).AddrPort() }

// publish sends one DATA of one symbol. The peer must be a member.
func (p *lightPeer) publish(payload string) { p.t.Helper(); p.publishWith(payload, 0) }

// publishWith is publish with flags. Object ids count from 1.
func (p *lightPeer) publishWith(payload string, flags uint8) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	require.NotNil(p.t, p.member, "not a member")
	var active *proto.GroupKey
	for _, k := range p.keys {
		if k.Ingress == p.member.RP.Incarnation && k.Active {
			active = &k
		}
	}
	require.NotNil(p.t, active, "no active key")
	p.seq++
	h := wire.Header{
		Type:       wire.Data,
		Flags:      flags,
		Epoch:      active.Epoch,
		Session:    p.member.SendSession,
		Group:      testGroup,
		Sequence:   p.seq,
		K:          1,
		N:          1,
		PayloadLen: uint16(len(payload)),
		ObjectLen:  uint32(len(payload)),
		ObjectID:   p.seq,
	}
	b := append(h.Append(nil), payload...)
	wire.SetPayloadTag(b, active.Key.PayloadTag(b))
	wire.SetHopTag(b, p.member.SendKey.HopTag(b))
	to := netip.AddrPortFrom(p.opt.host.rp, p.member.RP.DataPort)
	_, err := p.udp.WriteToUDPAddrPort(b, to)
	require.NoError(p.t, err)
}

// leave makes the peer leave for good.
func (p *lightPeer) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.joiner.Want(time.Now(), false)
	p.perform()
}

// see returns what f sees of the peer.
func see[T any](p *lightPeer, f func(p *lightPeer) T) T {
	p.mu.Lock()
	defer p.mu.Unlock()
	return f(p)
}

func (p *lightPeer) isMember() bool {
	return see(p, func(p *lightPeer) bool { return p.member != nil })
}

func (p *lightPeer) got() []string {
	return see(p, func(p *lightPeer) []string { return slices.Clone(p.payloads) })
}

func (p *lightPeer) badDatagrams() []string {
	return see(p, func(p *lightPeer) []string { return slices.Clone(p.bad) })
}

// rawPeer is a devp2p connection to an RP on which the test says everything.
type rawPeer struct {
	t       *testing.T
	rw      p2p.MsgReadWriter
	replies chan proto.Message // closed with the connection
}

// connect opens a connection and returns it when it stands.
func connect(t *testing.T, point *rp.RP) *rawPeer {
	t.Helper()
	key, err := crypto.GenerateKey()
	require.NoError(t, err)
	conns := make(chan *rawPeer, 1)
	server := startServer(t, key, point.Self(), func(_ *p2p.Peer, rw p2p.MsgReadWriter) error {
		r := &rawPeer{t: t, rw: rw, replies: make(chan proto.Message, 100)}
		defer close(r.replies)
		conns <- r
		for {
			m, err := readMessage(rw)
			if err != nil {
				return err
			}
			if _, counters := m.(*proto.Counters); !counters { // they come at any time
				r.replies <- m
			}
		}
	})
	t.Cleanup(server.Stop)
	select {
	case r := <-conns:
		return r
	case <-time.After(patience):
		t.Fatal("no connection")
		return nil
	}
}

func (r *rawPeer) send(m proto.Message) {
	r.t.Helper()
	require.NoError(r.t, p2p.Send(r.rw, m.Code(), m))
}

// sendRaw sends bytes under a code.
func (r *rawPeer) sendRaw(code uint64, b []byte) {
	r.t.Helper()
	require.NoError(r.t, r.rw.WriteMsg(p2p.Msg{Code: code, Size: uint32(len(b)), Payload: newReader(b)}))
}

// expect returns the next message, which must be an M.
func expect[M proto.Message](r *rawPeer) (m M) {
	r.t.Helper()
	select {
	case got, ok := <-r.replies:
		require.True(r.t, ok, "connection closed where %T was expected", m)
		require.IsType(r.t, m, got)
		return got.(M)
	case <-time.After(patience):
		r.t.Fatalf("no %T", m)
		return m
	}
}

// closed waits for the end of the connection.
func (r *rawPeer) closed() {
	r.t.Helper()
	select {
	case m, ok := <-r.replies:
		require.False(r.t, ok, "message %T where the end was expected", m)
	case <-time.After(patience):
		r.t.Fatal("the connection stays open")
	}
}

func goodStatus() *proto.Status {
	return &proto.Status{Role: proto.RolePeer, NetworkID: testNetwork, Genesis: testGenesis}
}

func goodJoin(port uint16) *proto.Join {
	return &proto.Join{
		Groups:    []ids.Group{testGroup},
		Publish:   true,
		Port:      port,
		ProbeSize: wire.MaxDatagram,
		Session:   77,
		Share:     auth.Share{1},
	}
}
