// SPDX-License-Identifier: LGPL-3.0-or-later

// Package authtest has the cases of SPEC 5.6, for the tests of every receiver of group keys.
package authtest

// Epochs are the epochs of one stream that a receiver is told of, one after the other, and those
// that it keeps then, oldest first.
var Epochs = []struct {
	Name       string
	Told, Kept []uint8
}{
	{"one", []uint8{5}, []uint8{5}},
	{"two", []uint8{5, 6}, []uint8{5, 6}},
	{"the third drops the first", []uint8{5, 6, 7}, []uint8{6, 7}},
	{"the number comes round", []uint8{254, 255, 0}, []uint8{255, 0}},
	{"the older one again", []uint8{5, 6, 5}, []uint8{6, 5}},
	{"the newer one again", []uint8{5, 6, 6}, []uint8{5, 6}},
	{"both again", []uint8{5, 6, 5, 6}, []uint8{5, 6}},
	{"a third after the older one again", []uint8{5, 6, 5, 7}, []uint8{5, 7}},
	{"from a sender that is behind", []uint8{5, 6, 4, 5}, []uint8{4, 5}},
	{"made up beside the one in use", []uint8{5, 100, 5, 6}, []uint8{5, 6}},
	{"made up before the one in use", []uint8{100, 5, 5, 6}, []uint8{5, 6}},
	{"both made up", []uint8{5, 6, 100, 101, 5, 6}, []uint8{5, 6}},
}
