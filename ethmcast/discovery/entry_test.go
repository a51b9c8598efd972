// SPDX-License-Identifier: LGPL-3.0-or-later

package discovery

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/ethereum/go-ethereum/p2p/enr"
	"github.com/ethereum/go-ethereum/rlp"

	"github.com/ethmcast/mdcs/ethmcast/discovery/discoverytest"
)

var example = Entry{NetworkID: 1, Genesis: [4]byte{0xd4, 0xe5, 0x67, 0x40}, DataPort: 30501, Operator: "example"}

func TestEntryGolden(t *testing.T) {
	// SPEC 13.1 has this example.
	const want = "d2" + "01" + "01" + "84d4e56740" + "827725" + "876578616d706c65"
	got, err := rlp.EncodeToBytes(example)
	if err != nil {
		t.Fatal(err)
	}
	if hex.EncodeToString(got) != want {
		t.Errorf("%x, want %s", got, want)
	}
	n := discoverytest.Record(t, discoverytest.Key(t), 1, example)
	var back Entry
	if err := n.Load(&back); err != nil || back != example {
		t.Errorf("%+v, %v", back, err)
	}
}

func TestEntryRefusals(t *testing.T) {
	for name, test := range map[string]struct {
		entry any
		want  string
	}{
		"version":          {[]any{uint(2), uint(1), "abcd", uint(3), "", "more"}, "another version: 2"},
		"no list":          {"abc", "expected List"},
		"empty":            {[]any{}, "unexpected EOF"},
		"too short":        {[]any{uint(1), uint(1), "abcd", uint(3)}, "too few"},
		"too long":         {[]any{uint(1), uint(1), "abcd", uint(3), "", "x"}, "too many"},
		"genesis":          {[]any{uint(1), uint(1), "abc", uint(3), ""}, "input string too short"},
		"port":             {[]any{uint(1), uint(1), "abcd", uint(65536), ""}, "too long"},
		"no port":          {[]any{uint(1), uint(1), "abcd", uint(0), ""}, "data port 0"},
		"long operator":    {[]any{uint(1), uint(1), "abcd", uint(3), strings.Repeat("x", 33)}, "33 bytes"},
		"escapes":          {[]any{uint(1), uint(1), "abcd", uint(3), "\x1b[2J"}, "cannot be printed"},
		"no UTF-8":         {[]any{uint(1), uint(1), "abcd", uint(3), "\xff"}, "not UTF-8"},
		"nested":           {[]any{[]any{}, uint(1), "abcd", uint(3), ""}, "expected"},
		"operator is list": {[]any{uint(1), uint(1), "abcd", uint(3), []any{}}, "expected"},
	} {
		t.Run(name, func(t *testing.T) {
			n := discoverytest.Record(t, discoverytest.Key(t), 1, enr.WithEntry("mdcs", test.entry))
			entry := example
			err := n.Load(&entry)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
			if entry != example {
				t.Errorf("a refused entry left %+v", entry)
			}
			if errors.Is(err, errVersion) != (name == "version") {
				t.Errorf("%v: wrong kind", err)
			}
		})
	}
}

func FuzzEntry(f *testing.F) {
	seed, err := rlp.EncodeToBytes(example)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte{0xc0})
	f.Add([]byte{0xc1, 0x02})
	f.Fuzz(func(t *testing.T, b []byte) {
		var e Entry
		if rlp.DecodeBytes(b, &e) != nil {
			return
		}
		if e.DataPort == 0 || CheckOperator(e.Operator) != nil {
			t.Errorf("accepted %+v", e)
		}
		again, err := rlp.EncodeToBytes(e)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x is also %x (%v)", b, again, err)
		}
	})
}

func TestOver6(t *testing.T) {
	key := discoverytest.Key(t)
	ip := func(s string) enr.Entry { return enr.IP(net.ParseIP(s)) }
	for name, test := range map[string]struct {
		node *enode.Node
		tcp  string // endpoints, "" for none
		udp  string
	}{
		"IPv6":                {discoverytest.Record(t, key, 1, discoverytest.Endpoint("2001:db8::1", 7)...), "[2001:db8::1]:7", "[2001:db8::1]:7"},
		"IPv4":                {discoverytest.Record(t, key, 1, discoverytest.Endpoint("192.0.2.1", 7)...), "", ""},
		"nothing":             {discoverytest.Record(t, key, 1, enr.TCP(7)), "", ""},
		"both":                {discoverytest.Record(t, key, 1, ip("192.0.2.1"), ip("2001:db8::1"), enr.TCP(7), enr.UDP(8)), "[2001:db8::1]:7", "[2001:db8::1]:8"},
		"ports of their own":  {discoverytest.Record(t, key, 1, ip("192.0.2.1"), ip("2001:db8::1"), enr.TCP(7), enr.TCP6(70), enr.UDP(8), enr.UDP6(80)), "[2001:db8::1]:70", "[2001:db8::1]:80"},
		"loopback":            {discoverytest.Record(t, key, 1, ip("127.0.0.1"), ip("::1"), enr.TCP(7), enr.UDP(8)), "[::1]:7", "[::1]:8"},
		"no TCP":              {discoverytest.Record(t, key, 1, ip("2001:db8::1"), enr.UDP(8)), "", ""},
		"unspecified":         {discoverytest.Record(t, key, 1, ip("192.0.2.1"), ip("::"), enr.TCP(7)), "", ""},
		"multicast":           {discoverytest.Record(t, key, 1, ip("ff02::1"), enr.TCP(7)), "", ""},
		"mapped":              {discoverytest.Record(t, key, 1, enr.WithEntry("ip6", net.ParseIP("::ffff:192.0.2.1").To16()), enr.TCP(7)), "", ""},
		"URL":                 {enode.NewV4(&key.PublicKey, net.ParseIP("2001:db8::1"), 7, 8), "[2001:db8::1]:7", "[2001:db8::1]:8"},
		"URL without UDP":     {enode.NewV4(&key.PublicKey, net.ParseIP("2001:db8::1"), 7, 0), "[2001:db8::1]:7", "[2001:db8::1]:7"},
		"URL of IPv4":         {enode.NewV4(&key.PublicKey, net.ParseIP("192.0.2.1"), 7, 8), "", ""},
		"URL without address": {enode.NewV4(&key.PublicKey, nil, 7, 8), "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			n, ok := over6(test.node)
			if ok != (test.tcp != "") {
				t.Fatalf("has an IPv6 endpoint: %v", ok)
			}
			if !ok {
				return
			}
			tcp, _ := n.TCPEndpoint()
			udp, _ := n.UDPEndpoint()
			if tcp.String() != test.tcp || udp.String() != test.udp || n.ID() != test.node.ID() {
				t.Errorf("%v and %v of %v", tcp, udp, n.ID())
			}
		})
	}
}
