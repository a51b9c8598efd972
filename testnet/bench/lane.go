// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	vnetns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/testnet/netns"
)

// Interfaces of a lane.
const (
	rpLink      = "rp0"
	lanLink     = "l0"
	floodLink   = "rp1"
	hostileLink = "h0"
	nearLink    = "rc0"
	farLink     = "rc1"
)

// lane is one replication point in namespaces of its own, with what copies there:
//
//	+--- rp ----------------------+        +--- lan ----------------+
//	|  subject        rp0 fd00:1::1 ------ l0 fd00:1::2             |
//	|                 rp1 fd00:3::1 --+    |  publisher, fd00:2::/64 |
//	+-----------------------------+   |    +------------------------+
//	                                  |    +--- out ----+
//	                                  +--- h0 fd00:3::2 |
//	                                       +------------+
//
// What is injected leaves l0 as if the publisher had sent it. The sink stands at l0.
type lane struct {
	name         string
	rp, lan, out *netns.Namespace
	traffic      *traffic
	subject      subject
	sink         link.Link

	lanHandle vnetns.NsHandle // for threads besides that of lan

	l0, h0 int // interface indexes
	n      int // subscribers now

	footprint footprint // of the subject
}

// newLane builds the namespaces and starts in them what the lane is named after.
func newLane(run *netns.Run, name string, t *traffic) (*lane, error) {
	l := &lane{name: name, traffic: t, lanHandle: vnetns.None()}
	err := l.open(run)
	if err == nil {
		err = l.footprint.start(func() (err error) {
			l.subject, err = newSubject(l)
			return err
		})
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, errors.Join(err, l.close()))
	}
	return l, nil
}

// open builds the namespaces and attaches the sink.
func (l *lane) open(run *netns.Run) error {
	var err error
	for _, x := range []struct {
		ns   **netns.Namespace
		name string
	}{{&l.rp, "-rp"}, {&l.lan, "-lan"}, {&l.out, "-out"}} {
		if *x.ns, err = run.Namespace(l.name + x.name); err != nil {
			return err
		}
	}
	if err := l.rp.Veth(rpLink, l.lan, lanLink); err != nil {
		return err
	}
	if err := l.rp.Veth(floodLink, l.out, hostileLink); err != nil {
		return err
	}
	for _, x := range []struct {
		ns   *netns.Namespace
		name string
		mac  mac
		addr netip.Addr
	}{
		{l.rp, rpLink, rpMAC, rpAddr.Addr()},
		{l.lan, lanLink, lanMAC, publisherAddr.Addr()},
		{l.rp, floodLink, rpMAC, floodAddr},
		{l.out, hostileLink, hostileMAC, hostileAddr.Addr()},
	} {
		if err := setUp(x.ns, x.name, x.mac, x.addr); err != nil {
			return err
		}
	}
	if err := addNeighbor(l.rp, rpLink, publisherAddr.Addr(), lanMAC); err != nil {
		return err
	}
	if err := l.rp.SetRoute(subscribersNet, publisherAddr.Addr()); err != nil {
		return err
	}
	if l.h0, err = index(l.out, hostileLink); err != nil {
		return err
	}
	if l.l0, err = index(l.lan, lanLink); err != nil {
		return err
	}
	if l.sink, err = attachXDP(l.lan, lanLink, l.traffic.objects.BenchSink); err != nil {
		return err
	}
	err = l.lan.Do(func() (err error) {
		if l.lanHandle, err = vnetns.Get(); err != nil {
			return fmt.Errorf("open namespace of %s-lan: %w", l.name, err)
		}
		return pin(0)
	})
	if err != nil {
		return err
	}
	return l.out.Do(func() error { return pin(1) })
}

// close releases what is not in the namespaces.
func (l *lane) close() error {
	var errs []error
	if l.subject != nil {
		errs = append(errs, l.subject.close())
	}
	if l.sink != nil {
		errs = append(errs, l.sink.Close())
	}
	if l.lanHandle.IsOpen() {
		errs = append(errs, l.lanHandle.Close())
	}
	return errors.Join(errs...)
}

