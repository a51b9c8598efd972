/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* The checks of the pipeline behind the form, in their normative order (spec 6.2). */
#ifndef MDCS_VERIFY_H
#define MDCS_VERIFY_H

#include "dedup.h"
#include "parse.h"

/* What becomes of a datagram that passed. */
struct outcome {
	struct stream_state *stream;	 /* that it belongs to; NULL: nothing leaves */
	struct key key;			 /* of its group */
	__u32 element;			 /* of the stream, index in stream_states */
	__u32 anchor;			 /* of the stream */
	__u32 from;			 /* state of the session that it came by, index in states */
	__u8 role;			 /* of that session */
	__u8 shares;			 /* it passes by the share of its site */
	__u64 sum;			 /* of its payload, for the checksum */
};

/*
 * payload_sum checks the payload tag (spec 5.3) of the DATA in a frame and adds up
 * its payload in one pass. It returns 1 + the sum of the payload's little-endian
 * 32-bit words, 0 when the tag is wrong. It is a function of its own so that the
 * verifier sees its loop once.
 */
__attribute__((noinline)) __u64 payload_sum(struct xdp_md *ctx, __u64 k0, __u64 k1, __u32 len)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct header *h = data + HEADER_OFF;
	__u32 words = len / 8, rest = len % 8;
	__u64 *tail, *id, m, sum = 0, size = len;
	struct siphash s;

	if (len > MAX_PAYLOAD || data + PAYLOAD_OFF > end)
		return 0;
	sip_init(&s, k0, k1);
	/* Bytes 8-11 and 28-31, 32-39, 40-47. */
	sip_word(&s, (__u64)le32(*(__u32 *)&h->esi) << 32 | le32(h->group));
	id = (void *)&h->n;
	sip_word(&s, le64(id[0]));
	sip_word(&s, le64(id[1]));
	for (__u32 i = 0; i < MAX_PAYLOAD / 8; i++) {
		__u64 *w = data + PAYLOAD_OFF + i * 8;

		if (i >= words)
			break;
		if ((void *)(w + 1) > end)
			return 0;
		m = le64(*w);
		sum += (__u32)m;
		sum += m >> 32;
		sip_word(&s, m);
	}
	/* The 8 bytes that end with the payload: the header stands before it. */
	at_most(size, MAX_PAYLOAD);
	tail = data + PAYLOAD_OFF - 8 + size;
	if ((void *)(tail + 1) > end)
		return 0;
	m = rest ? le64(*tail) >> (8 * (8 - rest)) : 0;
	sum += (__u32)m;
	sum += m >> 32;
	if (sip_finish(&s, m, 24 + len) != le64(h->payload_tag))
		return 0;
	return 1 + sum;
}

/* find_stream sets what o has of a stream, or returns VERDICT_NO_KEY. */
__inline_always int find_stream(__u32 ingress, __u32 group, struct outcome *o)
{
	struct stream_key id = {.ingress = ingress, .group = group};
	struct stream *where = bpf_map_lookup_elem(&streams, &id);

	if (!where)
		return VERDICT_NO_KEY;
	o->element = *(volatile __u32 *)&where->state;
	o->stream = bpf_map_lookup_elem(&stream_states, &o->element);
	if (!o->stream || o->stream->id.ingress != ingress || o->stream->id.group != group)
		return VERDICT_NO_KEY; /* the stream has just ended, and its element of the map is another's */
	o->anchor = load(&o->stream->anchor);
	return VERDICT_PASS;
}

__inline_always struct group_key *epoch_key(struct stream_state *s, __u8 epoch)
{
	if (load(&s->keys[0].epoch) == (__u64)epoch + 1)
		return &s->keys[0];
	if (load(&s->keys[1].epoch) == (__u64)epoch + 1)
		return &s->keys[1];
	return NULL;
}

