// SPDX-License-Identifier: LGPL-3.0-or-later

// Package ideal diffuses transactions by native multicast: one packet, copied by
// the routers along a tree from its source. Nobody can deploy that between
// domains today, and so it is what the others are held against.
//
//	node --- [AS router] --- [AS router] --- lan --- node
//	              |                     `--- [AS router] --- lan --- node
//	             lan --- node                                   `--- node
//
// Each node is the source of a channel (RFC 4607) that all others join by MLDv2.
// The routers copy by multicast routes of the kernel, installed beforehand along
// the [Trees]. The LANs and the switches of IXPs flood multicast to all their
// ports, so a packet on a LAN costs a frame for each host there, and one at an
// IXP a frame for each member.
//
// A transaction travels as the DATA datagrams of mDCS without tags and parity
// (SPEC 4), so that all differences in bytes are those of the way. There is no
// control traffic but MLD, no repair, and no node: the arrival is the kernel's
// time stamp of the last frame of a transaction, before a pool has done anything.
package ideal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/testnet/measure"
	"github.com/ethmcast/mdcs/testnet/netns"
	"github.com/ethmcast/mdcs/testnet/node"
	"github.com/ethmcast/mdcs/testnet/workload"
)

// Group is the multicast address of all channels.
var Group = netip.MustParseAddr("ff3e::8000:1")

const (
	hopLimit      = 64
	receiveBuffer = 4 << 20 // bytes, for bursts
	readyTimeout  = 10 * time.Second
)

// Node is a host that sends and receives. Its interface is [node.Interface].
type Node struct {
	Name string
	Addr netip.Addr
	NS   *netns.Namespace
}

// Config describes the net. Trees[i] is that of Nodes[i].
type Config struct {
	Nodes   []Node
	Routers map[string]*netns.Namespace // by the names in Trees
	Trees   []Tree
	Port    uint16        // UDP
	Txs     []common.Hash // what will be sent
}

// Net is a net with multicast routes and receivers.
type Net struct {
	*measure.Arrivals

	cfg        Config
	routers    map[string]*router
	receivers  []*receiver
	senders    []*net.UDPConn // by node
	datagrams  atomic.Uint64
	duplicates atomic.Uint64
	done       sync.WaitGroup
}

// Start installs the routes, joins all channels and begins to record. The nodes
// are numbered as in the config. It waits for interfaces that have just been made.
func Start(ctx context.Context, cfg Config) (*Net, error) {
	n := &Net{
		Arrivals: measure.NewArrivals(cfg.Txs, len(cfg.Nodes)),
		cfg:      cfg,
		routers:  make(map[string]*router),
	}
	if err := n.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start multicast: %w", err), n.Close())
	}
	for _, r := range n.receivers {
		n.done.Go(r.run)
	}
	return n, nil
}

func (n *Net) open(ctx context.Context) error {
	for _, t := range n.cfg.Trees {
		for name, branch := range t.Branches {
			if err := n.route(name, t.Source, branch); err != nil {
				return err
			}
		}
	}
	byID := make(map[uint64]common.Hash, len(n.cfg.Txs))
	for _, hash := range n.cfg.Txs {
		byID[objectID(hash)] = hash
	}
	for i, host := range n.cfg.Nodes {
		r := &receiver{net: n, node: i, txs: byID, objects: make(map[uint64]*object)}
		if err := r.open(); err != nil {
			return fmt.Errorf("%s: %w", host.Name, err)
		}
		n.receivers = append(n.receivers, r)
		sender, err := openSender(host)
		if err != nil {
			return fmt.Errorf("%s: %w", host.Name, err)
		}
		n.senders = append(n.senders, sender)
	}
	return n.waitReady(ctx)
}

func (n *Net) route(name string, source netip.Addr, branch Branch) error {
	ns, ok := n.cfg.Routers[name]
	if !ok {
		return fmt.Errorf("no router %s", name)
	}
	if n.routers[name] == nil {
		r, err := openRouter(name, ns)
		if err != nil {
			return err
		}
		n.routers[name] = r
	}
	return n.routers[name].route(ns, source, Group, branch)
}

