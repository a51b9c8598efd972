// SPDX-License-Identifier: LGPL-3.0-or-later

package metrics

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/ethmcast/discovery"
	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/front"
	"github.com/ethmcast/mdcs/rp/mesh/linkstate"
	"github.com/ethmcast/mdcs/rp/meshside"
	"github.com/ethmcast/mdcs/rp/peerside"
)

type status rp.Status

func (s status) Status() rp.Status { return rp.Status(s) }

// scrape returns the samples as a scraper sees them.
func scrape(t *testing.T, s status) []string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry() // checks names, labels and help
	require.NoError(t, registry.Register(NewCollector(s)))
	w := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	require.Equal(t, 200, w.Code, w.Body)
	var samples []string
	for line := range strings.Lines(w.Body.String()) {
		if !strings.HasPrefix(line, "#") {
			samples = append(samples, strings.TrimSpace(line))
		}
	}
	return samples
}

func TestCollector(t *testing.T) {
	s := status{
		Datapath: datapath.Stats{
			Engine: "socket",
			Copies: 1, CopyBytes: 2, Echoes: 3, Heartbeats: 4, Probes: 5, SendErrors: 6, ReceiveErrors: 7, ReceiveDrops: 19,
			Overflows: []datapath.Overflow{{Queue: "device", Lost: 26}, {Queue: "fan-out"}},
			Rooms:     []datapath.Room{{Pool: "slices", Left: 70}}, Interrupted: 71,
			Lacks: []datapath.Lack{{What: "engine xdp", Why: "not here"}},
			Sessions: []datapath.SessionStats{
				{Index: 1, Role: datapath.Mesh, Received: 21, Copies: 22, Heard: time.UnixMilli(1500)},
				{Index: 2, Role: datapath.Mesh},
				{Index: 3, Role: datapath.Peer, Received: 99},
			},
		},
		Peers: peerside.Stats{
			Connections: 8, Admitted: 9, Violations: 10, MissingAcks: 11, SlowAcks: 88, Bans: 56, Banned: 57, BanRefusals: 58, Received: 12, Lost: 13, Duplicates: 14,
			Channels: 24, ChannelMembers: 25, Standby: 27, Resumed: 28, Refused: 29, Unreached: 55, Confirmed: 50, Limited: 51,
		},
		Front: front.Stats{
			Strangers: 70, Handshakes: 71, Idle: 72, Neighbours: 1, Accepted: 73, Delayed: 74,
			Refused: map[front.Reason]uint64{front.Full48: 74, front.Idle: 75},
		},
		Mesh: meshside.Stats{
			Counters: meshside.Counters{
				Violations: 15, LinksLost: 16, RoutesRefused: 33, BadHellos: 27, KeysRefused: 28, KeyConflicts: 29, KeysDelayed: 84, Served: 30, NotServed: 31, PeersNotServed: 54, Expired: 87,
				Receipts: 52, ReceiptsRefused: 53, HellosLost: 60, Slowed: 61, Banned: 62,
			},
			Core: linkstate.Stats{
				Stale: 32, Forged: 33, NotAllowed: 34, Limited: 35, Published: 36, Downs: 37, Grafts: 38, Failovers: 39,
				Timeouts: 40, Repairs: 41, NotServed: 42, BadEchoes: 43, Computed: 44, Refused: 64, Refusals: 65, Dismissed: 66,
				OffersDropped: 80, RequestsDropped: 81, DigestsDropped: 82, SumsDropped: 83, GivenUp: 67, Outbids: 68, Twins: 69, Changed: time.UnixMilli(2500),
			},
			Neighbours: []meshside.Neighbour{
				{ID: enode.ID{1}, State: meshside.Up, Session: 1, Tree: true, RTT: 1500 * time.Millisecond},
				{ID: enode.ID{2}, State: meshside.Linked, Session: 2},
				{ID: enode.ID{3}},
			},
			Routes: []meshside.Route{
				{Ingress: 45, Children: make([]meshside.Child, 3)},
				{Ingress: 46, Parent: 1, Children: make([]meshside.Child, 1)},
				{Ingress: 47, Children: make([]meshside.Child, 1)},
			},
			Database:  make([]meshside.Advert, 4),
			Publishes: true,
		},
		Incarnation: 45,
		Sessions:    17,
		Members:     map[ids.Group]int{0xabcd: 18},
		Health:      rp.Health{Live: true, Ready: true, Warnings: []string{"a", "b"}},
		Choice:      rp.Choice{Reason: "fallback", Fallback: "no"},
		Discovery: discovery.Status{
			Known:   27,
			Skipped: map[string]uint64{"no_ipv6": 28},
			Trees:   []discovery.Tree{{URL: "enrtree://a"}, {URL: "enrtree://b", Err: "no"}},
		},
	}
	for _, v := range wire.Verdicts() {
		s.Datapath.Verdicts[v] = 100 + uint64(v)
	}
	want := []string{
		"mdcs_rp_ban_refusals_total 58",
		"mdcs_rp_banned 57",
		"mdcs_rp_bans_total 56",
		"mdcs_rp_copies_total 1",
		"mdcs_rp_copy_bytes_total 2",
		"mdcs_rp_echoes_total 3",
		"mdcs_rp_heartbeats_total 4",
		"mdcs_rp_probes_total 5",
		`mdcs_rp_engine_info{engine="socket",reason="fallback"} 1`,
		"mdcs_rp_engine_fallback 1",
		"mdcs_rp_live 1",
		"mdcs_rp_warnings 2",
		"mdcs_rp_send_errors_total 6",
		"mdcs_rp_receive_errors_total 7",
		"mdcs_rp_receive_drops_total 19",
		`mdcs_rp_overflows_total{queue="device"} 26`,
		`mdcs_rp_overflows_total{queue="fan-out"} 0`,
		`mdcs_rp_room_left{pool="slices"} 70`,
		"mdcs_rp_netlink_lists_repeated_total 71",
		"mdcs_rp_peer_connections 8",
		"mdcs_rp_strangers 70",
		"mdcs_rp_handshakes 71",
		"mdcs_rp_idle_connections 72",
		"mdcs_rp_connections_accepted_total 73",
		"mdcs_rp_messages_delayed_total 74",
		"mdcs_rp_admissions_total 9",
		`mdcs_rp_violations_total{role="peer"} 10`,
		"mdcs_rp_rekey_missing_total 11",
		"mdcs_rp_rekey_slow_total 88",
		"mdcs_rp_standby_sessions 27",
		"mdcs_rp_replays_left_out_total 54",
		"mdcs_rp_replays_expired_total 87",
		"mdcs_rp_resumptions_total 28",
		"mdcs_rp_refusals_total 29",
		"mdcs_rp_unreached_total 55",
		`mdcs_rp_engine_lacks{what="engine xdp"} 1`,
		"mdcs_rp_channels 24",
		"mdcs_rp_channel_members 25",
		"mdcs_rp_reported_received_total 12",
		"mdcs_rp_reported_lost_total 13",
		"mdcs_rp_reported_duplicates_total 14",
		`mdcs_rp_violations_total{role="mesh"} 15`,
		"mdcs_rp_mesh_links_lost_total 16",
		"mdcs_rp_mesh_routes_refused_total 33",
		"mdcs_rp_sessions 17",
		`mdcs_rp_members{group="0000abcd"} 18`,
		`mdcs_rp_mesh_link_up{rp="0100000000000000"} 1`,
		`mdcs_rp_mesh_link_up{rp="0200000000000000"} 0`,
		`mdcs_rp_mesh_link_up{rp="0300000000000000"} 0`,
		`mdcs_rp_mesh_received_total{rp="0100000000000000"} 21`,
		`mdcs_rp_mesh_received_total{rp="0200000000000000"} 0`,
		`mdcs_rp_mesh_sent_total{rp="0100000000000000"} 22`,
		`mdcs_rp_mesh_sent_total{rp="0200000000000000"} 0`,
		`mdcs_rp_mesh_last_heard_seconds{rp="0100000000000000"} 1.5`,
		`mdcs_rp_mesh_link_tree{rp="0100000000000000"} 1`,
		`mdcs_rp_mesh_link_tree{rp="0200000000000000"} 0`,
		`mdcs_rp_mesh_link_tree{rp="0300000000000000"} 0`,
		`mdcs_rp_mesh_rtt_seconds{rp="0100000000000000"} 1.5`,
		"mdcs_rp_mesh_rps 4",
		`mdcs_rp_mesh_routes{attached="yes"} 2`,
		`mdcs_rp_mesh_routes{attached="no"} 1`,
		"mdcs_rp_mesh_last_changed_seconds 2.5",
		"mdcs_rp_mesh_children 5",
		"mdcs_rp_mesh_publishes 1",
		`mdcs_rp_mesh_adverts_refused_total{reason="stale"} 32`,
		`mdcs_rp_mesh_adverts_refused_total{reason="forged"} 33`,
		`mdcs_rp_mesh_adverts_refused_total{reason="not_allowed"} 34`,
		`mdcs_rp_mesh_adverts_refused_total{reason="rate"} 35`,
		"mdcs_rp_mesh_adverts_total 36",
		"mdcs_rp_mesh_neighbours_lost_total 37",
		"mdcs_rp_mesh_grafts_total 38",
		"mdcs_rp_mesh_hellos_lost_total 60",
		"mdcs_rp_mesh_slowed_total 61",
		"mdcs_rp_mesh_banned_total 62",
		"mdcs_rp_mesh_grafts_refused_total 64",
		"mdcs_rp_mesh_refusals_total 65",
		"mdcs_rp_mesh_dismissed_total 66",
		`mdcs_rp_mesh_dropped_total{what="digests"} 82`,
		`mdcs_rp_mesh_dropped_total{what="offers"} 80`,
		`mdcs_rp_mesh_dropped_total{what="requests"} 81`,
		`mdcs_rp_mesh_dropped_total{what="route_sums"} 83`,
		"mdcs_rp_mesh_given_up_total 67",
		"mdcs_rp_mesh_outbids_total 68",
		"mdcs_rp_mesh_twins_total 69",
		"mdcs_rp_mesh_failovers_total 39",
		"mdcs_rp_mesh_graft_timeouts_total 40",
		"mdcs_rp_mesh_route_repairs_total 41",
		"mdcs_rp_mesh_not_served_total 73",
		"mdcs_rp_mesh_served_total 30",
		"mdcs_rp_mesh_bad_hellos_total 70",
		"mdcs_rp_mesh_tree_computations_total 44",
		"mdcs_rp_mesh_keys_refused_total 28",
		"mdcs_rp_mesh_key_conflicts_total 29",
		"mdcs_rp_mesh_keys_delayed_total 84",
		"mdcs_rp_discovery_known 27",
		`mdcs_rp_discovery_skipped_total{reason="no_ipv6"} 28`,
		`mdcs_rp_discovery_tree_read{tree="enrtree://a"} 1`,
		`mdcs_rp_discovery_tree_read{tree="enrtree://b"} 0`,
		"mdcs_rp_receipts_total 52",
		"mdcs_rp_receipts_refused_total 53",
		"mdcs_rp_confirmations_total 50",
		"mdcs_rp_confirmations_limited_total 51",
		"mdcs_rp_ready 1",
	}
	for _, r := range front.Reasons() {
		want = append(want, fmt.Sprintf("mdcs_rp_connections_refused_total{reason=%q} %d", r, s.Front.Refused[r]))
	}
	for _, v := range wire.Verdicts() {
		want = append(want, `mdcs_rp_datagrams_total{verdict="`+v.String()+`"} 1`+twoDigits(int(v)))
	}
	require.ElementsMatch(t, want, scrape(t, s))

	// As promtool check metrics does: names, units and texts.
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(NewCollector(s))
	families, err := registry.Gather()
	require.NoError(t, err)
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	require.NoError(t, err)
	require.Empty(t, problems)
}

func twoDigits(n int) string { return string([]byte{'0' + byte(n/10), '0' + byte(n%10)}) }

func TestCollectorOfNothing(t *testing.T) {
	require.Contains(t, scrape(t, status{}), "mdcs_rp_ready 0")
}

// TestCollectorOfWhatHangs has an RP of which a part hangs: its health is shown, and no counter
// as if it were 0.
func TestCollectorOfWhatHangs(t *testing.T) {
	s := status{Hangs: true, Health: rp.Health{Dead: []string{"a"}, Warnings: []string{"b"}}}
	require.ElementsMatch(t, []string{"mdcs_rp_live 0", "mdcs_rp_ready 0", "mdcs_rp_warnings 1", "mdcs_rp_engine_fallback 0"}, scrape(t, s))
}
