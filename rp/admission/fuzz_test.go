// SPDX-License-Identifier: LGPL-3.0-or-later

package admission

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// FuzzSides plays a hostile other side to an RP and to a peer: any bytes as messages, in any
// order, with datapath, connection and time in between. After each step the invariants of both
// machines are checked.
//
// A script is a list of steps. The first byte of a step says what it does:
//
//	0 .. 17     a golden message with this code to the side that it is for; right nonces and groups are filled in
//	18 .. 31    a golden message with code - 18 to the other side
//	32 .. 63    a message with code - 32 to the side that it is for; the next byte is its length, then
//	            its payload; one that cannot be decoded ends the sessions of both
//	64 .. 95    one of the calls of the RP's shell
//	96 .. 127   one of the calls of the peer's shell
//	from 128 on (byte - 127) * 20 ms pass
func FuzzSides(f *testing.F) {
	for _, script := range [][]byte{
		{97, 0, 1, 2, 64, 3, 4, 12, 13, 11, 12, 64, 200, 5, 6, 16, 15, 17, 7},
		{97, 0, 98, 1, 130, 2, 2, 64, 3, 103, 5, 15, 17, 99, 100, 0, 10, 16, 4, 14, 140, 255, 255, 255},
		{0, 96, 1, 130, 3, 128, 99, 100, 0, 7, 200, 97, 14, 15, 101, 102},
		{0, 9, 64, 66, 67, 68, 69, 4, 6, 16, 13, 11, 64, 68, 16, 255},
		{0, 1, 140, 150, 2, 64, 4, 13, 11, 64, 13, 7, 1, 2, 180, 2, 64, 69, 65, 98, 104, 103},
		{0, 1, 2, 140, 160, 2, 64, 16, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255},
		{32, 1, 0xc0, 33, 2, 0xc1, 0x80, 96, 255, 255},
	} {
		f.Add(script)
	}
	for _, g := range goldenMessages(f) { // each as bytes, behind the handshake
		for _, b := range g.payloads {
			if len(b) < 256 {
				f.Add(slices.Concat([]byte{97, 0, 32 + byte(g.code), byte(len(b))}, b))
			}
		}
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		s := newSides(t)
		s.settle()
		for steps := 0; len(script) > 0 && steps < 500; steps++ {
			script = s.step(script)
			s.settle()
			s.check()
		}
	})
}

// sides are the two machines, each with a hostile other side.
type sides struct {
	t   *testing.T
	now time.Time
	a   *Admission
	j   *proto.Joiner

	// Of the Admission.
	probes  [2]int // of the present Join, by mode
	proven  [2]bool
	session bool // between Join or Resume and Remove
	asked   bool // Admit or Readmit is not answered
	resumes bool // it is Readmit
	serving bool // Serve is not answered
	mode    proto.DeliveryMode

	// Of the Joiner.
	off    bool        // there is no connection
	member bool        // between Joined and Left
	joins  ids.Session // session index of its last Join

	golden []golden // by code
}

func newSides(t *testing.T) *sides {
	rng := rand.NewChaCha8([32]byte{1})
	return &sides{
		t: t, now: time.Unix(1000, 0), golden: goldenMessages(t),
		a: New(Config{
			Self: [32]byte{2}, Remote: [32]byte{1}, Groups: []ids.Group{testGroup}, Lease: proto.Lease, Rand: rng,
			Status: proto.Status{Role: proto.RoleRP, Incarnation: 77, DataPort: 30501, GroupPort: 30502},
			Others: func() []string { return []string{"enode://other"} },
		}),
		j: proto.NewJoiner(proto.JoinerConfig{
			Self: [32]byte{1}, Remote: [32]byte{2}, Groups: []ids.Group{testGroup}, Publish: true, Port: 30400, Mode: proto.ModeSSM, Rand: rng,
		}),
	}
}

func (s *sides) step(script []byte) []byte {
	op, rest := script[0], script[1:]
	switch {
	case op < 32:
		all := s.golden
		m := all[int(op)%len(all)].message(len(rest))
		switch m := m.(type) {
		case *proto.Status:
			rp := *all[proto.StatusMsg].message(0).(*proto.Status)
			s.toRP(&proto.Status{Role: proto.RolePeer})
			rp.NetworkID, rp.Genesis = 0, [32]byte{}
			s.toPeer(&rp)
			return rest
		case *proto.Join:
			m.Groups, m.Mode = []ids.Group{testGroup}, proto.ModeSSM
			m.Standby = len(rest)%2 == 0
		case *proto.Resume:
			m.Groups = []ids.Group{testGroup}
		case *proto.ProbeAck:
			m.Nonce = s.a.nonce
			if s.a.State() == Proving && len(rest)%3 > 0 {
				m.Nonce = s.a.channel
			}
		}
		s.deliver(m, int(op) >= len(all))
	case op < 64:
		if len(rest) == 0 {
			return nil
		}
		n := min(int(rest[0]), len(rest)-1)
		payload := rest[1 : 1+n]
		if m, err := proto.Decode(uint64(op-32), payload); err != nil {
			s.a.Fail(err)
			if !s.off {
				s.j.Fail(s.now, err)
			}
		} else {
			s.deliver(m, false)
		}
		rest = rest[1+n:]
	case op < 96:
		s.shellRP(op - 64)
	case op < 128:
		s.shellPeer(op - 96)
	default:
		s.now = s.now.Add(time.Duration(op-127) * 20 * time.Millisecond)
		s.a.Tick(s.now)
		s.j.Tick(s.now)
	}
	return rest
}

