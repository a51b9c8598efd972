// SPDX-License-Identifier: LGPL-3.0-or-later

package node

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Metrics are the counters and gauges of a node, by name; one with labels by its
// name and labels as in name{label="value"}.
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
			key := name
			if len(m.Label) > 0 {
				labels := make([]string, len(m.Label))
				for i, l := range m.Label {
					labels[i] = fmt.Sprintf("%s=%q", l.GetName(), l.GetValue())
				}
				key += "{" + strings.Join(labels, ",") + "}"
			}
			switch {
			case m.Counter != nil:
				values[key] = m.Counter.GetValue()
			case m.Gauge != nil:
				values[key] = m.Gauge.GetValue()
			case m.Untyped != nil:
				values[key] = m.Untyped.GetValue()
			}
		}
	}
	return values, nil
}
