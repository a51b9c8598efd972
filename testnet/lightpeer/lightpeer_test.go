// SPDX-License-Identifier: LGPL-3.0-or-later

package lightpeer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/datapath"
	engine "github.com/ethmcast/mdcs/rp/datapath/socket"
)

// patience is for what must happen on a loaded machine.
const patience = 30 * time.Second

// nodeDB is a goroutine of a closed goleveldb, which ends up to 30 seconds later.
var nodeDB = goleak.IgnoreAnyFunction("github.com/syndtr/goleveldb/leveldb.(*DB).mpoolDrain")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, nodeDB) }

// startRP starts a replication point on the loopback interface.
func startRP(t *testing.T, key *ecdsa.PrivateKey, control uint16) *rp.RP {
	t.Helper()
	point, err := rp.New(rp.Config{
		PrivateKey: key, Address: netip.IPv6Loopback(), ControlPort: control,
		NetworkID: 7, Settings: rp.Settings{Lease: proto.Lease, Rate: 1000, Burst: 100}, RekeyInterval: time.Hour,
		Engine: func(c datapath.Config) (datapath.Engine, error) { return engine.Listen(c) },
		Log:    slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	require.NoError(t, point.Start())
	t.Cleanup(point.Stop)
	return point
}

// freePorts returns endpoints on the loopback interface that nobody has.
func freePorts(t *testing.T, n int) (endpoints []netip.AddrPort) {
	for range n {
		c, err := net.ListenPacket("udp6", "[::1]:0")
		require.NoError(t, err)
		defer c.Close()
		endpoints = append(endpoints, c.LocalAddr().(*net.UDPAddr).AddrPort())
	}
	return endpoints
}

func await(t *testing.T, s *Swarm, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, s.Await(ctx, n))
}

// Light peers join a real replication point, get what the others publish, and come
// back when it does.
func TestSwarm(t *testing.T) {
	const peers = 20
	key, err := crypto.GenerateKey()
	require.NoError(t, err)
	point := startRP(t, key, 0)
	self := point.Self()
	s, err := Start(Config{RP: self, NetworkID: 7, Endpoints: freePorts(t, peers), Connecting: 8})
	require.NoError(t, err)
	defer s.Stop()
	await(t, s, peers)
	require.Equal(t, peers, point.Status().Sessions)

	delays, err := s.Load(t.Context(), 100, 500*time.Millisecond)
	require.NoError(t, err)
	require.Equal(t, 50, delays.Published)
	require.Zero(t, delays.Missing)
	require.Len(t, delays.Last, 50)
	for _, d := range delays.Last {
		require.Positive(t, d)
		require.Less(t, d, landTime)
	}
	c := s.Counters()
	require.Equal(t, uint64(50), c.Published)
	require.Equal(t, uint64(50), c.Echoes)
	require.Equal(t, uint64(50*(peers-1)), c.Received)
	require.Zero(t, c.Lost+c.Duplicates+c.Early+c.Refused)
	require.Equal(t, uint64(peers), c.Joined)
	require.Greater(t, c.ControlSent, uint64(peers*500))
	require.Greater(t, c.ControlReceived, uint64(peers*500))

	point.Stop()
	require.Eventually(t, func() bool { return s.Counters().Members == 0 }, patience, 10*time.Millisecond)
	require.Error(t, s.Publish(0, []byte{1}))
	point = startRP(t, key, uint16(self.TCP()))
	await(t, s, peers)
	require.Equal(t, uint64(2*peers), s.Counters().Joined)
	delays, err = s.Load(t.Context(), 100, 100*time.Millisecond)
	require.NoError(t, err)
	require.Equal(t, 10, delays.Published)
	require.Zero(t, delays.Missing)
	require.Zero(t, s.Counters().Lost)
	s.Stop()
	require.Eventually(t, func() bool { return point.Status().Sessions == 0 }, patience, 10*time.Millisecond)
}

func TestStartRefuses(t *testing.T) {
	key, err := crypto.GenerateKey()
	require.NoError(t, err)
	six := enode.NewV4(&key.PublicKey, net.IPv6loopback, 1, 0)
	one := []netip.AddrPort{netip.MustParseAddrPort("[::1]:0")}
	for want, cfg := range map[string]Config{
		"not IPv6":    {RP: enode.NewV4(&key.PublicKey, net.IP{127, 0, 0, 1}, 1, 0), Endpoints: one, Connecting: 1},
		"none":        {RP: six, Connecting: 1},
		"may connect": {RP: six, Endpoints: one},
		"two peers":   {RP: six, Endpoints: append(one, one...), Connecting: 1},
	} {
		_, err := Start(cfg)
		require.ErrorContains(t, err, want)
	}
	taken, err := net.ListenPacket("udp6", "[::1]:0")
	require.NoError(t, err)
	defer taken.Close()
	port := taken.LocalAddr().(*net.UDPAddr).AddrPort()
	_, err = Start(Config{RP: six, Endpoints: append(one, port), Connecting: 1})
	require.ErrorContains(t, err, "address already in use")
}

// Every site has as many peers as a replication point takes by default.
func TestEndpoints(t *testing.T) {
	list := Endpoints(netip.MustParsePrefix("fd00:2::/32"), 30400, 10_000)
	require.Equal(t, "[fd00:2::1]:30400", list[0].String())
	require.Equal(t, "[fd00:2::1]:30415", list[15].String())
	require.Equal(t, "[fd00:2:0:1::1]:30400", list[16].String())
	require.Equal(t, "[fd00:2:1::1]:30400", list[256].String())
	count := make(map[netip.AddrPort]int)
	sites := make(map[netip.Prefix]int)
	for _, e := range list {
		count[e]++
		for _, bits := range []int{64, 48} {
			sites[netip.PrefixFrom(e.Addr(), bits).Masked()]++
		}
	}
	require.Len(t, count, len(list))
	for p, n := range sites {
		require.LessOrEqual(t, n, map[int]int{64: 16, 48: 256}[p.Bits()])
	}
}

// member is a light peer that joined without a network.
func member(t *testing.T) (*peer, func(sequence uint64, edit ...func(*wire.Header)) []byte) {
	hop, group := auth.Key{1}, auth.Key{2}
	p := &peer{swarm: &Swarm{rp: netip.IPv6Loopback()}}
	p.joiner = proto.NewJoiner(proto.JoinerConfig{})
	p.member = &proto.Joined{RP: proto.Status{Incarnation: 9, DataPort: 5}, ReceiveSession: 3, ReceiveKey: hop}
	p.install([]proto.GroupKey{{Ingress: 9, Group: 4, Epoch: 1, Active: true, Key: group}})
	s := p.stream(9, 4)
	s.begun, s.base, s.newest = true, 100, 100
	return p, func(sequence uint64, edit ...func(*wire.Header)) []byte {
		h := wire.Header{Type: wire.Data, Session: 3, Epoch: 1, Group: 4, Ingress: 9, Sequence: sequence, K: 1, N: 1,
			PayloadLen: 1, ObjectLen: 1}
		for _, f := range edit {
			f(&h)
		}
		b := h.Append(nil)
		if h.Type == wire.Data {
			b = append(b, 7)
		}
		wire.SetPayloadTag(b, group.PayloadTag(b))
		wire.SetHopTag(b, hop.HopTag(b))
		return b
	}
}

// What is lost, doubled or forged is seen.
func TestCounts(t *testing.T) {
	p, datagram := member(t)
	src := netip.MustParseAddrPort("[::1]:5")
	take := func(b []byte) { p.receive(time.Now(), src, b, 1) }
	take(datagram(101))
	take(datagram(105))
	take(datagram(103))
	take(datagram(103))
	take(datagram(90)) // before it joined
	take(datagram(107, func(h *wire.Header) { h.Type, h.PayloadLen, h.ObjectID = wire.Heartbeat, 0, 1 }))
	take(datagram(102, func(h *wire.Header) { h.Type = wire.Echo }))
	require.Equal(t, uint64(3), p.lost(), "104, 106, 107")
	require.Equal(t, uint64(4), p.swarm.received.Load())
	require.Equal(t, uint64(1), p.swarm.duplicates.Load())
	require.Equal(t, uint64(1), p.swarm.echoes.Load())
	require.Zero(t, p.swarm.refused.Load())

	bad := map[string][]byte{
		"session": datagram(104, func(h *wire.Header) { h.Session = 4 }),
		"key":     datagram(104, func(h *wire.Header) { h.Epoch = 2 }),
		"stream":  datagram(104, func(h *wire.Header) { h.Ingress = 8 }),
		"beat":    datagram(108, func(h *wire.Header) { h.Type, h.PayloadLen, h.ObjectID = wire.Heartbeat, 0, 1 }),
		"hop tag": datagram(104), "payload tag": datagram(104), "form": datagram(104)[:60],
	}
	bad["hop tag"][20]++
	bad["payload tag"][wire.HeaderSize]++
	for name, b := range bad {
		before := p.swarm.refused.Load()
		take(b)
		require.Equal(t, before+1, p.swarm.refused.Load(), name)
	}
	p.receive(time.Now(), netip.MustParseAddrPort("[::1]:6"), datagram(104), 1)
	require.Equal(t, uint64(len(bad)+1), p.swarm.refused.Load())
	require.Equal(t, uint64(3), p.lost())
	require.Equal(t, uint64(4), p.swarm.received.Load())
}

// When the RP says that a stream has not come as far as was claimed, the claim is forgotten.
func TestStreamStartsAfresh(t *testing.T) {
	p, datagram := member(t)
	now := time.Now()
	take := func(b []byte) { p.receive(now, netip.MustParseAddrPort("[::1]:5"), b, 1) }
	beat := func(number, sequence uint64) []byte {
		return datagram(sequence, func(h *wire.Header) { h.Type, h.PayloadLen, h.ObjectID = wire.Heartbeat, 0, number })
	}
	take(beat(1, 1<<40))
	for i := range uint64(auth.WindowSize) {
		take(datagram(1<<40 + i))
	}
	require.NotZero(t, p.lost())
	now = now.Add(auth.RestartAfter)
	take(beat(2, 105))
	require.Zero(t, p.lost())
	for sequence := uint64(106); sequence < 10_106; sequence++ {
		take(datagram(sequence))
	}
	require.Zero(t, p.lost())
	require.Zero(t, p.swarm.refused.Load())
	require.Equal(t, uint64(10_000), p.find(9, 4).got)
}

// So is the claim of a mark with which a membership begins.
func TestMarkStartsAfresh(t *testing.T) {
	p, datagram := member(t)
	now := time.Now()
	m := *p.member
	m.Marks = []proto.Mark{{Ingress: 9, Group: 4, Sequence: 1 << 30}}
	m.Keys = p.find(9, 4).keys
	p.join(now, &m)
	now = now.Add(auth.RestartAfter)
	for _, b := range [][]byte{
		datagram(6, func(h *wire.Header) { h.Type, h.PayloadLen, h.ObjectID = wire.Heartbeat, 0, 1 }),
		datagram(7),
	} {
		p.receive(now, netip.MustParseAddrPort("[::1]:5"), b, 1)
	}
	require.Zero(t, p.lost())
	require.Equal(t, uint64(1), p.find(9, 4).got)
}

// The process of a swarm answers every line, and ends with its input.
func TestMainAnswers(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, Main(strings.NewReader(`{"await":1}`+"\n"+`{"start":{"rp":"enode://x"}}`+"\n"), &out))
	answers := json.NewDecoder(&out)
	for _, want := range []string{"not started", "node ID"} {
		var a answer
		require.NoError(t, answers.Decode(&a))
		require.Contains(t, a.Error, want)
	}
	require.Error(t, Main(strings.NewReader("nonsense"), &out))
}
