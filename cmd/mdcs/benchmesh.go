// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ethmcast/mdcs/rp/mesh/tree"
	"github.com/ethmcast/mdcs/testnet"
	"github.com/ethmcast/mdcs/testnet/meshbench"
	"github.com/ethmcast/mdcs/testnet/sim"
	"github.com/ethmcast/mdcs/testnet/topology"
)

var (
	meshNameFlag  = &cli.StringFlag{Name: "name", Value: "mesh", Usage: "`NAME` of the result"}
	meshRPsFlag   = &cli.StringFlag{Name: "rps", Usage: "numbers of RPs of meshes of processes, separated by commas; empty for none", Value: "2,4,8,16,32,64"}
	simulateFlag  = &cli.StringFlag{Name: "simulate", Usage: "numbers of RPs of simulated meshes, separated by commas; empty for none", Value: "100,300,1000"}
	meshModeFlag  = &cli.StringFlag{Name: "mode", Usage: "kinds of trees, separated by commas: light, star", Value: tree.Light.String()}
	meshChurnFlag = &cli.DurationFlag{Name: "churn", Usage: "time during which RPs die: an RP each 6 s; of simulated ones, a tenth per minute; 0 for none", Value: time.Minute}
	meshDeathFlag = &cli.IntFlag{Name: "deaths", Usage: "`NUMBER` of inner RPs whose host dies, one by one", Value: 3}
	meshSeedFlag  = &cli.Uint64Flag{Name: "seed", Usage: "of all that is random", Value: 1}
)

var meshCommand = &cli.Command{
	Name:  "mesh",
	Usage: "measure meshes of RPs, as processes (root) and simulated: convergence, control traffic, trees, churn and the death of hosts",
	Flags: []cli.Flag{
		meshNameFlag, meshRPsFlag, simulateFlag, meshModeFlag, meshDeathFlag, meshChurnFlag, meshSeedFlag,
		topologyFlag, routingFlag, engineFlag, rpdFlag, logsFlag, resultsFlag, benchJSONFlag,
	},
	Action: benchMesh,
}

func benchMesh(c *cli.Context) error {
	if err := noArguments(c); err != nil {
		return err
	}
	plan, err := newMeshPlan(c)
	if err != nil {
		return err
	}
	if len(plan.processes) > 0 && !isRoot() {
		return fmt.Errorf("%w; --%s= for simulated meshes alone", testnet.ErrNotRoot, meshRPsFlag.Name)
	}
	result, err := meshbench.NewReport(c.String(meshNameFlag.Name))
	if err != nil {
		return err
	}
	failed := plan.run(c.Context, result)
	if failed != nil && len(result.Processes)+len(result.Simulated) == 0 {
		return failed // and an older result stays
	}
	if err := result.Write(plan.dir); err != nil {
		return errors.Join(err, failed)
	}
	fmt.Fprintln(c.App.ErrWriter, "result in", plan.dir)
	if !c.Bool(benchJSONFlag.Name) {
		return errors.Join(result.Table(c.App.Writer), failed)
	}
	text, err := result.JSON()
	if err != nil {
		return errors.Join(err, failed)
	}
	_, err = c.App.Writer.Write(text)
	return errors.Join(err, failed)
}

// meshPlan is what the flags ask for.
type meshPlan struct {
	dir       string // of the result
	processes []meshbench.Config
	simulated []sim.Plan
}

// run measures all that is planned, or until ctx ends. What fails costs no result of the
// others.
func (p *meshPlan) run(ctx context.Context, result *meshbench.Report) (failed error) {
	for _, cfg := range p.processes {
		r, err := meshbench.Run(ctx, cfg)
		failed = errors.Join(failed, err)
		if r != nil {
			result.Processes = append(result.Processes, r)
		}
		if r == nil || ctx.Err() != nil {
			return failed
		}
	}
	for _, plan := range p.simulated {
		r, err := sim.Run(ctx, plan)
		failed = errors.Join(failed, err)
		if err == nil {
			result.Simulated = append(result.Simulated, r)
		}
		if ctx.Err() != nil {
			return failed
		}
	}
	return failed
}

// newMeshPlan checks the flags.
func newMeshPlan(c *cli.Context) (plan meshPlan, err error) {
	name := c.String(meshNameFlag.Name)
	if name == "." || name == ".." || name != filepath.Base(name) {
		return plan, fmt.Errorf("--name %q is no name of a directory", name)
	}
	plan.dir = filepath.Join(c.String(resultsFlag.Name), name)
	modes, err := meshModes(c.String(meshModeFlag.Name))
	if err != nil {
		return plan, fmt.Errorf("--%s: %w", meshModeFlag.Name, err)
	}
	churn, deaths := c.Duration(meshChurnFlag.Name), c.Int(meshDeathFlag.Name)
	if churn < 0 || deaths < 0 {
		return plan, errors.New("--churn or --deaths is negative")
	}
	rps, err := sizes(c, meshRPsFlag.Name)
	if err != nil {
		return plan, err
	}
	if len(rps) > 0 {
		cfg, err := meshConfig(c)
		if err != nil {
			return plan, err
		}
		cfg.Churn, cfg.Deaths = churn, deaths
		for _, n := range rps {
			for _, cfg.Mode = range modes {
				cfg.RPs = n
				if err := cfg.Check(); err != nil {
					return plan, fmt.Errorf("--%s: %w", meshRPsFlag.Name, err)
				}
				plan.processes = append(plan.processes, cfg)
			}
		}
	}
	simulated, err := sizes(c, simulateFlag.Name)
	if err != nil {
		return plan, err
	}
	for _, n := range simulated {
		for _, mode := range modes {
			p, err := sim.NewPlan(n, mode, c.Uint64(meshSeedFlag.Name))
			if err != nil {
				return plan, fmt.Errorf("--%s: %w", simulateFlag.Name, err)
			}
			p.Churn, p.Deaths = churn, deaths
			plan.simulated = append(plan.simulated, p)
		}
	}
	return plan, nil
}

func meshModes(s string) (modes []tree.Mode, err error) {
	for _, name := range strings.Split(s, ",") {
		mode, err := tree.ParseMode(name)
		if err != nil {
			return nil, err
		}
		modes = append(modes, mode)
	}
	return modes, nil
}

// sizes are the numbers of a flag, which may be empty.
func sizes(c *cli.Context, flag string) ([]int, error) {
	if c.String(flag) == "" {
		return nil, nil
	}
	all, err := numbers(c.String(flag))
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	return all, nil
}

// meshConfig is what meshes of processes have in common.
func meshConfig(c *cli.Context) (cfg meshbench.Config, err error) {
	cfg = meshbench.Config{
		Seed:   c.Uint64(meshSeedFlag.Name),
		RPD:    c.String(rpdFlag.Name),
		Engine: c.String(engineFlag.Name),
		Logs:   c.String(logsFlag.Name),
		Log:    slog.New(slog.NewTextHandler(c.App.ErrWriter, nil)),
	}
	switch cfg.Engine {
	case "auto", "xdp", "socket":
	default:
		return cfg, fmt.Errorf("--engine %q is none of auto, xdp, socket", cfg.Engine)
	}
	if cfg.Topology, err = topology.Load(c.String(topologyFlag.Name)); err != nil {
		return cfg, err
	}
	if cfg.Routing, err = testnet.ParseRouting(c.String(routingFlag.Name)); err != nil {
		return cfg, err
	}
	return cfg, findProgram(rpdFlag.Name, &cfg.RPD)
}
