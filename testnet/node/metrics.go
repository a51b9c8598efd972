// SPDX-License-Identifier: LGPL-3.0-or-later

package node

import (
	"bytes"
	"fmt"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Metrics are the counters and gauges without labels of a node, by name.
type Metrics map[string]float64

func parseMetrics(text []byte) (Metrics, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("parse metrics: %w", err)
	}
	values := make(Metrics, len(families))
	for name, family := range families {
		for _, m := range family.Metric {
			if len(m.Label) > 0 {
				continue
			}
			switch {
			case m.Counter != nil:
				values[name] = m.Counter.GetValue()
			case m.Gauge != nil:
				values[name] = m.Gauge.GetValue()
			case m.Untyped != nil:
				values[name] = m.Untyped.GetValue()
			}
		}
	}
	return values, nil
}
