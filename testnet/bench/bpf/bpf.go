// SPDX-License-Identifier: LGPL-3.0-or-later

// Package bpf holds the kernel programs that only the benchmark needs, compiled for
// both byte orders: generator and sink (traffic.bpf.c), and two ways to copy
// datagrams without tags, by XDP (bare.bpf.c) and by tc (tc.bpf.c).
package bpf

//go:generate ./generate.sh
