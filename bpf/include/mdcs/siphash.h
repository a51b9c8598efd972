/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* SipHash-2-4 (Aumasson, Bernstein, 2012), spec 5.3. */
#ifndef MDCS_SIPHASH_H
#define MDCS_SIPHASH_H

#include "wire.h"

/* A key as its two little-endian halves. */
struct key {
	__u64 k0, k1;
};

struct siphash {
	__u64 v0, v1, v2, v3;
};

#define rotl64(x, n) ((x) << (n) | (x) >> (64 - (n)))

__inline_always void sip_round(struct siphash *s)
{
	s->v0 += s->v1;
	s->v2 += s->v3;
	s->v1 = rotl64(s->v1, 13) ^ s->v0;
	s->v3 = rotl64(s->v3, 16) ^ s->v2;
	s->v0 = rotl64(s->v0, 32);
	s->v2 += s->v1;
	s->v0 += s->v3;
	s->v1 = rotl64(s->v1, 17) ^ s->v2;
	s->v3 = rotl64(s->v3, 21) ^ s->v0;
	s->v2 = rotl64(s->v2, 32);
}

__inline_always void sip_init(struct siphash *s, __u64 k0, __u64 k1)
{
	s->v0 = k0 ^ 0x736f6d6570736575ULL;
	s->v1 = k1 ^ 0x646f72616e646f6dULL;
	s->v2 = k0 ^ 0x6c7967656e657261ULL;
	s->v3 = k1 ^ 0x7465646279746573ULL;
}

__inline_always void sip_word(struct siphash *s, __u64 m)
{
	s->v3 ^= m;
	sip_round(s);
	sip_round(s);
	s->v0 ^= m;
}

/* last holds what remains of the message, len is its whole length in bytes. */
__inline_always __u64 sip_finish(struct siphash *s, __u64 last, __u32 len)
{
	sip_word(s, last | (__u64)len << 56);
	s->v2 ^= 0xff;
	sip_round(s);
	sip_round(s);
	sip_round(s);
	sip_round(s);
	return s->v0 ^ s->v1 ^ s->v2 ^ s->v3;
}

/* hop_tag is the tag over the first 56 bytes of the header, as its bytes stand in memory. */
__inline_always __u64 hop_tag(const struct key *key, const struct header *h)
{
	const __u64 *w = (const void *)h;
	struct siphash s;

	sip_init(&s, key->k0, key->k1);
#pragma unroll
	for (int i = 0; i < 7; i++)
		sip_word(&s, le64(w[i]));
	return le64(sip_finish(&s, 0, 56));
}

/* heartbeat_tag is the payload tag of a HEARTBEAT: group, ingress RP, sequence, object id. */
__inline_always __u64 heartbeat_tag(const struct key *key, const struct header *h)
{
	const __u64 *w = (const void *)&h->group;
	struct siphash s;

	sip_init(&s, key->k0, key->k1);
	sip_word(&s, le64(w[0]));
	sip_word(&s, le64(w[1]));
	sip_word(&s, le64(h->object_id));
	return le64(sip_finish(&s, 0, 24));
}

/*
 * publisher_handle, spec 5.4: the low 32 bits of the hash over session (4 bytes) and object id (8 bytes), both big-endian
 * as they stand in the publisher's header.
 */
__inline_always __be32 publisher_handle(__u64 k0, __u64 k1, const struct header *h)
{
	const __u32 *id = (const void *)&h->object_id;
	struct siphash s;

	sip_init(&s, k0, k1);
	sip_word(&s, (__u64)le32(id[0]) << 32 | le32(h->session));
	return bpf_htonl((__u32)sip_finish(&s, le32(id[1]), 12));
}

#endif
