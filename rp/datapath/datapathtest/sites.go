// SPDX-License-Identifier: LGPL-3.0-or-later

package datapathtest

import (
	"net/netip"
	"testing"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// SitesSubject is a Subject with endpoints in several sites, and a clock for the limit of
// all copies.
type SitesSubject interface {
	Subject

	// Elsewhere returns the address of a node in another /48 than that of the endpoints.
	Elsewhere() netip.AddrPort

	// Elapse has the buckets of all copies and of the sites fill for a time.
	Elapse(time.Duration)
}

// RunSites runs the tests of the sites' shares (SPEC 6.7).
func RunSites(t *testing.T, new func(t *testing.T, cfg datapath.Config) SitesSubject) {
	wrapped := func(t *testing.T, cfg datapath.Config) Subject { return new(t, cfg) }
	t.Run("a greedy site takes nobody's share", func(t *testing.T) { testGreedySite(t, wrapped) })
	t.Run("a site that comes back has the bucket that it left", func(t *testing.T) { testSiteComesBack(t, wrapped) })
}

// What passes is counted in bytes per second of Elapse. The limit is so low that what flows
// back in the time that a test takes does not matter.
const (
	siteLimit = 8        // bytes of copies per second
	siteBurst = 25 * 4   // datagrams of the largest size
	largest   = 1232     // bytes of a datagram with the largest payload
	fullCost  = 4 * 1232 // bytes of copies of one that peers publish: to the RP neighbour and three peers
)

// sender publishes datagrams of the largest size.
type sender struct {
	w       *world
	session datapath.Session
	packet  *packet
}

// joinPublisher adds a silent publisher without a limit of its own.
func (w *world) joinPublisher(i int, addr netip.AddrPort) *sender {
	w.t.Helper()
	s := w.sessions[publisher]
	s.Index, s.Addr, s.Silent = 0x3000+ids.Session(i), addr, true
	s.Rate, s.Burst = 1<<30, 1<<30
	s.ReceiveKey = auth.Key{'p', byte(i)}
	w.apply(datapath.Change{Add: []datapath.Session{s}})
	p := w.packet(publisher)
	p.src, p.hopKey, p.header.Session, p.payload = addr, s.ReceiveKey, s.Index, make([]byte, wire.MaxPayload)
	return &sender{w, s, p}
}

// offer sends the next datagram, and reports whether it passed.
func (s *sender) offer() bool {
	s.w.t.Helper()
	v, _ := s.w.subject.Receive(s.packet.src, s.packet.bytes())
	switch v {
	case wire.Pass:
		s.packet.header.Sequence++
		return true
	case wire.OverRate:
		return false
	}
	s.w.t.Fatalf("verdict %v", v)
	return false
}

func (w *world) elapse(d time.Duration) { w.subject.(SitesSubject).Elapse(d) }

// beside returns an address in the site of the endpoints.
func (w *world) beside(i int) netip.AddrPort {
	first := w.subject.Endpoint(0)
	return netip.AddrPortFrom(first.Addr(), first.Port()+100+uint16(i))
}

// testGreedySite has 50 publishers of one site offer twenty times what all copies may take.
// A publisher of another site and an RP neighbour, which stay below their shares, lose nothing,
// the limit holds, and what the two leave is used.
func testGreedySite(t *testing.T, new New) {
	w := newLimitedWorld(t, new, siteLimit, siteBurst*largest)
	var greedy []*sender
	for i := range 50 {
		greedy = append(greedy, w.joinPublisher(i, w.beside(i)))
	}
	honest := w.joinPublisher(100, w.subject.(SitesSubject).Elsewhere())
	mesh := &sender{w, w.sessions[rp], w.packet(rp)}
	mesh.packet.payload = make([]byte, wire.MaxPayload)

	const times = 20
	period := fullCost * time.Second / siteLimit // in which the datagrams of one peer's may take all
	step, cost := 0, fullCost
	offered, passed := 0, 0
	// steps offers for some periods.
	steps := func(periods int) {
		t.Helper()
		offered, passed = 0, 0
		for range periods * times {
			step++
			w.elapse(period / times)
			offered++
			if greedy[step%len(greedy)].offer() {
				passed += cost
			}
			if honest != nil && step%(5*times) == 0 { // a fifth of all; its share is a quarter
				if !honest.offer() {
					t.Fatalf("step %d: the other site lost a datagram", step)
				}
				passed += cost
			}
			if mesh != nil && step%(4*times) == times { // three sixteenths; its share is a quarter
				if !mesh.offer() {
					t.Fatalf("step %d: the RP neighbour lost a datagram", step)
				}
				passed += 3 * largest
			}
		}
	}
	within := func(who string, periods int) {
		t.Helper()
		if limit := periods * fullCost; passed < limit*95/100 || passed > limit*105/100 {
			t.Errorf("%s: %d bytes of copies passed, the limit is %d, offered were %d", who, passed, limit, offered*cost)
		}
	}
	for greedy[0].offer() { // until only shares are left
	}
	steps(60)
	within("three sites", 60)

	// What no other site has a share of is all for the one.
	remove := []ids.Session{honest.session.Index, w.sessions[rp].Index, w.sessions[silent].Index}
	honest, mesh, cost = nil, nil, 3*largest // no copy goes to the RP neighbour
	w.apply(datapath.Change{Remove: remove})
	steps(40)
	within("one site", 40)
}

// testSiteComesBack has a site use up its share, and leave and come back for another one.
func testSiteComesBack(t *testing.T, new New) {
	w := newLimitedWorld(t, new, siteLimit, siteBurst*largest)
	here, there := w.beside(0), w.subject.(SitesSubject).Elsewhere()
	first := w.joinPublisher(0, there)
	for first.offer() {
	}
	w.apply(datapath.Change{Remove: []ids.Session{first.session.Index}})
	if w.joinPublisher(1, there).offer() {
		t.Error("a site got a new share for a new session")
	}
	if !w.joinPublisher(2, here).offer() {
		t.Error("the share of another site is gone")
	}
	w.subject.SetEgress(0, 0)
	if !w.joinPublisher(3, there).offer() {
		t.Error("a share is left where there is no limit")
	}
	w.subject.SetEgress(siteLimit, siteBurst*largest) // all buckets are full again
	if last := w.joinPublisher(4, there); !last.offer() {
		t.Error("the bucket of all copies is not full")
	}
}
