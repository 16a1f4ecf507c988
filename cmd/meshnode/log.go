package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// defaultURLAge is how old the cosignatures at a URL may be: a live mesh cosigns every
// second while its log grows and once a minute while it does not.
const defaultURLAge = 5 * time.Minute

func logCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "log",
		Short: "Read, copy and audit the transparency log of a mesh",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(logAuditCommand(), logShowCommand(), logExportCommand())
	return cmd
}

func logAuditCommand() *cobra.Command {
	var genesis string
	var maxAge time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "audit [--genesis FILE] DIR|URL",
		Short: "Check a published log offline: every hash, every signature, every rule",
		Long: `Check a published log: recompute its tree, verify every signature against the membership
at its place in the log, apply every policy change again, and count who cosigned.

DIR holds "checkpoint" and "tile/"; URL is where they are served, or a node's public
address. Exit 0: everything holds. 1: something does not; the findings say which entry
and why. 2: the input is no log. 3: too old, or it could not be read to the end.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts := audit.Options{At: time.Now(), MaxAge: maxAge}
			if cmd.Flags().Changed("max-age") && maxAge <= 0 {
				return usageError("give a duration such as 5m, or leave it out", "--max-age %s: want more than zero", maxAge)
			}
			if maxAge == 0 && isURL(args[0]) {
				opts.MaxAge = defaultURLAge
			}
			if genesis != "" {
				g, err := signedGenesis(genesis)
				if err != nil {
					return err
				}
				opts.Genesis = g
			}
			return runLogAudit(cmd, args[0], opts, asJSON)
		},
	}
	cmd.Flags().StringVar(&genesis, "genesis", "", "genesis file of the mesh that is meant (default: the log's own, whose founders then are whoever it names)")
	cmd.Flags().DurationVar(&maxAge, "max-age", 0, "exit 3 if the quorum's cosignatures are older (default: 5m for a URL, no limit for a DIR)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
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
	return usageError("", "%v", err)
}

// auditLog opens a log and audits it; what is wrong with the log is in the report.
func auditLog(cmd *cobra.Command, location string, opts audit.Options) (audit.Report, error) {
	ctx := cmd.Context()
	reader, err := openLog(ctx, location)
	if err != nil {
		return audit.Report{}, err
	}
	defer reader.Close()
	done := showProgress(cmd, "audited", "entries", &opts.Progress)
	report, err := audit.Log(ctx, reader, opts)
	done()
	if err != nil {
		return report, logFailure(ctx, location, err)
	}
	return report, nil
}

func runLogAudit(cmd *cobra.Command, location string, opts audit.Options, asJSON bool) error {
	report, err := auditLog(cmd, location, opts)
	if err != nil {
		return err
	}
	if asJSON {
		err = printJSON(cmd.OutOrStdout(), report)
	} else {
		_, err = io.WriteString(cmd.OutOrStdout(), printable(auditText(location, &report)))
	}
	switch {
	case err != nil:
		return unavailableError("unavailable", "", "%v", err)
	case report.OK:
		return nil
	case report.Undecided():
		return exitStatus(exitUnavailable)
	}
	return exitStatus(exitRefused)
}

func auditText(location string, r *audit.Report) string {
	var b strings.Builder
	fmt.Fprintf(&b, "log        %s\n", location)
	if r.Origin != "" {
		fmt.Fprintf(&b, "origin     %s\nentries    %d\nroot       %s\n", r.Origin, r.Entries, r.Root)
		fmt.Fprintf(&b, "cosigners  %s (%s)\n", orNobody(r.Cosigners), r.Level)
	}
	if !r.Fresh.IsZero() {
		fmt.Fprintf(&b, "cosigned   %s by a quorum\n", r.Fresh.Format(time.RFC3339))
	}
	for _, f := range r.Findings {
		fmt.Fprintf(&b, "FINDING    entry %d: %s: %s\n", f.Index, f.Code, f.Message)
	}
	verdict := "everything holds"
	if r.Undecided() {
		verdict = "cannot decide"
	} else if !r.OK {
		verdict = "NOT as it should be"
	}
	fmt.Fprintf(&b, "verdict    %s\n\nThis proves\n", verdict)
	for _, line := range r.Proves() {
		fmt.Fprintf(&b, "  - %s\n", line)
	}
	b.WriteString("It does not prove\n")
	for _, line := range r.ProvesNot() {
		fmt.Fprintf(&b, "  - %s\n", line)
	}
	return b.String()
}

func orNobody(orgs []identity.OrgID) string {
	if len(orgs) == 0 {
		return "nobody"
	}
	names := make([]string, len(orgs))
	for i, o := range orgs {
		names[i] = string(o)
	}
	return strings.Join(names, ", ")
}

// showProgress makes *progress keep one line on stderr up to date, where that is a
// terminal, and returns what removes the line.
func showProgress(cmd *cobra.Command, verb, unit string, progress *func(done, size uint64)) (end func()) {
	stderr := terminalOf(cmd)
	if stderr == nil {
		return func() {}
	}
	const interval = 100 * time.Millisecond
	var shown time.Time
	*progress = func(done, size uint64) {
		if now := time.Now(); now.Sub(shown) >= interval {
			shown = now
			fmt.Fprintf(stderr, "\r\x1b[K%s %d of %d %s", verb, done, size, unit)
		}
	}
	return func() { fmt.Fprint(stderr, "\r\x1b[K") }
}

// terminalOf returns stderr where that is a terminal, else nil.
func terminalOf(cmd *cobra.Command) *os.File {
	stderr, ok := cmd.ErrOrStderr().(*os.File)
	if !ok || !isTerminal(stderr) {
		return nil
	}
	return stderr
}

// shownLeaf is one line of log show.
type shownLeaf struct {
	Index  uint64            `json:"index"`
	Kind   string            `json:"kind"`
	Name   string            `json:"name"`
	Hash   transparency.Hash `json:"hash"`
	Signed int               `json:"signatures"`
}

func logShowCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show DIR|URL",
		Short: "List the entries of a log, one line each (and audit nothing but the tree)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			reader, head, _, err := openHead(ctx, args[0])
			if err != nil {
				return err
			}
			defer reader.Close()
			walked, err := reader.Walk(ctx, head, transparency.WalkOptions{Leaf: func(i uint64, leaf []byte) error {
				l := describeLeaf(i, leaf)
				if asJSON {
					return printJSON(cmd.OutOrStdout(), l)
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), printable(fmt.Sprintf("%6d  %-18s  %d signatures  %s", l.Index, l.Kind, l.Signed, l.Name)))
				return err
			}})
			if err == nil && len(walked.Findings) > 0 {
				err = &transparency.Tampered{Findings: walked.Findings}
			}
			if err != nil {
				return logFailure(ctx, args[0], err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object per entry")
	return cmd
}

// describeLeaf says what a leaf calls itself; nothing of it has been verified.
func describeLeaf(index uint64, leaf []byte) shownLeaf {
	out := shownLeaf{Index: index, Kind: "unreadable", Hash: transparency.LeafHash(leaf)}
	env, err := envelope.Parse(leaf)
	if err != nil {
		return out
	}
	out.Signed = len(env.Signatures)
	kind, err := envelope.PredicateType(env.Payload)
	if err != nil {
		return out
	}
	out.Kind = kind
	if rest, ok := strings.CutPrefix(kind, "https://attestmesh.github.io/meshnode/"); ok {
		out.Kind = strings.TrimSuffix(rest, "/v1")
	}
	if name, err := envelope.SubjectName(env.Payload); err == nil {
		out.Name = name
	}
	return out
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
		head, err = transparency.ParseCheckpoint(raw)
	}
	if err != nil {
		reader.Close()
		return nil, head, nil, logFailure(ctx, location, err)
	}
	return reader, head, raw, nil
}

func logExportCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "export URL|DIR TARGET",
		Short: "Copy a published log into a directory, to keep it and to audit it offline",
		Long: `Copy a published log into a directory: entries and tiles, and last the checkpoint. The
copy's tree is checked against the checkpoint; its signatures are what log audit checks.

TARGET is new, empty, or an earlier export of the same log, which is then brought up to date.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			reader, _, raw, err := openHead(ctx, args[0])
			if err != nil {
				return err
			}
			defer reader.Close()
			dir, err := durable.Open(args[1])
			if err != nil {
				return usageError("name a directory that can be written", "%v", err)
			}
			var progress func(done, size uint64)
			done := showProgress(cmd, "copied", "entries", &progress)
			head, err := reader.Export(ctx, raw, dir, progress)
			done()
			if err != nil {
				return logFailure(ctx, args[0], err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]any{"origin": head.Origin, "size": head.Size, "root": head.Root})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d entries of %s, root %s\n", head.Size, printable(head.Origin), head.Root)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}
