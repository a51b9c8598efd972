// SPDX-License-Identifier: LGPL-3.0-or-later

package admission

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// pair is a Joiner and an Admission with a connection between them that the test
// can cut, and a datapath that is ready at once.
type pair struct {
	t         *testing.T
	peer      proto.JoinerConfig
	now       time.Time
	joiner    *proto.Joiner
	admission *Admission
	log       []string // what happened, for assertions
	deaf      bool     // PROBEs do not arrive
	short     bool     // PROBEs arrive cut
	silent    bool     // no heartbeats
	cut       bool     // nothing arrives by the channel
	joinless  bool     // the peer's host cannot join groups
	joined    *proto.Joined
	admit     *Admit
	off       bool         // there is no connection
	token     proto.Token  // that the datapath of the test gives
	forgot    bool         // the RP cannot resume
	rests     bool         // the session is in no group
	replayed  []proto.Mark // of the last Activate
	others    []string     // of the last Redirected
}

const testGroup = 0x1234

func newPair(t *testing.T, change func(*proto.JoinerConfig, *Config)) *pair {
	rng := rand.NewChaCha8([32]byte{1})
	jc := proto.JoinerConfig{
		Self: [32]byte{1}, Remote: [32]byte{2}, NetworkID: 5, Genesis: [32]byte{6},
		Groups: []ids.Group{testGroup}, Publish: true, Port: 30400, Rand: rng,
	}
	ac := Config{
		Self: [32]byte{2}, Remote: [32]byte{1}, Groups: []ids.Group{testGroup}, Lease: proto.Lease, Rand: rng,
		Status: proto.Status{Role: proto.RoleRP, NetworkID: 5, Genesis: [32]byte{6}, Incarnation: 77, DataPort: 30501},
	}
	if change != nil {
		change(&jc, &ac)
	}
	p := &pair{t: t, peer: jc, now: time.Unix(1000, 0), joiner: proto.NewJoiner(jc), admission: New(ac)}
	p.flush()
	return p
}

// grant is what the datapath of the test gives.
func (p *pair) grant(mode proto.DeliveryMode) Grant {
	g := Grant{Session: 99, Token: p.token, Marks: []proto.Mark{{Ingress: 77, Group: testGroup, Sequence: 41}}, Rate: 100, Burst: 10}
	if mode == proto.ModeSSM {
		g.Channel = proto.Channel{Session: 98, Key: auth.Key{97}}
	}
	return g
}

// flush carries out actions until none is left.
func (p *pair) flush() {
	for range 100 {
		a, b := p.joiner.Actions(), p.admission.Actions()
		if len(a)+len(b) == 0 {
			return
		}
		for _, x := range a {
			p.peerDoes(x)
		}
		for _, x := range b {
			p.rpDoes(x)
		}
	}
	p.t.Fatal("the two sides never settle")
}

// carry encodes and decodes, as a connection does.
func (p *pair) carry(m proto.Message) proto.Message {
	b, err := proto.Encode(m)
	if err != nil {
		p.t.Fatal(err)
	}
	got, err := proto.Decode(m.Code(), b)
	if err != nil {
		p.t.Fatalf("%T: %v", m, err)
	}
	return got
}

func (p *pair) note(format string, args ...any) { p.log = append(p.log, fmt.Sprintf(format, args...)) }

func (p *pair) peerDoes(x proto.Action) {
	switch x := x.(type) {
	case proto.Send:
		p.note("peer sends %s", strings.TrimPrefix(fmt.Sprintf("%T", x.Message), "*proto."))
		if p.off {
			p.t.Errorf("%T without a connection", x.Message)
			return
		}
		_ = p.admission.Handle(p.now, p.carry(x.Message)) // tests look at the states
		for _, y := range p.admission.Actions() {         // before the next message
			p.rpDoes(y)
		}
	case proto.Subscribe:
		p.note("peer subscribes to %04x on %d", x.Group, x.Port)
		p.joiner.Subscribed(!p.joinless)
	case proto.Joined:
		p.joined = &x
		p.note("peer joined")
	case proto.ActivateDue:
		p.peerDoes(proto.Send{Message: &proto.Activate{Marks: []proto.Mark{{Ingress: 77, Group: testGroup, Sequence: 50}}}})
	case proto.Served:
		p.note("peer served")
	case proto.Rested:
		p.note("peer rests")
	case proto.Redirected:
		p.others = x.URLs
		p.note("peer redirected, draining %t", x.Draining)
	case proto.Left:
		p.note("peer left")
	case proto.AnnounceDue:
		p.note("peer announces")
		_ = p.admission.Handle(p.now, &proto.Announce{})
	}
}

