// SPDX-License-Identifier: LGPL-3.0-or-later

package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/events"
	"github.com/ethmcast/mdcs/rp/front"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/meshside"
	"github.com/ethmcast/mdcs/rp/peerside"
)

const (
	// MaxPage is the number of subscribers in one answer.
	MaxPage = 1000

	defaultPage = 100
	maxMatch    = 128 // characters

	// sampleAge is how old the counters of an answer may be: an engine with many
	// sessions is not asked more often, however many ask.
	sampleAge = 500 * time.Millisecond

	// eventsKept is how many events wait for an operator that reads slowly, and
	// eventTimeout how long one may not read at all.
	eventsKept   = 4096
	eventTimeout = 10 * time.Second
)

// Point is the RP that is looked at, and that an operator may tell what to do.
type Point interface {
	About() rp.About
	Status() rp.Status
	Health() rp.Health
	Sessions() []peerside.Session
	Marks() []proto.Mark
	Tree(ingress linkstate.ID) ([]meshside.Edge, bool)
	Events() *events.Hub

	Bans() []peerside.Ban
	BanNode(id enode.ID, length time.Duration) error
	BanPrefix(p netip.Prefix, length time.Duration) error
	EndSession(id enode.ID) (ended int)
	Drain(ctx context.Context) (left int)
}

var _ Point = (*rp.RP)(nil)

// Operator answers an operator's questions about an RP, by GET, and does what the operator
// wants, by POST.
type Operator struct {
	Point   Point
	Version string
	Now     func() time.Time // time.Now when nil

	mu      sync.Mutex
	sampled time.Time
	sample  rp.Status
}

// Handler returns what answers on the operator's socket.
func (o *Operator) Handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, f func(context.Context, url.Values) (any, error), parameters ...string) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			query, err := queryOf(r, parameters)
			if err != nil {
				answer(w, http.StatusBadRequest, failure{err.Error()})
				return
			}
			switch value, err := f(r.Context(), query); {
			case errors.Is(err, errUnknown):
				answer(w, http.StatusNotFound, failure{err.Error()})
			case errors.Is(err, errHangs):
				answer(w, http.StatusServiceUnavailable, failure{err.Error()})
			case err != nil:
				answer(w, http.StatusBadRequest, failure{err.Error()})
			default:
				answer(w, http.StatusOK, value)
			}
		})
	}
	get := func(path string, f func(url.Values) (any, error), parameters ...string) {
		handle("GET /v1/"+path, func(_ context.Context, q url.Values) (any, error) { return f(q) }, parameters...)
	}
	post := func(path string, f func(url.Values) (any, error), parameters ...string) {
		handle("POST /v1/"+path, func(_ context.Context, q url.Values) (any, error) { return f(q) }, parameters...)
	}
	get("status", func(url.Values) (any, error) { return o.status(), nil })
	get("rps", func(url.Values) (any, error) { return o.rps() })
	get("groups", func(url.Values) (any, error) { return o.groups() })
	get("subscribers", func(q url.Values) (any, error) {
		p, err := parsePage(q)
		if err != nil {
			return nil, err
		}
		return o.subscribers(p)
	}, "limit", "after", "match")
	get("stats", func(url.Values) (any, error) { return o.stats() })
	mesh := func(path string, view func(meshside.Stats) any) {
		get("mesh/"+path, func(url.Values) (any, error) {
			st, _, err := o.counters()
			return view(st.Mesh), err
		})
	}
	mesh("neighbours", func(st meshside.Stats) any { return neighbours(st) })
	mesh("routes", func(st meshside.Stats) any { return routes(st) })
	mesh("database", func(st meshside.Stats) any { return database(st, o.topic) })
	get("mesh/tree", func(q url.Values) (any, error) { return o.tree(q.Get("ingress")) }, "ingress")
	mux.HandleFunc("GET /v1/events", o.events)
	get("bans", func(url.Values) (any, error) { return o.bans(), nil })
	post("ban", o.ban, "who", "for")
	post("unban", o.unban, "who")
	post("end-session", o.endSession, "peer")
	handle("POST /v1/drain", func(ctx context.Context, _ url.Values) (any, error) { return o.drain(ctx), nil })
	return mux
}

var (
	errUnknown = errors.New("not known here")
	errHangs   = errors.New("a part of the RP hangs")
)

