// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// Sizes of the benchmark of events: members, the hosts on the link that they are on, and
// events per second.
const (
	manyMembers   = 10_000
	manyHosts     = 500
	manyPerSecond = 1000
)

// manyAddr is the address of a host on the link of the first one.
func (l *lab) manyAddr(i int) netip.Addr {
	a := l.hostAddr(0).As16()
	a[12], a[13] = byte(i>>8)+1, byte(i)
	return netip.AddrFrom16(a)
}

// newMany starts an engine that has many members, on hosts whose ND entries are permanent.
func newMany(t testing.TB, members, hosts int) (*lab, *Engine, []datapath.Session) {
	l := newLab(t, 1)
	e := l.attach(func() (*Engine, error) {
		return Attach(datapath.Config{Addr: netip.AddrPortFrom(l.rpAddr(0), 0), Incarnation: testOwn}, Options{Devices: l.devices()})
	})
	sessions := crowdSessions(l, members, func(int) int { return 0 })
	for i := range sessions {
		sessions[i].Addr = netip.AddrPortFrom(l.manyAddr(i%hosts), uint16(20000+i/hosts))
	}
	l.in(l.rp, func() {
		dev, err := netlink.LinkByName(l.device(0))
		require.NoError(t, err)
		for i := range hosts {
			require.NoError(t, netlink.NeighSet(&netlink.Neigh{
				LinkIndex: dev.Attrs().Index, Family: netlink.FAMILY_V6, State: netlink.NUD_PERMANENT,
				IP: l.manyAddr(i).AsSlice(), HardwareAddr: net.HardwareAddr{2, 0, 0, 1, byte(i >> 8), byte(i)},
			}))
		}
	})
	for part := range slices.Chunk(sessions, 500) {
		require.NoError(t, e.Apply(datapath.Change{Keys: []proto.GroupKey{{Ingress: testOwn, Group: testGroup}}, Add: part}))
	}
	require.Eventually(t, func() bool { return e.missing() == 0 }, time.Minute, 10*time.Millisecond)
	return l, e, sessions
}

// BenchmarkXDPEvents tells what events of the kernel cost an engine with 10,000 members: its
// CPU time, and what a join and a heartbeat take meanwhile. The events come from another
// process, 1,000 a second. What this one uses to say which, and for 20 joins a second, is the
// CPU time of "none", which are comments.
func BenchmarkXDPEvents(b *testing.B) {
	l, e, sessions := newMany(b, manyMembers, manyHosts)
	dev := l.device(0)
	for name, commands := range map[string]func(i int) string{
		"none":           func(i int) string { return fmt.Sprintf("# route replace 3fff:%x::/64 dev lo", i%1000) },
		"route":          func(i int) string { return fmt.Sprintf("route replace 3fff:%x::/64 dev lo", i%1000) },
		"covering-route": func(i int) string { return fmt.Sprintf("route replace ::/%d dev lo metric 4000", i%2) },
		"other-table": func(i int) string {
			return fmt.Sprintf("route replace 2001:db8::/32 dev lo table 100 metric %d", 1000+i%100)
		},
		"address": func(i int) string {
			return fmt.Sprintf("addr %s 3fff::%x/128 dev lo nodad", [...]string{"add", "del"}[i%2], i/2%5000)
		},
		"ND entry": func(i int) string {
			return fmt.Sprintf("neigh replace %v dev %s lladdr 02:00:00:%02x:00:00 nud permanent", l.manyAddr(i%manyHosts), dev, i/manyHosts%256)
		},
	} {
		b.Run(name, func(b *testing.B) {
			stop := l.events(b, commands)
			time.Sleep(time.Second)
			var joins, beats []time.Duration
			began, cpu := time.Now(), cpuTime(b)
			for i := range 200 {
				s := sessions[1+i]
				s.SendKey[15]++
				at := time.Now()
				require.NoError(b, e.Apply(datapath.Change{Add: []datapath.Session{s}}))
				joins = append(joins, time.Since(at))
				at = time.Now()
				require.NoError(b, e.Heartbeat(datapath.Local))
				beats = append(beats, time.Since(at))
				time.Sleep(50 * time.Millisecond)
			}
			busy := cpuTime(b) - cpu
			b.ReportMetric(100*busy.Seconds()/time.Since(began).Seconds(), "%CPU")
			for what, times := range map[string][]time.Duration{"join": joins, "heartbeat": beats} {
				slices.Sort(times)
				b.ReportMetric(float64(times[len(times)/2].Microseconds())/1e3, what+"-p50-ms")
				b.ReportMetric(float64(times[len(times)*99/100].Microseconds())/1e3, what+"-p99-ms")
				b.ReportMetric(float64(times[len(times)-1].Microseconds())/1e3, what+"-max-ms")
			}
			b.ReportMetric(float64(stop())/time.Since(began).Seconds(), "events/s")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// cpuTime is what this process used until now.
func cpuTime(t testing.TB) time.Duration {
	var u unix.Rusage
	require.NoError(t, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// events runs commands of ip(8) in the RP's namespace, manyPerSecond each second, until
// stop, which returns how many there were.
func (l *lab) events(t testing.TB, command func(i int) string) (stop func() int) {
	cmd := exec.Command("ip", "-6", "-force", "-batch", "-")
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	l.in(l.rp, func() { require.NoError(t, cmd.Start()) })
	quit, ended := make(chan struct{}), make(chan int)
	go func() {
		const part = 10 * time.Millisecond
		tick := time.NewTicker(part)
		defer tick.Stop()
		for n := 0; ; {
			select {
			case <-tick.C:
			case <-quit:
				ended <- n
				return
			}
			var some strings.Builder // written at once: this process is measured
			for range int(part * manyPerSecond / time.Second) {
				some.WriteString(command(n) + "\n")
				n++
			}
			if _, err := io.WriteString(in, some.String()); err != nil {
				n = 0 // it has ended
			}
		}
	}()
	return func() int {
		_ = cmd.Process.Kill()
		close(quit)
		n := <-ended
		in.Close()
		_ = cmd.Wait()
		return n
	}
}
