// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"log/slog"
	"reflect"
	"slices"
	"strings"

	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/config"
)

// reloads are the keys that take effect without a restart, by table.
var reloads = map[string][]string{
	"mesh": {"peers"},
	"limits": {
		"max_peers", "max_per_64", "max_per_48", "lease", "publish_rate", "publish_burst", "egress_per_geth", "egress_per_rp",
		"egress_total", "join_rate", "join_rate_per_48", "join_rate_per_64",
	},
	"admission": {"join", "publish", "list"},
	"log":       {"level"},
}

// changes returns the keys whose values differ, those that reload and those that do not.
func changes(before, after *config.Config) (reloaded, restart []string) {
	a, b := reflect.ValueOf(*before), reflect.ValueOf(*after)
	for i := range a.NumField() {
		table := a.Type().Field(i).Tag.Get("toml")
		for j := range a.Field(i).NumField() {
			if reflect.DeepEqual(a.Field(i).Field(j).Interface(), b.Field(i).Field(j).Interface()) {
				continue
			}
			key := a.Field(i).Type().Field(j).Tag.Get("toml")
			if slices.Contains(reloads[table], key) {
				reloaded = append(reloaded, table+"."+key)
			} else {
				restart = append(restart, table+"."+key)
			}
		}
	}
	return reloaded, restart
}

// reload reads the configuration again and gives what may change to a replication point that
// serves. It returns the configuration that holds: that of before when the file is bad.
func reload(point *rp.RP, path string, now *config.Config, level *slog.LevelVar, log *slog.Logger) *config.Config {
	next, err := load(path)
	if err != nil {
		log.Error("configuration not reloaded: nothing changed", "err", err)
		return now
	}
	reloaded, restart := changes(now, next)
	applied := *now // what needs a restart stays as it is
	applied.Mesh.Peers, applied.Limits, applied.Admission, applied.Log = next.Mesh.Peers, next.Limits, next.Admission, next.Log
	found := uint64(0) // the limit of now, if it is that of the line
	if now.Limits.EgressTotal == 0 {
		found = point.Settings().EgressTotal
	}
	copies := egressTotal(&applied, found)
	settings, err := settingsOf(&applied, copies.total)
	if err == nil {
		err = point.Set(*settings)
	}
	if err != nil {
		log.Error("configuration not reloaded: nothing changed", "err", err)
		return now
	}
	level.Set(applied.Log.Level)
	copies.log(log)
	log.Info("configuration reloaded", "changed", strings.Join(reloaded, " "))
	if len(restart) > 0 {
		log.Warn("these changes need a restart of rpd", "keys", strings.Join(restart, " "))
	}
	return &applied
}