// failure is the body of an answer that is an error.
type failure struct {
	Error string `json:"error"`
}

func answer(w http.ResponseWriter, code int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(value) // who asked may be gone
}

// queryOf returns the parameters of a request, each of which may be given once.
func queryOf(r *http.Request, known []string) (url.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("query: %w", err)
	}
	for key, values := range query {
		if !slices.Contains(known, key) {
			return nil, fmt.Errorf("unknown parameter %q", key)
		}
		if len(values) != 1 {
			return nil, fmt.Errorf("parameter %s stands %d times", key, len(values))
		}
	}
	return query, nil
}

func (o *Operator) now() time.Time {
	if o.Now != nil {
		return o.Now()
	}
	return time.Now()
}

// counters returns what the RP counted, at most sampleAge ago; [errHangs] if it does not tell.
func (o *Operator) counters() (rp.Status, time.Time, error) {
	now := o.now()
	o.mu.Lock()
	st, at := o.sample, o.sampled
	o.mu.Unlock()
	if !at.IsZero() && now.Sub(at) < sampleAge {
		return st, at, nil
	}
	st = o.Point.Status()
	if st.Hangs {
		return st, now, fmt.Errorf("%w, so it tells no counters: %s", errHangs, strings.Join(st.Health.Dead, "; "))
	}
	o.mu.Lock()
	o.sample, o.sampled = st, now
	o.mu.Unlock()
	return st, now, nil
}

func (o *Operator) status() Status {
	about, now := o.Point.About(), o.now()
	st, _, hangs := o.counters()
	limits := about.Limits
	s := Status{
		ID:          about.Node.ID().TerminalString(),
		Enode:       about.Node.URLv4(),
		Version:     o.Version,
		Data:        about.Data,
		Incarnation: hex32(about.Incarnation),
		Adopted:     about.Adopted,
		Engine:      cmp.Or(st.Datapath.Engine, "unknown: it does not answer"),
		NetworkID:   about.NetworkID,
		Genesis:     fmt.Sprintf("0x%x", about.Genesis),
		Started:     about.Started.Round(0),
		Uptime:      Seconds(now.Sub(about.Started)),
		Peers: Peers{
			Connections:    st.Peers.Connections,
			Handshakes:     st.Front.Handshakes,
			Idle:           st.Front.Idle,
			Sessions:       st.Sessions,
			Channels:       st.Peers.Channels,
			ChannelMembers: st.Peers.ChannelMembers,
		},
		Limits: Limits{
			Sessions:      limits.Sessions,
			Per64:         limits.Per64,
			Per48:         limits.Per48,
			Lease:         Seconds(about.Lease),
			PublishRate:   about.Rate,
			PublishBurst:  about.Burst,
			EgressPerGeth: about.EgressPerGeth,
			EgressPerRP:   about.EgressPerRP,
			EgressTotal:   about.EgressTotal,
		},
		Banned: st.Peers.Banned,
		Passed: st.Datapath.Verdicts[wire.Pass],
		Drops:  make(map[string]uint64),
	}
	h := o.Point.Health()
	s.Live, s.Ready, s.NotReady, s.Warnings = h.Live, h.Ready, strings.Join(h.NotReady, "; "), h.Warnings
	if hangs == nil {
		s.Peers.Members = membersOf(o.Point.Sessions())
	}
	for _, n := range st.Mesh.Neighbours {
		s.RPs++
		if n.Up() {
			s.RPsUp++
		}
	}
	for _, g := range about.Groups {
		s.Groups = append(s.Groups, GroupCount{hex32(g.ID), g.Topic, st.Members[g.ID]})
	}
	for _, v := range wire.Verdicts() {
		if n := st.Datapath.Verdicts[v]; v != wire.Pass && n > 0 {
			s.Drops[v.String()] = n
		}
	}
	return s
}

// membersOf counts the sessions that are in groups: not those in standby.
func membersOf(sessions []peerside.Session) (n int) {
	for _, s := range sessions {
		if len(s.Groups) > 0 {
			n++
		}
	}
	return n
}

// bySession returns what each session did.
func bySession(st rp.Status) map[ids.Session]datapath.SessionStats {
	sessions := make(map[ids.Session]datapath.SessionStats, len(st.Datapath.Sessions))
	for _, s := range st.Datapath.Sessions {
		sessions[s.Index] = s
	}
	return sessions
}