func (p *pair) rpDoes(x proto.Action) {
	switch x := x.(type) {
	case proto.Send:
		p.note("rp sends %s", strings.TrimPrefix(fmt.Sprintf("%T", x.Message), "*proto."))
		_ = p.joiner.Handle(p.now, p.carry(x.Message))
	case SendProbe:
		size := x.Size
		if p.short {
			size--
		}
		if x.Mode == proto.ModeSSM {
			p.note("probe of %04x on %d", x.Group, x.Port)
			if !p.cut {
				p.joiner.Probe(x.Nonce, x.Size)
			}
			return
		}
		p.note("probe")
		if !p.deaf {
			p.joiner.Probe(x.Nonce, size)
		}
	case Admit:
		p.admit, p.rests = &x, x.Join.Standby
		p.admission.Admitted(p.now, p.grant(x.Mode))
	case Readmit:
		if p.forgot || x.Resume.Token != p.token {
			p.admission.Fail(&proto.Error{Reason: proto.ReasonSession, Detail: "no such session"})
			return
		}
		p.admission.Resumed(p.now, p.grant(proto.ModeUnicast), p.rests)
	case Serve:
		p.rests, p.replayed = false, x.Marks
		p.admission.Activated(p.grant(proto.ModeUnicast))
	case Rest:
		p.rests = true
	case Remove:
		p.note("removed")
	}
}

// run lets time pass in steps of 50 ms, with a heartbeat each.
func (p *pair) run(d time.Duration) {
	for end := p.now.Add(d); p.now.Before(end); {
		p.now = p.now.Add(50 * time.Millisecond)
		if !p.silent && !p.rests && !(p.cut && p.joined != nil && p.joined.Mode == proto.ModeSSM) {
			p.joiner.Heard(p.now)
		}
		p.joiner.Tick(p.now)
		p.admission.Tick(p.now)
		for _, next := range []time.Time{p.joiner.Deadline(), p.admission.Deadline()} {
			if !next.IsZero() && !next.After(p.now) {
				p.t.Fatalf("due again at once, in states %v and %v", p.joiner.State(), p.admission.State())
			}
		}
		p.flush()
	}
}

func (p *pair) expect(j proto.JoinerState, a State) {
	p.t.Helper()
	if p.joiner.State() != j || p.admission.State() != a {
		p.t.Fatalf("states %v and %v, want %v and %v; log:\n%s", p.joiner.State(), p.admission.State(), j, a, strings.Join(p.log, "\n"))
	}
}

func (p *pair) count(entry string) (n int) {
	for _, e := range p.log {
		if e == entry {
			n++
		}
	}
	return n
}

func TestJoin(t *testing.T) {
	p := newPair(t, nil)
	p.expect(proto.JoinerIdle, Idle)
	p.joiner.Want(p.now, true)
	p.flush()
	p.expect(proto.JoinerActive, Active)
	if p.joined.SendKey != p.admit.ReceiveKey || p.joined.ReceiveKey != p.admit.SendKey || p.joined.SendKey == p.joined.ReceiveKey {
		t.Error("the two sides derived different hop keys")
	}
	if p.joined.SendSession != 99 || p.joined.ReceiveSession != p.admit.Join.Session || p.joined.ReceiveSession == 0 {
		t.Errorf("sessions %+v", p.joined)
	}
	if p.count("probe") != 1 {
		t.Errorf("%d probes", p.count("probe"))
	}
	p.run(5 * time.Minute) // announces keep the lease
	p.expect(proto.JoinerActive, Active)
	p.joiner.Want(p.now, false)
	p.flush()
	p.expect(proto.JoinerIdle, Idle)
	if p.count("removed") != 1 {
		t.Error("the session was not removed")
	}
}

// An endpoint that never answers gets three PROBEs and nothing else.
func TestUnprovenEndpoint(t *testing.T) {
	p := newPair(t, nil)
	p.deaf = true
	p.joiner.Want(p.now, true)
	p.flush()
	p.run(proto.ProbeTimeout)
	p.expect(proto.JoinerBackoff, Idle)
	if n := p.count("probe"); n != proto.MaxProbes {
		t.Errorf("%d probes, want %d", n, proto.MaxProbes)
	}
	if p.count("peer joined")+p.count("rp sends Welcome") != 0 {
		t.Error("an unproven endpoint was admitted")
	}
	p.deaf = false
	p.run(2 * time.Second)
	p.expect(proto.JoinerActive, Active)
}

