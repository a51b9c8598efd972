// SPDX-License-Identifier: LGPL-3.0-or-later

package mesh

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/receipts"
)

var t0 = time.Unix(1_000_000, 0)

const (
	group = 5
	wait  = 3 * time.Second
)

// incarnationOf is the first one that belongs to RP n.
func incarnationOf(n byte) ids.Incarnation {
	for i := ids.Incarnation(1); ; i++ {
		if linkstate.Belongs(linkstate.IDOf([32]byte{n}), i) {
			return i
		}
	}
}

func hello(n byte) Hello {
	return Hello{NetworkID: 1, Genesis: [32]byte{1}, Incarnation: incarnationOf(n), DataPort: 30501, Session: ids.Session(n), Share: auth.Share{n}}
}

func config(self, remote byte) Config {
	return Config{Self: [32]byte{self}, Remote: [32]byte{remote}, Hello: hello(self), Groups: []ids.Group{group}}
}

func keyOf(n, epoch byte) proto.GroupKey {
	return proto.GroupKey{Ingress: 100 + ids.Incarnation(n), Group: group, Epoch: epoch, Key: auth.Key{n, epoch}}
}

// newLink returns link 1 to 2 in a state, with no actions left.
func newLink(t *testing.T, st State) *Link {
	t.Helper()
	l := NewLink(t0, config(1, 2))
	if st == Open {
		h := hello(2)
		require.NoError(t, l.Handle(&h))
		_, ok := l.Offer(t0, wait, []proto.GroupKey{keyOf(1, 0)})
		require.True(t, ok)
	}
	require.Equal(t, st, l.State())
	l.Actions()
	return l
}

func TestLinkComesUp(t *testing.T) {
	l := NewLink(t0, config(1, 2))
	own, theirs := hello(1), hello(2)
	require.Equal(t, []Action{Send{&own}}, l.Actions())
	_, ok := l.Offer(t0, wait, nil)
	require.False(t, ok, "the neighbour is not known")

	require.NoError(t, l.Handle(&theirs))
	send, receive := auth.HopKeys([32]byte{1}, [32]byte{2}, auth.Share{1}, auth.Share{2})
	require.Equal(t, []Action{Up{Hello: theirs, SendKey: send, ReceiveKey: receive}}, l.Actions())

	require.Equal(t, Open, l.State())

	keys := []proto.GroupKey{keyOf(1, 0), keyOf(3, 7)}
	id, ok := l.Offer(t0, wait, keys)
	require.True(t, ok)
	require.Equal(t, []Action{Send{&Keys{ID: id, Wait: 3000, Keys: keys}}}, l.Actions())
	require.NoError(t, l.Handle(&KeysAck{id}))
	require.Equal(t, []Action{Acked{id}}, l.Actions())
	require.Zero(t, l.Deadline())
}

func TestLinkInstallsKeys(t *testing.T) {
	l := newLink(t, Open)
	foreign := keyOf(2, 0)
	foreign.Group = 99
	require.NoError(t, l.Handle(&Keys{ID: 7, Wait: 1500, Keys: []proto.GroupKey{keyOf(2, 0), foreign, keyOf(3, 1)}}))
	install := Install{ID: 7, Wait: 1500 * time.Millisecond, Keys: []proto.GroupKey{keyOf(2, 0), keyOf(3, 1)}}
	require.Equal(t, []Action{install}, l.Actions(), "keys of groups that are not served are ignored")
	require.Empty(t, l.Actions())

	l.Installed(8) // was not asked for
	require.Empty(t, l.Actions())
	l.Installed(7)
	require.Equal(t, []Action{Send{&KeysAck{7}}}, l.Actions())
	l.Installed(7)
	require.Empty(t, l.Actions())
}

func TestLinkReports(t *testing.T) {
	reports := []receipts.Report{{Key: receipts.Key{Ingress: 1, Group: group, Sequence: 2}, Count: receipts.Count{Sent: 2, Confirmed: 1}}}
	l := newLink(t, Open)
	require.NoError(t, l.Handle(&Report{reports}))
	require.Equal(t, []Action{Reported{reports}}, l.Actions())
	l = newLink(t, Connected)
	require.Error(t, l.Handle(&Report{reports}), "before Hello")
	require.Equal(t, Ended, l.State())
}

