/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* Writing: what all copies of a datagram have in common, and what each has of its own. */
#ifndef MDCS_REWRITE_H
#define MDCS_REWRITE_H

#include "verify.h"

/*
 * What the fan-out remembers of a datagram stands in its IPv6 destination address,
 * which every copy overwrites.
 */
struct scratch {
	__u32 stamp;	 /* numbers this CPU's broadcasts */
	__u16 slice;	 /* that is being fanned out */
	__u16 generation; /* of the slice */
	__u32 source;	 /* session that the datagram came from */
	__u16 sum;	 /* checksum so far: without destination, session, hop tag */
	__u8 cpu;	 /* that the next slices are queued to */
	__u8 is_inline;	 /* slices follow each other without the queue */
};

_Static_assert(sizeof(struct scratch) == sizeof(struct in6_addr), "the scratch is an address");

/*
 * Where a whole frame of user space keeps its destination address until it leaves, in
 * place of the scratch: in bytes 24-39 of the header, which are zero in a PROBE.
 */
#define WHOLE_OFF (HEADER_OFF + 24)

/* fold reduces a sum of 32-bit words to the 16 bits of a checksum. */
__inline_always __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* checksum is what stands in the UDP header for a sum; 0 would mean none (RFC 8200). */
__inline_always __u16 checksum(__u64 sum)
{
	__u16 c = ~fold(sum);

	return le16(c ? c : 0xffff);
}

/* sum_words adds the little-endian 32-bit words of n bytes. */
__inline_always __u64 sum_words(const void *from, int n)
{
	const __u32 *w = from;
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < n / 4; i++)
		sum += le32(w[i]);
	return sum;
}

/* stamp makes a publisher's DATA the ingress RP's own. spec: 5.4 */
__inline_always void stamp(struct header *h, const struct outcome *o)
{
	h->hop_limit = INITIAL_HOP_LIMIT;
	h->ingress = bpf_htonl(own_incarnation);
	h->sequence = bpf_cpu_to_be64(__sync_fetch_and_add(&o->stream->newest, 1) + 1);
	h->handle = publisher_handle(handle_key.k0, handle_key.k1, h);
}

/* number makes a HEARTBEAT the next one that this RP sends. spec: 5.7 */
__inline_always void number(struct header *h, const struct key *key)
{
	__u32 zero = 0;
	struct life *l = bpf_map_lookup_elem(&lives, &zero);

	if (!l)
		return;
	h->object_id = bpf_cpu_to_be64(__sync_fetch_and_add(&l->beats, 1) + 1);
	h->payload_tag = heartbeat_tag(key, h);
}

/* packet_sum is the sum of the UDP pseudo-header, the UDP header without checksum and destination, the source address. */
__inline_always __u64 packet_sum(const struct ipv6hdr *ip, const struct udphdr *udp)
{
	return sum_words(&ip->saddr, sizeof(ip->saddr)) + le16(udp->source) + 2 * (__u64)le16(udp->len) +
	       le16(bpf_htons(IPPROTO_UDP));
}

/* own_headers writes the source, and the checksum so far into the scratch. sum is that of the payload. */
__inline_always void own_headers(struct packet *p, struct scratch *s, __u64 sum)
{
	__u32 *from = (void *)&p->ip->saddr;
	const __u8 *h = (const void *)p->h;

	*(__be32 *)p->ip = bpf_htonl(6U << 28);
	p->ip->payload_len = p->udp->len;
	from[0] = own_addr.word[0];
	from[1] = own_addr.word[1];
	from[2] = own_addr.word[2];
	from[3] = own_addr.word[3];
	p->udp->source = own_port;
	/* Without session (bytes 4-7) and hop tag (56-63). */
	s->sum = fold(sum + packet_sum(p->ip, p->udp) + sum_words(h, 4) + sum_words(h + 8, 48));
}

/* address_to writes a replica's addresses and its session, and seals the header with its hop tag. */
__inline_always void address_to(const struct replica *r, void *data, struct header *h, struct udphdr *udp)
{
	__u16 *mac = data;
	const __u16 *dst = (const void *)r->dst_mac, *src = (const void *)r->src_mac;

	mac[0] = dst[0];
	mac[1] = dst[1];
	mac[2] = dst[2];
	mac[3] = src[0];
	mac[4] = src[1];
	mac[5] = src[2];
	((struct ipv6hdr *)(data + IP_OFF))->hop_limit = r->hop_limit; /* no part of the checksum */
	*(struct address *)(data + DADDR_OFF) = r->addr;
	udp->dest = r->port;
	h->session = r->send_session;
	h->hop_tag = hop_tag(&r->key, h);
}

/* make_whole puts the destination address of a whole frame into its place. */
__inline_always void make_whole(void *data)
{
	struct address *kept = data + WHOLE_OFF;

	*(struct address *)(data + DADDR_OFF) = *kept;
	*kept = (struct address){};
}

__inline_always __u64 tag_sum(__u64 tag)
{
	tag = le64(tag);
	return (__u64)(__u32)tag + (tag >> 32);
}

#endif
