// SPDX-License-Identifier: LGPL-3.0-or-later

// Package results writes what was measured, for programs and for people.
package results

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// JSON is a value as it stands in files: indented, with a newline at its end.
func JSON(v any) ([]byte, error) {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode result: %w", err)
	}
	return append(text, '\n'), nil
}

// Write writes a value and its table to two files of a directory, which it makes.
func Write(dir, file string, v any, tableFile string, table func(io.Writer) error) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text, err := JSON(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, file), text, 0o644); err != nil {
		return err
	}
	var lines bytes.Buffer
	if err := table(&lines); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, tableFile), lines.Bytes(), 0o644)
}
