// SPDX-License-Identifier: LGPL-3.0-or-later

// Package rlpx is RLPx, the encrypted transport of devp2p, for connections with nodes
// that nobody knows: what a header or a compressed message claims is compared with a
// limit before memory is taken for it, and a connection that says nothing keeps no
// buffer.
//
//	initiator                       recipient
//	auth  ------------------------->            EIP-8: size (2 bytes) || ECIES(RLP || zeroes)
//	      <-------------------------  ack
//	Hello <------------------------>  Hello     frames; uncompressed
//	      <------------------------>            frames; compressed by snappy from version 5 on
//
// A frame is a header of 16 bytes (3 of size) and its MAC, then code and message, padded
// to 16 bytes, and their MAC. See https://github.com/ethereum/devp2p/blob/master/rlpx.md.
package rlpx

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/hmac"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/ethereum/go-ethereum/rlp"
	"github.com/golang/snappy"
)

// MaxBase is the largest message of devp2p itself, and the largest packet of the
// handshake, in bytes.
const MaxBase = 2048

const (
	headerSize = 32 // of a frame: header and MAC
	macSize    = 16
	maxFrame   = 1<<24 - 1 // that a header can say

	// codeSize is the most that the code of a message takes in a frame.
	codeSize = 9
)

// SizeError says that a message is larger than the limit. It was not read, so that
// nothing more can be read from the connection.
type SizeError struct {
	Size  int // that the frame or the compressed message claims, bytes
	Limit int
}

func (e *SizeError) Error() string {
	return fmt.Sprintf("message of %d bytes, where %d are the most", e.Size, e.Limit)
}

// Errors of a frame.
var (
	ErrHeaderMAC = errors.New("wrong MAC of a frame header")
	ErrFrameMAC  = errors.New("wrong MAC of a frame")
	ErrCode      = errors.New("frame without a message code")
)

// Conn reads and writes messages. One goroutine may read while another one writes.
type Conn struct {
	remote *ecdsa.PublicKey
	snappy bool

	enc, dec cipher.Stream
	out, in  mac
	header   [headerSize]byte
}

// Remote returns the key of the other side, which it proved.
func (c *Conn) Remote() *ecdsa.PublicKey { return c.remote }

// SetSnappy says whether messages are compressed from now on, as both versions in Hello
// have it.
func (c *Conn) SetSnappy(on bool) { c.snappy = on }

// secrets is what a handshake results in.
type secrets struct {
	aes, mac []byte
	out, in  hash.Hash
}

func newConn(remote *ecdsa.PublicKey, s secrets) (*Conn, error) {
	enc, err := aes.NewCipher(s.aes)
	if err != nil {
		return nil, err
	}
	macs, err := aes.NewCipher(s.mac)
	if err != nil {
		return nil, err
	}
	var iv [aes.BlockSize]byte // the key is of this connection alone
	return &Conn{
		remote: remote,
		enc:    cipher.NewCTR(enc, iv[:]),
		dec:    cipher.NewCTR(enc, iv[:]),
		out:    mac{macs, s.out},
		in:     mac{macs, s.in},
	}, nil
}

// mac is the running MAC of one direction.
type mac struct {
	block cipher.Block
	hash  hash.Hash
}

// header returns the MAC of an encrypted frame header.
func (m *mac) header(header []byte) []byte { return m.update(m.hash.Sum(nil), header) }

// frame returns the MAC of an encrypted frame.
func (m *mac) frame(frame []byte) []byte {
	m.hash.Write(frame)
	sum := m.hash.Sum(nil)
	return m.update(sum, sum[:macSize])
}

func (m *mac) update(sum, seed []byte) []byte {
	var b [aes.BlockSize]byte
	m.block.Encrypt(b[:], sum[:aes.BlockSize])
	for i := range b {
		b[i] ^= seed[i]
	}
	m.hash.Write(b[:])
	return m.hash.Sum(nil)[:macSize]
}

// FrameLimit returns the size of the largest frame that has a message of limit bytes.
func (c *Conn) FrameLimit(limit int) int {
	if c.snappy {
		limit = snappy.MaxEncodedLen(limit)
	}
	return min(codeSize+limit, maxFrame)
}

