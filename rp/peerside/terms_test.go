// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/front/fronttest"
	"github.com/ethmcast/mdcs/rp/membership"
)

// Present members have the limits of now, and nothing else of theirs changes.
func TestTermsOfPresentMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		publisher, reader := r.connectAs(enode.ID{1}, home), r.connectAs(enode.ID{2}, home)
		r.join(publisher)
		r.joinAs(reader, func(j *proto.Join) { j.Publish, j.Standby = false, true })
		before := r.engine.Changes()
		r.set(func(t *Terms) { t.Rate, t.Burst, t.Egress, t.EgressBurst = 3, 4, 1000, 250 })
		synctest.Wait()
		now := make(map[ids.Session]datapath.Session)
		for _, c := range r.engine.Changes() {
			now[c.Add[0].Index] = c.Add[0]
		}
		for i, limits := range [][2]uint32{{3, 4}, {0, 0}} {
			want := before[i].Add[0]
			want.Rate, want.Burst, want.Egress, want.EgressBurst = limits[0], limits[1], 1000, 250
			require.Equal(t, want, now[want.Index])
		}
		r.set(func(*Terms) {})
		synctest.Wait()
		require.Empty(t, r.engine.Changes(), "nothing changed")
		publisher.send(&proto.Deactivate{})
		publisher.send(&proto.Activate{})
		require.Equal(t, uint32(1), expect[*proto.Activated](publisher).Rate, "1000 bytes are less than a datagram")
		r.engine.Changes()

		// The limits hold, or the member leaves.
		r.engine.OnApply = func(c datapath.Change) error {
			refused := new(datapath.Refused)
			for _, s := range c.Add {
				refused.Session(s.Index, datapath.ErrNoRoom)
			}
			return refused.Err()
		}
		r.set(func(t *Terms) { t.Rate = 2 })
		require.Equal(t, proto.ReasonFull, expect[*proto.Leave](publisher).Reason)
		publisher.close()
		reader.close()
		r.Stop()
	})
}

// Who may not join any more leaves, and who may publish another thing joins again.
func TestListsOfPresentMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		var peers []*peer
		for id := range byte(3) {
			p := r.connectAs(enode.ID{id + 1}, home)
			r.joinAs(p, func(j *proto.Join) { j.Publish = id != 2 })
			peers = append(peers, p)
		}
		r.set(func(t *Terms) {
			t.Joiners = map[enode.ID]bool{{2}: true, {3}: true}
			t.Publishers = map[enode.ID]bool{{1}: true}
		})
		for _, p := range peers[:2] {
			require.Equal(t, proto.ReasonDenied, expect[*proto.Leave](p).Reason)
		}
		synctest.Wait()
		require.Equal(t, 1, r.cfg.Members.Sessions(), "who does not publish stays")
		require.Zero(t, r.Stats().Violations)
		join := theJoin
		peers[1].send(&join)
		peers[1].prove(<-r.engine.probes)
		require.Zero(t, expect[*proto.Welcome](peers[1]).Rate)
		peers[0].send(&join)
		require.Equal(t, proto.ReasonDenied, expect[*proto.Leave](peers[0]).Reason)

		r.End([]ids.Session{r.members0(enode.ID{3}), 12345}, &proto.Error{Reason: proto.ReasonFull})
		require.Equal(t, proto.ReasonFull, expect[*proto.Leave](peers[2]).Reason)
		for _, p := range peers {
			p.close()
		}
		r.Stop()
	})
}

