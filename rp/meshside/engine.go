// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"time"

	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
)

// engineTrust is for how long LINK_HELLOs leave while the engine does not answer. Its longest work
// at once takes less: after that neighbours turn away, as from any RP that is dead.
const engineTrust = 6 * time.Second

// await waits until the engine has done what may take it long, and sends LINK_HELLOs meanwhile: an RP
// whose engine makes a large change is not dead to its neighbours.
func (s *Server) await(work func()) {
	if s.core == nil { // there are no links before Start is over
		work()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		work()
	}()
	ticker := time.NewTicker(linkstate.TreeInterval)
	defer ticker.Stop()
	for began := time.Now(); ; {
		select {
		case <-done:
			s.now = time.Now()
			return
		case <-ticker.C:
		}
		if s.now = time.Now(); s.now.Sub(began) > engineTrust {
			continue
		}
		for _, h := range s.core.Hellos(s.now) {
			s.sendHello(h)
		}
	}
}

// apply has the engine make a change.
func (s *Server) apply(c datapath.Change) (err error) {
	s.await(func() { err = s.cfg.Engine.Apply(c) })
	return err
}

func (s *Server) sendHello(h linkstate.SendHello) {
	l := s.links[h.To]
	if l == nil {
		return
	}
	if err := s.cfg.Engine.Hello(l.index, [wire.HelloSize]byte(h.Hello.Append(nil))); err != nil {
		l.log.Debug("hello not sent", "err", err) // the next one may be
	}
}
