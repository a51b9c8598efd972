#!/bin/sh
# SPDX-License-Identifier: LGPL-3.0-or-later

# Compiles rp.bpf.c for both byte orders and writes the Go of it. Needs clang-19,
# llvm-19 and libbpf-dev of Debian 12; builds do not, because the results are committed.
set -eu
cd "$(dirname "$0")"
exec go run github.com/cilium/ebpf/cmd/bpf2go \
	-cc clang-19 -strip llvm-strip-19 -target bpfel,bpfeb -go-package bpf \
	-type policer -type session -type session_state -type stream_key -type stream -type group_key -type stream_state \
	-type replica -type echo -type slice -type counters -type branch_key -type branch -type record -type hello -type life -type verdict \
	-cflags "-O2 -g -Wall -Wextra -Werror -Wno-address-of-packed-member -mcpu=v3 -Iinclude -I/usr/include/$(uname -m)-linux-gnu" \
	Rp rp.bpf.c
