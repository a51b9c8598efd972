// SPDX-License-Identifier: LGPL-3.0-or-later

package xdp

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"

	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/fanout"
	"github.com/ethmcast/mdcs/rp/datapath/xdp/pindir"
)

// makePair makes the recirculation pair, and tells the programs.
func (e *Engine) makePair() error {
	pair, err := newRecirculation(e.nl, e.addr, e.objects.MdcsRpRecirc)
	if err != nil {
		return err
	}
	e.tellDevice(MaxDevices, pair.in)
	e.recirc = pair
	return nil
}

// losePair forgets a pair that is gone. Until there is another one, no slice is built that needs it.
func (e *Engine) losePair() {
	e.unpinDevice(e.recirc.out)
	e.recirc.link.Close()
	e.tellDevice(MaxDevices, 0)
	e.recirc = &recirculation{name: e.recirc.name}
	e.unchained = true
}

// checkPair follows the recirculation pair, which others on the host can set down or remove: then
// no datagram gets beyond the first slice of its chain. A pair that is down is set up, and for a
// pair that is gone there is another one, which the slices lead to as they led to the old one. What
// does not work is tried again each second.
func (e *Engine) checkPair() {
	there, err := e.recirc.raise(e.nl)
	if err == nil && !there {
		if e.recirc.link != nil {
			e.losePair()
			e.opt.Log.Warn("the recirculation pair was removed, it is made anew", "interface", e.recirc.name+"a")
		}
		if err = e.makePair(); err == nil {
			err = e.pinDevice(e.recirc.out, e.recirc.link)
		}
	}
	if err == nil && e.unchained {
		err = e.fanout.Rechain()
		e.unchained = err != nil
	}
	if err != nil && e.noPair == nil {
		e.opt.Log.Error("without its recirculation pair no datagram reaches more than eight receivers", "err", err)
	}
	e.noPair = err
}

// renewPair is checkPair after an error of the fan-out, when that was because the pair is gone. It
// reports whether there is another one.
func (e *Engine) renewPair(err error) bool {
	if !errors.Is(err, fanout.ErrPair) {
		return false
	}
	before := e.recirc.in
	e.checkPair()
	return e.noPair == nil && e.recirc.in != before
}

// pairLack says that the pair does not work, if it does not.
func (e *Engine) pairLack() (lacks []datapath.Lack) {
	if e.noPair != nil {
		lacks = append(lacks, datapath.Lack{What: "recirculation pair " + e.recirc.name + "a", NoService: true,
			Why: fmt.Sprintf("datagrams reach the first eight receivers of a chain only: %v; it is tried again each second", e.noPair)})
	}
	return lacks
}

// raise sets the ends up if they are down, and reports whether the pair is there with its program.
// With an error that is not known.
func (r *recirculation) raise(nl *netlink.Handle) (there bool, err error) {
	if r.link == nil {
		return false, nil
	}
	for name, index := range map[string]int{r.name + "a": r.in, r.name + "b": r.out} {
		l, err := nl.LinkByName(name)
		if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone || err == nil && l.Attrs().Index != index {
			return false, nil
		}
		if err == nil && l.Attrs().Flags&net.FlagUp == 0 {
			err = nl.LinkSetUp(l)
		}
		if err != nil {
			return true, fmt.Errorf("set up %s: %w", name, err)
		}
	}
	return pindir.Attached(r.link, r.out), nil
}
