// SPDX-License-Identifier: LGPL-3.0-or-later

package sim

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/mesh/tree"
)

// Result is what one simulated mesh showed. Rates are bytes sent, with all headers.
type Result struct {
	RPs  int    `json:"rps"`
	Mode string `json:"mode"`

	ConvergeS    float64 `json:"converge_s"`   // last start to same databases and all routes as the trees say
	ReconvergeS  float64 `json:"reconverge_s"` // last rejoin after the churn to the same
	SameTrees    bool    `json:"same_trees"`   // everywhere, after the churn
	FalseDowns   uint64  `json:"false_downs"`  // neighbours found dead that were not
	ControlTree  float64 `json:"control_kbps_tree"`
	ControlOther float64 `json:"control_kbps_other"`

	// Under churn.
	ControlTreeChurn  float64 `json:"control_kbps_tree_churn"`
	ControlOtherChurn float64 `json:"control_kbps_other_churn"`
	Deaths            int     `json:"deaths"`
	Expected          uint64  `json:"expected"`       // datagrams times RPs that lived all the time
	Lost              uint64  `json:"lost"`           // of them, before any repair
	Late              uint64  `json:"late"`           // came after 0.5 s, most from the cache of a new parent
	DeliveredLive     float64 `json:"delivered_live"` // share that was neither
	Delivered         float64 `json:"delivered"`
	Duplicated        uint64  `json:"duplicated"` // delivered twice
	Refused           uint64  `json:"refused"`    // copies from who is not upstream
	Redundant         float64 `json:"redundant"`  // copies besides those delivered, as share of these

	// Host death of inner RPs at 500 datagrams a second.
	HealS    float64 `json:"heal_s"` // the longest interruption at any RP, until nothing is missed
	HealLost uint64  `json:"heal_lost"`

	Links         float64 `json:"links"` // of an RP, mean
	DepthMax      int     `json:"depth_max"`
	StretchP95    float64 `json:"stretch_p95"` // of delay, over the direct way
	StretchMax    float64 `json:"stretch_max"`
	MeshStretch95 float64 `json:"stretch_p95_mesh"` // over the shortest way by the mesh's links
	LinkCopiesMax float64 `json:"link_copies_max"`  // of a datagram on the busiest link between regions, mean of the ingress RPs
	LinkCopies    float64 `json:"link_copies"`      // on all of them together
	Grafts        uint64  `json:"grafts"`
	Repairs       uint64  `json:"repairs"` // parents that served something else than they were asked for
	Seconds       float64 `json:"simulated_s"`
}

// Times of a run.
const (
	startWithin = time.Second
	calmTime    = 2*linkstate.LinkDelay + 2*time.Second // after which nothing changes any more
	quietTime   = 20 * time.Second
	settleTime  = 4 * time.Second // after which a datagram that did not arrive is lost
	joinTime    = 6 * time.Second // that a new RP has until it is counted on
	downTime    = 10 * time.Second
	convergeMax = 2 * time.Minute
	deathRate   = 500 // datagrams a second
)

// Plan says what is tried.
type Plan struct {
	Config
	Churn     time.Duration // how long hosts die
	PerMinute float64       // share of them that does
	Deaths    int           // of inner RPs, one by one
}

// Sizes of a simulated mesh. The smallest has RPs that may die besides those that send.
const (
	MinRPs = maxStreams + 3
	MaxRPs = 4000
)

// NewPlan is the usual plan for a number of RPs, without churn and deaths: all RPs of a
// small mesh are ingress RPs, ten of a large one; one hello in a thousand is lost.
func NewPlan(rps int, mode tree.Mode, seed uint64) (Plan, error) {
	if rps < MinRPs || rps > MaxRPs {
		return Plan{}, fmt.Errorf("%d rps are not %d to %d", rps, MinRPs, MaxRPs)
	}
	ingress := rps
	if rps > linkstate.FullMesh {
		ingress = maxStreams
	}
	return Plan{
		Config:    Config{RPs: rps, Ingress: ingress, Mode: mode, HelloLoss: 0.001, Jitter: 0.05, Seed: seed},
		PerMinute: 0.1,
	}, nil
}

