// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import "golang.org/x/sys/unix"

// line is one direction of a link: frames that arrive at in leave through out,
// in order, a fixed delay after the kernel received them. Because the due time
// counts from the kernel's timestamp, reading a frame late costs nothing as long
// as it is read before it is due.
//
// head and tail count slots since the start; slots head..tail-1 are accepted and
// wait, and the kernel fills from tail on.
type line struct {
	in, out    *ring
	delay      int64 // ns
	head, tail int
	due        [slotCount]int64 // ns of CLOCK_REALTIME
	batch      batch

	frames, bytes uint64
	cut, refused  uint64
	late          lateness
}

func newLine(in, out *ring, delay int64) *line {
	return &line{in: in, out: out, delay: delay}
}

// accept takes over the frames that the kernel has put into the ring.
func (l *line) accept() {
	for l.tail-l.head < slotCount {
		i := l.tail % slotCount
		if !l.in.filled(i) {
			return
		}
		l.due[i] = l.in.received(i) + l.delay
		l.tail++
	}
}

// next is when the oldest waiting frame is due.
func (l *line) next() (due int64, ok bool) {
	if l.head == l.tail {
		return 0, false
	}
	return l.due[l.head%slotCount], true
}

// forward sends the frames that are due at now. A frame that would wait longer
// than the delay saw the clock of the machine set back; it is sent as if it had
// arrived now.
func (l *line) forward(now int64) {
	for l.head != l.tail {
		end := l.head
		for end != l.tail && !l.batch.full() {
			i := end % slotCount
			if l.due[i] > now+l.delay {
				l.due[i] = now + l.delay
			}
			if l.due[i] > now {
				break
			}
			end++
			frame, ok := l.in.frame(i)
			if !ok {
				l.cut++
				continue
			}
			l.batch.add(frame)
			l.frames++
			l.bytes += uint64(len(frame))
			l.late.add(now - l.due[i])
		}
		if end == l.head {
			return
		}
		l.refused += l.batch.send(l.out.fd)
		for ; l.head != end; l.head++ {
			l.in.release(l.head % slotCount)
		}
	}
}

// clear empties the counters.
func (l *line) clear() {
	l.frames, l.bytes, l.cut, l.refused = 0, 0, 0, 0
	l.late = lateness{}
	l.in.overflows()
}

func realtime() int64 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_REALTIME, &ts)
	return ts.Nano()
}
