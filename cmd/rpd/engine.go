// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"fmt"
	"log/slog"

	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/config"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/socket"
	"github.com/ethmcast/mdcs/rp/datapath/xdp"
	"github.com/ethmcast/mdcs/rp/host"
)

// openEngine opens the engine of the configuration, and says in one line which one
// and why. The choice says it again, for the metrics and the health.
func openEngine(cfg *config.Datapath, c datapath.Config, log *slog.Logger) (datapath.Engine, rp.Choice, error) {
	name, why := cfg.Engine, "configured"
	choice := rp.Choice{Reason: "configured"}
	if name == "auto" {
		choice.Reason = "auto"
	}
	pin, unpinned := cfg.Pin, error(nil)
	if pin != "" {
		if unpinned = xdp.CheckPin(pin); unpinned != nil {
			pin = ""
		}
	}
	if name != "socket" {
		e, err := openXDP(c, xdp.Options{Devices: cfg.Devices, Pin: pin, Log: log})
		if err == nil {
			if unpinned != nil {
				log.Warn("datapath not pinned: it ends with rpd", "reason", unpinned)
			}
			log.Info("datapath engine", "engine", "xdp", "why", map[string]string{"auto": "it runs here", "xdp": why}[name])
			return e, choice, nil
		}
		if name == "xdp" {
			return nil, choice, err
		}
		why = err.Error()
		choice = rp.Choice{Reason: "fallback", Fallback: why}
	}
	if pin != "" {
		// Programs of an rpd that was killed would take what the socket is to get.
		if err := xdp.TakeDown(pin, c.Addr, log); err != nil {
			return nil, choice, err
		}
	}
	e, err := socket.Listen(c)
	if err != nil {
		return nil, choice, err
	}
	log.Info("datapath engine", "engine", "socket", "why", why)
	return e, choice, nil
}

// openXDP attaches the XDP engine, after the checks that know in words what is missing.
func openXDP(c datapath.Config, opt xdp.Options) (datapath.Engine, error) {
	addr := c.Addr.Addr()
	if err := host.Basics(addr).Err(); err != nil {
		return nil, fmt.Errorf("xdp engine: %w", err)
	}
	if len(opt.Devices) == 0 {
		name, err := host.Device(addr)
		if err != nil {
			return nil, fmt.Errorf("xdp engine: %w", err)
		}
		opt.Devices = []string{name}
	}
	e, err := xdp.Attach(c, opt)
	if err != nil {
		return nil, fmt.Errorf("xdp engine: %w", err)
	}
	return e, nil
}
