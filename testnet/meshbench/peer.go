// SPDX-License-Identifier: LGPL-3.0-or-later

package meshbench

import (
	"net/netip"
	"time"

	"github.com/ethmcast/mdcs/testnet/beacon"
	"github.com/ethmcast/mdcs/testnet/lightpeer"
	"github.com/ethmcast/mdcs/testnet/topology"
)

// peerPort is the UDP port of the peer of RP 0; the others follow.
const peerPort = 30600

// newPeer starts the peer of an RP, on the host for peers of its AS.
func (m *mesh) newPeer(i int) (*lightpeer.Swarm, error) {
	name := topology.PeerHost(m.hosts[i].AS)
	host, _ := m.net.Topology().Host(name)
	ns, err := m.net.Namespace(name)
	if err != nil {
		return nil, err
	}
	return lightpeer.Start(lightpeer.Config{
		RP:         m.rps[i].URL(),
		NetworkID:  beacon.ChainID,
		Genesis:    m.net.Genesis().Hash(),
		Endpoints:  []netip.AddrPort{netip.AddrPortFrom(host.Addr, peerPort+uint16(i))},
		Connecting: 1,
		ReadOnly:   !m.isSource(i),
		In:         ns.Do,
		Arrived:    func(_ int, payload []byte, at time.Time) { m.book.receive(i, payload, at) },
	})
}
