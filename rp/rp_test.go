// SPDX-License-Identifier: LGPL-3.0-or-later

package rp_test

import (
	"bytes"
	"crypto/ecdsa"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/socket"
	"github.com/ethmcast/mdcs/rp/membership"
)

const (
	testNetwork = 12345
	patience    = time.Minute // for what must happen on a loaded machine
)

var (
	testGenesis = [32]byte{1, 2, 3}
	testGroup   = proto.GroupID(testNetwork, testGenesis, proto.TopicTxs)
	loopback    = netip.MustParseAddrPort("[::1]:0")
)

// A closed goleveldb, which devp2p keeps its nodes in, has a goroutine that ends up
// to 30 seconds later.
var nodeDB = goleak.IgnoreAnyFunction("github.com/syndtr/goleveldb/leveldb.(*DB).mpoolDrain")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, nodeDB) }

func newReader(b []byte) io.Reader { return bytes.NewReader(b) }

// site is where an RP runs, again after a restart: its key and its ports.
type site struct {
	key           *ecdsa.PrivateKey
	control, data uint16
}

// newSite reserves ports by opening them once; that of control for UDP, too.
func newSite(t *testing.T) *site {
	t.Helper()
	key, err := crypto.GenerateKey()
	require.NoError(t, err)
	tcp, err := net.ListenTCP("tcp6", net.TCPAddrFromAddrPort(loopback))
	require.NoError(t, err)
	udp, err := net.ListenUDP("udp6", net.UDPAddrFromAddrPort(loopback))
	require.NoError(t, err)
	twin, err := net.ListenUDP("udp6", net.UDPAddrFromAddrPort(tcp.Addr().(*net.TCPAddr).AddrPort()))
	if err != nil { // somebody has that port for UDP
		tcp.Close()
		udp.Close()
		return newSite(t)
	}
	s := &site{
		key:     key,
		control: tcp.Addr().(*net.TCPAddr).AddrPort().Port(),
		data:    udp.LocalAddr().(*net.UDPAddr).AddrPort().Port(),
	}
	require.NoError(t, tcp.Close())
	require.NoError(t, udp.Close())
	require.NoError(t, twin.Close())
	return s
}

func (s *site) node() *enode.Node {
	return enode.NewV4(&s.key.PublicKey, loopback.Addr().AsSlice(), int(s.control), 0)
}

func (s *site) config(t *testing.T, neighbours ...*site) rp.Config {
	cfg := rp.Config{
		PrivateKey:  s.key,
		Address:     loopback.Addr(),
		ControlPort: s.control,
		DataPort:    s.data,
		NetworkID:   testNetwork,
		Genesis:     testGenesis,
		Settings: rp.Settings{
			Limits: membership.Limits{Sessions: 100},
			Lease:  proto.MinLease,
			Rate:   1000,
			Burst:  1000,
		},
		RekeyInterval: time.Hour,
		Engine:        func(cfg datapath.Config) (datapath.Engine, error) { return socket.Listen(cfg) },
		Log:           slog.New(slog.NewTextHandler(logWriter(t), nil)),
	}
	for _, n := range neighbours {
		cfg.Neighbours = append(cfg.Neighbours, n.node())
	}
	return cfg
}

// start starts an RP that stops with the test.
func start(t *testing.T, cfg rp.Config) *rp.RP {
	t.Helper()
	point, err := rp.New(cfg)
	require.NoError(t, err)
	require.NoError(t, point.Start())
	t.Cleanup(point.Stop)
	return point
}

// single is an RP without neighbours.
func single(t *testing.T, edit ...func(*rp.Config)) *rp.RP {
	t.Helper()
	cfg := newSite(t).config(t)
	for _, f := range edit {
		f(&cfg)
	}
	return start(t, cfg)
}

