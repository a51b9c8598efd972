// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"fmt"

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
	s.finder = finder
	return nil
}

// found uses the first of the candidates, and the RP that serves until it is lost. When
// there are no candidates, those of before may still serve.
func (s *Service) found(candidates []discovery.Candidate) {
	var nodes []*enode.Node
	for _, c := range candidates[:min(maxFound, len(candidates))] {
		nodes = append(nodes, c.Node)
	}
	if len(nodes) == 0 {
		return
	}
	s.mu.Lock()
	if s.isServed() {
		nodes = append(nodes, s.active.node)
	}
	s.mu.Unlock()
	s.SetRPs(nodes)
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
	if api.s.finder == nil {
		return nil
	}
	st := api.s.finder.Status()
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
