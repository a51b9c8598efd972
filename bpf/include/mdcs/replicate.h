/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* One in, many out: slices, the chain that they form, and the copies of each. */
#ifndef MDCS_REPLICATE_H
#define MDCS_REPLICATE_H

#include "rewrite.h"

/*
 * follow returns the reference to the first slice of an anchor or behind a slice, 0 at
 * the end of the chain. From the anchor of a long chain on, slices are queued.
 */
__inline_always __u32 follow(struct scratch *s, __u32 index)
{
	__u64 *next = bpf_map_lookup_elem(&nexts, &index);
	__u64 ref;

	if (!next)
		return 0;
	ref = load(next);
	if (index >= FIRST_ANCHOR && ref >> 32) {
		if (ref & LONG_CHAIN)
			s->is_inline = 0;
		count_n(unresolved, (ref & ~LONG_CHAIN) >> 32);
	}
	return ref;
}

/* next_slice is follow, through an anchor that stands in between. */
__inline_always __u32 next_slice(struct scratch *s, __u32 index)
{
	__u32 ref = follow(s, index);

	if ((ref & 0xffff) >= FIRST_ANCHOR)
		ref = follow(s, ref & 0xffff);
	return ref;
}

/* fan sends the frame to all devices of its slice. */
__inline_always int fan(struct scratch *s)
{
	__u32 zero = 0, index = s->slice;
	struct slice *slice;
	__u32 *stamp;
	void *target;
	__u64 *n;

	slice = bpf_map_lookup_elem(&slices, &index);
	target = bpf_map_lookup_elem(&targets, &index);
	stamp = bpf_map_lookup_elem(&stamps, &zero);
	n = bpf_map_lookup_elem(&passes, &index);
	if (!slice || !target || !stamp || !n || slice->generation != s->generation) {
		count(stale);
		return XDP_DROP;
	}
	s->stamp = ++*stamp;
	__sync_fetch_and_add(n, 1);
	count_n(planned, slice->len);
	if (slice->chained)
		count(chained);
	return bpf_redirect_map(target, 0, BPF_F_BROADCAST);
}

/* pass_on sends the frame to a slice: by the queue of a CPU, or at once. */
__inline_always int pass_on(struct scratch *s, __u32 ref)
{
	if (!ref)
		return XDP_DROP;
	s->slice = ref & 0xffff;
	s->generation = ref >> 16;
	if (s->is_inline)
		return fan(s);
	count(queued);
	return bpf_redirect_map(&fan_cpus, s->cpu, XDP_DROP);
}

/*
 * lone tells whether no datagram was accepted for a while. Then nothing else is in
 * flight, and the slices need no queue: what overflows the rings is several datagrams
 * at once.
 */
__inline_always int lone(__u64 now)
{
	__u64 *newest, before;
	__u32 zero = 0;

	if (quiet_ns == ~0ULL)
		return 0;
	newest = bpf_map_lookup_elem(&pace, &zero);
	if (!newest)
		return 0;
	before = __sync_lock_test_and_set(newest, now);
	return now > before && now - before > quiet_ns;
}

/* fill copies a datagram into a record, with the headers as they are now. */
__inline_always int fill(struct record *r, struct xdp_md *ctx, __u32 session, __u32 payload)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u64 *to = (void *)r->datagram, *tail, size = payload;
	__u32 words = payload / 8;

	if (payload > MAX_PAYLOAD || data + PAYLOAD_OFF > end)
		return 0;
	r->session = session;
	r->len = HEADER_SIZE + payload;
#pragma unroll
	for (int i = 0; i < HEADER_SIZE / 8; i++)
		to[i] = *(__u64 *)(data + HEADER_OFF + i * 8);
	for (__u32 i = 0; i < MAX_PAYLOAD / 8; i++) {
		__u64 *w = data + PAYLOAD_OFF + i * 8;

		if (i >= words)
			break;
		if ((void *)(w + 1) > end)
			return 0;
		to[HEADER_SIZE / 8 + i] = *w;
	}
	/* The last 8 bytes overlap: they end with the payload, or with the header before an empty one. */
	at_most(size, MAX_PAYLOAD);
	tail = data + PAYLOAD_OFF - 8 + size;
	if ((void *)(tail + 1) > end)
		return 0;
	*(__u64 *)(r->datagram + HEADER_SIZE - 8 + size) = *tail;
	return 1;
}

/* copy_to_cache copies an accepted DATA to user space. Readers poll, so nobody is woken. It is kept out of line
 * for the verifier, as payload_sum is.
 */
__attribute__((noinline)) int copy_to_cache(struct xdp_md *ctx, __u32 session, __u32 payload)
{
	struct record *r = bpf_ringbuf_reserve(&cache, sizeof(*r), 0);

	if (!r) {
		count(cache_lost);
		return 0;
	}
	if (fill(r, ctx, session, payload))
		bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);
	else
		bpf_ringbuf_discard(r, BPF_RB_NO_WAKEUP);
	return 0;
}

/* cut trims a frame by n bytes and returns whether that worked. Packet pointers are void then. */
__inline_always int cut(struct xdp_md *ctx, __u32 n)
{
	if (n == 0 || bpf_xdp_adjust_tail(ctx, -(int)n) == 0)
		return 1;
	count(no_trim);
	return 0;
}

/* replica_of returns the replica of the copy that the egress program sees, NULL when it has none. */
__inline_always struct replica *replica_of(const struct scratch *s, __u32 device)
{
	struct cursor *cursor = bpf_map_lookup_elem(&cursors, &device);
	__u32 index = s->slice, i;
	struct slice *slice = bpf_map_lookup_elem(&slices, &index);

	if (!cursor || !slice)
		return NULL;
	if (cursor->stamp != s->stamp) {
		cursor->stamp = s->stamp;
		cursor->next = 0;
	}
	i = cursor->next++;
	if (slice->generation != s->generation) {
		count(stale);
		return NULL;
	}
	i += slice->first[device % MAX_DEVICES];
	if (i >= slice->len || i >= SLICE_SIZE) {
		count(no_replica);
		return NULL;
	}
	return &slice->replicas[i];
}

#endif
