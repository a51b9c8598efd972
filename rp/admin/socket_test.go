// SPDX-License-Identifier: LGPL-3.0-or-later

package admin

import (
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// The socket is for owner and group, takes the place of a dead one and of nothing else,
// and goes with the server.
func TestSocket(t *testing.T) {
	defer goleak.VerifyNone(t)
	log := slog.New(slog.DiscardHandler)
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(`{"version":"v1"}`)) })
	dir := filepath.Join(t.TempDir(), "run", "rpd")
	path := filepath.Join(dir, "s")
	start := func() *Server {
		t.Helper()
		s, err := StartSocket(path, handler, log)
		require.NoError(t, err)
		st, err := NewClient(path).Status(t.Context())
		require.NoError(t, err)
		require.Equal(t, "v1", st.Version)
		info, err := os.Lstat(path)
		require.NoError(t, err)
		require.Equal(t, fs.ModeSocket|0o660, info.Mode())
		names, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Len(t, names, 1, "nothing is left besides")
		return s
	}
	refused := func(path, want string) {
		t.Helper()
		_, err := StartSocket(path, handler, log)
		require.ErrorContains(t, err, "admin socket "+path+": ")
		require.ErrorContains(t, err, want)
	}
	s := start()
	refused(path, "another rpd listens there")
	s.Stop()
	require.NoFileExists(t, path)

	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	dead.SetUnlinkOnClose(false)
	require.NoError(t, dead.Close())
	_, err = NewClient(path).Status(t.Context())
	require.EqualError(t, err, path+": nobody listens: rpd does not run any more")
	s = start()

	// Who took the place of this one keeps it.
	require.NoError(t, os.Remove(path))
	later := start()
	s.Stop()
	require.FileExists(t, path)
	later.Stop()

	require.NoError(t, os.WriteFile(path, []byte("precious"), 0o600))
	refused(path, "no socket")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "precious", string(text))
	refused(filepath.Join(path, "s"), "not a directory")
	refused(filepath.Join(dir, strings.Repeat("s", MaxSocketPath)), "bytes, at most 80")
}

func TestClientErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	_, err := NewClient(path).Status(t.Context())
	require.EqualError(t, err, path+" does not exist: rpd does not run, or has another [admin] socket")

	require.EqualError(t, NewClient(path).explain(&net.OpError{Op: "dial", Err: fs.ErrPermission}),
		path+": permission denied: only its owner and the members of its group may ask rpd")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	me, err := user.Current()
	require.NoError(t, err)
	require.ErrorContains(t, NewClient(path).explain(fs.ErrPermission), "only "+me.Username+" and the members of group ")

	require.NoError(t, os.Remove(path))
	body, code := "", http.StatusOK
	s, err := StartSocket(path, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		w.Write([]byte(body))
	}), slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer s.Stop()
	for _, c := range []struct {
		code       int
		body, want string
	}{
		{http.StatusOK, "[]", ": answer to status: json: "},
		{http.StatusTeapot, "x", ": rpd answers 418 I'm a teapot to status"},
		{http.StatusBadRequest, `{"error":"because"}`, "because"},
	} {
		code, body = c.code, c.body
		_, err := NewClient(path).Status(t.Context())
		require.ErrorContains(t, err, c.want)
	}
	code, body = http.StatusOK, "{\n"
	require.ErrorContains(t, NewClient(path).Events(t.Context(), nil), "event: ")
}
