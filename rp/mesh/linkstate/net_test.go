// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"crypto/ecdsa"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/mesh/tree"
)

var t0 = time.Unix(1_700_000_000, 0)

const (
	step   = 5 * time.Millisecond // of the network's time
	groupA = 7
	groupB = 9
)

// keys of RPs 1, 2, ... are always the same, in the order of their IDs.
var keys = func() []*ecdsa.PrivateKey {
	var all []*ecdsa.PrivateKey
	for i := range byte(16) {
		key, err := crypto.ToECDSA(append(make([]byte, 31), i+1))
		if err != nil {
			panic(err)
		}
		all = append(all, key)
	}
	slices.SortFunc(all, func(a, b *ecdsa.PrivateKey) int { return slices.Compare(nodeOf(a), nodeOf(b)) })
	return all
}()

func nodeOf(key *ecdsa.PrivateKey) []byte {
	return crypto.Keccak256(crypto.FromECDSAPub(&key.PublicKey)[1:])
}

var rps = func() (all []ID) {
	for _, key := range keys {
		all = append(all, IDOf([32]byte(nodeOf(key))))
	}
	return all
}()

// rp is the ID of RP n, from 1 on.
func rp(n int) ID { return rps[n-1] }

func number(id ID) int { return slices.Index(rps, id) + 1 }

// incarnation is the one of RP n in its life-th life.
func incarnation(n, life int) ids.Incarnation {
	if i, ok := incarnations.Load([2]int{n, life}); ok {
		return i.(ids.Incarnation)
	}
	for i := ids.Incarnation(100*n+life) << 16; ; i++ {
		if Belongs(rp(n), i) {
			incarnations.Store([2]int{n, life}, i)
			return i
		}
	}
}

var incarnations sync.Map // that were found

// config is that of RP n in its life-th life.
func config(n, life int) Config {
	return Config{
		Self: rp(n), Incarnation: incarnation(n, life), Epoch: uint64(1000 + life), Groups: []ids.Group{groupA, groupB}, Budget: 8, Mode: tree.Light,
		Sign:    func(a Advert) (*Signed, error) { return Sign(a, keys[n-1]) },
		Verify:  Verify,
		Allowed: func([32]byte) bool { return true },
		Marks:   func(ingress ids.Incarnation) []Mark { return []Mark{{groupA, uint64(ingress)}} },
		Rand:    rand.New(rand.NewPCG(uint64(n), uint64(life))),
	}
}

// network connects cores in virtual time. Messages are encoded and decoded.
type network struct {
	t     require.TestingT
	now   time.Time
	cores map[int]*Core
	lives map[int]int
	delay map[[2]int]time.Duration // one way, lower number first
	cut   map[[2]int]bool          // black hole: the connection does not notice
	left  map[int]Config           // of RPs whose process died, and whose datapath goes on
	way   []parcel
	edit  func(from, to int, m Message) Message // of what is sent, nil to lose it; nil for nothing
	log   map[int][]Action                      // of each RP, without hellos
}

type parcel struct {
	at       time.Time
	from, to int
	life     int // of both ends together
	hello    *Hello
	code     uint64
	payload  []byte
}

func newNetwork(t require.TestingT) *network {
	return &network{
		t: t, now: t0, cores: make(map[int]*Core), lives: make(map[int]int), log: make(map[int][]Action),
		delay: make(map[[2]int]time.Duration), cut: make(map[[2]int]bool),
		left: make(map[int]Config),
	}
}

func pair(a, b int) [2]int { return [2]int{min(a, b), max(a, b)} }

// start begins a life of an RP, with links to those that live.
func (w *network) start(n int) *Core {
	w.lives[n]++
	delete(w.left, n)
	w.cores[n] = New(w.now, config(n, w.lives[n]))
	for l := range w.delay {
		if l[0] == n || l[1] == n {
			w.connect(l[0], l[1])
		}
	}
	return w.cores[n]
}

// link gives two RPs a connection of a delay.
func (w *network) link(a, b int, delay time.Duration) {
	w.delay[pair(a, b)] = delay
	w.connect(a, b)
}

func (w *network) connect(a, b int) {
	if w.cores[a] == nil || w.cores[b] == nil {
		return
	}
	for _, end := range [2][2]int{{a, b}, {b, a}} {
		w.cores[end[0]].LinkDown(w.now, rp(end[1]))
		w.cores[end[0]].LinkUp(w.now, rp(end[1]))
		w.perform(end[0])
	}
}

func (w *network) unlink(a, b int) {
	delete(w.delay, pair(a, b))
	for _, end := range [2][2]int{{a, b}, {b, a}} {
		if c := w.cores[end[0]]; c != nil {
			c.LinkDown(w.now, rp(end[1]))
			w.perform(end[0])
		}
	}
}

// kill makes an RP silent.
func (w *network) kill(n int) { delete(w.cores, n) }

// awayTime is how long neighbours wait for one whose datapath goes on.
const awayTime = 15 * time.Second

// detach has the process of an RP die, while its datapath goes on. Its connections end:
// their messages do not arrive any more.
func (w *network) detach(n int) {
	w.left[n] = w.cores[n].cfg
	w.kill(n)
	w.way = slices.DeleteFunc(w.way, func(p parcel) bool { return p.from == n && p.hello == nil })
	w.eachLink(n, func(o int) {
		if w.cores[o].LinkAway(w.now, rp(n), w.now.Add(awayTime)).IsZero() {
			w.cores[o].LinkDown(w.now, rp(n))
		}
		w.perform(o)
	})
}

