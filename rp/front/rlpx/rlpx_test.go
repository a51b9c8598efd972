// SPDX-License-Identifier: LGPL-3.0-or-later

package rlpx

import (
	"bytes"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"testing"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p"
	geth "github.com/ethereum/go-ethereum/p2p/rlpx"
	"github.com/ethereum/go-ethereum/rlp"
	"github.com/golang/snappy"
	"github.com/stretchr/testify/require"
)

func newKey(t testing.TB, seed byte) *ecdsa.PrivateKey {
	key, err := crypto.ToECDSA(bytes.Repeat([]byte{seed}, 32))
	require.NoError(t, err)
	return key
}

// pair returns both ends of a connection after the handshake: rlpx here, geth's there.
func pair(t *testing.T, dial bool) (here *Conn, fd net.Conn, there *geth.Conn) {
	near, far := net.Pipe()
	t.Cleanup(func() { near.Close(); far.Close() })
	mine, theirs := newKey(t, 1), newKey(t, 2)
	done := make(chan error, 1)
	var err error
	if dial {
		there = geth.NewConn(far, nil)
		go func() { _, err := there.Handshake(theirs); done <- err }()
		here, err = Dial(near, mine, &theirs.PublicKey)
	} else {
		there = geth.NewConn(far, &mine.PublicKey)
		go func() { _, err := there.Handshake(theirs); done <- err }()
		begun, computed := 0, 0
		here, err = Accept(near, mine, func() { begun++ }, func(f func()) { computed++; f() })
		require.Equal(t, 1, begun)
		require.Equal(t, 1, computed)
	}
	require.NoError(t, err)
	require.NoError(t, <-done)
	require.True(t, here.Remote().Equal(&theirs.PublicKey))
	return here, near, there
}

// geth's implementation understands this one, and the reverse, whoever dials.
func TestSpeaksWithGeth(t *testing.T) {
	for _, dial := range []bool{true, false} {
		t.Run(fmt.Sprint("dial ", dial), func(t *testing.T) {
			here, fd, there := pair(t, dial)
			rng := rand.New(rand.NewPCG(1, 2))
			for i, size := range []int{0, 1, 15, 16, 17, 100, 5000, 128 << 10} {
				here.SetSnappy(i%2 == 1)
				there.SetSnappy(i%2 == 1)
				payload := make([]byte, size)
				for j := range payload {
					payload[j] = byte(rng.Uint32())
				}
				code := uint64(1) << (i * 8)
				errs := make(chan error, 1)
				go func() { errs <- here.Write(fd, code, payload) }()
				got, data, _, err := there.Read()
				require.NoError(t, err)
				require.NoError(t, <-errs)
				require.Equal(t, code, got)
				require.True(t, bytes.Equal(payload, data))

				go func() { _, err := there.Write(code, payload); errs <- err }()
				got, data, err = here.Read(fd, size, nil)
				require.NoError(t, err)
				require.NoError(t, <-errs)
				require.Equal(t, code, got)
				require.True(t, bytes.Equal(payload, data))
			}
		})
	}
}

// What is larger than the limit is refused before memory is taken for it: a frame by its
// header, and a compressed message by the length that it claims.
func TestSizesAreLimited(t *testing.T) {
	const limit = 1000
	for _, c := range []struct {
		name   string
		snappy bool
		send   []byte
		read   bool // the rest of the frame was read
	}{
		{"frame", false, make([]byte, limit+codeSize+1), false},
		{"message", false, make([]byte, limit+1), true},
		{"frame of a compressed message", true, make([]byte, 10*limit), false},
		{"decompressed message", true, bytes.Repeat([]byte{1}, 16<<20-1), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			here, fd, there := pair(t, false)
			send := c.send
			if c.snappy {
				here.SetSnappy(true)
				if c.read {
					send = snappy.Encode(nil, send)[:500] // geth would send all 786,948 bytes
				}
			}
			go func() { _, _ = there.Write(0x10, send) }() // blocks: not all is read
			begun := 0
			_, _, err := here.Read(fd, limit, func(_, message int) error {
				require.Zero(t, message, "it is too large")
				begun++
				return nil
			})
			size, ok := errors.AsType[*SizeError](err)
			require.True(t, ok, "%v", err)
			require.Greater(t, size.Size, size.Limit)
			require.Equal(t, c.read, begun == 1)
		})
	}
}

