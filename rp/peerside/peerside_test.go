// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/datapathtest"
	"github.com/ethmcast/mdcs/rp/front/fronttest"
	"github.com/ethmcast/mdcs/rp/keyring"
	"github.com/ethmcast/mdcs/rp/membership"
)

const (
	group       = 5
	otherGroup  = 6
	incarnation = 0x0a
)

var home = netip.MustParseAddr("2001:db8::7")

// rig is a Server whose peers the test plays.
type rig struct {
	*Server
	t      *testing.T
	engine *engine
	ports  uint16 // UDP, of the peers so far: each has an endpoint of its own
}

// engine is a Recorder that tells the nonces of its PROBEs.
type engine struct {
	datapathtest.Recorder
	probes chan probe
	noWay  error         // to everybody
	slow   time.Duration // to send a PROBE
	marks  []proto.Mark  // nil for those of a test that does not care
}

type probe struct {
	dst   netip.AddrPort
	nonce [wire.NonceSize]byte
	size  int
}

func (e *engine) Probe(dst netip.AddrPort, nonce [wire.NonceSize]byte, size int) error {
	e.probes <- probe{dst, nonce, size}
	time.Sleep(e.slow)
	return e.noWay
}

func (e *engine) Marks() []proto.Mark {
	if e.marks != nil {
		return e.marks
	}
	return []proto.Mark{{Ingress: incarnation, Group: group, Sequence: 3}, {Ingress: incarnation, Group: otherGroup}}
}

func newRig(t *testing.T, limits membership.Limits) *rig {
	r := &rig{t: t, engine: &engine{probes: make(chan probe, 100)}}
	r.Server = New(Config{
		Status:  proto.Status{Role: proto.RoleRP, NetworkID: 1, Incarnation: incarnation, DataPort: 30501},
		Groups:  []ids.Group{group, otherGroup},
		Terms:   Terms{Lease: proto.Lease, Rate: 10, Burst: 20},
		Engine:  r.engine,
		Keys:    keyring.New(),
		Members: membership.New(limits, rand.Reader),
		Rand:    rand.Reader,
		Log:     slog.New(slog.DiscardHandler),
	})
	return r
}

// peer is the peer's end of a connection.
type peer struct {
	t    *testing.T
	rw   *p2p.MsgPipeRW
	done chan struct{} // closed when the Server's end has returned
	err  error         // of it
	port uint16        // UDP
}

func (r *rig) connect(addr netip.Addr) *peer { return r.connectAs(enode.ID{1}, addr) }

func (r *rig) connectAs(id enode.ID, addr netip.Addr) *peer {
	near, far := p2p.MsgPipe()
	p := &peer{t: r.t, rw: far, done: make(chan struct{}), port: theJoin.Port + r.ports}
	r.ports++
	go func() {
		defer close(p.done)
		p.err = r.serve(&fronttest.Conn{Node: id, Remote: addr, RW: near})
		near.Close()
	}()
	return p
}

func (p *peer) send(m proto.Message) {
	p.t.Helper()
	require.NoError(p.t, p2p.Send(p.rw, m.Code(), m))
	synctest.Wait()
}

// next returns the next message.
func (p *peer) next() proto.Message {
	p.t.Helper()
	msg, err := p.rw.ReadMsg()
	require.NoError(p.t, err)
	b, err := io.ReadAll(msg.Payload)
	require.NoError(p.t, err)
	got, err := proto.Decode(msg.Code, b)
	require.NoError(p.t, err)
	return got
}

// expect returns the next message, which must be an M.
func expect[M proto.Message](p *peer) (m M) {
	p.t.Helper()
	got := p.next()
	require.IsType(p.t, m, got)
	return got.(M)
}

func (p *peer) close() {
	p.rw.Close()
	<-p.done
}

// greet exchanges the Status.
func (p *peer) greet() {
	p.t.Helper()
	expect[*proto.Status](p)
	p.send(&proto.Status{Role: proto.RolePeer, NetworkID: 1})
}

var theJoin = proto.Join{
	Groups: []ids.Group{group}, Publish: true, Port: 4000, ProbeSize: wire.MaxDatagram, Session: 77, Share: auth.Share{8},
}

// join goes on to the Welcome.
func (r *rig) join(p *peer) *proto.Welcome {
	p.t.Helper()
	p.greet()
	join := theJoin
	join.Port = p.port
	p.send(&join)
	probe := <-r.engine.probes
	p.send(&proto.ProbeAck{Nonce: probe.nonce, Size: uint16(probe.size)})
	return expect[*proto.Welcome](p)
}

