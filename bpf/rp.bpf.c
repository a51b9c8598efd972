// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)

//go:build ignore

/*
 * The replication point in the kernel (spec 6):
 *
 *	NIC --> mdcs_rp_in --+--> cpumap --> mdcs_rp_fan --+--> up to 8 copies --> mdcs_rp_out --> NIC
 *	                     |      ^                      |
 *	                     |      |                      +--> recirculation pair --> mdcs_rp_recirc --+
 *	                     |      +-------------------------------------------------------------------+
 *	                     +--> at once, when nothing else is in flight
 *
 * mdcs_rp_own puts what user space sends before the queue: heartbeats, and PROBEs, which so prove the way that copies take.
 *
 * A broadcast to a device map makes at most 8 copies, and the frame then goes around
 * for the next 8. The kernel takes 8 frames at once out of the queue: that makes 64
 * copies, which is what a poll of a ring takes out of it. So no ring overflows when many
 * datagrams arrive at once, however often the softirqs in between are broken off.
 */
#include "mdcs/replicate.h"

#include <bpf/bpf_core_read.h>

/* forward sends a datagram that passed into the fan-out of its stream. */
static __always_inline int forward(struct xdp_md *ctx, struct packet *p, struct outcome *o, __u64 now)
{
	__u32 source = bpf_ntohl(p->h->session), trailing = p->trailing, anchor = o->anchor;
	struct scratch *s = (void *)&p->ip->daddr;
	void *data, *end;

	if (o->role == ROLE_PEER)
		stamp(p->h, o);
	else
		p->h->hop_limit--;
	if ((p->h->version_type & 15) == TYPE_HEARTBEAT)
		number(p->h, &o->key);
	if (cache_on && p->payload)
		copy_to_cache(ctx, source, p->payload);
	own_headers(p, s, o->sum);
	s->source = source;
	s->cpu = load(&o->stream->cpu);
	s->is_inline = lone(now);
	if (s->is_inline)
		count(inlined);

	if (!cut(ctx, trailing))
		return XDP_DROP;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + PAYLOAD_OFF > end)
		return XDP_DROP;
	*(__u64 *)data = recirc_cookie; /* until a copy has its addresses */
	s = data + DADDR_OFF;
	return pass_on(s, next_slice(s, anchor));
}

/* mdcs_rp_in gives every datagram its verdict. What is not ours goes to the kernel. */
SEC("xdp")
int mdcs_rp_in(struct xdp_md *ctx)
{
	struct outcome o = {};
	struct packet p = {};
	__u64 now;
	int v;

	v = parse(ctx, &p);
	if (v == NOT_OURS)
		return XDP_PASS;
	now = bpf_ktime_get_ns();
	if (v == VERDICT_PASS)
		v = accept(ctx, &p, &o, now);
	count_verdict(v);
	if (v != VERDICT_PASS || !o.stream)
		return XDP_DROP;
	return forward(ctx, &p, &o, now);
}

/* mdcs_rp_fan comes out of the queue of a CPU. */
SEC("xdp/cpumap")
int mdcs_rp_fan(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	count(dequeued);
	if (data + PAYLOAD_OFF > end)
		return XDP_DROP;
	return fan(data + DADDR_OFF);
}

/*
 * mdcs_rp_own is run by user space, on a frame whose scratch has for a slice an anchor,
 * or the one slice that it goes through.
 */
SEC("xdp")
int mdcs_rp_own(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct scratch *s = data + DADDR_OFF;

	if (data + PAYLOAD_OFF > end)
		return XDP_DROP;
	if (s->slice < FIRST_ANCHOR)
		return pass_on(s, (__u32)s->generation << 16 | s->slice);
	return pass_on(s, next_slice(s, s->slice));
}

/*
 * mdcs_rp_recirc stands behind the recirculation pair, and sends a frame to the slice that
 * follows. What other programs of the host send on the pair ends here.
 */
SEC("xdp")
int mdcs_rp_recirc(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct scratch *s = data + DADDR_OFF;

	if (data + PAYLOAD_OFF > end || *(__u64 *)data != recirc_cookie) {
		count(foreign);
		return XDP_DROP;
	}
	count(recirculated);
	return pass_on(s, next_slice(s, s->slice));
}

