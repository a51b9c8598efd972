/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* The frames of the benchmark, and what the programs that copy without tags share. */
#ifndef BENCH_FRAME_H
#define BENCH_FRAME_H

#include "mdcs/siphash.h"

/* Sizes in bytes, Ethernet header included. The same numbers stand in packet.go. */
#define FRAME_SIZE 1200
#define HEAD_SIZE  128 /* all headers and the first two bytes of the payload */

#define MAX_SUBSCRIBERS 16384

/* One subscriber. */
struct replica {
	__u8 dst_mac[6];
	__u8 src_mac[6];
	struct address addr;
	__be16 port;
	__u16 sum; /* of address and port: what they add to the checksum */
};

/* is_udp tells whether a frame has all headers up to UDP's. */
__inline_always int is_udp(const void *data, const void *end)
{
	const struct ethhdr *eth = data;
	const struct ipv6hdr *ip = data + IP_OFF;

	return data + HEADER_OFF <= end && eth->h_proto == bpf_htons(ETH_P_IPV6) && ip->nexthdr == IPPROTO_UDP;
}

/* sum64 adds the 16-bit words of w, in memory order, to a sum that is folded later. */
__inline_always __u64 sum64(__u64 sum, __u64 w)
{
	return sum + (w >> 32) + (__u32)w;
}

__inline_always __u64 sum_endpoint(const struct address *addr, __be16 port)
{
	return (__u64)addr->word[0] + addr->word[1] + addr->word[2] + addr->word[3] + port;
}

/* fold reduces a sum to 16 bits, RFC 1071. */
__inline_always __u16 fold(__u64 sum)
{
	sum = (sum >> 32) + (__u32)sum;
	sum = (sum >> 16) + (sum & 0xffff);
	sum = (sum >> 16) + (sum & 0xffff);
	sum = (sum >> 16) + (sum & 0xffff);
	return sum;
}

/* checksum is what completes a sum; 0 would mean that there is none. */
__inline_always __u16 checksum(__u64 sum)
{
	__u16 check = ~fold(sum);

	return check ? check : 0xffff;
}

/*
 * take_over makes own address and port the source, and returns the sum of the UDP
 * packet without a destination.
 */
__inline_always __u64 take_over(void *data)
{
	struct address *from = data + SADDR_OFF, *to = data + DADDR_OFF, own = *to;
	struct ipv6hdr *ip = data + IP_OFF;
	struct udphdr *udp = data + UDP_OFF;
	__u64 sum;

	/* What the packet's own end adds moves from the destination to the source. */
	sum = (__u64)(__u16)~udp->check + (__u16)~fold(sum_endpoint(from, udp->source));
	*from = own;
	udp->source = udp->dest;
	ip->hop_limit = 64;
	return sum;
}

/* address_to makes the packet that of a replica; sum is without a destination. */
__inline_always void address_to(const struct replica *r, void *data, __u64 sum)
{
	const __u32 *from = (const void *)r;
	__u32 *macs = data;
	struct udphdr *udp = data + UDP_OFF;

	macs[0] = from[0];
	macs[1] = from[1];
	macs[2] = from[2];
	*(struct address *)(data + DADDR_OFF) = r->addr;
	udp->dest = r->port;
	udp->check = checksum(sum + r->sum);
}

#endif
