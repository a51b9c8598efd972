// SPDX-License-Identifier: LGPL-3.0-or-later

package delayline

import (
	"encoding/binary"
	"net/netip"
)

// Pair counts the frames of class [Control] from one host to another one on a link,
// of those that were not lost on their way onto it.
type Pair struct {
	Link string     `json:"link"`
	From netip.Addr `json:"from"`
	To   netip.Addr `json:"to"`
	Count
}

// maxPairs is how many pairs of a direction are counted; frames of others are not.
const maxPairs = 512

// pairs is a hash table with linear probing: the loop must not allocate.
type pairs [maxPairs]struct {
	addrs [2 * addrSize]byte // source and destination, zero in a free slot
	Count
}

const (
	addrSize   = 16
	offAddrs   = ethernetHeader + 8
	hashFactor = 0x9e3779b97f4a7c15 // 2^64 divided by the golden ratio
)

// add counts a frame of IPv6.
func (p *pairs) add(frame []byte, length int) {
	addrs := [2 * addrSize]byte(frame[offAddrs:])
	hash := (binary.BigEndian.Uint64(addrs[8:])*3 + binary.BigEndian.Uint64(addrs[addrSize+8:])) * hashFactor
	for i := range uint64(maxPairs) {
		slot := &p[(hash>>32+i)%maxPairs]
		if slot.Frames == 0 {
			slot.addrs = addrs
		}
		if slot.addrs == addrs {
			slot.add(length)
			return
		}
	}
}

// list are those counted.
func (p *pairs) list(link string) (list []Pair) {
	for _, slot := range p {
		if slot.Frames > 0 {
			list = append(list, Pair{
				Link:  link,
				From:  netip.AddrFrom16([addrSize]byte(slot.addrs[:])),
				To:    netip.AddrFrom16([addrSize]byte(slot.addrs[addrSize:])),
				Count: slot.Count,
			})
		}
	}
	return list
}
