// SPDX-License-Identifier: LGPL-3.0-or-later

package rp_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/hostnet/hostnettest"
)

// archipelago is an island whose rpd is the second of three in a chain:
//
//	+- rp -----------+          +- hosts ---------------------------------+
//	| fd00:7::1  rp0 +---veth---+ h0  fd00:7::3, fd00:7::4: socket engine |
//	+----------------+          |     fd00:7::2: light peers              |
//	                            +-----------------------------------------+
type archipelago struct {
	*island
	configs [3]string // the second is that of the island
	hosts   [3]*host
}

// newArchipelago makes one in which two of the three have no link, and the second has an engine. All
// know other RPs, too.
func newArchipelago(t *testing.T, apart [2]int, engine string, others ...*enode.Node) *archipelago {
	a := &archipelago{island: newIsland(t)}
	dir := filepath.Dir(a.config)
	hostnettest.In(t, a.island.hosts, func() {
		link, err := netlink.LinkByName("h0")
		require.NoError(t, err)
		for _, s := range []string{"fd00:7::3/64", "fd00:7::4/64"} {
			addr, err := netlink.ParseAddr(s)
			require.NoError(t, err)
			addr.Flags = unix.IFA_F_NODAD
			require.NoError(t, netlink.AddrAdd(link, addr))
		}
	})
	addrs := [3]netip.Addr{netip.MustParseAddr("fd00:7::3"), a.peers.rp, netip.MustParseAddr("fd00:7::4")}
	node := func(i int, port int) *enode.Node {
		return enode.NewV4(a.hosts[i].node.Pubkey(), addrs[i].AsSlice(), port, 0)
	}
	var keys [3]string
	for i := range a.hosts {
		key, err := crypto.GenerateKey()
		require.NoError(t, err)
		keys[i] = filepath.Join(dir, fmt.Sprint("key", i))
		require.NoError(t, crypto.SaveECDSA(keys[i], key))
		at := *a.peers
		at.rp, at.node = addrs[i], enode.NewV4(&key.PublicKey, addrs[i].AsSlice(), 30500, 0)
		a.hosts[i] = &at
	}
	for i := range a.hosts {
		var peers string
		for j := range a.hosts {
			port := 30500
			if [2]int{min(i, j), max(i, j)} == apart { // nobody listens there
				port = 1
			}
			if j != i {
				peers += fmt.Sprintf("%q,", node(j, port).URLv4())
			}
		}
		for _, o := range others {
			peers += fmt.Sprintf("%q,", o.URLv4())
		}
		datapath := `engine = "socket"`
		if i == 1 && engine == "xdp" {
			datapath = fmt.Sprintf("engine = \"xdp\"\npin = %q", a.pin)
		}
		a.configs[i] = filepath.Join(dir, fmt.Sprint("rpd", i, ".toml"))
		require.NoError(t, os.WriteFile(a.configs[i], fmt.Appendf(nil, `
[node]
key_file = %q
address = %q
[chain]
network_id = %d
genesis = "0x%x"
[mesh]
peers = [%s]
[datapath]
%s
[admin]
listen = ""
socket = ""
`, keys[i], addrs[i], testNetwork, testGenesis, peers, datapath), 0o600))
	}
	a.config = a.configs[1]
	return a
}

