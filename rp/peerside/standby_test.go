// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/membership"
)

// joinAs goes on to the Welcome of a join that is not theJoin.
func (r *rig) joinAs(p *peer, change func(*proto.Join)) *proto.Welcome {
	p.t.Helper()
	p.greet()
	join := theJoin
	join.Port = p.port
	change(&join)
	p.send(&join)
	p.prove(<-r.engine.probes)
	return expect[*proto.Welcome](p)
}

// A standby session is in the datapath, in no group, until it is activated by one
// message; it keeps index, keys and window all the time.
func TestStandby(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		var replayed []proto.Mark
		r.Server.cfg.Replay = func(session ids.Session, _ netip.Addr, marks []proto.Mark) {
			require.Len(t, r.engine.Changes(), 1, "live before the replay")
			replayed = marks
		}
		_, err := r.Install([]proto.GroupKey{keyOf(0, group)}, nil, 0)
		require.NoError(t, err)
		r.engine.Changes()
		p := r.connect(home)
		welcome := r.joinAs(p, func(j *proto.Join) { j.Standby = true })
		added := r.engine.Changes()[0].Add[0]
		require.Empty(t, added.Groups)
		require.True(t, added.Publish)
		require.Equal(t, []proto.GroupKey{keyOf(0, group)}, welcome.Keys)
		require.Empty(t, r.cfg.Members.Members())
		require.Equal(t, 1, r.Stats().Standby)

		// It gets new keys as a member does.
		go r.Install([]proto.GroupKey{keyOf(1, group)}, nil, time.Hour)
		rekey := expect[*proto.Rekey](p)
		p.send(&proto.RekeyAck{ID: rekey.ID})
		require.Len(t, r.engine.Changes(), 1)

		marks := []proto.Mark{{Ingress: 1, Group: group, Sequence: 9}}
		p.send(&proto.Activate{Marks: marks})
		activated := expect[*proto.Activated](p)
		require.Equal(t, marks, replayed)
		old := keyOf(0, group)
		old.Active = false
		require.Equal(t, proto.Terms{
			Rate: 10, Burst: 20, Keys: []proto.GroupKey{old, keyOf(1, group)},
			Marks: []proto.Mark{{Ingress: incarnation, Group: group, Sequence: 3}},
		}, activated.Terms)
		require.Equal(t, map[ids.Group]int{group: 1}, r.cfg.Members.Members())
		require.Zero(t, r.Stats().Standby)

		p.send(&proto.Deactivate{})
		again := r.engine.Changes()
		require.Equal(t, []datapath.Change{{Add: []datapath.Session{added}}}, again)
		require.Empty(t, r.cfg.Members.Members())
		r.Server.cfg.Replay = nil
		p.send(&proto.Activate{})
		expect[*proto.Activated](p)
		added.Groups = []ids.Group{group}
		require.Equal(t, []datapath.Change{{Add: []datapath.Session{added}}}, r.engine.Changes())
		p.send(&proto.Deactivate{})
		p.close()
		require.Zero(t, r.Stats().Standby)
		require.Zero(t, r.cfg.Members.Sessions())
		r.Stop()
	})
}

// A member is sent what it missed of each stream of its groups once, and not each time that
// it is activated.
func TestReplayIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		var replayed [][]proto.Mark
		r.Server.cfg.Replay = func(_ ids.Session, _ netip.Addr, marks []proto.Mark) { replayed = append(replayed, marks) }
		p := r.connect(home)
		r.joinAs(p, func(j *proto.Join) { j.Standby = true })
		activate := func() {
			p.send(&proto.Activate{Marks: []proto.Mark{
				{Ingress: 1, Group: group, Sequence: 9},
				{Ingress: 1, Group: otherGroup, Sequence: 9},
				{Ingress: 1, Group: group, Sequence: 8},
				{Ingress: 2, Group: group, Sequence: 7},
			}})
			expect[*proto.Activated](p)
			p.send(&proto.Deactivate{})
		}
		activate()
		activate()
		p.close()
		p = r.connect(home) // the limit is of the node, not of the connection
		r.joinAs(p, func(j *proto.Join) { j.Standby = true })
		activate()
		once := []proto.Mark{{Ingress: 1, Group: group, Sequence: 9}, {Ingress: 2, Group: group, Sequence: 7}}
		require.Equal(t, [][]proto.Mark{once, once}, replayed)
		time.Sleep(replayCost * time.Second)
		activate()
		activate()
		require.Len(t, replayed, 3)
		p.close()
		r.Stop()
	})
}

