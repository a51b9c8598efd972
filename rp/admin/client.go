// SPDX-License-Identifier: LGPL-3.0-or-later

package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"strconv"
	"syscall"
	"time"

	"github.com/ethmcast/mdcs/rp/events"
)

// answerTimeout is how long an rpd may take to answer.
const answerTimeout = 10 * time.Second

// Client asks the rpd behind a socket. Its methods may be called concurrently.
type Client struct {
	path string
	http http.Client
}

// NewClient returns a Client of the socket of a path.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	return &Client{path, http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// Status asks who and where the RP is, and how it does.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.get(ctx, "status", nil, &s)
}

// RPs asks for the RP neighbours.
func (c *Client) RPs(ctx context.Context) (all RPs, err error) {
	return all, c.get(ctx, "rps", nil, &all)
}

// Groups asks for the groups and their streams.
func (c *Client) Groups(ctx context.Context) (all []Group, err error) {
	return all, c.get(ctx, "groups", nil, &all)
}

// Subscribers asks for a page of members: at most limit, which is at most MaxPage,
// those after a session, if it is not empty, and in whose session, node id, address,
// mode or groups stands the text of match.
func (c *Client) Subscribers(ctx context.Context, limit int, after, match string) (page Subscribers, err error) {
	query := url.Values{"limit": {strconv.Itoa(limit)}}
	if after != "" {
		query.Set("after", after)
	}
	if match != "" {
		query.Set("match", match)
	}
	return page, c.get(ctx, "subscribers", query, &page)
}

// Stats asks for the counters.
func (c *Client) Stats(ctx context.Context) (s Stats, err error) {
	return s, c.get(ctx, "stats", nil, &s)
}

// Neighbours asks for the links of the mesh.
func (c *Client) Neighbours(ctx context.Context) (all []Neighbour, err error) {
	return all, c.get(ctx, "mesh/neighbours", nil, &all)
}

// Routes asks for the ways of datagrams through the RP.
func (c *Client) Routes(ctx context.Context) (all []Route, err error) {
	return all, c.get(ctx, "mesh/routes", nil, &all)
}

// Database asks for what the RPs say of themselves.
func (c *Client) Database(ctx context.Context) (all []Advert, err error) {
	return all, c.get(ctx, "mesh/database", nil, &all)
}

// Tree asks for the tree of an ingress RP, by default that of the RP itself.
func (c *Client) Tree(ctx context.Context, ingress string) (t Tree, err error) {
	query := url.Values{}
	if ingress != "" {
		query.Set("ingress", ingress)
	}
	return t, c.get(ctx, "mesh/tree", query, &t)
}

// Events calls f with what happens from now on. It returns when ctx ends or f fails,
// with that error, and when the RP ends.
func (c *Client) Events(ctx context.Context, f func(events.Event) error) error {
	resp, err := c.do(ctx, http.MethodGet, "events", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		var e events.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("%s: event: %w", c.path, err)
		}
		if err := f(e); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%s: rpd ended, or did not wait for us any longer", c.path)
}

// Bans asks who is not let in.
func (c *Client) Bans(ctx context.Context) (all Bans, err error) {
	return all, c.get(ctx, "bans", nil, &all)
}

// Ban keeps a node, by id or URL, an address or a prefix out for a time.
func (c *Client) Ban(ctx context.Context, who string, length time.Duration) (b Ban, err error) {
	return b, c.post(ctx, "ban", url.Values{"who": {who}, "for": {length.String()}}, &b)
}

// Unban lets who is banned in again, and returns the ban that ended.
func (c *Client) Unban(ctx context.Context, who string) (b Ban, err error) {
	return b, c.post(ctx, "unban", url.Values{"who": {who}}, &b)
}

// EndSession ends the session of a peer, by session or node id. The peer may come again.
func (c *Client) EndSession(ctx context.Context, peer string) (s EndedSession, err error) {
	return s, c.post(ctx, "end-session", url.Values{"peer": {peer}}, &s)
}

// Drain has the RP send its peers to other RPs, and let nobody join any more.
func (c *Client) Drain(ctx context.Context) (d Drained, err error) {
	return d, c.post(ctx, "drain", nil, &d)
}

// get reads an answer into out.
func (c *Client) get(ctx context.Context, path string, query url.Values, out any) error {
	return c.ask(ctx, http.MethodGet, path, query, out)
}

// post has something done, and reads the answer into out.
func (c *Client) post(ctx context.Context, path string, query url.Values, out any) error {
	return c.ask(ctx, http.MethodPost, path, query, out)
}

func (c *Client) ask(ctx context.Context, method, path string, query url.Values, out any) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	resp, err := c.do(ctx, method, path, query)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("%s: answer to %s: %w", c.path, path, err)
	}
	return nil
}

// do sends a request and returns its answer, which is good.
func (c *Client) do(ctx context.Context, method, path string, query url.Values) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "rpd", Path: "/v1/" + path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var f failure
	if err := json.NewDecoder(resp.Body).Decode(&f); err != nil || f.Error == "" {
		return nil, fmt.Errorf("%s: rpd answers %s to %s", c.path, resp.Status, path)
	}
	return nil, errors.New(f.Error)
}

// explain says what to do about a socket that cannot be used.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s does not exist: rpd does not run, or has another [admin] socket", c.path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%s: nobody listens: rpd does not run any more", c.path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: permission denied: only %s", c.path, entitled(c.path))
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: rpd does not answer within %v", c.path, answerTimeout)
	}
	return fmt.Errorf("%s: %w", c.path, err)
}

// entitled names those who may use a socket.
func entitled(path string) string {
	if info, err := os.Stat(path); err == nil {
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			owner, group := fmt.Sprint(s.Uid), fmt.Sprint(s.Gid)
			if u, err := user.LookupId(owner); err == nil {
				owner = u.Username
			}
			if g, err := user.LookupGroupId(group); err == nil {
				group = g.Name
			}
			return fmt.Sprintf("%s and the members of group %s may ask rpd", owner, group)
		}
	}
	return "its owner and the members of its group may ask rpd"
}
