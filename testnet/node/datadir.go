// SPDX-License-Identifier: LGPL-3.0-or-later

package node

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/ethereum/go-ethereum/core"
)

// InitDatadir makes a data directory with the genesis, by `geth init`.
func InitDatadir(ctx context.Context, binary, dir string, genesis *core.Genesis) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("init data directory: %w", err)
	}
	text, err := json.MarshalIndent(genesis, "", "  ")
	if err != nil {
		return fmt.Errorf("init data directory: %w", err)
	}
	file := filepath.Join(dir, "genesis.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return fmt.Errorf("init data directory: %w", err)
	}
	cmd := exec.CommandContext(ctx, binary, "init", "--datadir", dir, "--state.scheme", "path", file)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("init data directory: %s init: %w: %s", binary, err, lastLines(string(out), 3))
	}
	return nil
}

// CloneDatadir copies an initialised data directory that no node uses. The clone
// has no identity yet.
func CloneDatadir(from, to string) error {
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return fmt.Errorf("clone data directory: %w", err)
	}
	return nil
}