// A member of a channel that goes into standby leaves the channel.
func TestStandbyOfChannel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newChannelRig(t)
		p := r.connect(home)
		require.Equal(t, proto.ModeSSM, r.joinChannel(p).Mode)
		p.send(&proto.Deactivate{})
		require.Zero(t, r.Stats().Channels)
		r.engine.Changes()
		p.send(&proto.Activate{})
		expect[*proto.Activated](p)
		require.False(t, r.engine.Changes()[0].Add[0].Silent)
		p.close()
		r.Stop()
	})
}

// adopted returns a rig whose datapath had these sessions before.
func adopted(t *testing.T, sessions ...datapath.Session) *rig {
	r := newChannelRig(t)
	r.Server.cfg.ResumeKey = []byte("key")
	orphans := datapath.NewOrphans(&r.engine.Recorder, &datapath.State{Incarnation: incarnation, Sessions: sessions})
	r.Server.cfg.Adopted = orphans
	return r
}

// A member shows its token to an RP that never saw it, and nothing else happens.
func TestResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := newRig(t, membership.Limits{})
		first.Server.cfg.ResumeKey = []byte("key")
		p := first.connect(home)
		welcome := first.join(p)
		require.NotZero(t, welcome.Token)
		session := first.engine.Changes()[0].Add[0]
		p.close()
		first.Stop()

		resting := session
		resting.Index, resting.Groups, resting.Addr = session.Index+1, nil, netip.AddrPortFrom(home, 4001)
		resume := proto.Resume{Token: welcome.Token, Session: session.Index, Port: 4000, Groups: []ids.Group{group}, Publish: true}
		r := adopted(t, session, resting)
		for name, c := range map[string]struct {
			id   enode.ID
			addr netip.Addr
			edit func(*proto.Resume)
		}{
			"another node":    {id: enode.ID{2}, addr: home},
			"another address": {id: enode.ID{1}, addr: neighbour},
			"another port":    {id: enode.ID{1}, addr: home, edit: func(m *proto.Resume) { m.Port++ }},
			"another session": {id: enode.ID{1}, addr: home, edit: func(m *proto.Resume) { m.Session++ }},
			"no token":        {id: enode.ID{1}, addr: home, edit: func(m *proto.Resume) { m.Token = proto.Token{} }},
		} {
			p := r.connectAs(c.id, c.addr)
			p.greet()
			m := resume
			if c.edit != nil {
				c.edit(&m)
			}
			p.send(&m)
			require.Equal(t, proto.ReasonSession, expect[*proto.Leave](p).Reason, name)
			require.Empty(t, r.engine.Changes(), name)
			p.close()
		}

		p = r.connect(home)
		p.greet()
		p.send(&resume)
		resumed := expect[*proto.Resumed](p)
		require.False(t, resumed.Standby)
		require.Equal(t, uint32(45), resumed.Lease)
		require.Equal(t, [2]uint32{10, 20}, [2]uint32{resumed.Rate, resumed.Burst})
		require.Empty(t, r.engine.Changes(), "the datapath goes on as it was")
		require.Empty(t, r.engine.probes)
		require.Equal(t, map[ids.Group]int{group: 1}, r.cfg.Members.Members())
		require.Equal(t, uint64(1), r.Stats().Resumed)

		q := r.connect(home)
		q.greet()
		q.send(&resume)
		require.Equal(t, proto.ReasonSession, expect[*proto.Leave](q).Reason, "once")
		q.send(&proto.Resume{
			Token: r.token(enode.ID{1}, resting.Index, resting.Addr), Session: resting.Index, Port: 4001, Groups: []ids.Group{group}, Publish: true,
		})
		require.True(t, expect[*proto.Resumed](q).Standby)
		require.Equal(t, 1, r.Stats().Standby)
		q.send(&proto.Activate{})
		expect[*proto.Activated](q)
		require.Equal(t, []ids.Group{group}, r.engine.Changes()[0].Add[0].Groups)

		p.send(&proto.Leave{})
		require.Equal(t, []datapath.Change{{Remove: []ids.Session{session.Index}}}, r.engine.Changes())
		q.close()
		p.close()
		require.Zero(t, r.cfg.Members.Sessions())
		r.Stop()
	})
}

