// SPDX-License-Identifier: LGPL-3.0-or-later

// Package discovery finds replication points (RPs) and measures how near they are,
// for geths that look for one and for RPs that look for each other (SPEC section 13).
//
//	static list ----.
//	signed DNS tree -+-> records -> checked -> measured by TALKREQ -> nearest.Chooser -> candidates
//	discv5 walk ----'
//
// The list and the trees are trusted. What the walk finds says of itself that it is an
// RP, so only those that are allowed count, unless all are.
package discovery

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/log"
	"github.com/ethereum/go-ethereum/metrics"
	"github.com/ethereum/go-ethereum/p2p/discover"
	"github.com/ethereum/go-ethereum/p2p/dnsdisc"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/ethereum/go-ethereum/p2p/enr"

	"github.com/ethmcast/mdcs/ethmcast/discovery/nearest"
)

// Times of discovery (SPEC section 11).
const (
	treeInterval    = 30 * time.Minute // between two readings of a tree
	treeRetry       = 5 * time.Second  // after one that failed, doubled up to treeInterval
	measureInterval = 5 * time.Minute  // between two looks at all RPs, with up to a tenth more
	strangerMisses  = 3                // looks without an answer, after which the walk must find an RP again
	walkPause       = 100 * time.Millisecond
	walkRest        = 2 * time.Second       // instead of walkPause, when there are two to choose from
	settle          = 50 * time.Millisecond // for what comes in a row
	patience        = 2 * time.Second       // for the first reading of the trees
)

// maxNodes is the number of RPs that are known at the same time.
const maxNodes = 1024

// Config says where a Finder looks, and for what.
type Config struct {
	Self      enode.ID // is not found
	NetworkID uint64
	Genesis   [32]byte

	Static []*enode.Node // RPs, trusted, in order of preference
	Trees  []string      // enrtree:// URLs, trusted

	// Walk has records from the DHT, nil for none; the Finder closes it. An RP that no
	// other source has is used when its node id is allowed, or all are.
	Walk  enode.Iterator
	Allow []enode.ID
	Open  bool

	// Talk measures; nil for a UDP socket of the Finder's own, with a key that tells
	// nobody who asks.
	Talk     Talker
	Resolver dnsdisc.Resolver // nil for that of the system

	// Found is called with each look's result, from one goroutine. Known reports, during
	// the call, whether an RP may be used still: who is used already, and is no candidate
	// only because it did not answer, may go on to be.
	Found func(candidates []Candidate, known func(enode.ID) bool)

	Log log.Logger
}

// Candidate is an RP that may be used.
type Candidate struct {
	Node     *enode.Node   // with its IPv6 endpoint
	Operator string        // "" when it is not known
	RTT      time.Duration // median of 3, 0 when it does not answer
	Room     byte          // free share, of 255; known with RTT
	Trusted  bool
}

// Reason says why a record was skipped.
type Reason int

// Reasons.
const (
	NoEntry      Reason = iota // not an RP
	BadEntry                   // an entry that cannot be decoded
	OtherVersion               // an RP of another version of the entry
	OtherChain                 // of another network id or genesis
	NoIPv6                     // no IPv6 endpoint
	NotAllowed                 // found by the walk alone, and not on the list
	Outdated                   // a newer record is known
	TooMany                    // more than 1024
	reasons
)

var reasonNames = [reasons]string{"no_entry", "bad_entry", "other_version", "other_chain", "no_ipv6", "not_allowed", "outdated", "too_many"}

func (r Reason) String() string { return reasonNames[r] }

// Tree is the state of a DNS tree.
type Tree struct {
	URL   string
	Nodes int    // of it and of what it links to
	Err   string // of the last reading, "" for none
}

// Metrics in geth's registry.
var (
	knownGauge = metrics.NewRegisteredGauge("mdcs/discovery/known", nil)
	skipped    = func() (counters [reasons]*metrics.Counter) {
		for r := range reasons {
			counters[r] = metrics.NewRegisteredCounter("mdcs/discovery/skipped/"+r.String(), nil)
		}
		return counters
	}()
)

