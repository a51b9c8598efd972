// SPDX-License-Identifier: LGPL-3.0-or-later

package admission

import (
	"reflect"
	"testing"

	"github.com/ethmcast/mdcs/ethmcast/proto"
)

// What a member in groups confirms counts, and it is told counters and receipts. In
// standby it has no copies, but may have published before.
func TestReceiptMessages(t *testing.T) {
	counters := &proto.Counters{Group: testGroup, Members: 2, Here: 1, RPs: []proto.RPMembers{{RP: 3, Members: 1}}}
	confirm := &proto.Confirm{Places: []proto.Place{{Ingress: 77, Group: testGroup, Sequence: 42}}}
	receipt := &proto.Receipt{Objects: []proto.ObjectReceipt{{Place: confirm.Places[0], ObjectID: 4, Members: 1, Sent: 1, Confirmed: 1}}}
	for _, c := range []struct {
		name                          string
		standby                       bool
		counted, confirmed, receipted bool
	}{
		{"in groups", false, true, true, true},
		{"in standby", true, false, false, true},
	} {
		p := newPair(t, nil)
		if c.standby {
			p.joiner.WantStandby(p.now)
		} else {
			p.joiner.Want(p.now, true)
		}
		p.flush()
		for _, m := range []proto.Message{counters, receipt} {
			want := c.counted
			if m == proto.Message(receipt) {
				want = c.receipted
			}
			if told := p.admission.Tell(m); told != want {
				t.Errorf("%s: told %T: %v", c.name, m, told)
			}
			for _, a := range p.admission.Actions() {
				if err := p.joiner.Handle(p.now, p.carry(a.(proto.Send).Message)); err != nil {
					t.Errorf("%s: %v", c.name, err)
				}
			}
		}
		var counted, receipted bool
		for _, a := range p.joiner.Actions() {
			switch a := a.(type) {
			case proto.Counted:
				counted = reflect.DeepEqual(a.Counters, *counters)
			case proto.Receipted:
				receipted = reflect.DeepEqual(a.Objects, receipt.Objects)
			}
		}
		if counted != c.counted || receipted != c.receipted {
			t.Errorf("%s: counted %v, receipted %v", c.name, counted, receipted)
		}
		if err := p.admission.Handle(p.now, p.carry(confirm)); err != nil {
			t.Errorf("%s: confirm: %v", c.name, err)
		}
		if confirmed := reflect.DeepEqual(p.admission.Actions(), []proto.Action{Confirmed{confirm.Places}}); confirmed != c.confirmed {
			t.Errorf("%s: confirmed %v", c.name, confirmed)
		}
	}
}

// Who is no member confirms nothing and is told nothing; messages that crossed a Leave
// do no harm.
func TestReceiptMessagesOfOthers(t *testing.T) {
	p := newPair(t, nil)
	if err := p.admission.Handle(p.now, &proto.Confirm{}); err != nil || len(p.admission.Actions()) > 0 {
		t.Errorf("confirm of no member: %v", err)
	}
	for _, m := range []proto.Message{&proto.Counters{}, &proto.Receipt{}} {
		if p.admission.Tell(m) {
			t.Errorf("%T to no member", m)
		}
		if err := p.joiner.Handle(p.now, m); err != nil || len(p.joiner.Actions()) > 0 {
			t.Errorf("%T for no member: %v", m, err)
		}
		if err := p.admission.Handle(p.now, m); proto.ReasonOf(err) != proto.ReasonUnexpected {
			t.Errorf("%T of a peer: %v", m, err)
		}
		p = newPair(t, nil)
	}
	if err := p.joiner.Handle(p.now, &proto.Confirm{}); proto.ReasonOf(err) != proto.ReasonUnexpected {
		t.Errorf("confirm of an rp: %v", err)
	}
}
