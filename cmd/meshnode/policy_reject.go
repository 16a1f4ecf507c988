package main

import (
	"context"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/spf13/cobra"
)

// rejection says who takes a signature back, and from what.
type rejection struct{ key, genesis, out, chain string }

func policyRejectCommand() *cobra.Command {
	var f rejection
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "reject PROPOSAL --key KEY --genesis FILE [-o FILE] | reject FILE",
		Short: "Take an organisation's signature on a proposal back, or forbid its use beforehand",
		Long: `Take an organisation's signature on a proposal back. Approvals go round as files, so that
nobody knows who holds one: what is ordered is that none of the organisation's signatures
counts on this proposal any more, whoever submits it, whether it had signed or not. It is
judged by every seat and every auditor.

It stops the proposal only if too few others sign it: nobody has a veto. It comes too late
for what is ordered already, and is for good: to agree again, make the proposal anew with
meshnode policy rebase.

With -o FILE the withdrawal is signed offline and written; FILE is submitted later. Without
-o it is signed and submitted at once to the node of --node. Meshes that an earlier release
founded (fsm_version 3 or less in genesis) order none.`,
		Args: cobra.ExactArgs(1),
	}
	socket := nodeFlag(cmd)
	cmd.Flags().StringVar(&f.key, "key", "", keyFlagHelp("a govern key"))
	cmd.Flags().StringVar(&f.genesis, "genesis", "", "the mesh's genesis, which lists the key")
	cmd.Flags().StringVar(&f.chain, "chain", "", chainHelp)
	cmd.Flags().StringVarP(&f.out, "output", "o", "", "file to write the withdrawal to, in place of submitting it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		raw, err := f.withdrawal(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		w, _, err := consensus.ParseWithdrawal(raw)
		if err != nil {
			return usageError("give a proposal, with --key and --genesis; or a file that meshnode policy reject wrote", "%s: %v", args[0], err)
		}
		if !asJSON {
			printLines(cmd.OutOrStdout(), w.Describe())
		}
		if f.out == "" {
			return submitStatement(cmd, *socket, "/v1/withdrawals", raw, asJSON, "withdrawal from proposal")
		}
		if err := writeNew(f.out, raw, 0o644); err != nil {
			return err
		}
		return printWritten(cmd, asJSON, "reject", f.out, w.Proposal)
	}
	return cmd
}

// withdrawal reads a signed withdrawal, or makes and signs one from a proposal.
func (f *rejection) withdrawal(ctx context.Context, path string) ([]byte, error) {
	if f.key == "" && f.genesis == "" && f.out == "" {
		env, err := readSigned(path)
		if err != nil {
			return nil, err
		}
		return env.Marshal(), nil
	}
	if f.key == "" || f.genesis == "" {
		return nil, usageError("name both with --key and --genesis", "a withdrawal is signed with a govern key that genesis lists")
	}
	raw, err := readProposal(path)
	if err != nil {
		return nil, err
	}
	env, err := envelope.Parse(raw)
	if err != nil {
		return nil, err
	}
	p, err := consensus.DecodeProposal(env.Payload)
	if err != nil {
		return nil, err
	}
	g, err := signedGenesis(f.genesis)
	if err != nil {
		return nil, err
	}
	if g.MeshID() != p.MeshID {
		return nil, refusedError(string(attest.CodeWrongMesh), "give the genesis of the proposal's mesh", "the proposal is for mesh %s, %s is of mesh %s", p.MeshID.Short(), f.genesis, g.MeshID().Short())
	}
	policy, err := keysInForce(f.chain, g)
	if err != nil {
		return nil, err
	}
	org, s, err := signerIn(ctx, policy, f.key, consensus.KeyGovern)
	if err != nil {
		return nil, err
	}
	signed, err := consensus.SignWithdrawal(s, consensus.WithdrawalOf(p, org, time.Now()))
	if err != nil {
		return nil, usageError("see meshnode policy reject --help", "%v", err)
	}
	return signed, nil
}