// An RP that is slow tries as often, and waits for the last ProbeAck as long.
func TestSlowProbes(t *testing.T) {
	p := newPair(t, nil)
	p.deaf = true
	p.joiner.Want(p.now, true)
	p.flush()
	const late = 2 * proto.ProbeTimeout
	for n := 1; ; n++ {
		p.expect(proto.JoinerJoining, Probing)
		if got := p.count("probe"); got != n {
			t.Fatalf("%d probes, want %d", got, n)
		}
		p.now = p.now.Add(late) // to send it takes this long
		p.admission.ProbeLeft(p.now)
		if n == proto.MaxProbes {
			break
		}
		p.now = p.now.Add(late)
		p.admission.Tick(p.now)
		for _, x := range p.admission.Actions() {
			p.rpDoes(x)
		}
	}
	p.now = p.now.Add(proto.ProbeTimeout - time.Second - 1)
	p.admission.Tick(p.now)
	p.expect(proto.JoinerJoining, Probing)
	p.now = p.now.Add(1)
	p.admission.Tick(p.now)
	p.expect(proto.JoinerJoining, Idle)
}

// A path that cuts the largest datagram is not proven.
func TestProbeSize(t *testing.T) {
	p := newPair(t, nil)
	p.short = true
	p.joiner.Want(p.now, true)
	p.flush()
	p.expect(proto.JoinerBackoff, Idle)
	if p.count("peer joined") != 0 {
		t.Error("admitted")
	}
}

func TestProbeNotAsked(t *testing.T) {
	p := newPair(t, nil)
	p.joiner.Probe([wire.NonceSize]byte{1}, 1232)
	p.flush()
	if n := p.count("peer sends ProbeAck"); n != 0 {
		t.Errorf("%d echoes while idle", n)
	}
}

func TestWrongNonce(t *testing.T) {
	p := newPair(t, nil)
	p.deaf = true
	p.joiner.Want(p.now, true)
	p.flush()
	if err := p.admission.Handle(p.now, &proto.ProbeAck{Nonce: [16]byte{1, 2, 3}, Size: 1232}); proto.ReasonOf(err) != proto.ReasonUnexpected {
		t.Errorf("guessed nonce: %v", err)
	}
	p.flush()
	p.expect(proto.JoinerBackoff, Idle)
}

func TestLeaseExpires(t *testing.T) {
	p := newPair(t, nil)
	p.joiner.Want(p.now, true)
	p.flush()
	p.joiner = proto.NewJoiner(p.peer) // a peer that forgot
	p.joiner.Actions()
	p.now = p.now.Add(proto.Lease - time.Millisecond)
	p.admission.Tick(p.now)
	p.expect(proto.JoinerConnected, Active)
	p.now = p.now.Add(time.Millisecond)
	p.admission.Tick(p.now)
	p.flush()
	if p.admission.State() != Idle || p.count("removed") != 1 {
		t.Errorf("state %v, log %v", p.admission.State(), p.log)
	}
}

// Any lease that an RP may grant is kept, also one that it changes when the peer resumes.
func TestLeaseIsKept(t *testing.T) {
	for _, lease := range []time.Duration{proto.MinLease, 10 * time.Second, 30 * time.Second, proto.Lease, proto.MaxLease} {
		p := newPair(t, func(_ *proto.JoinerConfig, a *Config) { a.Lease = lease })
		p.token = proto.Token{5}
		p.joiner.Want(p.now, true)
		p.flush()
		p.run(2 * max(lease, proto.AnnounceInterval))
		p.expect(proto.JoinerActive, Active)
		p.disconnect()
		p.admission.cfg.Lease = proto.MinLease
		p.reconnect(77)
		p.run(2 * proto.AnnounceInterval)
		p.expect(proto.JoinerActive, Active)
		if p.count("peer left") != 0 {
			t.Errorf("lease of %v: log %v", lease, p.log)
		}
	}
}

