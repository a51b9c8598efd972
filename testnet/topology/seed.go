// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"fmt"
	"strings"
)

// seedIntro explains the program to those who have only it.
const seedIntro = `#!/usr/bin/env python3
"""%s for the SEED Internet Emulator (github.com/seed-labs/seed-emulator).

SEED speaks IPv4: addresses are
  10.(64 + n / 256).(n %% 256).0/24    the LAN of AS n, with the router at .254
  10.(128 + x / 256).(x %% 256).0/24   IXP x, with the route server at .254
  10.192.0.0/13                        links, a /29 each

Its lines have delay (ms), rate (bit/s) and loss (%%), but no jitter; they shape
what leaves an interface. Where the switch at the other end has none, that of a
host or of a port at an IXP has the delay of both directions, so that round-trip
times are right. Route servers pass on everything.
"""

from seedemu.compiler import Docker
from seedemu.core import Emulator, Hook
from seedemu.layers import Base, Ebgp, PeerRelationship, Routing

emu = Emulator()
base, ebgp = Base(), Ebgp()
lines = []  # (node, network, delay, rate, loss)


class Lines(Hook):
    """Sets the lines of single interfaces, which exist once the base layer is configured."""

    def getName(self):
        return "Lines"

    def getTargetLayer(self):
        return "Base"

    def postconfigure(self, emulator):
        for node, network, delay, rate, loss in lines:
            for interface in node.getInterfaces():
                if interface.getNet().getName() == network:
                    interface.setLinkProperties(delay, rate, loss)


def make_as(asn, lan, delay):
    system = base.createAutonomousSystem(asn)
    system.createNetwork("net0", lan + ".0/24").setDefaultLinkProperties(latency=delay)
    system.createRouter("router").joinNetwork("net0", lan + ".254")


def make_host(asn, name, address, delay, rate, loss):
    host = base.getAutonomousSystem(asn).createHost(name)
    host.joinNetwork("net0", address)
    lines.append((host, "net0", delay, rate, loss))


def make_link(a, b, relation, net, first, delay, rate, loss):
    for asn, other, last in ((a, b, first), (b, a, first + 1)):
        router = base.getAutonomousSystem(asn).getRouter("router")
        router.crossConnect(other, "router", "%%s.%%d/29" %% (net, last),
                            latency=delay, bandwidth=rate, packetDrop=loss)
    ebgp.addCrossConnectPeering(a, b, relation)


def make_ixp(number, lan):
    base.createInternetExchange(number, lan + ".0/24", rsAddress=lan + ".254")


def make_member(number, asn, address, delay, rate, loss):
    router = base.getAutonomousSystem(asn).getRouter("router")
    router.joinNetwork("ix%%d" %% number, address)
    lines.append((router, "ix%%d" %% number, delay, rate, loss))
    ebgp.addRsPeer(number, asn)


`

const seedOutro = `
for layer in (base, Routing(), ebgp):
    emu.addLayer(layer)
emu.addHook(Lines())
emu.render()
emu.compile(Docker(), "./output", override=True)
`

// SEED is the network as a Python program for the SEED Internet Emulator, with at
// most 252 hosts in an AS. See its comment for what that emulator does not have.
func (t *Topology) SEED() []byte {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	fmt.Fprintf(&b, seedIntro, strings.Map(printable, t.Name))
	ms := func(l Line) float64 { return l.Delay.Seconds() * 1000 }
	number := make(map[string]int)
	next := make(map[string]int)
	for _, a := range t.ASes {
		number[a.Name] = a.Number
		p("make_as(%d, %q, %g)", a.Number, seedNet(64, a.Number), a.Access.Seconds()*1000)
	}
	for _, x := range t.IXPs {
		p("make_ixp(%d, %q)", x.Number, seedNet(128, x.Number))
		for i, m := range x.Members {
			p("make_member(%d, %d, \"%s.%d\", %g, %d, %g)",
				x.Number, number[m.AS], seedNet(128, x.Number), i+2, 2*ms(m.Line), m.Line.Rate, 100*m.Line.Loss)
		}
	}
	for i, l := range t.Links {
		relation := "Peer"
		if l.Relation == Transit {
			relation = "Provider"
		}
		// The first address is Docker's.
		p("make_link(%d, %d, PeerRelationship.%s, %q, %d, %g, %d, %g)", number[l.A], number[l.B], relation,
			fmt.Sprintf("10.%d.%d", 192+i>>13, i>>5&255), i&31*8+2, ms(l.Line), l.Line.Rate, 100*l.Line.Loss)
	}
	for _, h := range t.Hosts {
		as, _ := t.AS(h.AS)
		next[h.AS]++
		access := as.Access.Seconds() * 1000
		p("make_host(%d, %q, \"%s.%d\", %g, %d, %g)", as.Number, h.Name, seedNet(64, as.Number), next[h.AS]+1,
			2*ms(h.Line)-access, h.Line.Rate, 100*h.Line.Loss)
	}
	b.WriteString(seedOutro)
	return []byte(b.String())
}

// seedNet are the first three numbers of a network.
func seedNet(second, n int) string { return fmt.Sprintf("10.%d.%d", second+n>>8, n&255) }

// printable keeps a name from ending the text that it stands in.
func printable(r rune) rune {
	if r < ' ' || r > '~' || r == '"' || r == '\\' {
		return '-'
	}
	return r
}