// Status is a view of a Finder.
type Status struct {
	Known      int // RPs, with those that are no candidates
	Candidates []Candidate
	Skipped    map[string]uint64 // records by reason, each time that they were seen
	Trees      []Tree
}

// Finder finds RPs. New makes it, Start lets it look, Stop ends it for good.
type Finder struct {
	cfg    Config
	allow  map[enode.ID]bool
	client *dnsdisc.Client
	talk   Talker
	close  []func() // what Start opened
	cancel context.CancelFunc
	ctx    context.Context
	wg     sync.WaitGroup

	batches chan batch
	looked  chan map[enode.ID]answer

	// Of the goroutine of run.
	known   map[enode.ID]*known
	read    map[source]bool // that were, once
	changed bool            // since the last look began
	counter int             // of RPs that were ever known
	chooser nearest.Chooser

	mu     sync.Mutex
	status Status
}

// source is the list, a tree by its index, or the walk.
type source int

const (
	static source = -1
	walked source = -2
)

// batch is what a source has: all of it, but for the walk.
type batch struct {
	from  source
	nodes []*enode.Node
}

// known is an RP.
type known struct {
	node     *enode.Node // by IPv6
	seq      uint64      // of the record, 0 for a URL
	operator string
	order    int // of its discovery
	from     map[source]bool
	asked    bool
	answer   answer // rtt 0: none
	misses   int
}

// New checks the configuration.
func New(cfg Config) (*Finder, error) {
	for _, url := range cfg.Trees {
		if err := CheckTree(url); err != nil {
			return nil, err
		}
	}
	if cfg.Resolver == nil {
		cfg.Resolver = new(net.Resolver)
	}
	f := &Finder{
		cfg:     cfg,
		allow:   make(map[enode.ID]bool),
		talk:    cfg.Talk,
		batches: make(chan batch),
		looked:  make(chan map[enode.ID]answer),
		known:   make(map[enode.ID]*known),
		read:    make(map[source]bool),
		status:  Status{Skipped: make(map[string]uint64)},
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	for _, id := range cfg.Allow {
		f.allow[id] = true
	}
	for _, url := range cfg.Trees {
		f.status.Trees = append(f.status.Trees, Tree{URL: url})
	}
	f.client = dnsdisc.NewClient(dnsdisc.Config{
		Resolver:   endingResolver{cfg.Resolver, f.ctx},
		CacheLimit: 2 * maxNodes,
		RateLimit:  100,
		Logger:     cfg.Log,
	})
	return f, nil
}

// CheckTree says what is wrong with the URL of a tree.
func CheckTree(url string) error {
	if _, _, err := dnsdisc.ParseURL(url); err != nil {
		return fmt.Errorf("tree %s: %w", url, err)
	}
	return nil
}

// Start begins to look. It needs no network to succeed. A Finder that failed to start
// is stopped.
func (f *Finder) Start() error {
	if f.talk == nil {
		if err := f.listen(); err != nil {
			f.cancel()
			return fmt.Errorf("discovery: %w", err)
		}
	}
	f.wg.Go(f.run)
	f.wg.Go(func() { f.deliver(batch{static, f.cfg.Static}) })
	for i, url := range f.cfg.Trees {
		f.wg.Go(func() { f.readTree(source(i), newForest(url, f.client)) })
	}
	if f.cfg.Walk != nil {
		f.wg.Go(f.walk)
	}
	return nil
}

// listen opens a socket to measure by.
func (f *Finder) listen() error {
	key, err := crypto.GenerateKey()
	if err != nil {
		return fmt.Errorf("key: %w", err)
	}
	conn, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6unspecified})
	if err != nil {
		return err
	}
	db, err := enode.OpenDB("") // in memory
	if err != nil {
		conn.Close()
		return err
	}
	disc, err := discover.ListenV5(conn, enode.NewLocalNode(db, key), discover.Config{PrivateKey: key, Log: f.cfg.Log})
	if err != nil {
		db.Close()
		conn.Close()
		return err
	}
	f.talk, f.close = disc, []func(){disc.Close, db.Close}
	return nil
}

