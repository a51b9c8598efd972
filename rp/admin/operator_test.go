// SPDX-License-Identifier: LGPL-3.0-or-later

package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/admin"
	"github.com/ethmcast/mdcs/rp/admin/admintest"
	"github.com/ethmcast/mdcs/rp/events"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/meshside"
	"github.com/ethmcast/mdcs/rp/peerside"
)

// serve puts a point behind a socket.
func serve(t testing.TB, point *admintest.Point) *admin.Client {
	t.Helper()
	return serveOperator(t, point.Operator())
}

func serveOperator(t testing.TB, o *admin.Operator) *admin.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	s, err := admin.StartSocket(path, o.Handler(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(s.Stop)
	return admin.NewClient(path)
}

// resting is a Point whose first session is in standby.
type resting struct{ *admintest.Point }

func (r resting) Sessions() []peerside.Session {
	sessions := slices.Clone(r.Point.Sessions())
	sessions[0].Groups = nil
	return sessions
}

// A session in standby is no member.
func TestStandbyIsNoMember(t *testing.T) {
	o := admintest.New(12).Operator()
	o.Point = resting{admintest.New(12)}
	st, err := serveOperator(t, o).Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, admin.Peers{Connections: 13, Sessions: 13, Members: 11}, st.Peers)
}

func TestOperator(t *testing.T) {
	ctx := t.Context()
	point := admintest.New(12)
	c := serve(t, point)

	st, err := c.Status(ctx)
	require.NoError(t, err)
	require.Equal(t, point.ID(), st.ID)
	require.Equal(t, "v0.9.0", st.Version)
	require.Equal(t, admin.Seconds(26*time.Hour+3*time.Minute), st.Uptime)
	require.True(t, st.Live)
	require.True(t, st.Ready)
	require.Empty(t, st.NotReady)
	require.Equal(t, []string{"mesh links down: b300000000000000"}, st.Warnings)
	require.Equal(t, admin.Peers{Connections: 13, Sessions: 13, Members: 12}, st.Peers)
	require.Equal(t, []int{4, 3}, []int{st.RPs, st.RPsUp})
	require.Equal(t, map[string]uint64{"replayed": 7, "bad_hop_tag": 1}, st.Drops)
	require.Equal(t, []admin.GroupCount{{Group: "1234abcd", Topic: "txs", Members: 12}}, st.Groups)

	rps, err := c.RPs(ctx)
	require.NoError(t, err)
	require.Len(t, rps.RPs, 4)
	require.Equal(t, []any{"up", "000000b1", uint64(101), uint64(200)},
		[]any{rps.RPs[1].State, rps.RPs[1].Incarnation, rps.RPs[1].Received, rps.RPs[1].Copies})
	require.Equal(t, 250*time.Millisecond, rps.At.Sub(*rps.RPs[1].Heard))
	require.Equal(t, "disconnected", rps.RPs[3].State)
	require.Nil(t, rps.RPs[3].Heard)

	groups, err := c.Groups(ctx)
	require.NoError(t, err)
	require.Equal(t, []admin.Stream{
		{Ingress: "000000a0", RP: point.ID(), Sequence: 77},
		{Ingress: "000000b1", RP: "b100000000000000", Sequence: 1 << 40},
		{Ingress: "000000d0", RP: "d000000000000000", Sequence: 9}, // named by its advert
		{Ingress: "000000e0", Sequence: 5},
	}, groups[0].Streams)

	stats, err := c.Stats(ctx)
	require.NoError(t, err)
	require.Len(t, stats.Verdicts, len(wire.Verdicts()))
	require.Equal(t, uint64(500), stats.Verdicts["pass"])
	require.Equal(t, uint64(2), stats.Counters["overflows_fan-out"])
	require.Equal(t, uint64(12), stats.Counters["admissions"])

	neighbours, err := c.Neighbours(ctx)
	require.NoError(t, err)
	require.Equal(t, admin.Seconds(1500*time.Microsecond), neighbours[1].RTT)
	require.Equal(t, uint64(12), neighbours[1].Members)
	routes, err := c.Routes(ctx)
	require.NoError(t, err)
	require.Equal(t, "b200000000000000", routes[1].Backup)
	database, err := c.Database(ctx)
	require.NoError(t, err)
	require.Equal(t, admin.Seconds(90*time.Second), database[1].Age)
	own, err := c.Tree(ctx, "")
	require.NoError(t, err)
	require.Equal(t, point.ID(), own.RP)
	other, err := c.Tree(ctx, "B100000000000000")
	require.NoError(t, err)
	require.Contains(t, other.Nodes, admin.TreeNode{RP: "b100000000000000", Operator: "example.org"})
	require.Contains(t, other.Nodes, admin.TreeNode{RP: point.ID(), Parent: "b100000000000000", RTT: admin.Seconds(1500 * time.Microsecond)})
	require.Contains(t, other.Nodes, admin.TreeNode{RP: "b300000000000000"}, "not reached")
	_, err = c.Tree(ctx, "b300000000000000")
	require.EqualError(t, err, "tree of rp b300000000000000: not known here")
}