// A silent RP is left within HeartbeatTimeout and tried again.
func TestSilentRP(t *testing.T) {
	p := newPair(t, nil)
	p.joiner.Want(p.now, true)
	p.flush()
	p.run(time.Second)
	p.silent = true
	p.run(proto.HeartbeatTimeout + 100*time.Millisecond)
	p.expect(proto.JoinerBackoff, Idle)
	p.silent = false
	p.run(time.Second)
	p.expect(proto.JoinerActive, Active)
}

// Time in which the peer did not run is not the RP's silence.
func TestStalledPeer(t *testing.T) {
	p := newPair(t, nil)
	p.joiner.Want(p.now, true)
	p.flush()
	p.now = p.now.Add(10 * time.Second)
	p.joiner.Tick(p.now)
	p.expect(proto.JoinerActive, Active)
}

func TestBackoffDoubles(t *testing.T) {
	p := newPair(t, func(j *proto.JoinerConfig, _ *Config) { j.Groups = []ids.Group{1} })
	p.joiner.Want(p.now, true)
	p.flush()
	p.run(time.Minute)
	// 0.5 + 1 + 2 + 4 + 8 + 16 = 31.5 s for the first seven.
	if n := p.count("peer sends Join"); n < 7 || n > 8 {
		t.Errorf("%d joins in a minute", n)
	}
	if p.count("probe") != 0 {
		t.Error("probed for a group that is not served")
	}
}

func TestWrongStatus(t *testing.T) {
	for name, change := range map[string]func(*proto.JoinerConfig, *Config){
		"network": func(j *proto.JoinerConfig, _ *Config) { j.NetworkID++ },
		"genesis": func(j *proto.JoinerConfig, _ *Config) { j.Genesis[0]++ },
		"role":    func(_ *proto.JoinerConfig, a *Config) { a.Status.Role = proto.RolePeer },
	} {
		p := newPair(t, change)
		p.joiner.Want(p.now, true)
		p.flush()
		p.run(10 * time.Second)
		if p.joiner.State() != proto.JoinerBarred || p.count("peer sends Join") != 0 {
			t.Errorf("%s: state %v, log %v", name, p.joiner.State(), p.log)
		}
	}
}

// Messages that the state does not allow end the session and nothing else: the
// next Join is admitted.
func TestViolations(t *testing.T) {
	for _, m := range []proto.Message{&proto.Have{}, &proto.Welcome{Session: 1}, &proto.Status{Role: proto.RolePeer}, &proto.Join{Groups: []ids.Group{testGroup}}, &proto.ProbeAck{}} {
		p := newPair(t, nil)
		p.joiner.Want(p.now, true)
		p.flush()
		if err := p.admission.Handle(p.now, m); proto.ReasonOf(err) != proto.ReasonUnexpected {
			t.Errorf("%T to an RP: %v", m, err)
		}
		p.flush()
		p.expect(proto.JoinerBackoff, Idle)
		p.run(time.Second)
		p.expect(proto.JoinerActive, Active)
	}
	for _, m := range []proto.Message{&proto.Have{}, &proto.Join{}, &proto.Status{Role: proto.RoleRP}, &proto.Announce{}, &proto.RekeyAck{}} {
		p := newPair(t, nil)
		p.joiner.Want(p.now, true)
		p.flush()
		if err := p.joiner.Handle(p.now, m); proto.ReasonOf(err) != proto.ReasonUnexpected {
			t.Errorf("%T to a peer: %v", m, err)
		}
		p.flush()
		p.run(time.Second)
		p.expect(proto.JoinerActive, Active)
	}
}

func TestRekeyInstalledBeforeAck(t *testing.T) {
	p := newPair(t, nil)
	p.joiner.Want(p.now, true)
	p.flush()
	if err := p.joiner.Handle(p.now, &proto.Rekey{ID: 7, Keys: []proto.GroupKey{{Ingress: 1}}, Retired: []ids.Incarnation{2}}); err != nil {
		t.Fatal(err)
	}
	actions := p.joiner.Actions()
	install := slices.IndexFunc(actions, func(a proto.Action) bool { _, ok := a.(proto.Install); return ok })
	ack := slices.IndexFunc(actions, func(a proto.Action) bool { s, ok := a.(proto.Send); return ok && s.Message.Code() == proto.RekeyAckMsg })
	if install < 0 || ack < install {
		t.Errorf("actions %v", actions)
	}
}

