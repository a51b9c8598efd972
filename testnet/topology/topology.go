// SPDX-License-Identifier: LGPL-3.0-or-later

// Package topology describes the network to emulate: autonomous systems (ASes)
// with a border router and a LAN each, the links and Internet exchange points
// (IXPs) between them, who is whose customer, and the hosts. It also says which
// paths packets take: by policy, as BGP chooses them, and the physically
// shortest ones. A description does nothing by itself.
//
// The addresses follow from the numbers, whose decimal digits stand in them:
//
//	2001:db8:<AS>::/48             an AS
//	2001:db8:<AS>:1::/64           its LAN, where the router is ::1
//	2001:db8:f000:<n>::/126        link n, counted from 1, with ends ::1 and ::2
//	2001:db8:e<IXP>::/64           an IXP, where the route server is ::1 and AS n ::1:n
//
// Two networks are shipped. "two-as" is the smallest one that has a wide-area
// link:
//
//	AS 1, 2001:db8:1:1::/64                                        AS 2, 2001:db8:2:1::/64
//
//	as1-rp  ::53 --.                                               .-- as2-rp  ::53
//	as1-g1  ::a1 --+             2001:db8:f000:1::/126             +-- as2-g1  ::a1
//	               +-- ::1 [as1] ::1 ------------- ::2 [as2] ::1 --+
//	as1-g2  ::a2 --+                 20 ms one way                 +-- as2-g2  ::a2
//	as1-g3  ::a3 --'                                               '-- as2-g3  ::a3
//
// There the lines of hosts have no delay, so the one-way delay between two hosts
// is 0 or 20 ms, and each Ethereum node has all others as peers but the one of
// the same number in the other AS: in a real network nobody is everybody's peer.
//
// "ten-as" is an Internet of ten regions.
package topology

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Topology is a whole network.
type Topology struct {
	Name    string
	ASes    []AS
	IXPs    []IXP
	Links   []Link          // between ASes
	Classes map[string]Line // access classes: the line between a host and the router of its AS

	// Hosts are the replication points and the hosts that the file names;
	// Populate adds the Ethereum nodes.
	Hosts []Host

	// Peerings are the pairs of Ethereum nodes that are peers, by host name.
	// Populate makes them.
	Peerings [][2]string

	Nodes Population // what the file asks for

	// RPLine is the line between a replication point and the router of its AS; nil:
	// that of a host of the first class.
	RPLine *Line
}

// AS is an autonomous system: one border router and one LAN.
type AS struct {
	Name   string
	Number int // 1 to 9999
	Region string
	Share  float64       // of the Ethereum nodes, 0 to 1
	RP     bool          // has a replication point
	Access time.Duration // one-way delay between router and hosts, added to that of a host's class

	// Classes are the shares of the access classes among the hosts. The class
	// with the largest share (of equals, the first by name) comes first: it is
	// that of the replication point and of the first Ethereum node.
	Classes map[string]float64
}

// Prefix is what the AS announces, a /48.
func (a AS) Prefix() netip.Prefix { return a.subnet(0, 48) }

// LAN is the network of the hosts, a /64.
func (a AS) LAN() netip.Prefix { return a.subnet(1, 64) }

// Gateway is the address of the router on the LAN.
func (a AS) Gateway() netip.Addr { return a.LAN().Addr().Next() }

func (a AS) subnet(n, bits int) netip.Prefix {
	return netip.PrefixFrom(address("2001:db8:%d:%d::", a.Number, n), bits)
}

// classes are the names of the access classes, the largest share first.
func (a AS) classes() []string {
	names := make([]string, 0, len(a.Classes))
	for name := range a.Classes {
		names = append(names, name)
	}
	slices.SortFunc(names, func(x, y string) int {
		return cmp.Or(cmp.Compare(a.Classes[y], a.Classes[x]), cmp.Compare(x, y))
	})
	return names
}

// address parses a formatted address. It is not valid if a number has more
// digits than fit.
func address(format string, args ...any) netip.Addr {
	addr, err := netip.ParseAddr(fmt.Sprintf(format, args...))
	if err != nil {
		return netip.Addr{}
	}
	return addr
}

// Line is what a wire does to frames, in each of its two directions.
type Line struct {
	Delay  time.Duration // one way
	Jitter time.Duration // largest deviation from Delay
	Rate   uint64        // bit/s, 0: unlimited
	Loss   float64       // share of the frames, 0 to 1
	Queue  time.Duration // longest wait for the rate, 0: 50 ms
}

// Relation is what the first AS of a link is to the second one.
type Relation string

const (
	Transit Relation = "transit" // A is the provider of B
	Peer    Relation = "peer"    // each carries what is for its own customers
)

// Link joins the routers of two ASes. A has the first address of Net and B the
// second one.
type Link struct {
	A, B     string // AS names
	Relation Relation
	Net      netip.Prefix // /126
	Line     Line
}