// What changes while a peer joins holds for it, too: the lists, and limits that leave no room.
func TestTermsOfJoiningPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		delisted, beyond := r.connectAs(enode.ID{1}, home), r.connectAs(enode.ID{2}, home)
		first, err := r.cfg.Members.Reserve(home)
		require.NoError(t, err)
		join := theJoin
		var probes []probe
		for _, p := range []*peer{delisted, beyond} {
			p.greet()
			p.send(&join)
			probes = append(probes, <-r.engine.probes)
		}
		require.Equal(t, 3, r.cfg.Members.Sessions())
		r.set(func(t *Terms) { t.Joiners = map[enode.ID]bool{{2}: true} })
		delisted.prove(probes[0])
		require.Equal(t, proto.ReasonDenied, expect[*proto.Leave](delisted).Reason)
		synctest.Wait()
		require.Equal(t, 2, r.cfg.Members.Sessions())
		r.cfg.Members.SetLimits(membership.Limits{Sessions: 1})
		r.End(r.cfg.Members.Beyond(), &proto.Error{Reason: proto.ReasonFull})
		require.Equal(t, proto.ReasonFull, expect[*proto.Leave](beyond).Reason)
		synctest.Wait()
		require.Empty(t, r.cfg.Members.Beyond())
		require.Empty(t, r.engine.Changes())
		r.cfg.Members.Release(first)
		delisted.close()
		beyond.close()
		r.Stop()
	})
}

// members0 returns the session of a node.
func (r *rig) members0(id enode.ID) ids.Session {
	for _, s := range r.Sessions() {
		if s.Node == id {
			return s.Index
		}
	}
	r.t.Fatal("no session")
	return 0
}

// A member that resumes has the limits of now, which may be others than those of the
// process before.
func TestTermsOfResumedMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := newRig(t, membership.Limits{})
		first.Server.cfg.ResumeKey = []byte("key")
		p := first.connect(home)
		welcome := first.join(p)
		session := first.engine.Changes()[0].Add[0]
		p.close()
		first.Stop()

		r := adopted(t, session)
		r.set(func(t *Terms) { t.Rate, t.Burst, t.Egress, t.EgressBurst = 3, 4, 1e6, 25e4 })
		p = r.connect(home)
		p.greet()
		p.send(&proto.Resume{Token: welcome.Token, Session: session.Index, Port: 4000, Groups: []ids.Group{group}, Publish: true})
		resumed := expect[*proto.Resumed](p)
		require.Equal(t, [2]uint32{3, 4}, [2]uint32{resumed.Rate, resumed.Burst})
		session.Rate, session.Burst, session.Egress, session.EgressBurst = 3, 4, 1e6, 25e4
		require.Equal(t, []datapath.Change{{Add: []datapath.Session{session}}}, r.engine.Changes())
		p.close()
		r.Stop()
	})
}

// One connection that is busy delays the keys of nobody, and a member that never
// acknowledges is waited for once, and let go after some Rekeys.
func TestSlowMembersDelayNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		silent, good := r.connectAs(enode.ID{1}, home), r.connectAs(enode.ID{2}, home)
		r.join(silent)
		r.join(good)
		busy := newConn(r.Server, &fronttest.Conn{Node: enode.ID{3}, Remote: home}) // its goroutine never comes to its mail
		r.mu.Lock()
		r.conns[busy] = struct{}{}
		r.mu.Unlock()
		rekeyed := 0
		go func() {
			for {
				msg, err := good.rw.ReadMsg()
				if err != nil {
					return
				}
				if msg.Code == (&proto.Rekey{}).Code() {
					rekeyed++
					var m proto.Rekey
					if msg.Decode(&m) == nil {
						good.send(&proto.RekeyAck{ID: m.ID})
					}
				}
				msg.Discard()
			}
		}()
		took := func(epoch uint8) time.Duration {
			began := time.Now()
			_, err := r.Install([]proto.GroupKey{keyOf(epoch, group)}, nil, 2*time.Second)
			require.NoError(t, err)
			return time.Since(began)
		}
		require.Equal(t, 2*time.Second, took(1))
		require.Equal(t, 1, rekeyed)
		for epoch := range uint8(2) {
			require.Zero(t, took(epoch+2))
			time.Sleep(3 * time.Second)
		}
		for range 3 {
			expect[*proto.Rekey](silent)
		}
		require.Zero(t, took(9))
		require.Equal(t, proto.ReasonExpired, expect[*proto.Leave](silent).Reason)
		time.Sleep(time.Millisecond) // the session ends behind its Leave
		require.Equal(t, 1, r.cfg.Members.Members()[group])
		require.Equal(t, 4, rekeyed)
		r.mu.Lock()
		delete(r.conns, busy)
		r.mu.Unlock()
		silent.close()
		good.close()
		r.Stop()
	})
}
