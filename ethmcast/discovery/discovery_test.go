// SPDX-License-Identifier: LGPL-3.0-or-later

package discovery

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/log"
	"github.com/ethereum/go-ethereum/p2p/discover"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/ethereum/go-ethereum/p2p/enr"
	"go.uber.org/goleak"

	"github.com/ethmcast/mdcs/ethmcast/discovery/discoverytest"
	"github.com/ethmcast/mdcs/ethmcast/proto"
)

// A closed goleveldb, which discv5 keeps its nodes in, has a goroutine that ends up to
// 30 seconds later.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/syndtr/goleveldb/leveldb.(*DB).mpoolDrain"))
}

var exampleGenesis = [32]byte{0xd4, 0xe5, 0x67, 0x40, 1}

// world is a Finder with replication points a to z, whose delays are told.
type world struct {
	*Finder
	t      *testing.T
	names  map[enode.ID]string
	keys   map[string]*ecdsa.PrivateKey
	line   *line
	zone   *discoverytest.Zone
	signer *ecdsa.PrivateKey // of trees
	walk   chan *enode.Node

	mu     sync.Mutex
	found  []string // each result
	known  func(enode.ID) bool
	logged bytes.Buffer
}

// Write implements io.Writer for the log.
func (w *world) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.logged.Write(p)
}

func (w *world) log() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.logged.String()
}

func (w *world) results() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.found)
}

func newWorld(t *testing.T) *world {
	return &world{
		t:      t,
		names:  make(map[enode.ID]string),
		keys:   make(map[string]*ecdsa.PrivateKey),
		line:   &line{delays: make(map[enode.ID][]time.Duration), room: 100},
		zone:   new(discoverytest.Zone),
		signer: discoverytest.Key(t),
		walk:   make(chan *enode.Node),
	}
}

// rp returns the record of a replication point, and sets its delay (0: silent).
func (w *world) rp(name string, rtt time.Duration, seq uint64, edit ...enr.Entry) *enode.Node {
	if w.keys[name] == nil {
		w.keys[name] = discoverytest.Key(w.t)
	}
	entries := append(discoverytest.Endpoint("2001:db8::1", 30500), example)
	n := discoverytest.Record(w.t, w.keys[name], seq, append(entries, edit...)...)
	w.names[n.ID()] = name
	if rtt > 0 {
		w.line.mu.Lock()
		w.line.delays[n.ID()] = []time.Duration{rtt}
		w.line.mu.Unlock()
	}
	return n
}

// url returns the URL of a replication point, as an operator writes it into a list.
func (w *world) url(name string, rtt time.Duration) *enode.Node {
	n := w.rp(name, rtt, 1)
	return enode.NewV4(n.Pubkey(), n.IP(), n.TCP(), 0)
}