func keyOf(epoch uint8, group ids.Group) proto.GroupKey {
	return proto.GroupKey{Ingress: incarnation, Group: group, Epoch: epoch, Active: true, Key: auth.Key{epoch}}
}

func TestAdmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		_, err := r.Install([]proto.GroupKey{keyOf(0, group), keyOf(0, otherGroup)}, nil, 0)
		require.NoError(t, err)
		r.engine.Changes()

		p := r.connect(home)
		p.greet()
		join := theJoin
		p.send(&join)
		sent := <-r.engine.probes
		require.Equal(t, netip.AddrPortFrom(home, 4000), sent.dst, "the address of the connection, the port of the join")
		require.Equal(t, wire.MaxDatagram, sent.size)
		require.Empty(t, r.engine.Changes(), "nothing before the endpoint is proven")

		p.send(&proto.ProbeAck{Nonce: sent.nonce, Size: wire.MaxDatagram})
		changes := r.engine.Changes()
		require.Len(t, changes, 1, "live before the Welcome is read")
		welcome := expect[*proto.Welcome](p)
		send, receive := auth.HopKeys([32]byte{}, enode.ID{1}, welcome.Share, theJoin.Share)
		require.Equal(t, []datapath.Session{{
			Index: welcome.Session, Role: datapath.Peer, Addr: sent.dst, SendSession: 77, SendKey: send, ReceiveKey: receive,
			Groups: []ids.Group{group}, Publish: true, Rate: 10, Burst: 20,
		}}, changes[0].Add)
		require.Equal(t, []proto.GroupKey{keyOf(0, group)}, welcome.Keys, "keys and marks of its groups alone")
		require.Equal(t, []proto.Mark{{Ingress: incarnation, Group: group, Sequence: 3}}, welcome.Marks)
		require.Equal(t, map[ids.Group]int{group: 1}, r.cfg.Members.Members())

		require.Equal(t, Stats{Connections: 1, Admitted: 1}, r.Stats())

		p.close()
		require.Equal(t, []datapath.Change{{Remove: []ids.Session{welcome.Session}}}, r.engine.Changes())
		require.Zero(t, r.cfg.Members.Sessions())
		r.Stop()
	})
}

// A peer is granted what the limit of copies lets it publish to those who are there.
func TestGrantFollowsMembers(t *testing.T) {
	for _, c := range []struct {
		egress, burst uint64
		rates, bursts []uint32 // of the first, the second and the third member
	}{
		{0, 0, []uint32{10, 10, 10}, []uint32{20, 20, 20}},
		{1 << 40, 1 << 40, []uint32{10, 10, 10}, []uint32{20, 20, 20}},
		{12 * wire.MaxDatagram, 45 * wire.MaxDatagram, []uint32{10, 6, 4}, []uint32{20, 20, 15}},
		{2 * wire.MaxDatagram, 1, []uint32{2, 1, 1}, []uint32{1, 1, 1}},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, membership.Limits{})
			r.set(func(t *Terms) { t.Egress, t.EgressBurst = c.egress, c.burst })
			for i := range c.rates {
				p := r.connect(home)
				p.greet()
				join := theJoin
				join.Port = p.port
				p.send(&join)
				sent := <-r.engine.probes
				p.send(&proto.ProbeAck{Nonce: sent.nonce, Size: wire.MaxDatagram})
				welcome := expect[*proto.Welcome](p)
				require.Equal(t, c.rates[i], welcome.Rate)
				require.Equal(t, c.bursts[i], welcome.Burst)
				added := r.engine.Changes()[0].Add[0]
				require.Equal(t, [2]uint64{c.egress, c.burst}, [2]uint64{added.Egress, added.EgressBurst})
				require.Equal(t, [2]uint32{10, 20}, [2]uint32{added.Rate, added.Burst}, "those who left make room")
			}
			r.Stop()
		})
	}
}

func TestEngineRefuses(t *testing.T) {
	testEngineRefuses(t, proto.ReasonQuit, func(datapath.Change) error { return errors.New("no memory") })
	testEngineRefuses(t, proto.ReasonFull, func(c datapath.Change) error {
		refused := new(datapath.Refused)
		for _, s := range c.Add {
			refused.Session(s.Index, datapath.ErrNoRoom)
		}
		return refused.Err()
	})
}

