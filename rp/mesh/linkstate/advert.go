// SPDX-License-Identifier: LGPL-3.0-or-later

package linkstate

import (
	"crypto/ecdsa"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/rlp"

	"github.com/ethmcast/mdcs/ethmcast/ids"
)

// Advert is what one RP says of itself.
type Advert struct {
	Origin          ID
	Incarnation     ids.Incarnation // of its datagrams as ingress RP
	Epoch, Sequence uint64          // order its adverts, see Version; Epoch grows with each start
	Publishes       bool            // it is an ingress RP: it needs a tree
	Budget          uint32          // children that it copies to in one tree, at most
	Links           []Link          // by neighbour; none of an RP that leaves
	Groups          []Members       // by group
	Operator        string
}

// Link is a link that is up, as one end sees it.
type Link struct {
	Neighbour ID
	Cost      uint32 // round-trip time in units of CostUnit, at least 1
	Tree      bool   // was on a tree in use when the advert was signed
}

// Members is the number of subscribers of a group at the RP itself.
type Members struct {
	Group ids.Group
	Count uint32
}

// Signed is an advert with the signature of its origin's node key.
type Signed struct {
	Advert    Advert
	Signature [crypto.SignatureLength]byte
}

// domain keeps a signature of an advert from being one of anything else.
const domain = "mdcsmesh advert\x00"

// Version returns the advert's place among the adverts of its origin. The cost is that of encoding
// and hashing the advert.
func (a *Advert) Version() Version {
	return Version{a.Origin, a.Epoch, a.Sequence, Hash(a.signed())}
}

// signed returns the 32 bytes that a signature of the advert is of.
func (a *Advert) signed() []byte {
	body, err := rlp.EncodeToBytes(a)
	if err != nil { // of the types of the fields, not of what they say
		panic(fmt.Sprintf("encode advert: %v", err))
	}
	return crypto.Keccak256([]byte(domain), body)
}

// Sign signs an advert.
func Sign(a Advert, key *ecdsa.PrivateKey) (*Signed, error) {
	signature, err := crypto.Sign(a.signed(), key)
	if err != nil {
		return nil, fmt.Errorf("sign advert: %w", err)
	}
	return &Signed{a, [crypto.SignatureLength]byte(signature)}, nil
}

// Verify returns the devp2p node id that signed an advert. It fails when that is not
// the origin, or when the incarnation does not belong to the origin. The cost is that of recovering a public key.
func Verify(s *Signed) (node [32]byte, err error) {
	pub, err := crypto.Ecrecover(s.Advert.signed(), s.Signature[:])
	if err != nil {
		return node, fmt.Errorf("recover signer: %w", err)
	}
	node = [32]byte(crypto.Keccak256(pub[1:])) // as enode.PubkeyToIDV4
	if IDOf(node) != s.Advert.Origin {
		return node, fmt.Errorf("advert of %016x signed by %016x", s.Advert.Origin, IDOf(node))
	}
	if !Belongs(s.Advert.Origin, s.Advert.Incarnation) {
		return node, fmt.Errorf("advert of %016x: incarnation %08x is not one of it", s.Advert.Origin, s.Advert.Incarnation)
	}
	return node, nil
}

// incarnationDomain keeps the digest of an incarnation from being one of anything else.
const incarnationDomain = "mdcsmesh incarnation\x00"

// Belongs reports whether an incarnation is one of those that an RP may choose: of 4,096
// numbers about one is. Each RP has other ones, so that the incarnation that one RP chose is
// most likely none that another RP can claim.
func Belongs(id ID, incarnation ids.Incarnation) bool {
	b := binary.BigEndian.AppendUint64([]byte(incarnationDomain), uint64(id))
	digest := crypto.Keccak256(binary.BigEndian.AppendUint32(b, uint32(incarnation)))
	return incarnation != 0 && binary.BigEndian.Uint16(digest)>>4 == 0
}

// DrawIncarnation returns a random incarnation that belongs to an RP. It reads some 16 KiB of
// random bytes, and fails when that fails.
func DrawIncarnation(id ID, random io.Reader) (ids.Incarnation, error) {
	var block [1024]byte
	for {
		if _, err := io.ReadFull(random, block[:]); err != nil {
			return 0, fmt.Errorf("draw incarnation: %w", err)
		}
		for b := block[:]; len(b) > 0; b = b[4:] {
			if incarnation := ids.Incarnation(binary.BigEndian.Uint32(b)); Belongs(id, incarnation) {
				return incarnation, nil
			}
		}
	}
}

// IDOf returns the ID of a devp2p node id.
func IDOf(node [32]byte) ID { return ID(binary.BigEndian.Uint64(node[:])) }