func (w *world) start(cfg Config) {
	w.t.Helper()
	cfg.NetworkID, cfg.Genesis = 1, exampleGenesis
	cfg.Talk = w.line
	if cfg.Resolver == nil {
		cfg.Resolver = w.zone
	}
	cfg.Log = log.NewLogger(log.NewTerminalHandlerWithLevel(w, log.LevelWarn, false))
	cfg.Found = func(candidates []Candidate, known func(enode.ID) bool) {
		var names []string
		for _, c := range candidates {
			name := w.names[c.Node.ID()]
			if c.RTT == 0 {
				name += "?"
			} else if c.Room != w.line.room {
				w.t.Errorf("%s has room %d", name, c.Room)
			}
			if !c.Trusted {
				name += "!"
			}
			names = append(names, name)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.found = append(w.found, strings.Join(names, " "))
		w.known = known // called while the Finder waits
	}
	var err error
	if w.Finder, err = New(cfg); err != nil {
		w.t.Fatal(err)
	}
	if err := w.Finder.Start(); err != nil {
		w.t.Fatal(err)
	}
}

// after lets time pass and tells the latest result.
func (w *world) after(d time.Duration) string {
	time.Sleep(d)
	synctest.Wait()
	found := w.results()
	if len(found) == 0 {
		return "none"
	}
	return found[len(found)-1]
}

func (w *world) want(d time.Duration, want string) {
	w.t.Helper()
	if got := w.after(d); got != want {
		w.t.Fatalf("candidates %q, want %q; %+v\n%s", got, want, w.Status(), w.log())
	}
}

func (w *world) wantSkipped(want string) {
	w.t.Helper()
	if got := fmt.Sprint(w.Status().Skipped); got != "map["+want+"]" {
		w.t.Fatalf("skipped %s, want %s", got, want)
	}
}

// iterator is a walk of the DHT that comes by a channel.
type iterator struct {
	nodes chan *enode.Node
	node  *enode.Node
	done  chan struct{}
}

func (w *world) iterator() *iterator { return &iterator{nodes: w.walk, done: make(chan struct{})} }

func (i *iterator) Next() bool {
	select {
	case i.node = <-i.nodes:
		return true
	case <-i.done:
		return false
	}
}

func (i *iterator) Node() *enode.Node { return i.node }
func (i *iterator) Close()            { close(i.done) }

func TestFinderList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(Config{
			Static: []*enode.Node{w.url("a", 30*ms), w.url("b", 0), w.url("c", 10*ms), w.rp("d", 20*ms, 1), w.url("e", 0)},
		})
		defer w.Stop()
		w.want(4*time.Second, "c d a b? e?")
		if found := w.results(); len(found) != 1 {
			t.Errorf("results %q", found)
		}
	})
}

// A tree is read, checked, measured; its nodes come together with those of the list.
func TestFinderTree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		chain, genesis, version := example, example, enr.WithEntry("mdcs", []uint{2})
		chain.NetworkID, genesis.Genesis = 2, [4]byte{1}
		self := w.rp("self", 1*ms, 1)
		url := w.zone.Publish(t, w.signer, "rps.example.org", 1, []*enode.Node{
			w.rp("a", 30*ms, 5), w.rp("b", 10*ms, 5), w.rp("silent", 0, 1), self,
			w.rp("chain", 1*ms, 1, chain), w.rp("genesis", 1*ms, 1, genesis), w.rp("version", 1*ms, 1, version),
			w.rp("bad", 1*ms, 1, enr.WithEntry("mdcs", "x")),
			discoverytest.Record(t, discoverytest.Key(t), 1, append(discoverytest.Endpoint("192.0.2.1", 30500), example)...),
			discoverytest.Record(t, discoverytest.Key(t), 1, discoverytest.Endpoint("2001:db8::1", 30500)...),
		})
		w.start(Config{Trees: []string{url}, Static: []*enode.Node{w.url("c", 20*ms)}, Self: self.ID()})
		defer w.Stop()
		w.want(4*time.Second, "b c a silent?")
		w.wantSkipped("bad_entry:1 no_entry:1 no_ipv6:1 other_chain:2 other_version:1")
		if trees := w.Status().Trees; len(trees) != 1 || trees[0].Err != "" || trees[0].Nodes != 10 {
			t.Errorf("trees %+v", trees)
		}
		if c := w.Status().Candidates[0]; c.RTT != 10*ms || c.Operator != "example" || c.Room != 100 || !c.Trusted {
			t.Errorf("%+v", c)
		}
		if found := w.results(); len(found) != 1 {
			t.Errorf("results %q", found)
		}
	})
}

func TestFinderTreeUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.rp("a", 10*ms, 5), w.rp("b", 30*ms, 5)
		url := w.zone.Publish(t, w.signer, "rps.example.org", 7, []*enode.Node{a, b})
		w.start(Config{Trees: []string{url}})
		defer w.Stop()
		w.want(time.Second, "a b")

		// b is gone, c is new, a moved: it is measured at once.
		moved := w.rp("a", 25*ms, 6, enr.IP(net.ParseIP("2001:db8::2")))
		w.zone.Publish(t, w.signer, "rps.example.org", 8, []*enode.Node{moved, w.rp("c", 30*ms, 1)})
		w.want(20*time.Minute, "a b")
		w.want(11*time.Minute, "a c")
		if c := w.Status().Candidates[0]; c.RTT != 25*ms || c.Node.IPAddr() != moved.IPAddr() {
			t.Errorf("%v at %v", c.RTT, c.Node.IPAddr())
		}

		// Who shows the tree of before cannot bring b back.
		w.zone.Publish(t, w.signer, "rps.example.org", 7, []*enode.Node{a, b})
		w.want(31*time.Minute, "a c")
		if trees := w.Status().Trees; !strings.Contains(trees[0].Err, "older than the tree of before: 7 after 8") {
			t.Errorf("trees %+v", trees)
		}

		// Nor an older record in a newer tree. A record of another chain ends it.
		w.zone.Publish(t, w.signer, "rps.example.org", 9, []*enode.Node{a, w.rp("c", 30*ms, 1)})
		w.want(31*time.Minute, "a c")
		if w.Status().Skipped["outdated"] == 0 {
			t.Errorf("skipped %v", w.Status().Skipped)
		}
		if c := w.Status().Candidates[0]; c.Node.IPAddr() != moved.IPAddr() {
			t.Errorf("a moved back to %v", c.Node.IPAddr())
		}
		w.zone.Publish(t, w.signer, "rps.example.org", 10, []*enode.Node{w.rp("a", 10*ms, 7, Entry{NetworkID: 2, DataPort: 1}), w.rp("c", 30*ms, 1)})
		w.want(31*time.Minute, "c")
	})
}

// A tree comes by DNS, with records longer than one string of it.
func TestFinderDNS(t *testing.T) {
	zone := new(discoverytest.Zone)
	var nodes []*enode.Node
	long := example
	long.Operator = strings.Repeat("x", proto.MaxOperator)
	for range 20 {
		entries := append(discoverytest.Endpoint("2001:db8::1", 30500), long, enr.WithEntry("other", strings.Repeat("x", 60)))
		nodes = append(nodes, discoverytest.Record(t, discoverytest.Key(t), 1, entries...))
	}
	url := zone.Publish(t, discoverytest.Key(t), "rps.example.org", 1, nodes)
	server := zone.Serve(t, netip.AddrPortFrom(netip.IPv6Loopback(), 0))
	results := make(chan []Candidate, 1)
	f, err := New(Config{
		NetworkID: 1, Genesis: exampleGenesis, Trees: []string{url},
		Talk: new(line),
		Resolver: &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, server.String())
		}},
		Found: func(c []Candidate, _ func(enode.ID) bool) { results <- c },
		Log:   log.NewLogger(log.DiscardHandler()),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Start(); err != nil {
		t.Fatal(err)
	}
	defer f.Stop()
	for timeout, got := time.After(60*time.Second), 0; got != 20; { // the first result may come before the tree is read
		select {
		case candidates := <-results:
			got = len(candidates)
		case <-timeout:
			t.Fatalf("%d candidates; %+v", got, f.Status())
		}
	}
}

// A tree that another key signed is as good as none; it is tried again.
func TestFinderTreeSignature(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		nodes := []*enode.Node{w.rp("a", 10*ms, 1)}
		url := w.zone.Publish(t, w.signer, "rps.example.org", 1, nodes)
		w.zone.Publish(t, discoverytest.Key(t), "rps.example.org", 2, nodes)
		w.start(Config{Trees: []string{url}})
		defer w.Stop()
		w.want(time.Second, "")
		if trees := w.Status().Trees; !strings.Contains(trees[0].Err, "invalid root entry") {
			t.Errorf("trees %+v", trees)
		}
		w.zone.Publish(t, w.signer, "rps.example.org", 3, nodes)
		w.want(5*time.Second, "a")
		if trees := w.Status().Trees; trees[0].Err != "" {
			t.Errorf("trees %+v", trees)
		}
		if !strings.Contains(w.log(), "invalid root entry") {
			t.Errorf("logged %q", w.log())
		}
	})
}

