// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// file is the form of a description in TOML.
type file struct {
	Nodes    nodesTable           `toml:"nodes,omitempty"`
	Class    map[string]lineTable `toml:"class,omitempty"`
	RP       *lineTable           `toml:"rp,omitempty"` // of replication points
	Defaults defaultsTable        `toml:"defaults,omitempty"`
	AS       []asTable            `toml:"as"`
	IXP      []ixpTable           `toml:"ixp,omitempty"`
	Link     []linkTable          `toml:"link,omitempty"`
	Host     []hostTable          `toml:"host,omitempty"`
}

type nodesTable struct {
	Count  int    `toml:"count,omitempty"`
	Degree int    `toml:"degree,omitempty"`
	Seed   uint64 `toml:"seed,omitempty"`
}

type defaultsTable struct {
	Classes map[string]float64 `toml:"classes,omitempty,inline"` // of ASes
	Link    lineTable          `toml:"link,omitempty"`
	Port    lineTable          `toml:"port,omitempty"` // of IXPs
}

type asTable struct {
	Name    string             `toml:"name"`
	Number  int                `toml:"number"`
	Region  string             `toml:"region,omitempty"`
	Share   float64            `toml:"share,omitempty"`
	RP      bool               `toml:"rp,omitempty"`
	Access  duration           `toml:"access,omitempty"`
	Classes map[string]float64 `toml:"classes,omitempty,inline"`
}

// linkTable names either a provider and its customer or two peers.
type linkTable struct {
	Provider string   `toml:"provider,omitempty"`
	Customer string   `toml:"customer,omitempty"`
	Peers    []string `toml:"peers,omitempty"`
	lineTable
}

type ixpTable struct {
	Name   string        `toml:"name"`
	Number int           `toml:"number"`
	Member []memberTable `toml:"member,omitempty"`
}

type memberTable struct {
	AS       string    `toml:"as"`
	ExportTo *[]string `toml:"export_to,omitempty"` // AS names
	lineTable
}

type hostTable struct {
	Name  string `toml:"name"`
	AS    string `toml:"as"`
	Role  Role   `toml:"role"`
	Class string `toml:"class,omitempty"`
}

// lineTable has nil where the default is meant.
type lineTable struct {
	Delay  *duration `toml:"delay,omitempty"`
	Jitter *duration `toml:"jitter,omitempty"`
	Rate   *bitRate  `toml:"rate,omitempty"`
	Loss   *float64  `toml:"loss,omitempty"`
	Queue  *duration `toml:"queue,omitempty"`
}

// Parse reads and checks a description in TOML, of a network with a name. The
// error has a line for each mistake, first those of the form alone.
func Parse(name string, data []byte) (*Topology, error) {
	var f file
	dec := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return nil, fmt.Errorf("topology %s: %w", name, explain(err))
	}
	t, problems := f.topology(name)
	if len(problems) == 0 {
		problems = t.problems()
	}
	if len(problems) == 0 {
		return t, nil
	}
	lines := elementLines(data)
	errs := make([]error, len(problems))
	for i, p := range problems {
		errs[i] = p
		if n := lines[p.element]; n > 0 {
			errs[i] = fmt.Errorf("line %d: %w", n, p)
		}
	}
	return nil, fmt.Errorf("topology %s: %w", name, errors.Join(errs...))
}

// explain names the lines and keys of a decoding error.
func explain(err error) error {
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		var errs []error
		for _, e := range strict.Errors {
			errs = append(errs, locate(&e, "unknown key"))
		}
		return errors.Join(errs...)
	}
	if e, ok := errors.AsType[*toml.DecodeError](err); ok {
		return locate(e, strings.TrimPrefix(e.Error(), "toml: "))
	}
	return err
}

func locate(e *toml.DecodeError, text string) error {
	if key := e.Key(); len(key) > 0 {
		text = strings.Join(key, ".") + ": " + text
	}
	line, _ := e.Position()
	return fmt.Errorf("line %d: %s", line, text)
}
