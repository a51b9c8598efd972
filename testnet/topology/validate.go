// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

const (
	// maxName leaves room for the prefix "p" in an interface name, which has at most
	// 15 bytes.
	maxName = 14

	// maxASName leaves room for "-rp99".
	maxASName = 9

	maxAS  = 9999 // its decimal digits are one group of an address
	maxIXP = 999  // likewise, behind an "e"

	maxLinks = 9999 // numbers of links stand in addresses as well

	// maxShareError is how far a sum of shares may be from 1: published ones are
	// rounded.
	maxShareError = 0.01
)

var (
	// A hyphen separates an AS from what belongs to it, and the ends of a link.
	nodeName = regexp.MustCompile(`^[a-z][a-z0-9]*$`)
	hostName = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)
)

// inUse are namespaces of a running network besides its nodes.
var inUse = []string{"wire"}

// problem is a mistake in a description.
type problem struct {
	element element
	text    string
}

func (p problem) Error() string { return p.text }

// Validate says all that is wrong with a description, one line for each mistake.
func (t *Topology) Validate() error {
	var errs []error
	for _, p := range t.problems() {
		errs = append(errs, p)
	}
	if errs == nil {
		return nil
	}
	return fmt.Errorf("topology %s: %w", t.Name, errors.Join(errs...))
}

// checker collects problems.
type checker struct {
	t        *Topology
	problems []problem
	names    map[string]bool // of nodes
	numbers  map[int]string
	links    map[string]bool
	addrs    map[netip.Addr]string
}

func (c *checker) bad(e element, format string, args ...any) {
	c.problems = append(c.problems, problem{e, fmt.Sprintf(format, args...)})
}

func (t *Topology) problems() []problem {
	c := &checker{
		t: t, names: make(map[string]bool), numbers: make(map[int]string),
		links: make(map[string]bool), addrs: make(map[netip.Addr]string),
	}
	if t.Nodes.Count < 0 || t.Nodes.Degree < 0 {
		c.bad(element{"nodes", 0}, "nodes: negative count or degree")
	}
	if t.Nodes.Seed > math.MaxInt64 {
		c.bad(element{"nodes", 0}, "nodes: seed %d does not fit into 63 bits", t.Nodes.Seed)
	}
	for _, name := range slices.Sorted(maps.Keys(t.Classes)) {
		if !hostName.MatchString(name) {
			c.bad(element{"class." + name, 0}, "class %q: want a name of the form %s", name, hostName)
		}
		c.line(element{"class." + name, 0}, "class "+name, t.Classes[name])
	}
	if t.RPLine != nil {
		c.line(element{"rp", 0}, "rp", *t.RPLine)
	}
	c.ases()
	for i, x := range t.IXPs {
		c.ixp(element{"ixp", i}, x)
	}
	if len(t.Links) > maxLinks {
		c.bad(element{}, "%d links, at most %d fit", len(t.Links), maxLinks)
	}
	for i, l := range t.Links {
		c.link(element{"link", i}, l)
	}
	c.hosts()
	c.peerings()
	if c.problems == nil {
		c.paths()
	}
	return c.problems
}

// name checks the name of a node, which is unique among ASes, IXPs and hosts.
func (c *checker) name(e element, what, name string, form *regexp.Regexp, longest int) {
	switch {
	case !form.MatchString(name) || len(name) > longest:
		c.bad(e, "%s %q: want a name of 1 to %d bytes of the form %s", what, name, longest, form)
	case slices.Contains(inUse, name):
		c.bad(e, "%s %q: the name is in use", what, name)
	case c.names[name]:
		c.bad(e, "%s %q: two nodes have that name", what, name)
	}
	c.names[name] = true
}

// number checks the number of an AS or of a route server, which is one too.
func (c *checker) number(e element, name string, number, largest int) {
	if number < 1 || number > largest {
		c.bad(e, "%s: number %d is not one from 1 to %d", name, number, largest)
	} else if other, ok := c.numbers[number]; ok {
		c.bad(e, "%s: number %d is that of %s", name, number, other)
	}
	c.numbers[number] = name
}

