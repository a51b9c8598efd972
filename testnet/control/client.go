// SPDX-License-Identifier: LGPL-3.0-or-later

package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/ethmcast/mdcs/testnet"
	"github.com/ethmcast/mdcs/testnet/delayline"
)

// Client talks to the process that runs a net.
type Client struct {
	dir, name string
	http      *http.Client
}

// NewClient is a client for the net of a name. Without a name it takes the only
// one that is up.
func NewClient(dir, name string) (*Client, error) {
	if name == "" {
		names, err := Nets(dir)
		switch {
		case err != nil:
			return nil, err
		case len(names) == 0:
			return nil, errors.New("no net is up")
		case len(names) > 1:
			return nil, fmt.Errorf("several nets are up, name one: %s", strings.Join(names, ", "))
		}
		name = names[0]
	}
	if err := CheckName(name); err != nil {
		return nil, err
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", file(dir, name, socketSuffix))
	}
	return &Client{dir, name, &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}, nil
}

// Name is the name of the net.
func (c *Client) Name() string { return c.name }

// Status asks how the net is; while it starts, for its progress.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.call(ctx, http.MethodGet, "/status", nil, &s)
}

// Links asks for all lines.
func (c *Client) Links(ctx context.Context) (list []testnet.LinkStatus, err error) {
	return list, c.call(ctx, http.MethodGet, "/links", nil, &list)
}

// SetLink is [testnet.Net.SetLink].
func (c *Client) SetLink(ctx context.Context, name string, change testnet.LinkChange) error {
	return c.call(ctx, http.MethodPatch, "/links/"+url.PathEscape(name), change, nil)
}

// Partition is [testnet.Net.Partition].
func (c *Client) Partition(ctx context.Context, groups [][]string) error {
	return c.call(ctx, http.MethodPut, "/partition", groups, nil)
}

// Counters is [testnet.Net.Counters].
func (c *Client) Counters(ctx context.Context) (list []delayline.Counters, err error) {
	return list, c.call(ctx, http.MethodGet, "/counters", nil, &list)
}

// ClearCounters makes the counting begin anew.
func (c *Client) ClearCounters(ctx context.Context) error {
	return c.call(ctx, http.MethodDelete, "/counters", nil, nil)
}

// Path asks for the file of the namespace of a host, an AS or an IXP.
func (c *Client) Path(ctx context.Context, host string) (path string, err error) {
	return path, c.call(ctx, http.MethodGet, "/hosts/"+url.PathEscape(host)+"/namespace", nil, &path)
}

// downInterval is the pause between two looks at the lock.
const downInterval = 20 * time.Millisecond

// Down ends the net. It returns nil when nothing of it is left, and else says what could
// not be removed.
func (c *Client) Down(ctx context.Context) error {
	switch err := c.call(ctx, http.MethodPost, "/down", nil, nil); {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("the process of net %s ended before the net: mdcs testnet clean removes what is left", c.name)
	case errors.Is(err, ErrNotUp) || ctx.Err() != nil && err != nil:
		return err
	case err != nil:
		return fmt.Errorf("net %s is down, but not all of it is removed (mdcs testnet clean tries again): %w", c.name, err)
	}
	tick := time.NewTicker(downInterval)
	defer tick.Stop()
	for {
		names, err := Nets(c.dir)
		if err != nil {
			return err
		}
		gone := true
		for _, name := range names {
			gone = gone && name != c.name
		}
		if gone {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the end of net %s: %w", c.name, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// call sends a request with the JSON of in, if any, and reads the answer into
// out, if any.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://net"+path, &body)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("net %s %w", c.name, ErrNotUp)
	} else if err != nil {
		return fmt.Errorf("talk to net %s: %w", c.name, err)
	}
	defer resp.Body.Close()
	d := json.NewDecoder(resp.Body)
	if resp.StatusCode != http.StatusOK {
		var f failure
		if err := d.Decode(&f); err != nil || f.Error == "" {
			return fmt.Errorf("talk to net %s: %s %s: %s", c.name, method, path, resp.Status)
		}
		return errors.New(f.Error)
	}
	if out == nil {
		return nil
	}
	if err := d.Decode(out); err != nil {
		return fmt.Errorf("talk to net %s: %s %s: %w", c.name, method, path, err)
	}
	return nil
}
