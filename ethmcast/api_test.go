// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast_test

import (
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/p2p/enode"

	"github.com/ethmcast/mdcs/ethmcast"
	"github.com/ethmcast/mdcs/ethmcast/ethmcasttest"
)

// geth answers RPC before it starts its services.
func TestAPIBeforeStart(t *testing.T) {
	backend := new(ethmcasttest.Backend)
	backend.SetSynced(true)
	s, err := ethmcast.New(ethmcast.Config{Find: new(ethmcast.Find), Publish: ethmcast.PublishAll}, backend)
	if err != nil {
		t.Fatal(err)
	}
	api := s.APIs()[0].Service.(*ethmcast.API)
	if st := api.Status(); !st.Enabled || st.State != "idle" || st.Port != 0 {
		t.Errorf("status %+v", st)
	}
	api.SetEnabled(false)
	if st := api.Status(); st.Enabled {
		t.Errorf("status %+v", st)
	}
	if rps, d := api.Rps(), api.Discovery(); len(rps) != 0 || d != nil {
		t.Errorf("RPs %v, discovery %v", rps, d)
	}
	if c := api.Counters(); c.RP != "" {
		t.Errorf("counters %+v", c)
	}
	if !api.RequestReceipt(common.Hash{1}) || len(api.Receipts()) != 0 {
		t.Error("receipts")
	}
	if s.RouteTx(transaction(t, 1, 0), []enode.ID{{1}}) != nil {
		t.Error("published")
	}
}
