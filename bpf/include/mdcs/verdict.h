/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/* What becomes of a datagram, and what else is counted. */
#ifndef MDCS_VERDICT_H
#define MDCS_VERDICT_H

/*
 * Verdicts, spec 6.3. The values are those of wire.Verdict, in the same order;
 * they are the keys of the map verdicts. A test of the Go package compares the
 * names.
 */
enum verdict {
	VERDICT_PASS,
	VERDICT_TRUNCATED,
	VERDICT_OVERSIZED,
	VERDICT_BAD_VERSION,
	VERDICT_BAD_TYPE,
	VERDICT_BAD_LENGTH,
	VERDICT_MALFORMED,
	VERDICT_NO_SESSION,
	VERDICT_BAD_SOURCE,
	VERDICT_BAD_HOP_TAG,
	VERDICT_NO_KEY,
	VERDICT_BAD_PAYLOAD_TAG,
	VERDICT_NOT_PUBLISHER,
	VERDICT_BAD_UPSTREAM,
	VERDICT_HOP_LIMIT,
	VERDICT_OVER_RATE,
	VERDICT_FAR_AHEAD,
	VERDICT_REPLAYED,
	VERDICT_TOO_OLD,
	VERDICT_ORPHANED,
	VERDICTS,
};

/* parse() on a frame that is none of ours: it belongs to the kernel. */
#define NOT_OURS (-1)

/*
 * Counters of the fan-out, per CPU. Broadcasts that the kernel breaks off cannot be
 * counted where it happens: they are the difference of two counters, one on each side.
 */
struct counters {
	/* What left. */
	__u64 copies;	   /* DATA */
	__u64 copy_bytes;  /* bytes of UDP payload in them */
	__u64 echoes;	   /* ECHO */
	__u64 heartbeats;  /* HEARTBEAT */
	__u64 probes;	   /* PROBE, and what else came whole from user space */
	__u64 inlined;	   /* datagrams that began without the cpumap queue */

	/* Both sides of each queue. */
	__u64 queued;	   /* frames redirected to the cpumap queue */
	__u64 dequeued;	   /* frames that came out of it */
	__u64 planned;	   /* copies that slices were to make */
	__u64 made;	   /* copies that the egress program saw */
	__u64 chained;	   /* frames redirected to the recirculation pair */
	__u64 recirculated; /* frames that came out of it */

	/* What did not leave, and why. */
	__u64 refused;	   /* copies that mdcs_rp_out dropped or a device had no room for */
	__u64 queue_lost;  /* frames that the cpumap queue had no room for: the slices behind are lost */
	__u64 recirc_lost; /* frames that the recirculation pair had no room for: the slices behind are lost */
	__u64 skipped;	   /* copy to where the datagram came from, or its ECHO on another device */
	__u64 unresolved;  /* copies to receivers without a known ND entry */
	__u64 no_echo;	   /* ECHOs to publishers without a known ND entry */
	__u64 stale;	   /* frames of a slice that was reused meanwhile */
	__u64 no_replica;  /* copies beyond their slice: the cursor was wrong */
	__u64 no_trim;	   /* frames that could not be cut */
	__u64 contended;   /* window words that were never won: counted as replayed */
	__u64 cache_lost;  /* datagrams that the ring buffer had no room for */
	__u64 hello_lost;  /* hellos that the ring buffer had no room for */
	__u64 foreign;	   /* frames on the recirculation pair that are none of ours */
};

#endif
