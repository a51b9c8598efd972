// SPDX-License-Identifier: LGPL-3.0-or-later

package meshside

import (
	"bytes"
	"crypto/rand"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/datapathtest"
	"github.com/ethmcast/mdcs/rp/keyring"
	"github.com/ethmcast/mdcs/rp/membership"
	"github.com/ethmcast/mdcs/rp/mesh"
)

const (
	group       = 5
	incarnation = 0x0a
)

var ownKeys = []proto.GroupKey{{Ingress: incarnation, Group: group, Active: true, Key: auth.Key{1}}}

// install is what an Installer was told.
type install struct {
	keys    []proto.GroupKey
	retired []uint32
}

// installer is an Installer that takes its time.
type installer struct {
	takes time.Duration

	mu   sync.Mutex
	done []install
}

func (i *installer) Install(keys []proto.GroupKey, retired []uint32, timeout time.Duration) (int, error) {
	time.Sleep(min(i.takes, timeout))
	i.mu.Lock()
	defer i.mu.Unlock()
	i.done = append(i.done, install{keys, retired})
	return 0, nil
}

// take returns what was installed since the last call.
func (i *installer) take() []install {
	i.mu.Lock()
	defer i.mu.Unlock()
	done := i.done
	i.done = nil
	return done
}

// rig is a Server with two configured neighbours that the test plays.
type rig struct {
	*Server
	t          *testing.T
	engine     *datapathtest.Recorder
	installer  *installer
	neighbours []*enode.Node
}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, engine: new(datapathtest.Recorder), installer: new(installer)}
	for i := range 2 {
		r.neighbours = append(r.neighbours, newNode(t, byte(i+1)))
	}
	cfg := Config{
		NetworkID:   1,
		Incarnation: incarnation,
		DataPort:    30501,
		Groups:      []uint32{group},
		Neighbours:  r.neighbours,
		Egress:      7,
		EgressBurst: 8,
		Engine:      r.engine,
		Keys:        keyring.New(),
		Members:     membership.New(membership.Limits{}, rand.Reader),
		Peers:       r.installer,
		Rand:        rand.Reader,
		Log:         slog.New(slog.DiscardHandler),
	}
	cfg.Keys.Install(ownKeys)
	var err error
	r.Server, err = New(cfg)
	require.NoError(t, err)
	return r
}

// newNode returns the node with the key n at 2001:db8::n.
func newNode(t *testing.T, n byte) *enode.Node {
	key, err := crypto.ToECDSA(bytes.Repeat([]byte{n}, 32))
	require.NoError(t, err)
	ip := netip.MustParseAddr("2001:db8::").AsSlice()
	ip[15] = n
	return enode.NewV4(&key.PublicKey, ip, 30500, 0)
}

// remote is the neighbour's end of a connection.
type remote struct {
	t    *testing.T
	rw   *p2p.MsgPipeRW
	done chan struct{} // closed when the Server's end has returned
	err  error         // of it
}

func (r *rig) connect(n *enode.Node) *remote {
	near, far := p2p.MsgPipe()
	c := &remote{t: r.t, rw: far, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.err = r.Protocol().Run(p2p.NewPeer(n.ID(), "neighbour", nil), near)
		near.Close()
	}()
	return c
}

func (c *remote) send(m mesh.Message) {
	c.t.Helper()
	require.NoError(c.t, p2p.Send(c.rw, m.Code(), m))
	synctest.Wait()
}

// expect returns the next message, which must be an M.
func expect[M mesh.Message](c *remote) (m M) {
	c.t.Helper()
	msg, err := c.rw.ReadMsg()
	require.NoError(c.t, err)
	b, err := io.ReadAll(msg.Payload)
	require.NoError(c.t, err)
	got, err := mesh.Decode(msg.Code, b)
	require.NoError(c.t, err)
	require.IsType(c.t, m, got)
	return got.(M)
}

// open exchanges Hellos, and returns the Server's and its first keys.
func (c *remote) open(theirs uint32) (*mesh.Hello, *mesh.Keys) {
	c.t.Helper()
	own := expect[*mesh.Hello](c)
	c.send(&mesh.Hello{NetworkID: 1, Incarnation: theirs, DataPort: 40501, Session: 0x77, Share: auth.Share{9}})
	return own, expect[*mesh.Keys](c)
}

// close ends the connection from the neighbour's side.
func (c *remote) close() {
	c.rw.Close()
	<-c.done
}

func keysOf(incarnation uint32) []proto.GroupKey {
	return []proto.GroupKey{{Ingress: incarnation, Group: group, Active: true, Key: auth.Key{byte(incarnation)}}}
}

func TestLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		c := r.connect(r.neighbours[0])
		own, keys := c.open(0x0b)
		require.Equal(t, uint32(incarnation), own.Incarnation)
		require.Equal(t, uint16(30501), own.DataPort)
		require.Equal(t, ownKeys, keys.Keys)

		// Datagrams are accepted at once, and not replicated.
		changes := r.engine.Changes()
		require.Len(t, changes, 1)
		session := changes[0].Add[0]
		_, receive := auth.HopKeys(r.cfg.Self, r.neighbours[0].ID(), own.Share, auth.Share{9})
		require.Equal(t, own.Session, session.Index)
		require.Equal(t, netip.AddrPortFrom(r.neighbours[0].IPAddr(), 40501), session.Addr)
		require.Equal(t, uint32(0x77), session.SendSession)
		require.Equal(t, []datapath.Route{{Ingress: 0x0b, From: []uint32{session.Index}}}, changes[0].Routes)
		require.Equal(t, receive, session.ReceiveKey)
		require.Equal(t, [2]uint64{7, 8}, [2]uint64{session.Egress, session.EgressBurst})
		require.Empty(t, session.Groups)
		require.NoError(t, session.Check())

		// Its keys go to the members, however long that takes; then it hears.
		r.installer.takes = time.Second
		start := time.Now()
		c.send(&mesh.Keys{ID: 4, Keys: keysOf(0x0b)})
		c.send(&mesh.KeysAck{ID: keys.ID}) // meanwhile the link goes on
		changes = r.engine.Changes()
		require.Len(t, changes, 1)
		branch := datapath.Branch{Session: session.Index, Groups: []uint32{group}}
		route := datapath.Route{Ingress: incarnation, To: []datapath.Branch{branch}}
		require.Equal(t, []datapath.Change{{Routes: []datapath.Route{route}}}, changes, "replicated to now")
		require.Equal(t, []datapath.HeartbeatScope{datapath.All}, r.engine.Heartbeats(), "which tells where the sequences begin")
		require.Equal(t, uint32(4), expect[*mesh.KeysAck](c).ID)
		require.Equal(t, time.Second, time.Since(start))
		require.Equal(t, []install{{keysOf(0x0b), nil}}, r.installer.take())

		st := r.Stats()
		require.True(t, st.Neighbours[0].Up() != st.Neighbours[1].Up())
		require.True(t, r.Connected(r.neighbours[0].ID()))

		c.close()
		require.Equal(t, []datapath.Change{{Remove: []uint32{session.Index}}}, r.engine.Changes())
		require.Equal(t, uint64(1), r.Stats().LinksLost)
		require.False(t, r.Connected(r.neighbours[0].ID()))
		r.Stop()
	})
}

// The keys of a neighbour outlive its link by a minute, unless it comes back anew.
func TestRetire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		link := func(incarnation uint32) *remote {
			c := r.connect(r.neighbours[0])
			_, keys := c.open(incarnation)
			c.send(&mesh.Keys{ID: 1, Keys: keysOf(incarnation)})
			expect[*mesh.KeysAck](c)
			c.send(&mesh.KeysAck{ID: keys.ID})
			return c
		}
		link(0x0b).close()
		time.Sleep(RetireAfter - time.Second)
		c := link(0x0b) // the same: nothing is retired
		require.Equal(t, []install{{keysOf(0x0b), nil}, {keysOf(0x0b), nil}}, r.installer.take())
		time.Sleep(time.Hour)
		require.Empty(t, r.installer.take())

		c.close()
		c = link(0x0c) // another: the old one goes with the new keys
		require.Equal(t, []install{{keysOf(0x0c), []uint32{0x0b}}}, r.installer.take())

		c.close()
		time.Sleep(RetireAfter)
		synctest.Wait()
		require.Equal(t, []install{{nil, []uint32{0x0c}}}, r.installer.take())
		require.Zero(t, r.Stats().Neighbours[0].Incarnation+r.Stats().Neighbours[1].Incarnation)

		// A link that ends before the new keys came does not forget the old ones.
		link(0x0d).close()
		r.installer.take()
		c = r.connect(r.neighbours[0])
		c.open(0x0e)
		c.close()
		time.Sleep(RetireAfter)
		synctest.Wait()
		require.Equal(t, []install{{nil, []uint32{0x0d, 0x0e}}}, r.installer.take())
		r.Stop()
	})
}

