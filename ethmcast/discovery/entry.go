// SPDX-License-Identifier: LGPL-3.0-or-later

package discovery

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"unicode"
	"unicode/utf8"

	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/ethereum/go-ethereum/p2p/enr"
	"github.com/ethereum/go-ethereum/rlp"

	"github.com/ethmcast/mdcs/ethmcast/proto"
)

const entryVersion = 1

// Entry is the entry "mdcs" of the node record (ENR) of a replication point (SPEC
// 13.1).
type Entry struct {
	NetworkID uint64
	Genesis   [4]byte // the first of the genesis hash
	DataPort  uint16  // UDP
	Operator  string  // "" for none
}

// ENRKey implements enr.Entry.
func (Entry) ENRKey() string { return "mdcs" }

// encodedEntry is the entry as RLP.
type encodedEntry struct {
	Version   uint64
	NetworkID uint64
	Genesis   [4]byte
	DataPort  uint16
	Operator  string
}

// EncodeRLP implements rlp.Encoder.
func (e Entry) EncodeRLP(w io.Writer) error {
	return rlp.Encode(w, &encodedEntry{entryVersion, e.NetworkID, e.Genesis, e.DataPort, e.Operator})
}

var errVersion = errors.New("entry of another version")

// DecodeRLP implements rlp.Decoder. The entry of another version is an error.
func (e *Entry) DecodeRLP(s *rlp.Stream) error {
	raw, err := s.Raw()
	if err != nil {
		return err
	}
	content, _, err := rlp.SplitList(raw)
	if err != nil {
		return err
	}
	version, _, err := rlp.SplitUint64(content)
	if err != nil {
		return err
	}
	if version != entryVersion {
		return fmt.Errorf("%w: %d", errVersion, version)
	}
	var decoded encodedEntry
	if err := rlp.DecodeBytes(raw, &decoded); err != nil {
		return err
	}
	if decoded.DataPort == 0 {
		return errors.New("data port 0")
	}
	if err := CheckOperator(decoded.Operator); err != nil {
		return err
	}
	*e = Entry{decoded.NetworkID, decoded.Genesis, decoded.DataPort, decoded.Operator}
	return nil
}

// CheckOperator says what is wrong with the name of an operator: it is shown on
// terminals.
func CheckOperator(name string) error {
	if len(name) > proto.MaxOperator {
		return fmt.Errorf("operator of %d bytes, at most %d", len(name), proto.MaxOperator)
	}
	if !utf8.ValidString(name) {
		return errors.New("operator is not UTF-8")
	}
	for _, r := range name {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("operator %q cannot be printed", name)
		}
	}
	return nil
}

// over6 returns a node by its IPv6 endpoint, which a record may have beside an IPv4
// one that go-ethereum prefers, and whether it has one. A node without UDP port, as in
// the URL of its TCP port, gets that of the same number.
func over6(n *enode.Node) (*enode.Node, bool) {
	ip, tcp, udp := n.IPAddr(), n.TCP(), n.UDP()
	same := ip.Is6() && !ip.Is4In6()
	if !same {
		if n.Load((*enr.IPv6Addr)(&ip)) != nil {
			return nil, false
		}
		tcp, udp = port6(n, enr.TCP6(0).ENRKey(), enr.TCP(0).ENRKey()), port6(n, enr.UDP6(0).ENRKey(), enr.UDP(0).ENRKey())
	}
	if !host6(ip) || tcp == 0 || n.Pubkey() == nil {
		return nil, false
	}
	if udp == 0 {
		same, udp = false, tcp
	}
	if same {
		return n, true
	}
	return enode.NewV4(n.Pubkey(), ip.AsSlice(), tcp, udp), true
}

func host6(ip netip.Addr) bool {
	return ip.Is6() && !ip.Is4In6() && !ip.IsUnspecified() && !ip.IsMulticast()
}

// port6 returns a port of a record, that of IPv6 before the common one, 0 for none.
func port6(n *enode.Node, keys ...string) int {
	for _, key := range keys {
		var port uint16
		if n.Load(enr.WithEntry(key, &port)) == nil && port != 0 {
			return int(port)
		}
	}
	return 0
}

// Check says why a record is of no use to others: it is not that of a replication
// point, or has no IPv6 endpoint.
func Check(n *enode.Node) error {
	if err := n.Load(new(Entry)); err != nil {
		return err
	}
	if _, ok := over6(n); !ok {
		return errors.New("no IPv6 endpoint")
	}
	return nil
}
