// SPDX-License-Identifier: LGPL-3.0-or-later

package datapathtest

import (
	"bytes"
	"slices"
	"testing"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/ethmcast/wire/wiretest"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// Golden runs the golden vectors on an engine whose Subject takes datagrams from
// any address. The copies to peers may come in any order (SPEC 6.4).
func Golden(t *testing.T, new New) {
	f, err := wiretest.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range f.Vectors {
		t.Run(v.Name, func(t *testing.T) {
			s := new(t, datapath.Config{Incarnation: f.Incarnation, HandleKey: auth.Key(f.HandleKey)})
			if err := s.Apply(GoldenState(f)); err != nil {
				t.Fatal(err)
			}
			for _, before := range f.History(v) {
				if got, _ := s.Receive(before.Source, before.Datagram); got != before.Verdict {
					t.Fatalf("%s, received before: %v, want %v", before.Name, got, before.Verdict)
				}
			}
			got, outputs := s.Receive(v.Source, v.Datagram)
			if got != v.Verdict {
				t.Fatalf("verdict %v, want %v", got, v.Verdict)
			}
			if len(outputs) != len(v.Copies) {
				t.Fatalf("%d datagrams leave, want %d", len(outputs), len(v.Copies))
			}
			for i, c := range v.Copies {
				to, _ := f.Session(c.Session)
				k := slices.IndexFunc(outputs, func(o Output) bool { return o.Dst == to.Addr })
				switch {
				case k < 0:
					t.Errorf("nothing leaves for %s", c.Session)
				case !bytes.Equal(outputs[k].Data, c.Datagram):
					t.Errorf("to %s leaves\n%x, want\n%x", c.Session, outputs[k].Data, c.Datagram)
				case k != i && (to.Mesh || outputs[k].Data[0]&15 == byte(wire.Echo)):
					t.Errorf("datagram %d goes to %s, want %d", k, c.Session, i)
				}
			}
		})
	}
}

// GoldenState is the state that the vectors start from.
func GoldenState(f *wiretest.File) (c datapath.Change) {
	for _, k := range f.Keys {
		c.Keys = append(c.Keys, proto.GroupKey{Ingress: k.Ingress, Group: k.Group, Epoch: k.Epoch, Key: k.Key})
	}
	for _, s := range f.Sessions {
		session := datapath.Session{
			Index:       s.Index,
			Role:        datapath.Peer,
			Addr:        s.Addr,
			SendSession: s.SendIndex,
			SendKey:     s.Send,
			ReceiveKey:  s.Receive,
			Publish:     s.Publish,
			Rate:        1000,
			Burst:       1000,
		}
		if s.Mesh {
			session.Role = datapath.Mesh
		} else {
			session.Groups = []ids.Group{f.Group}
		}
		c.Add = append(c.Add, session)
	}
	for _, way := range f.Routes {
		r := datapath.Route{Ingress: way.Ingress}
		for _, name := range way.From {
			s, _ := f.Session(name)
			r.From = append(r.From, s.Index)
		}
		for _, name := range way.To {
			s, _ := f.Session(name)
			r.To = append(r.To, datapath.Branch{Session: s.Index, Groups: []ids.Group{f.Group}})
		}
		c.Routes = append(c.Routes, r)
	}
	return c
}
