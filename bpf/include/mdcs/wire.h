/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* The datagram, spec 4, and the frame around it. */
#ifndef MDCS_WIRE_H
#define MDCS_WIRE_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define __inline_always static __always_inline

/*
 * at_most makes the 64-bit variable n no more than the constant max, by a comparison of
 * the very register that is used then. Before Linux 6.8 the verifier forgets on a 32-bit
 * move that two registers are equal, and the compiler may compare one and use the other.
 */
#define at_most(n, max) asm volatile("if %0 <= %1 goto +1\n\t%0 = %1" : "+r"(n) : "i"(max))

/* Sizes in bytes. */
#define HEADER_SIZE  64
#define MAX_DATAGRAM 1232
#define MAX_PAYLOAD  1168
#define NONCE_SIZE   16
#define HELLO_SIZE   16

/* Frame offsets: Ethernet, IPv6 without extension headers, UDP, datagram. */
#define IP_OFF	    14
#define SADDR_OFF   22
#define DADDR_OFF   38
#define UDP_OFF	    54
#define HEADER_OFF  62
#define PAYLOAD_OFF (HEADER_OFF + HEADER_SIZE)

/* Constants, spec 11. */
#define VERSION		  1
#define MAX_SYMBOLS	  2048
#define INITIAL_HOP_LIMIT 32
#define MAX_AHEAD	  65536
#define AHEAD_EACH_NS	  1000
#define MAX_SEQUENCE	  ((1ULL << 44) - 1)
#define HEARTBEAT_GAP_NS  100000000ULL
#define RESTART_AFTER_NS  750000000ULL
#define BEATS_KEPT	  24
#define WINDOW_WORDS	  128 /* of 32 sequences each */

/* Types, spec 4.2, and flags, spec 4.3. */
#define TYPE_DATA	1
#define TYPE_ECHO	2
#define TYPE_HEARTBEAT	3
#define TYPE_PROBE	4
#define TYPE_LINK_HELLO	5
#define FLAGS_DEFINED	0x03

#define FIRST_BYTE(type) (VERSION << 4 | (type))

/* The header, spec 4.1. Integers are in network byte order, tags are bytes. */
struct header {
	__u8 version_type;
	__u8 flags;
	__u8 hop_limit;
	__u8 epoch;
	__be32 session;
	__be32 group;
	__be32 ingress;
	__be64 sequence;
	__be32 handle;
	__be16 esi;
	__be16 k;
	__be16 n;
	__be16 payload_len;
	__be32 object_len;
	__be64 object_id;
	__u64 payload_tag;
	__u64 hop_tag;
} __attribute__((packed));

/* Tags and checksums are computed over little-endian words on every machine. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define le64(x) (x)
#define le32(x) (x)
#define le16(x) (x)
#else
#define le64(x) __builtin_bswap64(x)
#define le32(x) __builtin_bswap32(x)
#define le16(x) __builtin_bswap16(x)
#endif

/* A copied address compares and copies by words. */
struct address {
	__u32 word[4];
};

__inline_always int same_address(const struct address *a, const struct address *b)
{
	return a->word[0] == b->word[0] && a->word[1] == b->word[1] && a->word[2] == b->word[2] &&
	       a->word[3] == b->word[3];
}

#endif
