// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)

//go:build ignore

/*
 * Generator and sink of the benchmark.
 *
 * bench_inject and bench_flood are run by BPF_PROG_TEST_RUN with live frames: what
 * they transmit leaves through the veth end that the run names. bench_sink stands
 * at the subscribers' veth end. Both stamp with the same clock.
 */
#include "frame.h"

#define SLOTS	      16384 /* datagrams whose copies are told apart */
#define HOSTILE_HEADS 64

/* The object id of a datagram is one of these and, below it, the number of its slot. */
#define HONEST	0x600d0000
#define HOSTILE 0x0bad0000

/* What became of one datagram. */
struct slot {
	__u64 injected; /* ns */
	__u64 last;	/* copy at the sink, ns; 0 before the first */
	__u64 copies;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct slot);
} slots SEC(".maps");

/* What differs between datagrams besides sequence and hop tag. */
struct object {
	__be64 id;
	__u64 payload_tag; /* as it stands in the header */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, struct object);
} objects SEC(".maps");

/* The beginning of a frame. */
struct head {
	__u64 words[HEAD_SIZE / 8];
	__u64 sum; /* of the UDP packet and its pseudo-header, what bench_inject fills in taken as 0 */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct head);
} honest SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, HOSTILE_HEADS);
	__type(key, __u32);
	__type(value, struct head);
} hostile SEC(".maps");

/* Copies by subscriber, which is the last word of its address. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SUBSCRIBERS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

const volatile struct key publisher_key; /* of the hop to the replication point */

/*
 * Each counter has one writer at a time: one thread injects, one floods, and a veth
 * end with one queue polls on one CPU.
 */
__u64 injected;
__u64 flooded;
__u64 copies;
__u64 echoes;
__u64 invalid; /* copies that are not what a subscriber should get */
__u64 leaked;  /* copies of what bench_flood sent */

/* Makes the sink verify the checksum of each copy. */
__u32 verify;

__inline_always void write_head(__u64 *to, const struct head *from)
{
#pragma unroll
	for (int i = 0; i < HEAD_SIZE / 8; i++)
		to[i] = from->words[i];
}

SEC("xdp")
int bench_inject(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct key key = {.k0 = publisher_key.k0, .k1 = publisher_key.k1};
	__u32 zero = 0, i = injected & (SLOTS - 1);
	struct udphdr *udp = data + UDP_OFF;
	struct header *h = data + HEADER_OFF;
	struct object *object;
	struct head *head;
	struct slot *slot;
	__u64 sum;

	head = bpf_map_lookup_elem(&honest, &zero);
	object = bpf_map_lookup_elem(&objects, &i);
	slot = bpf_map_lookup_elem(&slots, &i);
	if (!head || !object || !slot || data + HEAD_SIZE > end)
		return XDP_ABORTED;
	write_head(data, head);
	h->sequence = bpf_cpu_to_be64(++injected);
	h->object_id = object->id;
	h->payload_tag = object->payload_tag;
	h->hop_tag = hop_tag(&key, h);

	sum = sum64(head->sum, h->sequence);
	sum = sum64(sum, h->object_id);
	sum = sum64(sum, h->payload_tag);
	sum = sum64(sum, h->hop_tag);
	udp->check = checksum(sum);

	slot->copies = 0;
	slot->last = 0;
	slot->injected = bpf_ktime_get_ns();
	return XDP_TX;
}

SEC("xdp")
int bench_flood(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 i = flooded & (HOSTILE_HEADS - 1);
	struct head *head;

	head = bpf_map_lookup_elem(&hostile, &i);
	if (!head || data + HEAD_SIZE > end)
		return XDP_ABORTED;
	write_head(data, head);
	flooded++;
	return XDP_TX;
}

/* right_sum checks the UDP checksum of a frame of FRAME_SIZE. */
__inline_always int right_sum(void *data, void *end)
{
	const int words = (FRAME_SIZE - SADDR_OFF) / 8; /* from the source address on */
	__u64 sum = bpf_htons(FRAME_SIZE - UDP_OFF) + bpf_htons(IPPROTO_UDP);

	_Static_assert((FRAME_SIZE - SADDR_OFF) % 8 == 2, "two bytes follow the words");
	if (data + FRAME_SIZE > end)
		return 0;
	for (int i = 0; i < words; i++)
		sum = sum64(sum, *(__u64 *)(data + SADDR_OFF + i * 8));
	sum += *(__u16 *)(data + SADDR_OFF + words * 8);
	return fold(sum) == 0xffff;
}

SEC("xdp")
int bench_sink(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct address *to = data + DADDR_OFF;
	struct udphdr *udp = data + UDP_OFF;
	struct header *h = data + HEADER_OFF;
	__u32 i, subscriber, mark;
	struct slot *slot;
	__u64 id, *count;

	if (!is_udp(data, end) || data + PAYLOAD_OFF > end)
		return XDP_PASS; /* neighbour discovery */
	if (h->version_type == FIRST_BYTE(TYPE_ECHO))
		echoes++;
	if (h->version_type != FIRST_BYTE(TYPE_DATA))
		return XDP_DROP;

	id = bpf_be64_to_cpu(*(__be64 *)&h->object_id);
	mark = id >> 32;
	if (mark == HOSTILE) {
		leaked++;
		return XDP_DROP;
	}
	i = id & (SLOTS - 1);
	slot = bpf_map_lookup_elem(&slots, &i);
	subscriber = bpf_ntohl(to->word[3]);
	count = bpf_map_lookup_elem(&seen, &subscriber);
	if (mark != HONEST || !slot || !count || udp->len != bpf_htons(FRAME_SIZE - UDP_OFF) ||
	    (verify && !right_sum(data, end))) {
		invalid++;
		return XDP_DROP;
	}
	++*count;
	slot->copies++;
	slot->last = bpf_ktime_get_ns();
	copies++;
	return XDP_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