// meshOf starts RPs that are linked to each other, and waits for the links.
func meshOf(t *testing.T, n int, edit ...func(*rp.Config)) ([]*rp.RP, []*site) {
	t.Helper()
	sites := make([]*site, n)
	for i := range sites {
		sites[i] = newSite(t)
	}
	points := make([]*rp.RP, n)
	for i, s := range sites {
		var others []*site
		for _, o := range sites {
			if o != s {
				others = append(others, o)
			}
		}
		cfg := s.config(t, others...)
		for _, f := range edit {
			f(&cfg)
		}
		points[i] = start(t, cfg)
	}
	for _, p := range points {
		awaitReady(t, p)
	}
	return points, sites
}

// awaitReady waits until an RP serves, and has all the links that it should have.
func awaitReady(t *testing.T, p *rp.RP) {
	t.Helper()
	require.Eventually(t, func() bool { return complete(p) }, patience, 5*time.Millisecond, "%+v", p.Health())
}

func complete(p *rp.RP) bool {
	h := p.Health()
	return h.Ready && len(h.LinksDown) == 0
}

// awaitLinkDown waits until an RP misses a link. It serves its peers all the same.
func awaitLinkDown(t *testing.T, p *rp.RP) {
	t.Helper()
	require.Eventually(t, func() bool { return len(p.Health().LinksDown) > 0 }, patience, 5*time.Millisecond)
	require.NoError(t, p.Ready())
	require.True(t, p.Health().Live)
	require.NotEmpty(t, p.Health().Warnings)
}

// members waits until peers are admitted.
func members(t *testing.T, peers ...*lightPeer) {
	t.Helper()
	for i, p := range peers {
		require.Eventually(t, p.isMember, patience, 5*time.Millisecond, "peer %d is no member", i)
	}
}

// knows waits until a peer has heard a heartbeat of an ingress RP.
func knows(t *testing.T, p *lightPeer, ingress ids.Incarnation) {
	t.Helper()
	require.Eventually(t, func() bool {
		return see(p, func(p *lightPeer) bool { _, ok := p.heartbeats[ingress]; return ok })
	}, patience, 5*time.Millisecond)
}

// logWriter passes a log on to the test while it runs.
func logWriter(t *testing.T) io.Writer {
	w := &testLog{t: t}
	t.Cleanup(func() {
		w.mu.Lock()
		w.t = nil
		w.mu.Unlock()
	})
	return w
}

type testLog struct {
	mu sync.Mutex
	t  *testing.T
}