// Run tries a plan.
func Run(ctx context.Context, plan Plan) (*Result, error) {
	w, err := newWorld(plan.Config)
	if err != nil {
		return nil, err
	}
	result := &Result{RPs: plan.RPs, Mode: plan.Mode.String()}
	meter := newMeter(w)

	for _, r := range w.rps {
		w.at(time.Duration(w.rng.Int64N(int64(startWithin))), func() { w.start(r) })
	}
	w.run(startWithin)
	if err := w.converge(ctx); err != nil {
		return nil, err
	}
	result.ConvergeS = (w.now - startWithin).Seconds()

	for i := range w.streams {
		w.publishing(i, 200*time.Millisecond)
	}
	w.run(w.now + calmTime)
	meter.start()
	w.run(w.now + quietTime)
	result.ControlTree, result.ControlOther = meter.stop()
	w.shape(result)

	if plan.Churn > 0 {
		if err := w.churn(ctx, plan, result, meter); err != nil {
			return nil, err
		}
	}
	result.SameTrees = w.sameTrees()
	if plan.Deaths > 0 {
		if err := w.deaths(ctx, plan.Deaths, result); err != nil {
			return nil, err
		}
	}
	result.FalseDowns, result.Duplicated = w.falseDowns, w.duplicated
	for _, r := range w.rps {
		if r.alive {
			result.Grafts += r.core.Stats().Grafts
			result.Repairs += r.core.Stats().Repairs
		}
	}
	result.Seconds = w.now.Seconds()
	return result, nil
}

// converge lets time pass until all is as it should be.
func (w *world) converge(ctx context.Context) error {
	for end := w.now + convergeMax; !w.converged(); {
		if w.now >= end {
			return fmt.Errorf("%d rps not converged after %v: %v", w.cfg.RPs, convergeMax, w.diverged())
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		w.run(w.now + 100*time.Millisecond)
	}
	return nil
}

func (w *world) converged() bool { return w.diverged() == "" }

// diverged says what is not as it should be: the databases are the same, each ingress
// RP may publish, and parents and children are those of the trees.
func (w *world) diverged() string {
	first := w.first()
	for _, r := range w.rps {
		if r.alive && r.core.Sums(1) != first.core.Sums(1) {
			return fmt.Sprintf("the database of rp %d is not that of rp %d", r.index, first.index)
		}
	}
	for _, s := range w.ingress {
		if s.alive && s.mayAt == 0 {
			return fmt.Sprintf("rp %d may not publish", s.index)
		}
		for _, r := range w.rps {
			if !r.alive || r == s || !s.alive {
				continue
			}
			parent, ok := first.core.TreeParent(s.id, r.id)
			route := r.routes[s.ingress]
			if !ok || parent == 0 || route == nil || route.Parent != parent {
				return fmt.Sprintf("rp %d has another parent than the tree of %d", r.index, s.index)
			}
			up := w.rps[w.byID[parent]].routes[s.ingress]
			if up == nil || !slices.ContainsFunc(up.Children, func(c linkstate.Child) bool { return c.ID == r.id }) {
				return fmt.Sprintf("rp %d is no child of its parent in the tree of %d", r.index, s.index)
			}
		}
	}
	return ""
}

func (w *world) first() *rp {
	for _, r := range w.rps {
		if r.alive {
			return r
		}
	}
	return nil
}

// sameTrees reports whether all RPs computed the same trees.
func (w *world) sameTrees() bool {
	first := w.first()
	for _, s := range w.ingress {
		for _, of := range w.rps {
			want, known := first.core.TreeParent(s.id, of.id)
			for _, r := range w.rps {
				if !r.alive {
					continue
				}
				if got, ok := r.core.TreeParent(s.id, of.id); of.alive && (got != want || !known || !ok) {
					return false
				}
			}
		}
	}
	return true
}

// churn lets hosts die and come back, and counts what the others miss.
func (w *world) churn(ctx context.Context, plan Plan, result *Result, meter *meter) error {
	var expected, arrived, late uint64
	for i, s := range w.streams {
		s.settled = func(sequence uint32, sent time.Duration) {
			for _, r := range w.rps {
				if !r.alive || r == s.source || r.upSince+joinTime > sent {
					continue
				}
				expected++
				if x := &r.windows[i]; isSet(x.got, sequence) {
					arrived++
					if isSet(x.late, sequence) {
						late++
					}
				}
			}
		}
	}
	delivered, copies, refused := w.delivered, w.copies, w.refused
	end := w.now + plan.Churn
	var mortal []*rp
	for _, r := range w.rps {
		if !r.source {
			mortal = append(mortal, r)
		}
	}
	mean := float64(time.Minute) / (plan.PerMinute * float64(len(mortal)))
	var next func()
	next = func() {
		if w.now >= end {
			return
		}
		if r := mortal[w.rng.IntN(len(mortal))]; r.alive {
			result.Deaths++
			w.kill(r)
			w.at(w.now+downTime, func() { w.start(r) })
		}
		w.at(w.now+time.Duration(w.rng.ExpFloat64()*mean), next)
	}
	meter.start()
	w.at(w.now, next)
	for w.now < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		w.run(w.now + time.Second)
	}
	result.ControlTreeChurn, result.ControlOtherChurn = meter.stop()
	w.run(w.now + downTime)
	back := w.now
	if err := w.converge(ctx); err != nil {
		return err
	}
	result.ReconvergeS = (w.now - back).Seconds()
	w.run(w.now + calmTime)
	for _, s := range w.streams {
		s.stopped = true
	}
	w.run(w.now + settleTime + time.Second)
	result.Expected, result.Lost, result.Late = expected, expected-arrived, late
	result.Delivered = share(arrived, expected)
	result.DeliveredLive = share(arrived-late, expected)
	result.Refused = w.refused - refused
	result.Redundant = share(w.copies-copies, w.delivered-delivered) - 1
	for _, s := range w.streams {
		s.settled = nil
	}
	return nil
}