// heard returns when a session was heard last, nil for never.
func heard(s datapath.SessionStats) *time.Time {
	if s.Heard.IsZero() {
		return nil
	}
	return new(s.Heard.Round(0))
}

func (o *Operator) rps() (RPs, error) {
	st, at, err := o.counters()
	if err != nil {
		return RPs{}, err
	}
	sessions := bySession(st)
	all := RPs{At: at, RPs: []RP{}}
	for _, n := range st.Mesh.Neighbours {
		x := RP{ID: n.ID.TerminalString(), Addr: n.Addr, State: n.State.String()}
		if n.Incarnation != 0 {
			x.Incarnation = hex32(n.Incarnation)
		}
		if n.Session != 0 {
			s := sessions[n.Session]
			x.Session, x.Received, x.Copies, x.Heard = hex32(n.Session), s.Received, s.Copies, heard(s)
		}
		all.RPs = append(all.RPs, x)
	}
	return all, nil
}

func (o *Operator) groups() ([]Group, error) {
	st, _, err := o.counters()
	if err != nil {
		return nil, err
	}
	about := o.Point.About()
	names := map[string]string{hex32(about.Incarnation): about.Node.ID().TerminalString()}
	for _, a := range st.Mesh.Database {
		names[hex32(a.Incarnation)] = hexID(a.Origin)
	}
	marks := o.Point.Marks()
	var groups []Group
	for _, g := range about.Groups {
		group := Group{GroupCount: GroupCount{hex32(g.ID), g.Topic, st.Members[g.ID]}, Streams: []Stream{}}
		for _, m := range marks {
			if m.Group == g.ID {
				ingress := hex32(m.Ingress)
				group.Streams = append(group.Streams, Stream{ingress, names[ingress], m.Sequence})
			}
		}
		slices.SortFunc(group.Streams, func(a, b Stream) int { return strings.Compare(a.Ingress, b.Ingress) })
		groups = append(groups, group)
	}
	return groups, nil
}

// page is which subscribers are asked for.
type page struct {
	limit int
	after ids.Session // session, 0 for the first page
	match string      // in lower case
}

func parsePage(q url.Values) (p page, err error) {
	p = page{limit: defaultPage, match: strings.ToLower(q.Get("match"))}
	if q.Has("limit") {
		if p.limit, err = strconv.Atoi(q.Get("limit")); err != nil || p.limit < 1 || p.limit > MaxPage {
			return p, fmt.Errorf("limit %q is not a number from 1 to %d", q.Get("limit"), MaxPage)
		}
	}
	if q.Has("after") {
		after, err := strconv.ParseUint(q.Get("after"), 16, 32)
		if err != nil || len(q.Get("after")) != 8 {
			return p, fmt.Errorf("after %q is not a session of 8 hex digits", q.Get("after"))
		}
		p.after = ids.Session(after)
	}
	if len(p.match) > maxMatch {
		return p, fmt.Errorf("match is longer than %d characters", maxMatch)
	}
	return p, nil
}

func (o *Operator) subscribers(p page) (Subscribers, error) {
	st, at, err := o.counters()
	if err != nil {
		return Subscribers{}, err
	}
	members := o.Point.Sessions()
	counts := bySession(st)
	now := o.now()
	all := Subscribers{At: at, Total: len(members), Page: []Subscriber{}}
	for _, m := range members {
		if !matches(m, p.match) {
			continue
		}
		all.Matched++
		switch {
		case p.after != 0 && m.Index <= p.after:
		case len(all.Page) < p.limit:
			all.Page = append(all.Page, subscriber(m, counts[m.Index], now))
		default:
			all.Next = all.Page[len(all.Page)-1].Session
		}
	}
	return all, nil
}

func subscriber(m peerside.Session, counts datapath.SessionStats, now time.Time) Subscriber {
	s := Subscriber{
		Session:   hex32(m.Index),
		Node:      m.Node.String(),
		Addr:      m.Addr,
		Mode:      m.Mode.String(),
		Publish:   m.Publish,
		LeaseLeft: Seconds(max(0, m.Lease.Sub(now))),
		Received:  counts.Received,
		Copies:    counts.Copies,
		Heard:     heard(counts),
	}
	for _, g := range m.Groups {
		s.Groups = append(s.Groups, hex32(g))
	}
	return s
}