// resize makes the subject have n subscribers.
func (l *lane) resize(n int) error {
	err := l.footprint.add(func() error { return l.subject.resize(l.n, n) })
	if err != nil {
		return fmt.Errorf("%s: %d subscribers: %w", l.name, n, err)
	}
	l.n = n
	return nil
}

// setUp gives an interface its addresses and sets it up.
func setUp(ns *netns.Namespace, name string, hw mac, addr netip.Addr) error {
	err := ns.Do(func() error {
		dev, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkSetHardwareAddr(dev, hw[:])
	})
	if err != nil {
		return fmt.Errorf("set Ethernet address of %s/%s: %w", ns.Name(), name, err)
	}
	if err := ns.AddAddress(name, netip.PrefixFrom(addr, 64)); err != nil {
		return err
	}
	return ns.SetUp(name, true)
}

// addNeighbor adds a permanent entry, so that no measurement waits for an answer.
func addNeighbor(ns *netns.Namespace, name string, addr netip.Addr, hw mac) error {
	i, err := index(ns, name)
	if err != nil {
		return err
	}
	err = ns.Do(func() error {
		return netlink.NeighSet(&netlink.Neigh{
			LinkIndex: i, Family: netlink.FAMILY_V6, State: netlink.NUD_PERMANENT,
			IP: addr.AsSlice(), HardwareAddr: net.HardwareAddr(hw[:]),
		})
	})
	if err != nil {
		return fmt.Errorf("add ND entry %v to %s/%s: %w", addr, ns.Name(), name, err)
	}
	return nil
}

func index(ns *netns.Namespace, name string) (i int, err error) {
	err = ns.Do(func() error {
		dev, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find interface %s/%s: %w", ns.Name(), name, err)
		}
		i = dev.Attrs().Index
		return nil
	})
	return i, err
}

// overruns counts the frames that an end of a veth sent and that found the ring of the
// other end full: no program there saw them.
func overruns(ns *netns.Namespace, name string) (n uint64, err error) {
	err = ns.Do(func() error {
		dev, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("read counters of %s/%s: %w", ns.Name(), name, err)
		}
		n = dev.Attrs().Statistics.TxDropped
		return nil
	})
	return n, err
}

// recirculate makes the recirculation pair inside of the replication point: what is
// sent to near comes out at far.
func (l *lane) recirculate() error {
	if err := l.rp.Veth(nearLink, l.rp, farLink); err != nil {
		return err
	}
	for _, name := range []string{nearLink, farLink} {
		// Without IPv6 it sends nothing of its own.
		if err := l.rp.Sysctl("net.ipv6.conf."+name+".disable_ipv6", "1"); err != nil {
			return err
		}
		if err := l.rp.SetUp(name, true); err != nil {
			return err
		}
	}
	return nil
}

