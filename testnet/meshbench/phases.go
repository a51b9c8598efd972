// SPDX-License-Identifier: LGPL-3.0-or-later

package meshbench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ethmcast/mdcs/testnet"
	"github.com/ethmcast/mdcs/testnet/delayline"
)

// quiet measures what the mesh costs while nothing is published.
func (m *mesh) quiet(ctx context.Context) error {
	if err := pause(ctx, settleQuiet); err != nil {
		return err
	}
	was, err := m.scrape(ctx)
	if err != nil {
		return err
	}
	before, err := m.net.CPU()
	if err != nil {
		return err
	}
	if err := m.net.ClearWire(); err != nil {
		return err
	}
	begin := time.Now()
	if err := pause(ctx, quietTime); err != nil {
		return err
	}
	pairs, err := m.net.Pairs()
	if err != nil {
		return err
	}
	seconds := time.Since(begin).Seconds()
	after, err := m.net.CPU()
	if err != nil {
		return err
	}
	all, err := m.scrape(ctx)
	if err != nil {
		return err
	}
	var cpu, memory []float64
	c := newControl(m.hosts)
	for from, metrics := range all {
		name := m.rps[from].Name()
		cpu = append(cpu, 100*(after[name]-before[name]).Seconds()/seconds)
		memory = append(memory, metrics[metricMemory]/(1<<20))
		for to, r := range m.rps {
			if metrics[ofNeighbour(metricUp, r)] == 1 {
				c.neighbour(from, to, metrics[ofNeighbour(metricTree, r)] == 1)
			}
		}
	}
	for _, p := range pairs {
		c.add(m.hosts, p)
	}
	r := m.result
	r.ControlTree, r.ControlOther, r.TreeNeighbours, r.Others = c.rates(seconds)
	r.Adverts = changes(metricAdvert, was, all) / seconds / float64(len(m.rps))
	r.Grafts = changes(metricAsked, was, all) / seconds / float64(len(m.rps))
	r.CPUPercent, r.MemoryMiB, r.MemoryMaxMiB = mean(cpu), mean(memory), quantile(memory, 1)
	return nil
}

// shape measures the ways that datagrams take, of one source after the other.
func (m *mesh) shape(ctx context.Context) error {
	var (
		top     = m.net.Topology()
		paths   = top.BGP()
		stretch []float64
		r       = m.result
		n       = float64(len(m.sources))
	)
	m.ways = nil
	for _, source := range m.sources {
		t, err := m.trace(ctx, source)
		if err != nil {
			return err
		}
		m.ways = append(m.ways, t.ways)
		busiest, sum := linkCopies(top, t.counters, t.sent.to-t.sent.from)
		r.LinkCopiesMax += busiest / n
		r.LinkCopies += sum / n
		r.LinkCopiesOptimum += float64(optimum(top, m.hosts[source])) / n
		for peer := range m.rps {
			if peer == source {
				continue
			}
			r.DepthMax = max(r.DepthMax, t.ways.depth(peer))
			d, ok := m.book.delay(t.sent, peer)
			if !ok {
				return fmt.Errorf("nothing of rp %d came to the peer of rp %d", source, peer)
			}
			stretch = append(stretch, d.Seconds()/direct(top, paths, m.hosts[source], m.hosts[peer]).Seconds())
		}
	}
	r.StretchP95, r.StretchMax = quantile(stretch, 0.95), quantile(stretch, 1)
	summary, err := m.net.WireSummary()
	if err != nil {
		return err
	}
	r.WireLateP99us = summary.P99
	return nil
}

// traced is what the datagrams of a source left behind.
type traced struct {
	sent     span
	ways     ways
	counters []delayline.Counters
}

// trace has one source publish for a while. If the ways change meanwhile, it is tried
// again.
func (m *mesh) trace(ctx context.Context, source int) (t traced, err error) {
	for range traceTries {
		if t, err = m.traceOnce(ctx, source); !errors.Is(err, errNoTree) {
			return t, err
		}
		m.result.Retraced++
	}
	return t, err
}

func (m *mesh) traceOnce(ctx context.Context, source int) (t traced, err error) {
	before, err := m.sent(ctx)
	if err != nil {
		return t, err
	}
	if err := m.net.ClearWire(); err != nil {
		return t, err
	}
	stop := m.publish([]int{source}, shapeRate)
	defer stop()
	if err := pause(ctx, time.Duration(shapeDatagrams/shapeRate*float64(time.Second))); err != nil {
		return t, err
	}
	t.sent = stop()[0]
	if err := pause(ctx, lateAfter+200*time.Millisecond); err != nil {
		return t, err
	}
	if t.counters, err = m.net.Counters(); err != nil {
		return t, err
	}
	after, err := m.sent(ctx)
	if err != nil {
		return t, err
	}
	for i := range after {
		for k := range after[i] {
			after[i][k] -= before[i][k]
		}
	}
	t.ways, err = observe(source, t.sent.to-t.sent.from, after)
	return t, err
}