// testEngineRefuses has the engine refuse a session: the peer is told, and has no Welcome.
func testEngineRefuses(t *testing.T, want proto.Reason, reason func(datapath.Change) error) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		r.engine.OnApply = func(c datapath.Change) error { return reason(c) }
		p := r.connect(home)
		p.greet()
		join := theJoin
		p.send(&join)
		probe := <-r.engine.probes
		p.send(&proto.ProbeAck{Nonce: probe.nonce, Size: uint16(probe.size)})
		require.Equal(t, want, expect[*proto.Leave](p).Reason)
		require.Zero(t, r.cfg.Members.Sessions())
		require.Empty(t, r.cfg.Members.Members())
		p.close()
		r.Stop()
	})
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		limits membership.Limits
		addr   netip.Addr
		play   func(r *rig, p *peer)
		want   proto.Reason
		stays  bool
		after  time.Duration
	}{
		"no more sessions": {
			limits: membership.Limits{Sessions: 1}, addr: home, want: proto.ReasonFull, stays: true,
			play: func(r *rig, p *peer) {
				_, err := r.cfg.Members.Reserve(home)
				require.NoError(r.t, err)
				p.greet()
				join := theJoin
				p.send(&join)
			},
		},
		"no more probes": {
			limits: membership.Limits{Probes: 2, ProbeWindow: time.Minute}, addr: home, want: proto.ReasonFull, stays: true,
			after: time.Second, // of the third probe
			play: func(r *rig, p *peer) {
				p.greet()
				join := theJoin
				p.send(&join)
			},
		},
		"too many joins": {
			limits: membership.Limits{JoinsPer64: 1}, addr: home, want: proto.ReasonFull, stays: true,
			play: func(r *rig, p *peer) {
				require.NoError(r.t, r.cfg.Members.Join(time.Now(), home))
				p.greet()
				join := theJoin
				p.send(&join)
			},
		},
		"no echo": {
			addr: home, want: proto.ReasonUnreachable, stays: true, after: proto.ProbeTimeout,
			play: func(_ *rig, p *peer) {
				p.greet()
				join := theJoin
				p.send(&join)
			},
		},
		"no way for copies": { // which is known at once
			addr: home, want: proto.ReasonUnreachable, stays: true,
			play: func(r *rig, p *peer) {
				r.engine.noWay = fmt.Errorf("wrong device: %w", datapath.ErrNoWay)
				p.greet()
				join := theJoin
				p.send(&join)
			},
		},
		"lease over": {
			addr: home, want: proto.ReasonExpired, stays: true, after: proto.Lease,
			play: func(r *rig, p *peer) { r.join(p) },
		},
		"no status": {
			addr: home, want: proto.ReasonUnexpected, after: statusTimeout,
			play: func(_ *rig, p *peer) { expect[*proto.Status](p) },
		},
		"ipv4": {
			addr: netip.MustParseAddr("192.0.2.1"), want: proto.ReasonUnreachable,
			play: func(_ *rig, p *peer) { expect[*proto.Status](p) },
		},
		"mapped ipv4": {
			addr: netip.MustParseAddr("::ffff:192.0.2.1"), want: proto.ReasonUnreachable,
			play: func(_ *rig, p *peer) { expect[*proto.Status](p) },
		},
		"no address": {
			want: proto.ReasonUnreachable,
			play: func(_ *rig, p *peer) { expect[*proto.Status](p) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, c.limits)
				start := time.Now()
				p := r.connect(c.addr)
				c.play(r, p)
				require.Equal(t, c.want, expect[*proto.Leave](p).Reason)
				require.Equal(t, c.after, time.Since(start))
				if c.stays {
					synctest.Wait()
					unreached := r.Stats().Unreached
					require.Equal(t, c.want == proto.ReasonUnreachable, unreached == 1, "%d", unreached)
					require.Equal(t, 1, r.Stats().Connections)
					require.Zero(t, r.Stats().Violations)
					p.close()
				}
				<-p.done
				require.Error(t, p.err)
				r.Stop()
			})
		})
	}
}

// An engine that is slow to send costs no peer its membership: each PROBE is sent, and a
// ProbeAck that came meanwhile counts.
func TestSlowEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		r.engine.slow = 2 * proto.ProbeTimeout
		p := r.connect(home)
		p.greet()
		join := theJoin
		p.send(&join)
		for range proto.MaxProbes - 1 {
			<-r.engine.probes
		}
		sent := <-r.engine.probes
		p.send(&proto.ProbeAck{Nonce: sent.nonce, Size: uint16(sent.size)})
		expect[*proto.Welcome](p)
		r.Stop()
		<-p.done
	})
}

