// SPDX-License-Identifier: LGPL-3.0-or-later

package bench

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/testnet/bench/bpf"
)

// tc copies by tc.bpf.c.
type tc struct{ objects bpf.TCObjects }

func newTC(l *lane) (subject, error) {
	t := new(tc)
	if err := t.open(l); err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

func (t *tc) open(l *lane) error {
	if err := l.recirculate(); err != nil {
		return err
	}
	var rp0, near, far int
	for name, i := range map[string]*int{rpLink: &rp0, nearLink: &near, farLink: &far} {
		var err error
		if *i, err = index(l.rp, name); err != nil {
			return err
		}
	}
	spec, err := bpf.LoadTC()
	if err != nil {
		return err
	}
	if err := setVariables(spec, map[string]any{
		bpf.TCVarEgress:        uint32(rp0),
		bpf.TCVarRecirculation: uint32(near),
		bpf.TCVarOwnPort:       ownPort(),
	}); err != nil {
		return err
	}
	if err := spec.LoadAndAssign(&t.objects, nil); err != nil {
		return err
	}
	for i := 1; i <= MaxSubscribers; i++ {
		if err := t.objects.Replicas.Put(uint32(i-1), bpf.TCReplica(replica(i))); err != nil {
			return err
		}
	}
	return l.rp.Do(func() error {
		for _, ifindex := range []int{rp0, far} {
			if err := t.attach(ifindex); err != nil {
				return fmt.Errorf("attach filter: %w", err)
			}
		}
		return nil
	})
}

// attach makes the program the filter of what arrives at an interface. The filter
// ends with its namespace.
func (t *tc) attach(ifindex int) error {
	attrs := netlink.QdiscAttrs{LinkIndex: ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
	if err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: attrs}); err != nil {
		return err
	}
	return netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifindex, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL,
		},
		Fd: t.objects.TcFanout.FD(), Name: bpf.TCProgTcFanout, DirectAction: true,
	})
}

func (t *tc) resize(_, n int) error { return t.objects.Subscribers.Set(uint32(n)) }

func (t *tc) close() error { return t.objects.Close() }
