// SPDX-License-Identifier: LGPL-3.0-or-later

package admin

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/rp/peerside"
)

const (
	// longestBan is the longest that may be set: the list of [admission] is for those who
	// are to stay out for good.
	longestBan = 365 * 24 * time.Hour

	// widestBan is the length of the shortest prefix that may be banned.
	widestBan = 16

	// drainWait is how long drain waits for members to go: less than a Client waits.
	drainWait = 5 * time.Second
)

// banned is who a ban is of: a node, or a prefix, which may be a single address.
type banned struct {
	node   enode.ID
	prefix netip.Prefix
}

func (b banned) String() string {
	switch {
	case !b.prefix.IsValid():
		return b.node.String()
	case b.prefix.IsSingleIP():
		return b.prefix.Addr().String()
	}
	return b.prefix.String()
}

// parseBanned reads a node id, an enode URL, an address or a prefix.
func parseBanned(text string) (b banned, err error) {
	switch {
	case text == "":
		return b, errors.New("whom? Give a node id, an enode URL, an IPv6 address or a prefix")
	case strings.Contains(text, "enode://") || strings.HasPrefix(text, "enr:"):
		n, err := enode.Parse(enode.ValidSchemes, text)
		if err != nil {
			return b, fmt.Errorf("node %q: %w", text, err)
		}
		return banned{node: n.ID()}, nil
	case strings.Contains(text, "/"):
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil:
			return b, fmt.Errorf("%q is no prefix: write it like 2001:db8::/48", text)
		case p.Addr().Is4() || p.Addr().Is4In6():
			return b, fmt.Errorf("%v is IPv4: geths come by IPv6 only", p)
		case p != p.Masked():
			return b, fmt.Errorf("%v has bits behind its length: write %v, or only the address for it alone", p, p.Masked())
		case p.Bits() < widestBan:
			return b, fmt.Errorf("%v is too much of the Internet: ban at most a /%d at once, or let in only those on the list of [admission]", p, widestBan)
		}
		return banned{prefix: p}, nil
	case strings.Contains(text, ":") || strings.Contains(text, "."):
		addr, err := netip.ParseAddr(text)
		switch {
		case err != nil:
			return b, fmt.Errorf("%q is no IPv6 address: write it without brackets and port", text)
		case !addr.Is6() || addr.Is4In6():
			return b, fmt.Errorf("%v is IPv4: geths come by IPv6 only", addr)
		case addr.Zone() != "":
			return b, fmt.Errorf("%v has a zone: leave it out", addr)
		}
		return banned{prefix: netip.PrefixFrom(addr, addr.BitLen())}, nil
	}
	b.node, err = parseNode(text)
	return b, err
}

// parseNode reads a node id.
func parseNode(text string) (id enode.ID, err error) {
	digits := strings.TrimPrefix(text, "0x")
	if n, err := hex.Decode(id[:], []byte(digits[:min(len(digits), 2*len(id))])); err != nil || n != len(id) || len(digits) != 2*len(id) {
		return id, fmt.Errorf("%q is no node id of 64 hex digits: see mdcs subscribers -o json; nor an address, nor a prefix", text)
	}
	return id, nil
}

// ban keeps somebody out from now on.
func (o *Operator) ban(q url.Values) (any, error) {
	who, err := parseBanned(q.Get("who"))
	if err != nil {
		return nil, err
	}
	length, err := time.ParseDuration(q.Get("for"))
	switch {
	case err != nil:
		return nil, fmt.Errorf("for %q is no duration: write it like 90s, 30m or 24h", q.Get("for"))
	case length <= 0:
		return nil, fmt.Errorf("for %v: a ban lasts longer than that; to end one, use mdcs unban", length)
	case length > longestBan:
		return nil, fmt.Errorf("for %v: at most %v; to keep somebody out for good, let in only those on the list of [admission]", length, longestBan)
	}
	st, _, _ := o.counters() // without neighbours where a part hangs, which keeps nobody from a ban
	for _, n := range st.Mesh.Neighbours {
		if who.prefix.Contains(n.Addr) || !who.prefix.IsValid() && who.node == n.ID {
			return nil, fmt.Errorf("%v is or has the RP neighbour %s: take it out of [mesh] peers first", who, n.ID.TerminalString())
		}
	}
	unkept, err := o.keepOut(who, length)
	return Ban{Who: who.String(), Left: Seconds(length), Operator: true, Unkept: unkept}, err
}

// keepOut bans somebody, or with 0 ends that, and returns why the next rpd does not have the change.
func (o *Operator) keepOut(who banned, length time.Duration) (unkept string, err error) {
	if who.prefix.IsValid() {
		err = o.Point.BanPrefix(who.prefix, length)
	} else {
		err = o.Point.BanNode(who.node, length)
	}
	if errors.Is(err, peerside.ErrUnkept) {
		return err.Error(), nil
	}
	return "", err
}

// unban lets somebody in again.
func (o *Operator) unban(q url.Values) (any, error) {
	who, err := parseBanned(q.Get("who"))
	if err != nil {
		return nil, err
	}
	for _, b := range o.Point.Bans() {
		if (banned{b.Node, b.Prefix}) != who {
			continue
		}
		ended := o.banOf(b)
		ended.Unkept, err = o.keepOut(who, 0)
		return ended, err
	}
	if who.prefix.IsValid() {
		for _, b := range o.Point.Bans() {
			if b.Prefix.IsValid() && b.Prefix.Overlaps(who.prefix) {
				return nil, fmt.Errorf("%v itself is not banned, %v is: %w", who, banned{prefix: b.Prefix}, errUnknown)
			}
		}
	}
	return nil, fmt.Errorf("%v is not banned, see mdcs bans: %w", who, errUnknown)
}

// bans lists who is banned, the ban that ends first before the others.
func (o *Operator) bans() Bans {
	all := Bans{At: o.now(), Bans: []Ban{}}
	for _, b := range o.Point.Bans() {
		all.Bans = append(all.Bans, o.banOf(b))
	}
	return all
}

func (o *Operator) banOf(b peerside.Ban) Ban {
	return Ban{Who: banned{b.Node, b.Prefix}.String(), Left: Seconds(b.Until.Sub(o.now())), Operator: b.Operator, Why: b.Why}
}

// endSession ends the session of a peer, by node id or by session.
func (o *Operator) endSession(q url.Values) (any, error) {
	text := q.Get("peer")
	for _, s := range o.Point.Sessions() {
		if node := s.Node.String(); text == hex32(s.Index) || strings.TrimPrefix(text, "0x") == node {
			o.Point.EndSession(s.Node)
			return EndedSession{Session: hex32(s.Index), Node: node}, nil
		}
	}
	if len(text) == 8 {
		return nil, fmt.Errorf("session %q: %w, see mdcs subscribers", text, errUnknown)
	}
	if _, err := parseNode(text); err != nil {
		return nil, fmt.Errorf("peer %q is neither a session of 8 hex digits nor a node id of 64: see mdcs subscribers -o json", text)
	}
	return nil, fmt.Errorf("node %s has no session: %w, see mdcs subscribers", text, errUnknown)
}

// drain sends the peers to other replication points.
func (o *Operator) drain(ctx context.Context) Drained {
	ctx, cancel := context.WithTimeout(ctx, drainWait)
	defer cancel()
	return Drained{Left: o.Point.Drain(ctx)}
}
