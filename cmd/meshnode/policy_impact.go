package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
	"github.com/spf13/cobra"
)

// impactView is the output of policy impact --json: one of it for each log, one a line.
type impactView struct {
	Log    string `json:"log"`
	OK     bool   `json:"ok"` // the log holds
	Origin string `json:"origin"`
	Size   uint64 `json:"size"`
	audit.Impact
	Findings []transparency.Finding `json:"findings"`
}

// impactFlags are those of policy impact.
type impactFlags struct {
	assume, genesis string
	evidence        []string
	asJSON          bool
}

func policyImpactCommand() *cobra.Command {
	var f impactFlags
	cmd := &cobra.Command{
		Use:   "impact (ENTRY|MEASUREMENT|ADVISORY|CHIP | --assume \"PRODUCT broken since DATE\") LOG...",
		Short: "Find every past admission, round and model that relied on something, and the last clean state before",
		Long: `Find what relied on something that has turned out to be bad: every admission (a result that
affirmed a node), every committed round in which such a node took part, or one that was let
in by its word alone, and every model that goes on from one of those; and where log and
models stood before.

The target is an entry's id, a measurement, a code of results, an advisory (INTEL-SA-NNNNN)
or a chip's id; TARGET: before it says which, where the form does not (entry, measurement,
advisory, chip). With --assume it is a product: a kind of evidence (sevsnp, tdx, vtpm), AMD's
product line (Milan, Genoa, Turin) or Intel's FMSPC; admissions that ended before DATE are
not touched.

LOG is a directory or URL, which is audited first. Chips, product lines and vendors'
advisories are in no log: they are read from evidence that members disclose with --evidence,
a node's data directory or the files of its evidence directory, each held against the
result's commitment. What could not be decided is counted.

Exit 0: decided. 1: a log does not hold. 2: no target or no log. 3: some results could not be
decided, or a log is too old.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args) },
	}
	cmd.Flags().StringVar(&f.assume, "assume", "", "what is assumed to be broken, as \"Milan broken since 2026-03-01\"")
	cmd.Flags().StringArrayVar(&f.evidence, "evidence", nil, "directory of disclosed evidence; may be repeated")
	cmd.Flags().StringVar(&f.genesis, "genesis", "", "genesis file of the mesh that is meant")
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "print one JSON object for each log")
	return cmd
}

func (f *impactFlags) run(cmd *cobra.Command, args []string) error {
	q, logs, err := f.query(args)
	if err != nil {
		return err
	}
	var g *consensus.Genesis
	if f.genesis != "" {
		if g, err = signedGenesis(f.genesis); err != nil {
			return err
		}
	}
	evidence, err := openEvidence("--evidence", f.evidence)
	if err != nil {
		return err
	}
	worst := 0
	for _, location := range logs {
		v, status, err := impactOf(cmd, location, g, q, evidence)
		if err != nil {
			return err
		}
		if f.asJSON {
			err = printJSON(cmd.OutOrStdout(), v)
		} else {
			_, err = io.WriteString(cmd.OutOrStdout(), printable(impactText(v)))
		}
		if err != nil {
			return unavailableError("unavailable", "", "%v", err)
		}
		if worst == 0 || status == exitRefused {
			worst = status
		}
	}
	if worst != 0 {
		return exitStatus(worst)
	}
	return nil
}

// query reads what is asked, and about which logs.
func (f *impactFlags) query(args []string) (q audit.Query, logs []string, err error) {
	logs = args
	if f.assume != "" {
		q, err = audit.ParseAssumption(f.assume)
	} else if len(args) > 0 {
		logs = args[1:]
		q, err = audit.ParseTarget(args[0])
	} else {
		return q, nil, usageError("name an entry, a measurement, an advisory, a chip, or use --assume", "nothing to look for")
	}
	if err != nil {
		return q, nil, usageError("see meshnode policy impact --help", "%v", err)
	}
	if len(logs) == 0 {
		return q, nil, usageError("name a directory with \"checkpoint\" and \"tile/\", or an http(s) URL", "no log to look in")
	}
	return q, logs, nil
}

// impactOf looks in one log and returns the exit status that it asks for.
func impactOf(cmd *cobra.Command, location string, g *consensus.Genesis, q audit.Query, evidence *audit.Evidence) (*impactView, int, error) {
	ctx := cmd.Context()
	opts := audit.Options{Genesis: g, At: time.Now()}
	if isURL(location) {
		opts.MaxAge = defaultURLAge
	}
	reader, err := openLog(ctx, location)
	if err != nil {
		return nil, 0, err
	}
	defer reader.Close()
	done := showProgress(cmd, "audited", "entries", &opts.Progress)
	report, impact, err := audit.ImpactOf(ctx, reader, opts, q, evidence.Disclose)
	done()
	if err != nil {
		return nil, 0, logFailure(ctx, location, err)
	}
	v := &impactView{location, report.OK, report.Origin, report.Size, impact, report.Findings}
	switch {
	case !report.OK && !report.Undecided():
		return v, exitRefused, nil
	case !report.OK || impact.Undecided > 0:
		return v, exitUnavailable, nil
	}
	return v, exitOK, nil
}

func impactText(v *impactView) string {
	var b strings.Builder
	what := v.Query.Target + " " + v.Query.Value
	if !v.Query.Since.IsZero() {
		what += " since " + v.Query.Since.Format(time.RFC3339)
	}
	fmt.Fprintf(&b, "log        %s, %d entries of %s\ntarget     %s\n", v.Log, v.Size, v.Origin, what)
	for _, x := range v.Findings {
		fmt.Fprintf(&b, "FINDING    entry %d: %s: %s\n", x.Index, x.Code, x.Message)
	}
	fmt.Fprintf(&b, "admissions %d, of %s\n", len(v.Admissions), orNoNode(v.Nodes))
	for _, a := range v.Admissions {
		fmt.Fprintf(&b, "  leaf %-6d %s affirmed by %s under entry %s, %s to %s\n", a.Leaf, a.Node, a.Verifier, a.Entry, a.At.Format(time.RFC3339), a.Expires.Format(time.RFC3339))
	}
	fmt.Fprintf(&b, "rounds     %d\n", len(v.Rounds))
	for _, r := range v.Rounds {
		how := map[string]string{
			audit.HowTookPart: joinRefs(r.Nodes) + " took part",
			audit.HowVouched:  joinRefs(r.Nodes) + " took part, let in by the word of nodes that relied on it",
			audit.HowInherits: "goes on from such a model",
		}[r.How]
		fmt.Fprintf(&b, "  leaf %-6d job %s round %d, model %s: %s\n", r.Leaf, r.Job, r.Round, r.Model, how)
	}
	if len(v.Admissions) > 0 {
		fmt.Fprintf(&b, "clean      up to checkpoints of %d entries, root %s\n", v.Clean.Size, v.Clean.Root)
	} else {
		fmt.Fprintf(&b, "clean      all %d entries that were looked at\n", v.Clean.Size)
	}
	for _, m := range v.Models {
		fmt.Fprintf(&b, "           job %s: model of round %d (leaf %d) %s\n", m.Job, m.Round, m.Leaf, m.Model)
	}
	if v.Refusals > 0 {
		fmt.Fprintf(&b, "refusals   %d results of other verdicts name it\n", v.Refusals)
	}
	if v.Undecided > 0 {
		fmt.Fprintf(&b, "UNDECIDED  %d affirming results: the log does not say, and their evidence was not disclosed or says nothing\n", v.Undecided)
		fmt.Fprintln(&b, "           ask their verifiers for it and name it with --evidence; until then what is called clean may not be")
	}
	for _, why := range v.Unread {
		fmt.Fprintf(&b, "  unread: %s\n", why)
	}
	return b.String()
}

func orNoNode(refs []identity.NodeRef) string {
	if len(refs) == 0 {
		return "no node"
	}
	return joinRefs(refs)
}
