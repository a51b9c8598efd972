// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"fmt"
	"io"
	"net/netip"
	"sync"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp/datapath"
)

// channelID names a multicast channel: a group on the link of a network interface.
type channelID struct {
	group ids.Group
	link  string // zone of the group's address
}

// addr returns where the datagrams of a channel go.
func (id channelID) addr(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(proto.GroupAddr(id.group).WithZone(id.link), port)
}

// channels are the multicast channels in the datapath: those with members. The
// last one who leaves takes the channel's keys with it.
type channels struct {
	cfg *Config

	// mu is held while the datapath changes, so that no two changes are about
	// one channel, and who joins second finds it live.
	mu   sync.Mutex
	open map[channelID]*channel
}

type channel struct {
	proto.Channel
	members int
}

// join returns the channel, which the datapath replicates to from then on at the
// latest.
func (c *channels) join(id channelID) (proto.Channel, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := c.open[id]
	if ch == nil {
		var err error
		if ch, err = c.start(id); err != nil {
			return proto.Channel{}, fmt.Errorf("channel of group %08x on interface %s: %w", id.group, id.link, err)
		}
		c.open[id] = ch
	}
	ch.members++
	return ch.Channel, nil
}

// resume returns the channel of a member that was there before this process.
func (c *channels) resume(id channelID) (proto.Channel, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := c.open[id]
	if ch == nil {
		if ch = c.adopt(id); ch == nil {
			return proto.Channel{}, fmt.Errorf("no channel of group %08x on interface %s", id.group, id.link)
		}
		c.open[id] = ch
	}
	ch.members++
	return ch.Channel, nil
}

// adopt returns the channel if the datapath has it from before this process.
func (c *channels) adopt(id channelID) *channel {
	if c.cfg.Adopted == nil {
		return nil
	}
	addr := id.addr(c.cfg.Status.GroupPort)
	s, ok := c.cfg.Adopted.Claim(func(s datapath.Session) bool { return s.Role == datapath.Channel && s.Addr == addr })
	if !ok || c.cfg.Members.Restore(s.Index, netip.Addr{}) != nil {
		return nil
	}
	return &channel{Channel: proto.Channel{Session: s.Index, Key: s.SendKey}}
}

func (c *channels) start(id channelID) (*channel, error) {
	if ch := c.adopt(id); ch != nil {
		return ch, nil
	}
	ch := new(channel)
	if _, err := io.ReadFull(c.cfg.Rand, ch.Key[:]); err != nil {
		return nil, fmt.Errorf("no random key: %w", err)
	}
	var err error
	if ch.Session, err = c.cfg.Members.Link(); err != nil {
		return nil, err
	}
	err = c.cfg.Engine.Apply(datapath.Change{Add: []datapath.Session{{
		Index:       ch.Session,
		Role:        datapath.Channel,
		Addr:        id.addr(c.cfg.Status.GroupPort),
		SendSession: ch.Session,
		SendKey:     ch.Key,
		Groups:      []ids.Group{id.group},
	}}})
	if err != nil {
		c.cfg.Members.Release(ch.Session)
		return nil, err
	}
	c.cfg.Log.Info("channel opened", "group", fmt.Sprintf("%08x", id.group), "to", id.addr(c.cfg.Status.GroupPort))
	return ch, nil
}

// leave ends what join began.
func (c *channels) leave(id channelID) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := c.open[id]
	if ch.members--; ch.members > 0 {
		return nil
	}
	delete(c.open, id)
	err := c.cfg.Engine.Apply(datapath.Change{Remove: []ids.Session{ch.Session}})
	c.cfg.Members.Release(ch.Session)
	c.cfg.Log.Info("channel closed", "group", fmt.Sprintf("%08x", id.group), "to", id.addr(c.cfg.Status.GroupPort))
	return err
}

// count returns the number of channels and of their members.
func (c *channels) count() (open, members int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ch := range c.open {
		members += ch.members
	}
	return len(c.open), members
}
