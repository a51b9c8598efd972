// SPDX-License-Identifier: LGPL-3.0-or-later

package peerside

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/p2p/enode"
)

// maxSet is how many bans of the operator there may be, and maxBanFile how many bytes the file
// of them may have, which is about twice of what they take.
const (
	maxSet     = 4096
	maxBanFile = 1 << 20
)

// ErrUnkept says that an operator's ban holds, but ends with the process, or that one that was
// ended is back with the next process.
var ErrUnkept = errors.New("not kept on disk")

// banFile keeps the bans of the operator for the next process. It is safe for concurrent use.
type banFile struct {
	path string // "" keeps none

	mu      sync.Mutex
	damaged error // the file cannot be read, and is not overwritten while it is there
}

// keptBan is a ban in the file: of a node or a prefix.
type keptBan struct {
	Node   *enode.ID     `json:"node,omitempty"`
	Prefix *netip.Prefix `json:"prefix,omitempty"`
	Until  time.Time     `json:"until"`
}

type keptBans struct {
	Bans []keptBan `json:"bans"`
}

// load reads the file; there is none at first.
func (f *banFile) load() ([]keptBan, error) {
	if f.path == "" {
		return nil, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	all, err := readBans(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	f.damaged = err
	return all, err
}

func readBans(path string) ([]keptBan, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxBanFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxBanFile {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxBanFile)
	}
	var all keptBans
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&all); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("%s: there is something behind the bans", path)
	}
	if len(all.Bans) > maxSet {
		return nil, fmt.Errorf("%s: %d bans, there may be %d", path, len(all.Bans), maxSet)
	}
	for i, x := range all.Bans {
		if err := x.check(); err != nil {
			return nil, fmt.Errorf("%s: ban %d: %w", path, i+1, err)
		}
	}
	return all.Bans, nil
}

func (x *keptBan) check() error {
	switch p := x.Prefix; {
	case (x.Node == nil) == (p == nil):
		return errors.New("it must have a node or a prefix")
	case x.Until.IsZero():
		return errors.New("it has no end")
	case p != nil && (!p.IsValid() || !p.Addr().Is6() || p.Addr().Is4In6() || *p != p.Masked()):
		return fmt.Errorf("%v is no IPv6 prefix", p)
	}
	return nil
}

// save replaces the file by one with the bans of now, which it asks for. A file that cannot be read
// is left alone, which is an error for a ban, but not for an unban: nothing of it holds.
func (f *banFile) save(ban bool, now func() []keptBan) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.damaged != nil {
		if _, err := os.Lstat(f.path); !errors.Is(err, fs.ErrNotExist) {
			if !ban {
				return nil
			}
			return fmt.Errorf("%w: %v; correct the file and start rpd again, or remove it", ErrUnkept, f.damaged)
		}
		f.damaged = nil
	}
	text, err := json.MarshalIndent(keptBans{now()}, "", "  ")
	if err == nil {
		err = replaceFile(f.path, append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("%w: %v", ErrUnkept, err)
	}
	return nil
}

// replaceFile writes a file such that after a crash there is the old one or the new one.
func replaceFile(path string, text []byte) error {
	file, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		os.Remove(file.Name())
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
