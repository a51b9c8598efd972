// SPDX-License-Identifier: LGPL-3.0-or-later

package results_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/testnet/results"
)

func TestWrite(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	table := func(w io.Writer) error { _, err := io.WriteString(w, "x 1\n"); return err }
	require.NoError(t, results.Write(dir, "x.json", map[string]int{"x": 1}, "x.txt", table))
	for name, want := range map[string]string{"x.json": "{\n  \"x\": 1\n}\n", "x.txt": "x 1\n"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, want, string(text))
	}
	require.ErrorContains(t, results.Write(dir, "y.json", func() {}, "y.txt", table), "encode result")
	broken := errors.New("no table")
	require.ErrorIs(t, results.Write(dir, "y.json", 1, "y.txt", func(io.Writer) error { return broken }), broken)
	require.Error(t, results.Write(filepath.Join(dir, "x.txt"), "y.json", 1, "y.txt", table), "a file is in the way")
}
