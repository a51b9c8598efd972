// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"sync"
	"time"
)

// mail is what others want the goroutine of a connection to do. Who posts does not wait.
type mail struct {
	wake chan struct{} // has an element when there is something
	box  *mailbox
}

type mailbox struct {
	mu     sync.Mutex
	orders []func(now time.Time)
	closed bool
}

func newMail() mail { return mail{make(chan struct{}, 1), new(mailbox)} }

// post leaves an order, unless the connection has ended.
func (m mail) post(order func(now time.Time)) bool {
	m.box.mu.Lock()
	defer m.box.mu.Unlock()
	if m.box.closed {
		return false
	}
	m.box.orders = append(m.box.orders, order)
	select {
	case m.wake <- struct{}{}:
	default:
	}
	return true
}

// take returns the orders that wait.
func (m mail) take() []func(now time.Time) {
	m.box.mu.Lock()
	defer m.box.mu.Unlock()
	orders := m.box.orders
	m.box.orders = nil
	return orders
}

// close takes no more orders, and returns those that wait.
func (m mail) close() []func(now time.Time) {
	m.box.mu.Lock()
	m.box.closed = true
	m.box.mu.Unlock()
	return m.take()
}
