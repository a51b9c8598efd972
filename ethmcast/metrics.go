// SPDX-License-Identifier: LGPL-3.0-or-later

package ethmcast

import (
	"time"

	"github.com/ethereum/go-ethereum/metrics"

	"github.com/ethmcast/mdcs/ethmcast/proto"
	"github.com/ethmcast/mdcs/ethmcast/wire"
)

// Metrics in geth's registry. Counts that mdcs_status shows are real even when
// geth runs without --metrics, as meters count in any case.
var (
	verdictMeters      = newVerdictMeters()
	receivedBytesMeter = metrics.NewRegisteredMeter("mdcs/rx/bytes", nil) // UDP payload
	duplicateMeter     = metrics.NewRegisteredMeter("mdcs/rx/duplicates", nil)
	badObjectMeter     = metrics.NewRegisteredMeter("mdcs/rx/badobjects", nil)
	deliveredMeter     = metrics.NewRegisteredMeter("mdcs/deliver/txs", nil)
	refusedMeter       = metrics.NewRegisteredMeter("mdcs/deliver/refused", nil)
	overflowMeter      = metrics.NewRegisteredMeter("mdcs/deliver/overflow", nil)

	sentMeter      = metrics.NewRegisteredMeter("mdcs/tx/datagrams", nil)
	sentBytesMeter = metrics.NewRegisteredMeter("mdcs/tx/bytes", nil) // UDP payload
	sendErrorMeter = metrics.NewRegisteredMeter("mdcs/tx/errors", nil)
	publishedMeter = metrics.NewRegisteredMeter("mdcs/publish/acked", nil)
	failedMeter    = metrics.NewRegisteredMeter("mdcs/publish/failed", nil)
	ackTimer       = metrics.NewRegisteredTimer("mdcs/publish/ack", nil)

	skippedMeter   = metrics.NewRegisteredMeter("mdcs/coverage/skipped", nil)
	announcedMeter = metrics.NewRegisteredMeter("mdcs/coverage/announced", nil)
	heldGauge      = metrics.NewRegisteredGauge("mdcs/coverage/held", nil)
	peersGauge     = metrics.NewRegisteredGauge("mdcs/coverage/peers", nil)
	coveredGauge   = metrics.NewRegisteredGauge("mdcs/coverage/covered", nil)
	joinedGauge    = metrics.NewRegisteredGauge("mdcs/joined", nil)
	standbyGauge   = metrics.NewRegisteredGauge("mdcs/standby", nil)

	movedMeter    = metrics.NewRegisteredMeter("mdcs/rp/moved", nil)
	redirectMeter = metrics.NewRegisteredMeter("mdcs/rp/redirects", nil)

	membersGauge   = metrics.NewRegisteredGauge("mdcs/members", nil)    // of the group at all RPs
	membersRPGauge = metrics.NewRegisteredGauge("mdcs/members/rp", nil) // at the RP in use
	askedMeter     = metrics.NewRegisteredMeter("mdcs/receipts/asked", nil)
	receiptMeter   = metrics.NewRegisteredMeter("mdcs/receipts/received", nil)
	majorityMeter  = metrics.NewRegisteredMeter("mdcs/receipts/majority", nil)
	confirmedMeter = metrics.NewRegisteredMeter("mdcs/receipts/confirmed", nil) // by this node

	droppedMeter   = metrics.NewRegisteredMeter("mdcs/control/dropped", nil)
	violationMeter = metrics.NewRegisteredMeter("mdcs/control/violations", nil)
)

func newVerdictMeters() []*metrics.Meter {
	var meters []*metrics.Meter
	for _, v := range wire.Verdicts() {
		meters = append(meters, metrics.NewRegisteredMeter("mdcs/rx/verdict/"+v.String(), nil))
	}
	return meters
}

func (s *Service) updateGauges(now time.Time) {
	peers, covered := s.coverage.Covered(now)
	peersGauge.Update(int64(peers))
	coveredGauge.Update(int64(covered))
	heldGauge.Update(int64(s.coverage.Held()))
	joined := int64(0)
	if s.covered {
		joined = 1
	}
	joinedGauge.Update(joined)
	standby := int64(0)
	if s.standby.state() == proto.JoinerStandby {
		standby = 1
	}
	standbyGauge.Update(standby)
	var counters proto.Counters
	if s.active != nil && s.active.counters != nil {
		counters = *s.active.counters
	}
	membersGauge.Update(int64(counters.Members))
	membersRPGauge.Update(int64(counters.Here))
}
