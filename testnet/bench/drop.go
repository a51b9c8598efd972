// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

const (
	dropRuns   = 200_000 // of one measurement
	dropRounds = 7

	xdpDrop = 1 // XDP_DROP
	xdpPass = 2 // XDP_PASS
)

// drop measures what the engine in the kernel spends on datagrams that it refuses,
// without their reception by the driver.
func (b *bench) drop(ctx context.Context, l *lane, _ *engine) error {
	if l.name != XDP {
		return nil
	}
	p, ifindex, err := l.entry()
	if err != nil {
		return err
	}
	defer p.Close()
	foreign := hostileFrame(0)
	foreign[12] = 0 // not IPv6
	for _, x := range []struct {
		what    string
		frame   frame
		verdict uint32
	}{
		{"not_ours", foreign, xdpPass},
		{"no_session", hostileFrame(0), xdpDrop},
		{"bad_source", hostileFrame(1), xdpDrop},
		{"bad_hop_tag", hostileFrame(2), xdpDrop},
	} {
		var list []float64
		for range dropRounds {
			if err := ctx.Err(); err != nil {
				return err
			}
			verdict, ns, err := l.runEntry(p, ifindex, x.frame)
			if err == nil && verdict != x.verdict {
				err = fmt.Errorf("XDP verdict %d instead of %d", verdict, x.verdict)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", x.what, err)
			}
			list = append(list, ns)
		}
		b.result.Drop = append(b.result.Drop, Drop{Engine: l.name, Verdict: x.what, Nanoseconds: Figure(median(list))})
	}
	return nil
}

// entry is the program that receives at rp0, and the interface.
func (l *lane) entry() (p *ebpf.Program, ifindex int, err error) {
	err = l.rp.Do(func() error {
		dev, err := netlink.LinkByName(rpLink)
		if err != nil {
			return err
		}
		ifindex = dev.Attrs().Index
		x := dev.Attrs().Xdp
		if x == nil || !x.Attached {
			return errors.New("no XDP program at " + rpLink)
		}
		p, err = ebpf.NewProgramFromID(ebpf.ProgramID(x.ProgId))
		return err
	})
	return p, ifindex, err
}

// runEntry runs the program on a frame, again and again, and returns its verdict and
// the time per run in ns.
func (l *lane) runEntry(p *ebpf.Program, ifindex int, f frame) (verdict uint32, ns float64, err error) {
	err = l.rp.Do(func() (err error) {
		start := time.Now()
		verdict, err = p.Run(&ebpf.RunOptions{
			Data:    f,
			Context: xdpContext{DataEnd: uint32(len(f)), IngressIfindex: uint32(ifindex)},
			Repeat:  dropRuns,
		})
		ns = float64(time.Since(start).Nanoseconds()) / dropRuns
		return err
	})
	return verdict, ns, err
}
