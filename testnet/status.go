// SPDX-License-Identifier: LGPL-3.0-or-later

package testnet

import (
	"context"
	"time"

	"github.com/ethmcast/mdcs/testnet/bgp"
	"github.com/ethmcast/mdcs/testnet/node"
	"github.com/ethmcast/mdcs/testnet/topology"
)

// Status describes a running net.
type Status struct {
	Topology string         `json:"topology"`
	Prefix   string         `json:"prefix"` // starts the names of all namespaces
	Logs     string         `json:"logs"`   // directory
	Links    LinkBackend    `json:"links"`
	Routing  Routing        `json:"routing"`
	Hosts    []HostStatus   `json:"hosts"`
	Sessions []bgp.Session  `json:"sessions,omitempty"` // one per end
	Wire     *WireStatus    `json:"wire,omitempty"`
	CPU      map[string]int `json:"cpu_ms"` // processor time by process
}

// WireStatus is how well the delay line keeps its time, since the net is up.
type WireStatus struct {
	Scheduling string  `json:"scheduling"`
	Frames     uint64  `json:"frames"`
	P50        float64 `json:"late_p50_us"`
	P99        float64 `json:"late_p99_us"`
}

// HostStatus describes a host and what runs there.
type HostStatus struct {
	Name    string        `json:"name"`
	Role    topology.Role `json:"role"`
	AS      string        `json:"as"`
	Class   string        `json:"class"`
	Addr    string        `json:"addr"`
	Running bool          `json:"running"`

	// Of Ethereum nodes.
	Head  uint64 `json:"head,omitempty"`
	Peers int    `json:"peers,omitempty"`
	State string `json:"state,omitempty"` // of mDCS: active, joining or idle
	Error string `json:"error,omitempty"` // why the node does not answer
}

// statusTimeout limits the answer of one node.
const statusTimeout = 5 * time.Second

// Status asks all nodes and routers how they are. A node that does not answer is
// no error.
func (n *Net) Status(ctx context.Context) (*Status, error) {
	s := &Status{
		Topology: n.cfg.Topology.Name,
		Prefix:   n.run.Prefix(),
		Logs:     n.cfg.LogDir,
		Links:    n.fabric.backend,
		Routing:  n.cfg.Routing,
		CPU:      make(map[string]int),
	}
	running := make(map[string]bool)
	for _, r := range n.RPs {
		running[r.Name()] = r.Running()
	}
	for _, g := range n.Geths {
		running[g.Name()] = g.Running()
	}
	for _, h := range n.cfg.Topology.Hosts {
		s.Hosts = append(s.Hosts, HostStatus{
			Name: h.Name, Role: h.Role, AS: h.AS, Class: h.Class, Addr: h.Addr.String(), Running: running[h.Name],
		})
	}
	hosts := make([]*HostStatus, len(s.Hosts))
	for i := range s.Hosts {
		hosts[i] = &s.Hosts[i]
	}
	each(hosts, func(h *HostStatus) error {
		if h.Running && h.Role == topology.Geth {
			n.askGeth(ctx, n.Geth(h.Name), h)
		}
		return nil
	})
	if n.bgp != nil {
		var err error
		if s.Sessions, err = n.bgp.Sessions(ctx); err != nil {
			return nil, err
		}
	}
	wire, err := n.WireSummary()
	if err != nil {
		return nil, err
	}
	if wire != nil {
		s.Wire = &WireStatus{wire.Scheduling, wire.Frames, wire.P50, wire.P99}
	}
	cpu, err := n.CPU()
	for name, used := range cpu {
		s.CPU[name] = int(used.Milliseconds())
	}
	return s, err
}

func (n *Net) askGeth(ctx context.Context, g *node.Geth, h *HostStatus) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	head, err := g.Head(ctx)
	if err != nil {
		h.Error = err.Error()
		return
	}
	h.Head = uint64(head.Number)
	peers, err := g.EthPeers(ctx)
	if err != nil {
		h.Error = err.Error()
		return
	}
	h.Peers = len(peers)
	if !g.Multicast() {
		return
	}
	st, err := g.Status(ctx)
	if err != nil {
		h.Error = err.Error()
		return
	}
	h.State = st.State
}

// Path is the file of the namespace of a host, an AS or an IXP.
func (n *Net) Path(name string) (string, error) {
	ns, err := n.fabric.space(name)
	if err != nil {
		return "", err
	}
	return ns.Path(), nil
}
