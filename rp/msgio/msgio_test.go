// SPDX-License-Identifier: LGPL-3.0-or-later

package msgio

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ethereum/go-ethereum/p2p"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/proto"
)

func write(t *testing.T, w p2p.MsgWriter, code uint64, size int) {
	err := w.WriteMsg(p2p.Msg{Code: code, Size: uint32(size), Payload: bytes.NewReader(make([]byte, size))})
	if err != nil {
		t.Errorf("write: %v", err)
	}
}

func TestReadIsBounded(t *testing.T) {
	a, b := p2p.MsgPipe()
	defer a.Close()
	go func() {
		write(t, a, 1, 100)
		write(t, a, 2, 101)
		write(t, a, 3, 0)
		a.Close()
	}()
	code, payload, err := Read(b, 100)
	require.NoError(t, err)
	require.Equal(t, uint64(1), code)
	require.Len(t, payload, 100)

	_, _, err = Read(b, 100)
	require.EqualError(t, err, "malformed message: message 0x02 of 101 bytes")
	require.Equal(t, proto.ReasonMalformed, proto.ReasonOf(err))

	code, payload, err = Read(b, 100) // the one before was drained
	require.NoError(t, err)
	require.Equal(t, uint64(3), code)
	require.Empty(t, payload)

	_, _, err = Read(b, 100)
	require.ErrorIs(t, err, p2p.ErrPipeClosed)
}

func TestDrain(t *testing.T) {
	a, b := p2p.MsgPipe()
	go func() {
		for range 3 {
			write(t, a, 1, 1000)
		}
		a.Close()
	}()
	require.ErrorIs(t, Drain(b), p2p.ErrPipeClosed)
}

// A reader that stops reading fills the queue, and blocks nobody.
func TestOutboxIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := p2p.MsgPipe()
		o := NewOutbox(a, 4)
		require.True(t, o.Send(0, []byte{0}))
		synctest.Wait() // the writer has it in hand
		for i := uint64(1); i <= 4; i++ {
			require.True(t, o.Send(i, []byte{byte(i)}))
		}
		require.False(t, o.Send(5, nil))

		start := time.Now()
		o.Close(time.Second)
		require.Equal(t, time.Second, time.Since(start))
		for i := range uint64(5) { // late, but all there
			code, payload, err := Read(b, 100)
			require.NoError(t, err)
			require.Equal(t, i, code)
			require.Equal(t, []byte{byte(i)}, payload)
		}
		synctest.Wait()
	})
}

func TestOutboxEndsWithTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := p2p.MsgPipe()
		o := NewOutbox(a, 4)
		require.True(t, o.Send(0, []byte{0}))
		a.Close()
		start := time.Now()
		o.Close(time.Second)
		require.Zero(t, time.Since(start))
	})
}
