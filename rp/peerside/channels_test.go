// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/membership"
)

const groupPort = 30502

// Peers in 2001:db8::/64 are behind interface 3, the others behind interface 4.
var (
	neighbour = netip.MustParseAddr("2001:db8::8")
	elsewhere = netip.MustParseAddr("2001:db8:0:1::7")
)

func newChannelRig(t *testing.T) *rig {
	r := newRig(t, membership.Limits{Probes: 3 * proto.MaxProbes, ProbeWindow: time.Hour})
	r.cfg.Status.GroupPort = groupPort
	r.cfg.Link = func(peer netip.Addr) (string, error) {
		if netip.MustParsePrefix("2001:db8::/64").Contains(peer) {
			return "3", nil
		}
		return "4", nil
	}
	return r
}

// wish sends a Join in mode ssm and proves the endpoint.
func (r *rig) wish(p *peer) {
	p.t.Helper()
	join := theJoin
	join.Port = p.port
	join.Mode = proto.ModeSSM
	p.send(&join)
	p.prove(<-r.engine.probes)
}

func (p *peer) prove(sent probe) { p.send(&proto.ProbeAck{Nonce: sent.nonce, Size: uint16(sent.size)}) }

// joinChannel goes on to the Welcome.
func (r *rig) joinChannel(p *peer) *proto.Welcome {
	p.t.Helper()
	p.greet()
	r.wish(p)
	p.prove(<-r.engine.probes)
	return expect[*proto.Welcome](p)
}

func TestChannel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newChannelRig(t)
		a := r.connect(home)
		require.Equal(t, uint16(groupPort), expect[*proto.Status](a).GroupPort)
		a.send(&proto.Status{Role: proto.RolePeer, NetworkID: 1})
		r.wish(a)
		sent := <-r.engine.probes
		require.Equal(t, netip.MustParseAddrPort("[ff3e::8000:5%3]:30502"), sent.dst)
		require.Equal(t, wire.MaxDatagram, sent.size)
		require.Empty(t, r.engine.Changes(), "nothing before the channel is proven")
		a.prove(sent)
		welcome := expect[*proto.Welcome](a)
		require.Equal(t, proto.ModeSSM, welcome.Mode)
		channel := datapath.Session{
			Index: welcome.Channel.Session, Role: datapath.Channel, Addr: sent.dst,
			SendSession: welcome.Channel.Session, SendKey: welcome.Channel.Key, Groups: []ids.Group{group},
		}
		require.NoError(t, channel.Check())
		changes := r.engine.Changes()
		require.Len(t, changes, 2)
		require.Equal(t, []datapath.Session{channel}, changes[0].Add, "the channel is live first")
		require.True(t, changes[1].Add[0].Silent)
		require.True(t, changes[1].Add[0].Publish)
		require.Equal(t, welcome.Session, changes[1].Add[0].Index)

		// The second one on the link shares the channel, one on another has its own.
		b, c := r.connect(neighbour), r.connect(elsewhere)
		require.Equal(t, welcome.Channel, r.joinChannel(b).Channel)
		require.Len(t, r.engine.Changes(), 1)
		far := r.joinChannel(c).Channel
		require.NotEqual(t, welcome.Channel.Session, far.Session)
		require.NotEqual(t, welcome.Channel.Key, far.Key)
		require.Equal(t, "4", r.engine.Changes()[0].Add[0].Addr.Addr().Zone())
		st := r.Stats()
		require.Equal(t, []int{2, 3}, []int{st.Channels, st.ChannelMembers})

		// The last one takes the channel along, however it leaves.
		a.send(&proto.Leave{})
		require.Equal(t, []datapath.Change{{Remove: []ids.Session{welcome.Session}}}, r.engine.Changes())
		b.close()
		require.Len(t, r.engine.Changes(), 2)
		require.Equal(t, 1, r.Stats().Channels)
		r.wish(a)
		a.prove(<-r.engine.probes)
		require.NotEqual(t, welcome.Channel.Key, expect[*proto.Welcome](a).Channel.Key, "a channel that comes back has another key")
		a.close()
		c.close()
		require.Zero(t, r.Stats().Channels)
		require.Zero(t, r.cfg.Members.Sessions())
		r.Stop()
	})
}

// A channel by which nothing arrives, or that the host has no way to, is none: the
// peer gets its own copies.
func TestChannelUnproven(t *testing.T) {
	for name, link := range map[string]func(netip.Addr) (string, error){
		"silent":   func(netip.Addr) (string, error) { return "3", nil },
		"no route": func(netip.Addr) (string, error) { return "", errors.New("no route") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newChannelRig(t)
				r.cfg.Link = link
				p := r.connect(home)
				p.greet()
				r.wish(p)
				start := time.Now()
				welcome := expect[*proto.Welcome](p)
				require.Equal(t, proto.ChannelTimeout, time.Since(start))
				require.Equal(t, proto.ModeUnicast, welcome.Mode)
				changes := r.engine.Changes()
				require.Len(t, changes, 1)
				require.False(t, changes[0].Add[0].Silent)
				require.Zero(t, r.Stats().Channels)
				want := 0
				if name == "silent" {
					want = proto.MaxProbes
				}
				require.Len(t, r.engine.probes, want)
				p.close()
				r.Stop()
			})
		})
	}
}

// What the datapath refuses leaves nothing behind.
func TestChannelRefused(t *testing.T) {
	for _, role := range []datapath.Role{datapath.Channel, datapath.Peer} {
		synctest.Test(t, func(t *testing.T) {
			r := newChannelRig(t)
			r.engine.OnApply = func(c datapath.Change) error {
				if len(c.Add) > 0 && c.Add[0].Role == role {
					return errors.New("no room")
				}
				return nil
			}
			p := r.connect(home)
			p.greet()
			r.wish(p)
			p.prove(<-r.engine.probes)
			require.Equal(t, proto.ReasonQuit, expect[*proto.Leave](p).Reason)
			require.Zero(t, r.Stats().Channels)
			require.Zero(t, r.cfg.Members.Sessions())
			p.close()
			r.Stop()
		})
	}
}
