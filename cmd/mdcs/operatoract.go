// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ethmcast/mdcs/rp/admin"
)

var forFlag = &cli.DurationFlag{Name: "for", Usage: "how `LONG`, like 90s, 30m or 24h", Value: time.Hour}

// actCommands have a running rpd do something.
var actCommands = []*cli.Command{
	actCommand("ban", "WHO", "keep out a node, an address or a prefix for some time", ban, forFlag),
	actCommand("unban", "WHO", "let in again who is banned", unban),
	operatorCommand("bans", "list who is not let in, for how long and why", showBans),
	actCommand("end-session", "PEER", "end the session of a geth, by session or node id; it may come again", endSession),
	operatorCommand("drain", "send the geths to other replication points, and let none join until rpd starts again", drain),
}

// actCommand is a command with one argument that has rpd do something.
func actCommand(name, argument, usage string, act func(*cli.Context, *admin.Client, string) error, flags ...cli.Flag) *cli.Command {
	return &cli.Command{
		Name:      name,
		Usage:     usage,
		ArgsUsage: argument,
		Flags:     append([]cli.Flag{socketFlag, outputFlag}, flags...),
		Before:    checkOutput,
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return fmt.Errorf("%s wants one %s, not %d, see mdcs %s --help", name, argument, c.NArg(), name)
			}
			return act(c, admin.NewClient(c.String(socketFlag.Name)), c.Args().First())
		},
	}
}

func ban(c *cli.Context, rpd *admin.Client, who string) error {
	b, err := rpd.Ban(c.Context, who, c.Duration(forFlag.Name))
	if err != nil {
		return err
	}
	return output(c, b, func(w io.Writer) {
		if b.Unkept != "" {
			fmt.Fprintf(w, "%s is banned for %v, or until rpd starts again: %s\n", b.Who, b.Left, b.Unkept)
			return
		}
		fmt.Fprintf(w, "%s is banned for %v, also when rpd starts again\n", b.Who, b.Left)
	})
}

func unban(c *cli.Context, rpd *admin.Client, who string) error {
	b, err := rpd.Unban(c.Context, who)
	if err != nil {
		return err
	}
	return output(c, b, func(w io.Writer) {
		fmt.Fprintf(w, "%s may come in again, %v before the ban would have ended\n", b.Who, age(time.Duration(b.Left)))
		if b.Unkept != "" {
			fmt.Fprintf(w, "the ban may be back when rpd starts again: %s\n", b.Unkept)
		}
	})
}

func showBans(c *cli.Context, rpd *admin.Client) error {
	all, err := rpd.Bans(c.Context)
	if err != nil {
		return err
	}
	return output(c, all, func(w io.Writer) {
		row(w, "WHO", "FOR", "WHY")
		for _, b := range all.Bans {
			why := b.Why
			if b.Operator {
				why = "by an operator"
			}
			row(w, b.Who, age(time.Duration(b.Left)), dash(why))
		}
	})
}

func endSession(c *cli.Context, rpd *admin.Client, peer string) error {
	s, err := rpd.EndSession(c.Context, peer)
	if err != nil {
		return err
	}
	return output(c, s, func(w io.Writer) { fmt.Fprintf(w, "session %s of node %s ends\n", s.Session, s.Node) })
}

func drain(c *cli.Context, rpd *admin.Client) error {
	d, err := rpd.Drain(c.Context)
	if err != nil {
		return err
	}
	return output(c, d, func(w io.Writer) {
		if d.Left == 0 {
			fmt.Fprintln(w, "no members are left, and none may join until rpd starts again")
			return
		}
		fmt.Fprintf(w, "%d members are left, which know no other replication point or are on their way; none may join until rpd starts again\n", d.Left)
	})
}
