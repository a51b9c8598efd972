// SPDX-License-Identifier: LGPL-3.0-or-later

package admin

import (
	"bufio"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/ethmcast/mdcs/rp"
	"github.com/ethmcast/mdcs/rp/events"
)

func TestServer(t *testing.T) {
	defer goleak.VerifyNone(t)
	log := slog.New(slog.DiscardHandler)
	registry := prometheus.NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "things_total", Help: "Things."})
	registry.MustRegister(counter)
	counter.Inc()
	health := rp.Health{Live: true, Ready: true, Warnings: []string{"mesh links down: ab"}}
	l, err := Listen("[::1]:0")
	require.NoError(t, err)
	s := Serve(l, Handler(registry, func() rp.Health { return health }), log)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	ask := func(path, accept string) (int, string) {
		t.Helper()
		req, err := http.NewRequest(http.MethodGet, "http://"+s.Addr()+path, nil)
		require.NoError(t, err)
		req.Header.Set("Accept", accept)
		resp, err := client.Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(body)
	}
	get := func(path string) (int, string) { return ask(path, "*/*") }
	code, body := get("/-/healthy")
	require.Equal(t, 200, code, body)
	require.Equal(t, "healthy\nwarning: mesh links down: ab\n", body)
	code, body = get("/-/ready")
	require.Equal(t, 200, code, body)
	require.Equal(t, "ready\nwarning: mesh links down: ab\n", body)
	health = rp.Health{Live: true, NotReady: []string{"full", "draining"}}
	code, body = get("/-/healthy")
	require.Equal(t, 200, code, body)
	require.Equal(t, "healthy\n", body)
	code, body = get("/-/ready")
	require.Equal(t, 503, code)
	require.Equal(t, "not ready: full\nnot ready: draining\n", body)
	health = rp.Health{Dead: []string{"the mesh hangs"}, NotReady: []string{"the mesh hangs"}}
	code, body = get("/-/healthy")
	require.Equal(t, 503, code)
	require.Equal(t, "not healthy: the mesh hangs\n", body)
	code, body = ask("/-/healthy", "application/json")
	require.Equal(t, 503, code)
	var told rp.Health
	require.NoError(t, json.Unmarshal([]byte(body), &told))
	require.Equal(t, health, told)
	code, body = get("/metrics")
	require.Equal(t, 200, code)
	require.Contains(t, body, "things_total 1\n")
	code, _ = get("/elsewhere")
	require.Equal(t, 404, code)
	resp, err := client.Post("http://"+s.Addr()+"/metrics", "text/plain", nil)
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, 405, resp.StatusCode)

	_, err = Listen(s.Addr())
	require.ErrorContains(t, err, "admin: ")
	s.Stop()
	_, err = client.Get("http://" + s.Addr() + "/-/healthy")
	require.Error(t, err)
}

// A stream of events outlives the time that an answer may take.
func TestStreamOutlivesTimeout(t *testing.T) {
	defer goleak.VerifyNone(t)
	const timeout = 20 * time.Millisecond
	l, err := net.Listen("tcp", "[::1]:0")
	require.NoError(t, err)
	hub := events.NewHub()
	o := Operator{Point: eventful{hub: hub}}
	s := serve(l, o.Handler(), slog.New(slog.DiscardHandler), timeout)
	defer s.Stop()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + s.Addr() + "/v1/events")
	require.NoError(t, err)
	defer resp.Body.Close()
	time.Sleep(5 * timeout) // in which nothing may happen
	hub.Emit(events.Event{Kind: events.Rekey})
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, `"kind":"rekey"`)
}

// eventful is a Point that has events alone.
type eventful struct {
	Point
	hub *events.Hub
}

func (e eventful) Events() *events.Hub { return e.hub }
