// SPDX-License-Identifier: LGPL-3.0-or-later

package control

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/ethmcast/mdcs/testnet"
	"github.com/ethmcast/mdcs/testnet/delayline"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("CONTROL_TEST_DIR"); dir != "" { // see TestRemainsOfAKilledProcess
		if _, err := Listen(dir, "killed"); err != nil {
			panic(err)
		}
		os.Stdout.WriteString("up\n")
		select {}
	}
	os.Exit(m.Run())
}

// fake is a net of one line.
type fake struct {
	line    testnet.LinkStatus
	groups  [][]string
	cleared bool
}

func (f *fake) Status(context.Context) (*testnet.Status, error) {
	return &testnet.Status{Topology: "fake", Hosts: []testnet.HostStatus{{Name: "a-g1"}}}, nil
}
func (f *fake) Links() []testnet.LinkStatus { return []testnet.LinkStatus{f.line} }

func (f *fake) SetLink(name string, c testnet.LinkChange) error {
	if name != f.line.Name {
		return errors.New("no such link")
	}
	f.line.Delay, f.line.State = *c.Delay, *c.State
	return nil
}
func (f *fake) Partition(groups [][]string) error { f.groups = groups; return nil }
func (f *fake) Counters() ([]delayline.Counters, error) {
	c := delayline.Counters{Link: f.line.Name}
	c.AB.Classes[delayline.Data] = delayline.Count{Frames: 3, Bytes: 300}
	return []delayline.Counters{c}, nil
}
func (f *fake) ClearWire() error                 { f.cleared = true; return nil }
func (f *fake) Path(host string) (string, error) { return "/run/netns/x-" + host, nil }

func TestClientAndServer(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	_, err := NewClient(dir, "")
	require.ErrorContains(t, err, "no net is up")
	c, err := NewClient(dir, "one")
	require.NoError(t, err)
	_, err = c.Status(ctx)
	require.ErrorIs(t, err, ErrNotUp)

	s, err := Listen(dir, "one")
	require.NoError(t, err)
	_, err = Listen(dir, "one")
	require.ErrorIs(t, err, ErrUp)
	c, err = NewClient(dir, "") // the only one
	require.NoError(t, err)
	require.Equal(t, "one", c.Name())

	// While it starts there is a status, and nothing else.
	s.Progress(testnet.Progress{Stage: "nodes", Done: 2, Total: 5})
	st, err := c.Status(ctx)
	require.NoError(t, err)
	require.Equal(t, Status{Name: "one", Pid: os.Getpid(), Progress: testnet.Progress{Stage: "nodes", Done: 2, Total: 5}}, st)
	_, err = c.Links(ctx)
	require.ErrorContains(t, err, "still starting")

	f := &fake{line: testnet.LinkStatus{Name: "ix:a/b"}}
	s.Ready(f)
	st, err = c.Status(ctx)
	require.NoError(t, err)
	require.True(t, st.Ready)
	require.Equal(t, "fake", st.Net.Topology)
	require.NoError(t, c.SetLink(ctx, "ix:a/b", testnet.LinkChange{Delay: new(time.Second), State: new(testnet.Down)}))
	require.ErrorContains(t, c.SetLink(ctx, "a-b", testnet.LinkChange{}), "no such link")
	links, err := c.Links(ctx)
	require.NoError(t, err)
	require.Equal(t, []testnet.LinkStatus{{Name: "ix:a/b", Delay: time.Second, State: testnet.Down}}, links)
	require.NoError(t, c.Partition(ctx, [][]string{{"a"}, {"b"}}))
	require.Equal(t, [][]string{{"a"}, {"b"}}, f.groups)
	require.NoError(t, c.Partition(ctx, nil))
	require.Empty(t, f.groups)
	counters, err := c.Counters(ctx)
	require.NoError(t, err)
	require.Equal(t, uint64(300), counters[0].AB.Classes[delayline.Data].Bytes)
	require.NoError(t, c.ClearCounters(ctx))
	require.True(t, f.cleared)
	path, err := c.Path(ctx, "a-g1")
	require.NoError(t, err)
	require.Equal(t, "/run/netns/x-a-g1", path)

	// Down returns when the server is gone.
	done := make(chan error)
	go func() { done <- c.Down(ctx) }()
	<-s.Down()
	select {
	case err := <-done:
		t.Fatal("Down returned before the end:", err)
	case <-time.After(5 * downInterval):
	}
	require.NoError(t, s.Close(nil))
	require.NoError(t, <-done)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestSeveralNets(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"one", "two"} {
		s, err := Listen(dir, name)
		require.NoError(t, err)
		defer s.Close(nil)
	}
	names, err := Nets(dir)
	require.NoError(t, err)
	require.Equal(t, []string{"one", "two"}, names)
	_, err = NewClient(dir, "")
	require.ErrorContains(t, err, "one, two")
}

func TestNames(t *testing.T) {
	for _, name := range []string{"", ".", "..", "../x", "a b", "-a", "a/b"} {
		require.Error(t, CheckName(name), name)
	}
	require.NoError(t, CheckName("ten-as_2.1"))
	_, err := Listen(t.TempDir(), "../x")
	require.ErrorContains(t, err, "../x")
}

func TestRemainsOfAKilledProcess(t *testing.T) {
	dir := t.TempDir()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "CONTROL_TEST_DIR="+dir)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = out.Read(make([]byte, 3))
	require.NoError(t, err)
	names, err := Nets(dir)
	require.NoError(t, err)
	require.Equal(t, []string{"killed"}, names)
	require.NoError(t, cmd.Process.Kill())
	cmd.Wait()
	require.FileExists(t, filepath.Join(dir, "killed.sock"))

	c, err := NewClient(dir, "killed")
	require.NoError(t, err)
	require.ErrorIs(t, c.Down(t.Context()), ErrNotUp)
	s, err := Listen(dir, "killed") // a new one takes its place
	require.NoError(t, err)
	require.NoError(t, s.Close(nil))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

// TestDownSaysWhatIsLeft has a net that cannot be removed, and a process that ends before
// its net.
func TestDownSaysWhatIsLeft(t *testing.T) {
	dir := t.TempDir()
	down := func(end func(*Server)) error {
		s, err := Listen(dir, "one")
		require.NoError(t, err)
		c, err := NewClient(dir, "one")
		require.NoError(t, err)
		done := make(chan error)
		go func() { done <- c.Down(t.Context()) }()
		<-s.Down()
		end(s)
		return <-done
	}
	err := down(func(s *Server) { require.NoError(t, s.Close(errors.New("namespace x is busy"))) })
	require.ErrorContains(t, err, "namespace x is busy")
	require.ErrorContains(t, err, "mdcs testnet clean")
	err = down(func(s *Server) { // as if the process were killed
		s.http.Close()
		s.served.Wait()
		require.NoError(t, remove(s.dir, s.name, s.held))
	})
	require.ErrorContains(t, err, "ended before the net")
}
