// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import (
	"encoding/binary"
	"fmt"
	"net"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/wire"
)

const (
	benchLinks = 50
	benchRate  = 10_000 // frames/s over all links
)

// BenchmarkPrecision sends b.N datagrams of 200 bytes at 10,000 per second,
// spread over 50 links of 5 to 80 ms, and reports how far off their delay was:
// the kernel's time of arrival at the receiver, less the time before the send
// call, less the delay of the link. For figures, run
//
//	go test -run '^$' -bench Precision -benchtime 50000x ./testnet/delayline
func BenchmarkPrecision(b *testing.B) {
	b.Run("quiet", func(b *testing.B) { precision(b, newBenchNet(b)) })
	b.Run("redirects", func(b *testing.B) {
		n := newBenchNet(b)
		for i := range benchLinks {
			for _, end := range []string{"a", "b"} {
				attached, err := TakeRedirects(n.middle, fmt.Sprintf("%s%d", end, i))
				require.NoError(b, err)
				defer attached.Close()
			}
		}
		precision(b, n)
	})
	b.Run("burners", func(b *testing.B) {
		n := newBenchNet(b)
		for range 2 * runtime.NumCPU() {
			burner := exec.Command("sh", "-c", "while :; do :; done")
			require.NoError(b, burner.Start())
			defer func() {
				burner.Process.Kill()
				burner.Wait()
			}()
		}
		precision(b, n)
	})
}

func newBenchNet(b *testing.B) *testNet {
	links := make([]Link, benchLinks)
	for i := range links {
		links[i].Delay = benchDelay(i)
	}
	return newTestNet(b, 1, links...)
}

func benchDelay(link int) time.Duration {
	return 5*time.Millisecond + time.Duration(link)*75*time.Millisecond/(benchLinks-1)
}

func precision(b *testing.B, n *testNet) {
	in := n.listen(b, testPorts.PeerData)
	setOption(b, in, unix.SO_TIMESTAMPNS_NEW, 1)
	out := make([]net.Conn, benchLinks)
	for i := range out {
		out[i] = n.dial(b, "udp6", i, testPorts.PeerData)
		greet(b, out[i], in)
	}
	require.NoError(b, n.wire.Clear())

	b.ResetTimer()
	start := time.Now()
	paced := make(chan error, 1)
	go func() { paced <- pace(out, b.N) }()
	errors := make([]time.Duration, 0, b.N)
	for i := range b.N {
		var msg, control [256]byte
		require.NoError(b, in.SetReadDeadline(time.Now().Add(10*time.Second)))
		_, k, _, _, err := in.ReadMsgUDP(msg[:], control[:])
		require.NoError(b, err, "after %d datagrams", i)
		at := int64(binary.NativeEndian.Uint64(control[unix.SizeofCmsghdr:]))*1e9 +
			int64(binary.NativeEndian.Uint64(control[unix.SizeofCmsghdr+8:k]))
		sent := int64(binary.BigEndian.Uint64(msg[wire.HeaderSize+4:]))
		errors = append(errors, time.Duration(at-sent)-benchDelay(number(msg[:])%benchLinks))
	}
	elapsed := time.Since(start)
	b.StopTimer()
	require.NoError(b, <-paced)

	s, err := n.wire.Stop()
	require.NoError(b, err)
	require.Zero(b, s.Lost)
	slices.Sort(errors)
	report := func(name string, d time.Duration) { b.ReportMetric(float64(d.Nanoseconds())/1e3, name) }
	report("p1-us", errors[b.N/100])
	report("p50-us", errors[b.N/2])
	report("p99-us", errors[b.N*99/100])
	report("max-us", errors[b.N-1])
	b.ReportMetric(s.P99, "late-p99-us")
	b.ReportMetric(float64(b.N)/elapsed.Seconds(), "frames/s")
	b.ReportMetric(s.CPU/elapsed.Seconds()*100, "cpu-%")
	b.ReportMetric(0, "ns/op")
}

// pace sends n datagrams at benchRate, from a real-time thread, each with its
// number and the time in ns.
func pace(out []net.Conn, n int) error {
	runtime.LockOSThread() // for good: the thread has a priority of its own
	attr := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 40}
	if err := unix.SchedSetAttr(0, attr, 0); err != nil {
		return err
	}
	start := time.Now()
	for i := range n {
		if early := time.Until(start.Add(time.Duration(i) * time.Second / benchRate)); early > 0 {
			sleep(early)
		}
		b := numbered(i, 200)
		binary.BigEndian.PutUint64(b[wire.HeaderSize+4:], uint64(time.Now().UnixNano()))
		if _, err := out[i%len(out)].Write(b); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkIdle reports the CPU that 50 links without traffic take, over b.N ms.
func BenchmarkIdle(b *testing.B) {
	n := newBenchNet(b)
	require.NoError(b, n.wire.Clear())
	b.ResetTimer()
	time.Sleep(time.Duration(b.N) * time.Millisecond)
	b.StopTimer()
	s, err := n.wire.Stop()
	require.NoError(b, err)
	b.ReportMetric(s.CPU/b.Elapsed().Seconds()*100, "cpu-%")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkAdmit is what a frame costs before it waits.
func BenchmarkAdmit(b *testing.B) {
	frame := testFrame(unix.IPPROTO_UDP, testPorts.RPData, testPorts.PeerData, numbered(0, 1000))
	p := &Params{Delay: time.Millisecond, Jitter: time.Millisecond, Rate: 1e9, Loss: 0.01}
	s := newShaper(1, "test")
	var arrival int64
	b.ReportAllocs()
	for b.Loop() {
		arrival += int64(10 * time.Microsecond)
		s.admit(p, testPorts.classify(frame), len(frame), arrival)
	}
}
