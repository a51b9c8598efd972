// SPDX-License-Identifier: LGPL-3.0-or-later

package admission

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
)

// disconnect ends the connection; the RP forgets it with its process.
func (p *pair) disconnect() {
	p.off = true
	p.joiner.Disconnected(p.now)
	p.flush()
}

// reconnect makes another connection, to an RP that may have begun anew.
func (p *pair) reconnect(incarnation ids.Incarnation) {
	p.off = false
	cfg := p.admission.cfg
	cfg.Status.Incarnation = incarnation
	p.admission = New(cfg)
	p.joiner.Reconnected()
	p.flush()
}

// member returns a pair whose peer joined, with a token.
func member(t *testing.T, change func(*proto.JoinerConfig, *Config)) *pair {
	p := newPair(t, change)
	p.token = proto.Token{5}
	p.joiner.Want(p.now, true)
	p.flush()
	p.expect(proto.JoinerActive, Active)
	p.log = nil
	return p
}

// A connection that ends costs nothing while the datagrams flow on: the peer resumes
// on the next one, without a PROBE.
func TestResume(t *testing.T) {
	p := member(t, nil)
	p.disconnect()
	p.run(proto.DetachTimeout - 100*time.Millisecond)
	p.expect(proto.JoinerDetached, Active)
	if groups, _ := p.joiner.Member(); !groups || len(p.log) != 0 {
		t.Fatalf("member %t, log %v", groups, p.log)
	}
	p.reconnect(77)
	p.expect(proto.JoinerActive, Active)
	if want := []string{"rp sends Status", "peer sends Status", "peer sends Resume", "rp sends Resumed", "peer served"}; len(p.log) != len(want) || p.count("probe")+p.count("peer left") != 0 {
		t.Errorf("log %v", p.log)
	}
	p.run(5 * time.Minute) // announces keep the lease again
	p.expect(proto.JoinerActive, Active)
}

// Nothing is due soon while a session in standby waits for its connection, and to resume:
// nobody expects to hear anything.
func TestStandbyAwayIsQuiet(t *testing.T) {
	p := newPair(t, nil)
	p.token = proto.Token{5}
	p.joiner.WantStandby(p.now)
	p.flush()
	p.disconnect()
	ends := p.now.Add(proto.DetachTimeout)
	quiet := func(want proto.JoinerState) {
		t.Helper()
		p.joiner.Tick(p.now)
		if p.joiner.State() != want || !p.joiner.Deadline().Equal(ends) {
			t.Errorf("%v, due in %v", p.joiner.State(), p.joiner.Deadline().Sub(p.now))
		}
	}
	p.now = p.now.Add(time.Second)
	quiet(proto.JoinerDetached)
	p.joiner.Reconnected()
	status := p.admission.cfg.Status
	if err := p.joiner.Handle(p.now, &status); err != nil {
		t.Fatal(err)
	}
	p.now = p.now.Add(time.Second)
	quiet(proto.JoinerResuming)
	p.now = ends
	p.joiner.Tick(p.now)
	if p.joiner.State() == proto.JoinerResuming {
		t.Error("resumes for ever")
	}
}

// What ends a membership that has no connection.
func TestNotResumed(t *testing.T) {
	for name, c := range map[string]struct {
		play func(*pair)
		left bool
		then proto.JoinerState
	}{
		"too long": {func(p *pair) { p.run(proto.DetachTimeout) }, true, proto.JoinerAway},
		"silence": {func(p *pair) {
			p.silent = true
			p.run(proto.DetachSilence - 50*time.Millisecond)
			p.expect(proto.JoinerDetached, Active)
			p.run(50 * time.Millisecond)
		}, true, proto.JoinerAway},
		"no echo":         {func(p *pair) { p.joiner.Unanswered(p.now) }, true, proto.JoinerAway},
		"not wanted":      {func(p *pair) { p.joiner.Want(p.now, false) }, true, proto.JoinerAway},
		"own address":     {func(p *pair) { p.joiner.Drop(&proto.Error{Reason: proto.ReasonUnreachable, Detail: "moved"}) }, true, proto.JoinerAway},
		"began anew":      {func(p *pair) { p.reconnect(78) }, true, proto.JoinerActive},
		"forgotten":       {func(p *pair) { p.forgot = true; p.reconnect(77) }, true, proto.JoinerActive},
		"a second ending": {func(p *pair) { p.reconnect(77); p.disconnect() }, false, proto.JoinerDetached},
	} {
		p := member(t, nil)
		p.disconnect()
		c.play(p)
		p.flush()
		if p.joiner.State() != c.then || (p.count("peer left") == 1) != c.left {
			t.Errorf("%s: state %v, log %v", name, p.joiner.State(), p.log)
		}
	}
}

// A second connection may end before it says anything, and the time does not begin anew.
func TestResumeTimeGoesOn(t *testing.T) {
	p := member(t, nil)
	p.disconnect()
	for range 4 {
		p.run(proto.DetachTimeout / 5)
		p.off = false
		p.joiner.Reconnected()
		p.joiner.Actions()
		p.disconnect()
	}
	p.expect(proto.JoinerDetached, Active)
	p.run(proto.DetachTimeout / 5)
	p.expect(proto.JoinerAway, Active)
}