func (c *checker) line(e element, name string, l Line) {
	if l.Delay < 0 || l.Jitter < 0 || l.Queue < 0 {
		c.bad(e, "%s: negative delay, jitter or queue", name)
	}
	if l.Jitter > l.Delay {
		c.bad(e, "%s: jitter %v is longer than delay %v", name, l.Jitter, l.Delay)
	}
	if !(l.Loss >= 0 && l.Loss <= 1) {
		c.bad(e, "%s: loss %v is not a share from 0 to 1", name, l.Loss)
	}
}

// shares checks shares, which sum up to 1.
func (c *checker) shares(e element, name string, shares []float64) {
	var sum float64
	for _, s := range shares {
		if !(s >= 0 && s <= 1) {
			c.bad(e, "%s: share %v is not from 0 to 1", name, s)
			return
		}
		sum += s
	}
	if math.Abs(sum-1) > maxShareError {
		c.bad(e, "%s: the shares sum up to %.4g, not to 1", name, sum)
	}
}

func (c *checker) ases() {
	if len(c.t.ASes) == 0 {
		c.bad(element{}, "no AS")
	}
	var shares []float64
	for i, a := range c.t.ASes {
		e := element{"as", i}
		c.name(e, "AS", a.Name, nodeName, maxASName)
		c.number(e, "AS "+a.Name, a.Number, maxAS)
		if a.Access < 0 {
			c.bad(e, "AS %s: negative access delay", a.Name)
		}
		if a.Share != 0 {
			shares = append(shares, a.Share)
		}
		var classes []float64
		for _, class := range a.classes() {
			classes = append(classes, a.Classes[class])
			if _, ok := c.t.Classes[class]; !ok {
				c.bad(e, "AS %s: unknown class %q", a.Name, class)
			}
		}
		if classes != nil {
			c.shares(e, "classes of AS "+a.Name, classes)
		}
	}
	switch {
	case shares != nil:
		c.shares(element{}, "ASes", shares)
	case c.t.Nodes.Count > 0:
		c.bad(element{"nodes", 0}, "nodes: no AS has a share of them")
	}
}

// as checks that an AS exists.
func (c *checker) as(e element, what, name string) {
	if _, ok := c.t.AS(name); !ok {
		c.bad(e, "%s: unknown AS %q", what, name)
	}
}

func (c *checker) ixp(e element, x IXP) {
	what := "IXP " + x.Name
	c.name(e, "IXP", x.Name, nodeName, maxASName)
	c.number(e, what, x.Number, maxIXP)
	if want := ixpNet(x.Number); x.Net != want {
		c.bad(e, "%s: network %v, not %v", what, x.Net, want)
	}
	ports := make(map[string]bool)
	for _, m := range x.Members {
		c.as(e, what, m.AS)
		if ports[m.AS] {
			c.bad(e, "%s: %s is a member twice", what, m.AS)
		}
		ports[m.AS] = true
		if as, ok := c.t.AS(m.AS); ok && m.Addr != ixpAddr(x.Number, as.Number) {
			c.bad(e, "%s: %s has address %v, not %v", what, m.AS, m.Addr, ixpAddr(x.Number, as.Number))
		}
		c.line(e, "port "+x.PortName(m.AS), m.Line)
	}
}

func (c *checker) link(e element, l Link) {
	what := "link " + l.Name()
	c.as(e, what, l.A)
	c.as(e, what, l.B)
	if l.A == l.B {
		c.bad(e, "%s: both ends are the same", what)
	} else if c.links[l.Name()] || c.links[l.B+"-"+l.A] {
		c.bad(e, "%s: the two have a link already", what)
	}
	c.links[l.Name()] = true
	if l.Relation != Transit && l.Relation != Peer {
		c.bad(e, "%s: relation %q is neither %s nor %s", what, l.Relation, Transit, Peer)
	}
	if want := linkNet(e.index + 1); l.Net != want {
		c.bad(e, "%s: network %v, not %v", what, l.Net, want)
	}
	c.line(e, what, l.Line)
}

