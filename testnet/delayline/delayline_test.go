// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/testnet/netns"
)

func TestMain(m *testing.M) {
	RunChild()
	os.Exit(m.Run())
}

func TestBucket(t *testing.T) {
	last := -1
	for _, v := range []uint64{0, 1, 15, 16, 17, 31, 32, 34, 1000, 1 << 20, 1<<63 - 1} {
		i := bucket(v)
		require.Greater(t, i, last, "value %d", v)
		require.GreaterOrEqual(t, upper(i), v)
		require.LessOrEqual(t, float64(upper(i)), float64(v)*(1+1.0/16)+1)
		last = i
	}
	require.Less(t, last, len(lateness{}.buckets))
}

func TestLateness(t *testing.T) {
	var l lateness
	require.Zero(t, l.quantile(0.5))
	rng := rand.New(rand.NewPCG(1, 2))
	var all []int64
	for range 10_000 {
		v := rng.Int64N(int64(2 * time.Millisecond))
		l.add(v)
		all = append(all, v)
	}
	slices.Sort(all)
	for _, q := range []float64{0.01, 0.5, 0.99} {
		exact := float64(all[int(q*float64(len(all)))])
		require.InEpsilon(t, exact, float64(l.quantile(q)), 1.0/16)
	}
	require.Equal(t, all[len(all)-1], l.max)
	require.Equal(t, l.max, l.quantile(1))
	require.InDelta(t, 0.5, float64(l.overdue)/float64(l.count), 0.02)

	var sum lateness
	sum.merge(&l)
	require.Equal(t, l, sum)
}

func TestParseLink(t *testing.T) {
	l, err := parseLink("a0,b0,20ms")
	require.NoError(t, err)
	require.Equal(t, Link{A: "a0", B: "b0", Delay: 20 * time.Millisecond}, l)
	again, err := parseLink(l.String())
	require.NoError(t, err)
	require.Equal(t, l, again)
	for _, bad := range []string{"", "a0,b0", "a0,b0,20", "a0,,20ms", "a0,b0,0s", "a0,b0,20ms,x"} {
		_, err := parseLink(bad)
		require.Error(t, err, bad)
	}
}

// TestNetnsDelayLine sends datagrams over one link and looks at their delay:
//
//	a (eth0) --- (w0) [wire, 20 ms] (w1) --- (eth0) b
//
// The upper bound is generous, as the machine may be busy; the lower one is not.
func TestNetnsDelayLine(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	const (
		delay = 20 * time.Millisecond
		count = 100
	)
	run, err := netns.NewRun(t.TempDir())
	require.NoError(t, err)
	defer run.Close()
	space := make(map[string]*netns.Namespace)
	for _, name := range []string{"a", "b", "wire"} {
		space[name], err = run.Namespace(name)
		require.NoError(t, err)
	}
	a, b, middle := space["a"], space["b"], space["wire"]
	require.NoError(t, middle.Layer2())
	for _, end := range []struct {
		host *netns.Namespace
		port string
		addr string
	}{
		{a, "w0", "2001:db8::a/64"},
		{b, "w1", "2001:db8::b/64"},
	} {
		require.NoError(t, end.host.Veth("eth0", middle, end.port))
		require.NoError(t, middle.NoGRO(end.port))
		require.NoError(t, middle.SetUp(end.port, true))
		require.NoError(t, end.host.AddAddress("eth0", netip.MustParsePrefix(end.addr)))
		require.NoError(t, end.host.SetUp("eth0", true))
	}
	wire, err := Start(run, middle, []Link{{A: "w0", B: "w1", Delay: delay}}, os.Stderr)
	require.NoError(t, err)

	var in net.PacketConn
	require.NoError(t, b.Do(func() (err error) {
		in, err = net.ListenPacket("udp6", "[2001:db8::b]:7000")
		return err
	}))
	defer in.Close()
	out, err := a.Dial(t.Context(), "udp6", "[2001:db8::b]:7000")
	require.NoError(t, err)
	defer out.Close()

	// Neighbour discovery first: what waits for it may be overtaken by what follows.
	var msg [200]byte
	require.NoError(t, in.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, err = out.Write(msg[:])
	require.NoError(t, err)
	_, _, err = in.ReadFrom(msg[:])
	require.NoError(t, err)

	start := time.Now()
	go func() {
		for i := range count {
			var msg [200]byte
			binary.BigEndian.PutUint32(msg[:], uint32(i))
			binary.BigEndian.PutUint64(msg[4:], uint64(time.Since(start)))
			out.Write(msg[:])
			time.Sleep(time.Millisecond)
		}
	}()
	require.NoError(t, in.SetReadDeadline(start.Add(10*time.Second)))
	var delays []time.Duration
	for want := range count {
		var msg [200]byte
		_, _, err := in.ReadFrom(msg[:])
		require.NoError(t, err)
		at := time.Since(start)
		i := int(binary.BigEndian.Uint32(msg[:]))
		sent := time.Duration(binary.BigEndian.Uint64(msg[4:]))
		require.Equal(t, want, i, "frames out of order")
		delays = append(delays, at-sent)
	}
	slices.Sort(delays)
	t.Logf("delay: min %v, p50 %v, max %v", delays[0], delays[count/2], delays[count-1])
	require.GreaterOrEqual(t, delays[0], delay)
	require.Less(t, delays[count/2], delay+15*time.Millisecond)

	s, err := wire.Stop()
	require.NoError(t, err)
	t.Logf("%+v", s)
	require.GreaterOrEqual(t, s.Frames, uint64(count))
	require.GreaterOrEqual(t, s.Bytes, uint64(count*(14+40+8+200)))
	require.Zero(t, s.Lost)
}
