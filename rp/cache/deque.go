// SPDX-License-Identifier: LGPL-3.0-or-later

package cache

// deque is a queue that can be read anywhere, in a ring that grows by doubling.
type deque[T any] struct {
	ring []T // its length is a power of 2
	head int
	n    int
}

// at returns the i-th element, from 0.
func (d *deque[T]) at(i int) *T { return &d.ring[(d.head+i)&(len(d.ring)-1)] }

// insert puts v before the i-th element; those before or behind move, whichever are fewer.
func (d *deque[T]) insert(i int, v T) {
	if d.n == len(d.ring) {
		ring := make([]T, max(16, 2*d.n))
		for j := range d.n {
			ring[j] = *d.at(j)
		}
		d.ring, d.head = ring, 0
	}
	d.n++
	if i < d.n/2 {
		d.head = (d.head - 1) & (len(d.ring) - 1)
		for j := range i {
			*d.at(j) = *d.at(j + 1)
		}
		*d.at(i) = v
		return
	}
	for j := d.n - 1; j > i; j-- {
		*d.at(j) = *d.at(j - 1)
	}
	*d.at(i) = v
}

func (d *deque[T]) push(v T) { d.insert(d.n, v) }

func (d *deque[T]) pop() (v T) {
	first := d.at(0)
	v, *first = *first, v
	d.head = (d.head + 1) & (len(d.ring) - 1)
	d.n--
	return v
}
