// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import "math"

// never is the due time of nothing.
const never = math.MaxInt64

// line is one direction of a link: frames that arrive at in leave through out.
// Because the due time counts from the kernel's timestamp, reading a frame late
// costs nothing as long as it is read before it is due.
//
// Slots and places in the queue are counted since the start.
type line struct {
	in, out *ring
	params  Params
	shaper  shaper
	queue   []waiting // a circle as long as the ring
	head    uint      // place of the oldest frame that waits
	tail    uint      // place after the youngest one
	slot    uint      // that the kernel fills next
	count   Direction // without LostRing
	pairs   *pairs    // nil: not asked for
}

// waiting is a frame that stays in its slot until it is due.
type waiting struct {
	due    int64 // ns
	slot   uint
	length int // bytes
	class  Class
}

func newLine(in, out *ring, params Params, s shaper) *line {
	return &line{in: in, out: out, params: params, shaper: s, queue: make([]waiting, in.slots)}
}

func (l *line) at(place uint) *waiting { return &l.queue[place%uint(len(l.queue))] }

// full reports that the next slot still has a frame that waits.
func (l *line) full() bool {
	return l.head != l.tail && l.slot-l.at(l.head).slot == uint(len(l.queue))
}

// accept takes over the frames that the kernel has put into the ring and returns
// how many there were. now is a time, in ns, and origin where its clock is zero
// in ns of CLOCK_REALTIME, the clock of the kernel's timestamps.
func (l *line) accept(ports *Ports, now, origin int64) (n int) {
	for ; !l.full() && l.in.filled(l.slot); n++ {
		l.admit(ports, now, origin)
		l.slot++
	}
	return n
}

func (l *line) admit(ports *Ports, now, origin int64) {
	frame, length := l.in.frame(l.slot)
	if len(frame) < length {
		l.count.LostCut.add(length)
		l.in.release(l.slot)
		return
	}
	// A timestamp far ahead is one from before the machine's clock was set back.
	arrival := min(l.in.received(l.slot)-origin, now+int64(granularity))
	class := ports.classify(frame)
	due, f := l.shaper.admit(&l.params, class, length, arrival)
	switch f {
	case kept:
		if class == Control && l.pairs != nil {
			l.pairs.add(frame, length)
		}
		*l.at(l.tail) = waiting{due: due, slot: l.slot, length: length, class: class}
		l.tail++
		return
	case lostBlackhole:
		l.count.LostBlackhole.add(length)
	case lostRandom:
		l.count.LostRandom.add(length)
	case lostQueue:
		l.count.LostQueue.add(length)
	}
	l.in.release(l.slot)
}

// due is when the oldest waiting frame is due, in ns, or never.
func (l *line) due() int64 {
	if l.head == l.tail {
		return never
	}
	return l.at(l.head).due
}

// forward sends at most one batch of the frames that are due at now or within
// early ns, and returns how many there were.
func (l *line) forward(b *batch, late *lateness, now, early int64) (n int) {
	end := l.head
	for end != l.tail && !b.full() && l.at(end).due <= now+early {
		frame, _ := l.in.frame(l.at(end).slot)
		b.add(frame)
		end++
	}
	b.send(l.out.fd)
	for ; l.head != end; l.head++ {
		f := l.at(l.head)
		switch {
		case !b.refused[n]:
			l.count.Classes[f.class].add(f.length)
			late.add(now - f.due)
		case l.params.Blackhole:
			l.count.LostBlackhole.add(f.length)
		default:
			l.count.LostRefused.add(f.length)
		}
		l.in.release(f.slot)
		n++
	}
	return n
}