// A peer cannot know that the RP just ended its session, or the attempt to get one.
func TestCrossedLeave(t *testing.T) {
	p := newPair(t, nil)
	p.deaf = true
	p.joiner.Want(p.now, true)
	p.flush()
	echo := &proto.ProbeAck{Nonce: p.admission.nonce, Size: p.admission.join.ProbeSize}
	for range proto.MaxProbes {
		p.now = p.now.Add(proto.ProbeTimeout)
		p.admission.Tick(p.now)
	}
	p.expect(proto.JoinerJoining, Idle)
	p.admission.Actions()
	for _, m := range []proto.Message{echo, &proto.Announce{}, &proto.RekeyAck{}, &proto.Activate{}, &proto.Deactivate{}, &proto.Confirm{}} {
		if err := p.admission.Handle(p.now, m); err != nil || len(p.admission.Actions()) != 0 {
			t.Errorf("%T while idle: %v", m, err)
		}
	}
}

// Whatever comes in whatever order, neither machine panics or sends to an
// unproven endpoint more than it may.
func FuzzAdmission(f *testing.F) {
	f.Add([]byte{0, 1, 2, 4, 20, 7, 1, 20, 20})
	f.Add([]byte{0, 1, 2, 2, 4, 20, 7, 1, 20, 20})
	f.Add([]byte{0, 1, 2, 40, 40, 100, 100, 2, 4, 20, 7, 1, 20, 20})
	f.Fuzz(func(t *testing.T, script []byte) {
		a := New(Config{
			Groups: []ids.Group{goldenGroup}, Lease: proto.Lease, Rand: rand.NewChaCha8([32]byte{}),
			Status: proto.Status{Role: proto.RoleRP, Incarnation: 1, DataPort: 1, GroupPort: 2},
		})
		now := time.Unix(0, 0)
		var probes [2]int // by mode
		var proven [2]bool
		echoes := 0
		golden := goldenMessages(t)
		for i, op := range script {
			if int(op) < len(golden) {
				m := golden[op].message(0)
				switch m := m.(type) {
				case *proto.Status:
					*m = proto.Status{Role: proto.RolePeer}
				case *proto.Join:
					m.Groups, m.Mode, m.Standby = m.Groups[:1], proto.ModeSSM, i%2 == 0 // mode ssm takes one group
					probes, proven = [2]int{}, [2]bool{}
				case *proto.ProbeAck:
					switch {
					case echoes%3 == 0:
						m.Nonce, proven[proto.ModeUnicast] = a.nonce, true
					case echoes%3 == 1 && a.state == Proving:
						m.Nonce, proven[proto.ModeSSM] = a.channel, true
					}
					echoes++
				}
				_ = a.Handle(now, m)
			} else {
				now = now.Add(time.Duration(op) * 10 * time.Millisecond)
				a.Tick(now)
			}
			for _, x := range a.Actions() {
				switch x := x.(type) {
				case SendProbe:
					probes[x.Mode]++
					if x.Mode == proto.ModeSSM && !proven[proto.ModeUnicast] {
						t.Fatal("probe on a channel for an unproven endpoint")
					}
				case Admit:
					if !proven[proto.ModeUnicast] || !proven[x.Mode] {
						t.Fatalf("admitted in mode %v without a ProbeAck", x.Mode)
					}
					a.Admitted(now, Grant{Session: 1, Rate: 1, Burst: 1})
				case Readmit:
					a.Resumed(now, Grant{Rate: 1, Burst: 1}, x.Resume.Publish)
				case Serve:
					if !a.Standby() {
						t.Fatal("activated twice")
					}
					a.Activated(Grant{Rate: 1, Burst: 1})
				case Rest:
					if !a.Standby() {
						t.Fatal("rests, and is active")
					}
				}
			}
			if max(probes[proto.ModeUnicast], probes[proto.ModeSSM]) > proto.MaxProbes {
				t.Fatalf("%d probes for one join", probes)
			}
		}
	})
}

