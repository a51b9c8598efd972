// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import (
	"encoding/binary"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/ethmcast/mdcs/ethmcast/wire"
)

var testPorts = Ports{Eth: 30303, RPControl: 30500, RPData: 30501, PeerData: 30400, Libp2p: 9000}

// testFrame is an Ethernet frame of IPv6 with a payload after the ports and the
// rest of the transport header.
func testFrame(nextHeader byte, source, destination uint16, payload []byte) []byte {
	b := make([]byte, offTransport)
	binary.BigEndian.PutUint16(b[offEtherType:], unix.ETH_P_IPV6)
	b[ethernetHeader] = 6 << 4
	b[offNextHeader] = nextHeader
	b = binary.BigEndian.AppendUint16(b, source)
	b = binary.BigEndian.AppendUint16(b, destination)
	rest := udpHeader - 4
	if nextHeader == unix.IPPROTO_TCP {
		rest = tcpHeader - 4
	}
	b = append(b, make([]byte, rest)...)
	return append(b, payload...)
}

func testDatagram(typ wire.Type, flags uint8) []byte {
	h := wire.Header{Type: typ, Flags: flags}
	return h.Append(nil)
}

func TestClassify(t *testing.T) {
	const (
		tcp, udp, icmp, fragment, hopByHop = unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMPV6, unix.IPPROTO_FRAGMENT, unix.IPPROTO_HOPOPTS
		ephemeral                          = 50000
	)
	data := testDatagram(wire.Data, 0)
	ipv4 := testFrame(udp, 30501, 30400, data)
	binary.BigEndian.PutUint16(ipv4[offEtherType:], unix.ETH_P_IP)
	for _, test := range []struct {
		name  string
		frame []byte
		want  Class
	}{
		{"DATA to the RP", testFrame(udp, 30400, 30501, data), Data},
		{"DATA to a peer", testFrame(udp, 30501, 30400, data), Data},
		{"DATA between RPs", testFrame(udp, 30501, 30501, data), Data},
		{"DATA to a channel", testFrame(udp, ephemeral, 30400, data), Data},
		{"DATA republished", testFrame(udp, 30400, 30501, testDatagram(wire.Data, wire.FlagRepublished)), Repair},
		{"DATA that asks for a receipt", testFrame(udp, 30400, 30501, testDatagram(wire.Data, wire.FlagReceipt)), Data},
		{"reserved type", testFrame(udp, 30400, 30501, testDatagram(wire.LinkHello+1, 0)), Repair},
		{"ECHO", testFrame(udp, 30501, 30400, testDatagram(wire.Echo, 0)), Control},
		{"HEARTBEAT", testFrame(udp, 30501, 30400, testDatagram(wire.Heartbeat, 0)), Control},
		{"LINK_HELLO", testFrame(udp, 30501, 30501, testDatagram(wire.LinkHello, 0)), Control},
		{"PROBE", testFrame(udp, 30501, 30400, testDatagram(wire.Probe, 0)), Control},
		{"truncated datagram", testFrame(udp, 30501, 30400, data[:wire.HeaderSize-1]), Other},
		{"version 2", testFrame(udp, 30501, 30400, append([]byte{0x21}, data[1:]...)), Other},
		{"RLPx with the RP", testFrame(tcp, ephemeral, 30500, nil), Control},
		{"RLPx from the RP", testFrame(tcp, 30500, ephemeral, nil), Control},
		{"RLPx", testFrame(tcp, ephemeral, 30303, []byte("x")), Eth},
		{"discovery", testFrame(udp, 30303, 30303, []byte("x")), Discovery},
		{"discovery of the RP", testFrame(udp, 30500, 30303, []byte("x")), Discovery},
		{"libp2p over TCP", testFrame(tcp, ephemeral, 9000, nil), Libp2p},
		{"libp2p over QUIC", testFrame(udp, 9000, ephemeral, nil), Libp2p},
		{"BGP", testFrame(tcp, 179, ephemeral, nil), BGP},
		{"BFD", testFrame(udp, 49152, 3784, nil), BGP},
		{"BFD over several hops", testFrame(udp, 49152, 4784, nil), BGP},
		{"other UDP", testFrame(udp, 1, 2, data), Other},
		{"other TCP", testFrame(tcp, 1, 2, nil), Other},
		{"TCP at a port of datagrams", testFrame(tcp, ephemeral, 30400, data), Other},
		{"neighbour discovery", testFrame(icmp, 30303, 30303, nil), Other},
		{"fragment", testFrame(fragment, 30501, 30400, data), Other},
		{"MLD", testFrame(hopByHop, 30501, 30400, data), Other},
		{"IPv4", ipv4, Other},
		{"short TCP", testFrame(tcp, ephemeral, 30303, nil)[:offTransport+tcpHeader-1], Other},
		{"short UDP", testFrame(udp, 30303, 30303, nil)[:offTransport+udpHeader-1], Other},
		{"no transport", testFrame(udp, 30303, 30303, nil)[:offTransport], Other},
		{"short IPv6", testFrame(udp, 30303, 30303, nil)[:offTransport-1], Other},
		{"empty", nil, Other},
	} {
		require.Equal(t, test.want, testPorts.classify(test.frame), test.name)
	}
	var none Ports
	require.Equal(t, Other, none.classify(testFrame(udp, 0, 0, data)), "no port is no port 0")
}

func TestClassNames(t *testing.T) {
	for c := range NumClasses {
		var again Class
		text, err := c.MarshalText()
		require.NoError(t, err)
		require.NoError(t, again.UnmarshalText(text))
		require.Equal(t, c, again)
	}
	require.Equal(t, "class-8", NumClasses.String())
	require.Error(t, new(Class).UnmarshalText([]byte("class-8")))
}

func TestDirectionJSON(t *testing.T) {
	var d Direction
	d.Classes[Data] = Count{2, 200}
	d.Classes[Other] = Count{3, 300}
	d.LostRandom = Count{1, 100}
	d.LostRing = 4
	text, err := json.Marshal(d)
	require.NoError(t, err)
	require.Contains(t, string(text), `"data":{"frames":2,"bytes":200}`)
	var again Direction
	require.NoError(t, json.Unmarshal(text, &again))
	require.Equal(t, d, again)
	require.Error(t, json.Unmarshal([]byte(`{"classes":{"x":{}}}`), &again))

	require.Equal(t, Count{5, 500}, d.Forwarded())
	require.Equal(t, Count{5, 100}, d.Lost())
	require.EqualValues(t, 4, d.failed(), "a random loss is no failure")
}