// deliver gives a message to the side that it is for, or to the other one.
func (s *sides) deliver(m proto.Message, wrong bool) {
	switch m.(type) {
	case *proto.Welcome, *proto.Rekey, *proto.Resumed, *proto.Activated, *proto.Redirect, *proto.Counters, *proto.Receipt:
		wrong = !wrong
	case *proto.Status, *proto.Leave, *proto.Have:
		s.toRP(m)
		s.toPeer(m)
		return
	}
	if wrong {
		s.toPeer(m)
	} else {
		s.toRP(m)
	}
}

// toRP gives the Admission a message.
func (s *sides) toRP(m proto.Message) {
	probing, proving := s.a.State() == Probing, s.a.State() == Proving
	if ack, ok := m.(*proto.ProbeAck); ok && ack.Size == s.a.join.ProbeSize {
		s.proven[proto.ModeUnicast] = s.proven[proto.ModeUnicast] || probing && ack.Nonce == s.a.nonce
		s.proven[proto.ModeSSM] = s.proven[proto.ModeSSM] || proving && ack.Nonce == s.a.channel
	}
	switch m.(type) {
	case *proto.Join, *proto.Resume:
		if s.a.State() == Idle {
			s.probes, s.proven = [2]int{}, [2]bool{}
		}
	}
	barred := s.a.State() == Barred
	err := s.a.Handle(s.now, m)
	if err == nil {
		return
	}
	if barred {
		s.t.Fatalf("error of a barred peer: %v", err)
	}
	if state := s.a.State(); state != Idle && state != Barred {
		s.t.Fatalf("state %v after %v", state, err)
	}
	if last := s.a.actions; !slices.ContainsFunc(last, func(x proto.Action) bool {
		m, ok := x.(proto.Send)
		leave, isLeave := m.Message.(*proto.Leave)
		return ok && isLeave && leave.Reason == proto.ReasonOf(err)
	}) {
		s.t.Fatalf("no Leave for %v: %+v", err, last)
	}
}

func (s *sides) toPeer(m proto.Message) {
	if s.off {
		return
	}
	if err := s.j.Handle(s.now, m); err != nil {
		if groups, standby := s.j.Member(); groups || standby {
			s.t.Fatalf("member after %v", err)
		}
	}
}

// shellRP does what the shell of an RP does besides handing on messages.
func (s *sides) shellRP(op byte) {
	switch op {
	case 0: // the datapath answers
		grant := Grant{Session: 9, Rate: 1, Burst: 1}
		switch {
		case s.asked && s.resumes:
			s.asked = false
			s.a.Resumed(s.now, grant, false)
		case s.asked:
			s.asked = false
			if s.mode == proto.ModeSSM {
				grant.Channel = proto.Channel{Session: 8, Key: auth.Key{7}}
			}
			s.a.Admitted(s.now, grant)
		case s.serving:
			s.serving = false
			s.a.Activated(grant)
		}
	case 1:
		s.a.Fail(&proto.Error{Reason: proto.ReasonFull, Detail: "no room"})
	case 2:
		s.a.Redirect()
	case 3:
		s.a.Rekey(&proto.Rekey{ID: 1})
	case 4:
		s.a.Tell(&proto.Counters{Group: testGroup})
	case 5:
		s.a.Tell(&proto.Receipt{})
	}
}

// shellPeer does what the shell of a peer does besides handing on messages.
func (s *sides) shellPeer(op byte) {
	switch op {
	case 0:
		s.j.WantStandby(s.now)
	case 1:
		s.j.Want(s.now, true)
	case 2:
		s.j.Subscribed(true)
	case 3:
		if !s.off {
			s.off = true
			s.j.Disconnected(s.now)
		}
	case 4:
		if s.off {
			s.off = false
			s.j.Reconnected()
		}
	case 5:
		s.j.Want(s.now, false)
	case 6:
		s.j.Unanswered(s.now)
	case 7:
		s.j.Heard(s.now)
	case 8:
		var nonce [wire.NonceSize]byte
		binary.BigEndian.PutUint32(nonce[:], uint32(s.joins))
		s.j.Probe(nonce, wire.MaxDatagram)
	case 9:
		s.j.Subscribed(false)
	}
}