// A record below the root that does not have its hash is refused with the whole tree.
func TestFinderTreeForgedRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		url := w.zone.Publish(t, w.signer, "rps.example.org", 1, []*enode.Node{w.rp("a", 10*ms, 1)})
		forged := make(map[string]string)
		for name := range zoneRecords(t, w.zone, url) {
			forged[name] = w.rp("evil", 1*ms, 1).String()
		}
		w.zone.Add(forged)
		w.start(Config{Trees: []string{url}})
		defer w.Stop()
		w.want(time.Second, "")
		if trees := w.Status().Trees; !strings.Contains(trees[0].Err, "hash mismatch") {
			t.Errorf("trees %+v", trees)
		}
	})
}

// zoneRecords returns the records below the root of the only tree of a zone.
func zoneRecords(t *testing.T, zone *discoverytest.Zone, url string) map[string]string {
	t.Helper()
	_, domain, _ := strings.Cut(url, "@")
	all := zone.Records()
	delete(all, domain)
	return all
}

func TestFinderLinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		other := discoverytest.Key(t)
		linked := w.zone.Publish(t, other, "other.example.org", 1, []*enode.Node{w.rp("b", 20*ms, 1), w.rp("a", 10*ms, 1)})
		gone := w.zone.Publish(t, other, "gone.example.org", 1, nil)
		w.zone.Publish(t, discoverytest.Key(t), "gone.example.org", 1, nil)
		url := w.zone.Publish(t, w.signer, "rps.example.org", 1, []*enode.Node{w.rp("a", 10*ms, 2)}, linked, gone)
		// A circle ends.
		w.zone.Publish(t, other, "other.example.org", 2, []*enode.Node{w.rp("b", 20*ms, 1), w.rp("a", 10*ms, 1)}, url)
		w.start(Config{Trees: []string{url}})
		defer w.Stop()
		w.want(time.Second, "a b")
		if trees := w.Status().Trees; !strings.Contains(trees[0].Err, "gone.example.org") || trees[0].Nodes != 2 {
			t.Errorf("trees %+v", trees)
		}
	})
}

// hangs is a resolver that waits for its context.
type hangs struct{}

func (hangs) LookupTXT(ctx context.Context, _ string) ([]string, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// Without a name server the list serves, and Stop does not wait for one.
func TestFinderNameServerHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		url := w.zone.Publish(t, w.signer, "rps.example.org", 1, nil)
		w.start(Config{Trees: []string{url}, Static: []*enode.Node{w.url("a", 10*ms)}, Resolver: hangs{}})
		w.want(time.Second, "none")
		w.want(1100*ms, "a")
		begin := time.Now()
		w.Stop()
		if took := time.Since(begin); took > 0 {
			t.Errorf("stopped after %v", took)
		}
	})
}

func TestFinderWalk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.rp("a", 10*ms, 1), w.rp("b", 20*ms, 1)
		w.start(Config{Walk: w.iterator(), Allow: []enode.ID{a.ID()}})
		defer w.Stop()
		w.walk <- b
		w.walk <- discoverytest.Record(t, discoverytest.Key(t), 1, discoverytest.Endpoint("2001:db8::1", 30500)...)
		w.walk <- a
		w.want(time.Second, "a")
		w.wantSkipped("no_entry:1 not_allowed:1")
	})
}

// What a tree no longer has is no longer used, even if the DHT has it, too; by who allows
// it, as one that the DHT has.
func TestFinderRevoked(t *testing.T) {
	for name, c := range map[string]struct {
		open, allow bool
		want        string
		known       bool
	}{
		"neither": {false, false, "", false},
		"open":    {true, false, "a!", true},
		"allowed": {false, true, "a", true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a := w.rp("a", 10*ms, 1)
				cfg := Config{Walk: w.iterator(), Open: c.open}
				if c.allow {
					cfg.Allow = []enode.ID{a.ID()}
				}
				cfg.Trees = []string{w.zone.Publish(t, w.signer, "rps.example.org", 1, []*enode.Node{a})}
				w.start(cfg)
				defer w.Stop()
				w.want(time.Second, "a")
				w.walk <- a
				w.want(time.Second, "a")
				w.zone.Publish(t, w.signer, "rps.example.org", 2, nil)
				w.want(31*time.Minute, c.want)
				if w.known(a.ID()) != c.known {
					t.Errorf("known: %t", !c.known)
				}
				w.walk <- a
				w.want(time.Minute, c.want)
			})
		})
	}
}