/* authentic is steps 8 to 10: key, what the window thinks of it, payload tag. */
__inline_always int authentic(struct xdp_md *ctx, const struct packet *p, struct outcome *o, int window)
{
	__u8 epoch = p->h->epoch;
	struct group_key *key = epoch_key(o->stream, epoch);
	int right;

	if (!key)
		return VERDICT_NO_KEY;
	if (window != VERDICT_PASS)
		return window;
	o->key.k0 = load(&key->key.k0);
	o->key.k1 = load(&key->key.k1);
	if ((p->h->version_type & 15) == TYPE_HEARTBEAT) {
		right = heartbeat_tag(&o->key, p->h) == p->h->payload_tag;
	} else {
		o->sum = payload_sum(ctx, o->key.k0, o->key.k1, p->payload);
		right = o->sum != 0;
		o->sum--;
	}
	if (right)
		return VERDICT_PASS;
	/* The key may have been replaced meanwhile. */
	return load(&key->epoch) == (__u64)epoch + 1 ? VERDICT_BAD_PAYLOAD_TAG : VERDICT_NO_KEY;
}

__inline_always int may_publish(const struct session *s, __u32 group)
{
	for (int i = 0; i < MAX_GROUPS; i++) {
		if (i >= s->groups_len)
			return 0;
		if (s->groups[i] == group)
			return 1;
	}
	return 0;
}

/* within_rates is step 11, which changes nothing but the outcome. */
__inline_always int within_rates(const struct session *s, struct session_state *state, struct outcome *o, __u64 now)
{
	__u32 zero = 0;
	struct egress *all = bpf_map_lookup_elem(&egresses, &zero), *site;

	if (!all || !conforms(&s->datagrams, &state->datagrams_due, now) ||
	    !conforms(&s->copies, &state->copies_due, now) || !conforms(&all->copies, &all->due, now))
		return 0;
	if (spares(&all->copies, &all->due, now))
		return 1;
	o->shares = 1;
	site = bpf_map_lookup_elem(&egresses, &s->site);
	return site && conforms(&site->copies, &site->due, now);
}

/* charge_rates accounts for a datagram of len bytes that was accepted. */
__inline_always void charge_rates(const struct session *s, struct session_state *state, const struct outcome *o,
				  __u32 len, __u64 now)
{
	__u32 zero = 0;
	struct egress *all = bpf_map_lookup_elem(&egresses, &zero), *site;
	__u32 anchor = o->anchor - FIRST_ANCHOR;
	__u64 *n;

	charge(&s->datagrams, &state->datagrams_due, now, 1);
	if (!all || (!s->copies.rate && !all->copies.rate))
		return;
	n = bpf_map_lookup_elem(&receivers, &anchor);
	if (!n)
		return;
	charge(&s->copies, &state->copies_due, now, load(n) * len);
	charge(&all->copies, &all->due, now, load(n) * len);
	if (!o->shares)
		return;
	site = bpf_map_lookup_elem(&egresses, &s->site);
	if (site)
		charge(&site->copies, &site->due, now, load(n) * len);
}

/* accept_published takes a peer's DATA: its window is that of its session. */
__inline_always int accept_published(struct xdp_md *ctx, const struct packet *p, struct outcome *o,
				     const struct session *s, struct session_state *state, __u64 now)
{
	__u64 seq = bpf_be64_to_cpu(p->h->sequence);
	__u32 group = bpf_ntohl(p->h->group);
	int v;

	if (!may_publish(s, group))
		return VERDICT_NOT_PUBLISHER;
	if (p->h->ingress != 0)
		return VERDICT_BAD_UPSTREAM;
	v = find_stream(own_incarnation, group, o);
	if (v != VERDICT_PASS)
		return v;
	v = authentic(ctx, p, o, window_check(state->window, seq));
	if (v != VERDICT_PASS)
		return v;
	if (!within_rates(s, state, o, now))
		return VERDICT_OVER_RATE;
	v = window_take(state->window, seq);
	if (v == VERDICT_PASS)
		charge_rates(s, state, o, p->len, now);
	return v;
}

/* is_upstream tells whether a stream is accepted from a session. */
__inline_always int is_upstream(const struct stream_state *s, __u32 session)
{
#pragma unroll
	for (int i = 0; i < MAX_UPSTREAMS; i++)
		if (load(&s->upstreams[i]) == session)
			return 1;
	return 0;
}

