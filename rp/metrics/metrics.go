// SPDX-License-Identifier: LGPL-3.0-or-later

// Package metrics shows what a replication point counts to Prometheus. All names
// begin with mdcs_rp_.
package metrics

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ethmcast/mdcs/ethmcast/ids"
	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/front"
)

const namespace = "mdcs_rp"

var (
	datagrams = desc("datagrams_total", "Datagrams received, by verdict (pass: accepted).", "verdict")

	copies        = desc("copies_total", "DATA datagrams sent to peers and RP neighbours.")
	copyBytes     = desc("copy_bytes_total", "UDP payload of the DATA datagrams sent, bytes.")
	echoes        = desc("echoes_total", "ECHO datagrams sent to publishers.")
	heartbeats    = desc("heartbeats_total", "HEARTBEAT datagrams sent, own and relayed.")
	probes        = desc("probes_total", "PROBE datagrams sent.")
	sendErrors    = desc("send_errors_total", "Datagrams that the host refused to send.")
	receiveErrors = desc("receive_errors_total", "Reads from the data port that failed.")
	receiveDrops  = desc("receive_drops_total", "Datagrams that came faster than the engine took them.")
	lacks         = desc("engine_lacks", "1 for each thing that the engine was to have and runs without.", "what")
	overflows     = desc("overflows_total", "Copies, frames or records that a queue of the engine had no room for.", "queue")
	roomLeft      = desc("room_left", "What is left of a pool of the engine.", "pool")
	interrupted   = desc("netlink_lists_repeated_total", "Lists of the kernel that changed while they were read, and were asked for again.")

	connections = desc("peer_connections", "Control connections of peers.")
	strangers   = desc("strangers", "Connections to the control port that are not trusted RPs'.")
	shaking     = desc("handshakes", "Handshakes of strangers that are under way.")
	idle        = desc("idle_connections", "Connections of strangers without a session.")
	accepted    = desc("connections_accepted_total", "Connections that the control port accepted, refused ones among them.")
	delayed     = desc("messages_delayed_total", "Messages of strangers that were read later, for they come too fast.")
	turnedAway  = desc("connections_refused_total", "Connections that were refused or ended by the control port, by reason.", "reason")
	sessions    = desc("sessions", "Sessions of peers, admitted or being proven.")
	members     = desc("members", "Admitted peers, by group.", "group")
	admitted    = desc("admissions_total", "Peers admitted.")
	standby     = desc("standby_sessions", "Sessions of peers that are in no group, and take over from another RP when it is lost.")
	resumed     = desc("resumptions_total", "Sessions that went on after the control plane had died.")
	refused     = desc("refusals_total", "Joins and resumptions refused.")
	unreached   = desc("unreached_total", "Joins that ended because copies do not reach the peer.")
	violations  = desc("violations_total", "Connections ended because the other side broke the protocol.", "role")
	missingAcks = desc("rekey_missing_total", "Members that did not acknowledge group keys in time.")
	slowAcks    = desc("rekey_slow_total", "Acknowledgements of group keys by members after more than half a second.")

	bans        = desc("bans_total", "Nodes, addresses and prefixes that were banned.")
	peersBanned = desc("banned", "Nodes, addresses and prefixes that are banned.")
	banRefusals = desc("ban_refusals_total", "Connections of nodes, addresses and prefixes that are banned.")

	channels       = desc("channels", "Multicast channels: links that get one copy of each datagram.")
	channelMembers = desc("channel_members", "Admitted peers that a multicast channel serves.")

	reportedReceived   = desc("reported_received_total", "Datagrams received, as members report it.")
	reportedLost       = desc("reported_lost_total", "Datagrams lost, as members report it.")
	reportedDuplicates = desc("reported_duplicates_total", "Datagrams received twice, as members report it.")

	linkUp        = desc("mesh_link_up", "1 when the RP neighbour hears this one and is heard.", "rp")
	linkTree      = desc("mesh_link_tree", "1 when datagrams go by the link, in either direction.", "rp")
	linkRTT       = desc("mesh_rtt_seconds", "Round-trip time to the RP neighbour, smoothed.", "rp")
	routesRefused = desc("mesh_routes_refused_total", "Routes that the datapath did not take.")
	linksLost     = desc("mesh_links_lost_total", "Links to RP neighbours that ended.")
	linkReceived  = desc("mesh_received_total", "Datagrams accepted from the RP neighbour since the link began.", "rp")
	linkCopies    = desc("mesh_sent_total", "Datagrams sent to the RP neighbour since the link began.", "rp")
	linkLastHeard = desc("mesh_last_heard_seconds", "Time of the last datagram accepted from the RP neighbour, Unix.", "rp")

	meshRPs       = desc("mesh_rps", "RPs in the database, this one included.")
	meshRoutes    = desc("mesh_routes", "Ingress RPs whose datagrams come or go by here, by whether they have a parent or are this one.", "attached")
	meshChanged   = desc("mesh_last_changed_seconds", "Time when an RP became known or was forgotten, or a route began, ended, came into use or out of it, got a parent or lost it, last, Unix.")
	meshChildren  = desc("mesh_children", "Copies of datagrams of all ingress RPs together that go from here to other RPs.")
	meshPublishes = desc("mesh_publishes", "1 when this RP is an ingress RP.")
	adverts       = desc("mesh_adverts_refused_total", "Adverts that were refused, by reason.", "reason")
	advertised    = desc("mesh_adverts_total", "Adverts that this RP published of itself.")
	downs         = desc("mesh_neighbours_lost_total", "RP neighbours that were not heard any more.")
	failovers     = desc("mesh_failovers_total", "Routes that lost their parent.")
	grafts        = desc("mesh_grafts_total", "Routes that other RPs were asked for.")
	graftTimeouts = desc("mesh_graft_timeouts_total", "Routes whose parent did not acknowledge.")
	routeRepairs  = desc("mesh_route_repairs_total", "Neighbours that served something else than they were asked for.")
	notServed     = desc("mesh_not_served_total", "Routes of other RPs that were not served from the cache.")
	served        = desc("mesh_served_total", "Datagrams sent again from the cache, to other RPs and to members.")
	replaysLost   = desc("replays_left_out_total", "Members, and routes of other RPs, that were not sent all that they missed: too many, or by a limit.")
	replaysLate   = desc("replays_expired_total", "Datagrams that members missed and that the cache dropped before it was their turn.")
	meshDropped   = desc("mesh_dropped_total", "What RP neighbours sent beyond their limits, and had no effect: RPs that were offered, adverts that were asked for, digests, and sums of routes.", "what")
	badHellos     = desc("mesh_bad_hellos_total", "Hellos that no RP sends: with impossible times, or of another form.")
	hellosLost    = desc("mesh_hellos_lost_total", "Hellos that were dropped because an RP neighbour sent too many.")
	slowed        = desc("mesh_slowed_total", "Messages that were read later because an RP neighbour sent too many.")
	banned        = desc("mesh_banned_total", "Connections of RP neighbours that were refused because of a ban.")
	graftsRefused = desc("mesh_grafts_refused_total", "Routes that RP neighbours asked for and did not get.")
	refusals      = desc("mesh_refusals_total", "Routes that this RP asked for and did not get.")
	dismissed     = desc("mesh_dismissed_total", "Children that no tree named for too long.")
	givenUp       = desc("mesh_given_up_total", "Links to parents that ended because these did not replicate.")
	outbids       = desc("mesh_outbids_total", "Adverts with the key of this RP that it did not publish, at its start or by another RP with the same key.")
	twins         = desc("mesh_twins_total", "Of these, the adverts of another RP with the same key.")
	computed      = desc("mesh_tree_computations_total", "Times that trees were computed.")
	keysRefused   = desc("mesh_keys_refused_total", "Group keys from RPs that they are not expected from.")
	keysDelayed   = desc("mesh_keys_delayed_total", "Group keys that were taken later, because an ingress RP or a parent changes them too often.")
	keyConflicts  = desc("mesh_key_conflicts_total", "Group keys of a parent that were others than those of the one before.")
	known         = desc("discovery_known", "Replication points that were found or are configured, when RP neighbours are looked for.")
	skipped       = desc("discovery_skipped_total", "Node records that were not used, each time that they were seen.", "reason")
	treeRead      = desc("discovery_tree_read", "1 when the last reading of the tree succeeded.", "tree")

	receipts        = desc("receipts_total", "Datagrams that asked who gets their object, and were counted.")
	receiptsRefused = desc("receipts_refused_total", "Datagrams that asked when too many did.")
	confirmed       = desc("confirmations_total", "Objects that members said they have.")
	confirmsLimited = desc("confirmations_limited_total", "Objects that members said they have in too many messages.")

	engine   = desc("engine_info", "1 for the datapath engine in use, by why it is: configured, auto or fallback.", "engine", "reason")
	fallback = desc("engine_fallback", "1 when the engine in use is a fallback, because the better one does not run.")
	live     = desc("live", "1 when all parts of the RP turn.")
	warnings = desc("warnings", "What an operator should look at: mdcs status says it in words.")
	ready    = desc("ready", "1 when the RP serves peers and lets more in.")
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(namespace+"_"+name, help, labels, nil)
}