// Without a token a connection is the membership.
func TestNoToken(t *testing.T) {
	p := newPair(t, nil)
	p.joiner.Want(p.now, true)
	p.flush()
	p.disconnect()
	p.expect(proto.JoinerAway, Active)
	if p.count("peer left") != 1 {
		t.Errorf("log %v", p.log)
	}
	p.reconnect(77)
	p.expect(proto.JoinerActive, Active)
}

// A standby session hears nothing, keeps its lease, and becomes active by one message.
func TestStandby(t *testing.T) {
	p := newPair(t, func(j *proto.JoinerConfig, a *Config) { offered(j, a) })
	p.token = proto.Token{5}
	p.joiner.WantStandby(p.now)
	p.flush()
	p.expect(proto.JoinerStandby, Active)
	if !p.admission.Standby() || !p.joined.Standby || p.joined.Mode != proto.ModeUnicast || p.count("probe") != 1 {
		t.Fatalf("standby %t, joined %+v", p.admission.Standby(), p.joined)
	}
	p.run(5 * time.Minute)
	p.expect(proto.JoinerStandby, Active)

	p.log = nil
	p.joiner.Want(p.now, true)
	p.flush()
	p.expect(proto.JoinerActive, Active)
	if want := []string{"peer sends Activate", "rp sends Activated", "peer served"}; !slices.Equal(p.log, want) {
		t.Errorf("log %v", p.log)
	}
	if p.admission.Standby() || len(p.replayed) != 1 || p.replayed[0].Sequence != 50 {
		t.Errorf("standby %t, marks %v", p.admission.Standby(), p.replayed)
	}
	p.run(time.Minute)
	p.log = nil
	p.joiner.WantStandby(p.now)
	p.flush()
	p.expect(proto.JoinerStandby, Active)
	if want := []string{"peer sends Deactivate", "peer rests"}; !slices.Equal(p.log, want) || !p.admission.Standby() {
		t.Errorf("log %v", p.log)
	}

	// It outlives the connection as well, silent as it is.
	p.disconnect()
	p.run(proto.DetachTimeout - 100*time.Millisecond)
	p.reconnect(77)
	p.expect(proto.JoinerStandby, Active)
}

// What is wanted may change at any time.
func TestStandbyChangesItsMind(t *testing.T) {
	p := newPair(t, nil)
	p.deaf = true
	p.joiner.WantStandby(p.now)
	p.flush()
	p.joiner.Want(p.now, true) // while it joins
	p.deaf = false
	p.run(time.Second)
	p.expect(proto.JoinerActive, Active)
	if p.count("peer sends Activate") != 1 {
		t.Errorf("log %v", p.log)
	}
	p.joiner.WantStandby(p.now)
	p.joiner.Want(p.now, true)
	p.joiner.WantStandby(p.now) // before any of it was answered
	p.flush()
	p.expect(proto.JoinerStandby, Active)
	if !p.admission.Standby() {
		t.Error("the two sides disagree")
	}
	p.joiner.Want(p.now, false)
	p.flush()
	p.expect(proto.JoinerIdle, Idle)
}

// The connection ends while the change was on its way: the RP knows what became of it.
func TestResumeTellsWhatIs(t *testing.T) {
	p := member(t, nil)
	p.joiner.WantStandby(p.now)
	p.joiner.Actions() // lost
	p.disconnect()
	p.reconnect(77)
	p.expect(proto.JoinerStandby, Active)
	if !p.admission.Standby() || p.count("peer sends Deactivate") != 1 {
		t.Errorf("log %v", p.log)
	}
}

// An RP may have taken a session out of its groups meanwhile. Its keys count as in any
// other standby.
func TestResumedInStandby(t *testing.T) {
	p := member(t, nil)
	p.disconnect()
	p.joiner.Reconnected()
	status := p.admission.cfg.Status
	keys := []proto.GroupKey{{Ingress: 77, Group: testGroup, Epoch: 3}}
	for _, m := range []proto.Message{&status, &proto.Resumed{Standby: true, Lease: 45, Terms: proto.Terms{Keys: keys}}} {
		p.joiner.Actions()
		if err := p.joiner.Handle(p.now, m); err != nil {
			t.Fatal(err)
		}
	}
	want := []proto.Action{proto.Rested{}, proto.Install{Keys: keys}, proto.ActivateDue{}}
	if got := p.joiner.Actions(); !reflect.DeepEqual(got, want) {
		t.Errorf("actions %v, want %v", got, want)
	}
}

// A standby RP that does not answer is no help.
func TestActivateTimeout(t *testing.T) {
	p := newPair(t, nil)
	p.joiner.WantStandby(p.now)
	p.flush()
	p.joiner.Want(p.now, true)
	p.joiner.Actions() // lost
	p.run(proto.ActivateTimeout - 50*time.Millisecond)
	p.expect(proto.JoinerActivating, Active)
	p.run(50 * time.Millisecond)
	p.expect(proto.JoinerBackoff, Idle)
}

