// SPDX-License-Identifier: LGPL-3.0-or-later

package main

import (
	"os"

	"github.com/urfave/cli/v2"

	"github.com/ethmcast/mdcs/testnet/delayline"
)

// delaylineCommand is what the testnet starts this program with, inside the
// namespace of the links.
var delaylineCommand = &cli.Command{
	Name:            delayline.Command,
	Hidden:          true,
	SkipFlagParsing: true,
	Action: func(c *cli.Context) error {
		return delayline.Main(c.Args().Slice(), os.Stdin, c.App.Writer)
	},
}
