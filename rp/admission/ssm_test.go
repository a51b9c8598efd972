// SPDX-License-Identifier: LGPL-3.0-or-later

package admission

import (
	"strings"
	"testing"
	"time"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// offered makes the RP offer mode ssm and the peer wish it.
func offered(j *proto.JoinerConfig, a *Config) {
	j.Mode, a.Status.GroupPort = proto.ModeSSM, 30502
}

func (p *pair) expectMode(want proto.DeliveryMode) {
	p.t.Helper()
	p.expect(proto.JoinerActive, Active)
	if p.joined.Mode != want || p.admit.Mode != want {
		p.t.Fatalf("modes %v and %v, want %v; log:\n%s", p.joined.Mode, p.admit.Mode, want, strings.Join(p.log, "\n"))
	}
}

func TestSSMJoin(t *testing.T) {
	p := newPair(t, offered)
	p.log = nil
	p.joiner.Want(p.now, true)
	p.flush()
	p.expectMode(proto.ModeSSM)
	if want := (proto.Channel{Session: 98, Key: auth.Key{97}}); p.joined.Channel != want {
		t.Errorf("channel %+v, want %+v", p.joined.Channel, want)
	}
	want := []string{
		"peer subscribes to 1234 on 30502", "peer sends Join", "probe", "peer sends ProbeAck", "probe of 1234 on 30502",
		"peer sends ProbeAck", "rp sends Welcome", "peer joined",
	}
	if got := strings.Join(p.log, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("log:\n%s", got)
	}
	p.run(time.Minute)
	p.expectMode(proto.ModeSSM)
}

// Without the wish, the offer, a host that can, or with several groups, nothing is
// sent to a channel and nothing is lost by it.
func TestSSMNotPossible(t *testing.T) {
	for name, change := range map[string]func(*proto.JoinerConfig, *Config){
		"not wished":       func(j *proto.JoinerConfig, _ *Config) { j.Mode = proto.ModeUnicast },
		"not offered":      func(_ *proto.JoinerConfig, a *Config) { a.Status.GroupPort = 0 },
		"host cannot join": nil,
		"several groups": func(j *proto.JoinerConfig, a *Config) {
			j.Groups = append(j.Groups, 1)
			a.Groups = append(a.Groups, 1)
		},
	} {
		p := newPair(t, func(j *proto.JoinerConfig, a *Config) {
			offered(j, a)
			if change != nil {
				change(j, a)
			}
		})
		p.joinless = change == nil
		p.joiner.Want(p.now, true)
		p.flush()
		p.expectMode(proto.ModeUnicast)
		if log := strings.Join(p.log, "\n"); strings.Contains(log, "probe of") || p.count("probe") != 1 {
			t.Errorf("%s: log:\n%s", name, log)
		}
	}
}

// An RP that does not know mode ssm of a peer that asks all the same.
func TestSSMWishUnserved(t *testing.T) {
	p := newPair(t, nil)
	join := &proto.Join{Groups: []ids.Group{testGroup}, Mode: proto.ModeSSM, Port: 1, ProbeSize: proto.MinProbe, Session: 5}
	if err := p.admission.Handle(p.now, join); err != nil {
		t.Fatal(err)
	}
	if err := p.admission.Handle(p.now, &proto.ProbeAck{Nonce: p.admission.nonce, Size: proto.MinProbe}); err != nil {
		t.Fatal(err)
	}
	for _, a := range p.admission.Actions() {
		if a, ok := a.(Admit); ok && a.Mode == proto.ModeUnicast {
			return
		}
	}
	t.Error("not admitted in mode unicast")
}

// A channel by which no PROBE arrives costs three PROBEs and some time: the peer is
// admitted all the same.
func TestSSMUnprovenChannel(t *testing.T) {
	p := newPair(t, offered)
	p.cut = true
	p.joiner.Want(p.now, true)
	p.flush()
	p.expect(proto.JoinerJoining, Proving)
	p.run(proto.ChannelTimeout - 50*time.Millisecond)
	p.expect(proto.JoinerJoining, Proving)
	p.run(50 * time.Millisecond)
	p.expectMode(proto.ModeUnicast)
	if n := p.count("probe of 1234 on 30502"); n != proto.MaxProbes {
		t.Errorf("%d probes on the channel, want %d", n, proto.MaxProbes)
	}
	if p.count("peer left") != 0 || p.joined.Channel != (proto.Channel{}) {
		t.Errorf("joined %+v, log %v", p.joined, p.log)
	}
	// The next membership tries the channel again.
	p.cut = false
	p.joiner.Want(p.now, false)
	p.joiner.Want(p.now, true)
	p.flush()
	p.expectMode(proto.ModeSSM)
}

// No PROBE goes to a channel for the sake of an endpoint that is not proven.
func TestSSMUnprovenEndpoint(t *testing.T) {
	p := newPair(t, offered)
	p.deaf = true
	p.joiner.Want(p.now, true)
	p.flush()
	p.run(proto.ProbeTimeout)
	p.expect(proto.JoinerBackoff, Idle)
	if n := p.count("probe"); n != proto.MaxProbes || strings.Contains(strings.Join(p.log, " "), "probe of") {
		t.Errorf("log %v", p.log)
	}
}

// A channel that falls silent is left for unicast, at once and for the rest of the
// connection.
func TestSSMFallBack(t *testing.T) {
	p := newPair(t, offered)
	p.joiner.Want(p.now, true)
	p.flush()
	p.run(time.Second)
	p.cut = true
	p.run(proto.HeartbeatTimeout - 50*time.Millisecond)
	p.expectMode(proto.ModeSSM)
	p.run(50 * time.Millisecond)
	p.expectMode(proto.ModeUnicast) // without a back-off
	if p.count("peer left") != 1 || p.count("removed") != 1 {
		t.Errorf("log %v", p.log)
	}
	p.cut = false
	p.joiner.Want(p.now, false)
	p.joiner.Want(p.now, true)
	p.flush()
	p.run(time.Minute)
	p.expectMode(proto.ModeUnicast)
	if n := p.count("peer subscribes to 1234 on 30502"); n != 1 {
		t.Errorf("subscribed %d times", n)
	}
	p.disconnect()
	p.reconnect(77)
	p.expectMode(proto.ModeSSM)
}

// When it is the RP that is silent, a peer in mode ssm knows it after twice the
// time, and can turn to another RP.
func TestSSMSilentRP(t *testing.T) {
	p := newPair(t, offered)
	p.joiner.Want(p.now, true)
	p.flush()
	p.silent = true
	p.admission.state = Barred // one that answers nothing
	p.run(proto.HeartbeatTimeout)
	p.expect(proto.JoinerJoining, Barred)
	p.run(proto.HeartbeatTimeout - 50*time.Millisecond)
	p.expect(proto.JoinerJoining, Barred)
	p.run(50 * time.Millisecond)
	p.expect(proto.JoinerBackoff, Barred)
}

// PROBEs for others arrive by the channel, too, while this peer joins.
func TestSSMForeignProbe(t *testing.T) {
	p := newPair(t, offered)
	p.cut = true
	p.joiner.Want(p.now, true)
	p.flush()
	echoes := p.count("peer sends ProbeAck")
	foreign := p.admission.channel
	foreign[3] ^= 2
	p.joiner.Probe(foreign, wire.MaxDatagram)
	p.flush()
	if p.count("peer sends ProbeAck") != echoes {
		t.Error("answered the PROBE for another peer")
	}
	p.expect(proto.JoinerJoining, Proving)
}

// A channel that cuts the largest datagram is not used.
func TestSSMProbeSize(t *testing.T) {
	p := newPair(t, offered)
	p.cut = true
	p.joiner.Want(p.now, true)
	p.flush()
	p.joiner.Probe(p.admission.channel, wire.MaxDatagram-1)
	p.flush()
	p.expectMode(proto.ModeUnicast)
}

// A peer that leaves while its channel is tried is gone.
func TestSSMLeaveWhileProving(t *testing.T) {
	p := newPair(t, offered)
	p.cut = true
	p.joiner.Want(p.now, true)
	p.flush()
	p.expect(proto.JoinerJoining, Proving)
	p.joiner.Want(p.now, false)
	p.flush()
	p.run(2 * proto.ChannelTimeout)
	p.expect(proto.JoinerIdle, Idle)
	if p.count("removed") != 1 || p.count("rp sends Welcome") != 0 {
		t.Errorf("log %v", p.log)
	}
}

// A Welcome in a mode that was not asked for is a violation.
func TestSSMNotAsked(t *testing.T) {
	p := newPair(t, nil)
	p.deaf = true
	p.joiner.Want(p.now, true)
	p.flush()
	m := &proto.Welcome{Session: 1, Lease: 45, Rate: 1, Burst: 1, Mode: proto.ModeSSM, Channel: proto.Channel{Session: 2}}
	if err := p.joiner.Handle(p.now, m); proto.ReasonOf(err) != proto.ReasonUnexpected {
		t.Errorf("error %v", err)
	}
}
