/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* Which frames are ours, and the form of the datagram in them (spec 4.4). */
#ifndef MDCS_PARSE_H
#define MDCS_PARSE_H

#include "maps.h"

/* A frame whose headers are within bounds. */
struct packet {
	struct ipv6hdr *ip;
	struct udphdr *udp;
	struct header *h;
	__u32 len;	/* bytes of the datagram */
	__u32 payload;	/* bytes of its payload */
	__u32 trailing; /* bytes of the frame behind it */
};

__inline_always int is_own_address(const struct in6_addr *addr)
{
	const __u32 *w = (const void *)addr;

	return w[0] == own_addr.word[0] && w[1] == own_addr.word[1] && w[2] == own_addr.word[2] &&
	       w[3] == own_addr.word[3];
}

/* The form of DATA: spec 4.4, first item. */
__inline_always int parse_data(const struct header *h, __u32 payload)
{
	__u32 esi = bpf_ntohs(h->esi), k = bpf_ntohs(h->k), n = bpf_ntohs(h->n);
	__u64 object = bpf_ntohl(h->object_len);

	if (bpf_ntohs(h->payload_len) != payload || payload == 0)
		return VERDICT_BAD_LENGTH;
	if (k == 0 || k > n || n > MAX_SYMBOLS || esi >= n)
		return VERDICT_MALFORMED;
	if ((object + MAX_PAYLOAD - 1) / MAX_PAYLOAD != k)
		return VERDICT_MALFORMED;
	if (esi + 1 < k && payload != MAX_PAYLOAD)
		return VERDICT_MALFORMED;
	if (esi + 1 == k && payload != object - (__u64)(k - 1) * MAX_PAYLOAD)
		return VERDICT_MALFORMED;
	return VERDICT_PASS;
}

/*
 * parse returns NOT_OURS, or the verdict on the datagram's form. p is filled in when the
 * verdict is VERDICT_PASS. Left to the kernel is what its UDP would refuse for a length, and
 * what has extension headers: a sender does not fragment. The UDP checksum is not looked at.
 */
__inline_always int parse(struct xdp_md *ctx, struct packet *p)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	__u32 udp_len;

	if (data + HEADER_OFF > end)
		return NOT_OURS;
	p->ip = data + IP_OFF;
	p->udp = data + UDP_OFF;
	p->h = data + HEADER_OFF;
	if (eth->h_proto != bpf_htons(ETH_P_IPV6) || p->ip->version != 6 || p->ip->nexthdr != IPPROTO_UDP)
		return NOT_OURS;
	if (p->udp->dest != own_port || !is_own_address(&p->ip->daddr))
		return NOT_OURS;
	udp_len = bpf_ntohs(p->udp->len);
	if (udp_len < sizeof(struct udphdr) || udp_len > bpf_ntohs(p->ip->payload_len))
		return NOT_OURS;
	if (data + UDP_OFF + udp_len > end)
		return NOT_OURS;

	p->len = udp_len - sizeof(struct udphdr);
	p->trailing = (__u32)(end - data) - (HEADER_OFF + p->len);
	if (p->len < HEADER_SIZE || data + PAYLOAD_OFF > end)
		return VERDICT_TRUNCATED;
	if (p->len > MAX_DATAGRAM)
		return VERDICT_OVERSIZED;
	if (p->h->version_type >> 4 != VERSION)
		return VERDICT_BAD_VERSION;
	if (p->h->flags & ~FLAGS_DEFINED)
		return VERDICT_MALFORMED;
	p->payload = p->len - HEADER_SIZE;
	switch (p->h->version_type & 15) {
	case TYPE_DATA:
		return parse_data(p->h, p->payload);
	case TYPE_ECHO:
	case TYPE_HEARTBEAT:
	case TYPE_LINK_HELLO:
		return p->payload == 0 ? VERDICT_PASS : VERDICT_BAD_LENGTH;
	case TYPE_PROBE:
		return p->payload >= NONCE_SIZE ? VERDICT_PASS : VERDICT_BAD_LENGTH;
	}
	return VERDICT_BAD_TYPE;
}

#endif
