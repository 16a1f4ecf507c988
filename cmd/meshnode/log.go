package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/transparency"
)

// defaultURLAge is how old the cosignatures at a URL may be: a live mesh cosigns every
// second while its log grows and once a minute while it does not.
const defaultURLAge = 5 * time.Minute

func logCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "log",
		Short: "Read, copy, prove, audit and follow the transparency log of a mesh",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(logAuditCommand(), logShowCommand(), logProveCommand(), logVerifyCommand(), logMatrixCommand(), logExportCommand(), logMonitorCommand(),
		logDiscloseCommand(), logEraseCommand())
	return cmd
}

func isURL(location string) bool {
	return strings.HasPrefix(location, "http://") || strings.HasPrefix(location, "https://")
}

// openLog opens a log, or the one that a node's public address or a kept directory holds
// under "log".
func openLog(ctx context.Context, location string) (*transparency.Reader, error) {
	below := filepath.Join(location, "log")
	if isURL(location) {
		below = strings.TrimSuffix(location, "/") + "/log"
	}
	first, err := transparency.OpenReader(location)
	if err != nil {
		return nil, usageError("name a directory with \"checkpoint\" and \"tile/\", or an http(s) URL", "%v", err)
	}
	if _, err := first.Checkpoint(ctx); !errors.Is(err, fs.ErrNotExist) || first.HasTiles() {
		return first, nil
	}
	second, err := transparency.OpenReader(below)
	if err != nil {
		return first, nil
	}
	if _, err := second.Checkpoint(ctx); err != nil && !second.HasTiles() {
		second.Close()
		return first, nil
	}
	first.Close()
	return second, nil
}

// logFailure gives an error of reading a log its exit code.
func logFailure(ctx context.Context, location string, err error) error {
	var tampered *transparency.Tampered
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &tampered):
		return refusedError("tampered", "run meshnode log audit "+location, "%v", err)
	case errors.Is(err, audit.ErrNoLog) || errors.Is(err, fs.ErrNotExist):
		if isURL(location) {
			return unavailableError("unavailable", "wait until the mesh has published its first checkpoint, or correct the URL", "%s: no published log there", location)
		}
		return usageError("name a directory with \"checkpoint\" and \"tile/\", or an http(s) URL", "%s: no published log there", location)
	case errors.Is(err, transparency.ErrUnavailable):
		return unavailableError("unavailable", "try again, or read the log at another member", "%v", err)
	}
	return usageError("correct what is named; meshnode log audit says what is wrong with a log", "%v", err)
}

// openHead opens a log and reads its checkpoint without verifying its signatures.
func openHead(ctx context.Context, location string) (*transparency.Reader, transparency.Checkpoint, []byte, error) {
	reader, err := openLog(ctx, location)
	if err != nil {
		return nil, transparency.Checkpoint{}, nil, err
	}
	raw, err := reader.Checkpoint(ctx)
	var head transparency.Checkpoint
	if err == nil {
		if head, err = transparency.ParseCheckpoint(raw); err != nil {
			err = fmt.Errorf("%s: %w", location, err)
		}
	}
	if err != nil {
		reader.Close()
		return nil, head, nil, logFailure(ctx, location, err)
	}
	return reader, head, raw, nil
}
