// SPDX-License-Identifier: LGPL-3.0-or-later

package discoverytest

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// Serve answers questions about the zone by DNS over UDP until the test ends. It returns
// the server's address.
func (z *Zone) Serve(t testing.TB, addr netip.AddrPort) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if response := z.answer(b[:n]); response != nil {
				conn.WriteToUDPAddrPort(response, from)
			}
		}
	})
	t.Cleanup(func() {
		conn.Close()
		wg.Wait()
	})
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// answer returns the response to a question, nil when there is none.
func (z *Zone) answer(query []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	m.Header = dnsmessage.Header{ID: m.ID, Response: true, Authoritative: true, RCode: dnsmessage.RCodeNameError}
	m.Additionals = nil
	if texts, err := z.LookupTXT(context.Background(), strings.TrimSuffix(q.Name.String(), ".")); err == nil && q.Type == dnsmessage.TypeTXT {
		m.RCode = dnsmessage.RCodeSuccess
		var body dnsmessage.TXTResource
		for part := range slices.Chunk([]byte(texts[0]), 255) {
			body.TXT = append(body.TXT, string(part))
		}
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1},
			Body:   &body,
		}}
	}
	response, err := m.Pack()
	if err != nil {
		return nil
	}
	return response
}
