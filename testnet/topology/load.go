// SPDX-License-Identifier: LGPL-3.0-or-later

package topology

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

//go:embed shipped/*.toml
var shipped embed.FS

const extension = ".toml"

// Names are the networks that are shipped.
func Names() []string {
	entries, err := shipped.ReadDir("shipped")
	if err != nil {
		panic(err) // the directory is part of the program
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = strings.TrimSuffix(e.Name(), extension)
	}
	return names
}

// Load reads a shipped network, or else a file. A network is called as its file.
func Load(nameOrPath string) (*Topology, error) {
	if text, err := shipped.ReadFile("shipped/" + nameOrPath + extension); err == nil {
		return Parse(nameOrPath, text)
	}
	text, err := os.ReadFile(nameOrPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no shipped topology or file %q (shipped: %s)", nameOrPath, strings.Join(Names(), ", "))
	}
	if err != nil {
		return nil, fmt.Errorf("topology: %w", err)
	}
	t, err := Parse(strings.TrimSuffix(filepath.Base(nameOrPath), extension), text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", nameOrPath, err)
	}
	return t, nil
}