// A Ping that claims 16 MB is refused by its claim.
func TestClaimsTakeNoMemory(t *testing.T) {
	bomb := append([]byte{0xff, 0xff, 0xff, 0x07}, make([]byte, 900)...) // claims 16 MB - 1
	n, err := snappy.DecodedLen(bomb)
	require.NoError(t, err)
	require.Equal(t, 16<<20-1, n)
	here, there := agreed(t, newKey(t, 1), newKey(t, 2))
	here.SetSnappy(true)
	var wire bytes.Buffer
	require.NoError(t, there.Write(&wire, PingMsg, bomb))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, _, err = here.Read(&wire, 1000, nil)
	runtime.ReadMemStats(&after)
	require.ErrorAs(t, err, new(*SizeError))
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64<<10))
}

func TestForgedFrames(t *testing.T) {
	for name, want := range map[string]error{"header": ErrHeaderMAC, "frame": ErrFrameMAC, "short": io.ErrUnexpectedEOF} {
		t.Run(name, func(t *testing.T) {
			mine, theirs := newKey(t, 1), newKey(t, 2)
			here, there := agreed(t, mine, theirs)
			var wire bytes.Buffer
			require.NoError(t, there.Write(&wire, 1, []byte("hello")))
			b := wire.Bytes()
			switch name {
			case "header":
				b[0] ^= 1
			case "frame":
				b[headerSize] ^= 1
			case "short":
				b = b[:len(b)-1]
			}
			_, _, err := here.Read(bytes.NewReader(b), 100, nil)
			require.ErrorIs(t, err, want)
		})
	}
}

// A frame that has no message code is a fault of the other side, not the end of the
// connection.
func TestFramesWithoutCode(t *testing.T) {
	for name, body := range map[string]string{"empty": "", "a code that is cut off": "\x88\x01", "a list": "\xc0", "two zeroes": "\x82\x00\x01"} {
		t.Run(name, func(t *testing.T) {
			here, there := agreed(t, newKey(t, 1), newKey(t, 2))
			frame, err := there.seal(append(make([]byte, headerSize), body...))
			require.NoError(t, err)
			_, _, err = here.Read(bytes.NewReader(frame), 100, nil)
			require.ErrorIs(t, err, ErrCode)
			require.NotErrorIs(t, err, io.EOF)
			require.NotErrorIs(t, err, io.ErrUnexpectedEOF)
		})
	}
}

// agreed returns both ends of a connection without a handshake.
func agreed(t testing.TB, a, b *ecdsa.PrivateKey) (here, there *Conn) {
	var err error
	here, err = agree(a, &b.PublicKey, &b.PublicKey, [32]byte{1}, [32]byte{2}, []byte{3}, []byte{4}, false)
	require.NoError(t, err)
	there, err = agree(b, &a.PublicKey, &a.PublicKey, [32]byte{1}, [32]byte{2}, []byte{3}, []byte{4}, true)
	require.NoError(t, err)
	return here, there
}

func TestPacketsAreLimited(t *testing.T) {
	key := newKey(t, 1)
	begun := 0
	_, err := Accept(readWriter{bytes.NewReader([]byte{0x08, 0x01})}, key, func() { begun++ }, nil)
	require.ErrorAs(t, err, new(*SizeError))
	require.Zero(t, begun)
	_, err = Accept(readWriter{bytes.NewReader([]byte{0x08, 0x00, 1})}, key, func() { begun++ }, nil)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	require.Equal(t, 1, begun)
}

// Packets of later versions have more elements, and padding (EIP-8).
func TestLaterPackets(t *testing.T) {
	mine, theirs := newKey(t, 1), newKey(t, 2)
	var m struct {
		Signature [65]byte
		Key       [64]byte
		Nonce     [32]byte
		Version   uint64
		More      string
	}
	m.Version, m.More, m.Key = 56, "more", keyBytes(theirs)
	ephemeral := newKey(t, 3)
	static, err := shared(theirs, &mine.PublicKey)
	require.NoError(t, err)
	signature, err := crypto.Sign(static, ephemeral) // the nonce is zero
	require.NoError(t, err)
	copy(m.Signature[:], signature)
	packet, err := seal(&m, &mine.PublicKey)
	require.NoError(t, err)
	c, _, err := accept(packet, mine)
	require.NoError(t, err)
	require.True(t, c.Remote().Equal(&theirs.PublicKey))
}

