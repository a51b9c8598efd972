// SPDX-License-Identifier: LGPL-3.0-or-later

package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/ethmcast/mdcs/testnet"
	"github.com/ethmcast/mdcs/testnet/delayline"
)

// Net is what a server needs of a net, in fact a [testnet.Net].
type Net interface {
	Status(context.Context) (*testnet.Status, error)
	Links() []testnet.LinkStatus
	SetLink(string, testnet.LinkChange) error
	Partition(groups [][]string) error
	Counters() ([]delayline.Counters, error)
	ClearWire() error
	Path(host string) (string, error)
}

// Server answers for one net.
type Server struct {
	dir, name string
	held      *os.File
	http      *http.Server
	served    sync.WaitGroup

	down     chan struct{}
	downOnce sync.Once
	gone     chan struct{} // closed when the net is, and ended is set
	ended    error

	mu       sync.Mutex
	progress testnet.Progress
	net      Net // nil until it is ready
}

// Listen claims a name and serves, before there is a net. It returns [ErrUp] if
// another process has the name.
func Listen(dir, name string) (*Server, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("serve net %s: %w", name, err)
	}
	held, err := lockOf(dir, name)
	if err != nil {
		return nil, err
	}
	socket := file(dir, name, socketSuffix)
	os.Remove(socket) // of a process that was killed
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serve net %s: %w", name, err), remove(dir, name, held))
	}
	s := &Server{dir: dir, name: name, held: held, down: make(chan struct{}), gone: make(chan struct{})}
	s.http = &http.Server{Handler: s.routes()}
	s.served.Go(func() { s.http.Serve(l) })
	return s, nil
}

// dyingTime is how long a process that was killed may hold its lock.
const dyingTime = 2 * time.Second

// lockOf is lock, but waits for a holder that does not answer to be gone.
func lockOf(dir, name string) (*os.File, error) {
	for end := time.Now().Add(dyingTime); ; time.Sleep(downInterval) {
		held, err := lock(dir, name)
		if !errors.Is(err, ErrUp) || time.Now().After(end) {
			return held, err
		}
		if conn, errDial := net.Dial("unix", file(dir, name, socketSuffix)); errDial == nil {
			conn.Close()
			return nil, err
		}
	}
}

// Progress is for [testnet.Config].
func (s *Server) Progress(p testnet.Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.progress = p
}

// Ready says that the net is up.
func (s *Server) Ready(n Net) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.net = n
}

// Down is closed when somebody asked for the end of the net.
func (s *Server) Down() <-chan struct{} { return s.down }

// answerTime is how long the last answers may take.
const answerTime = 2 * time.Second

// Close ends the service and frees the name. Call it once and last, when the net is
// gone, with the error of its end: [Client.Down] waits for that, and returns the error.
func (s *Server) Close(ended error) error {
	s.ended = ended
	close(s.gone)
	ctx, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	err := s.http.Shutdown(ctx)
	if err != nil { // a client that does not read
		err = s.http.Close()
	}
	s.served.Wait()
	return errors.Join(err, remove(s.dir, s.name, s.held))
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", handle(func(r *http.Request, _ none) (Status, error) {
		s.mu.Lock()
		st := Status{Name: s.name, Pid: os.Getpid(), Ready: s.net != nil, Progress: s.progress}
		n := s.net
		s.mu.Unlock()
		if n == nil {
			return st, nil
		}
		var err error
		st.Net, err = n.Status(r.Context())
		return st, err
	}))
	mux.HandleFunc("GET /links", withNet(s, func(n Net, _ *http.Request, _ none) ([]testnet.LinkStatus, error) {
		return n.Links(), nil
	}))
	mux.HandleFunc("PATCH /links/{name}", withNet(s, func(n Net, r *http.Request, change testnet.LinkChange) (none, error) {
		return none{}, n.SetLink(r.PathValue("name"), change)
	}))
	mux.HandleFunc("PUT /partition", withNet(s, func(n Net, _ *http.Request, groups [][]string) (none, error) {
		return none{}, n.Partition(groups)
	}))
	mux.HandleFunc("GET /counters", withNet(s, func(n Net, _ *http.Request, _ none) ([]delayline.Counters, error) {
		return n.Counters()
	}))
	mux.HandleFunc("DELETE /counters", withNet(s, func(n Net, _ *http.Request, _ none) (none, error) {
		return none{}, n.ClearWire()
	}))
	mux.HandleFunc("GET /hosts/{name}/namespace", withNet(s, func(n Net, r *http.Request, _ none) (string, error) {
		return n.Path(r.PathValue("name"))
	}))
	mux.HandleFunc("POST /down", handle(func(r *http.Request, _ none) (none, error) {
		s.downOnce.Do(func() { close(s.down) })
		select {
		case <-s.gone:
			return none{}, s.ended
		case <-r.Context().Done():
			return none{}, context.Cause(r.Context())
		}
	}))
	return mux
}

// none is the body of a request or answer that has none.
type none struct{}

// failure is the body of an answer that is an error.
type failure struct {
	Error string `json:"error"`
}

// handle makes a handler of a function from the JSON of the request to that of
// the answer.
func handle[In, Out any](f func(*http.Request, In) (Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var (
			in  In
			out Out
			err error
		)
		if _, empty := any(in).(none); !empty {
			d := json.NewDecoder(r.Body)
			d.DisallowUnknownFields()
			err = d.Decode(&in)
		}
		if err == nil {
			out, err = f(r, in)
		}
		w.Header().Set("Content-Type", "application/json")
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			json.NewEncoder(w).Encode(failure{err.Error()})
			return
		}
		json.NewEncoder(w).Encode(out)
	}
}

// withNet is handle for what needs the net to be up.
func withNet[In, Out any](s *Server, f func(Net, *http.Request, In) (Out, error)) http.HandlerFunc {
	return handle(func(r *http.Request, in In) (out Out, err error) {
		s.mu.Lock()
		n := s.net
		s.mu.Unlock()
		if n == nil {
			return out, fmt.Errorf("net %s is still starting", s.name)
		}
		return f(n, r, in)
	})
}
