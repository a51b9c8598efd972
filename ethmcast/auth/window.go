// SPDX-License-Identifier: LGPL-3.0-or-later

package auth

import "github.com/ethmcast/mdcs/ethmcast/wire"

// Window parameters (SPEC 5.5). A window covers 4,096 sequences in 128 words, so
// word i holds the sequences of one 32-sequence block b with b mod 128 = i.
const (
	WindowSize  = 4096
	windowWords = WindowSize / 32
)

// Window remembers which sequences were taken, so that each is taken at most
// once. A word is {block tag, 32 bits}; the tag is the sequence divided by 4,096,
// plus one, mod 2^32, and zero marks a word never used. Within a word a newer tag
// replaces an older one. The zero Window is empty.
type Window struct {
	words [windowWords]uint64
}

// Check returns what Take would return, and changes nothing.
func (w *Window) Check(seq uint64) wire.Verdict {
	_, _, v := w.look(seq)
	return v
}

// Take takes seq: wire.Pass the first time, wire.Replayed when it was taken
// before, wire.TooOld when its word has moved on to a newer block.
func (w *Window) Take(seq uint64) wire.Verdict {
	word, next, v := w.look(seq)
	if v == wire.Pass {
		*word = next
	}
	return v
}

// Restart forgets all sequences beyond newest, so that each of them can be taken again,
// and keeps what it knows of those up to newest. A word that had moved on to a block
// beyond newest remembers nothing of its block before.
func (w *Window) Restart(newest uint64) {
	last := newest / 32
	for i := range w.words {
		tag, bits := uint32(0), uint64(1)<<32-1
		if back := (last - uint64(i)) % windowWords; back <= last {
			tag = uint32((last-back)/windowWords) + 1
			if back == 0 {
				bits = uint64(1)<<(newest%32+1) - 1
			}
		}
		switch old := uint32(w.words[i] >> 32); {
		case old > tag:
			w.words[i] = uint64(tag) << 32
		case old == tag:
			w.words[i] &= uint64(tag)<<32 | bits
		}
	}
}

func (w *Window) look(seq uint64) (word *uint64, next uint64, v wire.Verdict) {
	word = &w.words[seq/32%windowWords]
	tag, bit := uint32(seq/WindowSize)+1, uint64(1)<<(seq%32)
	switch old := uint32(*word >> 32); {
	case old > tag:
		return word, 0, wire.TooOld
	case old < tag:
		return word, uint64(tag)<<32 | bit, wire.Pass
	case *word&bit != 0:
		return word, 0, wire.Replayed
	}
	return word, *word | bit, wire.Pass
}
