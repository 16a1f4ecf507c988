package main

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/spf13/cobra"
)

// rebaseView is the output of policy rebase --json.
type rebaseView struct {
	Old consensus.ProposalID `json:"old"`
	New consensus.ProposalID `json:"new"`
	// Since are the changes since the base of the old one.
	Since  []consensus.Step  `json:"since"`
	Review *consensus.Review `json:"review"`
	File   string            `json:"file"`
}

func policyRebaseCommand() *cobra.Command {
	var out string
	var period time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "rebase FILE -o NEW (--node DATA | --log DIR|URL | --chain FILE)",
		Short: "Make a proposal that has gone stale anew on the present policy, to be signed again",
		Long: `Make a proposal anew with the same actions on the present base: another change was ordered
since it was made, or it has expired. Nobody's signature is kept, because nobody has signed
this: the command says what has changed in between, for whoever is asked to sign again.

A narrowing never goes stale and needs this only where it has expired.`,
		Args: cobra.ExactArgs(1),
	}
	f := policyFlags(cmd, true)
	cmd.Flags().StringVarP(&out, "output", "o", "", "file to write; it must not exist")
	cmd.Flags().DurationVar(&period, "for", 0, "how long it is open, as 72h (default: as long as the old one was)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if out == "" {
			return usageError("add -o NEW", "no file for the new proposal")
		}
		_, p, err := readProposals(args)
		if err != nil {
			return err
		}
		t, err := f.sound(cmd)
		if err != nil {
			return err
		}
		payload, v, err := rebase(t, p, period, time.Now())
		if err != nil {
			return err
		}
		v.File = out
		if v.Review.Refused == nil {
			if err := writeNew(out, (&envelope.Envelope{Payload: payload}).Marshal(), 0o644); err != nil {
				return err
			}
		}
		if asJSON && v.Review.Refused == nil {
			return printJSON(cmd.OutOrStdout(), v)
		}
		if !asJSON {
			if _, err := io.WriteString(cmd.OutOrStdout(), printable(rebaseText(v))); err != nil {
				return err
			}
		}
		if r := v.Review.Refused; r != nil {
			return refusedError(string(r.Code), r.Remedy, "nothing was written: on the policy of epoch %d: %s", v.Review.Epoch, r)
		}
		return nil
	}
	return cmd
}

// rebase makes p anew on the newest policy of t.
func rebase(t *told, p *consensus.Proposal, period time.Duration, now time.Time) ([]byte, *rebaseView, error) {
	s, err := t.newest()
	if err != nil {
		return nil, nil, refusedError("bad_history", "get the history from another node", "%v", err)
	}
	if p.MeshID != s.MeshID() {
		return nil, nil, refusedError(string(attest.CodeWrongMesh), "ask a node of the proposal's mesh", "the proposal is for mesh %s, the policy is of %s", p.MeshID.Short(), s.MeshID().Short())
	}
	if period == 0 {
		period = p.Expires.Sub(p.Created)
	}
	var nonce [16]byte
	_, _ = rand.Read(nonce[:])
	payload, err := s.Rebase(p, hex.EncodeToString(nonce[:]), now, now.Add(period))
	if err != nil {
		return nil, nil, usageError("give --for at most "+consensus.MaxProposalLifetime.String(), "%v", err)
	}
	next, err := consensus.DecodeProposal(payload)
	if err != nil {
		return nil, nil, err
	}
	review := s.Review((&envelope.Envelope{Payload: payload}).Marshal())
	return payload, &rebaseView{Old: p.ID(), New: next.ID(), Since: since(t.steps, p), Review: &review}, nil
}

// since returns the steps that p was not made on: those that raised the base beyond its own,
// and narrowings that may have come after it.
func since(steps []audit.Change, p *consensus.Proposal) []consensus.Step {
	out := []consensus.Step{}
	for _, s := range steps {
		later := s.Base > p.Base || s.Incarnation > p.Incarnation
		narrowed := s.Base == p.Base && s.Class == consensus.ClassNarrow && s.Created.After(p.Created)
		if later || narrowed {
			out = append(out, s.Step)
		}
	}
	return out
}

func rebaseText(v *rebaseView) string {
	var b strings.Builder
	fmt.Fprintf(&b, "proposal %s, made anew as %s\n", v.Old, v.New)
	if len(v.Since) == 0 {
		b.WriteString("nothing has changed since it was made\n")
	}
	for _, s := range v.Since {
		fmt.Fprintf(&b, "since then, epoch %d: %s (%s) signed by %s\n", s.Epoch, s.Cause, s.Class, listOrgs(s.Organisations))
		for _, line := range s.Changes {
			fmt.Fprintf(&b, "  %s\n", line)
		}
	}
	r := v.Review
	if r.Refused != nil {
		return b.String()
	}
	fmt.Fprintf(&b, "on the policy of epoch %d it does\n", r.Epoch)
	for _, line := range r.Changes {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	fmt.Fprintf(&b, "%s\nwritten to %s; sign it with meshnode policy approve %s --key KEY\n", signaturesText(r.Class, r.Signatures), v.File, v.File)
	return b.String()
}
