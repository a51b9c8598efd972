// SPDX-License-Identifier: LGPL-3.0-or-later

package testnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/testnet/beacon"
	"github.com/ethmcast/mdcs/testnet/measure"
	"github.com/ethmcast/mdcs/testnet/node"
	"github.com/ethmcast/mdcs/testnet/topology"
	"github.com/ethmcast/mdcs/testnet/workload"
)

// scenario is a net with a workload whose arrivals are recorded. The network is
// "two-as".
type scenario struct {
	*Net
	t        *testing.T
	ctx      context.Context
	txs      []workload.Tx
	sent     int
	sendings []measure.Sending
	arrivals *measure.Arrivals
}

// play starts a net for a scenario of at most txs transactions.
func play(t *testing.T, txs int, patched func(string) bool, change func(*topology.Topology)) *scenario {
	t.Helper()
	return playWith(t, txs, func(c *Config) {
		c.Patched = patched
		if change != nil {
			change(c.Topology)
		}
	})
}

// playWith is play after any change to the configuration.
func playWith(t *testing.T, txs int, change func(*Config)) *scenario {
	t.Helper()
	cfg := Config{
		Topology:  twoAS(t),
		Geth:      programPath(t, "geth"),
		GethStock: programPath(t, "geth-stock"),
		RPD:       programPath(t, "rpd"),
		Seed:      3,
		Log:       testLog(t),
	}
	change(&cfg)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	n, err := Start(ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, n.Close())
		requireNothingLeft(t, n.run.Prefix())
	})
	s := &scenario{Net: n, t: t, ctx: ctx}
	s.txs, err = workload.Plan(workload.Params{ChainID: beacon.ChainID, Seed: 3, Txs: txs, Rate: 20, Nodes: len(n.Geths)})
	require.NoError(t, err)
	hashes := make([]common.Hash, txs)
	for i, tx := range s.txs {
		hashes[i] = tx.Hash
	}
	sources := make([]measure.Source, len(n.Geths))
	for i, g := range n.Geths {
		sources[i] = g
	}
	s.arrivals, err = measure.Subscribe(ctx, sources, hashes)
	require.NoError(t, err)
	t.Cleanup(s.arrivals.Close)
	return s
}

// send sends the next transactions of the workload at 20 per second.
func (s *scenario) send(count int) {
	s.t.Helper()
	next := s.txs[s.sent : s.sent+count]
	for _, tx := range next {
		s.sendings = append(s.sendings, measure.Sending{Origin: tx.Node, At: time.Now()})
		require.NoError(s.t, s.Geths[tx.Node].SendTx(s.ctx, tx.Raw))
		require.NoError(s.t, wait(s.ctx, time.Now().Add(50*time.Millisecond)))
	}
	s.sent += count
}

// stopChain ends the making of blocks, so that a transaction that multicast lost
// can reach a node by gossip alone.
func (s *scenario) stopChain() {
	s.stop()
	s.driver.Wait()
}

// everywhere requires that what was sent reaches every node, and returns the
// longest that one took.
func (s *scenario) everywhere() time.Duration {
	s.t.Helper()
	require.Equal(s.t, len(s.txs), s.sent, "the scenario sends its whole workload first")
	missing, err := s.arrivals.Wait(s.ctx, time.Now().Add(20*time.Second))
	require.NoError(s.t, err)
	require.Zero(s.t, missing, "transactions that did not arrive")
	d := measure.Summarize(measure.Pairs(s.sendings, s.arrivals.Times()))
	s.t.Logf("%d transactions everywhere: p50 %.0f ms, p99 %.0f ms, max %.0f ms", s.sent, d.P50, d.P99, d.Max)
	return time.Duration(d.Max * float64(time.Millisecond))
}

// learnStreams makes every node publish something, so that the marks of all
// know both ingress RPs and all gossip is left out from then on.
func (s *scenario) learnStreams() {
	s.t.Helper()
	s.send(2 * len(s.Geths))
	require.NoError(s.t, wait(s.ctx, time.Now().Add(3*time.Second)))
}

// firewall loads nftables rules into the namespace of a node's host.
func (s *scenario) firewall(ns interface{ Do(func() error) error }, rules string) {
	s.t.Helper()
	nft, err := exec.LookPath("nft")
	require.NoError(s.t, err, "nftables is not installed: run make deps")
	require.NoError(s.t, ns.Do(func() error {
		out, err := exec.Command(nft, rules).CombinedOutput()
		if err != nil {
			return fmt.Errorf("nft %s: %w: %s", rules, err, out)
		}
		return nil
	}))
}

