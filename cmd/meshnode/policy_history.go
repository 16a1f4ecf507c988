package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
	"github.com/spf13/cobra"
)

// historyView is the output of policy history --json.
type historyView struct {
	OK     bool            `json:"ok"`
	MeshID identity.MeshID `json:"mesh_id"`
	Epochs []historyStep   `json:"epochs"`
	// Findings are what an audit of the log found, if it was read from one.
	Findings []transparency.Finding `json:"findings"`
}

// historyStep is one step; leaf is null where a node does not know it.
type historyStep struct {
	consensus.Step
	Leaf  *uint64   `json:"leaf"`
	After time.Time `json:"after,omitzero"`
}

func policyHistoryCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "history (--node DATA | --log DIR|URL | --chain FILE) [--genesis FILE]",
		Short: "List every change of the policy: class, who signed it, what it did and where it stands in the log",
		Long: `List every change of the policy from genesis on: the epoch that it led to, its leaf in the
log, its class as computed then, the organisations that signed it, and what it did. Every
signature is checked again here; a log is audited first. "after" is a time that the members'
clock had passed when the change was ordered, as far as the log tells.

Exit 0: everything holds. 1: something does not. 2: no history there. 3: cannot decide.`,
		Args: cobra.NoArgs,
	}
	f := policyFlags(cmd, true)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		t, err := f.read(cmd)
		if err != nil {
			return err
		}
		v := historyView{OK: true, Epochs: []historyStep{}, Findings: []transparency.Finding{}}
		if t.report != nil {
			v.OK, v.Findings = t.report.OK, append(v.Findings, t.report.Findings...)
		}
		if t.genesis != nil {
			v.MeshID = t.genesis.MeshID()
		}
		for _, s := range t.steps {
			step := historyStep{Step: s.Step, After: s.After}
			if t.placed {
				step.Leaf = &s.Leaf
			}
			v.Epochs = append(v.Epochs, step)
		}
		if asJSON {
			err = printJSON(cmd.OutOrStdout(), v)
		} else {
			_, err = io.WriteString(cmd.OutOrStdout(), printable(historyText(&v)))
		}
		if err == nil {
			err = logVerdict(t.report)
		}
		return err
	}
	return cmd
}

// logVerdict is the exit status that a log's report asks for.
func logVerdict(r *audit.Report) error {
	switch {
	case r == nil || r.OK:
		return nil
	case r.Undecided():
		return exitStatus(exitUnavailable)
	}
	return exitStatus(exitRefused)
}

func historyText(v *historyView) string {
	var b strings.Builder
	fmt.Fprintf(&b, "mesh %s\n", v.MeshID)
	for _, s := range v.Epochs {
		fmt.Fprintf(&b, "\nepoch %d, base %d", s.Epoch, s.Base)
		if s.Leaf != nil {
			fmt.Fprintf(&b, ", leaf %d", *s.Leaf)
		}
		if !s.After.IsZero() {
			fmt.Fprintf(&b, ", ordered after %s", s.After.Format(time.RFC3339))
		}
		fmt.Fprintf(&b, "\n  %s", s.Cause)
		if s.Class != "" {
			fmt.Fprintf(&b, ": %s", s.Class)
		}
		fmt.Fprintf(&b, ", signed by %s\n", listOrgs(s.Organisations))
		for _, line := range s.Changes {
			fmt.Fprintf(&b, "  %s\n", line)
		}
	}
	for _, f := range v.Findings {
		fmt.Fprintf(&b, "FINDING    entry %d: %s: %s\n", f.Index, f.Code, f.Message)
	}
	return b.String()
}

// policyThen is the output of policy show --at --json.
type policyThen struct {
	MeshID      identity.MeshID      `json:"mesh_id"`
	Incarnation identity.Incarnation `json:"incarnation"`
	Epoch       identity.Epoch       `json:"epoch"`
	Base        uint64               `json:"base"`
	Newest      identity.Epoch       `json:"newest"` // that the history reaches
	Entries     []consensus.Entry    `json:"entries"`
	Revoked     []consensus.Entry    `json:"revoked"`
	Ends        map[string]time.Time `json:"ends"` // of those that end
}

// showPolicyAt prints the allowed set of an epoch.
func showPolicyAt(cmd *cobra.Command, f *policySource, epoch uint64, asJSON bool) error {
	t, err := f.sound(cmd)
	if err != nil {
		return err
	}
	s, err := consensus.PolicyAt(t.genesis, t.chain, identity.Epoch(epoch))
	if err != nil {
		r := consensus.ReasonOf(err)
		if r.Code == attest.CodeBehind {
			return usageError("choose an epoch that meshnode policy history lists", "--at %d: %s", epoch, r)
		}
		return refusedError(string(r.Code), r.Remedy, "%v", err)
	}
	v := policyThen{s.MeshID(), s.Incarnation(), s.Epoch(), s.Base(), t.steps[len(t.steps)-1].Epoch, s.Entries(), s.Revoked(), s.EntryEnds()}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), v)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "epoch %d of %d, base %d; what was suspended then is in the log\n\n", v.Epoch, v.Newest, v.Base)
	return showEntries(cmd.OutOrStdout(), v.Entries, v.Revoked, v.Ends)
}