// Read returns the next message, of at most limit bytes; of one that is larger it
// returns *SizeError. Before it takes memory it calls begun, and returns the error of that: when
// the header of a frame is there, with the size of the frame and 0, and when a compressed message
// is there, with the size of the frame and of the message. The payload belongs to the caller.
func (c *Conn) Read(r io.Reader, limit int, begun func(frame, message int) error) (code uint64, payload []byte, err error) {
	if _, err := io.ReadFull(r, c.header[:]); err != nil {
		return 0, nil, err
	}
	header := c.header[:aes.BlockSize]
	if !hmac.Equal(c.in.header(header), c.header[aes.BlockSize:]) {
		return 0, nil, ErrHeaderMAC
	}
	c.dec.XORKeyStream(header, header)
	size := int(header[0])<<16 | int(header[1])<<8 | int(header[2])
	if most := c.FrameLimit(limit); size > most {
		return 0, nil, &SizeError{size, most}
	}
	if begun != nil {
		if err := begun(size, 0); err != nil {
			return 0, nil, err
		}
	}
	padded := (size + aes.BlockSize - 1) / aes.BlockSize * aes.BlockSize
	frame := make([]byte, padded+macSize)
	if _, err := io.ReadFull(r, frame); err != nil {
		return 0, nil, unexpected(err)
	}
	body := frame[:padded]
	if !hmac.Equal(c.in.frame(body), frame[padded:]) {
		return 0, nil, ErrFrameMAC
	}
	c.dec.XORKeyStream(body, body)
	code, payload, err = rlp.SplitUint64(body[:size])
	if err != nil { // of an empty frame that of a connection which ended
		return 0, nil, fmt.Errorf("%w: %v", ErrCode, err)
	}
	if !c.snappy {
		if len(payload) > limit {
			return 0, nil, &SizeError{len(payload), limit}
		}
		return code, payload, nil
	}
	n, err := snappy.DecodedLen(payload)
	if err != nil {
		return 0, nil, fmt.Errorf("message 0x%02x: %w", code, err)
	}
	if n > limit {
		return 0, nil, &SizeError{n, limit}
	}
	if begun != nil {
		if err := begun(size, n); err != nil {
			return 0, nil, err
		}
	}
	payload, err = snappy.Decode(make([]byte, n), payload)
	if err != nil {
		return 0, nil, fmt.Errorf("message 0x%02x: %w", code, err)
	}
	return code, payload, nil
}

// unexpected names the end of a connection within a frame.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// buffers are those of frames that are written: a connection needs none in between.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// keptBuffer is the largest buffer that stays among them.
const keptBuffer = 16 << 10

// Write sends a message in one frame. After an error nothing more can be sent.
func (c *Conn) Write(w io.Writer, code uint64, payload []byte) error {
	b := buffers.Get().(*[]byte)
	defer func() {
		if cap(*b) <= keptBuffer {
			buffers.Put(b)
		}
	}()
	most := headerSize + codeSize + len(payload) + aes.BlockSize + macSize
	if c.snappy {
		most += snappy.MaxEncodedLen(len(payload)) - len(payload)
	}
	if cap(*b) < most {
		*b = make([]byte, 0, most)
	}
	frame := rlp.AppendUint64((*b)[:headerSize], code)
	if c.snappy {
		into := frame[len(frame) : len(frame)+snappy.MaxEncodedLen(len(payload))]
		frame = frame[:len(frame)+len(snappy.Encode(into, payload))]
	} else {
		frame = append(frame, payload...)
	}
	frame, err := c.seal(frame)
	if err != nil {
		return err
	}
	*b = frame
	_, err = w.Write(frame)
	return err
}

// seal pads and encrypts a frame, which has room for the header before what it carries.
func (c *Conn) seal(frame []byte) ([]byte, error) {
	size := len(frame) - headerSize
	if size > maxFrame {
		return nil, &SizeError{size, maxFrame}
	}
	for (len(frame)-headerSize)%aes.BlockSize != 0 {
		frame = append(frame, 0)
	}
	// The list after the size once named a capability and a context; it is constant.
	header := append(frame[:0], byte(size>>16), byte(size>>8), byte(size), 0xc2, 0x80, 0x80)
	header = append(header, make([]byte, aes.BlockSize-len(header))...)
	c.enc.XORKeyStream(header, header)
	copy(frame[aes.BlockSize:], c.out.header(header))
	body := frame[headerSize:]
	c.enc.XORKeyStream(body, body)
	return append(frame, c.out.frame(body)...), nil
}