// Install waits for those who are members, as long as it may.
func TestInstall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		member, other := r.connect(home), r.connect(home)
		r.join(member)
		other.greet() // no member
		r.engine.Changes()
		missing := make(chan int)
		install := func(retired []ids.Incarnation, timeout time.Duration, keys ...proto.GroupKey) {
			go func() {
				n, err := r.Install(keys, retired, timeout)
				require.NoError(t, err)
				missing <- n
			}()
			synctest.Wait()
		}

		install([]ids.Incarnation{9}, time.Hour, keyOf(1, group), keyOf(1, otherGroup))
		require.Equal(t, []datapath.Change{{Retire: []ids.Incarnation{9}, Keys: []proto.GroupKey{keyOf(1, group), keyOf(1, otherGroup)}}},
			r.engine.Changes(), "the datapath comes first")
		m := expect[*proto.Rekey](member)
		require.Equal(t, []proto.GroupKey{keyOf(1, group)}, m.Keys, "of its groups")
		require.Equal(t, []ids.Incarnation{9}, m.Retired)
		member.send(&proto.RekeyAck{ID: m.ID + 1}) // of nothing
		member.send(&proto.RekeyAck{ID: m.ID})
		require.Zero(t, <-missing)

		install(nil, time.Hour, keyOf(1, otherGroup)) // concerns nobody
		require.Zero(t, <-missing)

		start := time.Now()
		install(nil, 2*time.Second, keyOf(2, group))
		late := expect[*proto.Rekey](member)
		require.Equal(t, 1, <-missing)
		require.Equal(t, 2*time.Second, time.Since(start))
		require.Equal(t, uint64(1), r.Stats().MissingAcks)
		member.send(&proto.RekeyAck{ID: late.ID})

		install(nil, time.Hour, keyOf(3, group)) // who leaves need not answer
		expect[*proto.Rekey](member)
		member.send(&proto.Leave{})
		require.Zero(t, <-missing)

		member.close()
		other.close()
		install(nil, time.Hour, keyOf(4, group))
		require.Zero(t, <-missing)

		r.engine.OnApply = func(datapath.Change) error { return errors.New("no room") }
		_, err := r.Install([]proto.GroupKey{keyOf(5, group)}, nil, time.Hour)
		require.ErrorContains(t, err, "no room")
		require.NotContains(t, r.cfg.Keys.Of(incarnation), keyOf(5, group))
		r.Stop()
	})
}

// What a member does not acknowledge is forgotten when nobody waits for it any more, and
// later answers do no harm.
func TestNoAcks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		p := r.connect(home)
		r.join(p)
		var last *proto.Rekey
		for epoch := range uint8(40) {
			go r.Install([]proto.GroupKey{keyOf(epoch, group)}, nil, time.Second)
			last = expect[*proto.Rekey](p)
			time.Sleep(time.Second)
			synctest.Wait()
			if epoch%missedKeys == missedKeys-1 { // else it is let go
				p.send(&proto.RekeyAck{ID: last.ID})
				last = nil
			}
		}
		require.Equal(t, uint64(1), r.Stats().MissingAcks, "who acknowledges late is not waited for again")
		require.Len(t, r.connections()[0].waiting, 1)
		p.send(&proto.RekeyAck{ID: last.ID - 1})
		p.send(&proto.RekeyAck{ID: last.ID})
		require.Empty(t, r.connections()[0].waiting)

		go r.Install([]proto.GroupKey{keyOf(40, group)}, nil, time.Second)
		p.send(&proto.RekeyAck{ID: expect[*proto.Rekey](p).ID}) // in time
		synctest.Wait()
		began := time.Now()
		_, err := r.Install([]proto.GroupKey{keyOf(41, group)}, nil, time.Second)
		require.NoError(t, err)
		require.Equal(t, quickAck, time.Since(began), "and then it is waited for, as a slow one")
		p.close()
		r.Stop()
	})
}