// Stop ends the search. It returns when nothing of it runs any more.
func (f *Finder) Stop() {
	f.cancel()
	if f.cfg.Walk != nil {
		f.cfg.Walk.Close()
	}
	for _, end := range f.close {
		end()
	}
	f.wg.Wait()
}

// Status returns what was found.
func (f *Finder) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := f.status
	st.Candidates, st.Trees, st.Skipped = slices.Clone(st.Candidates), slices.Clone(st.Trees), maps.Clone(st.Skipped)
	return st
}

func (f *Finder) deliver(b batch) {
	select {
	case f.batches <- b:
	case <-f.ctx.Done():
	}
}

// readTree reads a tree again and again.
func (f *Finder) readTree(from source, forest *forest) {
	retry := treeRetry
	for f.ctx.Err() == nil {
		nodes, err := forest.read()
		if f.ctx.Err() != nil {
			return
		}
		tree := Tree{URL: forest.url, Nodes: len(nodes)}
		wait := treeInterval
		if err != nil {
			tree.Err = err.Error()
			f.cfg.Log.Warn("Tree of replication points not read", "err", err, "again", retry)
			wait, retry = retry, min(2*retry, treeInterval)
		} else {
			retry = treeRetry
		}
		f.mu.Lock()
		f.status.Trees[from] = tree
		f.mu.Unlock()
		f.deliver(batch{from, nodes})
		f.pause(wait)
	}
}

// walk takes records from the DHT.
func (f *Finder) walk() {
	for f.cfg.Walk.Next() {
		f.deliver(batch{walked, []*enode.Node{f.cfg.Walk.Node()}})
		pause := walkPause
		if f.measured() >= 2 {
			pause = walkRest
		}
		f.pause(pause)
	}
}

// measured returns the number of candidates that answer.
func (f *Finder) measured() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.status.Candidates {
		if f.status.Candidates[i].RTT > 0 {
			n++
		}
	}
	return n
}

func (f *Finder) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-f.ctx.Done():
	}
}

// run owns what is known. One look is taken after the other: at all RPs when it is
// time, else at those that are new. The first waits for the first reading of the trees,
// as whom a geth joins first it stays with.
func (f *Finder) run() {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	var (
		reading = len(f.cfg.Trees) + 1 // with the list
		full    = time.Now()           // when all are to be looked at
		asked   []enode.ID             // in the present look
		all     bool                   // it is at all
		looking bool
	)
	for {
		select {
		case b := <-f.batches:
			if f.learn(b) {
				reading--
			}
			if f.changed && !looking && reading <= 0 {
				timer.Reset(settle)
			}
		case now := <-timer.C:
			reading, looking, f.changed = 0, true, false
			all = !now.Before(full)
			if all {
				full = now.Add(measureInterval + rand.N(measureInterval/10))
			}
			var nodes []*enode.Node
			nodes, asked = f.due(all)
			f.wg.Go(func() {
				answers := measure(f.ctx, f.talk, nodes)
				select {
				case f.looked <- answers:
				case <-f.ctx.Done():
				}
			})
		case answers := <-f.looked:
			looking = false
			f.note(asked, answers)
			f.publish(all)
			if f.changed {
				timer.Reset(settle)
			} else {
				timer.Reset(time.Until(full))
			}
		case <-f.ctx.Done():
			return
		}
	}
}

// learn takes what a source has, and reports whether that is all that it has and came
// for the first time.
func (f *Finder) learn(b batch) (first bool) {
	present := make(map[enode.ID]bool)
	for _, n := range b.nodes {
		if n.ID() == f.cfg.Self {
			continue
		}
		reason, ok := f.accept(n, b.from)
		present[n.ID()] = ok || reason == Outdated
		if !ok {
			skipped[reason].Inc(1)
			f.mu.Lock()
			f.status.Skipped[reason.String()]++
			f.mu.Unlock()
			f.cfg.Log.Debug("Record skipped", "id", n.ID(), "reason", reason)
		}
	}
	if b.from != walked {
		for id, k := range f.known {
			if k.from[b.from] && !present[id] {
				f.lose(id, b.from)
			}
		}
		if first = !f.read[b.from]; first {
			f.read[b.from], f.changed = true, true
		}
	}
	return first
}

