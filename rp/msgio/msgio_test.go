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
	"github.com/ethmcast/mdcs/rp/front/fronttest"
	"github.com/ethmcast/mdcs/rp/front/rlpx"
)

// A message beyond the limit is a violation, and the last one.
func TestReceiveIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := p2p.MsgPipe()
		defer a.Close()
		c := &limited{Conn: fronttest.Conn{RW: b}, limit: 100}
		in := Receive(c, func(code uint64, payload []byte) (int, error) { return len(payload), nil }, nil)
		go func() {
			for _, size := range []int{100, 101} {
				_ = a.WriteMsg(p2p.Msg{Size: uint32(size), Payload: bytes.NewReader(make([]byte, size))})
			}
		}()
		require.Equal(t, Received[int]{Message: 100}, <-in)
		got := <-in
		require.Equal(t, proto.ReasonMalformed, proto.ReasonOf(got.Err))
		require.EqualError(t, got.Err, "malformed message: message of 101 bytes, where 100 are the most")
		_, more := <-in
		require.False(t, more)
	})
}

// limited is a connection with a limit of messages.
type limited struct {
	fronttest.Conn
	limit int
}

func (c *limited) ReadMsg() (uint64, []byte, error) {
	code, payload, err := c.Conn.ReadMsg()
	if len(payload) > c.limit {
		return 0, nil, &rlpx.SizeError{Size: len(payload), Limit: c.limit}
	}
	return code, payload, err
}

// A reader that stops reading fills the queue, and blocks nobody.
func TestOutboxIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := p2p.MsgPipe()
		o := NewOutbox(&fronttest.Conn{RW: a}, 4, 100)
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
			code, payload, err := (&fronttest.Conn{RW: b}).ReadMsg()
			require.NoError(t, err)
			require.Equal(t, i, code)
			require.Equal(t, []byte{byte(i)}, payload)
		}
		synctest.Wait()
	})
}

// Large messages fill the queue before many do; one that is larger than the queue finds
// room when the queue is empty.
func TestOutboxIsBoundedInBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := p2p.MsgPipe()
		defer a.Close()
		o := NewOutbox(&fronttest.Conn{RW: a}, 4, 100)
		require.True(t, o.Send(0, make([]byte, 1000)))
		require.False(t, o.Send(1, []byte{1}))
		_, payload, err := (&fronttest.Conn{RW: b}).ReadMsg()
		require.NoError(t, err)
		require.Len(t, payload, 1000)
		synctest.Wait()
		require.True(t, o.Send(2, make([]byte, 60)))
		require.True(t, o.Send(3, make([]byte, 40)))
		require.False(t, o.Send(4, []byte{1}))
		a.Close()
		o.Close(time.Second)
	})
}

func TestOutboxEndsWithTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := p2p.MsgPipe()
		o := NewOutbox(&fronttest.Conn{RW: a}, 4, 100)
		require.True(t, o.Send(0, []byte{0}))
		a.Close()
		start := time.Now()
		o.Close(time.Second)
		require.Zero(t, time.Since(start))
	})
}
