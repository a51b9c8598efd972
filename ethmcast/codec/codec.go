// SPDX-License-Identifier: LGPL-3.0-or-later

// Package codec encodes and decodes the messages of the devp2p capabilities mdcs and mdcsmesh
// (SPEC 7 and 12).
//
// A message is an RLP list of its fields in order. It has one encoding: numbers with leading
// zeroes, additional elements and bytes behind the list are errors. So is what breaks a limit of
// the message. A capability that gets a new field gets a new version.
package codec

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/ethereum/go-ethereum/rlp"
)

// Message is a pointer to a struct. The RLP encoding of the struct is the payload of the message.
type Message interface {
	// Code returns the message's code. It is the same for all values, nil too.
	Code() uint64
}

// Codec knows the messages of one protocol, which are of type M.
type Codec[M Message] struct {
	most  int
	check func(M) error
	types map[uint64]reflect.Type // of the structs, by code
}

// New returns a Codec of messages that have most bytes of payload at most. Of each message it takes one
// value, which may be nil: its type is what Decode returns for its code. Two messages with one code panic.
// check says whether a decoded message keeps its limits. Its errors are those of Wrong, NotZero, AtMost and In.
func New[M Message](most int, check func(M) error, messages ...M) *Codec[M] {
	c := &Codec[M]{most, check, make(map[uint64]reflect.Type)}
	for _, m := range messages {
		if other := c.types[m.Code()]; other != nil {
			panic(fmt.Sprintf("codec: %v and %T have code 0x%02x", other, m, m.Code()))
		}
		c.types[m.Code()] = reflect.TypeOf(m).Elem()
	}
	return c
}

// Encode returns the payload of a message.
func (c *Codec[M]) Encode(m M) ([]byte, error) { return rlp.EncodeToBytes(m) }

// Decode returns the message with this code and payload. Each error is an *Error.
func (c *Codec[M]) Decode(code uint64, payload []byte) (none M, err error) {
	typ := c.types[code]
	switch {
	case typ == nil:
		return none, &Error{Code: code, Got: "unknown code"}
	case len(payload) > c.most:
		return none, Wrong("", fmt.Sprintf("%d bytes", len(payload)), "at most %d", c.most).in(code, typ)
	}
	m := reflect.New(typ).Interface().(M)
	if err := rlp.DecodeBytes(payload, m); err != nil {
		return none, notRLP(typ, err).in(code, typ)
	}
	if err := c.check(m); err != nil {
		return none, err.(*Error).in(code, typ)
	}
	return m, nil
}

// Error says why a payload is no message of the protocol.
type Error struct {
	Code    uint64
	Message string // name of the message, "" if no message has the code
	Element string // what is wrong in the message, "" for the message itself
	Got     string // what the element is
	Want    string // what it should be, "" if Got says it
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("malformed message ")
	if e.Message != "" {
		b.WriteString(e.Message)
	} else {
		fmt.Fprintf(&b, "0x%02x", e.Code)
	}
	if e.Element != "" {
		b.WriteString(": " + e.Element)
	}
	b.WriteString(": " + e.Got)
	if e.Want != "" {
		b.WriteString(", want " + e.Want)
	}
	return b.String()
}

func (e *Error) in(code uint64, typ reflect.Type) *Error {
	e.Code, e.Message = code, typ.Name()
	return e
}

// Wrong returns an Error without the message, which Decode fills in: an element is not what is wanted,
// which is want with args.
func Wrong(element string, got any, want string, args ...any) *Error {
	return &Error{Element: element, Got: fmt.Sprint(got), Want: fmt.Sprintf(want, args...)}
}

// NotZero returns an error as Wrong does if a number is 0.
func NotZero[N ~uint16 | ~uint32](element string, n N) error {
	if n == 0 {
		return Wrong(element, n, "another number")
	}
	return nil
}

// In returns an error of Wrong, NotZero or AtMost about a part of a longer element, which is format with args.
func In(err error, format string, args ...any) error {
	e := err.(*Error)
	e.Element = fmt.Sprintf(format, args...) + ": " + e.Element
	return e
}

// AtMost returns an error as Wrong does if a list, or a text, is longer than most.
func AtMost(element string, length, most int) error {
	if length > most {
		return Wrong(element, length, "at most %d", most)
	}
	return nil
}

// notRLP takes the element out of an error of package rlp, which ends with "decoding into (pkg.Join).Port".
func notRLP(typ reflect.Type, err error) *Error {
	text, element, _ := strings.Cut(err.Error(), ", decoding into ")
	return &Error{Element: strings.TrimPrefix(element, fmt.Sprintf("(%v).", typ)), Got: text}
}
