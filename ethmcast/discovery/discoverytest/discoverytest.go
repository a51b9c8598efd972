// SPDX-License-Identifier: LGPL-3.0-or-later

// Package discoverytest makes what tests of discovery find: node records, trees of
// them in a name server that is a map, and discv5 nodes on [::1].
package discoverytest

import (
	"context"
	"crypto/ecdsa"
	"maps"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/log"
	"github.com/ethereum/go-ethereum/p2p/discover"
	"github.com/ethereum/go-ethereum/p2p/dnsdisc"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/ethereum/go-ethereum/p2p/enr"
)

// Key returns a new node key.
func Key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Record returns a signed record with the given sequence number and entries.
func Record(t testing.TB, key *ecdsa.PrivateKey, seq uint64, entries ...enr.Entry) *enode.Node {
	t.Helper()
	var record enr.Record
	for _, e := range entries {
		record.Set(e)
	}
	record.SetSeq(seq)
	if err := enode.SignV4(&record, key); err != nil {
		t.Fatal(err)
	}
	n, err := enode.New(enode.ValidSchemes, &record)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Endpoint returns the entries of an address and one port for TCP and UDP.
func Endpoint(addr string, port uint16) []enr.Entry {
	return []enr.Entry{enr.IP(netip.MustParseAddr(addr).AsSlice()), enr.TCP(port), enr.UDP(port)}
}

// Zone is a name server's TXT records: a dnsdisc.Resolver. Its zero value is empty.
type Zone struct {
	mu      sync.Mutex
	records map[string]string
}

// LookupTXT implements dnsdisc.Resolver.
func (z *Zone) LookupTXT(_ context.Context, name string) ([]string, error) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if text, ok := z.records[name]; ok {
		return []string{text}, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

// Records returns a copy of the zone.
func (z *Zone) Records() map[string]string {
	z.mu.Lock()
	defer z.mu.Unlock()
	return maps.Clone(z.records)
}

// Add puts records into the zone, in place of those of the same names.
func (z *Zone) Add(records map[string]string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.records == nil {
		z.records = make(map[string]string)
	}
	for name, text := range records {
		z.records[name] = text
	}
}

// Publish signs a tree, puts it into the zone and returns its URL.
func (z *Zone) Publish(t testing.TB, key *ecdsa.PrivateKey, domain string, seq uint, nodes []*enode.Node, links ...string) string {
	t.Helper()
	tree, err := dnsdisc.MakeTree(seq, nodes, links)
	if err != nil {
		t.Fatal(err)
	}
	url, err := tree.Sign(key, domain)
	if err != nil {
		t.Fatal(err)
	}
	z.Add(tree.ToTXT(domain))
	return url
}

// Listen starts a discv5 node on [::1] that knows others; the test stops it.
func Listen(t testing.TB, key *ecdsa.PrivateKey, bootnodes []*enode.Node, entries ...enr.Entry) *discover.UDPv5 {
	t.Helper()
	conn, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback})
	if err != nil {
		t.Fatal(err)
	}
	db, err := enode.OpenDB("")
	if err != nil {
		conn.Close()
		t.Fatal(err)
	}
	local := enode.NewLocalNode(db, key)
	local.SetStaticIP(net.IPv6loopback)
	local.SetFallbackUDP(conn.LocalAddr().(*net.UDPAddr).Port)
	for _, e := range entries {
		local.Set(e)
	}
	disc, err := discover.ListenV5(conn, local, discover.Config{
		PrivateKey:   key,
		Bootnodes:    bootnodes,
		PingInterval: 50 * time.Millisecond, // who was not pinged is not told to others
		Log:          log.NewLogger(log.DiscardHandler()),
	})
	if err != nil {
		conn.Close()
		db.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		disc.Close()
		db.Close()
	})
	return disc
}