// An allowed RP is trusted: it is not forgotten when it does not answer, and finds room
// among strangers.
func TestFinderAllowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.rp("a", 0, 1)
		w.start(Config{Walk: w.iterator(), Open: true, Allow: []enode.ID{a.ID()}})
		defer w.Stop()
		for i := range maxNodes {
			w.deliver(batch{walked, []*enode.Node{w.rp(fmt.Sprint(i), 0, 1)}})
		}
		w.deliver(batch{walked, []*enode.Node{a}})
		synctest.Wait()
		w.wantSkipped("")
		w.want(2*time.Hour, "a?")
		if known := w.Status().Known; known != 1 {
			t.Errorf("%d known", known)
		}
	})
}

// A stranger that moves has three looks again.
func TestFinderMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(Config{Walk: w.iterator(), Open: true})
		defer w.Stop()
		w.walk <- w.rp("a", 0, 1)
		w.want(7*time.Minute, "") // two looks
		w.walk <- w.rp("a", 0, 2, enr.IP(net.ParseIP("2001:db8::2")))
		w.want(6*time.Minute, "") // two more
		if known := w.Status().Known; known != 1 {
			t.Errorf("%d known", known)
		}
		w.want(6*time.Minute, "")
		if known := w.Status().Known; known != 0 {
			t.Errorf("%d known", known)
		}
	})
}

func TestFinderWalkOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.rp("a", 10*ms, 1), w.rp("b", 20*ms, 1)
		w.start(Config{Walk: w.iterator(), Open: true, Static: []*enode.Node{w.url("c", 50*ms)}})
		defer w.Stop()
		w.walk <- a
		w.walk <- b
		w.walk <- w.rp("silent", 0, 1)
		w.want(5*time.Second, "a! c b!") // strangers are not both
		if known := w.Status().Known; known != 4 {
			t.Errorf("%d known", known)
		}
		w.want(20*time.Minute, "a! c b!")
		if known := w.Status().Known; known != 3 {
			t.Errorf("%d known: who never answers is forgotten", known)
		}

		// Who stops to answer goes back, and is forgotten when only the walk had it.
		w.line.mu.Lock()
		w.line.delays[a.ID()] = []time.Duration{-700 * ms}
		w.line.mu.Unlock()
		w.want(7*time.Minute, "b! c")
		w.want(20*time.Minute, "b! c")
		if known := w.Status().Known; known != 2 {
			t.Errorf("%d known", known)
		}
	})
}

// Known RPs have a limit that strangers cannot push the trusted ones over.
func TestFinderTooMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		strangers := make([]*enode.Node, maxNodes+1)
		for i := range strangers {
			strangers[i] = w.rp(fmt.Sprint(i), 0, 1)
		}
		url := w.zone.Publish(t, w.signer, "rps.example.org", 1, []*enode.Node{w.rp("a", 10*ms, 1)})
		w.start(Config{Open: true, Trees: []string{url}, Resolver: &late{w.zone, time.Now().Add(10 * time.Minute)}})
		defer w.Stop()
		for _, n := range strangers {
			w.deliver(batch{walked, []*enode.Node{n}})
		}
		synctest.Wait()
		w.wantSkipped("too_many:1")
		w.want(time.Hour, "a")
	})
}

// late is a resolver that does not work before a time.
type late struct {
	*discoverytest.Zone
	from time.Time
}

func (l *late) LookupTXT(ctx context.Context, name string) ([]string, error) {
	if time.Now().Before(l.from) {
		return nil, &net.DNSError{Err: "not yet", Name: name}
	}
	return l.Zone.LookupTXT(ctx, name)
}

func TestFinderRefusesURLs(t *testing.T) {
	for _, url := range []string{"", "https://example.org", "enrtree://example.org", "enrtree://ABC@example.org"} {
		if _, err := New(Config{Trees: []string{url}}); err == nil || !strings.Contains(err.Error(), "tree "+url) {
			t.Errorf("%q: %v", url, err)
		}
	}
}

