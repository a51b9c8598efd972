// SPDX-License-Identifier: LGPL-3.0-or-later

package measure

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/testnet/delayline"
	"github.com/ethmcast/mdcs/testnet/topology"
)

func TestFrames(t *testing.T) {
	require.Empty(t, Frames(0))
	require.Equal(t, []int{62 + 64 + 1}, Frames(1))
	require.Equal(t, []int{1294}, Frames(1168))
	require.Equal(t, []int{1294, 127}, Frames(1169))
	require.Equal(t, uint64(1294+127), Framed(1169))
}

// TestLastByte has lines of 1 and 2 bytes per millisecond.
func TestLastByte(t *testing.T) {
	const ms = time.Millisecond
	slow := topology.Line{Delay: 10 * ms, Rate: 8000}
	fast := topology.Line{Delay: 20 * ms, Rate: 16000}
	free := topology.Line{Delay: 5 * ms}
	for name, c := range map[string]struct {
		frames []int
		path   []topology.Line
		want   time.Duration
	}{
		"no rate":                       {[]int{4, 4}, []topology.Line{free, free}, 10 * ms},
		"one frame":                     {[]int{4}, []topology.Line{slow, fast}, (4 + 10 + 2 + 20) * ms},
		"the slow line last":            {[]int{4}, []topology.Line{fast, slow}, (2 + 20 + 4 + 10) * ms},
		"the first line holds back":     {[]int{4, 4, 4}, []topology.Line{slow, fast}, (12 + 10 + 2 + 20) * ms},
		"the second line holds back":    {[]int{4, 4, 4}, []topology.Line{fast, slow}, (2 + 20 + 12 + 10) * ms},
		"a short last frame":            {[]int{4, 2}, []topology.Line{slow, free}, (6 + 10 + 5) * ms},
		"the last one waits for others": {[]int{8, 2}, []topology.Line{fast, slow}, (4 + 20 + 8 + 2 + 10) * ms},
	} {
		require.Equal(t, c.want, lastByte(c.frames, c.path), name)
	}
}

// TestFloors has a triangle of ASes, where b is a customer of a and of c, and so
// does not carry what goes between them:
//
//	        20 ms, 1 Mbit/s
//	[a] ----------------------- [c]
//	   `-- 5 ms -- [b] -- 5 ms --'
func TestFloors(t *testing.T) {
	const ms = time.Millisecond
	top := &topology.Topology{
		Name: "triangle",
		ASes: []topology.AS{{Name: "a", Number: 1}, {Name: "b", Number: 2}, {Name: "c", Number: 3}},
		Links: []topology.Link{
			{A: "a", B: "c", Relation: topology.Peer, Line: topology.Line{Delay: 20 * ms, Rate: 1e6}},
			{A: "a", B: "b", Relation: topology.Transit, Line: topology.Line{Delay: 5 * ms}},
			{A: "c", B: "b", Relation: topology.Transit, Line: topology.Line{Delay: 5 * ms}},
		},
		Hosts: []topology.Host{
			{Name: "g1", AS: "a", Line: topology.Line{Delay: ms}},
			{Name: "g2", AS: "c", Line: topology.Line{Delay: 2 * ms}},
		},
	}
	f := NewFloors(top, top.Hosts)
	// 126 + 124 bytes at 1 Mbit/s are 2 ms.
	samples, err := f.Samples([]Pair{{Tx: 1, Origin: 0, Node: 1, Delay: 30}}, []int{0, 124})
	require.NoError(t, err)
	require.Len(t, samples, 1)
	require.InDelta(t, 13, samples[0].Physical, 1e-9)
	require.InDelta(t, 23, samples[0].BGP, 1e-9)
	require.InDelta(t, 25, samples[0].Serialised, 1e-9)
	require.InDelta(t, 5, samples[0].Overhead(), 1e-9)

	top.Links = top.Links[1:]
	_, err = NewFloors(top, top.Hosts).Between(0, 1, 100)
	require.ErrorContains(t, err, "no path by policy")
}

func TestCopies(t *testing.T) {
	var c delayline.Counters
	c.Link = "a-b"
	c.AB.Classes[delayline.Data].Bytes = 1000
	c.AB.Classes[delayline.Repair].Bytes = 100
	c.BA.Classes[delayline.Eth].Bytes = 10
	c.BA.Classes[delayline.BGP].Bytes = 1
	c.BA.Classes[delayline.Control].Bytes = 1
	require.Equal(t, map[string]uint64{"a-b": 1110}, TxBytes([]delayline.Counters{c, {Link: "host"}}, []string{"a-b", "unused"}))

	list := Copies(map[string]uint64{"b-c": 300, "a-b": 1500}, 600)
	require.Equal(t, []LinkCopies{{"a-b", 2.5}, {"b-c", 0.5}}, list)
	largest, mean := Busiest(list)
	require.Equal(t, []float64{2.5, 1.5}, []float64{largest, mean})
	largest, mean = Busiest(nil)
	require.Equal(t, []float64{0, 0}, []float64{largest, mean})

	require.Equal(t, []string{"a-b", "x:a", "x:b"}, InterAS(&topology.Topology{
		Links: []topology.Link{{A: "a", B: "b"}},
		IXPs:  []topology.IXP{{Name: "x", Members: []topology.Member{{AS: "a"}, {AS: "b"}}}},
	}))
}