/* far_ahead tells whether a sequence is beyond what an honest ingress RP can have reached. */
__inline_always int far_ahead(const struct stream_state *s, __u64 seq, __u64 now)
{
	__u64 top = load(&s->top), at = load(&s->top_at);

	if (seq > MAX_SEQUENCE)
		return 1;
	return load(&s->known) && seq > top && seq - top > MAX_AHEAD + (now > at ? (now - at) / AHEAD_EACH_NS : 0);
}

/*
 * reached notes the sequence of a DATA or HEARTBEAT that passed. The time of the newest one comes before it: else
 * a HEARTBEAT on another CPU would find it old and forget it. The time of the highest follows: until then there is
 * more room.
 */
__inline_always void reached(struct stream_state *s, __u64 seq, __u64 now)
{
	if (seq > load(&s->newest) || !load(&s->known))
		s->moved = now;
	raise(&s->newest, seq);
	if (raise(&s->top, seq) || load(&s->top) == seq)
		s->top_at = now;
	s->known = 1;
}

/* follow_parent takes what the parent's HEARTBEAT says is the newest sequence. */
__inline_always void follow_parent(__u32 element, struct stream_state *s, __u64 seq, __u64 now)
{
	__u64 newest = load(&s->newest);

	if (load(&s->known) && seq < newest && now >= load(&s->moved) + RESTART_AFTER_NS && restart(element, seq, newest))
		s->moved = now;
}

/*
 * overtaken tells whether a later HEARTBEAT of the sender was believed for the stream. HEARTBEATs of other streams
 * do not count: one sender numbers them all, and CPUs that send them overtake each other. spec: 5.5
 */
__inline_always int overtaken(const struct stream_state *s, __u32 state, __u64 beat)
{
	__u64 word = load(&s->followed);

	return (word & ((1ULL << FOLLOWED_STATE_BITS) - 1)) == state && word >> FOLLOWED_STATE_BITS > beat;
}

/* accept_heartbeat takes a right HEARTBEAT of an RP neighbour. */
__inline_always int accept_heartbeat(const struct packet *p, struct outcome *o, const struct session *from,
				     struct session_state *state, __u64 now)
{
	__u64 seq = bpf_be64_to_cpu(p->h->sequence), beat = bpf_be64_to_cpu(p->h->object_id);
	struct stream_state *s = o->stream;
	__u64 due = load(&s->beat_due);
	int v;

	/* It says no more than that the sender is there. */
	if (load(&s->parent) != bpf_ntohl(p->h->session) || overtaken(s, o->from, beat)) {
		o->stream = NULL;
		return beats_take(&state->beats, beat);
	}
	if (!within_rates(from, state, o, now) || now < due)
		return VERDICT_OVER_RATE;
	if (far_ahead(s, seq, now))
		return VERDICT_FAR_AHEAD;
	if (__sync_val_compare_and_swap(&s->beat_due, due, now + HEARTBEAT_GAP_NS) != due)
		return VERDICT_OVER_RATE;
	v = beats_take(&state->beats, beat);
	if (v == VERDICT_PASS) {
		s->followed = beat << FOLLOWED_STATE_BITS | o->from;
		follow_parent(o->element, s, seq, now);
	}
	return v;
}

