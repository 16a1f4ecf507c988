package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// Exit codes are a contract (DESIGN §10, docs/OPERATIONS.md).
const (
	exitOK          = 0
	exitRefused     = 1   // refused, tampered or failed verification
	exitUsage       = 2   // usage or malformed input
	exitUnavailable = 3   // unavailable, stale, cannot decide
	exitInterrupted = 130 // Ctrl-C or SIGTERM
)

// failure is an error that knows its exit code, a stable code word for --json and what
// the person can do next.
type failure struct {
	exit    int
	code    string
	message string
	remedy  string
	err     error
}

func (f *failure) Error() string { return f.message }
func (f *failure) Unwrap() error { return f.err }

// usageError is malformed input: exit 2.
func usageError(remedy, format string, args ...any) error {
	return &failure{exit: exitUsage, code: "usage", message: fmt.Sprintf(format, args...), remedy: remedy}
}

// refusedError is a failed verification or a refusal by policy: exit 1.
func refusedError(code, remedy, format string, args ...any) error {
	return &failure{exit: exitRefused, code: code, message: fmt.Sprintf(format, args...), remedy: remedy}
}

// unavailableError is something that does not answer or cannot be decided: exit 3.
func unavailableError(code, remedy, format string, args ...any) error {
	return &failure{exit: exitUnavailable, code: code, message: fmt.Sprintf(format, args...), remedy: remedy}
}

// exitStatus is returned by commands that have already printed their findings.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "meshnode",
		Short:         "Train together without trusting each other's clouds",
		SilenceUsage:  true,
		SilenceErrors: true,
		// Bare words that are no subcommand are a usage error, not help on stdout.
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError("run "+cmd.CommandPath()+" --help", "%v", err)
	})
	root.AddCommand(subcommands()...)
	return root
}

func execute(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	var status exitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	f := asFailure(ctx, err)
	if f.remedy == "" && f.exit == exitUsage {
		f.remedy = "run " + cmd.CommandPath() + " --help"
	}
	// The flag itself is unset where parsing failed before it was reached.
	if asJSON, _ := cmd.Flags().GetBool("json"); asJSON || slices.Contains(args, "--json") {
		_ = json.NewEncoder(stdout).Encode(map[string]any{"error": map[string]string{
			"code": f.code, "message": f.message, "remedy": f.remedy}})
		return f.exit
	}
	fmt.Fprintf(stderr, "meshnode: %s\n", printable(f.message))
	if f.remedy != "" {
		fmt.Fprintf(stderr, "  try: %s\n", printable(f.remedy))
	}
	return f.exit
}

func asFailure(ctx context.Context, err error) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	if ctx.Err() != nil {
		return &failure{exit: exitInterrupted, code: "interrupted", message: "interrupted"}
	}
	// What cobra itself refuses (unknown command, wrong number of arguments) is usage.
	return &failure{exit: exitUsage, code: "usage", message: err.Error()}
}

// printable replaces control characters, so that a peer's or file's text cannot drive the
// terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return '\uFFFD'
		}
		return r
	}, s)
}

// printJSON writes v as one line.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
