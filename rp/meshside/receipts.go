// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/membership"
	"github.com/ethmcast/mdcs/rp/mesh"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/receipts"
)

// countInterval is how often members are counted.
const countInterval = time.Second

// Receipts counts who has the objects that ask about that. It is told by the engine what
// was replicated, and by peers what they have; it keeps nobody waiting. It may be used
// before the Server starts, and ignores everything until then.
type Receipts struct {
	mu        sync.Mutex
	own       ids.Incarnation // incarnation, 0 before the start
	members   *membership.Table
	table     *receipts.Table
	published map[receipts.Key]published
	elsewhere map[ids.Group]uint64 // members at other RPs, by group
	requests  uint64
}

// published is an object of a peer of this RP.
type published struct {
	session ids.Session // of the peer
	object  uint64      // id
	members uint64      // of the group, without the peer
	end     time.Time
}

// NewReceipts returns Receipts that count nothing yet.
func NewReceipts() *Receipts {
	return &Receipts{
		table: receipts.New(), published: make(map[receipts.Key]published), elsewhere: make(map[ids.Group]uint64),
	}
}

func (r *Receipts) start(own ids.Incarnation, members *membership.Table) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.own, r.members = own, members
}

// Replicated takes a DATA that was replicated, which most often asks nothing. The engine
// may be waiting: it is a matter of microseconds.
func (r *Receipts) Replicated(now time.Time, rec datapath.Record) {
	if !wire.MayAskReceipt(rec.Datagram) {
		return
	}
	h, _, v := wire.Parse(rec.Datagram)
	if v != wire.Pass || !h.AsksReceipt() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.own == 0 {
		return
	}
	key := receipts.Key{Ingress: rec.Ingress, Group: rec.Group, Sequence: rec.Sequence}
	here := r.members.Members()[rec.Group]
	if rec.Ingress == r.own {
		here = max(here-1, 0) // the publisher gets no copy
	}
	refused := r.table.Refused()
	r.table.Open(now, key, uint32(here))
	if r.table.Refused() != refused {
		return
	}
	r.requests++
	if rec.Ingress == r.own {
		r.published[key] = published{rec.Session, h.ObjectID, r.elsewhere[rec.Group] + uint64(here), now.Add(receipts.Lifetime)}
	}
}

// Confirm takes what a peer says to have. Its own objects do not count.
func (r *Receipts) Confirm(now time.Time, session ids.Session, places []proto.Place) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range places {
		key := receipts.Key(p)
		if own, ok := r.published[key]; !ok || own.session != session {
			r.table.Confirm(now, session, key)
		}
	}
}

func (r *Receipts) child(now time.Time, id linkstate.ID, report receipts.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.table.Child(now, uint64(id), report)
}

func (r *Receipts) count(groups []proto.Counters) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range groups {
		r.elsewhere[g.Group] = g.Members - g.Here
	}
}

// tick returns what is due: reports for parents, and those for peers of this RP.
func (r *Receipts) tick(now time.Time) (reports []receipts.Report, peers map[ids.Session][]proto.ObjectReceipt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	peers = make(map[ids.Session][]proto.ObjectReceipt)
	for _, report := range r.table.Tick(now) {
		p, ok := r.published[report.Key]
		switch {
		case ok:
			peers[p.session] = append(peers[p.session], proto.ObjectReceipt{
				Place: proto.Place(report.Key), ObjectID: p.object, Members: p.members, Sent: report.Sent, Confirmed: report.Confirmed,
			})
		default:
			reports = append(reports, report)
		}
	}
	for key, p := range r.published {
		if !now.Before(p.end) {
			delete(r.published, key)
		}
	}
	return reports, peers
}

func (r *Receipts) stats() (requests, refused uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests, r.table.Refused()
}

// reported takes the counts of a neighbour, as far as the trees name it as child of this RP.
func (s *Server) reported(l *link, reports []receipts.Report) {
	for _, report := range reports {
		if s.core.Counts(report.Ingress, l.id) {
			s.cfg.Asked.child(s.now, l.id, report)
		}
	}
}

// tickReceipts passes on what was counted.
func (s *Server) tickReceipts() {
	reports, peers := s.cfg.Asked.tick(s.now)
	up := make(map[linkstate.ID][]receipts.Report)
	for _, report := range reports {
		if in := s.ingresses[report.Ingress]; in != nil && in.route.Parent != 0 {
			up[in.route.Parent] = append(up[in.route.Parent], report)
		}
	}
	for parent, reports := range up {
		l := s.links[parent]
		if l == nil {
			continue // they are told again as they grow
		}
		for batch := range slices.Chunk(reports, mesh.MaxReports) {
			m := &mesh.Report{Reports: batch}
			payload, err := mesh.Encode(m)
			s.send(l, m.Code(), payload, err)
		}
	}
	for session, objects := range peers {
		if s.cfg.Receipted != nil {
			s.cfg.Receipted(session, objects)
		}
	}
	if s.now.Sub(s.countedAt) < countInterval {
		return
	}
	s.countedAt = s.now
	groups := s.members()
	s.cfg.Asked.count(groups)
	if s.cfg.Counted != nil {
		s.cfg.Counted(groups)
	}
}

// members counts the members of the groups: here as they are, at other RPs as these
// advertise them, while there is a path to them. Those behind neighbours are known if
// this RP is an ingress RP.
func (s *Server) members() []proto.Counters {
	here := s.cfg.Members.Members()
	groups := make([]proto.Counters, len(s.cfg.Groups))
	for i, group := range s.cfg.Groups {
		groups[i] = proto.Counters{Group: group, Members: uint64(here[group]), Here: uint64(here[group])}
	}
	branches := map[linkstate.ID]linkstate.ID{s.self: 0}
	s.core.Adverts(func(a *linkstate.Advert, _ linkstate.Version, _ bool) {
		if a.Origin == s.self || !s.core.Reached(a.Origin) {
			return
		}
		branch := s.branch(a.Origin, branches)
		for _, m := range a.Groups {
			i := slices.Index(s.cfg.Groups, m.Group)
			if i < 0 {
				continue
			}
			groups[i].Members += uint64(m.Count)
			if branch != 0 {
				groups[i].RPs = addMembers(groups[i].RPs, branch, uint64(m.Count))
			}
		}
	})
	for i := range groups {
		slices.SortFunc(groups[i].RPs, func(a, b proto.RPMembers) int { return cmp.Compare(a.RP, b.RP) })
	}
	return groups
}

// branch returns the neighbour behind which an RP is in the own tree, 0 for none. Known
// ones are remembered.
func (s *Server) branch(rp linkstate.ID, known map[linkstate.ID]linkstate.ID) linkstate.ID {
	if branch, ok := known[rp]; ok {
		return branch
	}
	known[rp] = 0
	parent, ok := s.core.TreeParent(s.self, rp)
	switch {
	case !ok || parent == 0:
	case parent == s.self:
		known[rp] = rp
	default:
		known[rp] = s.branch(parent, known)
	}
	return known[rp]
}

func addMembers(all []proto.RPMembers, rp linkstate.ID, members uint64) []proto.RPMembers {
	i := slices.IndexFunc(all, func(n proto.RPMembers) bool { return n.RP == uint64(rp) })
	if i >= 0 {
		all[i].Members += members
		return all
	}
	if len(all) == proto.MaxRPs {
		return all
	}
	return append(all, proto.RPMembers{RP: uint64(rp), Members: members})
}