// waitReady waits until all interfaces can send multicast.
func (n *Net) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	return node.Wait(ctx, "interfaces", func(context.Context) error {
		for _, h := range n.cfg.Nodes {
			if err := ready(h.NS, node.Interface); err != nil {
				return err
			}
		}
		for name, r := range n.routers {
			for intf := range r.index {
				if err := ready(n.cfg.Routers[name], intf); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// openSender opens a socket that sends to the group from the address of the node.
func openSender(n Node) (conn *net.UDPConn, err error) {
	err = n.NS.Do(func() error {
		intf, err := net.InterfaceByName(node.Interface)
		if err != nil {
			return err
		}
		local := net.UDPAddrFromAddrPort(netip.AddrPortFrom(n.Addr, 0))
		if conn, err = net.ListenUDP("udp6", local); err != nil {
			return err
		}
		p := ipv6.NewPacketConn(conn)
		return errors.Join(p.SetMulticastInterface(intf), p.SetMulticastHopLimit(hopLimit), p.SetMulticastLoopback(false))
	})
	if err != nil && conn != nil {
		conn.Close()
	}
	return conn, err
}

// objectID is the field of the header that names a transaction (SPEC 4.1).
func objectID(hash common.Hash) uint64 { return binary.BigEndian.Uint64(hash[:]) }

// Submit sends a transaction from its node. It is for [workload.Send].
func (n *Net) Submit(_ context.Context, tx workload.Tx) error {
	var (
		group = net.UDPAddrFromAddrPort(netip.AddrPortFrom(Group, n.cfg.Port))
		k     = wire.SourceSymbols(len(tx.Raw))
		b     []byte
	)
	n.Record(tx.Node, tx.Hash, time.Now())
	esi := uint16(0)
	for payload := range slices.Chunk(tx.Raw, wire.MaxPayload) {
		h := wire.Header{
			Type: wire.Data, ESI: esi, K: uint16(k), N: uint16(k),
			PayloadLen: uint16(len(payload)), ObjectLen: uint32(len(tx.Raw)), ObjectID: objectID(tx.Hash),
		}
		b = append(h.Append(b[:0]), payload...)
		if _, err := n.senders[tx.Node].WriteToUDP(b, group); err != nil {
			return fmt.Errorf("send %s by multicast: %w", tx.Hash, err)
		}
		esi++
	}
	return nil
}

// Datagrams are how many arrived at all nodes together, and how many of them had
// arrived before.
func (n *Net) Datagrams() (all, duplicates uint64) {
	return n.datagrams.Load(), n.duplicates.Load()
}

// Counters are those of all routes, by source and router.
func (n *Net) Counters() ([]RouteCount, error) {
	var counts []RouteCount
	for _, t := range n.cfg.Trees {
		for name := range t.Branches {
			c, err := n.routers[name].count(t.Source, Group)
			if err != nil {
				return nil, err
			}
			counts = append(counts, c)
		}
	}
	slices.SortFunc(counts, func(a, b RouteCount) int {
		if a.Source != b.Source {
			return a.Source.Compare(b.Source)
		}
		return strings.Compare(a.Router, b.Router)
	})
	return counts, nil
}

// Close leaves all channels and removes the routes.
func (n *Net) Close() error {
	var errs []error
	for _, r := range n.receivers {
		errs = append(errs, r.conn.Close())
	}
	n.done.Wait()
	for _, s := range n.senders {
		errs = append(errs, s.Close())
	}
	for _, r := range n.routers {
		errs = append(errs, r.close())
	}
	n.Arrivals.Close()
	return errors.Join(errs...)
}

// receiver is the receiving side of a node.
type receiver struct {
	net     *Net
	node    int
	txs     map[uint64]common.Hash
	conn    *net.UDPConn
	objects map[uint64]*object
}

// object is a transaction that has arrived in part or as a whole.
type object struct {
	have []bool // by ESI
	left int
	last time.Time // largest time stamp so far
}

// open opens a socket with time stamps and joins the channels of all other nodes.
func (r *receiver) open() error {
	var (
		cfg  = &r.net.cfg
		self = cfg.Nodes[r.node]
	)
	err := self.NS.Do(func() error {
		intf, err := net.InterfaceByName(node.Interface)
		if err != nil {
			return err
		}
		if r.conn, err = net.ListenUDP("udp6", &net.UDPAddr{Port: int(cfg.Port)}); err != nil {
			return err
		}
		if err := r.prepare(); err != nil {
			return err
		}
		p := ipv6.NewPacketConn(r.conn)
		for i, source := range cfg.Nodes {
			if i == r.node {
				continue
			}
			if err := p.JoinSourceSpecificGroup(intf, &net.UDPAddr{IP: Group.AsSlice()}, &net.UDPAddr{IP: source.Addr.AsSlice()}); err != nil {
				return fmt.Errorf("join the channel of %s: %w", source.Name, err)
			}
		}
		return nil
	})
	if err != nil && r.conn != nil {
		r.conn.Close()
	}
	return err
}

func (r *receiver) prepare() error {
	raw, err := r.conn.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = errors.Join(
			os.NewSyscallError("SO_TIMESTAMPNS", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)),
			os.NewSyscallError("SO_RCVBUFFORCE", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)),
		)
	})
	return errors.Join(err, set)
}

// run records until the socket is closed.
func (r *receiver) run() {
	b, control := make([]byte, 2*wire.MaxDatagram), make([]byte, 128)
	for {
		n, c, _, _, err := r.conn.ReadMsgUDP(b, control)
		if err != nil {
			return
		}
		h, _, v := wire.Parse(b[:n])
		at, ok := timestamp(control[:c])
		if v != wire.Pass || h.Type != wire.Data || h.ESI >= h.K || !ok {
			continue
		}
		r.add(h, at)
	}
}

// add enters a datagram, and records the transaction when it is complete.
func (r *receiver) add(h wire.Header, at time.Time) {
	hash, ok := r.txs[h.ObjectID]
	if !ok {
		return
	}
	r.net.datagrams.Add(1)
	o := r.objects[h.ObjectID]
	if o == nil {
		o = &object{have: make([]bool, h.K), left: int(h.K)}
		r.objects[h.ObjectID] = o
	}
	if int(h.K) != len(o.have) || o.have[h.ESI] {
		r.net.duplicates.Add(1)
		return
	}
	o.have[h.ESI] = true
	o.left--
	if at.After(o.last) {
		o.last = at
	}
	if o.left == 0 {
		r.net.Record(r.node, hash, o.last)
	}
}

// timestamp finds the time, by CLOCK_REALTIME, at which the kernel received a
// packet.
func timestamp(control []byte) (time.Time, bool) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return time.Time{}, false
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) == 16 {
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:]))), true
		}
	}
	return time.Time{}, false
}
