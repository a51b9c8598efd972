// SPDX-License-Identifier: LGPL-3.0-or-later

package admin

import (
	"encoding/json"
	"net/netip"
	"time"
)

// The answers of the operator's socket. Session indexes, groups and incarnations are
// 8 hex digits. An RP is named by the first 8 bytes of its devp2p node id, 16 hex
// digits, as in its log.

// Seconds is a duration, in JSON a number of seconds.
type Seconds time.Duration

// MarshalJSON implements json.Marshaler.
func (s Seconds) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(s).Seconds()) }

// UnmarshalJSON implements json.Unmarshaler.
func (s *Seconds) UnmarshalJSON(b []byte) error {
	var f float64
	err := json.Unmarshal(b, &f)
	*s = Seconds(f * float64(time.Second))
	return err
}

func (s Seconds) String() string { return time.Duration(s).String() }

// Status is who and where an RP is, and how it does.
type Status struct {
	ID          string         `json:"id"`
	Enode       string         `json:"enode"` // URL of the control port
	Version     string         `json:"version"`
	Data        netip.AddrPort `json:"data"`
	Incarnation string         `json:"incarnation"`
	Adopted     bool           `json:"adopted"` // the incarnation is that of an rpd that died
	Engine      string         `json:"engine"`
	NetworkID   uint64         `json:"network_id"`
	Genesis     string         `json:"genesis"`
	Started     time.Time      `json:"started"`
	Uptime      Seconds        `json:"uptime_s"`
	Live        bool           `json:"live"` // all its parts turn
	Ready       bool           `json:"ready"`
	NotReady    string         `json:"not_ready,omitempty"` // why
	Warnings    []string       `json:"warnings"`
	Peers       Peers          `json:"peers"`
	Limits      Limits         `json:"limits"`
	RPs         int            `json:"rps"`    // that are RP neighbours
	RPsUp       int            `json:"rps_up"` // whose links are up
	Groups      []GroupCount   `json:"groups"`

	Banned int               `json:"banned"` // nodes, addresses and prefixes
	Passed uint64            `json:"passed"` // datagrams accepted
	Drops  map[string]uint64 `json:"drops"`  // datagrams refused, by verdict, where there are any
}

// Peers counts those who are there.
type Peers struct {
	Connections    int `json:"connections"`
	Handshakes     int `json:"handshakes"` // under way
	Idle           int `json:"idle"`       // connections without a session
	Sessions       int `json:"sessions"`   // of members, in standby, and of those whose endpoint is being proven
	Members        int `json:"members"`
	Channels       int `json:"channels"` // multicast channels
	ChannelMembers int `json:"channel_members"`
}

// Limits are those of the configuration; 0 is none.
type Limits struct {
	Sessions      int     `json:"sessions"`
	Per64         int     `json:"per_64"`
	Per48         int     `json:"per_48"`
	Lease         Seconds `json:"lease_s"`
	PublishRate   uint32  `json:"publish_rate"` // datagrams per second
	PublishBurst  uint32  `json:"publish_burst"`
	EgressPerGeth uint64  `json:"egress_per_geth"` // bytes of copies per second
	EgressPerRP   uint64  `json:"egress_per_rp"`
	EgressTotal   uint64  `json:"egress_total"`
}

// GroupCount is a group and how many members it has.
type GroupCount struct {
	Group   string `json:"group"`
	Topic   string `json:"topic"`
	Members int    `json:"members"`
}

// RP is an RP neighbour and what passed between both since the link began.
type RP struct {
	ID          string     `json:"id"`
	Addr        netip.Addr `json:"addr"`
	State       string     `json:"state"` // "disconnected", "connected", "linked", "up" or "away"
	Incarnation string     `json:"incarnation,omitempty"`
	Session     string     `json:"session,omitempty"`
	Received    uint64     `json:"received"` // datagrams
	Copies      uint64     `json:"copies"`
	Heard       *time.Time `json:"heard,omitempty"` // when the last datagram came
}

// RPs are the RP neighbours at a time.
type RPs struct {
	At  time.Time `json:"at"`
	RPs []RP      `json:"rps"`
}

// Group is a group with its streams.
type Group struct {
	GroupCount
	Streams []Stream `json:"streams"`
}

// Stream is what one ingress RP sends to a group.
type Stream struct {
	Ingress  string `json:"ingress"`      // incarnation
	RP       string `json:"rp,omitempty"` // whose incarnation it is, when that is known
	Sequence uint64 `json:"sequence"`     // the newest one known
}

