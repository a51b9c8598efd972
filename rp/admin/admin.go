// SPDX-License-Identifier: LGPL-3.0-or-later

// Package admin is what a replication point shows its operator: on an HTTP listener
// /metrics for Prometheus, /-/healthy and /-/ready for a supervisor, and on a unix
// socket what mdcs asks for.
package admin

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/ethmcast/mdcs/rp"
)

// Timeouts of the listeners: they serve small answers to few.
const (
	readTimeout  = 10 * time.Second
	writeTimeout = 30 * time.Second
	stopTimeout  = time.Second
)

// scrapes is how many ask for the metrics at a time: each has the engine count all sessions.
const scrapes = 2

// Handler answers the operator's requests. /-/healthy and /-/ready answer with status
// 200, or 503 if not, in words: the reasons and the warnings, a line each. To who accepts
// application/json they answer with all of the [rp.Health].
func Handler(metrics prometheus.Gatherer, health func() rp.Health) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{MaxRequestsInFlight: scrapes}))
	mux.HandleFunc("GET /-/healthy", func(w http.ResponseWriter, r *http.Request) {
		h := health()
		tell(w, r, h, "healthy", h.Live, h.Dead)
	})
	mux.HandleFunc("GET /-/ready", func(w http.ResponseWriter, r *http.Request) {
		h := health()
		tell(w, r, h, "ready", h.Ready, h.NotReady)
	})
	return mux
}

// tell answers whether an RP is something, and if not, why.
func tell(w http.ResponseWriter, r *http.Request, h rp.Health, what string, is bool, why []string) {
	status := http.StatusOK
	if !is {
		status = http.StatusServiceUnavailable
	}
	if r.Header.Get("Accept") == "application/json" {
		answer(w, status, h)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	if is {
		fmt.Fprintln(w, what)
	}
	for _, reason := range why {
		fmt.Fprintf(w, "not %s: %s\n", what, reason)
	}
	for _, warning := range h.Warnings {
		fmt.Fprintf(w, "warning: %s\n", warning)
	}
}

// Server is the listener.
type Server struct {
	http     http.Server
	listener net.Listener
	end      context.CancelFunc // of requests that would go on
	done     chan struct{}
}

// Listen takes the TCP address addr, for Serve.
func Listen(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	return l, nil
}

// Serve answers what comes to a listener, and closes it at the end.
func Serve(l net.Listener, h http.Handler, log *slog.Logger) *Server {
	s := serve(l, h, log, writeTimeout)
	log.Info("admin listens", "url", "http://"+l.Addr().String())
	return s
}

// serve serves what comes to a listener. An answer may take write.
func serve(l net.Listener, h http.Handler, log *slog.Logger, write time.Duration) *Server {
	ctx, end := context.WithCancel(context.Background())
	s := &Server{
		http: http.Server{
			Handler:      h,
			ReadTimeout:  readTimeout,
			WriteTimeout: write,
			ErrorLog:     slog.NewLogLogger(log.Handler(), slog.LevelDebug),
			BaseContext:  func(net.Listener) context.Context { return ctx },
		},
		listener: l,
		end:      end,
		done:     make(chan struct{}),
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(l); err != http.ErrServerClosed {
			log.Error("admin listener ended", "err", err)
		}
	}()
	return s
}

// Addr returns the address of the listener.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Stop ends the listener. Answers under way have a second.
func (s *Server) Stop() {
	s.end()
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		s.http.Close()
	}
	<-s.done
}
