// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// API is the RPC namespace mdcs.
type API struct{ s *Service }

// Status is the answer of mdcs_status.
type Status struct {
	Enabled     bool              `json:"enabled"`
	State       string            `json:"state"` // idle, joining or active
	RP          string            `json:"rp,omitempty"`
	Standby     string            `json:"standby,omitempty"` // RP that takes over when this one is lost
	Port        uint16            `json:"port"`
	Publish     PublishMode       `json:"publish"`
	Delivery    Delivery          `json:"delivery,omitempty"` // that the RP granted, when active
	GossipPeers int               `json:"gossipPeers"`        // that speak mdcs/1
	Covered     int               `json:"covered"`            // of these, with fresh marks
	Held        int               `json:"held"`               // gossip left out and not yet confirmed
	Published   int64             `json:"published"`          // transactions taken by an RP
	Failed      int64             `json:"failed"`             // transactions that no RP took
	Received    int64             `json:"received"`           // transactions offered to the pool
	Duplicates  int64             `json:"duplicates"`         // datagrams of these that came again
	Announced   int64             `json:"announced"`          // left-out gossip that was announced after all
	Datagrams   map[string]uint64 `json:"datagrams"`          // received, by verdict
	Marks       []Mark            `json:"marks"`
}

// Mark is what was delivered of one ingress RP's sequences.
type Mark struct {
	Ingress    ids.Incarnation `json:"ingress"`
	First      uint64          `json:"first"`
	Next       uint64          `json:"next"`
	Received   uint64          `json:"received"`
	Lost       uint64          `json:"lost"`
	Duplicates uint64          `json:"duplicates"`
}

// RP is one entry of the answer of mdcs_rps.
type RP struct {
	ID          string          `json:"id"`
	URL         string          `json:"url"`
	Connected   bool            `json:"connected"`
	State       string          `json:"state"`
	Incarnation ids.Incarnation `json:"incarnation,omitempty"`
	Data        string          `json:"data,omitempty"` // UDP endpoint
	Operator    string          `json:"operator,omitempty"`
	RTT         string          `json:"rtt,omitempty"` // of datagrams with the one in use, of the connection with others
}

// Status returns the state of multicast diffusion in this node.
func (api *API) Status() Status {
	s := api.s
	s.mu.Lock()
	defer s.mu.Unlock()

	now := time.Now()
	st := Status{
		Enabled:    s.enabled,
		State:      "idle",
		Port:       s.port(),
		Publish:    s.cfg.Publish,
		Held:       s.coverage.Held(),
		Published:  publishedMeter.Snapshot().Count(),
		Failed:     failedMeter.Snapshot().Count(),
		Received:   deliveredMeter.Snapshot().Count(),
		Duplicates: duplicateMeter.Snapshot().Count(),
		Announced:  announcedMeter.Snapshot().Count(),
		Datagrams:  make(map[string]uint64),
		Marks:      []Mark{},
	}
	st.GossipPeers, st.Covered = s.coverage.Covered(now)
	if s.active != nil {
		st.State, st.RP = "joining", s.active.id.String()
		if s.covered {
			st.State, st.Delivery = "active", Delivery(s.active.mode.String())
		}
	}
	if s.standby.state() == proto.JoinerStandby {
		st.Standby = s.standby.id.String()
	}
	for _, v := range wire.Verdicts() {
		if n := s.receiver.counters[v]; n > 0 {
			st.Datagrams[v.String()] = n
		}
	}
	counters := s.marks.Counters()
	marks, _ := s.marks.Have(0)
	for i, m := range marks {
		c := counters[i]
		st.Marks = append(st.Marks, Mark{m.Ingress, m.First, m.Next, c.Received, c.Lost, c.Duplicates})
	}
	return st
}

// Rps returns the RPs that may be used in order of preference.
func (api *API) Rps() []RP {
	s := api.s
	s.mu.Lock()
	defer s.mu.Unlock()

	rps := make([]RP, 0, len(s.order))
	for _, rp := range s.order {
		entry := RP{ID: rp.id.String(), URL: rp.node.URLv4(), Connected: rp.conn != nil, State: rp.state().String()}
		if rp.joiner != nil && rp.joiner.RP().Incarnation != 0 {
			entry.Incarnation, entry.Operator = rp.joiner.RP().Incarnation, rp.joiner.RP().Operator
			entry.Data = rp.dataAddr().String()
		}
		rtt := rp.rtt()
		if rp == s.active && s.outbox.SRTT() > 0 {
			rtt = s.outbox.SRTT()
		}
		if rtt > 0 {
			entry.RTT = rtt.String()
		}
		rps = append(rps, entry)
	}
	return rps
}

// SetEnabled switches multicast diffusion on or off. Off, the node leaves its RP
// and gossips as stock geth does.
func (api *API) SetEnabled(enabled bool) {
	s := api.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enabled = enabled
	s.choose(time.Now())
}

// peerInfo is what admin_peers shows of a peer.
func (s *Service) peerInfo(id enode.ID) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rp := s.rps[id]; rp != nil {
		return map[string]string{"role": proto.RoleRP.String(), "state": rp.state().String()}
	}
	if p := s.peers[id]; p != nil && p.ready {
		return map[string]any{"role": proto.RolePeer.String(), "covered": s.coverage.Covers(time.Now(), id)}
	}
	return nil
}