// acknowledged requires that RPs took what the nodes published, but for a tenth: on a machine under load an ECHO is late
// now and then.
func (s *scenario) acknowledged() {
	s.t.Helper()
	failed := s.total(func(st node.Status) uint64 { return st.Failed })
	require.LessOrEqual(s.t, failed, uint64(s.sent/10), "what RPs did not acknowledge")
}

// total adds up a figure of the status of all nodes that speak mDCS.
func (s *scenario) total(figure func(node.Status) uint64) (sum uint64) {
	s.t.Helper()
	for _, g := range s.Geths {
		if g.Multicast() {
			st, err := g.Status(s.ctx)
			require.NoError(s.t, err)
			sum += figure(st)
		}
	}
	return sum
}

// Patched nodes, stock nodes, and a patched node whose only peer is a stock one.
func TestNetnsMixed(t *testing.T) {
	stock := map[string]bool{"as1-g3": true, "as2-g2": true}
	s := play(t, 30, func(host string) bool { return !stock[host] }, func(top *topology.Topology) {
		top.Peerings = [][2]string{
			{"as1-g1", "as1-g2"}, {"as1-g1", "as1-g3"}, {"as1-g2", "as1-g3"}, {"as1-g1", "as2-g1"},
			{"as1-g3", "as2-g2"}, {"as2-g1", "as2-g2"}, {"as2-g2", "as2-g3"},
		}
	})
	s.send(30)
	s.everywhere()
	head, err := s.Geth("as1-g1").Head(s.ctx)
	require.NoError(t, err)
	require.NoError(t, s.WaitHead(s.ctx, uint64(head.Number)+2))
	require.Positive(t, s.total(func(st node.Status) uint64 { return st.Received }), "nothing came by multicast")
}

// An RP that acknowledges everything and drops one of five datagrams to its
// peers: the marks show it, and the gossip peers announce what is missing.
func TestNetnsRPDropsSilently(t *testing.T) {
	s := play(t, 72, All, nil)
	s.learnStreams()
	s.stopChain()
	rp := s.RP("as1-rp").Namespace()
	s.firewall(rp, `add table ip6 lossy; `+
		`add chain ip6 lossy out { type filter hook output priority 0; }; `+
		`add rule ip6 lossy out udp dport 30400 udp length > 72 numgen inc mod 5 == 0 counter drop`)
	s.send(60)
	s.everywhere()
	require.Positive(t, s.total(func(st node.Status) uint64 { return st.Announced }), "nothing was announced")
	s.acknowledged()
}

// Two RPs that suddenly cannot reach each other.
func TestNetnsMeshPartition(t *testing.T) {
	s := play(t, 72, All, nil)
	s.learnStreams()
	s.stopChain()
	other := s.cfg.Topology.HostsOf(topology.RP)[1].Addr
	s.firewall(s.RP("as1-rp").Namespace(), fmt.Sprintf(`add table ip6 cut; `+
		`add chain ip6 cut in { type filter hook input priority 0; }; add rule ip6 cut in ip6 saddr %s drop; `+
		`add chain ip6 cut out { type filter hook output priority 0; }; add rule ip6 cut out ip6 daddr %s drop`, other, other))
	s.send(60)
	s.everywhere()
	s.acknowledged()
}

