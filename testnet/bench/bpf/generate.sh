#!/bin/sh
# SPDX-License-Identifier: LGPL-3.0-or-later

# Compiles the programs for both byte orders and writes the Go of them. Needs clang-19,
# llvm-19 and libbpf-dev of Debian 12; builds do not, because the results are committed.
set -eu
cd "$(dirname "$0")"
generate() {
	go run github.com/cilium/ebpf/cmd/bpf2go \
		-cc clang-19 -strip llvm-strip-19 -target bpfel,bpfeb -go-package bpf \
		-cflags "-O2 -g -Wall -Wextra -Werror -Wno-address-of-packed-member -mcpu=v3 -I../../../bpf/include -I/usr/include/$(uname -m)-linux-gnu" \
		"$@"
}
generate -type slot -type object -type head Traffic traffic.bpf.c
generate -type replica Bare bare.bpf.c
generate -type replica TC tc.bpf.c