// Five real discv5 nodes on [::1]: three replication points, a stranger and a geth,
// which know only the first. The walk finds all, and TALKREQ measures them.
func TestDiscv5(t *testing.T) {
	entry := func(operator string) Entry {
		e := example
		e.Operator = operator
		return e
	}
	const port = 30500
	keys := make([]*ecdsa.PrivateKey, 4)
	for i := range keys {
		keys[i] = discoverytest.Key(t)
	}
	first := discoverytest.Listen(t, keys[0], nil, enr.TCP(port), entry("one"))
	boot := []*enode.Node{first.Self()}
	later := func(key *ecdsa.PrivateKey, operator string, room byte) *discover.UDPv5 {
		n := discoverytest.Listen(t, key, boot, enr.TCP(port), entry(operator))
		n.RegisterTalkHandler(Protocol, Handler(func() byte { return room }))
		return n
	}
	second, third := later(keys[1], "two", 20), later(keys[2], "three", 30)
	noEntry := func() *discover.UDPv5 { return discoverytest.Listen(t, keys[3], boot, enr.TCP(port)) }
	stranger := noEntry()
	first.RegisterTalkHandler(Protocol, Handler(func() byte { return 10 }))
	self := discoverytest.Listen(t, discoverytest.Key(t), boot)

	results := make(chan []Candidate, 100)
	f, err := New(Config{
		NetworkID: 1, Genesis: exampleGenesis, Open: true,
		Walk:  self.RandomNodes(),
		Found: func(c []Candidate, _ func(enode.ID) bool) { results <- c },
		Log:   log.NewLogger(log.DiscardHandler()),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Start(); err != nil {
		t.Fatal(err)
	}
	defer f.Stop()

	var last []Candidate
	found := func(n *discover.UDPv5) bool {
		return slices.ContainsFunc(last, func(c Candidate) bool { return c.Node.ID() == n.Self().ID() })
	}
	// The first node forgets one that does not answer its first ping in time, as may be on a busy
	// machine, until that one begins anew.
	again := time.NewTicker(20 * time.Second)
	defer again.Stop()
	for timeout := time.After(120 * time.Second); len(last) < 3; {
		select {
		case last = <-results:
		case <-again.C:
			if !found(second) {
				second.Close()
				second = later(keys[1], "two", 20)
			}
			if !found(third) {
				third.Close()
				third = later(keys[2], "three", 30)
			}
		case <-timeout:
			t.Fatalf("found %+v; %+v", last, f.Status())
		}
	}
	rooms := map[string]byte{"one": 10, "two": 20, "three": 30}
	for _, c := range last {
		if c.Room != rooms[c.Operator] || c.RTT <= 0 || c.RTT > 5*time.Second || c.Trusted || c.Node.IPAddr() != netip.IPv6Loopback() {
			t.Errorf("%+v", c)
		}
	}
	for end := time.Now().Add(120 * time.Second); f.Status().Skipped["no_entry"] == 0; time.Sleep(10 * ms) {
		select {
		case <-again.C: // it may be forgotten, too
			stranger.Close()
			stranger = noEntry()
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("the stranger was not met: %+v", f.Status())
		}
	}

	// Measuring alone: the stranger does not know the protocol, and nobody listens at
	// the last one. URLs have no UDP port of their own.
	nodes := []*enode.Node{second.Self(), stranger.Self(), testNode(t, "::1")}
	url := enode.NewV4(third.Self().Pubkey(), net.IPv6loopback, third.Self().UDP(), 0)
	times := Measure(t.Context(), self, append(nodes, url))
	if len(times) != 2 || times[second.Self().ID()] <= 0 || times[url.ID()] <= 0 {
		t.Errorf("measured %v", times)
	}

	// One that comes back with its sessions lost is measured again.
	if again := Measure(t.Context(), first, nodes[:1]); len(again) != 1 {
		t.Errorf("measured %v", again)
	}
	if !found(third) {
		t.Errorf("the third is not among %+v", last)
	}
}