// Source is what a collector reads.
type Source interface{ Status() rp.Status }

type collector struct{ source Source }

// NewCollector returns the collector of a started RP.
func NewCollector(source Source) prometheus.Collector { return collector{source} }

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector. Of an RP of which a part hangs only the health is
// known.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	st := c.source.Status()
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(live, oneIf(st.Health.Live))
	gauge(ready, oneIf(st.Health.Ready))
	gauge(warnings, float64(len(st.Health.Warnings)))
	gauge(fallback, oneIf(st.Choice.Fallback != ""))
	if st.Hangs {
		return
	}
	for _, v := range wire.Verdicts() {
		counter(datagrams, st.Datapath.Verdicts[v], v.String())
	}
	counter(copies, st.Datapath.Copies)
	counter(copyBytes, st.Datapath.CopyBytes)
	counter(echoes, st.Datapath.Echoes)
	counter(heartbeats, st.Datapath.Heartbeats)
	counter(probes, st.Datapath.Probes)
	counter(sendErrors, st.Datapath.SendErrors)
	counter(receiveErrors, st.Datapath.ReceiveErrors)
	counter(receiveDrops, st.Datapath.ReceiveDrops)
	for _, o := range st.Datapath.Overflows {
		counter(overflows, o.Lost, o.Queue)
	}
	for _, r := range st.Datapath.Rooms {
		gauge(roomLeft, float64(r.Left), r.Pool)
	}
	counter(interrupted, st.Datapath.Interrupted)
	for _, l := range st.Datapath.Lacks {
		gauge(lacks, 1, l.What)
	}

	gauge(connections, float64(st.Peers.Connections))
	gauge(strangers, float64(st.Front.Strangers))
	gauge(shaking, float64(st.Front.Handshakes))
	gauge(idle, float64(st.Front.Idle))
	counter(accepted, st.Front.Accepted)
	counter(delayed, st.Front.Delayed)
	for _, r := range front.Reasons() {
		counter(turnedAway, st.Front.Refused[r], r.String())
	}
	gauge(sessions, float64(st.Sessions))
	for group, n := range st.Members {
		gauge(members, float64(n), fmt.Sprintf("%08x", group))
	}
	counter(admitted, st.Peers.Admitted)
	gauge(standby, float64(st.Peers.Standby))
	counter(resumed, st.Peers.Resumed)
	counter(refused, st.Peers.Refused)
	counter(unreached, st.Peers.Unreached)
	counter(violations, st.Peers.Violations, datapath.Peer.String())
	counter(violations, st.Mesh.Violations, datapath.Mesh.String())
	counter(bans, st.Peers.Bans)
	gauge(peersBanned, float64(st.Peers.Banned))
	counter(banRefusals, st.Peers.BanRefusals)
	counter(missingAcks, st.Peers.MissingAcks)
	counter(slowAcks, st.Peers.SlowAcks)
	gauge(channels, float64(st.Peers.Channels))
	gauge(channelMembers, float64(st.Peers.ChannelMembers))
	counter(reportedReceived, st.Peers.Received)
	counter(reportedLost, st.Peers.Lost)
	counter(reportedDuplicates, st.Peers.Duplicates)

	counter(linksLost, st.Mesh.LinksLost)
	bySession := make(map[ids.Session]datapath.SessionStats, len(st.Datapath.Sessions))
	for _, s := range st.Datapath.Sessions {
		bySession[s.Index] = s
	}
	for _, n := range st.Mesh.Neighbours {
		id := n.ID.TerminalString()
		gauge(linkUp, oneIf(n.Up()), id)
		gauge(linkTree, oneIf(n.Tree), id)
		if n.RTT > 0 {
			gauge(linkRTT, n.RTT.Seconds(), id)
		}
		s, ok := bySession[n.Session]
		if !ok {
			continue
		}
		counter(linkReceived, s.Received, id)
		counter(linkCopies, s.Copies, id)
		if !s.Heard.IsZero() {
			gauge(linkLastHeard, float64(s.Heard.UnixMilli())/1e3, id)
		}
	}
	attached, children := 0, 0
	for _, r := range st.Mesh.Routes {
		if r.Parent != 0 || r.Ingress == st.Incarnation {
			attached++
		}
		children += len(r.Children)
	}
	gauge(meshRPs, float64(len(st.Mesh.Database)))
	gauge(meshRoutes, float64(attached), "yes")
	gauge(meshRoutes, float64(len(st.Mesh.Routes)-attached), "no")
	if t := st.Mesh.Core.Changed; !t.IsZero() {
		gauge(meshChanged, float64(t.UnixMilli())/1e3)
	}
	gauge(meshChildren, float64(children))
	gauge(meshPublishes, oneIf(st.Mesh.Publishes))
	counter(adverts, st.Mesh.Core.Stale, "stale")
	counter(adverts, st.Mesh.Core.Forged, "forged")
	counter(adverts, st.Mesh.Core.NotAllowed, "not_allowed")
	counter(adverts, st.Mesh.Core.Limited, "rate")
	counter(advertised, st.Mesh.Core.Published)
	counter(downs, st.Mesh.Core.Downs)
	counter(failovers, st.Mesh.Core.Failovers)
	counter(grafts, st.Mesh.Core.Grafts)
	counter(graftTimeouts, st.Mesh.Core.Timeouts)
	counter(routeRepairs, st.Mesh.Core.Repairs)
	counter(notServed, st.Mesh.Core.NotServed+st.Mesh.NotServed)
	counter(served, st.Mesh.Served)
	counter(replaysLost, st.Mesh.PeersNotServed)
	counter(replaysLate, st.Mesh.Expired)
	counter(badHellos, st.Mesh.Core.BadEchoes+st.Mesh.BadHellos)
	counter(meshDropped, st.Mesh.Core.OffersDropped, "offers")
	counter(meshDropped, st.Mesh.Core.RequestsDropped, "requests")
	counter(meshDropped, st.Mesh.Core.DigestsDropped, "digests")
	counter(meshDropped, st.Mesh.Core.SumsDropped, "route_sums")
	counter(computed, st.Mesh.Core.Computed)
	counter(hellosLost, st.Mesh.HellosLost)
	counter(slowed, st.Mesh.Slowed)
	counter(banned, st.Mesh.Banned)
	counter(routesRefused, st.Mesh.RoutesRefused)
	counter(graftsRefused, st.Mesh.Core.Refused)
	counter(refusals, st.Mesh.Core.Refusals)
	counter(dismissed, st.Mesh.Core.Dismissed)
	counter(givenUp, st.Mesh.Core.GivenUp)
	counter(outbids, st.Mesh.Core.Outbids)
	counter(twins, st.Mesh.Core.Twins)
	counter(keysRefused, st.Mesh.KeysRefused)
	counter(keysDelayed, st.Mesh.KeysDelayed)
	counter(keyConflicts, st.Mesh.KeyConflicts)
	gauge(known, float64(st.Discovery.Known))
	for reason, n := range st.Discovery.Skipped {
		counter(skipped, n, reason)
	}
	for _, tree := range st.Discovery.Trees {
		gauge(treeRead, oneIf(tree.Err == ""), tree.URL)
	}
	counter(receipts, st.Mesh.Receipts)
	counter(receiptsRefused, st.Mesh.ReceiptsRefused)
	counter(confirmed, st.Peers.Confirmed)
	counter(confirmsLimited, st.Peers.Limited)
	gauge(engine, 1, st.Datapath.Engine, st.Choice.Reason)
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
