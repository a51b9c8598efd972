/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* State that several CPUs change without locks: windows, policers, marks. */
#ifndef MDCS_DEDUP_H
#define MDCS_DEDUP_H

#include "maps.h"

/*
 * A word has 32 sequences, so it can be lost to another CPU that often; more means that
 * senders race for different blocks.
 */
#define WINDOW_TRIES 40
#define TRIES	     16

/* load reads a word that other CPUs write. */
#define load(p) (*(volatile __u64 *)(p))

/* window_next returns what a word becomes by a sequence, or 0 and the verdict. spec: 5.5 */
__inline_always __u64 window_next(__u64 word, __u64 seq, int *verdict)
{
	__u32 old = word >> 32, block = (__u32)(seq / (32 * WINDOW_WORDS)) + 1;
	__u64 bit = 1ULL << (seq % 32);

	*verdict = VERDICT_PASS;
	if (old < block)
		return (__u64)block << 32 | bit;
	if (old > block)
		*verdict = VERDICT_TOO_OLD;
	else if (word & bit)
		*verdict = VERDICT_REPLAYED;
	else
		return word | bit;
	return 0;
}

__inline_always __u64 *window_word(__u64 *window, __u64 seq)
{
	return &window[seq / 32 % WINDOW_WORDS];
}

/* window_check returns what window_take would, and changes nothing. */
__inline_always int window_check(__u64 *window, __u64 seq)
{
	int v;

	window_next(load(window_word(window, seq)), seq, &v);
	return v;
}

/* window_take takes a sequence at most once, on however many CPUs it arrives. */
__inline_always int window_take(__u64 *window, __u64 seq)
{
	__u64 *word = window_word(window, seq);
	int v;

	for (int i = 0; i < WINDOW_TRIES; i++) {
		__u64 old = load(word), next = window_next(old, seq, &v);

		if (v != VERDICT_PASS || __sync_val_compare_and_swap(word, old, next) == old)
			return v;
	}
	count(contended);
	return VERDICT_REPLAYED;
}

/* raise makes a word at least value, and tells whether it was below. */
__inline_always int raise(__u64 *word, __u64 value)
{
	for (int i = 0; i < TRIES; i++) {
		__u64 old = load(word);

		if (old >= value)
			return 0;
		if (__sync_val_compare_and_swap(word, old, value) == old)
			return 1;
	}
	count(contended);
	return 0;
}

/*
 * beats_next returns what a session's word of taken HEARTBEATs becomes by a number, or 0 when
 * the number was taken, is too far below the highest, or is none. spec: 5.7
 */
__inline_always __u64 beats_next(__u64 word, __u64 beat)
{
	const __u64 mask = (1ULL << BEATS_KEPT) - 1;
	__u64 top = word >> BEATS_KEPT, taken = word & mask, bit;

	if (beat == 0 || beat >> (64 - BEATS_KEPT))
		return 0;
	if (beat > top) {
		taken = beat - top < BEATS_KEPT ? taken << (beat - top) : 0;
		return beat << BEATS_KEPT | (taken & mask) | 1;
	}
	if (top - beat >= BEATS_KEPT)
		return 0;
	bit = 1ULL << (top - beat);
	return taken & bit ? 0 : word | bit;
}

/* beats_take takes the number of a HEARTBEAT at most once. */
__inline_always int beats_take(__u64 *word, __u64 beat)
{
	for (int i = 0; i < TRIES; i++) {
		__u64 old = load(word), next = beats_next(old, beat);

		if (!next)
			return VERDICT_REPLAYED;
		if (__sync_val_compare_and_swap(word, old, next) == old)
			return VERDICT_PASS;
	}
	count(contended);
	return VERDICT_REPLAYED;
}

/*
 * restart makes a stream begin afresh behind newest, which was believed to be old: every
 * sequence beyond it can be taken again. When another CPU comes in between the stream stays
 * as it is, for the next HEARTBEAT. It is a function of its own so that the verifier sees its
 * loop once.
 */
__attribute__((noinline)) int restart(__u32 state, __u64 newest, __u64 old)
{
	struct stream_state *s = bpf_map_lookup_elem(&stream_states, &state);
	__u64 last = newest / 32;

	if (!s)
		return 0;
	for (__u32 i = 0; i < WINDOW_WORDS; i++) {
		__u64 back = (last - i) % WINDOW_WORDS, bits = 0xffffffff, word = load(&s->window[i]), next = word;
		__u32 tag = back <= last ? (__u32)((last - back) / WINDOW_WORDS) + 1 : 0;

		if (back == 0)
			bits >>= 31 - newest % 32;
		if (word >> 32 > tag)
			next = (__u64)tag << 32;
		else if (word >> 32 == tag)
			next = word & ((__u64)tag << 32 | bits);
		if (next != word && __sync_val_compare_and_swap(&s->window[i], word, next) != word)
			return 0;
	}
	return __sync_val_compare_and_swap(&s->newest, old, newest) == old;
}

/* conforms tells whether a policer lets a datagram pass now: the generic cell rate algorithm. spec: 6.7 */
__inline_always int conforms(const struct policer *p, __u64 *due, __u64 now)
{
	return !p->rate || load(due) <= now + p->tolerance;
}

/* spares tells whether at least half of the burst is left. spec: 6.7 */
__inline_always int spares(const struct policer *p, __u64 *due, __u64 now)
{
	return !p->rate || load(due) <= now + p->tolerance / 2;
}

/*
 * charge accounts for a datagram that passes. Until then another CPU may have found
 * the same bucket full enough.
 */
__inline_always void charge(const struct policer *p, __u64 *due, __u64 now, __u64 cost)
{
	__u64 rate = p->rate;

	if (!rate)
		return;
	for (int i = 0; i < TRIES; i++) {
		__u64 old = load(due), from = old > now ? old : now;

		if (__sync_val_compare_and_swap(due, old, from + cost * 1000000000 / rate) == old)
			return;
	}
	count(contended);
}

#endif
