package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/audit/proof"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// proveFlags are the flags of log prove.
type proveFlags struct {
	genesis, output      string
	result, round, entry string
	policy               uint64
	json                 bool
}

// proven is the output of log prove -o FILE --json.
type proven struct {
	File  string             `json:"file"`
	Bytes int                `json:"bytes"`
	Kind  string             `json:"kind"`
	Index uint64             `json:"index"`
	Size  uint64             `json:"size"`
	Root  transparency.Hash  `json:"root"`
	Level transparency.Level `json:"level"`
	// Settled says that the file shows which policy was in force at the entry, and not only a part of
	// its changes.
	Settled bool `json:"settled"`
}

func logProveCommand() *cobra.Command {
	var f proveFlags
	cmd := &cobra.Command{
		Use:   "prove [--genesis FILE] [-o FILE] DIR|URL (INDEX | --result NODE | --policy EPOCH | --entry ID | --round JOB:N)",
		Short: "Make a file that proves one entry of a log offline, years later",
		Long: `Make a file that proves one entry of a log to anybody who holds genesis, without the log:
meshnode log verify. It is a c2sp.org/tlog-proof that other programs read too, and holds
besides all that leads from genesis to the checkpoint: every change of the policy, and
what makes the members who count there count. The log is audited first, and the file
verified.

INDEX is an entry's number (meshnode log show). --result is the newest affirming result on
a node, --policy the change that made the policy of an epoch, --entry the change that added
an entry to the allowed set (meshnode policy show), --round a committed training round.

Exit 0: the file was made. 1: the log is not as it should be, or the entry does not hold.
2: no log, or no such entry. 3: it cannot be proven yet, or the log could not be read.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error { return runLogProve(cmd, args, f) },
	}
	cmd.Flags().StringVar(&f.genesis, "genesis", "", "genesis file of the mesh that is meant (default: the log's own)")
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "write the proof to `FILE`, which must be new (default: standard output)")
	cmd.Flags().StringVar(&f.result, "result", "", "the newest affirming result on `NODE` (ORG/NAME)")
	cmd.Flags().Uint64Var(&f.policy, "policy", 0, "the change that made the policy of `EPOCH`; 0 is the start")
	cmd.Flags().StringVar(&f.entry, "entry", "", "the change that added the entry `ID` to the allowed set")
	cmd.Flags().StringVar(&f.round, "round", "", "round N of a job, as `JOB:N`")
	cmd.Flags().BoolVar(&f.json, "json", false, "with --output, print one JSON object about the file")
	return cmd
}

// subject reads which entry is meant.
func (f proveFlags) subject(cmd *cobra.Command, args []string) (proof.Subject, error) {
	var out proof.Subject
	given := 0
	if len(args) == 2 {
		given++
		index, err := strconv.ParseUint(args[1], 10, 63)
		if err != nil {
			return out, usageError("give the number of an entry (meshnode log show lists them)", "%.40q is no number of an entry", args[1])
		}
		out.Index = &index
	}
	if f.result != "" {
		given++
		ref, err := identity.ParseNodeRef(f.result)
		if err != nil {
			return out, usageError("give a node as ORG/NAME", "--result: %v", err)
		}
		out.Result = &ref
	}
	if cmd.Flags().Changed("policy") {
		given++
		epoch := identity.Epoch(f.policy)
		out.Policy = &epoch
	}
	if f.entry != "" {
		given++
		out.Entry = f.entry
	}
	if f.round != "" {
		given++
		job, number, _ := strings.Cut(f.round, ":")
		n, err := strconv.ParseUint(number, 10, 32)
		if err != nil || federated.JobID(job).Validate() != nil {
			return out, usageError("give the job's id and the round, as in 0011223344556677:3", "--round %.80q: want 16 characters of lower-case hex, a colon and a number", f.round)
		}
		out.Round = &proof.RoundName{Job: federated.JobID(job), Round: uint32(n)}
	}
	if given != 1 {
		return out, usageError("give INDEX or one of --result, --policy, --entry and --round", "%d entries are named, want one", given)
	}
	return out, nil
}

func runLogProve(cmd *cobra.Command, args []string, f proveFlags) error {
	ctx := cmd.Context()
	subject, err := f.subject(cmd, args)
	if err != nil {
		return err
	}
	if f.json && f.output == "" {
		return usageError("give -o FILE too", "--json without --output: the proof itself goes to standard output")
	}
	opts := audit.Options{At: time.Now()}
	if f.genesis != "" {
		if opts.Genesis, err = signedGenesis(f.genesis); err != nil {
			return err
		}
	}
	report, err := auditLog(cmd, args[0], opts)
	if err != nil {
		return err
	}
	if !report.OK {
		return notAudited(args[0], f.genesis, &report)
	}
	reader, err := openLog(ctx, args[0])
	if err != nil {
		return err
	}
	defer reader.Close()
	x := proof.ExportOptions{Genesis: report.State.Genesis(), At: opts.At}
	done := showProgress(cmd, "gathered", "entries", &x.Progress)
	data, p, err := proof.Export(ctx, reader, subject, x)
	done()
	switch {
	case errors.Is(err, proof.ErrNoSubject):
		return usageError("meshnode log show lists the entries, policy history the epochs; the log may be too short yet", "%v", err)
	case err != nil:
		return proofFailure(args[0], err, func(err error) error { return logFailure(ctx, args[0], err) })
	}
	if f.output == "" {
		_, err := cmd.OutOrStdout().Write(data)
		return err
	}
	if err := writeNew(f.output, data, 0o644); err != nil {
		return err
	}
	if f.json {
		return printJSON(cmd.OutOrStdout(), proven{f.output, len(data), p.Kind, p.Index, p.Size, p.Root, p.Level, p.Settled()})
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: entry %d (%s) of %d, %s, %d bytes\n", printable(f.output), p.Index, printable(p.Kind), p.Size, p.Level, len(data))
	if err == nil && !p.Settled() {
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "no entry behind it says yet which policy was in force: a reader cannot tell that no change after entry %d was left out; make it again later, the log gets such an entry about every half hour\n", p.CompleteTo)
	}
	return err
}

// notAudited is the error of a command that needs a log that is as it should be.
// genesis is the file that was given, or "".
func notAudited(location, genesis string, r *audit.Report) error {
	x, again := r.Findings[0], "run meshnode log audit "+location
	if genesis != "" {
		again += " --genesis " + genesis
	}
	if r.Undecided() {
		return unavailableError(x.Code, again, "the log could not be audited: %s", findingText(x, r))
	}
	return refusedError(x.Code, again, "the log is not as it should be: %s", findingText(x, r))
}