// The rpd in the middle of a chain is killed, and starts again: what is published at the
// first RP and at the middle arrives at all peers all the time, once, until all that the
// old process left is over.
func TestXDPDaemonOfMeshKilled(t *testing.T) {
	a := newArchipelago(t, [2]int{0, 2}, "xdp")
	ends := []*daemon{a.startAt(a.island.hosts, a.configs[0]), a.startAt(a.island.hosts, a.configs[2])}
	first := a.start()
	for _, d := range append(ends, first) {
		d.says("replication point serves")
		d.says("mesh link up")
	}
	var all []*lightPeer
	for _, h := range a.hosts {
		for range 2 {
			all = append(all, newPeer(t, nil, peerOptions{host: h, resumes: true}))
		}
	}
	members(t, all...)
	publishers := []*lightPeer{all[0], all[2], all[4]}
	for _, p := range all { // all trees are there, and not only those to the neighbours of their roots
		for _, from := range publishers {
			knows(t, p, see(from, func(p *lightPeer) ids.Incarnation { return p.member.RP.Incarnation }))
		}
	}

	// publish sends until a function returns: the next ones when those before arrived, or
	// have been on the way for too long.
	sent := uint64(0)
	arrived := func(p, from *lightPeer, seq uint64) int {
		incarnation := see(from, func(p *lightPeer) ids.Incarnation { return p.member.RP.Incarnation })
		return see(p, func(p *lightPeer) int { return p.sequences[sequence{incarnation, seq}] })
	}
	eachWay := func(f func(p, from *lightPeer)) {
		for _, p := range all {
			for _, from := range publishers {
				if p != from {
					f(p, from)
				}
			}
		}
	}
	publish := func(during func()) uint64 {
		done := make(chan struct{})
		go func() { defer close(done); during() }()
		for before := sent; ; {
			sent++
			for _, p := range publishers {
				p.publish(fmt.Sprint("datagram ", sent))
			}
			end := time.Now().Add(time.Second)
			eachWay(func(p, from *lightPeer) {
				for arrived(p, from, sent) == 0 && time.Now().Before(end) {
					time.Sleep(100 * time.Microsecond)
				}
			})
			select {
			case <-done:
				return sent - before
			default:
				time.Sleep(2 * time.Millisecond)
			}
		}
	}
	running := publish(func() { time.Sleep(500 * time.Millisecond) })
	dead := publish(func() {
		first.end(syscall.SIGKILL)
		time.Sleep(2 * time.Second)
	})
	var second *daemon
	starting := publish(func() {
		second = a.start()
		second.says("datapath adopted")
		second.says("replication point serves")
		all[2].connect()
		all[3].connect()
		second.says("mesh link up")
	})
	after := publish(func() { time.Sleep(20 * time.Second) }) // what was adopted is over
	var lost, twice []string
	late := time.Now().Add(patience) // on a busy machine a datagram may wait for seconds in the kernel
	eachWay(func(p, from *lightPeer) {
		for seq := uint64(1); seq <= sent; seq++ {
			for arrived(p, from, seq) == 0 && time.Now().Before(late) {
				time.Sleep(time.Millisecond)
			}
			which := fmt.Sprintf("datagram %d of peer %d to peer %d", seq, slices.Index(all, from), slices.Index(all, p))
			switch n := arrived(p, from, seq); {
			case n == 0:
				lost = append(lost, which)
			case n > 1:
				twice = append(twice, which)
			}
		}
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%d datagrams with all rpds, %d without one, %d while it started, %d after", running, dead, starting, after)
			for _, d := range append(ends, second) {
				t.Log(d.logged())
			}
		}
	})
	for _, p := range all {
		require.Empty(t, see(p, func(p *lightPeer) []error { return p.left }))
	}
	require.Empty(t, lost, "lost")
	require.Empty(t, twice, "twice")
	for _, d := range ends {
		require.Equal(t, 1, bytes.Count([]byte(d.logged()), []byte("mesh link down")))
		require.NotContains(t, d.logged(), "not heard")
		require.NotContains(t, d.logged(), "did not come back")
	}
	t.Logf("3 x %d datagrams to %d receivers: %d with all rpds, %d without one, %d while it started, %d after",
		sent, len(all)-1, running, dead, starting, after)
	for _, p := range all {
		p.leave() // else they are waited for
	}
	for _, d := range append(ends, second) {
		d.end(syscall.SIGTERM)
		require.Contains(t, d.logged(), "replication point stopped")
	}
	require.NoDirExists(t, a.pin)
}
