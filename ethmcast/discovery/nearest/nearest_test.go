// SPDX-License-Identifier: LGPL-3.0-or-later

package nearest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"
	"pgregory.net/rapid"
)

// parse reads candidates as "name rtt[ operator][ full][ stranger]", rtt in
// milliseconds or "-" when not measured.
func parse(t testing.TB, text string) (candidates []Candidate) {
	t.Helper()
	for _, item := range strings.Split(text, ",") {
		words := strings.Fields(item)
		c := Candidate{ID: enode.ID{words[0][0]}, Room: 255, Trusted: true}
		if words[1] != "-" {
			rtt, err := time.ParseDuration(words[1] + "ms")
			if err != nil {
				t.Fatal(err)
			}
			c.RTT = rtt
		}
		for _, word := range words[2:] {
			switch word {
			case "full":
				c.Room = 0
			case "stranger":
				c.Trusted = false
			default:
				c.Operator = word
			}
		}
		candidates = append(candidates, c)
	}
	return candidates
}

func names(order []Candidate) string {
	var b strings.Builder
	for _, c := range order {
		b.WriteByte(c.ID[0])
	}
	return b.String()
}

func TestOrder(t *testing.T) {
	for _, test := range []struct {
		name  string
		looks []string // what is measured, one after the other
		want  []string // the order after each
	}{
		{"nearest first", []string{"a 30, b 10, c 20"}, []string{"bca"}},
		{"the given order of equals", []string{"b 10, a 10, c 10"}, []string{"bac"}},
		{"the given order without figures", []string{"b -, a -, c -"}, []string{"bac"}},
		{"not measured comes last", []string{"a -, b 90, c -"}, []string{"bac"}},
		{"alone", []string{"a 10 x"}, []string{"a"}},

		{"second of another operator", []string{"a 10 x, b 11 x, c 25 y"}, []string{"acb"}},
		{"unless it is a detour", []string{"a 10 x, b 11 x, c 32 y"}, []string{"abc"}},
		{"twice is no detour", []string{"a 10 x, b 80 x, c 159 y"}, []string{"acb"}},
		{"an unknown operator is no other", []string{"a 10 x, b 11 x, c 12"}, []string{"abc"}},
		{"nothing to differ from", []string{"a 10, b 11, c 12 y"}, []string{"abc"}},

		{"full ones behind", []string{"a 10 full, b 50, c 90"}, []string{"bca"}},
		{"full ones when there are no others", []string{"a 20 full, b 10 full"}, []string{"ba"}},
		{"a full one is no second for its operator", []string{"a 10 x, b 20 x, c 12 y full"}, []string{"abc"}},
		{"a choice that fills stays", []string{"a 10, b 50", "a 10 full, b 50"}, []string{"ab", "ab"}},

		{"strangers must answer", []string{"a - stranger, b -"}, []string{"b"}},
		{"strangers are not both", []string{"a 10 stranger, b 11 stranger, c 80"}, []string{"acb"}},
		{"not even of two operators", []string{"a 10 x stranger, b 11 y stranger, c 80 x"}, []string{"acb"}},
		{"unless there are no others", []string{"a 10 stranger, b 11 stranger"}, []string{"ab"}},

		{"a little better is not enough",
			[]string{"a 10, b 12", "a 12, b 10", "a 12, b 10", "a 12, b 10", "a 12, b 10"},
			[]string{"ab", "ab", "ab", "ab", "ab"}},
		{"a fifth better of much",
			[]string{"a 100, b 120", "a 100, b 81", "a 100, b 81", "a 100, b 81"},
			[]string{"ab", "ab", "ab", "ab"}},
		{"better in three looks",
			[]string{"a 20, b 30", "a 20, b 10", "a 20, b 10", "a 20, b 10"},
			[]string{"ab", "ab", "ab", "ba"}},
		{"what was not measured anew does not count",
			[]string{"a 20, b 30", "a 20, b 10", "a 20, b 10; no look", "a 20, b 10; no look", "a 20, b 10", "a 20, b 10"},
			[]string{"ab", "ab", "ab", "ab", "ab", "ba"}},
		{"in a row",
			[]string{"a 20, b 30", "a 20, b 10", "a 20, b 10", "a 20, b 30", "a 20, b 10", "a 20, b 10"},
			[]string{"ab", "ab", "ab", "ab", "ab", "ab"}},
		{"gone is replaced at once",
			[]string{"a 20, b 30, c 40", "a -, b 30, c 40", "a 20, b 30, c 40"},
			[]string{"abc", "bca", "bca"}},
		{"the second is calm, too",
			[]string{"a 10, b 30, c 40", "a 10, b 40, c 20", "a 10, b 40, c 20", "a 10, b 40, c 20"},
			[]string{"abc", "abc", "abc", "acb"}},
		{"but for another operator it goes",
			[]string{"a 10 x, b 30 x", "a 10 x, b 30 x, c 35 y"},
			[]string{"ab", "acb"}},
		{"the second becomes the first",
			[]string{"a 20, b 30, c 40", "b 30, c 40"},
			[]string{"abc", "bc"}},
		{"nobody, and again",
			[]string{"a 20, b 30", "a -, b -", "a 30, b 20"},
			[]string{"ab", "ab", "ba"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var c Chooser
			for i, look := range test.looks {
				if got := names(c.Order(parse(t, strings.TrimSuffix(look, "; no look")), !strings.HasSuffix(look, "; no look"))); got != test.want[i] {
					t.Fatalf("look %d: %s, want %s", i, got, test.want[i])
				}
			}
		})
	}
}

func TestOrderOfNone(t *testing.T) {
	if order := new(Chooser).Order(nil, true); len(order) != 0 {
		t.Error(order)
	}
}

// Whatever is measured: nobody is lost or doubled, strangers are never both choices
// while somebody trusted answers, and the same look again changes nothing.
func TestOrderProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c Chooser
		for range rapid.IntRange(1, 8).Draw(t, "looks") {
			var in []Candidate
			for i := range rapid.IntRange(0, 6).Draw(t, "candidates") {
				in = append(in, Candidate{
					ID:       enode.ID{byte('a' + i)},
					Operator: rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "operator"),
					RTT:      time.Duration(rapid.IntRange(0, 60).Draw(t, "rtt")) * time.Millisecond,
					Room:     byte(rapid.IntRange(0, 1).Draw(t, "room")),
					Trusted:  rapid.Bool().Draw(t, "trusted"),
				})
			}
			given := slices.Clone(in)
			order := c.Order(in, true)
			if !slices.Equal(in, given) {
				t.Fatal("the candidates were changed")
			}
			measured, trusted := 0, 0
			for _, candidate := range in {
				usable := candidate.RTT > 0 || candidate.Trusted
				n := 0
				for _, o := range order {
					if o == candidate {
						n++
					}
				}
				if n > 1 || usable != (n == 1) {
					t.Fatalf("%c stands %d times in %s", candidate.ID[0], n, names(order))
				}
				if candidate.RTT > 0 {
					measured++
					if candidate.Trusted {
						trusted++
					}
				}
			}
			for i, o := range order {
				if (o.RTT > 0) != (i < measured) {
					t.Fatalf("measured and other ones are mixed: %s", names(order))
				}
			}
			if measured >= 2 && trusted > 0 && !order[0].Trusted && !order[1].Trusted {
				t.Fatalf("two strangers first: %s", fmt.Sprint(order))
			}
			if before := c; names(before.Order(in, true)) != names(order) && c.first.worse == 0 && c.second.worse == 0 {
				t.Fatal("the same look again changed the order")
			}
		}
	})
}
