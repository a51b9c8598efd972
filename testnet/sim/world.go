// SPDX-License-Identifier: LGPL-3.0-or-later

// Package sim runs many RPs of the mesh in simulated time: the link state of each is
// the real one, the network and the datapath are models. Regions of the Internet give
// delays, datagrams have jitter and hellos may be lost, hosts die, and links may be
// cut. The same seed gives the same run.
//
// A datagram goes along the routes as an engine would take it: it is accepted from
// the parent or a previous one, once by a window, and copied to the children. An RP
// that asks a new parent for datagrams is served from that one's cache.
package sim

import (
	"crypto/ecdsa"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/ethereum/go-ethereum/crypto"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/mesh/tree"
)

// maxStreams is how many of the ingress RPs send.
const maxStreams = 10

// group is what all datagrams belong to.
const group = 1

// epoch0 is the wall clock at the start.
var epoch0 = time.Unix(1_700_000_000, 0)

// Config is what a simulated mesh is like.
type Config struct {
	RPs       int
	Ingress   int // of them: RPs that publish
	Mode      tree.Mode
	Alpha     int     // percent, 0 for the default
	Budget    int     // copies of a datagram to other RPs, 0 for no bound
	HelloLoss float64 // share of hellos lost
	Jitter    float64 // of a delay, standard deviation as share of it
	Seed      uint64
}

// world is the simulation.
type world struct {
	cfg   Config
	rng   *rand.Rand
	now   time.Duration
	queue queue
	under *underlay
	rps   []*rp
	byID  map[linkstate.ID]int32
	sigs  map[*linkstate.Signed][32]byte // verified
	sizes map[*linkstate.Signed]int      // bytes of RLP

	blocked func(a, b int32) bool // cut links, nil for none
	bytes   func(from, to *rp, n int)

	ingress []*rp
	streams []*stream

	delivered, duplicated, refused, copies uint64
	falseDowns                             uint64
}

// stream is what one ingress RP publishes.
type stream struct {
	source   *rp
	interval time.Duration
	next     uint32 // sequence
	stopped  bool
	sent     []time.Duration
	settled  func(sequence uint32, sent time.Duration) // called some time after it was sent

	interrupted func(r *rp, length time.Duration)
}

// rp is one RP, in one life after the other.
type rp struct {
	index int32
	id    linkstate.ID
	key   *ecdsa.PrivateKey
	node  [32]byte
	peers []int32 // connections, if both are alive

	life     int32
	alive    bool
	upSince  time.Duration
	core     *linkstate.Core
	wakeAt   time.Duration
	mayAt    time.Duration // when it may publish, 0 before
	members  []linkstate.Members
	ingress  ids.Incarnation
	publish  bool // is an ingress RP
	source   bool // of a stream: it does not die
	routes   map[ids.Incarnation]*linkstate.Route
	windows  []window
	arrivals map[int32]time.Duration // by sender: of the newest message
}

// connection lives.
func key(a, b *rp) int32 { return a.life + b.life }

func newWorld(cfg Config) (*world, error) {
	w := &world{
		cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 1)),
		byID: make(map[linkstate.ID]int32),
		sigs: make(map[*linkstate.Signed][32]byte), sizes: make(map[*linkstate.Signed]int),
		bytes: func(*rp, *rp, int) {},
	}
	w.under = newUnderlay(cfg.RPs, w.rng)
	for i := range int32(cfg.RPs) {
		r := &rp{index: i}
		for r.key == nil {
			var secret [32]byte
			for j := range secret {
				secret[j] = byte(w.rng.Uint32())
			}
			r.key, _ = crypto.ToECDSA(secret[:]) // fails for numbers outside of the curve's order
		}
		r.node = [32]byte(crypto.Keccak256(crypto.FromECDSAPub(&r.key.PublicKey)[1:]))
		r.id = linkstate.IDOf(r.node)
		if _, taken := w.byID[r.id]; taken {
			return nil, fmt.Errorf("two RPs have the id %016x", r.id)
		}
		r.members = []linkstate.Members{{Group: group, Count: 1 + w.rng.Uint32N(50)}}
		w.byID[r.id] = i
		w.rps = append(w.rps, r)
	}
	w.connect()
	for i := range cfg.Ingress {
		r := w.rps[i*cfg.RPs/cfg.Ingress]
		r.publish = true
		w.ingress = append(w.ingress, r)
	}
	sources := min(cfg.Ingress, maxStreams)
	for i := range sources {
		w.streams = append(w.streams, &stream{source: w.ingress[i*cfg.Ingress/sources]})
		w.streams[i].source.source = true
	}
	return w, nil
}

