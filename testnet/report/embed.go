// SPDX-License-Identifier: LGPL-3.0-or-later

package report

import _ "embed"

// plotsR is plots.R, which reads arrivals.csv.
//
//go:embed plots.R
var plotsR []byte