// offers returns n offers, from ID 0 on.
func offers(n uint32) (all []Message) {
	for id := range n {
		all = append(all, &Keys{ID: id})
	}
	return all
}

func TestLinkViolations(t *testing.T) {
	theirs := hello(2)
	otherChain, otherNetwork, ourselves, stolen := theirs, theirs, theirs, theirs
	otherChain.Genesis[0]++
	otherNetwork.NetworkID++
	ourselves.Incarnation = incarnationOf(1)
	stolen.Incarnation = incarnationOf(3)
	for name, c := range map[string]struct {
		in     State
		before []Message
		m      Message
		want   proto.Reason
	}{
		"other genesis":                 {in: Connected, m: &otherChain, want: proto.ReasonChain},
		"other network":                 {in: Connected, m: &otherNetwork, want: proto.ReasonChain},
		"incarnation of another":        {in: Connected, m: &stolen, want: proto.ReasonUnexpected},
		"our incarnation":               {in: Connected, m: &ourselves, want: proto.ReasonUnexpected},
		"keys before Hello":             {in: Connected, m: &Keys{}, want: proto.ReasonUnexpected},
		"acknowledgement before Hello":  {in: Connected, m: &KeysAck{}, want: proto.ReasonUnexpected},
		"second Hello":                  {in: Open, m: &theirs, want: proto.ReasonUnexpected},
		"acknowledgement of nothing":    {in: Open, m: &KeysAck{2}, want: proto.ReasonUnexpected},
		"second acknowledgement":        {in: Open, before: []Message{&KeysAck{1}}, m: &KeysAck{1}, want: proto.ReasonUnexpected},
		"second offer of the same keys": {in: Open, before: []Message{&Keys{ID: 1}}, m: &Keys{ID: 1}, want: proto.ReasonUnexpected},
		"too many offers":               {in: Open, before: offers(MaxOffers), m: &Keys{ID: MaxOffers}, want: proto.ReasonUnexpected},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLink(t, c.in)
			for _, m := range c.before {
				require.NoError(t, l.Handle(m))
			}
			l.Actions()
			err := l.Handle(c.m)
			violation, ok := errors.AsType[*proto.Error](err)
			require.True(t, ok, "%v", err)
			require.Equal(t, c.want, violation.Reason)
			require.Equal(t, []Action{Send{&Bye{c.want}}, Down{err}}, l.Actions())
			require.Equal(t, Ended, l.State())

			// It is over for good.
			require.NoError(t, l.Handle(&theirs))
			_, ok = l.Offer(t0, wait, nil)
			require.False(t, ok)
			l.Installed(1)
			l.Tick(t0.Add(time.Hour))
			l.Fail(errors.New("again"))
			require.Empty(t, l.Actions())
			require.Zero(t, l.Deadline())
		})
	}
}

func TestLinkEnds(t *testing.T) {
	l := newLink(t, Open)
	require.NoError(t, l.Handle(&Bye{proto.ReasonQuit}))
	actions := l.Actions()
	require.Len(t, actions, 1)
	require.EqualError(t, actions[0].(Down).Err, "ended by the neighbour: quit")

	l = newLink(t, Open)
	stopping := errors.New("rp stops")
	l.Fail(stopping)
	require.Equal(t, []Action{Send{&Bye{proto.ReasonQuit}}, Down{stopping}}, l.Actions())
}

func TestLinkTimeouts(t *testing.T) {
	t.Run("no Hello", func(t *testing.T) {
		l := newLink(t, Connected)
		require.Equal(t, t0.Add(HelloTimeout), l.Deadline())
		l.Tick(t0.Add(HelloTimeout - 1))
		require.Empty(t, l.Actions())
		l.Tick(t0.Add(HelloTimeout))
		require.ErrorContains(t, l.Actions()[1].(Down).Err, "no Hello within 5s")
	})
	t.Run("no acknowledgement", func(t *testing.T) {
		l := newLink(t, Open)
		require.Equal(t, t0.Add(AckTimeout), l.Deadline())
		l.Tick(t0.Add(AckTimeout))
		require.ErrorContains(t, l.Actions()[1].(Down).Err, "keys 1 not acknowledged within 15s")
	})
	t.Run("the oldest offer counts", func(t *testing.T) {
		l := newLink(t, Open)
		require.NoError(t, l.Handle(&KeysAck{1}))
		require.Zero(t, l.Deadline())
		for i := range MaxOffers {
			_, ok := l.Offer(t0.Add(time.Duration(i)*time.Second), wait, nil)
			require.True(t, ok)
		}
		_, ok := l.Offer(t0, wait, nil)
		require.False(t, ok, "more than the neighbour would take")
		require.Equal(t, t0.Add(AckTimeout), l.Deadline())
		require.NoError(t, l.Handle(&KeysAck{2}))
		require.Equal(t, t0.Add(time.Second+AckTimeout), l.Deadline())
	})
}