// All of ten thousand members come in pages, each once and in order.
func TestPages(t *testing.T) {
	const members = 10_000
	c := serve(t, admintest.New(members))
	walk := func(limit int, match string) (sessions []string, pages int) {
		t.Helper()
		for after := ""; ; pages++ {
			p, err := c.Subscribers(t.Context(), limit, after, match)
			require.NoError(t, err)
			require.Equal(t, members, p.Total)
			require.LessOrEqual(t, len(p.Page), limit)
			for _, s := range p.Page {
				require.Greater(t, s.Session, after)
				after = s.Session
				sessions = append(sessions, s.Session)
			}
			if p.Next == "" {
				require.Len(t, sessions, p.Matched)
				return sessions, pages + 1
			}
			require.Equal(t, after, p.Next)
		}
	}
	all, pages := walk(admin.MaxPage, "")
	require.Len(t, all, members)
	require.Equal(t, members/admin.MaxPage, pages)
	require.Equal(t, "00000001", all[0])
	ssm, pages := walk(700, "SSM")
	require.Len(t, ssm, members/4)
	require.Equal(t, 4, pages)
	for text, want := range map[string]int{
		"1234abcd":           members, // a group
		"c0002710":           1,       // a node id
		"[2001:db8:100::5]:": 1,       // an address
		"00000abc":           2,       // a session, and an address of node ids with zeros
		"nobody":             0,
	} {
		got, _ := walk(admin.MaxPage, text)
		if text == "00000abc" {
			require.Contains(t, got, text)
			continue
		}
		require.Len(t, got, want, text)
	}

	p, err := c.Subscribers(t.Context(), 1, "0000000a", "")
	require.NoError(t, err)
	require.Equal(t, admintest.Now.Add(-10*time.Second), p.Page[0].Heard.UTC())
	p.Page[0].Heard = nil
	require.Equal(t, admin.Subscriber{
		Session: "0000000b", Node: "c000000b" + strings.Repeat("0", 56), Addr: p.Page[0].Addr, Groups: []string{"1234abcd"},
		Mode: "unicast", Publish: true, LeaseLeft: admin.Seconds(30 * time.Second), Received: 10, Copies: 100,
	}, p.Page[0])
	require.Equal(t, "[2001:db8:100::a]:30400", p.Page[0].Addr.String())
}