// A member that acknowledges slowly delays the others half a second and no longer, until it was
// quick three times in a row.
func TestSlowAcks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		p := r.connect(home)
		r.join(p)
		epoch := uint8(0)
		// takes returns how long the keys take whose acknowledgement takes so long.
		takes := func(ack time.Duration) time.Duration {
			began := time.Now()
			epoch++
			took := make(chan time.Duration, 1)
			go func() {
				late, err := r.Install([]proto.GroupKey{keyOf(epoch, group)}, nil, 2*time.Second)
				require.NoError(t, err)
				require.Zero(t, late)
				took <- time.Since(began)
			}()
			id := expect[*proto.Rekey](p).ID
			time.Sleep(ack)
			p.send(&proto.RekeyAck{ID: id})
			return <-took
		}
		const slow, quick = 1990 * time.Millisecond, 100 * time.Millisecond
		require.Equal(t, quick, takes(quick))
		require.Equal(t, slow, takes(slow), "the first time is waited for")
		for range 3 {
			require.Equal(t, quickAck, takes(slow))
			require.Equal(t, quick, takes(quick), "who is quick once")
			require.Equal(t, quick, takes(quick), "or twice")
		}
		require.Equal(t, quickAck, takes(slow))
		for range quickAcks {
			require.Equal(t, quick, takes(quick))
		}
		require.Equal(t, slow, takes(slow), "is not yet trusted to be quick")
		require.Equal(t, uint64(6), r.Stats().SlowAcks)
		require.Zero(t, r.Stats().MissingAcks)
		p.close()
		r.Stop()
	})
}

// Who joins faster than the back-off lets it is disconnected.
func TestJoinsFasterThanBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{Sessions: 1})
		_, err := r.cfg.Members.Reserve(home)
		require.NoError(t, err)
		p := r.connect(home)
		p.greet()
		join := theJoin
		refused := func() {
			t.Helper()
			p.send(&join)
			require.Equal(t, proto.ReasonFull, expect[*proto.Leave](p).Reason)
		}
		for range 10 {
			refused()
		}
		for range 20 { // as the back-off has it at first
			time.Sleep(500 * time.Millisecond)
			refused()
		}
		require.Equal(t, uint64(30), r.Stats().Refused)
		p.send(&join)
		require.Equal(t, proto.ReasonUnexpected, expect[*proto.Leave](p).Reason)
		<-p.done
		require.Equal(t, p2p.DiscSubprotocolError, p.err)
		r.Stop()
	})
}

// Joins that are refused for want of room count for the limits of joins. Those of who may
// not join at all take nothing from the others.
func TestJoinsOfWhomIsNotListed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{Sessions: 1, JoinsPer64: 4})
		_, err := r.cfg.Members.Reserve(home)
		require.NoError(t, err)
		r.set(func(t *Terms) { t.Joiners = map[enode.ID]bool{{1}: true} })
		join := theJoin
		stranger, listed := r.connectAs(enode.ID{2}, home), r.connect(home)
		stranger.greet()
		listed.greet()
		for range 8 {
			stranger.send(&join)
			require.Equal(t, proto.ReasonDenied, expect[*proto.Leave](stranger).Reason)
		}
		for range 4 {
			require.NoError(t, r.cfg.Members.Join(time.Now(), home), "all is left for others")
		}
		listed.send(&join)
		require.Equal(t, proto.ReasonFull, expect[*proto.Leave](listed).Reason)
		require.Empty(t, r.engine.probes)
		stranger.close()
		listed.close()
		r.Stop()
	})
}

// A member that reads nothing is let go when its queue is full; nobody waits.
func TestSlowPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		slow, good := r.connect(home), r.connect(home)
		r.join(slow)
		r.join(good)
		go func() {
			for {
				msg, err := good.rw.ReadMsg()
				if err != nil {
					return
				}
				msg.Discard()
			}
		}()
		for epoch := range uint8(outboxSize + 2) {
			go r.Install([]proto.GroupKey{keyOf(epoch, group)}, nil, time.Hour)
			synctest.Wait()
		}
		<-slow.done
		require.ErrorIs(t, slow.err, errSlow)
		require.Equal(t, 1, r.cfg.Members.Sessions())
		good.close()
		r.Stop()
	})
}

func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, membership.Limits{})
		p := r.connect(home)
		r.join(p)
		go r.Stop()
		require.Equal(t, proto.ReasonQuit, expect[*proto.Leave](p).Reason)
		<-p.done
		require.Equal(t, p2p.DiscQuitting, p.err)
		late := r.connect(home)
		<-late.done
		require.Equal(t, p2p.DiscQuitting, late.err)
		n, err := r.Install([]proto.GroupKey{keyOf(0, group)}, nil, time.Hour)
		require.NoError(t, err)
		require.Zero(t, n)
	})
}

// set changes the terms.
func (r *rig) set(change func(*Terms)) {
	t := *r.terms.Load()
	change(&t)
	r.SetTerms(t)
}
