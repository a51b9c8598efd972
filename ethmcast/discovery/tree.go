// SPDX-License-Identifier: LGPL-3.0-or-later

package discovery

import (
	"context"
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/p2p/dnsdisc"
	"github.com/ethereum/go-ethereum/p2p/enode"
)

// maxTrees is the number of trees that one URL leads to, with all links.
const maxTrees = 16

// errOldTree means that somebody hides the present tree behind an earlier one.
var errOldTree = errors.New("older than the tree of before")

// forest reads a signed tree of node records in DNS (EIP-1459) and the trees that it
// links to.
type forest struct {
	url    string
	client *dnsdisc.Client
	trees  map[string]*dnsdisc.Tree // as last read, by URL
}

func newForest(url string, client *dnsdisc.Client) *forest {
	return &forest{url: url, client: client, trees: make(map[string]*dnsdisc.Tree)}
}

// read returns the nodes of all trees. A tree that cannot be read stays as it was
// before; the error then tells why, and nodes are returned all the same.
func (f *forest) read() (nodes []*enode.Node, err error) {
	trees := make(map[string]*dnsdisc.Tree)
	seen := make(map[enode.ID]int)
	for urls := []string{f.url}; len(urls) > 0 && len(trees) < maxTrees; urls = urls[1:] {
		url := urls[0]
		if _, ok := trees[url]; ok {
			continue
		}
		before := f.trees[url]
		tree, treeErr := f.client.SyncTree(url)
		if treeErr == nil && before != nil && tree.Seq() < before.Seq() {
			treeErr = fmt.Errorf("%w: %d after %d", errOldTree, tree.Seq(), before.Seq())
		}
		if treeErr != nil {
			err = errors.Join(err, fmt.Errorf("tree %s: %w", url, treeErr))
			tree = before
		}
		trees[url] = tree
		if tree == nil {
			continue
		}
		for _, n := range tree.Nodes() {
			if i, ok := seen[n.ID()]; !ok {
				seen[n.ID()] = len(nodes)
				nodes = append(nodes, n)
			} else if n.Seq() > nodes[i].Seq() {
				nodes[i] = n
			}
		}
		urls = append(urls, tree.Links()...)
	}
	f.trees = trees
	return nodes, err
}

// endingResolver is a resolver that ends with a context, which dnsdisc does not pass
// on.
type endingResolver struct {
	dnsdisc.Resolver
	ctx context.Context
}

// LookupTXT implements dnsdisc.Resolver.
func (r endingResolver) LookupTXT(ctx context.Context, domain string) ([]string, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(r.ctx, func() { cancel(r.ctx.Err()) })
	defer stop()
	return r.Resolver.LookupTXT(ctx, domain)
}
