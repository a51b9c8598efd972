// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"fmt"
	"slices"

	"github.com/ethereum/go-ethereum/p2p/dnsdisc"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/discovery"
)

// maxFound is how many of the RPs that were found are connected to: the two that were
// chosen, and one more.
const maxFound = 3

// Find says where to look for RPs (SPEC section 13).
type Find struct {
	Trees []string       // enrtree:// URLs
	DHT   bool           // look there, too
	Walk  enode.Iterator // of the DHT, set before the service starts
	Allow []enode.ID     // that may be used when only the DHT has them
	Open  bool           // all may

	Resolver dnsdisc.Resolver // nil for that of the system
}

// startFinder looks for RPs until the service stops.
func (s *Service) startFinder() error {
	find := s.cfg.Find
	finder, err := discovery.New(discovery.Config{
		Self:      s.self,
		NetworkID: s.cfg.NetworkID,
		Genesis:   s.cfg.Genesis,
		Static:    s.cfg.RPs,
		Trees:     find.Trees,
		Walk:      find.Walk,
		Allow:     find.Allow,
		Open:      find.Open,
		Resolver:  find.Resolver,
		Found:     s.found,
		Log:       s.log,
	})
	if err != nil {
		return err
	}
	if err := finder.Start(); err != nil {
		return err
	}
	s.mu.Lock()
	s.finder = finder
	s.mu.Unlock()
	return nil
}

// found uses the first of the candidates, and the RP that serves until it is lost. When
// there are no candidates, those of before may still serve. Who is not known any more is
// left in any case.
func (s *Service) found(candidates []discovery.Candidate, known func(enode.ID) bool) {
	var serving *enode.Node
	var before []*enode.Node
	s.mu.Lock()
	for _, rp := range s.order {
		if known(rp.id) {
			before = append(before, rp.node)
			if rp == s.active && s.isServed() {
				serving = rp.node
			}
		}
	}
	s.mu.Unlock()
	if len(candidates) == 0 {
		s.SetRPs(before)
		return
	}
	var nodes []*enode.Node
	for _, c := range oneStranger(candidates, serving) {
		if len(nodes) < maxFound {
			nodes = append(nodes, c.Node)
		}
	}
	if serving != nil {
		nodes = append(nodes, serving)
	}
	s.SetRPs(nodes)
}

// oneStranger leaves one stranger among the candidates if a trusted one answered, so that
// never two of them are the active RP and the one in standby: the one that serves, or
// else the first.
func oneStranger(candidates []discovery.Candidate, serving *enode.Node) []discovery.Candidate {
	if !slices.ContainsFunc(candidates, func(c discovery.Candidate) bool { return c.Trusted && c.RTT > 0 }) {
		return candidates
	}
	serves := func(c discovery.Candidate) bool { return serving != nil && c.Node.ID() == serving.ID() }
	// Trusted ones are candidates even if they do not answer.
	taken := serving != nil && !slices.ContainsFunc(candidates, func(c discovery.Candidate) bool { return serves(c) && c.Trusted })
	return slices.DeleteFunc(candidates, func(c discovery.Candidate) bool {
		if c.Trusted || serves(c) {
			return false
		}
		out := taken
		taken = true
		return out
	})
}

// Discovery is the answer of mdcs_discovery.
type Discovery struct {
	Candidates []Candidate       `json:"candidates"`        // in the order in which they are used
	Known      int               `json:"known"`             // with those that are no candidates
	Skipped    map[string]uint64 `json:"skipped,omitempty"` // records by reason
	Trees      []Tree            `json:"trees,omitempty"`
}

// Candidate is an RP that was found.
type Candidate struct {
	ID       string `json:"id"`
	URL      string `json:"url"`
	Operator string `json:"operator,omitempty"`
	RTT      string `json:"rtt,omitempty"`  // when it answers
	Room     string `json:"room,omitempty"` // that it has for more
	Trusted  bool   `json:"trusted"`
}

// Tree is a signed tree in DNS.
type Tree struct {
	URL   string `json:"url"`
	Nodes int    `json:"nodes"`
	Error string `json:"error,omitempty"`
}

// Discovery returns what was found, and null when RPs are not looked for.
func (api *API) Discovery() *Discovery {
	api.s.mu.Lock()
	finder := api.s.finder
	api.s.mu.Unlock()
	if finder == nil {
		return nil
	}
	st := finder.Status()
	d := &Discovery{Candidates: []Candidate{}, Known: st.Known, Skipped: st.Skipped}
	for _, c := range st.Candidates {
		entry := Candidate{ID: c.Node.ID().String(), URL: c.Node.URLv4(), Operator: c.Operator, Trusted: c.Trusted}
		if c.RTT > 0 {
			entry.RTT, entry.Room = c.RTT.String(), fmt.Sprintf("%d %%", int(c.Room)*100/255)
		}
		d.Candidates = append(d.Candidates, entry)
	}
	for _, t := range st.Trees {
		d.Trees = append(d.Trees, Tree{t.URL, t.Nodes, t.Err})
	}
	return d
}