/* accept_relayed takes DATA and HEARTBEAT of an RP neighbour. */
__inline_always int accept_relayed(struct xdp_md *ctx, const struct packet *p, struct outcome *o,
				   const struct session *from, struct session_state *state, __u64 now)
{
	__u64 seq = bpf_be64_to_cpu(p->h->sequence);
	int heartbeat = (p->h->version_type & 15) == TYPE_HEARTBEAT, v;

	v = find_stream(bpf_ntohl(p->h->ingress), bpf_ntohl(p->h->group), o);
	if (v != VERDICT_PASS)
		return v;
	if (!is_upstream(o->stream, bpf_ntohl(p->h->session)))
		return VERDICT_BAD_UPSTREAM;
	if (p->h->hop_limit == 0)
		return VERDICT_HOP_LIMIT;
	if (!heartbeat)
		v = window_check(o->stream->window, seq);
	else if (!beats_next(load(&state->beats), bpf_be64_to_cpu(p->h->object_id)))
		v = VERDICT_REPLAYED;
	v = authentic(ctx, p, o, v);
	if (v != VERDICT_PASS)
		return v;
	if (heartbeat) {
		v = accept_heartbeat(p, o, from, state, now);
	} else {
		if (!within_rates(from, state, o, now))
			return VERDICT_OVER_RATE;
		if (far_ahead(o->stream, seq, now))
			return VERDICT_FAR_AHEAD;
		v = window_take(o->stream->window, seq);
	}
	if (v != VERDICT_PASS || !o->stream)
		return v;
	charge_rates(from, state, o, p->len, now);
	reached(o->stream, seq, now);
	return VERDICT_PASS;
}

/* accept_hello takes an RP neighbour's LINK_HELLO. Who keeps the link is woken. */
__inline_always int accept_hello(const struct header *h, struct session_state *state)
{
	struct hello hello = {.at = bpf_ktime_get_ns(), .session = bpf_ntohl(h->session)};
	int v = window_take(state->window, bpf_be64_to_cpu(h->sequence));

	if (v != VERDICT_PASS || !hello_on)
		return v;
	__builtin_memcpy(hello.hello, &h->esi, HELLO_SIZE);
	if (bpf_ringbuf_output(&hellos, &hello, sizeof(hello), 0))
		count(hello_lost);
	return v;
}

/* orphaned tells whether user space, which filled the maps, is gone for too long. */
__inline_always int orphaned(__u64 now)
{
	__u32 zero = 0;
	struct life *l = bpf_map_lookup_elem(&lives, &zero);

	return !l || load(&l->valid_until) < now;
}

/* accept is steps 2 to 13. What it changes, it changes only for VERDICT_PASS. */
__inline_always int accept(struct xdp_md *ctx, const struct packet *p, struct outcome *o, __u64 now)
{
	__u32 index = bpf_ntohl(p->h->session), type = p->h->version_type & 15;
	struct session_state *state;
	struct session *s;
	struct key key;
	int v = VERDICT_PASS;

	if (orphaned(now))
		return VERDICT_ORPHANED;
	s = bpf_map_lookup_elem(&sessions, &index);
	if (!s)
		return VERDICT_NO_SESSION;
	/*
	 * The element may become another session's at any time. What is read before the key is of the session whose
	 * key is right, and the state says whose it is. What is read later, groups and limits, may for some 100 ns be
	 * of the session that follows in the element.
	 */
	o->role = s->role;
	o->from = *(volatile __u32 *)&s->state;
	key.k0 = load(&s->key.k0);
	key.k1 = load(&s->key.k1);
	/* A frame may claim a channel's address as its source: the kernel's check of that comes later. */
	if (o->role == ROLE_CHANNEL || p->udp->source != s->port || !same_address((void *)&p->ip->saddr, &s->addr))
		return VERDICT_BAD_SOURCE;
	if (hop_tag(&key, p->h) != p->h->hop_tag)
		return VERDICT_BAD_HOP_TAG;
	if (type != TYPE_DATA && type != TYPE_HEARTBEAT && !(type == TYPE_LINK_HELLO && o->role == ROLE_MESH))
		return VERDICT_BAD_TYPE;
	state = bpf_map_lookup_elem(&states, &o->from);
	if (!state || state->session != index)
		return VERDICT_NO_SESSION;
	if (type == TYPE_LINK_HELLO)
		v = accept_hello(p->h, state);
	else if (o->role == ROLE_MESH)
		v = accept_relayed(ctx, p, o, s, state, now);
	else if (type == TYPE_DATA)
		v = accept_published(ctx, p, o, s, state, now);
	/* A peer's HEARTBEAT says only that the peer is there. */
	if (v == VERDICT_PASS) {
		__sync_fetch_and_add(&state->received, 1);
		state->heard = now;
	}
	return v;
}

#endif