// TestTwoLinks lets both ends of a connection do anything that a right RP does, in
// any order: they never break the protocol, derive the same keys, and when all is
// delivered nothing is waited for.
func TestTwoLinks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type end struct {
			*Link
			n       byte
			inbox   []Message // on the way to it
			pending []uint32  // installs under way
			up      *Up
			offers  int
		}
		ends := [2]*end{
			{Link: NewLink(t0, config(1, 2)), n: 1},
			{Link: NewLink(t0, config(2, 1)), n: 2},
		}
		perform := func(e, other *end) {
			for _, a := range e.Actions() {
				switch a := a.(type) {
				case Send:
					b, err := Encode(a.Message)
					if err != nil {
						t.Fatal(err)
					}
					m, err := Decode(a.Message.Code(), b)
					if err != nil {
						t.Fatalf("end %d sent what cannot be decoded: %v", e.n, err)
					}
					other.inbox = append(other.inbox, m)
				case Up:
					e.up = &a
					if _, ok := e.Offer(t0, wait, []proto.GroupKey{keyOf(e.n, 0)}); !ok {
						t.Fatal("first offer refused")
					}
				case Install:
					e.pending = append(e.pending, a.ID)
				case Down:
					t.Fatalf("end %d is down: %v", e.n, a.Err)
				}
			}
		}
		settle := func(e, other *end) {
			for n := 0; n < 2; n++ { // Up offers keys
				perform(e, other)
			}
		}
		deliver := func(e, other *end) {
			if len(e.inbox) > 0 {
				m := e.inbox[0]
				e.inbox = e.inbox[1:]
				if err := e.Handle(m); err != nil {
					t.Fatalf("end %d: %v", e.n, err)
				}
			}
		}
		install := func(e *end, i int) {
			id := e.pending[i]
			e.pending = slices.Delete(e.pending, i, i+1)
			e.Installed(id)
		}
		actions := make(map[string]func(*rapid.T))
		for i, e := range ends {
			other := ends[1-i]
			actions[fmt.Sprintf("deliver to %d", e.n)] = func(*rapid.T) { deliver(e, other) }
			actions[fmt.Sprintf("install at %d", e.n)] = func(t *rapid.T) {
				if len(e.pending) > 0 {
					install(e, rapid.IntRange(0, len(e.pending)-1).Draw(t, "which"))
				}
			}
			actions[fmt.Sprintf("new keys of %d", e.n)] = func(*rapid.T) {
				if _, ok := e.Offer(t0, wait, []proto.GroupKey{keyOf(e.n, byte(e.offers+1))}); ok {
					e.offers++
				}
			}
		}
		actions[""] = func(*rapid.T) {
			settle(ends[0], ends[1])
			settle(ends[1], ends[0])
		}
		t.Repeat(actions)

		for range 1000 {
			for i, e := range ends {
				deliver(e, ends[1-i])
				for len(e.pending) > 0 {
					install(e, 0)
				}
				settle(e, ends[1-i])
			}
		}
		for _, e := range ends {
			if e.State() != Open || len(e.inbox) != 0 || !e.Deadline().IsZero() {
				t.Fatalf("end %d is %v, %d messages left", e.n, e.State(), len(e.inbox))
			}
		}
		if ends[0].up.SendKey != ends[1].up.ReceiveKey || ends[1].up.SendKey != ends[0].up.ReceiveKey {
			t.Fatal("the ends derived different keys")
		}
	})
}
