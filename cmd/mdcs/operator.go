// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/admin"
)

// operatorCommands look at a running rpd. None of them changes anything.
var operatorCommands = []*cli.Command{
	operatorCommand("status", "show who and where the replication point is, and how it does", showStatus),
	operatorCommand("rps", "list the RP neighbours: the replication points that this one has links to", showRPs),
	operatorCommand("groups", "list groups, and the newest sequence of each ingress RP in them", showGroups),
	operatorCommand("subscribers", "list the geths that are members", showSubscribers, limitFlag, afterFlag, matchFlag),
	operatorCommand("mesh", "show the links between replication points, and the routes", showMesh, databaseFlag),
	operatorCommand("tree", "draw the delivery tree of an ingress RP", showTree, ingressFlag),
	operatorCommand("stats", "show the counters", showStats, watchFlag, intervalFlag, countFlag),
	operatorCommand("monitor", "tell what happens from now on: who joins, leaves, is refused, links, keys, routes", monitor),
}

var (
	socketFlag = &cli.StringFlag{
		Name: "socket", Usage: "the [admin] socket of rpd, a `PATH`", Value: admin.DefaultSocket, EnvVars: []string{"MDCS_SOCKET"},
	}
	limitFlag    = &cli.IntFlag{Name: "limit", Usage: "how many, at most; 0: all", Value: 50}
	afterFlag    = &cli.StringFlag{Name: "after", Usage: "only those behind this `SESSION`"}
	matchFlag    = &cli.StringFlag{Name: "match", Usage: "only those with `TEXT` in session, node id, address, group or mode"}
	databaseFlag = &cli.BoolFlag{Name: "database", Usage: "show instead what the replication points say of themselves"}
	ingressFlag  = &cli.StringFlag{Name: "ingress", Usage: "the ingress RP, 16 hex digits; default: the one that is asked"}
)

// operatorCommand is a command that asks rpd and shows the answer.
func operatorCommand(name, usage string, show func(*cli.Context, *admin.Client) error, flags ...cli.Flag) *cli.Command {
	return &cli.Command{
		Name:   name,
		Usage:  usage,
		Flags:  append([]cli.Flag{socketFlag, outputFlag}, flags...),
		Before: checkOutput,
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			return show(c, admin.NewClient(c.String(socketFlag.Name)))
		},
	}
}

func showStatus(c *cli.Context, rpd *admin.Client) error {
	st, err := rpd.Status(c.Context)
	if err != nil {
		return err
	}
	return output(c, st, func(w io.Writer) { operatorStatusTable(w, st) })
}

func operatorStatusTable(w io.Writer, st admin.Status) {
	ready := "yes"
	if !st.Ready {
		ready = "no: " + st.NotReady
	}
	incarnation := st.Incarnation
	if st.Adopted {
		incarnation += ", continued"
	}
	l := st.Limits
	row(w, "rp", st.ID)
	row(w, "enode", st.Enode)
	row(w, "data", st.Data)
	row(w, "incarnation", incarnation)
	row(w, "version", st.Version)
	row(w, "engine", st.Engine)
	row(w, "chain", fmt.Sprintf("network %d, genesis %s", st.NetworkID, st.Genesis))
	row(w, "up", age(time.Duration(st.Uptime)))
	row(w, "live", map[bool]string{true: "yes", false: "no: it has to be started anew"}[st.Live])
	row(w, "ready", ready)
	for _, warning := range st.Warnings {
		row(w, "warning", warning)
	}
	row(w, "rps", fmt.Sprintf("%d of %d links up", st.RPsUp, st.RPs))
	row(w, "peers", fmt.Sprintf("%d members, %d sessions, %d connections", st.Peers.Members, st.Peers.Sessions, st.Peers.Connections))
	row(w, "channels", fmt.Sprintf("%d, with %d members", st.Peers.Channels, st.Peers.ChannelMembers))
	row(w, "session limits", fmt.Sprintf("%s, per /64 %s, per /48 %s; lease %v",
		limit(uint64(l.Sessions)), limit(uint64(l.Per64)), limit(uint64(l.Per48)), l.Lease))
	row(w, "publish limits", fmt.Sprintf("datagrams/s: per publisher %d, at once %d", l.PublishRate, l.PublishBurst))
	row(w, "copy limits", fmt.Sprintf("bytes/s: all %s, per geth %s, per rp %s", limit(l.EgressTotal), limit(l.EgressPerGeth), limit(l.EgressPerRP)))
	for _, g := range st.Groups {
		row(w, "group "+g.Group, fmt.Sprintf("%s, %d members", g.Topic, g.Members))
	}
	row(w, "banned", fmt.Sprintf("%d nodes, addresses and prefixes", st.Banned))
	row(w, "accepted", fmt.Sprintf("%d datagrams", st.Passed))
	var drops []string
	for _, v := range wire.Verdicts() {
		if n := st.Drops[v.String()]; n > 0 {
			drops = append(drops, fmt.Sprintf("%s %d", v, n))
		}
	}
	row(w, "dropped", dash(strings.Join(drops, ", ")))
}