/* mdcs_rp_out makes one copy that of its receiver. */
SEC("xdp/devmap")
int mdcs_rp_out(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 zero = 0, device;
	struct scratch s;
	struct ipv6hdr *ip = data + IP_OFF;
	struct udphdr *udp = data + UDP_OFF;
	struct header *h = data + HEADER_OFF;
	struct counters *c;
	struct replica *r;
	struct echo *e;
	__u64 sum;

	if (data + PAYLOAD_OFF > end)
		return XDP_DROP;
	s = *(struct scratch *)(data + DADDR_OFF);
	c = bpf_map_lookup_elem(&totals, &zero);
	if (!c)
		return XDP_DROP;
	c->made++;
	device = device_of(ctx->egress_ifindex);
	if (device >= MAX_DEVICES)
		return XDP_DROP;
	r = replica_of(&s, device);
	if (!r)
		return XDP_DROP;

	if (r->whole) {
		make_whole(data);
		c->probes++;
		return XDP_PASS;
	}
	if (r->session) {
		if (r->session == s.source) {
			c->skipped++;
			return XDP_DROP;
		}
		address_to(r, data, h, udp);
		udp->check = checksum((__u64)s.sum + r->sum + tag_sum(h->hop_tag));
		if ((h->version_type & 15) == TYPE_DATA) {
			c->copies++;
			c->copy_bytes += end - data - HEADER_OFF;
		} else {
			c->heartbeats++;
		}
		return XDP_PASS;
	}

	/* The publisher's ECHO, on the device that leads to it: its own header as replicated. */
	e = bpf_map_lookup_elem(&echoes, &s.source);
	if (!e) {
		if (device == 0 && s.source) /* 0: from user space */
			c->no_echo++;
		else
			c->skipped++;
		return XDP_DROP;
	}
	if (e->device != device) {
		c->skipped++;
		return XDP_DROP;
	}
	h->version_type = FIRST_BYTE(TYPE_ECHO);
	address_to(&e->replica, data, h, udp);
	udp->len = bpf_htons(sizeof(*udp) + HEADER_SIZE);
	ip->payload_len = udp->len;
	sum = packet_sum(ip, udp) + sum_words(&ip->daddr, sizeof(ip->daddr)) + le16(udp->dest);
	udp->check = checksum(sum + sum_words(h, HEADER_SIZE));
	if (!cut(ctx, end - data - PAYLOAD_OFF))
		return XDP_DROP;
	c->echoes++;
	return XDP_PASS;
}

/* What is read of the kernel's structures; the loader finds the offsets. */
struct ns_common {
	unsigned int inum;
} __attribute__((preserve_access_index));

struct net {
	struct ns_common ns;
} __attribute__((preserve_access_index));

typedef struct {
	struct net *net;
} __attribute__((preserve_access_index)) possible_net_t;

struct net_device {
	int ifindex;
	possible_net_t nd_net;
} __attribute__((preserve_access_index));

/*
 * mdcs_rp_lost sees each batch that a device was to take: (from, to, sent, drops,
 * error). What mdcs_rp_out dropped is among the drops.
 */
SEC("raw_tp/xdp_devmap_xmit")
int mdcs_rp_lost(struct bpf_raw_tracepoint_args *ctx)
{
	const struct net_device *to = (void *)ctx->args[1];
	__u32 drops = ctx->args[3], device;

	if (!drops || BPF_CORE_READ(to, nd_net.net, ns.inum) != own_netns)
		return 0;
	device = device_of(BPF_CORE_READ(to, ifindex));
	if (device == RECIRCULATION)
		count_n(recirc_lost, drops);
	else if (device < MAX_DEVICES)
		count_n(refused, drops);
	return 0;
}

/* mdcs_rp_full sees each batch that the queue of a CPU was to take: (map, taken, drops, CPU). */
SEC("raw_tp/xdp_cpumap_enqueue")
int mdcs_rp_full(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 map = ctx->args[0], drops = ctx->args[2];

	if (drops && map == fan_cpus_id)
		count_n(queue_lost, drops);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
