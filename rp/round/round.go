// SPDX-License-Identifier: LGPL-3.0-or-later

// Package round collects the answers of many to one request.
package round

import "time"

// Round is one request. Whoever takes it answers once.
type Round[P comparable] struct{ answers chan P }

// New returns a Round for at most n participants.
func New[P comparable](n int) Round[P] { return Round[P]{make(chan P, n)} }

// Answer notes the answer of p. It never blocks.
func (r Round[P]) Answer(p P) { r.answers <- p }

// Wait returns who of those asked has not answered when the time is over. When
// quit is closed it returns nobody.
func (r Round[P]) Wait(asked []P, timeout time.Duration, quit <-chan struct{}) (missing []P) {
	waiting := make(map[P]bool, len(asked))
	for _, p := range asked {
		waiting[p] = true
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for len(waiting) > 0 {
		select {
		case p := <-r.answers:
			delete(waiting, p)
		case <-timer.C:
			for _, p := range asked {
				if waiting[p] {
					missing = append(missing, p)
				}
			}
			return missing
		case <-quit:
			return nil
		}
	}
	return nil
}
