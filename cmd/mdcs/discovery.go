// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"bufio"
	"cmp"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/p2p/dnsdisc"
	"github.com/ethereum/go-ethereum/p2p/enode"
	"github.com/urfave/cli/v2"

	"github.com/ethmcast/mdcs/ethmcast/discovery"
)

// Times to live of a tree's records. All but the root are named by their content.
const (
	rootTTL   = 30 * time.Minute
	recordTTL = 24 * time.Hour
)

// maxTXT is the longest string of a TXT record, bytes; a record may have several.
const maxTXT = 255

var discoveryCommand = &cli.Command{
	Name:            "discovery",
	Category:        otherTools,
	Usage:           "help others to find replication points",
	HideHelpCommand: true,
	Action:          unknownCommand,
	Subcommands: []*cli.Command{{
		Name:      "tree",
		Usage:     "sign a tree of node records (EIP-1459) and print the TXT records of its domain",
		ArgsUsage: "FILE",
		Description: "FILE has the records that `rpd record` prints, one in a line; - is the standard\n" +
			"input. The URL for --mdcs.dns of geth and [discovery] dns of rpd stands first.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "domain", Usage: "`NAME` below which the records stand", Required: true},
			&cli.StringFlag{Name: "key", Usage: "`FILE` with the key that signs, made when it is missing: who has it decides whom geths use", Required: true},
			&cli.UintFlag{Name: "seq", Usage: "number of this version of the tree, more than that of the last", DefaultText: "the time in seconds"},
			&cli.StringSliceFlag{Name: "link", Usage: "`URL` of another tree whose records count, too"},
			outputFlag,
		},
		Before: checkOutput,
		Action: makeTree,
	}},
}

// signedTree is a tree to publish.
type signedTree struct {
	URL     string            `json:"url"`
	Seq     uint              `json:"seq"`
	Records map[string]string `json:"records"` // TXT, by name
}

func makeTree(c *cli.Context) error {
	if c.NArg() != 1 {
		return errors.New("need a file of node records, or -")
	}
	in := c.App.Reader
	if name := c.Args().First(); name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return err
		}
		defer file.Close()
		in = file
	}
	nodes, err := readRecords(in)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Args().First(), err)
	}
	seq := c.Uint("seq")
	if !c.IsSet("seq") {
		seq = uint(time.Now().Unix())
	}
	tree, err := dnsdisc.MakeTree(seq, nodes, c.StringSlice("link"))
	if err != nil {
		return err
	}
	key, err := treeKey(c.String("key"))
	if err != nil {
		return err
	}
	domain := strings.TrimSuffix(c.String("domain"), ".")
	url, err := tree.Sign(key, domain)
	if err != nil {
		return fmt.Errorf("sign the tree: %w", err)
	}
	signed := signedTree{url, seq, tree.ToTXT(domain)}
	return output(c, signed, func(w io.Writer) {
		fmt.Fprintln(w, ";", url)
		// The root comes last, when all that it leads to is there.
		for _, name := range slices.SortedFunc(maps.Keys(signed.Records), func(a, b string) int {
			return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b))
		}) {
			ttl := recordTTL
			if name == domain {
				ttl = rootTTL
			}
			fmt.Fprintf(w, "%s. %d IN TXT %s\n", name, int(ttl.Seconds()), quoteTXT(signed.Records[name]))
		}
	})
}

// readRecords reads the records of replication points, one in a line. Empty lines and
// those that begin with # are left out.
func readRecords(r io.Reader) (nodes []*enode.Node, err error) {
	lines := bufio.NewScanner(r)
	for number := 1; lines.Scan(); number++ {
		text := strings.TrimSpace(lines.Text())
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		n, err := enode.Parse(enode.ValidSchemes, text)
		if err == nil {
			err = discovery.Check(n)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if slices.ContainsFunc(nodes, func(o *enode.Node) bool { return o.ID() == n.ID() }) {
			return nil, fmt.Errorf("line %d: a second record of %v", number, n.ID())
		}
		nodes = append(nodes, n)
	}
	return nodes, lines.Err()
}

// treeKey reads the key that signs trees, or makes it.
func treeKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := crypto.LoadECDSA(path)
	if errors.Is(err, fs.ErrNotExist) {
		if key, err = crypto.GenerateKey(); err == nil {
			err = crypto.SaveECDSA(path, key)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	return key, nil
}

// quoteTXT returns the strings of a TXT record as zone files have them.
func quoteTXT(text string) string {
	var quoted []string
	for part := range slices.Chunk([]byte(text), maxTXT) {
		quoted = append(quoted, `"`+string(part)+`"`)
	}
	return strings.Join(quoted, " ")
}
