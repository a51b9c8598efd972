// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// labImage is what the nodes of an exported laboratory run.
const labImage = "mdcs/node:latest"

// lab is a laboratory of containerlab.
type lab struct {
	name  string
	nodes []*labNode
	links [][2]string // endpoints "node:interface"
	lines []string    // commands that impair the ends of lines
}

type labNode struct {
	name, group string
	binds, exec []string
	interfaces  int
}

// Containerlab is the network as files of containerlab, by name: the topology
// "<name>.clab.yml", what BIRD reads in each AS and IXP, "<node>/bird.conf",
// which config makes, and the script "netem.sh" which, after deployment, gives
// lines what their description says. Routers have a bridge for their LAN, and an
// IXP is a bridge with the route server's address.
func (t *Topology) Containerlab(config func(router string) []byte) map[string][]byte {
	l := lab{name: regexp.MustCompile(`[^a-zA-Z0-9]+`).ReplaceAllString("mdcs-"+t.Name, "-")}
	files := make(map[string][]byte)
	routers := make(map[string]*labNode)
	router := func(name, group string, lan netip.Prefix) {
		n := l.node(name, group)
		routers[name] = n
		file := path.Join(name, "bird.conf")
		files[file] = config(name)
		n.binds = []string{file + ":/etc/bird/bird.conf"}
		n.exec = []string{
			"sysctl -w net.ipv6.conf.all.forwarding=1",
			"ip link add lan type bridge mcast_snooping 0", "ip link set lan up", addressCommand(lan, "lan"),
		}
	}
	for _, a := range t.ASes {
		router(a.Name, "router", netip.PrefixFrom(a.Gateway(), a.LAN().Bits()))
	}
	for _, x := range t.IXPs {
		router(x.Name, "ixp", netip.PrefixFrom(x.RouteServer(), x.Net.Bits()))
	}
	for _, link := range t.Links {
		a, b := l.join(routers[link.A], routers[link.B], link.Line)
		routers[link.A].exec = append(routers[link.A].exec, addressCommand(netip.PrefixFrom(link.AddrA(), link.Net.Bits()), a))
		routers[link.B].exec = append(routers[link.B].exec, addressCommand(netip.PrefixFrom(link.AddrB(), link.Net.Bits()), b))
	}
	for _, x := range t.IXPs {
		for _, m := range x.Members {
			port, end := l.join(routers[x.Name], routers[m.AS], m.Line)
			routers[x.Name].exec = append(routers[x.Name].exec, "ip link set "+port+" master lan")
			routers[m.AS].exec = append(routers[m.AS].exec, addressCommand(netip.PrefixFrom(m.Addr, x.Net.Bits()), end))
		}
	}
	for _, h := range t.Hosts {
		n := l.node(h.Name, string(h.Role))
		as, _ := t.AS(h.AS)
		port, end := l.join(routers[h.AS], n, h.Line)
		routers[h.AS].exec = append(routers[h.AS].exec, "ip link set "+port+" master lan")
		n.exec = append(n.exec,
			addressCommand(netip.PrefixFrom(h.Addr, as.LAN().Bits()), end),
			// The default route is that of containerlab's management network.
			fmt.Sprintf("ip -6 route add 2001:db8::/32 via %v dev %s", as.Gateway(), end))
	}
	for _, n := range routers {
		n.exec = append(n.exec, "bird -c /etc/bird/bird.conf")
	}
	files[t.Name+".clab.yml"] = l.yaml()
	files["netem.sh"] = []byte("#!/bin/sh\n# Gives the lines of the deployed laboratory their delay, rate and loss, in each\n# direction.\nset -e\n" +
		strings.Join(l.lines, "\n") + "\n")
	return files
}

func addressCommand(p netip.Prefix, device string) string {
	return fmt.Sprintf("ip -6 addr add %v dev %s nodad", p, device)
}

func (l *lab) node(name, group string) *labNode {
	n := &labNode{name: name, group: group}
	l.nodes = append(l.nodes, n)
	return n
}

// join makes a line and returns the names of its ends.
func (l *lab) join(a, b *labNode, line Line) (endA, endB string) {
	var ends [2]string
	for i, n := range []*labNode{a, b} {
		n.interfaces++ // eth0 is containerlab's own
		ends[i] = fmt.Sprintf("eth%d", n.interfaces)
		if args := netemArguments(line); args != "" {
			l.lines = append(l.lines, fmt.Sprintf("containerlab tools netem set -n clab-%s-%s -i %s%s", l.name, n.name, ends[i], args))
		}
	}
	l.links = append(l.links, [2]string{a.name + ":" + ends[0], b.name + ":" + ends[1]})
	return ends[0], ends[1]
}

// netemArguments has the rate in kbit/s and the loss in per cent.
func netemArguments(line Line) string {
	args := ""
	if line.Delay > 0 {
		args += fmt.Sprintf(" --delay %v", line.Delay)
	}
	if line.Jitter > 0 {
		args += fmt.Sprintf(" --jitter %v", line.Jitter)
	}
	if line.Loss > 0 {
		args += " --loss " + strconv.FormatFloat(100*line.Loss, 'g', 6, 64)
	}
	if line.Rate > 0 {
		args += fmt.Sprintf(" --rate %d", max(1, line.Rate/1000))
	}
	return args
}

func (l *lab) yaml() []byte {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	list := func(key string, values []string) {
		if len(values) > 0 {
			p("      %s:", key)
		}
		for _, v := range values {
			p("        - %q", v)
		}
	}
	p("# The image has iproute2 and, for routers, BIRD 2. Run netem.sh after deployment.")
	p("name: %s", l.name)
	p("topology:")
	p("  defaults:")
	p("    kind: linux")
	p("    image: %s", labImage)
	p("  nodes:")
	for _, n := range l.nodes {
		p("    %s:", n.name)
		p("      group: %s", n.group)
		list("binds", n.binds)
		list("exec", n.exec)
	}
	if len(l.links) > 0 {
		p("  links:")
	}
	for _, ends := range l.links {
		p("    - endpoints: [%q, %q]", ends[0], ends[1])
	}
	return []byte(b.String())
}
