// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/config"
	"github.com/ethmcast/mdcs/rp/datapath"
	"github.com/ethmcast/mdcs/rp/datapath/socket"
	"github.com/ethmcast/mdcs/rp/datapath/xdp"
	"github.com/ethmcast/mdcs/rp/host"
	"github.com/ethmcast/mdcs/rp/hostnet"
)

// How often the XDP engine is opened when what stops it may pass, and the pause between.
const (
	tries    = 5
	tryAgain = 200 * time.Millisecond
)

// openEngine opens the engine of the configuration, and says in one line which one
// and why. The choice says it again, for the metrics and the health.
func openEngine(cfg *config.Datapath, c datapath.Config, log *slog.Logger) (datapath.Engine, rp.Choice, error) {
	devices := cfg.Devices
	if len(devices) == 0 {
		if name, err := host.Device(c.Addr.Addr()); err == nil { // else the XDP engine says what is wrong
			devices = []string{name}
		}
	}
	if err := xdp.Taken(cfg.Pin, c.Addr, devices); err != nil { // by whatever engine, nothing would arrive
		return nil, rp.Choice{}, err
	}
	if cfg.Engine == "socket" {
		return openSocket(cfg, c, nil, log)
	}
	opt := xdp.Options{Devices: cfg.Devices, Pin: cfg.Pin, Log: log}
	if opt.Pin != "" {
		if err := xdp.CheckPin(opt.Pin); err != nil {
			log.Warn("datapath not pinned: it ends with rpd", "reason", err)
			opt.Lacks, opt.Pin = []datapath.Lack{{What: "pins", Why: err.Error()}}, ""
		}
	}
	e, err := openXDP(c, opt)
	if err == nil && e.Adopted() == nil { // an adopted one may have peers by another way
		if err = host.Misplaced(c.Addr.Addr(), devices); err != nil {
			err = fmt.Errorf("xdp engine: %w", err)
		} else if cfg.Engine == "auto" {
			err = noService(e)
		}
		if err != nil {
			e.Close()
		}
	}
	if err == nil {
		choice, why := rp.Choice{Reason: "configured"}, "configured"
		if cfg.Engine == "auto" {
			choice.Reason, why = "auto", "it runs here"
		}
		log.Info("datapath engine", "engine", "xdp", "why", why)
		return e, choice, nil
	}
	if cfg.Engine == "xdp" {
		return nil, rp.Choice{}, err
	}
	if cfg.Pin != "" {
		dir, unknown := xdp.Left(cfg.Pin, c.Addr)
		if unknown != nil {
			return nil, rp.Choice{}, fmt.Errorf("%w; whether a datapath is pinned that forwards is not known: %w", err, unknown)
		}
		if dir != "" {
			return nil, rp.Choice{}, fmt.Errorf("%w; the datapath of an rpd before, pinned at %s, forwards meanwhile, and is not given up for the socket engine: start again", err, dir)
		}
	}
	return openSocket(cfg, c, err, log)
}

// noService says why the engine serves nobody, nil if it may serve somebody.
func noService(e *xdp.Engine) error {
	for _, l := range e.Lacks() {
		if l.NoService {
			return fmt.Errorf("xdp engine: %s: %s", l.What, l.Why)
		}
	}
	return nil
}

// openSocket opens the socket engine: as configured, or because the XDP engine does not run.
func openSocket(cfg *config.Datapath, c datapath.Config, instead error, log *slog.Logger) (datapath.Engine, rp.Choice, error) {
	if cfg.Pin != "" && xdp.CheckPin(cfg.Pin) == nil {
		// Programs of an rpd that was killed would take what the socket is to get.
		if err := xdp.TakeDown(cfg.Pin, c.Addr, log); err != nil {
			return nil, rp.Choice{}, err
		}
	}
	e, err := socket.Listen(c)
	if err != nil {
		return nil, rp.Choice{}, err
	}
	if instead == nil {
		log.Info("datapath engine", "engine", "socket", "why", "configured")
		return e, rp.Choice{Reason: "configured"}, nil
	}
	log.Warn("the xdp engine does not run here: fell back to the slower socket engine", "engine", "socket", "why", instead)
	return e, rp.Choice{Reason: "fallback", Fallback: instead.Error()}, nil
}

// openXDP attaches the XDP engine, after the checks that know in words what is missing. It
// tries again when the host was changed meanwhile.
func openXDP(c datapath.Config, opt xdp.Options) (e *xdp.Engine, err error) {
	for try := 1; ; try++ {
		if e, err = attach(c, opt); err == nil {
			return e, nil
		}
		if try == tries || !hostnet.Passes(err) {
			return nil, fmt.Errorf("xdp engine: %w", err)
		}
		time.Sleep(tryAgain)
	}
}

func attach(c datapath.Config, opt xdp.Options) (*xdp.Engine, error) {
	addr := c.Addr.Addr()
	if err := host.Basics(addr, opt.Devices).Err(); err != nil {
		return nil, err
	}
	if len(opt.Devices) == 0 {
		name, err := host.Device(addr)
		if err != nil {
			return nil, err
		}
		opt.Devices = []string{name}
	}
	return xdp.Attach(c, opt)
}