func (w *testLog) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t != nil {
		w.t.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

// What one peer publishes arrives at all others, at both RPs, exactly once.
func TestPublishAcrossMesh(t *testing.T) {
	t.Parallel()
	points, _ := meshOf(t, 2)
	a, b, c := newPeer(t, points[0], peerOptions{}), newPeer(t, points[0], peerOptions{}), newPeer(t, points[1], peerOptions{})
	members(t, a, b, c)

	const n = 50
	var fromA, fromC []string
	for i := range n {
		fromA = append(fromA, fmt.Sprintf("a publishes %d", i))
		fromC = append(fromC, fmt.Sprintf("c publishes %d", i))
		a.publish(fromA[i])
		c.publish(fromC[i])
	}
	arrived := func(p *lightPeer, want ...string) {
		t.Helper()
		require.Eventually(t, func() bool { return len(p.got()) >= len(want) }, patience, 5*time.Millisecond)
		require.ElementsMatch(t, want, p.got())
	}
	arrived(b, append(fromA, fromC...)...)
	arrived(c, fromA...)
	arrived(a, fromC...)

	// The publisher has the header of each, as it was replicated.
	for _, x := range []struct {
		publisher, subscriber *lightPeer
		point                 *rp.RP
	}{{a, c, points[0]}, {c, a, points[1]}} {
		require.Eventually(t, func() bool {
			return see(x.publisher, func(p *lightPeer) int { return len(p.echoes) }) == n
		}, patience, 5*time.Millisecond)
		echoes := see(x.publisher, func(p *lightPeer) []wire.Header { return p.echoes })
		copies := see(x.subscriber, func(p *lightPeer) []wire.Header { return p.data })
		for i := range n {
			require.Equal(t, x.point.Incarnation(), echoes[i].Ingress)
			require.Equal(t, uint64(i+1), echoes[i].Sequence, "sequences without gaps")
			require.Equal(t, uint64(i+1), echoes[i].ObjectID)
			require.NotZero(t, echoes[i].Handle)
			require.Equal(t, echoes[i].Sequence, copies[i].Sequence)
			require.Equal(t, echoes[i].Handle, copies[i].Handle)
			require.Equal(t, echoes[i].PayloadTag, copies[i].PayloadTag)
			require.Equal(t, uint8(wire.InitialHopLimit-1), copies[i].HopLimit)
		}
	}
	for _, p := range []*lightPeer{a, b, c} {
		require.Empty(t, p.badDatagrams())
		require.Equal(t, 1, see(p, func(p *lightPeer) int { return p.probes }))
		knows(t, p, points[0].Incarnation())
		knows(t, p, points[1].Incarnation())
	}
	// The welcome's mark of a late member is what it will not get.
	d := newPeer(t, points[1], peerOptions{})
	members(t, d)
	marks := see(d, func(p *lightPeer) []proto.Mark { return p.member.Marks })
	require.ElementsMatch(t, []proto.Mark{
		{Ingress: points[0].Incarnation(), Group: testGroup, Sequence: n},
		{Ingress: points[1].Incarnation(), Group: testGroup, Sequence: n},
	}, marks)

	// A member that leaves gets nothing more.
	b.leave()
	require.Eventually(t, func() bool { return points[0].Status().Sessions == 1 }, patience, 5*time.Millisecond)
	before := len(b.got())
	a.publish("without b")
	arrived(d, "without b")
	require.Len(t, b.got(), before)
}

// An endpoint that does not answer gets three PROBEs and nothing else.
func TestUnprovenEndpoint(t *testing.T) {
	t.Parallel()
	point := single(t)
	good, deaf := newPeer(t, point, peerOptions{}), newPeer(t, point, peerOptions{deaf: true})
	members(t, good)
	require.Eventually(t, func() bool {
		good.publish("for members")
		return see(deaf, func(p *lightPeer) int { return len(p.left) }) > 0
	}, patience, 20*time.Millisecond)
	left := see(deaf, func(p *lightPeer) []error { return p.left })
	require.ErrorContains(t, left[0], proto.ReasonUnreachable.String())
	require.Equal(t, proto.MaxProbes, see(deaf, func(p *lightPeer) int { return p.probes }))
	require.Empty(t, deaf.badDatagrams())
	require.Equal(t, uint64(proto.MaxProbes+1), point.Status().Datapath.Probes)
	require.True(t, good.isMember())
}

// A member that does not announce itself is removed when its lease is over.
func TestLeaseExpires(t *testing.T) {
	t.Parallel()
	point := single(t)
	good, silent := newPeer(t, point, peerOptions{}), newPeer(t, point, peerOptions{silent: true})
	members(t, good, silent)
	stop := make(chan struct{})
	defer close(stop)
	go func() { // more often than a joiner, because the lease is the shortest
		for tick := time.NewTicker(time.Second); ; {
			select {
			case <-tick.C:
				see(good, func(p *lightPeer) any { p.send(&proto.Announce{}); return nil })
			case <-stop:
				tick.Stop()
				return
			}
		}
	}()
	require.Eventually(t, func() bool {
		return see(silent, func(p *lightPeer) int { return len(p.left) }) > 0
	}, patience, 20*time.Millisecond)
	require.ErrorContains(t, see(silent, func(p *lightPeer) []error { return p.left })[0], proto.ReasonExpired.String())
	require.Empty(t, see(good, func(p *lightPeer) []error { return p.left }))
	// It may join again on the same connection.
	members(t, silent)
}

// An RP that restarts is another ingress RP: its neighbours retire the old one.
func TestRestart(t *testing.T) {
	t.Parallel()
	points, sites := meshOf(t, 2)
	a, gone := newPeer(t, points[0], peerOptions{}), newPeer(t, points[1], peerOptions{})
	members(t, a, gone)
	old := points[1].Incarnation()
	knows(t, a, old)
	gone.leave()

	points[1].Stop()
	awaitLinkDown(t, points[0])
	require.Contains(t, points[0].Health().Warnings[0], "no other RP is reached")
	next := start(t, sites[1].config(t, sites[0]))
	require.NotEqual(t, old, next.Incarnation())
	awaitReady(t, next)
	awaitReady(t, points[0])
	b := newPeer(t, next, peerOptions{})
	members(t, b)
	knows(t, a, next.Incarnation())
	require.Eventually(t, func() bool {
		return slices.Equal([]ids.Incarnation{old}, see(a, func(p *lightPeer) []ids.Incarnation { return p.retired }))
	}, patience, 5*time.Millisecond)
	for _, m := range see(b, func(p *lightPeer) []proto.Mark { return p.member.Marks }) {
		require.NotEqual(t, old, m.Ingress)
	}
	// Nothing is lost, unless a link was taken for dead, as may be on a busy machine: then it is published again.
	arrives := func(from, to *lightPeer, text string) {
		t.Helper()
		from.publish(text)
		again, end := time.Now().Add(time.Second), time.Now().Add(patience)
		for ; len(to.got()) == 0; time.Sleep(5 * time.Millisecond) {
			lost := points[0].Status().Mesh.Core.Downs + next.Status().Mesh.Core.Downs
			require.True(t, time.Now().Before(end), "%q does not arrive; %d links lost", text, lost)
			if lost > 0 && time.Now().After(again) {
				again = time.Now().Add(time.Second)
				from.publish(text)
			}
		}
		require.Equal(t, []string{text}, slices.Compact(to.got()))
	}
	arrives(b, a, "after the restart")
	arrives(a, b, "to the new one")
}

// The links of an RP that is gone for a second are up again soon, whichever RP dials.
func TestRestartLinksSoon(t *testing.T) {
	t.Parallel()
	points, sites := meshOf(t, 2)
	for i := range points {
		points[i].Stop()
		time.Sleep(time.Second) // is how long it is gone
		began := time.Now()
		points[i] = start(t, sites[i].config(t, sites[1-i]))
		awaitReady(t, points[i])
		awaitReady(t, points[1-i])
		require.Less(t, time.Since(began), patience/2) // devp2p's own dialer takes half a minute
		t.Logf("linked after %v", time.Since(began))
	}
}

// An RP that chose others to link with does not dial any more, and takes who comes.
func TestSetNeighbours(t *testing.T) {
	t.Parallel()
	points, sites := meshOf(t, 2)
	for _, p := range points {
		require.NoError(t, p.SetNeighbours(nil))
	}
	require.ErrorContains(t, points[0].SetNeighbours([]*enode.Node{newSite(t).node()}), "not on the allow-list")
	points[1].Stop()
	require.Error(t, points[1].SetNeighbours(nil))

	again := start(t, sites[1].config(t, sites[0]))
	awaitReady(t, again)
	awaitReady(t, points[0])
}

// Group keys change while datagrams flow, and none is lost.
func TestRekey(t *testing.T) {
	t.Parallel()
	points, _ := meshOf(t, 2, func(c *rp.Config) { c.RekeyInterval = 200 * time.Millisecond })
	a, b, c := newPeer(t, points[0], peerOptions{}), newPeer(t, points[0], peerOptions{}), newPeer(t, points[1], peerOptions{})
	members(t, a, b, c)
	epochs := func() map[uint8]bool {
		return see(c, func(p *lightPeer) map[uint8]bool {
			seen := make(map[uint8]bool)
			for _, h := range p.data {
				seen[h.Epoch] = true
			}
			return seen
		})
	}
	sent := 0
	require.Eventually(t, func() bool {
		a.publish(fmt.Sprint(sent))
		sent++
		return len(epochs()) >= 4
	}, patience, 5*time.Millisecond)
	for _, p := range []*lightPeer{b, c} {
		require.Eventually(t, func() bool { return len(p.got()) >= sent }, patience, 5*time.Millisecond)
		require.Len(t, p.got(), sent)
		require.Empty(t, p.badDatagrams())
	}
	for _, point := range points {
		require.Zero(t, point.Status().Peers.MissingAcks)
	}
}

// The limits of a site hold, and say so.
func TestLimits(t *testing.T) {
	t.Parallel()
	point := single(t, func(c *rp.Config) { c.Limits.Per64 = 2 })
	first := newPeer(t, point, peerOptions{})
	members(t, first, newPeer(t, point, peerOptions{}))
	third := newPeer(t, point, peerOptions{})
	require.Eventually(t, func() bool {
		return see(third, func(p *lightPeer) int { return len(p.left) }) > 0
	}, patience, 5*time.Millisecond)
	require.ErrorContains(t, see(third, func(p *lightPeer) []error { return p.left })[0], proto.ReasonFull.String())
	require.Zero(t, see(third, func(p *lightPeer) int { return p.probes }))
	first.leave()
	members(t, third) // it tries again by itself
}

// Stop says goodbye and leaves nothing behind.
func TestStop(t *testing.T) {
	points, _ := meshOf(t, 2)
	a := newPeer(t, points[0], peerOptions{})
	members(t, a)
	mute, err := net.Dial("tcp6", net.JoinHostPort("::1", fmt.Sprint(points[0].Self().TCP())))
	require.NoError(t, err)
	defer mute.Close()
	began := time.Now()
	points[0].Stop()
	require.Less(t, time.Since(began), 4*time.Second, "a handshake that does not begin is not waited for")
	points[0].Stop()
	require.Eventually(t, func() bool { return !a.isMember() }, patience, 5*time.Millisecond)
	require.ErrorContains(t, see(a, func(p *lightPeer) []error { return p.left })[0], "ended by the rp: quit")
	require.ErrorContains(t, points[0].Ready(), "not serving")
	require.Error(t, points[0].Start())
	points[1].Stop()

	a.server.Stop()
	a.udp.Close()
	a.wg.Wait()
	goleak.VerifyNone(t, nodeDB)
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(*rp.Config){
		"no key":           func(c *rp.Config) { c.PrivateKey = nil },
		"ipv4":             func(c *rp.Config) { c.Address = netip.MustParseAddr("127.0.0.1") },
		"any address":      func(c *rp.Config) { c.Address = netip.IPv6Unspecified() },
		"short lease":      func(c *rp.Config) { c.Lease = time.Second },
		"lease in seconds": func(c *rp.Config) { c.Lease = 5500 * time.Millisecond },
		"no rate":          func(c *rp.Config) { c.Rate = 0 },
		"no rekeying":      func(c *rp.Config) { c.RekeyInterval = 0 },
		"no engine":        func(c *rp.Config) { c.Engine = nil },
	} {
		cfg := newSite(t).config(t)
		edit(&cfg)
		_, err := rp.New(cfg)
		require.Error(t, err, name)
	}
}

// An RP that cannot have its ports says which, and leaves nothing behind.
func TestStartFails(t *testing.T) {
	t.Parallel()
	first := newSite(t)
	cfg := first.config(t)
	start(t, cfg)

	for _, x := range []struct{ port, want string }{{"data", "data port"}, {"control", "control port"}} {
		other := newSite(t).config(t)
		if x.port == "data" {
			other.DataPort = first.data
		} else {
			other.ControlPort = first.control
		}
		point, err := rp.New(other)
		require.NoError(t, err)
		require.ErrorContains(t, point.Start(), x.want)
		point.Stop()
	}
}

// TestItselfIsNoNeighbour has one list for all RPs of a mesh, thus with the RP itself.
func TestItselfIsNoNeighbour(t *testing.T) {
	t.Parallel()
	own := newSite(t)
	point := start(t, own.config(t, own))
	awaitReady(t, point)
	require.Empty(t, point.Status().Mesh.Neighbours)
}