// matches reports whether a text, in lower case, stands in what identifies a member.
func matches(m peerside.Session, text string) bool {
	has := func(s string) bool { return strings.Contains(s, text) }
	return text == "" || has(hex32(m.Index)) || has(m.Node.String()) || has(m.Addr.String()) || has(m.Mode.String()) ||
		slices.ContainsFunc(m.Groups, func(g ids.Group) bool { return has(hex32(g)) })
}

func (o *Operator) stats() (Stats, error) {
	st, at, err := o.counters()
	if err != nil {
		return Stats{}, err
	}
	s := Stats{
		At:          at,
		Incarnation: hex32(o.Point.About().Incarnation),
		Verdicts:    make(map[string]uint64),
		Counters: map[string]uint64{
			"copies":               st.Datapath.Copies,
			"copy_bytes":           st.Datapath.CopyBytes,
			"echoes":               st.Datapath.Echoes,
			"heartbeats":           st.Datapath.Heartbeats,
			"probes":               st.Datapath.Probes,
			"send_errors":          st.Datapath.SendErrors,
			"receive_errors":       st.Datapath.ReceiveErrors,
			"receive_drops":        st.Datapath.ReceiveDrops,
			"connections_accepted": st.Front.Accepted,
			"admissions":           st.Peers.Admitted,
			"violations_peer":      st.Peers.Violations,
			"violations_mesh":      st.Mesh.Violations,
			"rekey_missing":        st.Peers.MissingAcks,
			"mesh_links_lost":      st.Mesh.LinksLost,
			"mesh_routes_refused":  st.Mesh.RoutesRefused,
			"reported_received":    st.Peers.Received,
			"reported_lost":        st.Peers.Lost,
			"reported_duplicates":  st.Peers.Duplicates,
		},
	}
	for _, r := range front.Reasons() {
		s.Counters["connections_refused_"+r.String()] = st.Front.Refused[r]
	}
	for _, v := range wire.Verdicts() {
		s.Verdicts[v.String()] = st.Datapath.Verdicts[v]
	}
	for _, overflow := range st.Datapath.Overflows {
		s.Counters["overflows_"+overflow.Queue] = overflow.Lost
	}
	return s, nil
}

// topic names a group, "" for one that is not served here.
func (o *Operator) topic(group ids.Group) string {
	for _, g := range o.Point.About().Groups {
		if g.ID == group {
			return g.Topic
		}
	}
	return ""
}

func (o *Operator) tree(root string) (Tree, error) {
	self := linkstate.IDOf(o.Point.About().Node.ID())
	id := self
	if root != "" {
		n, err := strconv.ParseUint(root, 16, 64)
		if err != nil || len(root) != 16 {
			return Tree{}, fmt.Errorf("rp %q is not 16 hex digits", root)
		}
		id = linkstate.ID(n)
	}
	st, _, err := o.counters()
	if err != nil {
		return Tree{}, err
	}
	edges, ok := o.Point.Tree(id)
	if !ok {
		return Tree{}, fmt.Errorf("tree of rp %s: %w", hexID(id), errUnknown)
	}
	return treeOf(id, self, edges, st.Mesh), nil
}

// events sends what happens, an event in JSON on each line, until the other side or
// the RP has enough.
func (o *Operator) events(w http.ResponseWriter, r *http.Request) {
	if _, err := queryOf(r, nil); err != nil {
		answer(w, http.StatusBadRequest, failure{err.Error()})
		return
	}
	l, err := o.Point.Events().Listen(eventsKept)
	if err != nil {
		answer(w, http.StatusServiceUnavailable, failure{"events: " + err.Error()})
		return
	}
	defer l.Close()
	w.Header().Set("Content-Type", "application/x-ndjson")
	stream, lines := http.NewResponseController(w), json.NewEncoder(w)
	w.WriteHeader(http.StatusOK)
	for err := stream.Flush(); err == nil; err = stream.Flush() {
		e, err := l.Next(r.Context())
		if err != nil {
			return
		}
		stream.SetWriteDeadline(time.Now().Add(eventTimeout)) // that of the server is for short answers
		if lines.Encode(e) != nil {
			return
		}
	}
}