// attachXDP puts a program at an interface, in its driver.
func attachXDP(ns *netns.Namespace, name string, p *ebpf.Program) (l link.Link, err error) {
	i, err := index(ns, name)
	if err != nil {
		return nil, err
	}
	err = ns.Do(func() (err error) {
		l, err = link.AttachXDP(link.XDPOptions{Program: p, Interface: i, Flags: link.XDPDriverMode})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("attach XDP to %s/%s: %w", ns.Name(), name, err)
	}
	return l, nil
}

// pin keeps the calling thread on the n-th CPU that the process may use, modulo
// their number. What a thread injects is received by the kernel on the same CPU.
func pin(n int) error {
	var allowed, one unix.CPUSet
	if err := unix.SchedGetaffinity(os.Getpid(), &allowed); err != nil {
		return fmt.Errorf("pin thread: %w", err)
	}
	n %= allowed.Count()
	for cpu := 0; ; cpu++ {
		if !allowed.IsSet(cpu) {
			continue
		}
		if n == 0 {
			one.Set(cpu)
			break
		}
		n--
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("pin thread: %w", err)
	}
	return nil
}

// xdpContext is struct xdp_md as BPF_PROG_TEST_RUN takes it.
type xdpContext struct {
	Data, DataEnd, DataMeta         uint32
	IngressIfindex, RxQueue, Egress uint32
}

// Flags of BPF_PROG_TEST_RUN, and the largest batch of frames.
const (
	liveFrames = 1 << 1 // BPF_F_TEST_XDP_LIVE_FRAMES
	maxBatch   = 64
)

// transmit lets a generator program send n frames through an interface, back to
// back. It must run in the namespace of the interface.
//
// Each run takes one of the kernel's 65,534 ids of memory models, and gives it back when
// all of its frames are gone, often only a second later (net/core/page_pool.c,
// page_pool_release_retry). When there is none left, ENOSPC, nothing was sent, and
// transmit tries again after a while.
func transmit(p *ebpf.Program, template frame, ifindex, n int) error {
	return whileFull(func() error {
		_, err := p.Run(&ebpf.RunOptions{
			Data:      template,
			Context:   xdpContext{DataEnd: uint32(len(template)), IngressIfindex: uint32(ifindex)},
			Repeat:    uint32(n),
			Flags:     liveFrames,
			BatchSize: uint32(min(n, maxBatch)),
		})
		return err
	}, time.Sleep)
}

// How long and how often whileFull waits for the kernel to free ids.
const (
	fullPause = 100 * time.Millisecond
	fullTries = 100
)

// whileFull calls run again, with pauses, as long as the kernel has no id for it.
func whileFull(run func() error, sleep func(time.Duration)) (err error) {
	for range fullTries {
		if err = run(); !errors.Is(err, unix.ENOSPC) {
			return err
		}
		sleep(fullPause)
	}
	return err
}

// inject sends n of the publisher's datagrams. It must run in the lane's lan.
func (l *lane) inject(n int) error {
	if err := transmit(l.traffic.objects.BenchInject, l.traffic.template, l.l0, n); err != nil {
		return fmt.Errorf("%s: inject: %w", l.name, err)
	}
	return nil
}

// hostile runs f where hostile datagrams come from, with the interface to send by: out,
// or the publisher's own interface, beside the publisher.
func (l *lane) hostile(shared bool, f func(ifindex int) error) error {
	if !shared {
		return l.out.Do(func() error { return f(l.h0) })
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // which ends with the goroutine
		if err := errors.Join(vnetns.Set(l.lanHandle), pin(1)); err != nil {
			done <- fmt.Errorf("%s: enter lan: %w", l.name, err)
			return
		}
		done <- f(l.l0)
	}()
	return <-done
}

// flood sends n hostile datagrams. It must run in the namespace of the interface.
func (l *lane) flood(ifindex, n int) error {
	if err := transmit(l.traffic.objects.BenchFlood, l.traffic.template, ifindex, n); err != nil {
		return fmt.Errorf("%s: flood: %w", l.name, err)
	}
	return nil
}

// settled is how many looks 1 ms apart find nothing new until what is missing counts
// as lost. On a busy machine a look is late like everything else, so looks are counted
// and not time.
const settled = 150

// settle waits until the sink has seen want copies since the counter was at from, or
// no new ones for some time.
func (l *lane) settle(ctx context.Context, from, want uint64) error {
	return settle(ctx, l.traffic.copies, from, want)
}

// settle waits until count has grown by want since it was at from, or has not grown for
// some time.
func settle(ctx context.Context, count func() (uint64, error), from, want uint64) error {
	last, looks := from, 0
	for pause := 20 * time.Microsecond; looks < settled; pause = min(2*pause, time.Millisecond) {
		n, err := count()
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case n-from >= want:
			return nil
		case n != last:
			last, looks = n, 0
		default:
			looks++
		}
		time.Sleep(pause)
	}
	return nil
}
