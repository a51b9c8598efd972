// SPDX-License-Identifier: LGPL-3.0-or-later

package fanout

import (
	"errors"
	"slices"
	"time"
)

// Elements hands out elements of an array map, and takes them back into quarantine: programs
// that are running may still use them.
type Elements struct {
	next, end uint32
	free      []uint32
	retired   []retiredElement // oldest first
}

type retiredElement struct {
	element uint32
	at      time.Time
}

// NewElements returns the elements from first to below end, which are all unused.
func NewElements(first, end uint32) Elements { return Elements{next: first, end: end} }

// Left returns how many can be taken now.
func (s *Elements) Left() int { return int(s.end-s.next) + len(s.free) }

// Take returns an unused element. It is an error when none is left.
func (s *Elements) Take() (uint32, error) {
	if n := len(s.free); n > 0 {
		element := s.free[n-1]
		s.free = s.free[:n-1]
		return element, nil
	}
	if s.next == s.end {
		return 0, errors.New("no element of a BPF map is left")
	}
	s.next++
	return s.next - 1, nil
}

// GiveBack undoes Take: no program ever came to the elements.
func (s *Elements) GiveBack(elements ...uint32) { s.free = append(s.free, elements...) }

// Retire begins the quarantine of an element.
func (s *Elements) Retire(element uint32, now time.Time) {
	s.retired = append(s.retired, retiredElement{element, now})
}

// Retired returns the elements in quarantine, oldest first.
func (s *Elements) Retired() (elements []uint32) {
	for _, r := range s.retired {
		elements = append(elements, r.element)
	}
	return elements
}

// Recall takes an element out of quarantine for the owner that it had before.
func (s *Elements) Recall(element uint32) {
	s.retired = slices.DeleteFunc(s.retired, func(r retiredElement) bool { return r.element == element })
}

// Expire ends the quarantine of elements that had it long enough, and returns them.
func (s *Elements) Expire(now time.Time) (expired []uint32) {
	for len(s.retired) > 0 && now.Sub(s.retired[0].at) >= Quarantine {
		expired = append(expired, s.retired[0].element)
		s.retired = s.retired[1:]
	}
	s.free = append(s.free, expired...)
	return expired
}

// Adopt takes over the elements below next of another process; elements that are not used are
// as if retired just now.
func (s *Elements) Adopt(next uint32, used map[uint32]bool, now time.Time) {
	for element := s.next; element < next; element++ {
		if !used[element] {
			s.Retire(element, now)
		}
	}
	s.next = max(s.next, next)
}