var madeName = regexp.MustCompile(`^(rp[0-9]*|g[0-9]+|peer)$`)

// reserved says whether a host of an AS has a name that is made, not given.
func reserved(as, name string) bool {
	rest, ok := strings.CutPrefix(name, as+"-")
	return ok && madeName.MatchString(rest)
}

func (c *checker) hosts() {
	rps := 0
	for _, a := range c.t.ASes {
		if a.RP {
			rps++
		}
	}
	for i, h := range c.t.Hosts {
		e, what := element{"host", i - rps}, "host "+h.Name // those of the file stand behind the replication points
		c.name(e, "host", h.Name, hostName, maxName)
		if h.Role != RP && h.Role != Geth && h.Role != Plain {
			c.bad(e, "%s: role %q is none of %s, %s, %s", what, h.Role, RP, Geth, Plain)
		}
		if _, ok := c.t.Classes[h.Class]; !ok && h.Class != "" {
			c.bad(e, "%s: unknown class %q", what, h.Class)
		}
		as, ok := c.t.AS(h.AS)
		switch {
		case !ok:
			c.bad(e, "%s: unknown AS %q", what, h.AS)
			continue
		case as.Number < 1 || as.Number > maxAS:
			continue // has no network
		case !as.LAN().Contains(h.Addr):
			c.bad(e, "%s: address %v is outside of the LAN %v", what, h.Addr, as.LAN())
		}
		other, taken := c.addrs[h.Addr]
		if h.Addr == as.Gateway() {
			other, taken = h.AS, true
		}
		if taken {
			c.bad(e, "%s: address %v is that of %s", what, h.Addr, other)
		}
		c.addrs[h.Addr] = h.Name
	}
}

func (c *checker) peerings() {
	for _, p := range c.t.Peerings {
		for _, name := range p {
			if h, ok := c.t.Host(name); !ok || h.Role != Geth || p[0] == p[1] {
				c.bad(element{}, "peering %s-%s is not one of two Ethereum nodes", p[0], p[1])
				break
			}
		}
	}
}

// paths checks that nobody is a customer of his own customers, and that all ASes
// reach each other.
func (c *checker) paths() {
	if cycle := c.t.customerCycle(); cycle != nil {
		c.bad(element{}, "ASes are providers in a circle: %s", strings.Join(cycle, " of "))
		return
	}
	paths := c.t.BGP()
	var cut []string
	for _, a := range c.t.ASes {
		for _, b := range c.t.ASes {
			if paths.AS(a.Name, b.Name) == nil {
				cut = append(cut, a.Name+" to "+b.Name)
			}
		}
	}
	switch n := len(cut); {
	case n > 1:
		c.bad(element{}, "the policy allows no path from %s, and %d more", cut[0], n-1)
	case n == 1:
		c.bad(element{}, "the policy allows no path from %s", cut[0])
	}
}

// customerCycle finds ASes each of which is the provider of the next one; the
// first one comes again at the end.
func (t *Topology) customerCycle() []string {
	customers := make(map[string][]string)
	for _, l := range t.Links {
		if l.Relation == Transit {
			customers[l.A] = append(customers[l.A], l.B)
		}
	}
	clean := make(map[string]bool) // in no cycle
	var visit func(path []string) []string
	visit = func(path []string) []string {
		here := path[len(path)-1]
		if i := slices.Index(path, here); i < len(path)-1 {
			return path[i:]
		}
		if clean[here] {
			return nil
		}
		for _, next := range customers[here] {
			if cycle := visit(append(path, next)); cycle != nil {
				return cycle
			}
		}
		clean[here] = true
		return nil
	}
	for _, a := range t.ASes {
		if cycle := visit([]string{a.Name}); cycle != nil {
			return cycle
		}
	}
	return nil
}
