// SPDX-License-Identifier: LGPL-3.0-or-later

// Command mdcs is the operator's tool of mDCS. It looks at a running rpd, and has it do things;
// `mdcs testnet` runs experiments on a private Ethereum network on this machine.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/urfave/cli/v2"
)

// version is set by the linker, see the Makefile.
var version = "unknown"

// otherTools are shown behind the commands that look at a running rpd.
const otherTools = "not of a running rpd"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	os.Exit(run(ctx, os.Args, os.Stdout, os.Stderr))
}

// run is the whole program; it returns the exit status: 0, 1 for a failure and
// 130 for an interruption.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app := &cli.App{
		Name:            "mdcs",
		Usage:           "multicast diffusion for Ethereum",
		Version:         version,
		HideHelpCommand: true,
		Commands:        append(slices.Concat(operatorCommands, actCommands), benchCommand, discoveryCommand, testnetCommand, delaylineCommand, lightpeersCommand),
		Writer:          stdout,
		ErrWriter:       stderr,
		ExitErrHandler:  func(*cli.Context, error) {}, // reported below
		OnUsageError:    func(_ *cli.Context, err error, _ bool) error { return err },
		Action:          unknownCommand,
	}
	err := app.RunContext(ctx, flagsFirst(args))
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "mdcs: interrupted")
		return 130
	default:
		fmt.Fprintln(stderr, "mdcs:", err)
		return 1
	}
}

// unknownCommand is what a group of commands does by itself.
func unknownCommand(c *cli.Context) error {
	if c.Args().Present() {
		return fmt.Errorf("unknown command %q, see %s --help", c.Args().First(), c.App.Name)
	}
	return cli.ShowAppHelp(c)
}