// resume starts the process of an RP again, as the same incarnation.
func (w *network) resume(n int) *Core {
	w.lives[n]++
	cfg := config(n, w.lives[n])
	cfg.Incarnation = w.left[n].Incarnation
	w.eachLink(n, func(o int) { cfg.Expect = append(cfg.Expect, rp(o)) })
	delete(w.left, n)
	c := New(w.now, cfg)
	w.cores[n] = c
	w.eachLink(n, func(o int) {
		c.LinkUp(w.now, rp(o))
		w.perform(n)
		w.cores[o].LinkUp(w.now, rp(n))
		w.perform(o)
	})
	return c
}

// eachLink calls a function for each RP that lives and is linked to one.
func (w *network) eachLink(n int, f func(other int)) {
	for _, o := range slices.Sorted(maps.Keys(w.cores)) {
		if _, linked := w.delay[pair(n, o)]; linked && o != n {
			f(o)
		}
	}
}

func (w *network) perform(n int) {
	w.check(w.cores[n])
	for _, a := range w.cores[n].Actions() {
		p := parcel{from: n}
		if ack, ok := a.(AckGraft); ok {
			w.log[n] = append(w.log[n], a)
			a = Send{ack.To, ack.Message()}
		}
		switch a := a.(type) {
		case SendHello:
			p.to, p.hello = number(a.To), &a.Hello
		case Send:
			if w.edit != nil {
				if a.Message = w.edit(n, number(a.To), a.Message); a.Message == nil {
					continue
				}
			}
			b, err := Encode(a.Message)
			require.NoError(w.t, err)
			p.to, p.code, p.payload = number(a.To), a.Message.Code(), b
			w.log[n] = append(w.log[n], a)
		default:
			w.log[n] = append(w.log[n], a)
			continue
		}
		p.at, p.life = w.now.Add(w.delay[pair(n, p.to)]), w.lives[n]+w.lives[p.to]
		if !w.cut[pair(n, p.to)] {
			w.way = append(w.way, p)
		}
	}
}

// check has the routes of an RP be with neighbours that are up.
func (w *network) check(c *Core) {
	for _, r := range c.order {
		require.True(w.t, r.parent == 0 || c.alive(r.parent))
		for _, p := range r.old {
			require.True(w.t, c.alive(p.id))
		}
		for id := range r.children {
			require.True(w.t, c.alive(id))
		}
	}
}

// run lets time pass.
func (w *network) run(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); {
		next := end
		for _, p := range w.way {
			if p.at.Before(next) {
				next = p.at
			}
		}
		for _, c := range w.cores {
			if at := c.Deadline(); at.Before(next) {
				next = at
			}
		}
		if w.now = w.now.Add(max(next.Sub(w.now), step).Round(step)); w.now.After(end) {
			w.now = end
		}
		arrived := slices.DeleteFunc(slices.Clone(w.way), func(p parcel) bool { return p.at.After(w.now) })
		w.way = slices.DeleteFunc(w.way, func(p parcel) bool { return !p.at.After(w.now) })
		for _, p := range arrived {
			c := w.cores[p.to]
			if _, linked := w.delay[pair(p.from, p.to)]; c == nil || !linked || p.life != w.lives[p.from]+w.lives[p.to] {
				continue
			}
			if p.hello != nil {
				h, err := ParseHello(p.hello.Append(nil))
				require.NoError(w.t, err)
				c.HeardHello(w.now, rp(p.from), h)
			} else {
				m, err := Decode(p.code, p.payload)
				require.NoError(w.t, err)
				require.NoError(w.t, c.Handle(w.now, rp(p.from), m))
			}
			w.perform(p.to)
		}
		for _, n := range slices.Sorted(maps.Keys(w.cores)) {
			if c := w.cores[n]; !w.now.Before(c.Deadline()) {
				c.Tick(w.now)
				w.perform(n)
			}
		}
	}
}

// hear lets time pass until an RP just heard another one.
func (w *network) hear(n, from int) {
	for w.run(step); w.cores[n].neighbour(rp(from)).heard != w.now; {
		w.run(step)
	}
}

// took returns what an RP wanted, of one type, since the last call of forget.
func took[T Action](w *network, n int) (all []T) {
	for _, a := range w.log[n] {
		if a, ok := a.(T); ok {
			all = append(all, a)
		}
	}
	return all
}

// sent returns the messages of one type that an RP sent to another.
func sent[T Message](w *network, from, to int) (all []T) {
	for _, a := range took[Send](w, from) {
		if m, ok := a.Message.(T); ok && a.To == rp(to) {
			all = append(all, m)
		}
	}
	return all
}

func (w *network) forget() { clear(w.log) }

// route is the one that the datapath of an RP has.
func (w *network) route(n int, ingress ids.Incarnation) Route {
	if r := w.cores[n].routes[ingress]; r != nil && r.told != nil {
		return *r.told
	}
	return Route{}
}

// square is a mesh of 1 to 4, where 1 publishes: 4 hangs on 2, and 3 is its backup.
//
//	1 --10 ms-- 2 --10 ms-- 4
//	 `--15 ms-- 3 --15 ms--'
func square(t *testing.T) *network {
	w := newNetwork(t)
	for n := range 4 {
		w.start(n + 1)
	}
	w.cores[1].SetPublishes(w.now, true)
	w.link(1, 2, 10*time.Millisecond)
	w.link(2, 4, 10*time.Millisecond)
	w.link(1, 3, 15*time.Millisecond)
	w.link(3, 4, 15*time.Millisecond)
	w.run(8 * time.Second)
	w.forget()
	return w
}

var ingress1 = incarnation(1, 1)