func share(part, of uint64) float64 { return float64(part) / float64(max(of, 1)) }

// deaths kills inner RPs, one after the other, while one ingress RP sends fast.
func (w *world) deaths(ctx context.Context, n int, result *Result) error {
	for _, s := range w.streams {
		s.stopped = true
	}
	w.run(w.now + settleTime)
	s := w.streams[0]
	s.settled = func(sequence uint32, sent time.Duration) {
		for _, r := range w.rps {
			if r.alive && r != s.source && r.upSince+joinTime <= sent && !isSet(r.windows[0].got, sequence) {
				result.HealLost++
			}
		}
	}
	for i, victim := range w.inner(s.source)[:min(n, w.cfg.RPs-maxStreams)] {
		if err := ctx.Err(); err != nil {
			return err
		}
		w.publishing(0, time.Second/deathRate)
		w.run(w.now + 500*time.Millisecond + time.Duration(i)*37*time.Millisecond)
		s.interrupted = func(_ *rp, length time.Duration) { result.HealS = max(result.HealS, length.Seconds()) }
		w.kill(victim)
		w.run(w.now + 2*time.Second)
		s.stopped = true
		w.run(w.now + settleTime + time.Second)
		s.interrupted = nil
		for _, r := range w.rps {
			r.windows[0].newestAt, r.windows[0].silence = 0, 0
		}
		w.start(victim)
		w.run(w.now + calmTime)
		if err := w.converge(ctx); err != nil {
			return err
		}
	}
	s.settled = nil
	return nil
}

// inner returns the RPs that are no source by the number of RPs below them in the
// tree of a root, most first.
func (w *world) inner(root *rp) []*rp {
	below := make(map[*rp]int)
	for _, r := range w.rps {
		for at := r; at != root; {
			parent, _ := w.first().core.TreeParent(root.id, at.id)
			at = w.rps[w.byID[parent]]
			below[at]++
		}
	}
	var all []*rp
	for _, r := range w.rps {
		if !r.source {
			all = append(all, r)
		}
	}
	slices.SortStableFunc(all, func(a, b *rp) int { return cmp.Compare(below[b], below[a]) })
	return all
}