func TestBadRequests(t *testing.T) {
	h := admintest.New(3).Operator().Handler()
	for _, c := range []struct {
		method, path string
		code         int
		want         string
	}{
		{"GET", "/v1/subscribers?limit=0", 400, `limit \"0\" is not a number from 1 to 1000`},
		{"GET", "/v1/subscribers?limit=1001", 400, "from 1 to 1000"},
		{"GET", "/v1/subscribers?limit=many", 400, "from 1 to 1000"},
		{"GET", "/v1/subscribers?limit=", 400, "from 1 to 1000"},
		{"GET", "/v1/subscribers?after=1", 400, `after \"1\" is not a session`},
		{"GET", "/v1/subscribers?after=+0000001", 400, "is not a session"},
		{"GET", "/v1/subscribers?after=0000000g", 400, "is not a session"},
		{"GET", "/v1/subscribers?match=" + strings.Repeat("a", 129), 400, "longer than 128"},
		{"GET", "/v1/subscribers?limit=1&limit=2", 400, "parameter limit stands 2 times"},
		{"GET", "/v1/subscribers?offset=2", 400, `unknown parameter \"offset\"`},
		{"GET", "/v1/subscribers?%zz", 400, "query: "},
		{"GET", "/v1/status?x=1", 400, "unknown parameter"},
		{"GET", "/v1/events?x=1", 400, "unknown parameter"},
		{"GET", "/v1/mesh/tree?ingress=abc", 400, `rp \"abc\" is not 16 hex digits`},
		{"GET", "/v1/mesh/tree?ingress=" + strings.Repeat("0", 16), 404, "not known here"},
		{"GET", "/v1/elsewhere", 404, ""},
		{"GET", "/status", 404, ""},
		{"POST", "/v1/status", 405, ""},
		{"DELETE", "/v1/subscribers", 405, ""},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(c.method, c.path, nil))
		require.Equal(t, c.code, w.Code, c.path)
		require.Contains(t, w.Body.String(), c.want, c.path)
	}
}

// Whatever is asked for, the answer is an error or a page that keeps the limits.
func FuzzSubscribers(f *testing.F) {
	for _, query := range []string{
		"", "limit=2", "after=00000001&limit=1", "match=SSM", "match=%00&after=ffffffff", "limit=-1", "limit=1&limit=2", "after=%31", "a=b;c", "%",
	} {
		f.Add(query)
	}
	h := admintest.New(9).Operator().Handler()
	f.Fuzz(func(t *testing.T, query string) {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodGet, "/v1/subscribers", nil)
		r.URL.RawQuery = query
		h.ServeHTTP(w, r)
		if w.Code == http.StatusBadRequest {
			var failure struct{ Error string }
			require.NoError(t, json.Unmarshal(w.Body.Bytes(), &failure))
			require.NotEmpty(t, failure.Error)
			return
		}
		require.Equal(t, http.StatusOK, w.Code)
		var p admin.Subscribers
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &p))
		values, err := url.ParseQuery(query)
		require.NoError(t, err)
		limit := 100
		if values.Has("limit") {
			limit, err = strconv.Atoi(values.Get("limit"))
			require.NoError(t, err)
		}
		require.LessOrEqual(t, len(p.Page), min(limit, admin.MaxPage, p.Matched))
		require.LessOrEqual(t, p.Matched, p.Total)
		last := strings.ToLower(values.Get("after"))
		for _, s := range p.Page {
			require.Greater(t, s.Session, last)
			last = s.Session
		}
		if p.Next != "" {
			require.Equal(t, last, p.Next)
		}
	})
}

// counted is a point that counts how often it is asked for its counters.
type counted struct {
	*admintest.Point
	asked int
}

func (c *counted) Status() rp.Status {
	c.asked++
	return c.Point.Status()
}

// However many ask, the engine is asked twice a second.
func TestCountersAreShared(t *testing.T) {
	point := &counted{Point: admintest.New(1)}
	now := admintest.Now
	o := admin.Operator{Point: point, Now: func() time.Time { return now }}
	h := o.Handler()
	at := func() time.Time {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v1/stats", nil))
		var s admin.Stats
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &s))
		return s.At
	}
	require.Equal(t, now, at())
	now = now.Add(499 * time.Millisecond)
	require.Equal(t, admintest.Now, at())
	require.Equal(t, 1, point.asked)
	now = now.Add(time.Millisecond)
	require.Equal(t, now, at())
	require.Equal(t, 2, point.asked)
}

// listening waits until a number of operators listen.
func listening(t *testing.T, hub *events.Hub, n int) {
	t.Helper()
	require.Eventually(t, func() bool { return hub.Listeners() == n }, 20*time.Second, time.Millisecond)
}