// connect chooses neighbours by delay, as RPs do that measure it, one after the other.
func (w *world) connect() {
	links := make(map[[2]int32]bool)
	near, far := linkstate.Wanted(len(w.rps) - 1)
	for _, r := range w.rps {
		var candidates []linkstate.Candidate
		for _, o := range w.rps {
			if o != r && len(o.peers) < linkstate.MaxPeers {
				candidates = append(candidates, linkstate.Candidate{ID: o.id, RTT: 2 * w.under.delay(int(r.index), int(o.index))})
			}
		}
		for _, id := range linkstate.Choose(candidates, near, far, w.rng) {
			o := w.byID[id]
			if l := [2]int32{min(r.index, o), max(r.index, o)}; !links[l] {
				links[l] = true
				w.rps[l[0]].peers = append(w.rps[l[0]].peers, l[1])
				w.rps[l[1]].peers = append(w.rps[l[1]].peers, l[0])
			}
		}
	}
}

// at calls a function at a time.
func (w *world) at(t time.Duration, do func()) { w.queue.push(t, call).do = do }

// run lets time pass.
func (w *world) run(until time.Duration) {
	for len(w.queue.events) > 0 && w.queue.events[0].at <= until {
		e := w.queue.pop()
		w.now = e.at
		w.handle(e)
		w.queue.release(e)
	}
	w.now = until
}

func (w *world) clock() time.Time { return epoch0.Add(w.now) }

func (w *world) handle(e *event) {
	if e.kind == call {
		e.do()
		return
	}
	to := w.rps[e.to]
	if !to.alive {
		return
	}
	if e.kind == wake {
		if e.life == to.life && to.wakeAt == e.at {
			to.wakeAt = 0
			to.core.Tick(w.clock())
			w.perform(to)
		}
		return
	}
	from := w.rps[e.from]
	if w.blocked != nil && w.blocked(e.from, e.to) {
		return
	}
	switch e.kind {
	case hello:
		if e.life == key(from, to) {
			to.core.HeardHello(w.clock(), from.id, e.hello)
			w.perform(to)
		}
	case message:
		if e.life == key(from, to) {
			if err := to.core.Handle(w.clock(), from.id, e.message); err != nil {
				panic(fmt.Sprintf("honest rp %d broke the protocol: %v", e.from, err))
			}
			w.perform(to)
		}
	case data:
		w.receive(to, from, e)
	}
}

// perform does what the core of an RP wants.
func (w *world) perform(r *rp) {
	for _, a := range r.core.Actions() {
		switch a := a.(type) {
		case linkstate.SendHello:
			to := w.rps[w.byID[a.To]]
			w.bytes(r, to, helloBytes)
			if w.rng.Float64() >= w.cfg.HelloLoss {
				e := w.queue.push(w.now+w.jittered(r, to), hello)
				e.to, e.from, e.life, e.hello = to.index, r.index, key(r, to), a.Hello
			}
		case linkstate.AckGraft:
			w.message(r, linkstate.Send{To: a.To, Message: a.Message()})
		case linkstate.Send:
			w.message(r, a)
		case linkstate.Route:
			r.routes[a.Ingress] = &a
		case linkstate.RouteGone:
			delete(r.routes, a.Ingress)
		case linkstate.Serve:
			w.serve(r, a)
		case linkstate.MayPublish:
			r.mayAt = w.now
		case linkstate.NeighbourDown:
			to := w.rps[w.byID[a.ID]]
			if to.alive && w.now-to.upSince > 10*time.Second && (w.blocked == nil || !w.blocked(r.index, to.index)) {
				w.falseDowns++
			}
		}
	}
	if at := r.core.Deadline().Sub(epoch0); r.wakeAt == 0 || at < r.wakeAt {
		r.wakeAt = at
		e := w.queue.push(at, wake)
		e.to, e.life = r.index, r.life
	}
}

// message sends a message, behind those before.
func (w *world) message(r *rp, a linkstate.Send) {
	to := w.rps[w.byID[a.To]]
	w.bytes(r, to, w.size(a.Message))
	at := max(w.now+w.jittered(r, to), to.arrivals[r.index])
	if to.alive {
		to.arrivals[r.index] = at
	}
	e := w.queue.push(at, message)
	e.to, e.from, e.life, e.message = to.index, r.index, key(r, to), a.Message
}

