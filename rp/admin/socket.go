// SPDX-License-Identifier: LGPL-3.0-or-later

package admin

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
)

// DefaultSocket is where the operator's socket is unless configured.
const DefaultSocket = "/run/rpd/admin.sock"

// MaxSocketPath is the length of the longest path that StartSocket takes, in bytes: a
// unix socket has at most 107, and while it is made it has a longer one.
const MaxSocketPath = 80

const (
	socketMode = 0o660
	socketDir  = 0o755
)

// StartSocket listens on the unix socket of a path, for its owner and group alone, and
// serves. It makes the directory, and takes the place of a socket on which nobody
// listens. Stop removes the socket.
func StartSocket(path string, h http.Handler, log *slog.Logger) (*Server, error) {
	l, err := listenSocket(path)
	if err != nil {
		return nil, fmt.Errorf("admin socket %s: %w", path, err)
	}
	s := serve(l, h, log, writeTimeout)
	log.Info("admin listens", "socket", path)
	return s, nil
}

func listenSocket(path string) (net.Listener, error) {
	if len(path) > MaxSocketPath {
		return nil, fmt.Errorf("the path has %d bytes, at most %d are possible", len(path), MaxSocketPath)
	}
	if err := vacant(path); err != nil {
		return nil, err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, socketDir); err != nil {
		return nil, err
	}
	// It comes to its place with its mode, from a directory that is closed to others.
	closed, err := os.MkdirTemp(dir, ".rpd")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(closed)
	name := filepath.Join(closed, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // it looks for the old name
	if err = os.Chmod(name, socketMode); err == nil {
		err = os.Rename(name, path)
	}
	var own fs.FileInfo
	if err == nil {
		own, err = os.Lstat(path)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return &socket{l, path, own}, nil
}

// vacant returns an error when something is at a path that must stay.
func vacant(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("there is a file that is no socket")
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
		return errors.New("another rpd listens there")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// socket is a listener that removes its file.
type socket struct {
	net.Listener
	path string
	own  fs.FileInfo
}

// Close implements net.Listener.
func (s *socket) Close() error {
	err := s.Listener.Close()
	if at, statErr := os.Lstat(s.path); statErr == nil && os.SameFile(at, s.own) {
		err = errors.Join(err, os.Remove(s.path))
	}
	return err
}