// An RP that neither acknowledges nor says anything is lost sooner than by silence alone.
func TestUnanswered(t *testing.T) {
	p := member(t, nil)
	p.run(time.Second)
	p.joiner.Unanswered(p.now)
	p.expect(proto.JoinerActive, Active)
	p.silent = true
	p.run(proto.SuspectTimeout)
	p.expect(proto.JoinerActive, Active)
	p.joiner.Unanswered(p.now)
	p.flush()
	p.expect(proto.JoinerBackoff, Idle)
}

// An RP that takes nothing is lost whatever it says, and is left alone for longer each time, until it
// takes something.
func TestDeaf(t *testing.T) {
	p := member(t, nil)
	deaf := func(alone time.Duration) {
		t.Helper()
		p.joiner.Deaf(p.now)
		p.flush()
		p.expect(proto.JoinerBackoff, Idle)
		p.run(alone - time.Second)
		p.expect(proto.JoinerBackoff, Idle)
		p.run(2 * time.Second)
		p.expect(proto.JoinerActive, Active)
		p.run(10 * time.Second) // it is heard all the time
	}
	for alone := proto.DeafBackoff; alone < proto.MaxDeafBackoff; alone *= 2 {
		deaf(alone)
	}
	deaf(proto.MaxDeafBackoff)
	deaf(proto.MaxDeafBackoff)
	p.joiner.Echoed()
	deaf(proto.DeafBackoff)
}

// A member of an RP that will stop stays until it has another.
func TestRedirectOfAMember(t *testing.T) {
	others := []string{"enode://other"}
	p := member(t, func(_ *proto.JoinerConfig, a *Config) { a.Others = func() []string { return others } })
	p.admission.Redirect()
	p.flush()
	p.expect(proto.JoinerActive, Active)
	if p.count("peer redirected, draining true") != 1 || !slices.Equal(p.others, others) || p.joiner.Usable(p.now) {
		t.Errorf("log %v, others %v", p.log, p.others)
	}
	p.admission.Fail(&proto.Error{Reason: proto.ReasonDraining, Detail: "the time is over"})
	p.flush()
	p.expect(proto.JoinerBackoff, Idle)
	if p.count("peer redirected, draining true") != 2 || p.joiner.Draining() {
		t.Errorf("log %v", p.log)
	}
}

// A full RP names others, and is not asked again before the back-off is over, whatever
// is wanted meanwhile.
func TestFullRP(t *testing.T) {
	p := newPair(t, func(_ *proto.JoinerConfig, a *Config) {
		a.Others = func() []string { return make([]string, 2*proto.MaxRedirect) }
	})
	p.joiner.Want(p.now, true)
	p.joiner.Actions()
	p.admission.Fail(&proto.Error{Reason: proto.ReasonFull, Detail: "no room"})
	p.flush()
	p.expect(proto.JoinerBackoff, Idle)
	if len(p.others) != proto.MaxRedirect || p.joiner.Usable(p.now) {
		t.Errorf("%d others", len(p.others))
	}
	p.joiner.Want(p.now, false)
	p.joiner.WantStandby(p.now)
	p.flush()
	if p.count("peer sends Join") != 0 || p.joiner.Usable(p.now) {
		t.Errorf("log %v", p.log)
	}
	p.run(proto.MinBackoff)
	p.expect(proto.JoinerStandby, Active)
}

// Messages that the state does not allow.
func TestStandbyViolations(t *testing.T) {
	resume := &proto.Resume{Token: proto.Token{5}, Session: 99, Port: 1, Groups: []ids.Group{testGroup}}
	for name, m := range map[string]proto.Message{"activate": &proto.Activate{}, "resume": resume, "resumed": &proto.Resumed{Lease: 45}, "redirect": &proto.Redirect{}} {
		p := member(t, nil)
		if err := p.admission.Handle(p.now, m); proto.ReasonOf(err) != proto.ReasonUnexpected {
			t.Errorf("%s to an RP: %v", name, err)
		}
	}
	p := newPair(t, nil)
	p.joiner.WantStandby(p.now)
	p.flush()
	if err := p.admission.Handle(p.now, &proto.Deactivate{}); proto.ReasonOf(err) != proto.ReasonUnexpected {
		t.Errorf("deactivate: %v", err)
	}
	for _, m := range []proto.Message{&proto.Resume{}, &proto.Activate{}, &proto.Deactivate{}} {
		p := member(t, nil)
		if err := p.joiner.Handle(p.now, m); proto.ReasonOf(err) != proto.ReasonUnexpected {
			t.Errorf("%T to a peer: %v", m, err)
		}
	}
	other := *resume
	other.Groups = []ids.Group{1}
	p = newPair(t, nil)
	if err := p.admission.Handle(p.now, &other); proto.ReasonOf(err) != proto.ReasonGroup {
		t.Errorf("group not served: %v", err)
	}
}