// What is not as it was wanted is not resumed, and leaves nothing behind.
func TestResumeRefused(t *testing.T) {
	session := datapath.Session{
		Index: 8, Role: datapath.Peer, Addr: netip.AddrPortFrom(home, 4000), SendSession: 77, Groups: []ids.Group{group},
		Publish: true, Rate: 1, Burst: 1,
	}
	for name, c := range map[string]struct {
		edit func(*proto.Resume)
		rig  func(*rig)
		want proto.Reason
	}{
		"other groups":      {edit: func(m *proto.Resume) { m.Groups = []ids.Group{otherGroup} }, want: proto.ReasonSession},
		"publishes no more": {edit: func(m *proto.Resume) { m.Publish = false }, want: proto.ReasonSession},
		"may not publish":   {rig: func(r *rig) { r.set(func(t *Terms) { t.Publishers = map[enode.ID]bool{} }) }, want: proto.ReasonSession},
		"may not join":      {rig: func(r *rig) { r.set(func(t *Terms) { t.Joiners = map[enode.ID]bool{} }) }, want: proto.ReasonDenied},
		"no channel":        {rig: func(r *rig) { session.Silent = true }, want: proto.ReasonSession},
	} {
		synctest.Test(t, func(t *testing.T) {
			session.Silent = false
			r := adopted(t)
			if c.rig != nil {
				c.rig(r)
			}
			r.Server.cfg.Adopted = datapath.NewOrphans(r.engine, &datapath.State{Sessions: []datapath.Session{session}})
			p := r.connect(home)
			p.greet()
			m := proto.Resume{Token: r.token(enode.ID{1}, 8, session.Addr), Session: 8, Port: 4000, Groups: []ids.Group{group}, Publish: true}
			if c.edit != nil {
				c.edit(&m)
			}
			p.send(&m)
			require.Equal(t, c.want, expect[*proto.Leave](p).Reason, name)
			require.Zero(t, r.cfg.Members.Sessions())
			if c.want == proto.ReasonSession {
				require.Equal(t, []datapath.Change{{Remove: []ids.Session{8}}}, r.engine.Changes(), name)
			}
			p.close()
			r.Stop()
		})
	}
}

// A channel that outlived the process serves who resumes and who is new.
func TestResumeOnChannel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		channel := datapath.Session{
			Index: 9, Role: datapath.Channel, Addr: channelID{group, "3"}.addr(groupPort), SendSession: 9, SendKey: auth.Key{4},
			Groups: []ids.Group{group},
		}
		session := datapath.Session{
			Index: 8, Role: datapath.Peer, Addr: netip.AddrPortFrom(home, 4000), SendSession: 77, Groups: []ids.Group{group}, Silent: true,
		}
		r := adopted(t, channel, session)
		p := r.connect(home)
		p.greet()
		p.send(&proto.Resume{Token: r.token(enode.ID{1}, 8, session.Addr), Session: 8, Port: 4000, Groups: []ids.Group{group}})
		expect[*proto.Resumed](p)
		q := r.connect(neighbour)
		require.Equal(t, proto.Channel{Session: 9, Key: auth.Key{4}}, r.joinChannel(q).Channel)
		require.Equal(t, 2, r.Stats().ChannelMembers)
		r.engine.Changes()
		q.close()
		p.close()
		changes := r.engine.Changes()
		require.Len(t, changes, 3)
		require.Contains(t, changes, datapath.Change{Remove: []ids.Session{9}})
		r.Stop()
	})
}

// A draining RP tells its members where to go, waits for them, and lets nobody in.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		urls := []string{"enode://other"}
		r.Server.cfg.Others = func() []string { return urls }
		member, other := r.connect(home), r.connect(home)
		r.join(member)
		other.greet()
		left := make(chan int)
		drain := func(patience time.Duration) {
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				left <- r.Drain(ctx)
			}()
			synctest.Wait()
		}
		start := time.Now()
		drain(5 * time.Second)
		require.Equal(t, urls, expect[*proto.Redirect](member).URLs)
		require.Equal(t, 1, <-left)
		require.Equal(t, 5*time.Second, time.Since(start))

		join := theJoin
		other.send(&join)
		require.Equal(t, urls, expect[*proto.Redirect](other).URLs)
		require.Equal(t, proto.ReasonDraining, expect[*proto.Leave](other).Reason)
		require.Empty(t, r.engine.probes)

		drain(time.Hour)
		member.send(&proto.Leave{})
		require.Zero(t, <-left)
		member.close()
		other.close()
		r.Stop()
	})
}

