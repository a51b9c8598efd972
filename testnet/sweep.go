// SPDX-License-Identifier: LGPL-3.0-or-later

package testnet

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/ethmcast/mdcs/testnet/beacon"
	"github.com/ethmcast/mdcs/testnet/topology"
	"github.com/ethmcast/mdcs/testnet/workload"
)

// sweeps set what a sweep may vary, by key.
var sweeps = map[string]func(*CompareConfig, string) error{
	"nodes":  func(c *CompareConfig, v string) (err error) { c.Topology.Nodes.Count, err = strconv.Atoi(v); return },
	"degree": func(c *CompareConfig, v string) (err error) { c.Topology.Nodes.Degree, err = strconv.Atoi(v); return },
	"rate":   func(c *CompareConfig, v string) (err error) { c.Workload.Rate, err = strconv.ParseFloat(v, 64); return },
	"burst":  func(c *CompareConfig, v string) (err error) { c.Workload.Burst, err = strconv.Atoi(v); return },
	"bumps": func(c *CompareConfig, v string) (err error) {
		c.Workload.Bumps, err = strconv.ParseFloat(v, 64)
		return
	},
	// Of each link between ASes, in both directions.
	"loss": func(c *CompareConfig, v string) error {
		loss, err := strconv.ParseFloat(v, 64)
		for i := range c.Topology.Links {
			c.Topology.Links[i].Line.Loss = loss
		}
		return err
	},
}

// SweepKeys are what a sweep may vary.
func SweepKeys() []string { return slices.Sorted(maps.Keys(sweeps)) }

// Sweep makes a comparison for each value of "key=a,b,c". Their results are called
// "key=a" and so on, in the directory that the one of c would have been.
func (c *CompareConfig) Sweep(spec string) ([]CompareConfig, error) {
	key, values, ok := strings.Cut(spec, "=")
	set := sweeps[key]
	if !ok || set == nil {
		return nil, fmt.Errorf("%q is not KEY=A,B,C with KEY one of %s", spec, strings.Join(SweepKeys(), ", "))
	}
	var configs []CompareConfig
	for value := range strings.SplitSeq(values, ",") {
		one := *c
		one.Topology = new(topology.Topology)
		*one.Topology = *c.Topology
		one.Topology.Links = slices.Clone(c.Topology.Links)
		if err := set(&one, value); err != nil {
			return nil, fmt.Errorf("%s %q: %w", key, value, err)
		}
		one.Results, one.Name = filepath.Join(c.Results, c.Name), key+"="+value
		if _, err := one.experiment(0, 1); err != nil {
			return nil, fmt.Errorf("%s %q: %w", key, value, err)
		}
		configs = append(configs, one)
	}
	return configs, nil
}

// Planned is the workload of the first seed.
func (c *CompareConfig) Planned() (workload.File, error) {
	e, err := c.experiment(0, 1)
	if err != nil {
		return workload.File{}, err
	}
	return workload.File{ChainID: beacon.ChainID, Nodes: len(e.nodes), Txs: e.txs}, nil
}