// Name is how the link is called in commands and results.
func (l Link) Name() string { return l.A + "-" + l.B }

// AddrA and AddrB are the addresses of the ends.
func (l Link) AddrA() netip.Addr { return l.Net.Addr().Next() }
func (l Link) AddrB() netip.Addr { return l.AddrA().Next() }

// linkNet is the network of link number n, counted from 1.
func linkNet(n int) netip.Prefix { return netip.PrefixFrom(address("2001:db8:f000:%d::", n), 126) }

// IXP is an Internet exchange point: a switch to which ASes have ports, and a
// route server by which all of them become peers.
type IXP struct {
	Name    string
	Number  int          // of the route server, an AS number from 1 to 999
	Net     netip.Prefix // /64
	Members []Member
}

// RouteServer is the address of the route server.
func (x IXP) RouteServer() netip.Addr { return x.Net.Addr().Next() }

// PortName is how the line between an AS and the switch is called in commands
// and results.
func (x IXP) PortName(as string) string { return x.Name + ":" + as }

// ixpNet is the network of an IXP and ixpAddr the address of an AS in it.
func ixpNet(number int) netip.Prefix {
	return netip.PrefixFrom(address("2001:db8:e%03d::", number), 64)
}

func ixpAddr(number, as int) netip.Addr { return address("2001:db8:e%03d::1:%d", number, as) }

// Member is an AS at an IXP.
type Member struct {
	AS       string
	Addr     netip.Addr
	Line     Line  // its port
	ExportTo []int // numbers of the ASes that hear its announcements; nil: all
}

// exportsTo says whether the route server passes the announcements of m on to an
// AS.
func (m Member) exportsTo(as int) bool {
	return m.ExportTo == nil || slices.Contains(m.ExportTo, as)
}

// Role is what runs on a host.
type Role string

const (
	RP    Role = "rp"   // a replication point
	Geth  Role = "geth" // an Ethereum node
	Plain Role = "host" // nothing
)

// Host is a machine on the LAN of an AS.
type Host struct {
	Name  string
	Role  Role
	AS    string
	Addr  netip.Addr
	Class string // "": the AS names no classes, or it is a replication point with RPLine
	Line  Line   // between the host and its router: that of the class and the delay of the AS
}

// host puts a host with an interface identifier, in hexadecimal digits, behind
// the router of an AS; of the first class there if none is named.
func (t *Topology) host(name string, role Role, as AS, class, id string) Host {
	if role == RP && class == "" && t.RPLine != nil {
		return Host{name, role, as.Name, address("2001:db8:%d:1::%s", as.Number, id), "", *t.RPLine}
	}
	if classes := as.classes(); class == "" && len(classes) > 0 {
		class = classes[0]
	}
	line := t.Classes[class]
	line.Delay += as.Access
	return Host{name, role, as.Name, address("2001:db8:%d:1::%s", as.Number, id), class, line}
}

// rpName is how the replication point of an AS is called.
func rpName(as string) string { return as + "-rp" }

// Population says which Ethereum nodes there are.
type Population struct {
	Count  int    // nodes
	Degree int    // peers of each node, 0: all others
	Seed   uint64 // of the choice of peers
}

// HostsOf are the hosts with a role, in the order of the description.
func (t *Topology) HostsOf(role Role) []Host {
	var hosts []Host
	for _, h := range t.Hosts {
		if h.Role == role {
			hosts = append(hosts, h)
		}
	}
	return hosts
}

// Host finds a host by name.
func (t *Topology) Host(name string) (Host, bool) {
	return find(t.Hosts, func(h Host) bool { return h.Name == name })
}

// AS finds an AS by name.
func (t *Topology) AS(name string) (AS, bool) {
	return find(t.ASes, func(a AS) bool { return a.Name == name })
}

func find[T any](list []T, match func(T) bool) (T, bool) {
	if i := slices.IndexFunc(list, match); i >= 0 {
		return list[i], true
	}
	var none T
	return none, false
}

// Peers are the names of the Ethereum peers of a host.
func (t *Topology) Peers(host string) []string {
	var peers []string
	for _, p := range t.Peerings {
		switch host {
		case p[0]:
			peers = append(peers, p[1])
		case p[1]:
			peers = append(peers, p[0])
		}
	}
	return peers
}

// Nearest are the other hosts with a role, by the delay of the BGP path from h;
// those at the same distance keep the order of the description.
func (t *Topology) Nearest(h Host, role Role) []Host {
	paths := t.BGP()
	delays := make(map[string]time.Duration)
	var hosts []Host
	for _, other := range t.HostsOf(role) {
		if d, ok := paths.Delay(h, other); ok && other.Name != h.Name {
			delays[other.Name] = d
			hosts = append(hosts, other)
		}
	}
	slices.SortStableFunc(hosts, func(a, b Host) int { return cmp.Compare(delays[a.Name], delays[b.Name]) })
	return hosts
}