// jittered is the time that a datagram takes.
func (w *world) jittered(a, b *rp) time.Duration {
	d := w.under.delay(int(a.index), int(b.index))
	return d + time.Duration(max(w.rng.NormFloat64()*w.cfg.Jitter, -0.5)*float64(d))
}

// Bytes of a datagram and of a message besides its RLP.
const (
	helloBytes   = 40 + 8 + 64  // IPv6, UDP, our header, which holds the hello
	messageBytes = 40 + 32 + 48 // IPv6, TCP with time stamps, RLPx frame
)

// size is the number of bytes of a message on the way.
func (w *world) size(m linkstate.Message) int {
	if a, ok := m.(*linkstate.Adverts); ok {
		n := messageBytes + 5
		for _, one := range a.Adverts {
			if w.sizes[one.Signed] == 0 {
				b, err := linkstate.Encode(&linkstate.Adverts{Adverts: []linkstate.Aged{one}})
				if err != nil {
					panic(err)
				}
				w.sizes[one.Signed] = len(b)
			}
			n += w.sizes[one.Signed]
		}
		return n
	}
	b, err := linkstate.Encode(m)
	if err != nil {
		panic(err)
	}
	return messageBytes + len(b)
}

// verify checks each advert once for all.
func (w *world) verify(s *linkstate.Signed) ([32]byte, error) {
	node, ok := w.sigs[s]
	if !ok {
		var err error
		if node, err = linkstate.Verify(s); err != nil {
			return node, err
		}
		w.sigs[s] = node
	}
	return node, nil
}

// start begins a life of an RP.
func (w *world) start(r *rp) {
	r.life++
	r.alive, r.upSince, r.wakeAt, r.mayAt = true, w.now, 0, 0
	for r.ingress = ids.Incarnation(w.rng.Uint32()); !linkstate.Belongs(r.id, r.ingress); {
		r.ingress = ids.Incarnation(w.rng.Uint32())
	}
	r.routes = make(map[ids.Incarnation]*linkstate.Route)
	r.windows = make([]window, len(w.streams))
	r.arrivals = make(map[int32]time.Duration)
	budget := w.cfg.Budget
	if budget == 0 {
		budget = w.cfg.RPs
	}
	r.core = linkstate.New(w.clock(), linkstate.Config{
		Self: r.id, Incarnation: r.ingress, Epoch: uint64(epoch0.Add(w.now).Unix()),
		Groups: []ids.Group{group}, Budget: budget, Mode: w.cfg.Mode, Alpha: w.cfg.Alpha,
		Sign:    func(a linkstate.Advert) (*linkstate.Signed, error) { return linkstate.Sign(a, r.key) },
		Verify:  w.verify,
		Allowed: func(node [32]byte) bool { return true },
		Marks:   func(ingress ids.Incarnation) []linkstate.Mark { return w.marks(r, ingress) },
		Rand:    rand.New(rand.NewPCG(w.cfg.Seed+uint64(r.index), uint64(r.life))),
	})
	r.core.SetMembers(w.clock(), r.members)
	r.core.SetPublishes(w.clock(), r.publish)
	w.perform(r)
	for _, p := range r.peers {
		w.link(r, w.rps[p])
	}
}

// link connects two RPs, which takes some round trips.
func (w *world) link(a, b *rp) {
	life := key(a, b)
	w.at(w.now+6*w.under.delay(int(a.index), int(b.index)), func() {
		if !a.alive || !b.alive || key(a, b) != life {
			return
		}
		for _, end := range [2][2]*rp{{a, b}, {b, a}} {
			end[0].core.LinkDown(w.clock(), end[1].id) // that of an earlier life
			end[0].arrivals[end[1].index] = w.now
			end[0].core.LinkUp(w.clock(), end[1].id)
			w.perform(end[0])
		}
	})
}

// deadConnection is how long the connection to a dead host lasts.
const deadConnection = 20 * time.Second

// kill is the death of a host: it falls silent.
func (w *world) kill(r *rp) {
	r.alive = false
	life := r.life
	w.at(w.now+deadConnection, func() {
		for _, p := range r.peers {
			if o := w.rps[p]; o.alive && r.life == life {
				o.core.LinkDown(w.clock(), r.id)
				w.perform(o)
			}
		}
	})
}
