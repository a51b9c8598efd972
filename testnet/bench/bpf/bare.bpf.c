// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)

//go:build ignore

/*
 * The least that copying by XDP costs: broadcasts to slices of the subscribers,
 * chained by a recirculation pair. Each copy gets addresses, port and checksum.
 * Nothing is checked, and there are no tags.
 */
#include "frame.h"

#define SLICE_SIZE 64
#define MAX_SLICES (MAX_SUBSCRIBERS / SLICE_SIZE)

/* What a frame carries from stage to stage, in the destination address: each copy overwrites it. */
struct scratch {
	__u64 stamp; /* of the broadcast */
	__u32 slice;
	__u32 sum; /* see take_over */
};

/* Interface indexes of the copies of a slice, and of the recirculation pair. */
struct target_map {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, SLICE_SIZE + 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct bpf_devmap_val));
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_SLICES);
	__type(key, __u32);
	__array(values, struct target_map);
} targets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SUBSCRIBERS);
	__type(key, __u32);
	__type(value, struct replica);
} replicas SEC(".maps");

/* Counts the copies of a broadcast: the kernel does not tell the slot. */
struct cursor {
	__u64 broadcasts; /* of this CPU */
	__u64 stamp;
	__u64 next;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cursor);
} cursors SEC(".maps");

const volatile __u32 recirculation; /* interface index of the pair's near end */
const volatile __be16 own_port;

__inline_always struct cursor *cursor(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&cursors, &zero);
}

__inline_always int broadcast(struct scratch *s, __u32 slice)
{
	void *target = bpf_map_lookup_elem(&targets, &slice);
	struct cursor *c = cursor();

	if (!target || !c)
		return XDP_DROP;
	s->stamp = ++c->broadcasts;
	s->slice = slice;
	return bpf_redirect_map(target, 0, BPF_F_BROADCAST);
}

SEC("xdp")
int bare_in(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct scratch *s = data + DADDR_OFF;
	struct udphdr *udp = data + UDP_OFF;

	if (!is_udp(data, end) || udp->dest != own_port)
		return XDP_PASS;
	s->sum = fold(take_over(data));
	return broadcast(s, 0);
}

SEC("xdp")
int bare_recirc(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct scratch *s = data + DADDR_OFF;

	if (!is_udp(data, end))
		return XDP_DROP;
	return broadcast(s, s->slice + 1);
}

SEC("xdp/devmap")
int bare_out(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct scratch *s = data + DADDR_OFF;
	struct cursor *c = cursor();
	struct replica *r;
	__u32 i;

	if (!c || data + HEADER_OFF > end)
		return XDP_DROP;
	if (ctx->egress_ifindex == recirculation)
		return XDP_PASS;
	if (c->stamp != s->stamp) {
		c->stamp = s->stamp;
		c->next = s->slice * SLICE_SIZE;
	}
	i = c->next++;
	r = bpf_map_lookup_elem(&replicas, &i);
	if (!r)
		return XDP_DROP;
	address_to(r, data, s->sum);
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