// Who proved its endpoint before a drain begins, and is to be admitted after, is told to go
// elsewhere, as is who is to be activated.
func TestDrainBeforeWelcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		urls := []string{"enode://other"}
		r.Server.cfg.Others = func() []string { return urls }
		standby := r.connect(home)
		r.joinAs(standby, func(j *proto.Join) { j.Standby = true })
		ready := make(chan struct{})
		r.Server.cfg.Admit = func(bool) (<-chan struct{}, func()) { return ready, func() {} }
		p := r.connect(home)
		p.greet()
		join := theJoin
		join.Port = p.port
		p.send(&join)
		sent := <-r.engine.probes
		p.send(&proto.ProbeAck{Nonce: sent.nonce, Size: uint16(sent.size)}) // waits for the mesh
		go r.Drain(t.Context())
		synctest.Wait()
		require.Equal(t, urls, expect[*proto.Redirect](standby).URLs)
		close(ready)
		synctest.Wait()
		require.Equal(t, urls, expect[*proto.Redirect](p).URLs)
		require.Equal(t, proto.ReasonDraining, expect[*proto.Leave](p).Reason)

		standby.send(&proto.Activate{})
		require.Equal(t, urls, expect[*proto.Redirect](standby).URLs)
		require.Equal(t, proto.ReasonDraining, expect[*proto.Leave](standby).Reason)
		require.Zero(t, r.cfg.Members.Sessions())
		p.close()
		standby.close()
		r.Stop()
	})
}

// Lists say who may join, and who may publish.
func TestLists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		r.set(func(t *Terms) { t.Joiners = map[enode.ID]bool{{1}: true, {2}: true} })
		r.set(func(t *Terms) { t.Publishers = map[enode.ID]bool{{2}: true} })
		var publishes []bool
		r.Server.cfg.Admit = func(publish bool) (<-chan struct{}, func()) {
			publishes = append(publishes, publish)
			ready := make(chan struct{})
			close(ready)
			return ready, func() {}
		}
		for id, want := range map[enode.ID]uint32{{1}: 0, {2}: 10} {
			p := r.connectAs(id, home)
			welcome := r.joinAs(p, func(*proto.Join) {})
			require.Equal(t, want, welcome.Rate)
			added := r.engine.Changes()[0].Add[0]
			require.Equal(t, want > 0, added.Publish)
			require.Equal(t, want > 0, publishes[len(publishes)-1], "the mesh needs no tree for who may not publish")
			require.NoError(t, added.Check())
			p.close()
			r.engine.Changes()
		}
		p := r.connectAs(enode.ID{3}, home)
		p.greet()
		join := theJoin
		p.send(&join)
		require.Equal(t, proto.ReasonDenied, expect[*proto.Leave](p).Reason)
		require.Empty(t, r.engine.probes)
		require.Equal(t, uint64(1), r.Stats().Refused)
		p.close()
		r.Stop()
	})
}

// What all copies together may take bounds the grants, and then the members.
func TestLimitOfAllCopies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		r.set(func(t *Terms) { t.Limit = 2*wire.MaxDatagram + 1 })
		r.set(func(t *Terms) { t.Egress, t.EgressBurst = 100*wire.MaxDatagram, 25*wire.MaxDatagram })
		for _, rate := range []uint32{2, 1} {
			require.Equal(t, rate, r.joinAs(r.connect(home), func(*proto.Join) {}).Rate)
			added := r.engine.Changes()[0].Add[0]
			require.Equal(t, r.terms.Load().Limit, added.Egress)
			require.NoError(t, added.Check())
		}
		p := r.connect(home)
		p.greet()
		join := theJoin
		p.send(&join)
		require.Equal(t, proto.ReasonFull, expect[*proto.Leave](p).Reason)
		r.Stop()
	})
}
