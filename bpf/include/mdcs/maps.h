/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */

/*
 * The maps between the programs and user space. Values that user space replaces
 * are never written here; what the programs write stands in maps of its own,
 * which user space maps into its memory.
 */
#ifndef MDCS_MAPS_H
#define MDCS_MAPS_H

#include "siphash.h"
#include "verdict.h"

/* Options, set before loading. */
const volatile struct address own_addr; /* network byte order */
const volatile __be16 own_port;
const volatile __u32 own_incarnation;
const volatile struct key handle_key;
const volatile __u64 quiet_ns;	/* without datagrams before one goes inline; ~0 for never */
const volatile __u32 own_netns;	  /* inode of the network namespace */
const volatile __u32 fan_cpus_id; /* of the map: programs of other types cannot refer to it */
const volatile __u8 cache_on;	/* copy what passes to the ring buffer cache */
const volatile __u8 hello_on;	/* hand what LINK_HELLOs say to the ring buffer hellos */
const volatile __u64 recirc_cookie; /* first 8 bytes of the frames that we put into the recirculation pair */

#define MAX_GROUPS    16 /* of a session */
#define MAX_UPSTREAMS 6	 /* of a stream */
#define MAX_DEVICES   8
#define SLICE_SIZE    8
#define INDEXES	      65536 /* of slices and anchors */

/* Roles of a session, values as datapath.Role. */
#define ROLE_PEER    1
#define ROLE_MESH    2
#define ROLE_CHANNEL 3

/* A limit. spec: 6.7 */
struct policer {
	__u64 rate;	 /* units per second, 0: no limit */
	__u64 tolerance; /* ns that due may lie in the future */
};

/* Sessions by index. */
struct session {
	struct key key; /* of datagrams from it */
	struct address addr;
	struct policer datagrams;
	struct policer copies; /* in bytes of UDP payload */
	__u32 state;	       /* index in states */
	__be16 port;
	__u8 role;
	__u8 groups_len; /* that it may publish to; 0 when it may not publish */
	__u32 groups[MAX_GROUPS];
	__u32 site; /* index in egresses of the share that its datagrams use; 0: none */

	/* What the programs do not read: user space that takes over learns from it. */
	__be32 send_session;
	struct key send_key;
	__u64 egress;
	__u64 egress_burst;
	__u32 rate;
	__u32 burst;
	__u8 subscribed; /* number of groups */
	__u8 publish;
	__u8 silent;
	__u8 pad[5];
	__u8 zone[16]; /* of the address, padded with 0 */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct session);
} sessions SEC(".maps");

/*
 * What moves of a session. There are more than sessions: those that ended keep theirs for a while. So one that a
 * program holds is no other session's, while an element of the map sessions may become that at any time.
 */
struct session_state {
	__u64 session;	     /* whose it is */
	__u64 received;
	__u64 heard;	     /* ns, CLOCK_MONOTONIC */
	__u64 datagrams_due; /* ns, when the policer's bucket is full again */
	__u64 copies_due;
	__u64 hellos; /* sent, by user space */
	__u64 beats;  /* HEARTBEATs taken: the highest number, and which before it. spec: 5.7 */
	__u64 window[WINDOW_WORDS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 20480);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct session_state);
} states SEC(".maps");

/* Streams by ingress RP and group, the own ones too. */
struct stream_key {
	__u32 ingress;
	__u32 group;
};

/* While a key changes, its epoch is 0. */
struct group_key {
	struct key key;
	__u64 epoch; /* + 1; 0: none */
	__u64 order; /* of installation */
};

/* An element of this map may become another stream's while a program reads it: it says only where to look. */
struct stream {
	__u32 state; /* index in stream_states */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct stream_key);
	__type(value, struct stream);
} streams SEC(".maps");

/* A word of a number of HEARTBEATs, less than 2^40, holds the index of a session's state beside it. */
#define FOLLOWED_STATE_BITS 24

/*
 * A stream. User space changes words of it in place, and gives it to another stream only a while after the one that
 * it belonged to has ended: so all that a program reads of it is of the stream that id names.
 */
struct stream_state {
	struct stream_key id;
	struct group_key keys[2];
	__u64 anchor;	/* where its datagrams go, index in nexts */
	__u64 cpu;	/* that fans them out, index in fan_cpus */
	__u64 newest;	/* sequence assigned, of an own stream; else known by DATA or HEARTBEAT */
	__u64 moved;	/* ns, when newest was raised */
	__u64 top;	/* highest sequence ever known */
	__u64 top_at;	/* ns, when it came */
	__u64 beat_due; /* ns, when the next HEARTBEAT may pass */
	__u64 known;	/* not 0: newest is */
	__u64 parent;	/* session whose HEARTBEATs are believed, by user space; 0: none */
	__u64 followed; /* the highest number of a HEARTBEAT that was: number << FOLLOWED_STATE_BITS | state of its session */
	__u64 upstreams[MAX_UPSTREAMS]; /* sessions that are accepted from, by user space; 0: none */
	__u64 window[WINDOW_WORDS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct stream_state);
} stream_states SEC(".maps");

/*
 * The branches of the routes, by ingress RP and session. The programs do not read them:
 * user space that takes over learns from them.
 */
struct branch_key {
	__u32 ingress;
	__u32 session;
};

struct branch {
	__u32 groups[MAX_GROUPS];
	__u32 groups_len;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct branch_key);
	__type(value, struct branch);
} branches SEC(".maps");