// accept takes one record, or says why not.
func (f *Finder) accept(n *enode.Node, from source) (Reason, bool) {
	var entry Entry
	switch err := n.Load(&entry); {
	case enr.IsNotFound(err):
		if from != static { // a URL has no entries
			return NoEntry, false
		}
	case errors.Is(err, errVersion):
		return OtherVersion, false
	case err != nil:
		return BadEntry, false
	case entry.NetworkID != f.cfg.NetworkID || entry.Genesis != [4]byte(f.cfg.Genesis[:]):
		return OtherChain, false
	}
	node, ok := over6(n)
	if !ok {
		return NoIPv6, false
	}
	k := f.known[n.ID()]
	if k == nil {
		if from == walked && !f.cfg.Open && !f.allow[n.ID()] {
			return NotAllowed, false
		}
		if from == walked && !f.allow[n.ID()] && len(f.known) >= maxNodes {
			return TooMany, false
		}
		k = &known{order: f.counter, from: make(map[source]bool)}
		f.counter++
		f.known[n.ID()] = k
	}
	if !k.from[from] {
		k.from[from], f.changed = true, true
	}
	switch {
	case k.node == nil || n.Seq() > k.seq:
		f.changed = true
		if k.node == nil || k.node.IPAddr() != node.IPAddr() || k.node.UDP() != node.UDP() {
			k.asked, k.answer, k.misses = false, answer{}, 0 // of another endpoint
		}
		k.node, k.seq, k.operator = node, n.Seq(), entry.Operator
	case n.Seq() < k.seq && from != static:
		return Outdated, false
	}
	return 0, true
}

// lose forgets that a source has an RP. It forgets the RP with the last source, or when
// the one that is left is the walk, and that is not enough.
func (f *Finder) lose(id enode.ID, from source) {
	k := f.known[id]
	f.changed = true
	if delete(k.from, from); len(k.from) == 0 || !f.cfg.Open && !f.trusted(k) {
		delete(f.known, id)
	}
}

// due returns whom to measure: all, or those that never were.
func (f *Finder) due(all bool) (nodes []*enode.Node, ids []enode.ID) {
	for id, k := range f.known {
		if all || !k.asked {
			k.asked = true
			nodes, ids = append(nodes, k.node), append(ids, id)
		}
	}
	return nodes, ids
}

// note takes the answers of those that were asked.
func (f *Finder) note(asked []enode.ID, answers map[enode.ID]answer) {
	for _, id := range asked {
		k := f.known[id]
		if k == nil || !k.asked { // gone, or moved since
			continue
		}
		if k.answer = answers[id]; k.answer.rtt > 0 {
			k.misses = 0
		} else if k.misses++; k.misses >= strangerMisses && !f.trusted(k) {
			f.lose(id, walked)
		}
	}
}

// publish orders the candidates and tells of them.
func (f *Finder) publish(all bool) {
	var in []nearest.Candidate
	for _, k := range slices.SortedFunc(maps.Values(f.known), func(a, b *known) int { return a.order - b.order }) {
		in = append(in, nearest.Candidate{
			ID:       k.node.ID(),
			Operator: k.operator,
			RTT:      k.answer.rtt,
			Room:     k.answer.room,
			Trusted:  f.trusted(k),
		})
	}
	candidates := []Candidate{}
	for _, c := range f.chooser.Order(in, all) {
		candidates = append(candidates, Candidate{f.known[c.ID].node, c.Operator, c.RTT, c.Room, c.Trusted})
	}
	f.mu.Lock()
	f.status.Known, f.status.Candidates = len(f.known), candidates
	f.mu.Unlock()
	knownGauge.Update(int64(len(f.known)))
	if f.cfg.Found != nil {
		f.cfg.Found(slices.Clone(candidates), func(id enode.ID) bool { return f.known[id] != nil })
	}
}

// trusted reports whether a list or a tree has an RP, or it is allowed.
func (f *Finder) trusted(k *known) bool {
	return len(k.from) > 1 || !k.from[walked] || f.allow[k.node.ID()] // it has a source
}
