// SPDX-License-Identifier: LGPL-3.0-or-later

package sim

import (
	"math/rand/v2"
	"time"
)

// regions is how many regions the Internet of the simulation has.
const regions = 10

// roundTrips are the median round-trip times between ten regions in 0.1 ms, measured
// between data centres of a public cloud in July 2025: us-east-1, us-west-2,
// eu-central-1, eu-north-1, eu-west-2, eu-west-3, ap-southeast-1, ap-northeast-1,
// ap-southeast-2, sa-east-1.
var roundTrips = [regions][regions]int{
	{55, 644, 932, 1128, 780, 840, 2196, 1497, 1998, 1153},
	{640, 32, 1428, 1555, 1289, 1353, 1602, 982, 1410, 1746},
	{927, 1424, 40, 229, 176, 122, 1604, 2270, 2513, 2040},
	{1122, 1547, 230, 33, 309, 316, 1805, 2467, 2712, 2230},
	{775, 1289, 178, 316, 33, 110, 1695, 2129, 2661, 1868},
	{842, 1357, 127, 323, 116, 33, 1672, 2196, 2804, 1956},
	{2190, 1609, 1612, 1807, 1699, 1670, 37, 709, 948, 3278},
	{1495, 986, 2276, 2472, 2130, 2193, 706, 28, 1069, 2583},
	{1997, 1411, 2516, 2716, 2663, 2802, 948, 1058, 41, 3121},
	{1154, 1752, 2050, 2233, 1957, 1959, 3277, 2589, 3124, 33},
}

// underlay is the network below: where RPs are, how long datagrams take, and which
// links between regions they cross.
type underlay struct {
	region []int
	access []time.Duration // from an RP to the exchange of its region, one way

	// path[a][b] are the links between regions on the way, as pairs in ascending order.
	path [regions][regions][][2]int
}

// newUnderlay spreads RPs evenly over the regions, at random places in each.
func newUnderlay(n int, rng *rand.Rand) *underlay {
	u := &underlay{}
	for i := range n {
		u.region = append(u.region, i%regions)
		u.access = append(u.access, time.Duration(rng.Int64N(int64(3*time.Millisecond))))
	}
	u.route()
	return u
}

// route finds the ways between regions. Two regions have a link unless a third one is
// hardly a detour, less than a tenth: then cables go by there.
func (u *underlay) route() {
	var dist [regions][regions]int
	var via [regions][regions]int // next region, from a to b
	for a := range regions {
		for b := range regions {
			d := max(roundTrips[a][b], roundTrips[b][a])
			dist[a][b], via[a][b] = d, b
			for c := range regions {
				if c != a && c != b && a != b && 10*(roundTrips[a][c]+roundTrips[c][b]) < 11*d {
					dist[a][b] = 1 << 20
				}
			}
		}
	}
	for c := range regions {
		for a := range regions {
			for b := range regions {
				if d := dist[a][c] + dist[c][b]; a != b && c != a && c != b && d < dist[a][b] {
					dist[a][b], via[a][b] = d, via[a][c]
				}
			}
		}
	}
	for a := range regions {
		for b := range regions {
			for at := a; at != b; at = via[at][b] {
				next := via[at][b]
				u.path[a][b] = append(u.path[a][b], [2]int{min(at, next), max(at, next)})
			}
		}
	}
}

// delay returns the one-way delay between two RPs without jitter.
func (u *underlay) delay(a, b int) time.Duration {
	x, y := u.region[a], u.region[b]
	rtt := (roundTrips[x][y] + roundTrips[y][x]) / 2
	return time.Duration(rtt)*50*time.Microsecond + u.access[a] + u.access[b]
}