// settle does what the machines want, and checks that they may want it.
func (s *sides) settle() {
	for _, x := range s.a.Actions() {
		s.rpDoes(x)
	}
	for _, x := range s.j.Actions() {
		s.peerDoes(x)
	}
}

func (s *sides) rpDoes(x proto.Action) {
	t := s.t
	switch x := x.(type) {
	case proto.Send:
		s.carries(x.Message)
	case SendProbe:
		s.session = true
		s.probes[x.Mode]++
		if s.probes[x.Mode] > proto.MaxProbes {
			t.Fatalf("%v PROBEs for one Join", s.probes)
		}
		if x.Mode == proto.ModeSSM && !s.proven[proto.ModeUnicast] {
			t.Fatal("PROBE on a channel for an unproven endpoint")
		}
		if x.Size < proto.MinProbe || x.Size > wire.MaxDatagram {
			t.Fatalf("PROBE of %d bytes", x.Size)
		}
	case Admit:
		if s.asked || !s.session {
			t.Fatal("admitted twice, or without a Join")
		}
		if !s.proven[proto.ModeUnicast] || !s.proven[x.Mode] {
			t.Fatalf("admitted in mode %v without a ProbeAck", x.Mode)
		}
		if len(x.Join.Groups) != 1 || x.Join.Groups[0] != testGroup {
			t.Fatalf("admitted to groups %x", x.Join.Groups)
		}
		s.asked, s.resumes, s.mode = true, false, x.Mode
	case Readmit:
		if s.session || s.asked {
			t.Fatal("resumed beside a session")
		}
		s.session, s.asked, s.resumes = true, true, true
	case Serve:
		s.serving = true
	case Rest:
		s.serving = false
	case Refresh, Confirmed, KeysInstalled:
		if !s.session {
			t.Fatalf("%T without a session", x)
		}
	case Remove:
		if !s.session || x.Err == nil {
			t.Fatalf("removed without a session: %v", x.Err)
		}
		s.session, s.asked, s.serving = false, false, false
	}
}

func (s *sides) peerDoes(x proto.Action) {
	t := s.t
	switch x := x.(type) {
	case proto.Send:
		if s.off {
			t.Fatalf("%T without a connection", x.Message)
		}
		s.carries(x.Message)
		if join, ok := x.Message.(*proto.Join); ok {
			s.joins = join.Session
			if wait := s.j.RetryAt().Sub(s.now); wait > 0 {
				t.Fatalf("Join %v before the back-off is over", wait)
			}
		}
	case proto.Joined:
		if s.member {
			t.Fatal("joined twice")
		}
		if x.SendSession == 0 || x.ReceiveSession == 0 || (x.Mode == proto.ModeSSM) != (x.Channel.Session != 0) {
			t.Fatalf("joined: %+v", x)
		}
		s.member = true
	case proto.Served, proto.Rested, proto.Install, proto.Counted, proto.Receipted, proto.AnnounceDue, proto.ActivateDue:
		if !s.member {
			t.Fatalf("%T, and no member", x)
		}
	case proto.Left:
		if x.Err == nil {
			t.Fatal("left without a reason")
		}
		s.member = false
	}
}

// carries checks that the other side takes a message.
func (s *sides) carries(m proto.Message) {
	b, err := proto.Encode(m)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := proto.Decode(m.Code(), b); err != nil {
		s.t.Fatalf("%T that nobody takes: %v", m, err)
	}
}

// check checks what holds after each step.
func (s *sides) check() {
	t := s.t
	a := s.a.State()
	open := a != Connected && a != Idle && a != Barred
	if open != s.session {
		t.Fatalf("session %t in state %v", s.session, a)
	}
	if s.asked != (a == Admitting) {
		t.Fatalf("answer of the datapath due: %t in state %v", s.asked, a)
	}
	timed := a == Probing || a == Proving || a == Active
	if timed == s.a.Deadline().IsZero() {
		t.Fatalf("deadline %v in state %v", s.a.Deadline(), a)
	}
	groups, standby := s.j.Member()
	if groups && standby || (groups || standby) != s.member {
		t.Fatalf("member %t, in groups %t, in standby %t, in state %v", s.member, groups, standby, s.j.State())
	}
	if s.off && s.j.State() != proto.JoinerAway && s.j.State() != proto.JoinerDetached {
		t.Fatalf("state %v without a connection", s.j.State())
	}
}