// What a ProbeAck does depends on its nonce, its size and the state.
func TestProbeAckCases(t *testing.T) {
	for name, c := range map[string]struct {
		admitted bool // the first PROBE was answered
		own      bool // the nonce is the one of the PROBE
		size     uint16
		want     proto.Reason // of the Leave, ReasonQuit for none
		next     State
	}{
		"right":                       {false, true, wire.MaxDatagram, proto.ReasonQuit, Active},
		"smaller":                     {false, true, wire.MaxDatagram - 1, proto.ReasonUnreachable, Idle},
		"larger":                      {false, true, wire.MaxDatagram + 1, proto.ReasonUnreachable, Idle},
		"other nonce":                 {false, false, wire.MaxDatagram, proto.ReasonUnexpected, Idle},
		"second after the Welcome":    {true, true, wire.MaxDatagram, proto.ReasonQuit, Active},
		"smaller after the Welcome":   {true, true, wire.MaxDatagram - 1, proto.ReasonQuit, Active},
		"other nonce after a Welcome": {true, false, wire.MaxDatagram, proto.ReasonUnexpected, Idle},
	} {
		p := newPair(t, nil)
		p.deaf = !c.admitted
		p.joiner.Want(p.now, true)
		p.flush()
		nonce := p.admission.nonce
		if !c.own {
			nonce[len(nonce)-1]++
		}
		err := p.admission.Handle(p.now, &proto.ProbeAck{Nonce: nonce, Size: c.size})
		p.flush()
		if proto.ReasonOf(err) != c.want || p.admission.State() != c.next {
			t.Errorf("%s: %v, then %v", name, err, p.admission.State())
		}
	}
}

// A Join or a Resume with any group that is not served is refused, and the connection may go on.
func TestGroupNotServed(t *testing.T) {
	for _, m := range []proto.Message{
		&proto.Join{Groups: []ids.Group{testGroup, testGroup + 1}, Port: 1, ProbeSize: wire.MaxDatagram, Session: 5},
		&proto.Resume{Groups: []ids.Group{testGroup + 1, testGroup}, Port: 1, Session: 5},
	} {
		p := newPair(t, nil)
		if err := p.admission.Handle(p.now, m); proto.ReasonOf(err) != proto.ReasonGroup || p.admission.State() != Idle {
			t.Errorf("%T: %v, then %v", m, err, p.admission.State())
		}
		for _, a := range p.admission.Actions() {
			if s, ok := a.(proto.Send); !ok || *s.Message.(*proto.Leave) != (proto.Leave{Reason: proto.ReasonGroup}) {
				t.Errorf("%T: %+v", m, a)
			}
		}
		p.joiner.Want(p.now, true)
		p.flush()
		p.expect(proto.JoinerActive, Active)
	}
}

// Messages of a member that come at the wrong time (SPEC 8.2): some are ignored, some break the protocol.
func TestMessagesOutOfPlace(t *testing.T) {
	for name, c := range map[string]struct {
		standby, probing bool
		m                proto.Message
		want             proto.Reason // ReasonQuit: ignored
	}{
		"announce while probing":   {false, true, &proto.Announce{}, proto.ReasonQuit},
		"confirm while probing":    {false, true, &proto.Confirm{}, proto.ReasonQuit},
		"rekeyack while probing":   {false, true, &proto.RekeyAck{}, proto.ReasonQuit},
		"activate while probing":   {false, true, &proto.Activate{}, proto.ReasonUnexpected},
		"deactivate while probing": {false, true, &proto.Deactivate{}, proto.ReasonUnexpected},
		"join while probing":       {false, true, &proto.Join{Groups: []ids.Group{testGroup}}, proto.ReasonUnexpected},
		"activate in groups":       {false, false, &proto.Activate{}, proto.ReasonUnexpected},
		"deactivate in standby":    {true, false, &proto.Deactivate{}, proto.ReasonUnexpected},
		"confirm in standby":       {true, false, &proto.Confirm{}, proto.ReasonQuit},
		"rekeyack of an id":        {false, false, &proto.RekeyAck{ID: 5}, proto.ReasonQuit},
		"resume in groups":         {false, false, &proto.Resume{Groups: []ids.Group{testGroup}}, proto.ReasonUnexpected},
		"have":                     {false, false, &proto.Have{}, proto.ReasonUnexpected},
		"second status":            {false, false, &proto.Status{Role: proto.RolePeer}, proto.ReasonUnexpected},
	} {
		p := newPair(t, nil)
		p.deaf = c.probing
		if p.joiner.Want(p.now, true); c.standby {
			p.joiner.Want(p.now, false)
			p.joiner.WantStandby(p.now)
		}
		p.flush()
		before := p.admission.State()
		err := p.admission.Handle(p.now, c.m)
		next := before
		if c.want != proto.ReasonQuit {
			next = Idle
		}
		if proto.ReasonOf(err) != c.want || p.admission.State() != next || before == Idle {
			t.Errorf("%s: %v, from %v to %v", name, err, before, p.admission.State())
		}
	}
}
