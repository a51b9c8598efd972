// SPDX-License-Identifier: LGPL-3.0-or-later

package objects

import (
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/stretchr/testify/require"
)

// producer returns a ring buffer and what puts records into it, many at a time.
func producer(t *testing.T) (ring *ebpf.Map, produce func(records int)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes BPF maps")
	}
	ring, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.RingBuf, MaxEntries: 1 << 20})
	require.NoError(t, err)
	t.Cleanup(func() { ring.Close() })
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreMem(asm.R10, -8, asm.R1, asm.DWord),
			asm.LoadMapPtr(asm.R1, ring.FD()),
			asm.Mov.Reg(asm.R2, asm.R10),
			asm.Add.Imm(asm.R2, -8),
			asm.Mov.Imm(asm.R3, 8),
			asm.Mov.Imm(asm.R4, 0),
			asm.FnRingbufOutput.Call(),
			asm.Mov.Imm(asm.R0, 1),
			asm.Return(),
		},
	})
	require.NoError(t, err)
	t.Cleanup(func() { program.Close() })
	frame := make([]byte, 64)
	return ring, func(records int) {
		_, err := program.Run(&ebpf.RunOptions{Data: frame, Repeat: uint32(records)})
		require.NoError(t, err)
	}
}

// TestDrain drains a ring: the function has had all that stood there.
func TestDrain(t *testing.T) {
	ring, produce := producer(t)
	var had atomic.Uint64
	r, err := ReadPolled(ring, func([]byte) { had.Add(1) })
	require.NoError(t, err)
	defer r.Close()
	for i := range uint64(20) {
		produce(1000) // or more, when a signal interrupts the program
		r.Drain()
		all := had.Load()
		require.GreaterOrEqual(t, all, 1000*(i+1))
		r.Drain()
		require.Equal(t, all, had.Load())
	}
}

// TestDrainUnderFlood drains a ring that is never empty, for each record that is read is followed by another one: it
// ends all the same, and so does Close.
func TestDrainUnderFlood(t *testing.T) {
	ring, produce := producer(t)
	for _, woken := range []bool{false, true} {
		var had atomic.Uint64
		f := func([]byte) { had.Add(1); produce(1) }
		start := ReadPolled
		if woken {
			start = func(ring *ebpf.Map, f func([]byte)) (*Reader, error) { return ReadWoken(ring, 0, f) }
		}
		r, err := start(ring, f)
		require.NoError(t, err)
		produce(1000)
		if !woken {
			r.Drain()
			require.GreaterOrEqual(t, had.Load(), uint64(1000))
		}
		require.Eventually(t, func() bool { return had.Load() > 2000 }, 10*time.Second, time.Millisecond)
		r.Close()
	}
}
