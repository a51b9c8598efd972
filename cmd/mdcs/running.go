// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ethmcast/mdcs/testnet"
	"github.com/ethmcast/mdcs/testnet/bgp"
	"github.com/ethmcast/mdcs/testnet/control"
	"github.com/ethmcast/mdcs/testnet/delayline"
	"github.com/ethmcast/mdcs/testnet/netns"
)

// noArguments refuses what stands behind the flags.
func noArguments(c *cli.Context) error {
	if c.Args().Present() {
		return fmt.Errorf("unexpected argument %q", c.Args().First())
	}
	return nil
}

// client finds the net that --name names.
func client(c *cli.Context) (*control.Client, error) {
	if !isRoot() {
		return nil, testnet.ErrNotRoot
	}
	return control.NewClient(netns.StateDir, c.String(netFlag.Name))
}

// output writes a value as JSON, or as a table, as --output says.
func output(c *cli.Context, value any, table func(io.Writer)) error {
	if c.String(outputFlag.Name) == "json" {
		e := json.NewEncoder(c.App.Writer)
		e.SetIndent("", "  ")
		return e.Encode(value)
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	table(w)
	return w.Flush()
}

func checkOutput(c *cli.Context) error {
	if o := c.String(outputFlag.Name); o != "table" && o != "json" {
		return fmt.Errorf("--output %q is neither table nor json", o)
	}
	return nil
}

// row writes the cells of a line of a table.
func row(w io.Writer, cells ...any) {
	text := make([]string, len(cells))
	for i, cell := range cells {
		text[i] = fmt.Sprint(cell)
	}
	fmt.Fprintln(w, strings.Join(text, "\t"))
}

var statusCommand = &cli.Command{
	Name:   "status",
	Usage:  "show the nodes of a net, its BGP sessions and how exact its links are",
	Flags:  []cli.Flag{netFlag, outputFlag},
	Before: checkOutput,
	Action: func(c *cli.Context) error {
		if err := noArguments(c); err != nil {
			return err
		}
		net, err := client(c)
		if err != nil {
			return err
		}
		st, err := net.Status(c.Context)
		if err != nil {
			return err
		}
		return output(c, st, func(w io.Writer) { statusTable(w, st) })
	},
}

func statusTable(w io.Writer, st control.Status) {
	if !st.Ready {
		p := st.Progress
		fmt.Fprintf(w, "net %s (process %d) starts: %s %d/%d\n", st.Name, st.Pid, p.Stage, p.Done, p.Total)
		return
	}
	n := st.Net
	fmt.Fprintf(w, "net %s (process %d): topology %s, namespaces %s*, logs in %s\n", st.Name, st.Pid, n.Topology, n.Prefix, n.Logs)
	fmt.Fprintf(w, "links by %s", n.Links)
	if n.Wire != nil {
		fmt.Fprintf(w, " (%s, %d frames, late by %.0f us at the median and %.0f us at p99)",
			n.Wire.Scheduling, n.Wire.Frames, n.Wire.P50, n.Wire.P99)
	}
	fmt.Fprintf(w, ", routes by %s", n.Routing)
	if n.Routing == testnet.BIRD {
		up := 0
		for _, s := range n.Sessions {
			if s.State == bgp.Established {
				up++
			}
		}
		fmt.Fprintf(w, " (%d of %d ends of sessions established)", up, len(n.Sessions))
	}
	fmt.Fprint(w, "\n\n")
	row(w, "HOST", "ROLE", "AS", "CLASS", "ADDRESS", "STATE", "HEAD", "PEERS", "MDCS", "CPU S")
	for _, h := range n.Hosts {
		state, head, peers := "stopped", "-", "-"
		if h.Running {
			state = "running"
		}
		if h.Error != "" {
			state = "no answer"
		}
		if h.Running && h.Role == "geth" && h.Error == "" {
			head, peers = strconv.FormatUint(h.Head, 10), strconv.Itoa(h.Peers)
		}
		row(w, h.Name, h.Role, h.AS, dash(h.Class), h.Addr, state, head, peers, dash(h.State),
			fmt.Sprintf("%.1f", float64(n.CPU[h.Name])/1000))
	}
}

// dash stands for what is empty in a table.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

var execCommand = &cli.Command{
	Name:      "exec",
	Usage:     "run a program in the namespace of a host, a router (by the name of its AS) or an IXP",
	ArgsUsage: "HOST -- PROGRAM [ARGUMENT...]",
	Flags:     []cli.Flag{netFlag},
	Action: func(c *cli.Context) error {
		args := c.Args().Slice()
		if len(args) > 1 && args[1] == "--" {
			args = slices.Delete(args, 1, 2)
		}
		if len(args) < 2 {
			return errors.New("need a host and a program: exec HOST -- PROGRAM [ARGUMENT...]")
		}
		net, err := client(c)
		if err != nil {
			return err
		}
		path, err := net.Path(c.Context, args[0])
		if err != nil {
			return err
		}
		program, err := exec.LookPath(args[1])
		if err != nil {
			return err
		}
		if err := netns.Enter(path); err != nil {
			return err
		}
		return fmt.Errorf("execute %s: %w", program, syscall.Exec(program, args[1:], os.Environ()))
	},
}

var linkCommand = &cli.Command{
	Name:            "link",
	Usage:           "show and change lines while a net runs",
	HideHelpCommand: true,
	Subcommands:     []*cli.Command{linkShowCommand, linkSetCommand, partitionCommand},
	Action:          unknownCommand,
}

var linkShowCommand = &cli.Command{
	Name:      "show",
	Usage:     "list lines: of hosts by their names, links as A-B, ports of IXPs as IXP:AS",
	ArgsUsage: "[LINK...]",
	Flags:     []cli.Flag{netFlag, outputFlag},
	Before:    checkOutput,
	Action: func(c *cli.Context) error {
		net, err := client(c)
		if err != nil {
			return err
		}
		links, err := net.Links(c.Context)
		if err != nil {
			return err
		}
		if names := c.Args().Slice(); len(names) > 0 {
			for _, name := range names {
				if !slices.ContainsFunc(links, func(l testnet.LinkStatus) bool { return l.Name == name }) {
					return fmt.Errorf("link %s: %w", name, testnet.ErrNoLink)
				}
			}
			links = slices.DeleteFunc(links, func(l testnet.LinkStatus) bool { return !slices.Contains(names, l.Name) })
		}
		return output(c, links, func(w io.Writer) {
			row(w, "LINK", "STATE", "DELAY", "JITTER", "RATE", "LOSS", "QUEUE")
			for _, l := range links {
				row(w, l.Name, l.State, l.Delay, l.Jitter, formatRate(l.Rate), l.Loss, l.Queue)
			}
		})
	},
}

// Flags of link set. They have no default: what is not set stays.
var (
	delayFlag     = &cli.DurationFlag{Name: "delay", Usage: "one-way delay, as 20ms"}
	jitterFlag    = &cli.DurationFlag{Name: "jitter", Usage: "largest deviation from the delay"}
	bitRateFlag   = &cli.StringFlag{Name: "rate", Usage: "bits per second, as 50mbit; 0: unlimited"}
	lossFlag      = &cli.Float64Flag{Name: "loss", Usage: "share of the frames that is lost, 0 to 1"}
	queueFlag     = &cli.DurationFlag{Name: "queue", Usage: "longest wait for the rate"}
	upFlag        = &cli.BoolFlag{Name: "up", Usage: "let frames pass again"}
	downFlag      = &cli.BoolFlag{Name: "down", Usage: "pull the cable: no carrier at either end"}
	blackholeFlag = &cli.BoolFlag{Name: "blackhole", Usage: "lose all frames, with the carrier on"}
)

var linkSetCommand = &cli.Command{
	Name:      "set",
	Usage:     "change a line",
	ArgsUsage: "LINK",
	Flags: []cli.Flag{
		netFlag, delayFlag, jitterFlag, bitRateFlag, lossFlag, queueFlag, upFlag, downFlag, blackholeFlag,
	},
	Action: func(c *cli.Context) error {
		if c.NArg() != 1 {
			return errors.New("need the name of one link: link set LINK [FLAG...]")
		}
		change, err := linkChange(c)
		if err != nil {
			return err
		}
		net, err := client(c)
		if err != nil {
			return err
		}
		return net.SetLink(c.Context, c.Args().First(), change)
	},
}

// flagsFirst moves the name of the link in "link set LINK --delay 5ms", and who is meant in
// "ban WHO --for 1h", behind the flags, where the parser of flags expects it.
func flagsFirst(args []string) []string {
	if len(args) > 3 && !strings.HasPrefix(args[2], "-") && slices.ContainsFunc(actCommands, func(c *cli.Command) bool { return c.Name == args[1] }) {
		return append(slices.Delete(slices.Clone(args), 2, 3), args[2])
	}
	i := slices.Index(args, linkCommand.Name) + 2
	if i < 2 || i > len(args) || args[i-1] != linkSetCommand.Name && args[i-1] != linkShowCommand.Name {
		return args
	}
	flags := i
	for flags < len(args) && !strings.HasPrefix(args[flags], "-") {
		flags++
	}
	return slices.Concat(args[:i], args[flags:], args[i:flags])
}

func linkChange(c *cli.Context) (change testnet.LinkChange, err error) {
	for _, f := range []struct {
		flag  string
		field **time.Duration
	}{{delayFlag.Name, &change.Delay}, {jitterFlag.Name, &change.Jitter}, {queueFlag.Name, &change.Queue}} {
		if c.IsSet(f.flag) {
			*f.field = new(c.Duration(f.flag))
		}
	}
	if c.IsSet(lossFlag.Name) {
		change.Loss = new(c.Float64(lossFlag.Name))
	}
	if c.IsSet(bitRateFlag.Name) {
		rate, err := parseRate(c.String(bitRateFlag.Name))
		if err != nil {
			return change, fmt.Errorf("--rate: %w", err)
		}
		change.Rate = &rate
	}
	for _, f := range []struct {
		flag  string
		state testnet.LinkState
	}{{upFlag.Name, testnet.Up}, {downFlag.Name, testnet.Down}, {blackholeFlag.Name, testnet.Blackhole}} {
		if !c.Bool(f.flag) {
			continue
		}
		if change.State != nil {
			return change, errors.New("only one of --up, --down and --blackhole")
		}
		change.State = new(f.state)
	}
	if change == (testnet.LinkChange{}) {
		return change, errors.New("nothing to change, see link set --help")
	}
	return change, nil
}

// rateUnits are those of topology files.
var rateUnits = []struct {
	name string
	bits float64
}{{"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}, {"bit", 1}}

func parseRate(s string) (uint64, error) {
	if s == "0" {
		return 0, nil
	}
	for _, unit := range rateUnits {
		number, ok := strings.CutSuffix(s, unit.name)
		if !ok {
			continue
		}
		if v, err := strconv.ParseFloat(number, 64); err == nil && v >= 0 && v*unit.bits < 1e15 {
			return uint64(v * unit.bits), nil
		}
		break
	}
	return 0, fmt.Errorf("%q is not a number of bit, kbit, mbit or gbit", s)
}

func formatRate(rate uint64) string {
	if rate == 0 {
		return "-"
	}
	for _, unit := range rateUnits {
		if float64(rate) >= unit.bits {
			return strconv.FormatFloat(float64(rate)/unit.bits, 'f', -1, 64) + unit.name
		}
	}
	return strconv.FormatUint(rate, 10)
}

var partitionCommand = &cli.Command{
	Name:      "partition",
	Usage:     "cut all links between groups of ASes; without groups, heal it",
	ArgsUsage: "[AS,AS...] [AS,AS...]...",
	Flags:     []cli.Flag{netFlag},
	Action: func(c *cli.Context) error {
		net, err := client(c)
		if err != nil {
			return err
		}
		var groups [][]string
		for _, arg := range c.Args().Slice() {
			groups = append(groups, strings.Split(arg, ","))
		}
		return net.Partition(c.Context, groups)
	},
}

var clearFlag = &cli.BoolFlag{Name: "clear", Usage: "begin to count anew"}

var countersCommand = &cli.Command{
	Name:   "counters",
	Usage:  "show what crossed each line, by direction and class, in bytes of whole frames",
	Flags:  []cli.Flag{netFlag, outputFlag, clearFlag},
	Before: checkOutput,
	Action: func(c *cli.Context) error {
		if err := noArguments(c); err != nil {
			return err
		}
		net, err := client(c)
		if err != nil {
			return err
		}
		if c.Bool(clearFlag.Name) {
			return net.ClearCounters(c.Context)
		}
		counters, err := net.Counters(c.Context)
		if err != nil {
			return err
		}
		return output(c, counters, func(w io.Writer) { countersTable(w, counters) })
	},
}

func countersTable(w io.Writer, counters []delayline.Counters) {
	header := []any{"LINK", "DIRECTION"}
	for class := range delayline.NumClasses {
		header = append(header, strings.ToUpper(class.String()))
	}
	row(w, append(header, "FRAMES", "LOST FRAMES")...)
	for _, l := range counters {
		for _, d := range []struct {
			name string
			*delayline.Direction
		}{{"there", &l.AB}, {"back", &l.BA}} {
			cells := []any{l.Link, d.name}
			for _, n := range d.Classes {
				cells = append(cells, n.Bytes)
			}
			row(w, append(cells, d.Forwarded().Frames, d.Lost().Frames)...)
		}
	}
}

var downCommand = &cli.Command{
	Name:  "down",
	Usage: "end a net, and return when nothing of it is left",
	Flags: []cli.Flag{netFlag},
	Action: func(c *cli.Context) error {
		if err := noArguments(c); err != nil {
			return err
		}
		net, err := client(c)
		if err != nil {
			return err
		}
		return net.Down(c.Context)
	},
}
