// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"testing"
	"time"

	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/datapathtest"
)

// paths are the two ways that a datagram takes through the kernel.
var paths = map[string]time.Duration{
	"inline": time.Nanosecond, // nothing is ever in flight in these tests
	"queued": -1,
}

func TestXDPTable(t *testing.T) {
	for name, quiet := range paths {
		t.Run(name, func(t *testing.T) {
			s := newSeats(t)
			datapathtest.Run(t, func(t *testing.T, cfg datapath.Config) datapathtest.Subject {
				return s.subject(t, cfg, quiet)
			})
		})
	}
}

// TestXDPChannels runs the tests of channels.
func TestXDPChannels(t *testing.T) {
	for name, quiet := range paths {
		t.Run(name, func(t *testing.T) {
			s := newSeats(t)
			datapathtest.RunChannels(t, func(t *testing.T, cfg datapath.Config) datapathtest.Subject {
				return newChannelSubject(s.subject(t, cfg, quiet))
			})
		})
	}
}

// TestXDPSites runs the tests of the sites' shares.
func TestXDPSites(t *testing.T) {
	datapathtest.RunSites(t, func(t *testing.T, cfg datapath.Config) datapathtest.SitesSubject {
		return newXDPSubject(t, cfg, -1)
	})
}

func TestXDPGolden(t *testing.T) {
	for name, quiet := range paths {
		t.Run(name, func(t *testing.T) {
			s := newSeats(t)
			datapathtest.Golden(t, func(t *testing.T, cfg datapath.Config) datapathtest.Subject {
				return s.subject(t, cfg, quiet)
			})
		})
	}
}

// The engine does with each of 10,000 random and hostile packets what the one does
// that defines it.
func TestXDPDiffersNowhereFromSocket(t *testing.T) {
	n := 10_000
	if testing.Short() {
		n = 1000
	}
	l := newLab(t, 1)
	datapathtest.Differ(t,
		func(_ *testing.T, cfg datapath.Config) datapathtest.Subject {
			return newChannelSubject(newSocketSubject(l, cfg))
		},
		func(_ *testing.T, cfg datapath.Config) datapathtest.Subject {
			return newChannelSubject(newSubjectAt(l, cfg, Options{}))
		},
		n, uint64(time.Now().UnixNano()))
}
