// SPDX-License-Identifier: LGPL-3.0-or-later

package datapath

// Survivor is an Engine whose datapath may go on without its process.
type Survivor interface {
	Engine

	// Outlives reports whether it does.
	Outlives() bool
}

// Claim gives an adopted session that matches to who asks for it: it goes on as it
// is, and does not expire any more. It reports false when there is none.
func (o *Orphans) Claim(match func(Session) bool) (Session, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for index, s := range o.sessions {
		if match(s) {
			delete(o.sessions, index)
			return s, true
		}
	}
	return Session{}, false
}