// limit writes a limit, of which 0 is none.
func limit(n uint64) string {
	if n == 0 {
		return "unlimited"
	}
	return fmt.Sprint(n)
}

// age writes how long ago something was.
func age(d time.Duration) string {
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// heard writes how long ago something was heard.
func heard(now time.Time, at *time.Time) string {
	if at == nil {
		return "-"
	}
	return age(max(0, now.Sub(*at))) + " ago"
}

func showRPs(c *cli.Context, rpd *admin.Client) error {
	all, err := rpd.RPs(c.Context)
	if err != nil {
		return err
	}
	return output(c, all, func(w io.Writer) {
		row(w, "RP", "ADDRESS", "STATE", "INCARNATION", "SESSION", "RECEIVED", "COPIES", "HEARD")
		for _, x := range all.RPs {
			row(w, x.ID, x.Addr, x.State, dash(x.Incarnation), dash(x.Session), x.Received, x.Copies, heard(all.At, x.Heard))
		}
	})
}

func showGroups(c *cli.Context, rpd *admin.Client) error {
	groups, err := rpd.Groups(c.Context)
	if err != nil {
		return err
	}
	return output(c, groups, func(w io.Writer) {
		row(w, "GROUP", "TOPIC", "MEMBERS", "INGRESS", "RP", "SEQUENCE")
		for _, g := range groups {
			if len(g.Streams) == 0 {
				row(w, g.Group, g.Topic, g.Members, "-", "-", "-")
			}
			for _, s := range g.Streams {
				row(w, g.Group, g.Topic, g.Members, s.Ingress, dash(s.RP), s.Sequence)
			}
		}
	})
}

func showSubscribers(c *cli.Context, rpd *admin.Client) error {
	most := c.Int(limitFlag.Name)
	if most < 0 {
		return fmt.Errorf("--%s %d is negative", limitFlag.Name, most)
	}
	all, err := subscribers(c, rpd, most)
	if err != nil {
		return err
	}
	return output(c, all, func(w io.Writer) {
		row(w, "SESSION", "NODE", "ADDRESS", "GROUPS", "MODE", "PUBLISHES", "LEASE", "RECEIVED", "COPIES", "HEARD")
		for _, s := range all.Page {
			row(w, s.Session, s.Node[:min(16, len(s.Node))], s.Addr, strings.Join(s.Groups, ","), s.Mode, yesNo(s.Publish),
				age(time.Duration(s.LeaseLeft)), s.Received, s.Copies, heard(all.At, s.Heard))
		}
		fmt.Fprintf(w, "\n%d of %d members", len(all.Page), all.Total)
		if all.Matched != all.Total {
			fmt.Fprintf(w, ", %d match", all.Matched)
		}
		if all.Next != "" {
			fmt.Fprintf(w, "; more: --%s %s", afterFlag.Name, all.Next)
		}
		fmt.Fprintln(w)
	})
}

// subscribers asks for pages until there are enough, or all when most is 0.
func subscribers(c *cli.Context, rpd *admin.Client, most int) (all admin.Subscribers, err error) {
	after := c.String(afterFlag.Name)
	for found := []admin.Subscriber{}; ; after = all.Next {
		size := admin.MaxPage
		if most > 0 {
			size = min(size, most-len(found))
		}
		if all, err = rpd.Subscribers(c.Context, size, after, c.String(matchFlag.Name)); err != nil {
			return all, err
		}
		found = append(found, all.Page...)
		if all.Next == "" || len(found) == most {
			all.Page = found
			return all, nil
		}
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func showMesh(c *cli.Context, rpd *admin.Client) error {
	if c.Bool(databaseFlag.Name) {
		adverts, err := rpd.Database(c.Context)
		if err != nil {
			return err
		}
		return output(c, adverts, func(w io.Writer) { databaseTable(w, adverts) })
	}
	var (
		mesh struct {
			Neighbours []admin.Neighbour `json:"neighbours"`
			Routes     []admin.Route     `json:"routes"`
		}
		err error
	)
	if mesh.Neighbours, err = rpd.Neighbours(c.Context); err != nil {
		return err
	}
	if mesh.Routes, err = rpd.Routes(c.Context); err != nil {
		return err
	}
	return output(c, mesh, func(w io.Writer) {
		row(w, "NEIGHBOUR", "ADDRESS", "STATE", "TREE", "RTT", "COST", "MEMBERS BEHIND")
		for _, n := range mesh.Neighbours {
			row(w, n.ID, n.Addr, n.State, yesNo(n.Tree), roundTrip(n.RTT), number(uint64(n.Cost)), n.Members)
		}
		fmt.Fprintln(w)
		row(w, "INGRESS", "RP", "PARENT", "BACKUP", "PREVIOUS", "CHILDREN")
		for _, r := range mesh.Routes {
			row(w, r.Ingress, r.RP, dash(r.Parent), dash(r.Backup), dash(strings.Join(r.Previous, ",")), dash(strings.Join(r.Children, ",")))
		}
	})
}

// roundTrip writes a round-trip time, which is 0 when it is not known.
func roundTrip(t admin.Seconds) string {
	if t == 0 {
		return "-"
	}
	return time.Duration(t).Round(10 * time.Microsecond).String()
}

// number writes a number that is 0 when it is not known.
func number(n uint64) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

func databaseTable(w io.Writer, adverts []admin.Advert) {
	row(w, "RP", "OPERATOR", "INCARNATION", "EPOCH", "SEQUENCE", "AGE", "PUBLISHES", "MEMBERS", "LINKS (COST)")
	for _, a := range adverts {
		members := 0
		for _, g := range a.Groups {
			members += g.Members
		}
		var links []string
		for _, l := range a.Links {
			links = append(links, fmt.Sprintf("%s (%d)", l.RP, l.Cost))
		}
		row(w, a.RP, dash(a.Operator), a.Incarnation, a.Epoch, a.Sequence, age(time.Duration(a.Age)), yesNo(a.Publishes), members,
			dash(strings.Join(links, " ")))
	}
}

func showTree(c *cli.Context, rpd *admin.Client) error {
	t, err := rpd.Tree(c.Context, c.String(ingressFlag.Name))
	if err != nil {
		return err
	}
	return output(c, t, func(w io.Writer) { drawTree(w, t) })
}

// drawTree draws a tree from its root down. Each line has the round-trip time to the
// parent and the sum of those from the root.
func drawTree(w io.Writer, t admin.Tree) {
	below := make(map[string][]admin.TreeNode)
	left := make(map[string]bool) // not drawn yet
	var root admin.TreeNode
	for _, n := range t.Nodes {
		left[n.RP] = true
		if n.RP == t.RP {
			root = n
		} else if n.Parent != "" {
			below[n.Parent] = append(below[n.Parent], n)
		}
	}
	row(w, "RP", "RTT", "FROM THE ROOT", "OPERATOR")
	var draw func(n admin.TreeNode, branch, indent string, total admin.Seconds)
	draw = func(n admin.TreeNode, branch, indent string, total admin.Seconds) {
		if !left[n.RP] {
			return
		}
		delete(left, n.RP)
		name := branch + n.RP
		if n.RP == t.Self {
			name += " (this rp)"
		}
		row(w, name, roundTrip(n.RTT), roundTrip(total), dash(n.Operator))
		children := below[n.RP]
		for i, child := range children {
			sum := total + child.RTT
			if child.RTT == 0 || total == 0 && n.RP != t.RP {
				sum = 0 // a part of it is not known
			}
			branch, deeper := "|-- ", "|   "
			if i == len(children)-1 {
				branch, deeper = "`-- ", "    "
			}
			draw(child, indent+branch, indent+deeper, sum)
		}
	}
	draw(root, "", "", 0)
	if len(left) > 0 {
		fmt.Fprintf(w, "\nnot reached: %s\n", strings.Join(slices.Sorted(maps.Keys(left)), ", "))
	}
}
