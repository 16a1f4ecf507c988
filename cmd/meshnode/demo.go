package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/attestmesh/meshnode/demo"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func demoCommand() *cobra.Command {
	var o demo.Options
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Watch organisations attest each other, train together and be audited, on this machine",
		Long: `Watch organisations attest each other, train together and be audited, on this machine.

Every node, enroller and audit is a process of its own; nothing is simulated but the TEE
platform, which protects nothing from this machine. Each step prints the commands that repeat
it by hand. Exit 0 only if every claim held.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runDemo(cmd, o) },
	}
	f := cmd.Flags()
	f.IntVar(&o.Nodes, "nodes", 5, "founding nodes, 5 to 7 (6: five organisations, one of them with a second node)")
	f.IntVar(&o.Rounds, "rounds", 5, "training rounds, 3 or more")
	f.StringVar(&o.Data, "data", "", "CSV file to train on: numeric features, label last, header optional (default: digit images drawn for the purpose)")
	f.StringVar(&o.Dir, "dir", "", "new or empty directory to work in and keep (default: a temporary one, removed at the end)")
	f.BoolVar(&o.Keep, "keep", false, "keep the temporary directory and say how to look around")
	f.BoolVar(&o.Serve, "serve", false, "leave the mesh up until Ctrl-C")
	f.BoolVar(&o.JSON, "json", false, "print one JSON object at the end and nothing else")
	return cmd
}

func runDemo(cmd *cobra.Command, o demo.Options) error {
	// A terminal that goes away, or a pager that ends, must not leave processes or files
	// behind: with a handler installed, SIGPIPE is an error of the write.
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGHUP)
	defer stop()
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	defer signal.Stop(pipe)

	exe, err := os.Executable()
	if err != nil {
		return unavailableError("unavailable", "mount /proc", "find this executable: %v", err)
	}
	o.Executable, o.Stdout = exe, cmd.OutOrStdout()
	if _, err := unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS); err == nil {
		o.Progress = cmd.ErrOrStderr()
	}
	return demoFailure(ctx, o, demo.Run(ctx, o))
}

// demoFailure gives the outcome of a demo its exit code.
func demoFailure(ctx context.Context, o demo.Options, err error) error {
	var mistake *demo.UsageError
	var failed *demo.StepError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return &failure{exit: exitInterrupted, code: "interrupted", message: "interrupted", err: err}
	case errors.As(err, &mistake):
		return usageError(mistake.Remedy, "%s", mistake.Message)
	case errors.As(err, &failed) && o.JSON:
		return exitStatus(exitRefused) // the report says it
	case errors.As(err, &failed):
		return refusedError("demo_failed", fmt.Sprintf("read the logs in %s; remove it when done", failed.Dir), "%v", err)
	}
	return refusedError("demo_failed", "", "%v", err)
}