// Subscribers is a page of the members, ordered by session.
type Subscribers struct {
	At      time.Time    `json:"at"`
	Total   int          `json:"total"`
	Matched int          `json:"matched"`
	Next    string       `json:"next,omitempty"` // session to ask for more after, empty on the last page
	Page    []Subscriber `json:"subscribers"`
}

// Subscriber is a member and what passed since it joined.
type Subscriber struct {
	Session   string         `json:"session"`
	Node      string         `json:"node"` // devp2p node id, 64 hex digits
	Addr      netip.AddrPort `json:"addr"`
	Groups    []string       `json:"groups"`
	Mode      string         `json:"mode"`
	Publish   bool           `json:"publish"`
	LeaseLeft Seconds        `json:"lease_left_s"`
	Received  uint64         `json:"received"` // datagrams from it
	Copies    uint64         `json:"copies"`   // datagrams to it
	Heard     *time.Time     `json:"heard,omitempty"`
}

// Stats are the counters since the start.
type Stats struct {
	At          time.Time         `json:"at"`
	Incarnation string            `json:"incarnation"`
	Verdicts    map[string]uint64 `json:"verdicts"` // datagrams received, all verdicts
	Counters    map[string]uint64 `json:"counters"` // others, named as in Prometheus without mdcs_rp_ and _total, a label behind
}

// Bans are who is not let in at a time.
type Bans struct {
	At   time.Time `json:"at"`
	Bans []Ban     `json:"bans"`
}

// Ban is a node, an address or a prefix that is not let in.
type Ban struct {
	Who      string  `json:"who"` // node id of 64 hex digits, address or prefix
	Left     Seconds `json:"left_s"`
	Operator bool    `json:"operator"`         // an operator set it
	Why      string  `json:"why,omitempty"`    // what was wrong, of the last violation
	Unkept   string  `json:"unkept,omitempty"` // of a change: why the next rpd does not have it
}

// EndedSession is the session that an operator ended.
type EndedSession struct {
	Session string `json:"session"`
	Node    string `json:"node"`
}

// Drained is what a drain left.
type Drained struct {
	Left int `json:"left"` // members of the largest group
}

// Neighbour is a link of the mesh.
type Neighbour struct {
	ID      string     `json:"id"`
	Addr    netip.Addr `json:"addr"`
	State   string     `json:"state"`   // as in RP
	Tree    bool       `json:"tree"`    // an edge of a tree that is in use
	RTT     Seconds    `json:"rtt_s"`   // 0: not measured
	Cost    uint32     `json:"cost"`    // as it is advertised, 0 without adverts
	Members uint64     `json:"members"` // of all groups, at and behind it in the tree of the RP that is asked
}

// Route is the way of an ingress RP's datagrams through this RP.
type Route struct {
	Ingress  string   `json:"ingress"` // incarnation
	RP       string   `json:"rp"`
	Parent   string   `json:"parent,omitempty"` // who sends them; nobody at the ingress RP
	Backup   string   `json:"backup,omitempty"` // who is asked when the parent fails
	Previous []string `json:"previous"`         // accepted besides, for a while
	Children []string `json:"children"`
}

// Advert is what an RP says of itself, as far as this one knows.
type Advert struct {
	RP          string       `json:"rp"`
	Operator    string       `json:"operator,omitempty"`
	Incarnation string       `json:"incarnation"`
	Epoch       uint64       `json:"epoch"` // grows with each start
	Sequence    uint64       `json:"sequence"`
	Age         Seconds      `json:"age_s"`
	Publishes   bool         `json:"publishes"` // it has a tree
	Links       []AdvertLink `json:"links"`
	Groups      []GroupCount `json:"groups"`
}

// AdvertLink is a link of an advert.
type AdvertLink struct {
	RP   string `json:"rp"`
	Cost uint32 `json:"cost"`
	Tree bool   `json:"tree"`
}

// Tree is the way of an ingress RP's datagrams through the mesh.
type Tree struct {
	RP    string     `json:"rp"`   // at the root
	Self  string     `json:"self"` // who says so
	Nodes []TreeNode `json:"nodes"`
}

// TreeNode is an RP of a tree. One without a parent, but for the root, is not reached.
type TreeNode struct {
	RP       string  `json:"rp"`
	Parent   string  `json:"parent,omitempty"`
	RTT      Seconds `json:"rtt_s"` // between the two, 0: not known
	Operator string  `json:"operator,omitempty"`
}