// shape measures the trees.
func (w *world) shape(result *Result) {
	core := w.first().core
	var stretch, meshStretch []float64
	var busiest, all float64
	for _, s := range w.ingress {
		copies := make(map[[2]int]int)
		shortest := w.shortest(s)
		for _, r := range w.rps {
			if r == s {
				continue
			}
			var way time.Duration
			depth := 0
			for at := r; at != s; depth++ {
				parent, _ := core.TreeParent(s.id, at.id)
				up := w.rps[w.byID[parent]]
				way += w.under.delay(int(up.index), int(at.index))
				at = up
			}
			result.DepthMax = max(result.DepthMax, depth)
			stretch = append(stretch, way.Seconds()/w.under.delay(int(s.index), int(r.index)).Seconds())
			meshStretch = append(meshStretch, way.Seconds()/shortest[r.index].Seconds())
			parent, _ := core.TreeParent(s.id, r.id)
			for _, link := range w.under.path[w.under.region[w.byID[parent]]][w.under.region[r.index]] {
				copies[link]++
			}
		}
		top := 0
		for _, n := range copies {
			top = max(top, n)
			all += float64(n)
		}
		busiest += float64(top)
	}
	n := float64(len(w.ingress))
	result.LinkCopiesMax, result.LinkCopies = busiest/n, all/n
	slices.Sort(stretch)
	slices.Sort(meshStretch)
	result.StretchP95, result.StretchMax = stretch[len(stretch)*95/100], stretch[len(stretch)-1]
	result.MeshStretch95 = meshStretch[len(meshStretch)*95/100]
	links := 0
	for _, r := range w.rps {
		links += len(r.peers)
	}
	result.Links = float64(links) / float64(len(w.rps))
}

// shortest returns the delays of the shortest ways by the links of the mesh.
func (w *world) shortest(from *rp) []time.Duration {
	dist := make([]time.Duration, len(w.rps))
	for i := range dist {
		dist[i] = 1 << 60
	}
	dist[from.index] = 0
	for changed := true; changed; {
		changed = false
		for _, r := range w.rps {
			for _, p := range r.peers {
				if d := dist[r.index] + w.under.delay(int(r.index), int(p)); d < dist[p] {
					dist[p], changed = d, true
				}
			}
		}
	}
	return dist
}

// meter counts the bytes of control messages by kind of neighbour.
type meter struct {
	w                         *world
	on                        bool
	tree, other               float64 // bytes
	treeSeconds, otherSeconds float64 // of directed links
	since                     int
}

func newMeter(w *world) *meter {
	m := &meter{w: w}
	w.bytes = func(from, to *rp, n int) {
		if !m.on {
			return
		}
		if from.core.OnTree(to.id) {
			m.tree += float64(n)
		} else {
			m.other += float64(n)
		}
	}
	return m
}

func (m *meter) start() {
	m.on, m.since = true, m.since+1
	m.tree, m.other, m.treeSeconds, m.otherSeconds = 0, 0, 0, 0
	since := m.since
	var sample func()
	sample = func() {
		if !m.on || m.since != since {
			return
		}
		for _, r := range m.w.rps {
			if !r.alive {
				continue
			}
			for _, n := range r.core.Neighbours() {
				if n.Tree {
					m.treeSeconds++
				} else {
					m.otherSeconds++
				}
			}
		}
		m.w.at(m.w.now+time.Second, sample)
	}
	m.w.at(m.w.now+time.Second, sample)
}

// stop returns the mean kbit/s to a neighbour.
func (m *meter) stop() (tree, other float64) {
	m.on = false
	return m.tree * 8 / 1000 / max(m.treeSeconds, 1), m.other * 8 / 1000 / max(m.otherSeconds, 1)
}