// The RP of AS 1 dies while transactions flow: nothing is lost, and its nodes move to
// the other RP, at which they stand by.
func TestNetnsRPDies(t *testing.T) {
	for name, kill := range map[string]func(*scenario){
		"process": func(s *scenario) { require.NoError(t, s.RP("as1-rp").Kill()) },
		"host": func(s *scenario) {
			require.NoError(t, s.RP("as1-rp").Namespace().Do(func() error { // netfilter would not stop XDP
				links, err := netlink.LinkList()
				if err != nil {
					return err
				}
				for _, l := range links {
					if err := netlink.LinkSetDown(l); err != nil {
						return err
					}
				}
				return nil
			}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := play(t, 72, All, nil)
			s.learnStreams()
			s.stopChain()
			s.send(20)
			dead := s.rpOf("as1-g1")
			s.standBy("as1-g1", "as1-g2", "as1-g3")
			kill(s)
			died := time.Now()
			left := make(chan time.Duration, 1)
			go func() {
				for s.rpOf("as1-g1") == dead && s.ctx.Err() == nil {
					time.Sleep(10 * time.Millisecond)
				}
				left <- time.Since(died)
			}()
			s.send(40)
			s.everywhere()
			after := <-left
			t.Logf("as1-g1 left its RP after %v", after)
			require.Less(t, after, 5*time.Second)
			for _, host := range []string{"as1-g1", "as1-g2", "as1-g3"} {
				require.NoError(t, node.Wait(s.ctx, host+" at the second RP", func(ctx context.Context) error {
					st, err := s.Geth(host).Status(ctx)
					if err == nil && (st.State != node.StateActive || st.RP == dead) {
						err = fmt.Errorf("state %s", st.State)
					}
					return err
				}))
			}
		})
	}
}

// The rpd of AS 1 is killed, and starts again a few seconds later. Its datapath is in
// the kernel: nobody leaves it, neither a node nor the RP of AS 2, and everything arrives
// everywhere by multicast.
func TestNetnsControlPlaneDies(t *testing.T) {
	needRoot(t)
	fs := t.TempDir()
	require.NoError(t, unix.Mount("bpf", fs, "bpf", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(fs, unix.MNT_DETACH)) })
	s := playWith(t, 112, func(c *Config) {
		c.Patched, c.Engine, c.Pin = All, "xdp", filepath.Join(fs, "mdcs")
	})
	s.learnStreams()
	s.stopChain()
	hosts := []string{"as1-g1", "as1-g2", "as1-g3"}
	s.standBy(hosts...)
	rp := s.rpOf("as1-g1")
	s.send(20)
	require.NoError(t, wait(s.ctx, time.Now().Add(time.Second)))
	// missing counts what was published and did not arrive by multicast.
	missing := func() int {
		published := s.total(func(st node.Status) uint64 { return st.Published })
		received := s.total(func(st node.Status) uint64 { return st.Received })
		return int(published)*(len(s.Geths)-1) - int(received)
	}
	before := missing()
	killed := time.Now()
	require.NoError(t, s.RP("as1-rp").Kill())
	started := make(chan error, 1)
	go func() {
		time.Sleep(2 * time.Second) // a while without anybody
		started <- s.RP("as1-rp").Start(s.ctx)
	}()
	s.send(60)
	require.NoError(t, <-started)
	t.Logf("without rpd for %v", time.Since(killed))
	s.send(20)
	slowest := s.everywhere()
	for _, host := range hosts {
		require.Equal(t, rp, s.rpOf(host), "%s left", host)
		log, err := os.ReadFile(filepath.Join(s.cfg.LogDir, host+".log"))
		require.NoError(t, err)
		require.NotContains(t, string(log), "Left replication point")
	}
	require.NoError(t, node.Wait(s.ctx, "three members, and three of the other AS in standby", func(ctx context.Context) error {
		m, err := s.RP("as1-rp").Metrics(ctx)
		if n := m["mdcs_rp_resumptions_total"]; err == nil && (n != 6 || m["mdcs_rp_admissions_total"] != 0) {
			err = fmt.Errorf("%g resumed, %g joined", n, m["mdcs_rp_admissions_total"])
		}
		return err
	}))
	require.NoError(t, node.Wait(s.ctx, "everything by multicast", func(context.Context) error {
		if n := missing() - before; n != 0 {
			return fmt.Errorf("%d did not arrive", n)
		}
		return nil
	}))
	m, err := s.RP("as2-rp").Metrics(s.ctx)
	require.NoError(t, err)
	require.Zero(t, m["mdcs_rp_mesh_neighbours_lost_total"])
	require.Zero(t, m["mdcs_rp_mesh_failovers_total"])
	t.Logf("slowest transaction %v, %d not acknowledged", slowest, s.total(func(st node.Status) uint64 { return st.Failed }))
}

// standBy waits until an RP stands by at each of these nodes.
func (s *scenario) standBy(hosts ...string) {
	s.t.Helper()
	for _, host := range hosts {
		require.NoError(s.t, node.Wait(s.ctx, "an RP that stands by at "+host, func(ctx context.Context) error {
			st, err := s.Geth(host).Status(ctx)
			if err == nil && (st.State != node.StateActive || st.Standby == "") {
				err = fmt.Errorf("state %s, standby %q", st.State, st.Standby)
			}
			return err
		}))
	}
}

