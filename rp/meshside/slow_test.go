// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// An engine that is slow to make a change costs no link: LINK_HELLOs go on meanwhile.
func TestSlowEngine(t *testing.T) {
	for name, change := range map[string]func(p []*point){
		"a change of limits": func(p []*point) { go p[1].SetEgress(1000, 2000) },
		"a new neighbour": func(p []*point) { // a session, routes, and newest sequences
			n := p[1].net
			n.link(p[1], n.start(3, incarnationOf(3, 0)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newNetwork(t).chain(2)
				p[0].Admit(true) // the link is on a tree
				p[0].net.settle()
				p[1].engine.Changes()
				p[1].engine.takes.Store(int64(2 * time.Second))
				change(p)
				time.Sleep(20 * time.Second)
				p[1].engine.takes.Store(0)
				p[1].net.settle()
				require.NotEmpty(t, p[1].engine.Changes())
				for _, r := range p {
					require.Zero(t, r.Stats().Core.Downs, "at %d", r.name)
					require.Zero(t, r.Stats().LinksLost, "at %d", r.name)
				}
			})
		})
	}
}

// An RP whose engine hangs is dead to its neighbours after some time, and back when the engine is.
func TestHangingEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newNetwork(t).chain(2)
		p[0].Admit(true)
		p[0].net.settle()
		p[1].engine.takes.Store(int64(4 * engineTrust))
		go p[1].SetEgress(1000, 2000)
		time.Sleep(engineTrust)
		require.Zero(t, p[0].Stats().Core.Downs)
		within(t, time.Second, func() bool { return p[0].Stats().Core.Downs == 1 })
		time.Sleep(3*engineTrust - time.Second)
		p[1].engine.takes.Store(0)
		within(t, 10*time.Second, func() bool { return p[0].neighbour(2).State == Up })
	})
}
