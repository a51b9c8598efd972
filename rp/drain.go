// SPDX-License-Identifier: LGPL-3.0-or-later

package rp

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/rp/datapath"
)

// resumeKey returns the secret of the tokens by which members resume at the process
// after this one, nil when the datapath ends with this one. It comes from the node
// key, so that the next process has it, too.
func (r *RP) resumeKey(e datapath.Engine) ([]byte, error) {
	if s, ok := e.(datapath.Survivor); !ok || !s.Outlives() {
		return nil, nil
	}
	key, err := hkdf.Key(sha256.New, crypto.FromECDSA(r.cfg.PrivateKey), []byte("mdcs/1 resume"), "", 32)
	if err != nil {
		return nil, fmt.Errorf("key of the resume tokens: %w", err)
	}
	return key, nil
}

// redirectsAge is how old what peers are told of other RPs may be: a full RP refuses many.
const redirectsAge = time.Second

// redirects keeps the enode URLs of other RPs for a while.
type redirects struct {
	mu   sync.Mutex
	at   time.Time
	urls []string
}

// get returns what a function returned not long ago. The caller must not change it.
func (d *redirects) get(look func() []string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := time.Now(); d.at.IsZero() || now.Sub(d.at) >= redirectsAge {
		d.urls, d.at = look(), now
	}
	return d.urls
}

// others returns the enode URLs of the neighbours to which peers may turn.
func (r *RP) others() []string { return r.redirects.get(r.up) }

// up returns the enode URLs of the neighbours whose links are up.
func (r *RP) up() []string {
	up := make(map[enode.ID]bool)
	for _, n := range r.mesh.Stats().Neighbours {
		up[n.ID] = n.Up()
	}
	var urls []string
	for _, n := range r.mesh.Neighbours() {
		if up[n.ID()] {
			urls = append(urls, n.URLv4())
		}
	}
	return urls
}

// Drain sends the peers to other RPs and lets no more join. It returns when none is
// left in the groups, or ctx ended, with how many are left. Those are told to leave by Stop.
// From then on nobody joins; it may be called again.
func (r *RP) Drain(ctx context.Context) (left int) {
	if r.state.Load() != serving {
		return 0
	}
	r.vitals.drained.Store(true)
	r.cfg.Log.Info("replication point drains")
	if left = r.peers.Drain(ctx); left > 0 {
		r.cfg.Log.Warn("members stayed", "members", left)
	}
	return left
}
