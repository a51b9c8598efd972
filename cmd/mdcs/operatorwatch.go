// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ethmcast/mdcs/ethmcast/wire"
	"github.com/ethmcast/mdcs/rp/admin"
	"github.com/ethmcast/mdcs/rp/events"
)

// minInterval is how often rpd counts anew for those who ask.
const minInterval = time.Second

var (
	watchFlag    = &cli.BoolFlag{Name: "watch", Usage: "show them again and again, and what comes in a second"}
	intervalFlag = &cli.DurationFlag{Name: "interval", Usage: "pause between two looks of --watch", Value: minInterval}
	countFlag    = &cli.IntFlag{Name: "count", Usage: "end --watch after so many; 0: never"}
)

func showStats(c *cli.Context, rpd *admin.Client) error {
	interval, count := c.Duration(intervalFlag.Name), c.Int(countFlag.Name)
	switch {
	case interval < minInterval:
		return fmt.Errorf("--%s %v is less than %v", intervalFlag.Name, interval, minInterval)
	case count < 0:
		return fmt.Errorf("--%s %d is negative", countFlag.Name, count)
	case !c.Bool(watchFlag.Name) && (c.IsSet(intervalFlag.Name) || c.IsSet(countFlag.Name)):
		return fmt.Errorf("--%s and --%s go with --%s", intervalFlag.Name, countFlag.Name, watchFlag.Name)
	}
	last, err := rpd.Stats(c.Context)
	if err != nil {
		return err
	}
	if !c.Bool(watchFlag.Name) {
		return output(c, last, func(w io.Writer) { statsTable(w, last, nil) })
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for n := 0; count == 0 || n < count; n++ {
		select {
		case <-tick.C:
		case <-c.Context.Done():
			return c.Context.Err()
		}
		st, err := rpd.Stats(c.Context)
		if err != nil {
			return err
		}
		if err := showRates(c, last, st); err != nil {
			return err
		}
		last = st
	}
	return nil
}

// watched is a line of --watch in JSON.
type watched struct {
	admin.Stats
	PerSecond map[string]float64 `json:"per_second"` // by verdict, then by counter
}

// showRates shows counters, and what was added to them since the last look.
func showRates(c *cli.Context, last, st admin.Stats) error {
	rates := perSecond(last, st)
	if c.String(outputFlag.Name) == "json" {
		return json.NewEncoder(c.App.Writer).Encode(watched{st, rates})
	}
	fmt.Fprintln(c.App.Writer, st.At.Local().Format(time.DateTime))
	if err := output(c, st, func(w io.Writer) { statsTable(w, st, rates) }); err != nil {
		return err
	}
	_, err := fmt.Fprintln(c.App.Writer)
	return err
}

// perSecond returns how fast counters grew. It is empty after a restart of rpd, and
// when rpd did not count anew.
func perSecond(last, st admin.Stats) map[string]float64 {
	rates := make(map[string]float64)
	seconds := st.At.Sub(last.At).Seconds()
	if seconds <= 0 || st.Incarnation != last.Incarnation {
		return rates
	}
	add := func(prefix string, before, after map[string]uint64) {
		for name, n := range after {
			if b := before[name]; n >= b {
				rates[prefix+name] = float64(n-b) / seconds
			}
		}
	}
	add(verdictPrefix, last.Verdicts, st.Verdicts)
	add("", last.Counters, st.Counters)
	return rates
}

// verdictPrefix tells verdicts from other counters.
const verdictPrefix = "datagrams_"

func statsTable(w io.Writer, st admin.Stats, rates map[string]float64) {
	line := func(name string, n uint64) {
		if rates == nil {
			row(w, name, n)
			return
		}
		rate := "-"
		if r, ok := rates[name]; ok {
			rate = strconv.FormatFloat(r, 'f', 1, 64)
		}
		row(w, name, n, rate)
	}
	if rates == nil {
		row(w, "COUNTER", "TOTAL")
	} else {
		row(w, "COUNTER", "TOTAL", "PER SECOND")
	}
	row(w, "(counted at)", st.At.Format("15:04:05.000"))
	for _, v := range wire.Verdicts() {
		line(verdictPrefix+v.String(), st.Verdicts[v.String()])
	}
	for _, name := range slices.Sorted(maps.Keys(st.Counters)) {
		line(name, st.Counters[name])
	}
}

func monitor(c *cli.Context, rpd *admin.Client) error {
	lines := json.NewEncoder(c.App.Writer)
	return rpd.Events(c.Context, func(e events.Event) error {
		if c.String(outputFlag.Name) == "json" {
			return lines.Encode(e)
		}
		_, err := fmt.Fprintln(c.App.Writer, eventLine(e))
		return err
	})
}

// eventLine writes an event as a line of text.
func eventLine(e events.Event) string {
	words := []string{e.Time.Local().Format("15:04:05.000"), fmt.Sprintf("%-9s", e.Kind)}
	for _, x := range []struct{ name, value string }{
		{"node", e.Node}, {"addr", e.Addr}, {"session", e.Session}, {"events", number(e.Count)},
	} {
		if x.value != "" && x.value != "-" {
			words = append(words, x.name+" "+x.value)
		}
	}
	if e.Detail != "" {
		words = append(words, "("+e.Detail+")")
	}
	return strings.TrimSpace(strings.Join(words, "  "))
}
