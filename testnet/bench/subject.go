// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"errors"
	"fmt"
	"slices"

	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/socket"
	"github.com/ethmcast/mdcs/rp/datapath/xdp"
	"github.com/ethmcast/mdcs/testnet/bench/bpf"
)

// Names of what can be measured.
const (
	XDP      = "xdp"      // the replication point's engine in the kernel
	Socket   = "socket"   // the replication point's engine in user space
	Bare     = "bare"     // broadcast by XDP, without checks and tags
	TC       = "tc"       // clones by tc, without checks and tags
	Sendmmsg = "sendmmsg" // batches from user space, without checks and tags
)

// Engines are all names in the order of the tables.
func Engines() []string { return []string{XDP, Socket, Bare, TC, Sendmmsg} }

// subject copies each datagram that arrives at rpAddr to its subscribers.
type subject interface {
	// resize makes subscribers 1 to n those of the subject; until now they were
	// 1 to old.
	resize(old, n int) error
	close() error
}

// newSubject starts what a lane is named after at its replication point.
func newSubject(l *lane) (subject, error) {
	switch l.name {
	case XDP:
		return newEngine(l, func() (datapath.Engine, error) {
			return xdp.Attach(engineConfig(), xdp.Options{Devices: []string{rpLink, floodLink}})
		})
	case Socket:
		return newEngine(l, func() (datapath.Engine, error) { return socket.Listen(engineConfig()) })
	case Bare:
		return newBare(l)
	case TC:
		return newTC(l)
	case Sendmmsg:
		return newSendmmsg(l)
	}
	return nil, fmt.Errorf("no engine %q", l.name)
}

// engine is an engine of the replication point.
type engine struct{ datapath.Engine }

func newEngine(l *lane, open func() (datapath.Engine, error)) (subject, error) {
	e := new(engine)
	err := l.rp.Do(func() (err error) {
		e.Engine, err = open()
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := e.Apply(foundation()); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

func (e *engine) resize(old, n int) error {
	if n < old {
		return e.remove(n+1, old)
	}
	return e.add(old+1, n)
}

// add makes the subscribers from first to last sessions, in one change.
func (e *engine) add(first, last int) error {
	var c datapath.Change
	for i := first; i <= last; i++ {
		c.Add = append(c.Add, subscriberSession(i))
	}
	return e.Apply(c)
}

func (e *engine) remove(first, last int) error {
	var c datapath.Change
	for i := first; i <= last; i++ {
		c.Remove = append(c.Remove, subscriberIndex(i))
	}
	return e.Apply(c)
}

func (e *engine) close() error { return e.Close() }

// replica is subscriber i for the programs without tags.
func replica(i int) (r bpf.BareReplica) {
	to := subscriberAddr(i)
	addr := to.Addr().As16()
	for w := range r.Addr.Word {
		r.Addr.Word[w] = native32(addr[4*w:])
	}
	port := bigEndian16(to.Port())
	r.DstMac, r.SrcMac = lanMAC, rpMAC
	r.Port = native16(port)
	r.Sum = fold(sum(slices.Concat(addr[:], port)))
	return r
}