// deaths has the lines of inner RPs swallow everything, one after the other, while a
// source publishes fast.
func (m *mesh) deaths(ctx context.Context) error {
	downs, err := m.downs(ctx)
	if err != nil {
		return err
	}
	for _, n := range downs {
		m.result.FalseDowns += n // nobody has died so far
	}
	died := make(map[int]bool)
	for range m.cfg.Deaths {
		v, ok, err := m.victim(ctx, died)
		if err != nil || !ok {
			return err
		}
		died[v.rp] = true
		if err := m.death(ctx, v); err != nil {
			return err
		}
	}
	return nil
}

// victim returns the next of the victims that has not died, false when there is none. Trees
// may have changed since the ways were measured, and the death of an RP with none behind it
// would seem to heal at once: the ways of its source are measured again.
func (m *mesh) victim(ctx context.Context, died map[int]bool) (v victim, ok bool, err error) {
	for range traceTries {
		list := m.victims()
		i := slices.IndexFunc(list, func(v victim) bool { return !died[v.rp] })
		if i < 0 {
			return victim{}, false, nil
		}
		v = list[i]
		t, err := m.trace(ctx, v.source)
		if err != nil {
			return victim{}, false, err
		}
		m.ways[slices.Index(m.sources, v.source)] = t.ways
		if t.ways.below()[v.rp] > 0 {
			return v, true, nil
		}
	}
	return victim{}, false, errors.New("trees change too fast: no inner rp stays one")
}

// victim is an inner RP on the ways of a source.
type victim struct{ source, rp, below int }

// victims are those that have most RPs behind them, each once. Sources are not among
// them.
func (m *mesh) victims() []victim {
	var list []victim
	for i, way := range m.ways {
		for rp, below := range way.below() {
			if below > 0 && !m.isSource(rp) {
				list = append(list, victim{m.sources[i], rp, below})
			}
		}
	}
	slices.SortStableFunc(list, func(a, b victim) int { return cmp.Compare(b.below, a.below) })
	seen := make(map[int]bool)
	list = slices.DeleteFunc(list, func(v victim) bool {
		again := seen[v.rp]
		seen[v.rp] = true
		return again
	})
	return list[:min(len(list), m.cfg.Deaths)]
}

func (m *mesh) death(ctx context.Context, v victim) error {
	name := m.rps[v.rp].Name()
	rate := min(deathRate, copyRate/float64(m.cfg.RPs))
	m.result.DeathRate = rate
	downs, err := m.downs(ctx)
	if err != nil {
		return err
	}
	stop := m.publish([]int{v.source}, rate)
	defer stop()
	if err := pause(ctx, deathLead+time.Duration(m.rng.Int64N(int64(200*time.Millisecond)))); err != nil {
		return err
	}
	failure := m.book.now()
	if err := m.net.SetLink(name, testnet.LinkChange{State: new(testnet.Blackhole)}); err != nil {
		return err
	}
	if err := pause(ctx, deathTime); err != nil {
		return err
	}
	s := stop()[0]
	if err := pause(ctx, settleTime); err != nil {
		return err
	}
	isVictim := func(peer int) bool { return peer == v.rp }
	healed, ok := m.book.healed(s, failure, isVictim)
	if !ok {
		return fmt.Errorf("the mesh did not heal within %v after the death of %s", deathTime, name)
	}
	after, err := m.downs(ctx)
	if err != nil {
		return err
	}
	r := m.result
	r.Deaths++
	r.HealS = max(r.HealS, (healed - failure).Seconds())
	o := m.book.outcome(s, func(peer int, _ time.Duration) bool { return peer != v.rp })
	r.HealExpected += o.expected
	r.HealLost += o.lost
	r.HealLate += o.late
	r.HealDuplicated += o.duplicated
	for i := range after {
		if i != v.rp { // each may have found the victim down, and nobody else
			r.FalseDowns += max(0, after[i]-downs[i]-1)
		}
	}
	if err := m.net.SetLink(name, testnet.LinkChange{State: new(testnet.Up)}); err != nil {
		return err
	}
	defer m.publish(m.sources, m.trickle())()
	_, err = m.waitDelivery(ctx)
	return err
}
