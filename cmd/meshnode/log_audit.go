package main

import (
	"bytes"
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
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/regular"
	"github.com/attestmesh/meshnode/transparency"
)

func logAuditCommand() *cobra.Command {
	var genesis, state string
	var maxAge, saveEvery time.Duration
	var disclosed disclosedFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "audit [--genesis FILE] [--state FILE] DIR|URL",
		Short: "Check a published log offline: every hash, every signature, every rule",
		Long: `Check a published log: recompute its tree, verify every signature against the membership
at its place in the log, apply every policy change again, and count who cosigned.

DIR holds "checkpoint" and "tile/"; URL is where they are served, or a node's public
address. With --state the audit is saved as it goes, and at its end: the next one with the same
FILE goes on from there, be it that this one was interrupted or killed or that the log has grown
since, and requires that the log still is the one that was audited. Keep FILE as safe as the
verdict has to be.

With --disclosed, the evidence that members have disclosed (log disclose) is verified anew, and
each result held against it; that takes the whole log, so not with --state.

Exit 0: everything holds. 1: something does not; the findings say which entry
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
			if state == "" && cmd.Flags().Changed("save-every") {
				return usageError("name with --state FILE where to save the audit", "--save-every without --state")
			}
			if genesis != "" {
				g, err := signedGenesis(genesis)
				if err != nil {
					return err
				}
				opts.Genesis = g
			}
			if err := disclosed.apply(&opts); err != nil {
				return err
			}
			kept := &keptAudit{path: state, every: saveEvery}
			report, err := kept.run(cmd, args[0], opts)
			if err != nil {
				return err
			}
			return printAudit(cmd, args[0], &report, kept.err, asJSON)
		},
	}
	cmd.Flags().StringVar(&genesis, "genesis", "", "genesis file of the mesh that is meant (default: the log's own, whose founders then are whoever it names)")
	cmd.Flags().DurationVar(&maxAge, "max-age", 0, "exit 3 if the quorum's cosignatures are older (default: 5m for a URL, no limit for a DIR)")
	cmd.Flags().StringVar(&state, "state", "", "file to go on from and to save the audit in")
	cmd.Flags().DurationVar(&saveEvery, "save-every", 10*time.Second, "how often to save with --state, besides at the end")
	disclosed.add(cmd)
	cmd.MarkFlagsMutuallyExclusive("state", "disclosed")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// keptAudit is where an audit is kept; the zero value keeps none.
type keptAudit struct {
	path  string
	every time.Duration

	saved time.Time
	err   error // of the newest save
}

// open returns the auditor that is kept, or a new one.
func (k *keptAudit) open(opts audit.Options) (*audit.Auditor, error) {
	if k.every <= 0 {
		return nil, usageError("give a duration such as 10s, or leave it out", "--save-every %s: want more than zero", k.every)
	}
	k.saved = time.Now()
	k.sweep()
	f, err := regular.Open(k.path)
	if errors.Is(err, fs.ErrNotExist) {
		return audit.New(opts), nil
	}
	if err != nil {
		return nil, usageError("name a file", "--state: %v", err)
	}
	defer f.Close()
	return audit.Load(f, opts)
}

// sweep removes what a save that was killed has left behind.
func (k *keptAudit) sweep() {
	left, err := filepath.Glob(filepath.Join(filepath.Dir(k.path), "."+filepath.Base(k.path)+".tmp*"))
	if err != nil {
		return
	}
	for _, name := range left {
		if st, err := os.Stat(name); err == nil && time.Since(st.ModTime()) > time.Minute { // no save takes as long
			_ = os.Remove(name)
		}
	}
}

// save keeps a. What could not be kept is no reason to end an audit.
func (k *keptAudit) save(a *audit.Auditor) {
	var file bytes.Buffer
	if k.err = a.Save(&file); k.err == nil {
		var dir *durable.Dir
		if dir, k.err = durable.Open(filepath.Dir(k.path)); k.err == nil {
			k.err = dir.WriteFile(filepath.Base(k.path), file.Bytes(), 0o600)
		}
	}
	k.saved = time.Now()
}

// auditLog opens a log and audits it; what is wrong with the log is in the report.
func auditLog(cmd *cobra.Command, location string, opts audit.Options) (audit.Report, error) {
	return (&keptAudit{}).run(cmd, location, opts)
}

// run is auditLog from where the kept audit has come to.
func (k *keptAudit) run(cmd *cobra.Command, location string, opts audit.Options) (audit.Report, error) {
	ctx := cmd.Context()
	reader, err := openLog(ctx, location)
	if err != nil {
		return audit.Report{}, err
	}
	defer reader.Close()
	done := showProgress(cmd, "audited", "entries", &opts.Progress)
	var report audit.Report
	if k.path == "" {
		report, err = audit.Log(ctx, reader, opts)
	} else {
		report, err = k.extend(ctx, reader, opts)
	}
	done()
	if k.err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "meshnode: the audit was not saved: %s\n", printable(k.err.Error()))
	}
	switch {
	case errors.Is(err, audit.ErrState):
		return report, usageError("name another file, or remove this one to audit the whole log again", "--state %s: %v", k.path, err)
	case errors.Is(err, audit.ErrOtherLog):
		return report, usageError("name the --state file of this log, or none", "%v", err)
	case err == nil || errors.As(err, new(*failure)):
		return report, err
	}
	return report, logFailure(ctx, location, err)
}

func (k *keptAudit) extend(ctx context.Context, reader *transparency.Reader, opts audit.Options) (audit.Report, error) {
	var auditor *audit.Auditor
	show := opts.Progress
	opts.Progress = func(done, size uint64) {
		if show != nil {
			show(done, size)
		}
		if time.Since(k.saved) >= k.every {
			k.save(auditor)
		}
	}
	auditor, err := k.open(opts)
	if err != nil {
		return audit.Report{}, err
	}
	e, err := auditor.Extend(ctx, reader, opts.At)
	if err == nil || ctx.Err() != nil {
		k.save(auditor)
	}
	return e.Report, err
}

// printAudit prints a report and returns its exit status. What holds but could not be kept is
// not done.
func printAudit(cmd *cobra.Command, location string, report *audit.Report, kept error, asJSON bool) error {
	var err error
	if asJSON {
		err = printJSON(cmd.OutOrStdout(), report)
	} else {
		_, err = io.WriteString(cmd.OutOrStdout(), printable(auditText(location, report)))
	}
	switch {
	case err != nil:
		return unavailableError("unavailable", "", "%v", err)
	case report.OK && kept == nil:
		return nil
	case report.OK || report.Undecided():
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
		fmt.Fprintf(&b, "FINDING    %s\n", findingText(f, r))
	}
	if r.Disclosed != nil {
		b.WriteString(disclosedText(r.Disclosed))
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

// findingText is a finding with what it is about: an entry, or, at the size of the log, the checkpoint.
func findingText(f transparency.Finding, r *audit.Report) string {
	place := "checkpoint"
	if f.Index < r.Size {
		place = fmt.Sprintf("entry %d", f.Index)
	}
	message := strings.TrimPrefix(strings.TrimPrefix(f.Message, "log: "), f.Code+": ") // as an error says it
	return fmt.Sprintf("%s: %s: %s", place, f.Code, message)
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