// rpOf is the RP that a node is a member of, empty if none.
func (s *scenario) rpOf(host string) string {
	st, err := s.Geth(host).Status(s.ctx)
	if err != nil || st.State != node.StateActive {
		return ""
	}
	return st.RP
}

// The host of a node gets another address, and the old one is deprecated, as temporary addresses
// are each day (RFC 8981), or is gone, as after a change of the provider's prefix. The node's RP
// takes what it publishes all the same, in the second case from a new membership on.
func TestNetnsAddressChanges(t *testing.T) {
	const host = "as1-g1"
	for name, change := range map[string]func(netlink.Link, *netlink.Addr) error{
		"deprecated": func(l netlink.Link, a *netlink.Addr) error {
			a.PreferedLft, a.ValidLft = 0, 3600 // in seconds
			return netlink.AddrReplace(l, a)
		},
		"gone": netlink.AddrDel,
	} {
		t.Run(name, func(t *testing.T) {
			s := play(t, 72, All, nil)
			s.learnStreams()
			s.stopChain()
			g := s.Geth(host)
			s.readdress(g, change)
			if name == "gone" {
				began := time.Now()
				require.NoError(t, node.Wait(s.ctx, "a new membership of "+host, func(ctx context.Context) error {
					log, err := os.ReadFile(filepath.Join(s.cfg.LogDir, host+".log"))
					_, after, lost := strings.Cut(string(log), "Lost the address of the connection")
					if err == nil && (!lost || !strings.Contains(after, "Joined replication point")) {
						err = errors.New("not joined anew")
					}
					return err
				}))
				t.Logf("joined anew after %v", time.Since(began).Round(time.Millisecond))
			}
			before, err := g.Status(s.ctx)
			require.NoError(t, err)
			own := uint64(0)
			for _, tx := range s.txs[s.sent:] {
				if s.Geths[tx.Node] == g {
					own++
				}
			}
			require.Positive(t, own)
			s.send(60)
			s.everywhere()
			after, err := g.Status(s.ctx)
			require.NoError(t, err)
			require.LessOrEqual(t, after.Failed-before.Failed, own/2, "the RP did not take what came from the node")
			require.Greater(t, after.Published, before.Published)
		})
	}
}

// A firewall that lets in only answers, as home routers have it for IPv6, keeps no copies out.
func TestNetnsHomeFirewall(t *testing.T) {
	const host = "as1-g1"
	s := play(t, 24, All, nil)
	g := s.Geth(host)
	before := s.rpOf(host)
	require.NotEmpty(t, before)
	s.firewall(g.Namespace(), `add table ip6 home; add chain ip6 home in { type filter hook input priority 0; policy drop; }; `+
		`add rule ip6 home in ct state established,related accept; add rule ip6 home in icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept; `+
		`add rule ip6 home in iif lo accept`)
	require.NoError(t, g.Stop())
	require.NoError(t, g.Start(s.ctx))
	require.NoError(t, g.WaitMulticast(s.ctx, 0))
	s.stopChain()
	received := func() uint64 { st, err := g.Status(s.ctx); require.NoError(t, err); return st.Received }
	s.send(24)
	require.NoError(t, node.Wait(s.ctx, "copies at "+host, func(context.Context) error {
		if received() == 0 {
			return errors.New("none came")
		}
		return nil
	}))
}

// readdress gives the host of a node one more address, beside that which it has, and changes the latter.
func (s *scenario) readdress(g *node.Geth, change func(netlink.Link, *netlink.Addr) error) {
	s.t.Helper()
	old := g.URL().IPAddr()
	require.NoError(s.t, g.Namespace().Do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			addrs, err := netlink.AddrList(l, netlink.FAMILY_V6)
			if err != nil {
				return err
			}
			for _, a := range addrs {
				if ip, _ := netip.AddrFromSlice(a.IP); ip != old {
					continue
				}
				more := netlink.Addr{IPNet: &net.IPNet{IP: slices.Clone(a.IP), Mask: a.Mask}, Flags: unix.IFA_F_NODAD}
				more.IP[len(more.IP)-1] ^= 0x40
				if err := netlink.AddrAdd(l, &more); err != nil {
					return err
				}
				return change(l, &netlink.Addr{IPNet: a.IPNet})
			}
		}
		return fmt.Errorf("no interface has %v", old)
	}))
}