func TestHello(t *testing.T) {
	mine, theirs := newKey(t, 1), newKey(t, 2)
	hello := NewHello(theirs, "light", []p2p.Cap{{Name: "mdcs", Version: 1}})
	payload, err := rlp.EncodeToBytes(hello)
	require.NoError(t, err)
	got, err := ParseHello(payload, &theirs.PublicKey)
	require.NoError(t, err)
	got.Rest = nil
	require.Equal(t, hello, got)
	_, err = ParseHello(payload, &mine.PublicKey)
	require.ErrorIs(t, err, p2p.DiscUnexpectedIdentity)
	_, err = ParseHello([]byte{0xff}, &theirs.PublicKey)
	require.ErrorIs(t, err, p2p.DiscProtocolError)

	for _, c := range []struct {
		code    uint64
		payload []byte
		want    error
	}{
		{HelloMsg, payload, nil},
		{DisconnectMsg, Disconnect(p2p.DiscTooManyPeers), p2p.DiscTooManyPeers},
		{DisconnectMsg, []byte{4}, p2p.DiscTooManyPeers},
		{DisconnectMsg, []byte{0xff}, p2p.DiscReason(p2p.DiscInvalid)},
		{PingMsg, []byte{0xc0}, p2p.DiscProtocolError},
		{HelloMsg, make([]byte, MaxBase+1), new(SizeError)},
	} {
		here, there := agreed(t, mine, theirs)
		var wire bytes.Buffer
		require.NoError(t, there.Write(&wire, c.code, c.payload))
		_, err := here.ReadHello(&wire)
		if _, size := c.want.(*SizeError); size {
			require.ErrorAs(t, err, new(*SizeError))
		} else {
			require.ErrorIs(t, err, c.want)
		}
		require.Equal(t, c.want == nil, here.snappy)
	}
}

type readWriter struct{ io.Reader }

func (readWriter) Write(b []byte) (int, error) { return len(b), nil }

// Whatever comes as a frame, a message is within the limit, and what another one wrote
// is read back.
func FuzzFrame(f *testing.F) {
	f.Add([]byte("hello"), uint64(1), false, []byte{})
	f.Add(make([]byte, 3000), uint64(1<<40), true, []byte{0, 0, 1})
	f.Fuzz(func(t *testing.T, payload []byte, code uint64, compress bool, flip []byte) {
		const limit = 2000
		here, there := agreed(t, newKey(t, 1), newKey(t, 2))
		here.SetSnappy(compress) // the other one does not compress: it sends what the fuzzer wants
		var wire bytes.Buffer
		require.NoError(t, there.Write(&wire, code, payload))
		b := wire.Bytes()
		for i := 0; i+2 < len(flip); i += 3 {
			b[(int(flip[i])<<8|int(flip[i+1]))%len(b)] ^= flip[i+2]
		}
		changed := !bytes.Equal(b, func() []byte {
			_, again := agreed(t, newKey(t, 1), newKey(t, 2))
			var w bytes.Buffer
			require.NoError(t, again.Write(&w, code, payload))
			return w.Bytes()
		}())
		got, data, err := here.Read(bytes.NewReader(b), limit, nil)
		switch {
		case err != nil && !changed && !compress:
			require.ErrorAs(t, err, new(*SizeError))
			require.Greater(t, len(payload), limit)
		case err == nil:
			require.False(t, changed, "a changed frame passed")
			require.Equal(t, code, got)
			require.LessOrEqual(t, len(data), limit)
			if !compress {
				require.True(t, bytes.Equal(payload, data))
			}
		}
	})
}

// Whatever is in a packet of the handshake, encrypted for this node or not, it is
// refused or leads to a connection.
func FuzzHandshake(f *testing.F) {
	mine, theirs := newKey(f, 1), newKey(f, 2)
	list, err := rlp.EncodeToBytes(&auth{Key: keyBytes(theirs), Version: 4})
	require.NoError(f, err)
	f.Add(list, true)
	f.Add([]byte{0x01, 0x00, 4}, false)
	f.Fuzz(func(t *testing.T, b []byte, encrypt bool) {
		if encrypt {
			packet, err := seal(rlp.RawValue(b), &mine.PublicKey)
			if err != nil || len(packet) > 2+MaxBase {
				return
			}
			b = packet
		}
		c, err := Accept(readWriter{bytes.NewReader(b)}, mine, nil, nil)
		if (c == nil) == (err == nil) {
			t.Fatal(c, err)
		}
		_, _ = Dial(readWriter{bytes.NewReader(b)}, mine, &theirs.PublicKey) // nor does it panic
	})
}

func FuzzHello(f *testing.F) {
	theirs := newKey(f, 2)
	payload, err := rlp.EncodeToBytes(NewHello(theirs, "light", []p2p.Cap{{Name: "mdcs", Version: 1}}))
	require.NoError(f, err)
	f.Add(payload)
	f.Fuzz(func(t *testing.T, b []byte) {
		ParseDisconnect(b)
		h, err := ParseHello(b, &theirs.PublicKey)
		if err == nil && len(h.ID) != keySize {
			t.Fatalf("id of %d bytes", len(h.ID))
		}
	})
}
