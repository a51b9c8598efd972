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
)

// Timeouts of the listeners: they serve small answers to few.
const (
	readTimeout  = 10 * time.Second
	writeTimeout = 30 * time.Second
	stopTimeout  = time.Second
)

// Handler answers the operator's requests. ready returns nil, or why not.
func Handler(metrics prometheus.Gatherer, ready func() error) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /-/healthy", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "healthy")
	})
	mux.HandleFunc("GET /-/ready", func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	return mux
}

// Server is the listener.
type Server struct {
	http     http.Server
	listener net.Listener
	end      context.CancelFunc // of requests that would go on
	done     chan struct{}
}

// Start listens on addr and serves.
func Start(addr string, h http.Handler, log *slog.Logger) (*Server, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	s := serve(l, h, log, writeTimeout)
	log.Info("admin listens", "url", "http://"+l.Addr().String())
	return s, nil
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

// Addr returns the address that Start listened on.
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
