// SPDX-License-Identifier: LGPL-3.0-or-later

package rp_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/admin"
	"github.com/ethmcast/mdcs/rp/events"
)

// operator is what an operator sees of an RP by its socket.
type operator struct {
	*admin.Client
	t *testing.T

	mu   sync.Mutex
	told []events.Event
}

func newOperator(t *testing.T, point *rp.RP) *operator {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	o := admin.Operator{Point: point}
	s, err := admin.StartSocket(path, o.Handler(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	op := &operator{Client: admin.NewClient(path), t: t}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		op.Events(ctx, func(e events.Event) error {
			op.mu.Lock()
			defer op.mu.Unlock()
			op.told = append(op.told, e)
			return nil
		})
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		s.Stop()
	})
	require.Eventually(t, func() bool { return point.Events().Listeners() == 1 }, patience, time.Millisecond)
	return op
}

// await waits for an event of a kind about a node.
func (o *operator) await(kind events.Kind, node string) (e events.Event) {
	o.t.Helper()
	require.Eventually(o.t, func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		i := slices.IndexFunc(o.told, func(e events.Event) bool { return e.Kind == kind && e.Node == node })
		if i >= 0 {
			e = o.told[i]
		}
		return i >= 0
	}, patience, time.Millisecond, "no event %s about %s", kind, node)
	return e
}

func (p *lightPeer) id() enode.ID { return enode.PubkeyToIDV4(&p.key.PublicKey) }

// An operator of two RPs sees who is there, what flows, and what happens.
func TestOperator(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	points, _ := meshOf(t, 2, func(c *rp.Config) { c.RekeyInterval = 500 * time.Millisecond })
	o := newOperator(t, points[0])
	a, b := newPeer(t, points[0], peerOptions{}), newPeer(t, points[1], peerOptions{})
	members(t, a, b)
	names := []string{points[0].Self().ID().TerminalString(), points[1].Self().ID().TerminalString()}

	st, err := o.Status(ctx)
	require.NoError(t, err)
	require.Equal(t, names[0], st.ID)
	require.Equal(t, points[0].Self().URLv4(), st.Enode)
	require.Equal(t, points[0].Addr(), st.Data)
	require.Equal(t, "socket", st.Engine)
	require.Equal(t, uint64(testNetwork), st.NetworkID)
	require.True(t, st.Ready, st.NotReady)
	require.Equal(t, []int{1, 1, 1, 100}, []int{st.RPs, st.RPsUp, st.Peers.Members, st.Limits.Sessions})
	require.Positive(t, st.Uptime)

	// What a publishes is counted: of its session, of the link, and of the stream.
	const n = 20
	for range n {
		a.publish("x")
	}
	require.Eventually(t, func() bool { return len(b.got()) == n }, patience, 5*time.Millisecond)
	b.publish("y")
	require.Eventually(t, func() bool { return len(a.got()) == 1 }, patience, 5*time.Millisecond)
	var page admin.Subscribers
	require.Eventually(t, func() bool { // counters are up to half a second old
		page, err = o.Subscribers(ctx, 10, "", "")
		require.NoError(t, err)
		return page.Page[0].Received >= n
	}, patience, 50*time.Millisecond)
	require.Len(t, page.Page, 1)
	s := page.Page[0]
	require.Equal(t, a.id().String(), s.Node)
	require.Equal(t, a.addr(), s.Addr)
	require.Equal(t, "unicast", s.Mode)
	require.True(t, s.Publish)
	require.LessOrEqual(t, time.Duration(s.LeaseLeft), proto.MinLease)
	require.GreaterOrEqual(t, s.Copies, uint64(1))
	require.NotNil(t, s.Heard)
	rps, err := o.RPs(ctx)
	require.NoError(t, err)
	require.Len(t, rps.RPs, 1)
	require.Equal(t, []string{names[1], "up"}, []string{rps.RPs[0].ID, rps.RPs[0].State})
	require.GreaterOrEqual(t, rps.RPs[0].Copies, uint64(n))
	require.Positive(t, rps.RPs[0].Received)
	groups, err := o.Groups(ctx)
	require.NoError(t, err)
	require.Equal(t, 1, groups[0].Members)
	newest := make(map[string]uint64)
	for _, x := range groups[0].Streams {
		newest[x.RP] = x.Sequence
	}
	require.Equal(t, map[string]uint64{names[0]: n, names[1]: 1}, newest)
	stats, err := o.Stats(ctx)
	require.NoError(t, err)
	require.GreaterOrEqual(t, stats.Counters["copies"], uint64(n+1))
	require.Positive(t, stats.Verdicts["pass"])

	neighbours, err := o.Neighbours(ctx)
	require.NoError(t, err)
	require.True(t, neighbours[0].Tree)
	routes, err := o.Routes(ctx)
	require.NoError(t, err)
	routeOf := make(map[string]admin.Route)
	for _, r := range routes {
		routeOf[r.RP] = r
	}
	require.Equal(t, []string{names[1]}, routeOf[names[0]].Children)
	require.Equal(t, names[1], routeOf[names[1]].Parent)
	tree, err := o.Tree(ctx, "")
	require.NoError(t, err)
	parents := make(map[string]string)
	for _, n := range tree.Nodes {
		parents[n.RP] = n.Parent
		require.Equal(t, n.RP == names[0], n.RTT == 0)
	}
	require.Equal(t, map[string]string{names[0]: "", names[1]: names[0]}, parents)

	// What happens is told, of each node.
	o.await(events.Join, a.id().TerminalString())
	require.Equal(t, s.Session, o.await(events.Admitted, a.id().TerminalString()).Session)
	o.await(events.Rekey, "")
	a.leave()
	require.Contains(t, o.await(events.Leave, a.id().TerminalString()).Detail, "left")
	stranger := newPeer(t, points[0], peerOptions{chain: 1})
	require.Contains(t, o.await(events.Violation, stranger.id().TerminalString()).Detail, "peer of network")
	points[1].Stop()
	o.await(events.LinkDown, names[1])
	require.Eventually(t, func() bool {
		st, err := o.Status(ctx)
		require.NoError(t, err)
		return st.Ready && slices.Equal(st.Warnings, []string{"no other RP is reached: " + names[1]})
	}, patience, 5*time.Millisecond)
}

// A link that comes up is told.
func TestOperatorSeesLink(t *testing.T) {
	t.Parallel()
	first, second := newSite(t), newSite(t)
	point := start(t, first.config(t, second))
	o := newOperator(t, point)
	_, err := o.Tree(t.Context(), second.node().ID().TerminalString())
	require.ErrorContains(t, err, "not known here")
	start(t, second.config(t, first))
	require.NotEmpty(t, o.await(events.LinkUp, second.node().ID().TerminalString()).Session)
}
