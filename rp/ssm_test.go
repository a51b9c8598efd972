// SPDX-License-Identifier: LGPL-3.0-or-later

package rp_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/datapathtest"
)

// An engine that cannot do what is offered is found out at the start.
func TestSSMNeedsMulticaster(t *testing.T) {
	t.Parallel()
	cfg := newSite(t).config(t)
	cfg.GroupPort = 30502
	cfg.Engine = func(datapath.Config) (datapath.Engine, error) { return &datapathtest.Recorder{Local: loopback}, nil }
	point, err := rp.New(cfg)
	require.NoError(t, err)
	require.ErrorContains(t, point.Start(), "delivery mode ssm")
}

// A peer that wishes mode ssm and then does not answer on the channel is admitted,
// after no more PROBEs than each of the two may have.
func TestSSMWish(t *testing.T) {
	t.Parallel()
	point := single(t, func(c *rp.Config) { c.GroupPort = 30502 })
	plain := newPeer(t, point, peerOptions{})
	wishes := newPeer(t, point, peerOptions{ssm: true})
	members(t, plain, wishes)
	require.Equal(t, proto.ModeUnicast, see(wishes, func(p *lightPeer) proto.DeliveryMode { return p.member.Mode }))
	plain.publish("for all")
	require.Eventually(t, func() bool { return len(wishes.got()) == 1 }, patience, 5*time.Millisecond)
	require.Empty(t, wishes.badDatagrams())
	require.LessOrEqual(t, see(wishes, func(p *lightPeer) int { return p.probes }), proto.MaxProbes)
	require.Zero(t, point.Status().Peers.Channels)
}
