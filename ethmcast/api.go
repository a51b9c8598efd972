// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// API is the RPC namespace mdcs.
type API struct{ s *Service }

// Status is the answer of mdcs_status.
type Status struct {
	Enabled    bool              `json:"enabled"`
	State      string            `json:"state"` // idle, joining or active
	RP         string            `json:"rp,omitempty"`
	Port       uint16            `json:"port"`
	Publish    PublishMode       `json:"publish"`
	Delivery   Delivery          `json:"delivery,omitempty"` // that the RP granted, when active
	Neighbours int               `json:"neighbours"`         // that speak mdcs/1
	Covered    int               `json:"covered"`            // of these, with fresh marks
	Held       int               `json:"held"`               // gossip left out and not yet confirmed
	Published  int64             `json:"published"`          // transactions taken by an RP
	Failed     int64             `json:"failed"`             // transactions that no RP took
	Received   int64             `json:"received"`           // transactions offered to the pool
	Duplicates int64             `json:"duplicates"`         // datagrams of these that came again
	Announced  int64             `json:"announced"`          // left-out gossip that was announced after all
	Datagrams  map[string]uint64 `json:"datagrams"`          // received, by verdict
	Marks      []Mark            `json:"marks"`
}

// Mark is what was delivered of one ingress RP's sequences.
type Mark struct {
	Ingress    uint32 `json:"ingress"`
	First      uint64 `json:"first"`
	Next       uint64 `json:"next"`
	Received   uint64 `json:"received"`
	Lost       uint64 `json:"lost"`
	Duplicates uint64 `json:"duplicates"`
}

// RP is one entry of the answer of mdcs_rps.
type RP struct {
	ID          string `json:"id"`
	URL         string `json:"url"`
	Connected   bool   `json:"connected"`
	State       string `json:"state"`
	Incarnation uint32 `json:"incarnation,omitempty"`
	Data        string `json:"data,omitempty"` // UDP endpoint
	RTT         string `json:"rtt,omitempty"`  // smoothed, of the one in use
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
	st.Neighbours, st.Covered = s.coverage.Covered(now)
	if s.active != nil {
		st.State, st.RP = "joining", s.active.id.String()
		if s.joined {
			st.State, st.Delivery = "active", Delivery(s.mode.String())
		}
	}
	for _, v := range wire.Verdicts() {
		if n := s.receiver.counters[v]; n > 0 {
			st.Datagrams[v.String()] = n
		}
	}
	counters := s.marks.Counters()
	for i, m := range s.marks.Have() {
		c := counters[i]
		st.Marks = append(st.Marks, Mark{m.Ingress, m.First, m.Next, c.Received, c.Lost, c.Duplicates})
	}
	return st
}

// Rps returns the RPs in use, configured or found, in order of preference.
func (api *API) Rps() []RP {
	s := api.s
	s.mu.Lock()
	defer s.mu.Unlock()

	rps := make([]RP, 0, len(s.nodes))
	for _, node := range s.nodes {
		entry := RP{ID: node.ID().String(), URL: node.URLv4(), State: "disconnected"}
		if rp := s.rps[node.ID()]; rp != nil {
			entry.Connected = true
			entry.State = rp.joiner.State().String()
			if rp.joiner.State() != proto.JoinerConnected {
				entry.Incarnation = rp.joiner.RP().Incarnation
				entry.Data = rp.dataAddr().String()
			}
			if rp == s.active && s.joined {
				entry.RTT = s.outbox.SRTT().String()
			}
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
		return map[string]string{"role": proto.RoleRP.String(), "state": rp.joiner.State().String()}
	}
	if p := s.peers[id]; p != nil && p.ready {
		return map[string]any{"role": proto.RolePeer.String(), "covered": s.coverage.Covers(time.Now(), id)}
	}
	return nil
}