/* Where one copy goes: one cache line. */
struct replica {
	struct key key; /* of datagrams to it */
	struct address addr;
	__be32 send_session;
	__u32 session; /* own index; 0 for the ECHO of whoever published */
	__u16 sum;     /* of address, port and session: what they add to the checksum */
	__be16 port;
	__u8 dst_mac[6];
	__u8 src_mac[6];
	__u8 hop_limit; /* of the IPv6 packet */
	__u8 whole;	/* the frame is complete, but for its destination address */
	__u8 pad[2];
};

_Static_assert(sizeof(struct replica) == 64, "a replica is one cache line");

/* The publishers' own replicas, by session index. */
struct echo {
	struct replica replica;
	__u32 device;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct echo);
} echoes SEC(".maps");

/*
 * A slice: the receivers that one broadcast reaches. It is not changed while
 * frames may refer to it; generation tells those that took too long. The replicas
 * stand in the order of the target map's slots, those of one device together:
 * the n-th copy on device d is replica first[d] + n.
 */
struct slice {
	__u16 generation;
	__u8 len;
	__u8 chained; /* its last slot is the recirculation pair */
	__u8 first[MAX_DEVICES];
	__u8 pad[52];
	struct replica replicas[SLICE_SIZE];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__type(value, struct slice);
} slices SEC(".maps");

/* The devices of each slice's copies, and the recirculation pair. */
struct target_map {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, SLICE_SIZE + 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct bpf_devmap_val));
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 8192);
	__type(key, __u32);
	__array(values, struct target_map);
} targets SEC(".maps");

/*
 * What follows a slice, and what an anchor stands for. Indexes from FIRST_ANCHOR on
 * are anchors: names of chains that stay when the chain changes. A reference is
 * generation << 16 | index, 0 for the end; that of an anchor is its index. Bits 32-62 of an anchor are the number of
 * receivers that the chain lacks because their ND entry is unknown, bit 63 says that
 * its slices are too many to follow each other without the queue.
 */
#define FIRST_ANCHOR 0xe000
#define LONG_CHAIN   (1ULL << 63)

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, INDEXES);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} nexts SEC(".maps");

/* How many receivers the chains behind each anchor have, by index from FIRST_ANCHOR on: those that they lack, too. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, INDEXES - FIRST_ANCHOR);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} receivers SEC(".maps");

/* How many frames went through each slice. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, INDEXES);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} passes SEC(".maps");

/* Interface index by device number; 0: no device has the number. The recirculation pair is the last. */
#define RECIRCULATION MAX_DEVICES

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_DEVICES + 1);
	__type(key, __u32);
	__type(value, __u32);
} devices SEC(".maps");

/* device_of returns the number of an interface, more than RECIRCULATION for one that is not ours. */
static __always_inline __u32 device_of(__u32 ifindex)
{
	__u32 number, key, *index;

	for (number = 0; number <= RECIRCULATION; number++) {
		key = number;
		index = bpf_map_lookup_elem(&devices, &key);
		if (index && *index == ifindex)
			break;
	}
	return number;
}

/* The copy that is next on a device: the kernel does not tell the slot. */
struct cursor {
	__u32 stamp;
	__u32 next;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_DEVICES);
	__type(key, __u32);
	__type(value, struct cursor);
} cursors SEC(".maps");

/* Numbers the broadcasts of a CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} stamps SEC(".maps");

/* When the newest datagram was accepted, ns. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} pace SEC(".maps");

/* The queue in front of the fan-out, by CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_CPUMAP);
	__uint(max_entries, 256);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct bpf_cpumap_val));
} fan_cpus SEC(".maps");

/* Datagrams received, by verdict. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VERDICTS);
	__type(key, __u32);
	__type(value, __u64);
} verdicts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} totals SEC(".maps");

/* A datagram for user space, as it is replicated but for session and hop tag. */
struct record {
	__u32 session; /* that it came from */
	__u32 len;     /* bytes of datagram */
	__u8 datagram[MAX_DATAGRAM + 8];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} cache SEC(".maps");

/* What a LINK_HELLO said. */
struct hello {
	__u64 at; /* CLOCK_MONOTONIC in ns, when it came */
	__u32 session; /* that it came by */
	__u8 hello[HELLO_SIZE];
	__u32 reserved;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} hellos SEC(".maps");

/*
 * The policer of all copies, at index 0, and those of the sites' shares. User space changes
 * their rates at any time, and charges the first one, too. There are more than sites: those
 * that left keep theirs for a while. spec: 6.7
 */
struct egress {
	struct policer copies; /* in bytes of UDP payload */
	__u64 due;	       /* ns, when its bucket is full again */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 20480);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct egress);
} egresses SEC(".maps");

/*
 * Who filled the maps, and until when they hold: user space moves the time on
 * while it lives.
 */
struct life {
	__u64 valid_until; /* ns, CLOCK_MONOTONIC */
	__u64 beats;	   /* number of the last HEARTBEAT that was sent */
	struct key handle_key;
	__u32 incarnation;
	__be16 port;	     /* of data */
	__u8 pad[2];
	struct address addr;
	__u8 owner[16];	     /* which RP it is */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct life);
} lives SEC(".maps");

/* Without a variable the compiler would not describe these types to user space. */
const struct record *record_type __attribute__((unused));
const struct hello *hello_type __attribute__((unused));
const enum verdict *verdict_type __attribute__((unused));

__inline_always void count_verdict(__u32 v)
{
	__u64 *n = bpf_map_lookup_elem(&verdicts, &v);

	if (n)
		__sync_fetch_and_add(n, 1); /* exact even where the program may be preempted */
}

#define count_n(field, n)                                                      \
	do {                                                                   \
		__u32 zero_ = 0;                                               \
		struct counters *c_ = bpf_map_lookup_elem(&totals, &zero_);    \
		if (c_)                                                        \
			c_->field += (n);                                      \
	} while (0)
#define count(field) count_n(field, 1)

#endif