// Neighbours that do not do their part are let go, with the reason.
func TestLinkFails(t *testing.T) {
	for name, c := range map[string]struct {
		play  func(r *rig, c *remote)
		takes time.Duration // until the Bye
		want  proto.Reason
	}{
		"no hello": {
			play:  func(_ *rig, c *remote) { expect[*mesh.Hello](c) },
			takes: mesh.HelloTimeout, want: proto.ReasonUnreachable,
		},
		"keys not acknowledged": {
			play:  func(_ *rig, c *remote) { c.open(0x0b) },
			takes: mesh.AckTimeout, want: proto.ReasonUnreachable,
		},
		"garbage": {
			play: func(_ *rig, c *remote) {
				expect[*mesh.Hello](c)
				require.NoError(c.t, c.rw.WriteMsg(p2p.Msg{Code: mesh.HelloMsg, Size: 2, Payload: bytes.NewReader([]byte{0xff, 0xff})}))
			},
			want: proto.ReasonMalformed,
		},
		"too long": {
			play: func(_ *rig, c *remote) {
				expect[*mesh.Hello](c)
				b := make([]byte, mesh.MaxMessage+1)
				require.NoError(c.t, c.rw.WriteMsg(p2p.Msg{Code: mesh.KeysMsg, Size: uint32(len(b)), Payload: bytes.NewReader(b)}))
			},
			want: proto.ReasonMalformed,
		},
		"other chain": {
			play: func(_ *rig, c *remote) {
				expect[*mesh.Hello](c)
				c.send(&mesh.Hello{NetworkID: 2, Incarnation: 1, DataPort: 1, Session: 1})
			},
			want: proto.ReasonChain,
		},
		"incarnation of another": {
			play: func(r *rig, c *remote) {
				other := r.connect(r.neighbours[1])
				other.open(0x0b)
				expect[*mesh.Hello](c)
				c.send(&mesh.Hello{NetworkID: 1, Incarnation: 0x0b, DataPort: 1, Session: 1})
				other.close()
			},
			want: proto.ReasonUnexpected,
		},
		"keys of another": {
			play: func(_ *rig, c *remote) {
				c.open(0x0b)
				c.send(&mesh.Keys{ID: 1, Keys: keysOf(0x0c)})
			},
			want: proto.ReasonUnexpected,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				remote := r.connect(r.neighbours[0])
				start := time.Now()
				c.play(r, remote)
				require.Equal(t, c.want, expect[*mesh.Bye](remote).Reason)
				require.Equal(t, c.takes, time.Since(start))
				<-remote.done
				require.Error(t, remote.err)

				live := make(map[uint32]bool)
				for _, change := range r.engine.Changes() {
					for _, s := range change.Add {
						live[s.Index] = true
					}
					for _, index := range change.Remove {
						delete(live, index)
					}
				}
				require.Empty(t, live, "sessions left in the datapath")
				r.Stop()
			})
		})
	}
}

func TestStranger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		c := r.connect(newNode(t, 9))
		<-c.done
		require.Equal(t, p2p.DiscUselessPeer, c.err)
		r.Stop()
	})
}

// New keys are offered to all links; those without an answer are counted.
func TestOffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		require.Zero(t, r.Offer(ownKeys, time.Hour), "nobody is there")

		a, b := r.connect(r.neighbours[0]), r.connect(r.neighbours[1])
		_, keys := a.open(0x0b)
		a.send(&mesh.KeysAck{ID: keys.ID})
		expect[*mesh.Hello](b) // and no answer: it will get the keys when it is known
		result := make(chan int)
		offer := func(timeout time.Duration) {
			go func() { result <- r.Offer(ownKeys, timeout) }()
			synctest.Wait()
		}
		offer(time.Hour)
		a.send(&mesh.KeysAck{ID: expect[*mesh.Keys](a).ID})
		require.Zero(t, <-result)

		offer(time.Second)
		expect[*mesh.Keys](a)
		start := time.Now()
		require.Equal(t, 1, <-result)
		require.Equal(t, time.Second, time.Since(start))

		offer(time.Hour) // the link ends without an answer
		expect[*mesh.Keys](a)
		a.close()
		require.Zero(t, <-result)

		offer(time.Hour)
		require.Zero(t, <-result)
		b.close()
		r.Stop()
	})
}

func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		c := r.connect(r.neighbours[0])
		c.open(0x0b)
		go r.Stop()
		require.Equal(t, proto.ReasonQuit, expect[*mesh.Bye](c).Reason)
		<-c.done
		require.Equal(t, p2p.DiscQuitting, c.err)
		late := r.connect(r.neighbours[0])
		<-late.done
		require.Error(t, late.err)
	})
}

func TestNewRefuses(t *testing.T) {
	v4 := enode.NewV4(newNode(t, 1).Pubkey(), []byte{192, 0, 2, 1}, 30500, 0)
	for name, cfg := range map[string]Config{
		"twice":  {Neighbours: []*enode.Node{newNode(t, 1), newNode(t, 1)}},
		"itself": {Neighbours: []*enode.Node{newNode(t, 1)}, Self: newNode(t, 1).ID()},
		"ipv4":   {Neighbours: []*enode.Node{v4}},
	} {
		_, err := New(cfg)
		require.Error(t, err, name)
	}
}
