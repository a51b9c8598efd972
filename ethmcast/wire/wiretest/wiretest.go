// SPDX-License-Identifier: LGPL-3.0-or-later

// Package wiretest reads the golden vectors (vectors.txt, where their format is
// explained), for the tests of every implementation of the datagram.
package wiretest

import (
	"bufio"
	_ "embed"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

//go:embed vectors.txt
var text string

// File is the content of vectors.txt.
type File struct {
	Derivations []Derivation
	Groups      []Group
	Handles     []Handle

	Incarnation ids.Incarnation // of the RP under test
	Group       ids.Group
	HandleKey   [16]byte
	Sessions    []Session
	Keys        []Key
	Routes      []Route
	Vectors     []Vector
}

// Derivation is a vector of the hop keys.
type Derivation struct {
	Self, Remote, Own, Theirs [32]byte
	Send, Receive             [16]byte
}

// Group is a vector of the group id.
type Group struct {
	NetworkID uint64
	Genesis   [32]byte
	Topic     string
	ID        ids.Group
}

// Handle is a vector of the publisher handle.
type Handle struct {
	Key      [16]byte
	Session  ids.Session
	ObjectID uint64
	Handle   uint32
}

// Session is a session of the RP under test.
type Session struct {
	Name             string
	Mesh             bool
	Index, SendIndex ids.Session
	Addr             netip.AddrPort
	Send, Receive    [16]byte
	Publish          bool
}

// Key is a group key that is installed.
type Key struct {
	Ingress ids.Incarnation
	Group   ids.Group
	Epoch   uint8
	Key     [16]byte
}

// Route is the way of an ingress RP's datagrams, by the names of sessions.
type Route struct {
	Ingress  ids.Incarnation
	From, To []string
}

// Copy is a datagram that leaves.
type Copy struct {
	Session  string
	Datagram []byte
}

// Vector is one datagram and what becomes of it.
type Vector struct {
	Name     string
	After    []string // received before
	Source   netip.AddrPort
	Verdict  wire.Verdict
	Datagram []byte
	Copies   []Copy
}

// Session returns the session of that name, and false if there is none.
func (f *File) Session(name string) (Session, bool) {
	for _, s := range f.Sessions {
		if s.Name == name {
			return s, true
		}
	}
	return Session{}, false
}

// History returns the vectors that v comes after, in order, those that they come
// after included.
func (f *File) History(v Vector) []Vector {
	var history []Vector
	for _, name := range v.After {
		for _, before := range f.Vectors {
			if before.Name == name {
				history = append(append(history, f.History(before)...), before)
			}
		}
	}
	return history
}

// Load parses vectors.txt. Errors name the line.
func Load() (*File, error) {
	p := parser{file: new(File)}
	lines := bufio.NewScanner(strings.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		if err := p.line(lines.Text()); err != nil {
			return nil, fmt.Errorf("vectors.txt:%d: %w", n, err)
		}
	}
	return p.file, lines.Err()
}

type parser struct {
	file   *File
	block  string  // word of the last line that was not indented
	target *[]byte // where indented hex goes
}

func (p *parser) line(line string) (err error) {
	if line == "" || line[0] == '#' {
		return nil
	}
	defer func() { // fields are read by helpers that panic with an error
		if e, ok := recover().(error); ok {
			err = e
		}
	}()
	f := p.file
	fields := strings.Fields(line)
	if line[0] == ' ' {
		p.indented(fields)
		return nil
	}
	word, args := fields[0], fields[1:]
	p.block = word
	if p.block == "source" || p.block == "verdict" || p.block == "after" || p.block == "datagram" || p.block == "copy" {
		p.vector(word, args)
		return nil
	}
	switch word {
	case "derive":
		f.Derivations = append(f.Derivations, Derivation{})
	case "group-id":
		f.Groups = append(f.Groups, Group{number(args[0]), [32]byte(bytes(args[1], 32)), args[2], ids.Group(index(args[3]))})
	case "handle":
		f.Handles = append(f.Handles, Handle{[16]byte(bytes(args[0], 16)), ids.Session(index(args[1])), hexNumber(args[2], 64), index(args[3])})
	case "rp":
		f.Incarnation, f.Group, f.HandleKey = ids.Incarnation(index(args[0])), ids.Group(index(args[1])), [16]byte(bytes(args[2], 16))
	case "session":
		s := Session{
			Name:      args[0],
			Mesh:      args[1] == "mesh",
			Index:     ids.Session(index(args[2])),
			SendIndex: ids.Session(index(args[3])),
			Addr:      netip.MustParseAddrPort(args[4]),
			Send:      [16]byte(bytes(args[5], 16)),
			Receive:   [16]byte(bytes(args[6], 16)),
			Publish:   len(args) > 7 && args[7] == "publish",
		}
		f.Sessions = append(f.Sessions, s)
	case "key":
		f.Keys = append(f.Keys, Key{ids.Incarnation(index(args[0])), ids.Group(index(args[1])), uint8(number(args[2])), [16]byte(bytes(args[3], 16))})
	case "route":
		r := Route{Ingress: ids.Incarnation(index(args[0]))}
		for way := range slices.Chunk(args[1:], 2) {
			if way[0] == "from" {
				r.From = append(r.From, way[1])
			} else {
				r.To = append(r.To, way[1])
			}
		}
		f.Routes = append(f.Routes, r)
	case "vector":
		f.Vectors = append(f.Vectors, Vector{Name: args[0]})
	default:
		return fmt.Errorf("unknown word %q", word)
	}
	return nil
}

// vector reads a line of the vector that was begun last.
func (p *parser) vector(word string, args []string) {
	v := &p.file.Vectors[len(p.file.Vectors)-1]
	switch word {
	case "after":
		v.After = args
	case "source":
		v.Source = netip.MustParseAddrPort(args[0])
	case "verdict":
		v.Verdict = must(wire.ParseVerdict(args[0]))
	case "datagram":
		p.target = &v.Datagram
	case "copy":
		v.Copies = append(v.Copies, Copy{Session: args[0]})
		p.target = &v.Copies[len(v.Copies)-1].Datagram
	}
}

func (p *parser) indented(fields []string) {
	if p.block != "derive" {
		*p.target = append(*p.target, bytes(fields[0], len(fields[0])/2)...)
		return
	}
	d := &p.file.Derivations[len(p.file.Derivations)-1]
	switch fields[0] {
	case "self":
		d.Self = [32]byte(bytes(fields[1], 32))
	case "remote":
		d.Remote = [32]byte(bytes(fields[1], 32))
	case "own":
		d.Own = [32]byte(bytes(fields[1], 32))
	case "theirs":
		d.Theirs = [32]byte(bytes(fields[1], 32))
	case "send":
		d.Send = [16]byte(bytes(fields[1], 16))
	case "receive":
		d.Receive = [16]byte(bytes(fields[1], 16))
	default:
		panic(fmt.Errorf("unknown word %q", fields[0]))
	}
}

func must[T any](x T, err error) T {
	if err != nil {
		panic(err)
	}
	return x
}

func bytes(s string, n int) []byte {
	b := must(hex.DecodeString(s))
	if len(b) != n {
		panic(fmt.Errorf("%d bytes where %d are expected", len(b), n))
	}
	return b
}

func number(s string) uint64              { return must(strconv.ParseUint(s, 10, 64)) }
func hexNumber(s string, bits int) uint64 { return must(strconv.ParseUint(s, 16, bits)) }
func index(s string) uint32               { return uint32(hexNumber(s, 32)) }
