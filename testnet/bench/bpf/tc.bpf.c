// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)

//go:build ignore

/*
 * Copying by bpf_clone_redirect in a clsact filter, with the same rewriting as bare.
 * It needs slices too, as the ring of a veth end holds 256 frames: after each slice
 * the packet itself goes around, and its mark says who is next.
 */
#include "frame.h"

#include <linux/pkt_cls.h>

#define SLICE_SIZE 64

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SUBSCRIBERS);
	__type(key, __u32);
	__type(value, struct replica);
} replicas SEC(".maps");

__u32 subscribers;

const volatile __u32 egress;	    /* interface index */
const volatile __u32 recirculation; /* interface index of the pair's near end */
const volatile __be16 own_port;

SEC("tc")
int tc_fanout(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct udphdr *udp = data + UDP_OFF;
	__u32 first = skb->mark, last = first + SLICE_SIZE;
	struct replica *r;
	__u64 sum;

	if (!is_udp(data, end) || (!first && udp->dest != own_port))
		return TC_ACT_OK;
	if (first)
		sum = (__u64)(__u16)~udp->check + (__u16)~fold(sum_endpoint(data + DADDR_OFF, udp->dest));
	else
		sum = take_over(data);

	for (__u32 n = 0; n < SLICE_SIZE; n++) {
		__u32 i = first + n;

		if (i >= subscribers)
			break;
		r = bpf_map_lookup_elem(&replicas, &i);
		/* Each clone may move the packet. */
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		if (!r || data + HEADER_OFF > end)
			return TC_ACT_SHOT;
		address_to(r, data, sum);
		bpf_clone_redirect(skb, egress, 0);
	}
	if (last >= subscribers)
		return TC_ACT_SHOT;
	skb->mark = last;
	return bpf_redirect(recirculation, 0);
}

char _license[] SEC("license") = "Dual BSD/GPL";
