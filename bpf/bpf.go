// SPDX-License-Identifier: LGPL-3.0-or-later

// Package bpf holds the replication point's kernel programs (rp.bpf.c), compiled
// for both byte orders, and the Go of their maps.
package bpf

//go:generate ./generate.sh