// What happens is told at once, to all who listen, as long as they do.
func TestEvents(t *testing.T) {
	defer goleak.VerifyNone(t)
	point := admintest.New(0)
	path := filepath.Join(t.TempDir(), "s")
	s, err := admin.StartSocket(path, point.Operator().Handler(), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	c := admin.NewClient(path)

	ctx, cancel := context.WithCancel(t.Context())
	got, ended := make(chan events.Event), make(chan error)
	go func() {
		ended <- c.Events(ctx, func(e events.Event) error {
			got <- e
			return nil
		})
	}()
	listening(t, point.Events(), 1)
	for _, kind := range []events.Kind{events.Join, events.Admitted, events.Route} {
		e := events.Event{Time: admintest.Now, Kind: kind, Node: "ab", Addr: "::1", Session: "00000001", Count: 3, Detail: "why"}
		point.Events().Emit(e)
		require.Equal(t, e, <-got)
	}
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	listening(t, point.Events(), 0)

	// The reader may end it, and so may rpd.
	enough := errors.New("enough")
	go func() { ended <- c.Events(t.Context(), func(events.Event) error { return enough }) }()
	listening(t, point.Events(), 1)
	point.Events().Emit(events.Event{Kind: events.Leave})
	require.ErrorIs(t, <-ended, enough)
	listening(t, point.Events(), 0)
	go func() { ended <- c.Events(t.Context(), func(events.Event) error { return nil }) }()
	listening(t, point.Events(), 1)
	s.Stop()
	require.ErrorContains(t, <-ended, "rpd ended")
	listening(t, point.Events(), 0)
}

// There is room for some listeners, and the next one is told.
func TestTooManyListen(t *testing.T) {
	point := admintest.New(0)
	c := serve(t, point)
	for range events.MaxListeners {
		l, err := point.Events().Listen(1)
		require.NoError(t, err)
		defer l.Close()
	}
	require.EqualError(t, c.Events(t.Context(), nil), "events: too many listen already")
}

func TestSeconds(t *testing.T) {
	b, err := json.Marshal(admin.Seconds(1500 * time.Millisecond))
	require.NoError(t, err)
	require.Equal(t, "1.5", string(b))
	var s admin.Seconds
	require.NoError(t, json.Unmarshal(b, &s))
	require.Equal(t, "1.5s", fmt.Sprint(s))
	require.Error(t, json.Unmarshal([]byte(`"1s"`), &s))
}

// hung is an RP of which a part hangs.
type hung struct{ *admintest.Point }

func (hung) Status() rp.Status {
	return rp.Status{Hangs: true, Health: rp.Health{Dead: []string{"the mesh did not answer for 7s"}}}
}

func (hung) Health() rp.Health {
	return rp.Health{Dead: []string{"the mesh did not answer for 7s"}, NotReady: []string{"the mesh did not answer for 7s"}}
}

func (hung) Sessions() []peerside.Session { panic("asked a part that may hang") }
func (hung) Marks() []proto.Mark          { panic("asked a part that may hang") }

func (hung) Tree(linkstate.ID) ([]meshside.Edge, bool) { panic("asked a part that may hang") }

// TestOperatorOfWhatHangs asks an RP of which a part hangs: the status says which, all that
// shows counters is an error that says it too.
func TestOperatorOfWhatHangs(t *testing.T) {
	o := &admin.Operator{Point: hung{admintest.New(3)}}
	ask := func(path string) (int, string) {
		w := httptest.NewRecorder()
		o.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/v1/"+path, nil))
		return w.Code, w.Body.String()
	}
	code, body := ask("status")
	require.Equal(t, 200, code)
	require.Contains(t, body, `"live":false`)
	require.Contains(t, body, `"not_ready":"the mesh did not answer for 7s"`)
	for _, path := range []string{"rps", "groups", "subscribers", "stats", "mesh/neighbours", "mesh/routes", "mesh/database", "mesh/tree"} {
		code, body := ask(path)
		require.Equal(t, 503, code, path)
		require.Contains(t, body, "a part of the RP hangs, so it tells no counters: the mesh did not answer for 7s", path)
	}
}
