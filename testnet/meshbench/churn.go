// SPDX-License-Identifier: LGPL-3.0-or-later

package meshbench

import (
	"context"
	"time"
)

// life says since when an RP and its peer are counted on, and until when.
type life struct{ from, to time.Duration }

const forever = time.Duration(1<<63 - 1)

// churn kills an RP that has no source now and then, and starts it again.
func (m *mesh) churn(ctx context.Context) error {
	var mortal []int
	for i := range m.rps {
		if !m.isSource(i) {
			mortal = append(mortal, i)
		}
	}
	if m.cfg.Churn == 0 || len(mortal) == 0 {
		return nil
	}
	lives := make([][]life, len(m.rps))
	for i := range lives {
		lives[i] = []life{{0, forever}}
	}
	stop := m.publish(m.sources, churnRate)
	defer stop()
	for end := time.Now().Add(m.cfg.Churn); time.Now().Before(end); {
		i := mortal[m.rng.IntN(len(mortal))]
		last := &lives[i][len(lives[i])-1]
		last.to = m.book.now() - settleTime // what was sent before has arrived, or will not
		if err := m.rps[i].Kill(); err != nil {
			return err
		}
		m.result.Kills++
		if err := pause(ctx, downTime); err != nil {
			return err
		}
		if err := m.rps[i].Start(ctx); err != nil {
			return err
		}
		lives[i] = append(lives[i], life{m.book.now() + joinTime, forever})
		if err := pause(ctx, killEvery-downTime); err != nil {
			return err
		}
	}
	spans := stop()
	if err := pause(ctx, settleTime); err != nil {
		return err
	}
	var sum outcome
	for _, s := range spans {
		sum.add(m.book.outcome(s, func(peer int, sent time.Duration) bool {
			for _, l := range lives[peer] {
				if sent >= l.from && sent < l.to {
					return true
				}
			}
			return false
		}))
	}
	r := m.result
	r.Expected, r.Lost, r.Late, r.Duplicated = sum.expected, sum.lost, sum.late, sum.duplicated
	return nil
}
