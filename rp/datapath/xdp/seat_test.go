// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/objects"
)

// seats are labs with loaded programs that one case of a table after another uses: most of the
// time of a case would go into both. Each case has an engine of its own, on BPF maps that are
// as new.
type seats struct {
	t    *testing.T // of all cases
	free []*seat
}

type seat struct {
	lab    *lab // nil: none is needed
	loaded map[string]*objects.Objects
}

func newSeats(t *testing.T) *seats {
	needKernel(t)
	return &seats{t: t}
}

// subject returns an engine with one device in front of one host, until the end of a test.
func (s *seats) subject(t *testing.T, cfg datapath.Config, quiet time.Duration) *subject {
	if len(s.free) == 0 {
		added := newSeat(s.t)
		added.lab = newLab(s.t, 1)
		// The kernel begins to stamp arrivals some time after the first socket asks for it, and ends
		// with the last one. Without stamps the order of arrivals is unknown.
		added.lab.listen(added.lab.hosts[0], netip.AddrPortFrom(added.lab.hostAddr(0), 39999))
		s.free = append(s.free, added)
	}
	used := s.free[0]
	s.free = s.free[1:]
	t.Cleanup(func() { s.free = append(s.free, used) }) // after the engine has ended
	l := *used.lab
	l.t = t
	cfg.Addr = netip.AddrPortFrom(l.rpAddr(0), 30500)
	return newSubjectWith(&l, cfg, Options{Quiet: quiet, load: used.load})
}

// newSeat returns a seat without lab and programs.
func newSeat(t testing.TB) *seat {
	s := &seat{loaded: make(map[string]*objects.Objects)}
	t.Cleanup(func() {
		for _, o := range s.loaded {
			o.Close()
		}
	})
	return s
}

// load loads programs with these options, or takes them again.
func (s *seat) load(opt objects.Options) (*objects.Objects, error) {
	key := fmt.Sprint(opt.Addr, opt.Netns, opt.Incarnation, opt.HandleKey, opt.Quiet, opt.Cache, opt.Hello)
	if o := s.loaded[key]; o != nil {
		return o, o.Reset(opt)
	}
	o, err := objects.Load(opt)
	if err == nil {
		s.loaded[key] = o
	}
	return o, err
}

// After a case, the BPF maps are as new.
func TestXDPSeatIsAsNew(t *testing.T) {
	s := newSeats(t)
	var state [][]byte
	for i := range 3 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			subject := s.subject(t, datapath.Config{Incarnation: testOwn, Cache: func(datapath.Record) {}}, -1)
			e := subject.Engine.(*Engine)
			fresh := e.state(t)
			if i == 0 {
				state = fresh
			}
			require.Equal(t, state, fresh)
			require.Zero(t, e.objects.ReadVerdicts())
			c := &crowd{subject: subject, sessions: crowdSessions(subject.lab, 20, func(int) int { return 0 })}
			require.NoError(t, c.Apply(c.change()))
			y := c.tally()
			for range 10 {
				c.publish(100)
			}
			y.complete(c.sessions, 1, 10)
			require.NotEqual(t, state, e.state(t))
		})
	}
}
