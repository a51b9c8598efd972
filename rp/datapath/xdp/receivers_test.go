// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"pgregory.net/rapid"

	"github.com/ethmcast/mdcs/bpf"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/fanout"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/nexthop"
	"github.com/ethmcast/mdcs/rp/hostnet"
)

// Whatever sessions come, change, go, and whatever becomes of their ND entries, by whatever
// parts the BPF maps follow: in the end each group reaches those of its sessions
// that have a next hop, once, and the others count as missing.
func TestXDPFollowProperty(t *testing.T) {
	e := newBare(t, datapath.Config{Incarnation: testOwn})
	e.recirc = &recirculation{in: 1}
	e.devices[0] = &device{name: "lo", index: 1}
	t.Cleanup(func() { e.devices, e.recirc = [MaxDevices]*device{}, nil }) // before shut
	entry := func(i int) hostnet.Entry {
		return hostnet.Entry{Link: 1, Addr: netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i))}
	}
	groups := []ids.Group{1, 2, 3}

	rapid.Check(t, func(t *rapid.T) {
		tbl := e.table
		w := e.walker(t)
		check := func() {
			for _, g := range tbl.groups {
				var want, absent []ids.Session
				for index, s := range tbl.sessions {
					if s.Silent || !slices.Contains(s.Groups, g.id) {
						continue
					}
					if _, known := e.paths.MAC(s.at.Path()); known {
						want = append(want, index)
					} else {
						absent = append(absent, index)
					}
				}
				got := w.From(atomic.LoadUint64(e.objects.Memory.Nexts.At(g.peers.Anchor())) & 0xffffffff)
				require.ElementsMatch(t, want, got, "group %d", g.id)
				require.ElementsMatch(t, absent, slices.Collect(maps.Keys(g.absent)), "group %d", g.id)
				require.Equal(t, uint64(len(absent)), atomic.LoadUint64(e.objects.Memory.Nexts.At(g.peers.Anchor()))>>32&0x7fffffff)
			}
			for index := ids.Session(1); index <= 60; index++ {
				s := tbl.sessions[index]
				known := false
				if s != nil {
					_, known = e.paths.MAC(s.at.Path())
				}
				var echo bpf.RpEcho
				err := e.objects.Echoes.Lookup(index, &echo)
				require.Equal(t, s != nil && known && s.Publish, err == nil, "ECHO of session %d", index)
			}
		}
		for range rapid.IntRange(1, 8).Draw(t, "changes") {
			var some []ids.Session
			for range rapid.IntRange(0, 20).Draw(t, "sessions") {
				index := ids.Session(rapid.Uint32Range(1, 60).Draw(t, "session"))
				some = append(some, index)
				if rapid.IntRange(0, 3).Draw(t, "goes") == 0 {
					tbl.remove(index)
					continue
				}
				at := entry(rapid.IntRange(1, 9).Draw(t, "host"))
				s := &session{at: nexthop.NewEndpoint(index, netip.MustParseAddr("2001:db8::99"), at), Session: datapath.Session{
					Index: index, Role: datapath.Peer, Addr: netip.MustParseAddrPort("[2001:db8::99]:1"),
					Groups:  distinct(rapid.SliceOf(rapid.SampledFrom(groups)).Draw(t, "groups")),
					Publish: rapid.Bool().Draw(t, "publish"), Silent: rapid.Bool().Draw(t, "silent"),
				}}
				s.ReceiveKey[0] = rapid.Byte().Draw(t, "key")
				require.NoError(t, tbl.add(s))
			}
			for range rapid.IntRange(0, 6).Draw(t, "events") {
				state := hostnet.EntryState{State: netlink.NUD_REACHABLE, MAC: mac{2, rapid.Byte().Draw(t, "mac")}}
				if rapid.Bool().Draw(t, "fails") {
					state = hostnet.EntryState{State: netlink.NUD_FAILED}
				}
				e.paths.Learn(entry(rapid.IntRange(1, 9).Draw(t, "entry")), state)
			}
			tbl.all = tbl.all || rapid.IntRange(0, 9).Draw(t, "all") == 0
			if rapid.Bool().Draw(t, "the change first") {
				require.NoError(t, e.follow(some))
			}
			for turns := 0; tbl.untidy(); turns++ {
				require.Less(t, turns, 100)
				require.NoError(t, e.follow(tbl.someTouched(rapid.IntRange(1, 3).Draw(t, "slices"))))
			}
			check()
			late := time.Now().Add(fanout.Quarantine)
			e.fanout.Expire(late)
			tbl.expire(late)
		}
	})
}
