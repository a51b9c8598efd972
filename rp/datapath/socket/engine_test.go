// SPDX-License-Identifier: LGPL-3.0-or-later

package socket

import (
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/auth"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/datapath"
)

var loopback = netip.MustParseAddrPort("[::1]:0")

func listen(t testing.TB) *Engine {
	t.Helper()
	e, err := Listen(datapath.Config{Addr: loopback, Incarnation: own, HandleKey: auth.Key{'h'}})
	require.NoError(t, err)
	t.Cleanup(func() { e.Close() })
	return e
}

func node(t testing.TB) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp6", net.UDPAddrFromAddrPort(loopback))
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func TestSocketEngineRefusesToListen(t *testing.T) {
	for name, cfg := range map[string]datapath.Config{
		"no incarnation": {Addr: loopback},
		"no address":     {Incarnation: 1},
		"ipv4":           {Addr: netip.MustParseAddrPort("127.0.0.1:0"), Incarnation: 1},
		"mapped ipv4":    {Addr: netip.MustParseAddrPort("[::ffff:127.0.0.1]:0"), Incarnation: 1},
		"any address":    {Addr: netip.MustParseAddrPort("[::]:0"), Incarnation: 1},
	} {
		_, err := Listen(cfg)
		require.Error(t, err, name)
	}
	e := listen(t)
	_, err := Listen(datapath.Config{Addr: e.Addr(), Incarnation: 1})
	require.ErrorIs(t, err, unix.EADDRINUSE)
}

func TestSocketEngineProbe(t *testing.T) {
	e, c := listen(t), node(t)
	nonce := [wire.NonceSize]byte{1, 2, 3}
	for _, size := range []int{wire.HeaderSize + wire.NonceSize, proto.MinProbe, wire.MaxDatagram} {
		require.NoError(t, e.Probe(localAddr(c), nonce, size))
		b := make([]byte, 2048)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
		n, src, err := c.ReadFromUDPAddrPort(b)
		require.NoError(t, err)
		require.Equal(t, e.Addr(), src)
		require.Equal(t, size, n)
		h, payload, v := wire.Parse(b[:n])
		require.Equal(t, wire.Pass, v)
		require.Equal(t, wire.Header{Type: wire.Probe}, h, "tags, session and all else are zero")
		require.Equal(t, nonce[:], payload[:wire.NonceSize])
		for _, padding := range payload[wire.NonceSize:] {
			require.Zero(t, padding)
		}
	}
	require.Error(t, e.Probe(localAddr(c), nonce, wire.HeaderSize+wire.NonceSize-1))
	require.Error(t, e.Probe(localAddr(c), nonce, wire.MaxDatagram+1))
	require.Equal(t, uint64(3), e.Stats().Probes)
}

func TestSocketEngineClosed(t *testing.T) {
	e := listen(t)
	require.NoError(t, e.Close())
	require.NoError(t, e.Close())
	require.ErrorIs(t, e.Apply(datapath.Change{}), datapath.ErrClosed)
	require.ErrorIs(t, e.Heartbeat(datapath.All), datapath.ErrClosed)
	require.ErrorIs(t, e.Hello(1, [wire.HelloSize]byte{}), datapath.ErrClosed)
	require.ErrorIs(t, e.Resend(1, nil), datapath.ErrClosed)
	require.Zero(t, e.Heard(1))
	require.ErrorIs(t, e.Probe(loopback, [wire.NonceSize]byte{}, 256), datapath.ErrClosed)
}

// What comes faster than it is taken is dropped by the host, and counted.
func TestSocketEngineCountsDrops(t *testing.T) {
	e, c := listen(t), node(t)
	raw, err := e.conn.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<10)
	}))
	require.NoError(t, err)

	const flood = 1000
	send := func() {
		_, err := c.WriteToUDPAddrPort([]byte("no datagram of ours"), e.Addr())
		require.NoError(t, err)
	}
	e.sending.Lock() // the reader stops at its next datagram
	for range flood {
		send()
	}
	e.sending.Unlock()
	require.Eventually(t, func() bool {
		send() // which carries the count
		st := e.Stats()
		return st.ReceiveDrops > 0 && st.ReceiveDrops+st.Verdicts[wire.Truncated] >= flood
	}, 10*time.Second, time.Millisecond)
}

// Changes go on while datagrams flow, and the member that stays misses none.
func TestSocketEngineChangesUnderTraffic(t *testing.T) {
	e := listen(t)
	publisher, stays := node(t), node(t)
	session := func(index ids.Session, addr netip.AddrPort) datapath.Session {
		return datapath.Session{
			Index: index, Role: datapath.Peer, Addr: addr, SendSession: index, ReceiveKey: auth.Key{byte(index)},
			Groups: []ids.Group{txs}, Publish: true, Rate: 1 << 30, Burst: 1 << 30,
		}
	}
	from := session(1, localAddr(publisher))
	require.NoError(t, e.Apply(datapath.Change{
		Keys: []proto.GroupKey{{Ingress: own, Group: txs, Key: ownKey}},
		Add:  []datapath.Session{from, session(2, localAddr(stays))},
	}))

	stop := make(chan struct{})
	var churn sync.WaitGroup
	for worker := range ids.Session(2) {
		churn.Go(func() {
			drain := localAddr(publisher)
			for n := worker; ; n += 2 {
				select {
				case <-stop:
					return
				default:
				}
				index := 1000 + n%500
				c := datapath.Change{Add: []datapath.Session{session(index, drain)}}
				if n%3 == 0 {
					c = datapath.Change{Remove: []ids.Session{index}}
				}
				if err := e.Apply(c); err != nil {
					t.Errorf("apply: %v", err)
					return
				}
				e.Marks()
				e.Stats()
			}
		})
	}
	const datagrams = 500
	b := make([]byte, 2048)
	require.NoError(t, stays.SetReadDeadline(time.Now().Add(60*time.Second)))
	for seq := uint64(1); seq <= datagrams; seq++ {
		_, err := publisher.WriteToUDPAddrPort(data(&from, seq), e.Addr())
		require.NoError(t, err)
		n, _, err := stays.ReadFromUDPAddrPort(b)
		require.NoError(t, err)
		h, _, v := wire.Parse(b[:n])
		require.Equal(t, wire.Pass, v)
		require.Equal(t, seq, h.Sequence)
	}
	close(stop)
	churn.Wait()
	st := e.Stats()
	require.Equal(t, uint64(datagrams), st.Verdicts[wire.Pass])
	require.Equal(t, uint64(datagrams), st.Echoes)
}
