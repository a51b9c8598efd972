// SPDX-License-Identifier: LGPL-3.0-or-later

package measure

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
)

// Interval is a figure with its 95 % confidence interval by the percentile
// bootstrap (Efron, Tibshirani: An Introduction to the Bootstrap, 1993, 13.3).
// Low and High are NaN if there is too little to tell.
type Interval struct{ Value, Low, High float64 }

// Bootstrap says how to find confidence intervals. The same seed gives the same
// intervals.
type Bootstrap struct {
	Replicates int // 2000 are enough for 95 %
	Seed       uint64
}

// Series are the values of one run, sorted, with the unit to which each belongs.
// Values of one unit depend on each other: all delays of a transaction have its
// origin and its sender in common. So the bootstrap draws whole units.
type Series struct {
	values []float64
	owners []int // unit of each value, from 0 on
	units  int
}

// NewSeries sorts the values; units[i] is any number that is the same for values
// of the same unit.
func NewSeries(units []int, values []float64) *Series {
	order := make([]int, len(values))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(values[a], values[b]) })
	s := &Series{values: make([]float64, len(values)), owners: make([]int, len(values))}
	number := make(map[int]int)
	for i, k := range order {
		n, ok := number[units[k]]
		if !ok {
			n = len(number)
			number[units[k]] = n
		}
		s.values[i], s.owners[i] = values[k], n
	}
	s.units = len(number)
	return s
}

// SeriesOf takes one value of each sample; the units are transactions.
func SeriesOf(samples []Sample, value func(Sample) float64) *Series {
	units, values := make([]int, len(samples)), make([]float64, len(samples))
	for i, s := range samples {
		units[i], values[i] = s.Tx, value(s)
	}
	return NewSeries(units, values)
}

// Each makes every value a unit of its own.
func Each(values []float64) *Series {
	units := make([]int, len(values))
	for i := range units {
		units[i] = i
	}
	return NewSeries(units, values)
}

// percentiles are those of the values, each taken weights[unit] times, or once if
// weights is nil. They must be asked for in ascending order.
func (s *Series) percentiles(weights []int, ps []float64) []float64 {
	total := len(s.values)
	if weights != nil {
		total = 0
		for _, owner := range s.owners {
			total += weights[owner]
		}
	}
	result := make([]float64, len(ps))
	if total == 0 {
		for i := range result {
			result[i] = math.NaN()
		}
		return result
	}
	seen, next := 0, -1
	for i, p := range ps {
		rank := max(1, int(math.Ceil(p/100*float64(total))))
		for seen < rank {
			next++
			if weights == nil {
				seen++
			} else {
				seen += weights[s.owners[next]]
			}
		}
		result[i] = s.values[next]
	}
	return result
}

// Combine finds percentiles over several runs of the same experiment: the value
// is the median of the runs' percentiles. For the interval, runs are drawn with
// replacement, then the units in each of them. The percentiles must ascend.
func (b Bootstrap) Combine(runs []*Series, ps ...float64) []Interval {
	rng := rand.New(rand.NewPCG(b.Seed, uint64(len(runs))))
	figures := make([][]float64, len(ps)) // [percentile][run]
	for _, run := range runs {
		for i, v := range run.percentiles(nil, ps) {
			figures[i] = append(figures[i], v)
		}
	}
	result := make([]Interval, len(ps))
	for i := range ps {
		result[i] = Interval{median(figures[i]), math.NaN(), math.NaN()}
	}
	if b.Replicates <= 0 || !slices.ContainsFunc(runs, func(s *Series) bool { return s.units > 1 }) {
		return result
	}
	replicates := make([][]float64, len(ps)) // [percentile][replicate]
	for range b.Replicates {
		for i := range figures {
			figures[i] = figures[i][:0]
		}
		for range runs {
			run := runs[rng.IntN(len(runs))]
			weights := make([]int, run.units)
			for range run.units {
				weights[rng.IntN(run.units)]++
			}
			for i, v := range run.percentiles(weights, ps) {
				figures[i] = append(figures[i], v)
			}
		}
		for i := range ps {
			replicates[i] = append(replicates[i], median(figures[i]))
		}
	}
	for i := range ps {
		result[i].Low, result[i].High = middle(replicates[i])
	}
	return result
}

// Median is the median of a figure of which each run has one value. A single run
// has no interval.
func (b Bootstrap) Median(values []float64) Interval {
	result := Interval{median(values), math.NaN(), math.NaN()}
	if b.Replicates <= 0 || len(values) < 2 {
		return result
	}
	rng := rand.New(rand.NewPCG(b.Seed, uint64(len(values))))
	replicates, drawn := make([]float64, b.Replicates), make([]float64, len(values))
	for i := range replicates {
		for k := range drawn {
			drawn[k] = values[rng.IntN(len(values))]
		}
		replicates[i] = median(drawn)
	}
	result.Low, result.High = middle(replicates)
	return result
}

// middle are the bounds of the middle 95 % of the values, which it sorts.
func middle(values []float64) (low, high float64) {
	slices.Sort(values)
	return Percentile(values, 2.5), Percentile(values, 97.5)
}

// median is NaN if there are no values, and the mean of both if two are in the
// middle.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	half := len(sorted) / 2
	if len(sorted)%2 == 1 || sorted[half-1] == sorted[half] {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}

// Moved reports whether a figure differs by more than a share of the first value
// between two runs that should agree. What is infinite in both has not moved.
func Moved(a, b, share float64) bool {
	if a == b {
		return false
	}
	return !(math.Abs(b-a) <= share*math.Abs(a)) || math.IsInf(a, 0)
}
