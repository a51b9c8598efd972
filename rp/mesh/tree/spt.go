// SPDX-License-Identifier: LGPL-3.0-or-later

package tree

// SPT are the shortest paths from one root. The parent of a node is, of the
// neighbours on a shortest path, the one with the lowest id.
type SPT struct {
	root   int32
	dist   []uint32 // by slot
	parent []int32

	queue distances // scratch
	state []uint8
	moved []int32
	count int // of moved, the last time
}

// NewSPT returns the shortest paths of a committed graph.
func NewSPT(t *Topology, root int) *SPT {
	s := &SPT{root: int32(root)}
	s.grow(t)
	s.queue = append(s.queue, distance{0, int32(root)})
	s.settle(t)
	for v := range s.parent {
		s.adopt(t, int32(v))
	}
	s.count, s.moved = len(s.moved), s.moved[:0]
	return s
}

// Moved returns how many nodes the last Update, or NewSPT, gave another distance.
func (s *SPT) Moved() int { return s.count }

// Reached reports whether a path leads to a node.
func (s *SPT) Reached(slot int) bool { return slot < len(s.dist) && s.dist[slot] != unreached }

// Distance returns the cost of the shortest path to a node that is reached.
func (s *SPT) Distance(slot int) uint32 { return s.dist[slot] }

func (s *SPT) grow(t *Topology) {
	for len(s.dist) < t.Len() {
		s.dist = append(s.dist, unreached)
		s.parent = append(s.parent, None)
		s.state = append(s.state, 0)
	}
}

// States of a node during Update.
const (
	unknown uint8 = iota
	kept          // its path holds no link that became worse
	cut           // it does
)

// Update repairs the paths after a Commit and reports whether any changed. The idea
// is that of Ramalingam and Reps (1996): only nodes behind a worse link lose their
// distance, and a better link is followed as far as it helps.
func (s *SPT) Update(t *Topology, changes Changes) bool {
	s.grow(t)
	worse := false
	for _, c := range changes {
		if c.old == 0 || (c.new != 0 && c.new < c.old) {
			continue
		}
		for _, end := range [2][2]int32{{c.a, c.b}, {c.b, c.a}} {
			if s.parent[end[1]] == end[0] {
				s.state[end[1]] = cut
				worse = true
			}
		}
	}
	if worse {
		s.state[s.root] = kept
		for v := range s.state {
			s.trace(int32(v))
		}
		for v, state := range s.state {
			if state == cut {
				s.dist[v] = unreached
				s.moved = append(s.moved, int32(v))
			}
		}
		for _, v := range s.moved {
			best := uint32(unreached)
			for _, e := range t.adj[v] {
				if d := s.dist[e.to]; d != unreached {
					best = min(best, d+e.cost)
				}
			}
			if best != unreached {
				s.queue.push(distance{best, v})
			}
		}
		clear(s.state)
	}
	for _, c := range changes {
		if cost := t.Cost(int(c.a), int(c.b)); cost != 0 {
			s.better(c.a, c.b, cost)
			s.better(c.b, c.a, cost)
		}
	}
	s.settle(t)
	changed := len(s.moved) > 0
	for _, v := range s.moved {
		s.adopt(t, v)
		for _, e := range t.adj[v] {
			s.adopt(t, e.to)
		}
	}
	for _, c := range changes {
		changed = s.adopt(t, c.a) || changed
		changed = s.adopt(t, c.b) || changed
	}
	s.count, s.moved = len(s.moved), s.moved[:0]
	return changed
}

// trace finds out whether a node is cut, by its nearest ancestor of which that is known.
func (s *SPT) trace(v int32) {
	top := v
	for s.state[top] == unknown && s.parent[top] != None {
		top = s.parent[top]
	}
	state := s.state[top]
	if state == unknown {
		state = kept // not reached before
	}
	for s.state[v] == unknown {
		s.state[v] = state
		if s.parent[v] == None {
			return
		}
		v = s.parent[v]
	}
}

func (s *SPT) better(from, to int32, cost uint32) {
	if d := s.dist[from]; d != unreached && d+cost < s.dist[to] {
		s.queue.push(distance{d + cost, to})
	}
}

// settle is Dijkstra's algorithm from what is in the queue.
func (s *SPT) settle(t *Topology) {
	for len(s.queue) > 0 {
		at := s.queue.pop()
		if at.dist >= s.dist[at.slot] {
			continue
		}
		s.dist[at.slot] = at.dist
		s.moved = append(s.moved, at.slot)
		for _, e := range t.adj[at.slot] {
			s.better(at.slot, e.to, e.cost)
		}
	}
}

// adopt chooses the parent of a node and reports whether that is another one.
func (s *SPT) adopt(t *Topology, v int32) bool {
	parent := int32(None)
	if v != s.root && s.dist[v] != unreached {
		for _, e := range t.adj[v] {
			if d := s.dist[e.to]; d != unreached && d+e.cost == s.dist[v] {
				parent = e.to
				break
			}
		}
	}
	changed := s.parent[v] != parent
	s.parent[v] = parent
	return changed
}

type distance struct {
	dist uint32
	slot int32
}

// distances is a binary heap. The order among equals does not matter: distances
// are unique, and parents are chosen by id.
type distances []distance

func (q *distances) push(d distance) {
	h := append(*q, d)
	*q = h
	for i := len(h) - 1; i > 0; {
		up := (i - 1) / 2
		if h[up].dist <= h[i].dist {
			return
		}
		h[up], h[i] = h[i], h[up]
		i = up
	}
}

func (q *distances) pop() distance {
	h := *q
	first, last := h[0], len(h)-1
	h[0] = h[last]
	h = h[:last]
	*q = h
	for i := 0; ; {
		next := 2*i + 1
		if next+1 < last && h[next+1].dist < h[next].dist {
			next++
		}
		if next >= last || h[i].dist <= h[next].dist {
			return first
		}
		h[i], h[next] = h[next], h[i]
		i = next
	}
}
