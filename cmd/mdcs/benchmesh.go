// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ethmcast/mdcs/rp/mesh/tree"
	"github.com/ethmcast/mdcs/testnet/sim"
)

var (
	simulateFlag  = &cli.StringFlag{Name: "simulate", Usage: "numbers of RPs of simulated meshes, separated by commas", Value: "100,300,1000"}
	meshModeFlag  = &cli.StringFlag{Name: "mode", Usage: "kind of trees: star or last", Value: tree.Last.String()}
	meshChurnFlag = &cli.DurationFlag{Name: "churn", Usage: "simulated time during which a tenth of the RPs dies per minute", Value: time.Minute}
	meshSeedFlag  = &cli.Uint64Flag{Name: "seed", Usage: "of all that is random", Value: 1}
)

var meshCommand = &cli.Command{
	Name:   "mesh",
	Usage:  "simulate meshes of RPs: convergence, control traffic, trees, churn and the death of hosts",
	Flags:  []cli.Flag{simulateFlag, meshModeFlag, meshChurnFlag, meshSeedFlag, benchJSONFlag},
	Action: benchMesh,
}

// meshResult is what bench mesh prints as JSON.
type meshResult struct {
	Processes []struct{}    `json:"processes"` // meshes of real RPs
	Simulated []*sim.Result `json:"simulated"`
}

// simulatedDeaths are the inner RPs that die one by one in each mesh.
const simulatedDeaths = 5

func benchMesh(c *cli.Context) error {
	if c.Args().Present() {
		return fmt.Errorf("unexpected argument %q", c.Args().First())
	}
	plans, err := meshPlans(c)
	if err != nil {
		return err
	}
	result := meshResult{Processes: []struct{}{}}
	for _, plan := range plans {
		r, err := sim.Run(c.Context, plan)
		if err != nil {
			return err
		}
		result.Simulated = append(result.Simulated, r)
	}
	if !c.Bool(benchJSONFlag.Name) {
		return meshTable(c.App.Writer, result.Simulated)
	}
	enc := json.NewEncoder(c.App.Writer)
	enc.SetIndent("", "  ")
	return enc.Encode(result)
}

// meshPlans checks the flags.
func meshPlans(c *cli.Context) ([]sim.Plan, error) {
	sizes, err := numbers(c.String(simulateFlag.Name))
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", simulateFlag.Name, err)
	}
	mode := tree.Last
	switch name := c.String(meshModeFlag.Name); name {
	case tree.Last.String():
	case tree.Star.String():
		mode = tree.Star
	default:
		return nil, fmt.Errorf("--%s: %q is neither star nor last", meshModeFlag.Name, name)
	}
	churn := c.Duration(meshChurnFlag.Name)
	if churn < 0 {
		return nil, errors.New("--churn: negative duration")
	}
	var plans []sim.Plan
	for _, n := range sizes {
		plan, err := sim.NewPlan(n, mode, c.Uint64(meshSeedFlag.Name))
		if err != nil {
			return nil, fmt.Errorf("--%s: %w", simulateFlag.Name, err)
		}
		plan.Churn, plan.Deaths = churn, simulatedDeaths
		plans = append(plans, plan)
	}
	return plans, nil
}

func meshTable(w io.Writer, all []*sim.Result) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "rps\tmode\tlinks\tconverge s\tkbit/s tree\tother\tchurn: delivered\tlive\tlost\tduplicated\tfalse downs\theal s\tdepth\tstretch p95\tcopies\t")
	for _, r := range all {
		fmt.Fprintf(tw, "%d\t%s\t%.1f\t%.1f\t%.1f\t%.1f\t%.4f %%\t%.4f %%\t%d\t%d\t%d\t%.2f\t%d\t%.2f\t%.1f\t\n", r.RPs, r.Mode, r.Links, r.ConvergeS,
			r.ControlTree, r.ControlOther, 100*r.Delivered, 100*r.DeliveredLive, r.Lost, r.Duplicated, r.FalseDowns, r.HealS, r.DepthMax,
			r.StretchP95, r.LinkCopiesMax)
	}
	return tw.Flush()
}
