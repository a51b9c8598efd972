// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import "testing"

func TestCheckCounts(t *testing.T) {
	for _, test := range []struct {
		out string
		ok  bool
	}{
		{"-- OK Status (10ms)\n24/24 tests passed.\n", true},
		{"23/24 tests passed.\n", false},
		{"23/23 tests passed.\n", false}, // a suite that has lost a test
		{"-- RUN Status\n", false},
		{"", false},
	} {
		if err := checkCounts(test.out, 24); (err == nil) != test.ok {
			t.Errorf("%q: %v", test.out, err)
		}
	}
}
