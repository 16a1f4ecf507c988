package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/strictyaml"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/spf13/cobra"
)

func policyApproveCommand() *cobra.Command {
	var a approval
	cmd := &cobra.Command{
		Use:   "approve FILE... [--genesis FILE [--chain FILE | --log DIR]] [--key KEY]... [-o FILE]",
		Short: "Show what a proposal does, as its bytes say it, and sign it (offline)",
		Long: `Show what a proposal does and sign it. It needs no node and no network.

FILE is a draft (YAML, from meshnode policy show --draft) or a proposal that others have
signed. Several files of one proposal are merged: their signatures are put together.
Without --key and -o nothing is written. The result goes to -o FILE, by default to the
first FILE, with .json in place of .yaml.

With --genesis the proposal is held against a policy: what it adds and removes, the class
that this makes it, whose signatures hold, and whether it could take effect there at all.
That policy is the one of genesis, or what the signed history in --chain or --log leads to.
Everything is computed from the bytes that are signed. On a terminal a person is asked
before a key is used; --yes is the answer. What is signed is remembered first, in the
organisation's receipts, which meshnode recover sign compares with.`,
		Args: cobra.MinimumNArgs(1),
	}
	a.source = policyFlags(cmd, false)
	cmd.Flags().StringArrayVar(&a.keys, "key", nil, keyFlagHelp("a govern key; may be repeated"))
	cmd.Flags().StringVarP(&a.out, "output", "o", "", "file to write the signed proposal to")
	cmd.Flags().StringVar(&a.receipts, "receipts", "", "file of this organisation's receipts (default: receipts.json beside the first key)")
	cmd.Flags().BoolVar(&a.yes, "yes", false, "sign without asking")
	cmd.Flags().BoolVar(&a.asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return a.run(cmd, args) }
	return cmd
}

// approval is one call of policy approve.
type approval struct {
	source      *policySource
	keys        []string
	out         string
	receipts    string
	yes, asJSON bool
	// before is the policy that the proposal is held against, nil without --genesis.
	before *consensus.PolicyState
	review *consensus.Review
}

func (a *approval) run(cmd *cobra.Command, args []string) error {
	env, p, err := readProposals(args)
	if err != nil {
		return err
	}
	if err := a.hold(cmd, env); err != nil {
		return err
	}
	// What gets signed is shown before it is signed.
	show := cmd.OutOrStdout()
	if a.asJSON {
		show = io.Discard
		if len(a.keys) > 0 && a.asks(cmd) {
			show = cmd.ErrOrStderr()
		}
	}
	printProposal(show, p)
	a.printReview(show)
	if a.review != nil && a.review.Refused != nil {
		r := a.review.Refused
		return refusedError(string(r.Code), r.Remedy, "on the policy of epoch %d: %s", a.review.Epoch, r)
	}
	if len(a.keys) > 0 {
		if a.receipts == "" {
			a.receipts = receiptsBeside(a.keys[0])
		}
		if err := noteApproval(a.receipts, p); err != nil {
			return err
		}
	}
	for _, ref := range a.keys {
		if err := a.sign(cmd, env, p, ref); err != nil {
			return err
		}
	}
	if len(a.keys) > 0 || a.out != "" {
		if err := writeProposal(env, args[0], &a.out); err != nil {
			return err
		}
	}
	return a.printSignatures(cmd, env, p)
}

// hold computes what the proposal does to the policy that is given, if one is.
func (a *approval) hold(cmd *cobra.Command, env *envelope.Envelope) error {
	switch f := a.source; {
	case f.genesis == "" && f.log == "" && f.chain == "":
		return nil
	case f.genesis == "":
		return usageError("name it with --genesis FILE; get it from somebody you trust", "a history says what was signed under a genesis, not that it is the one of your mesh")
	case f.log == "" && f.chain == "":
		g, err := signedGenesis(f.genesis)
		if err != nil {
			return err
		}
		if a.before, err = consensus.ReplayPolicy(g, nil); err != nil {
			return usageError("", "%v", err)
		}
	default:
		t, err := f.sound(cmd)
		if err != nil {
			return err
		}
		if a.before, err = t.newest(); err != nil {
			return refusedError("bad_history", "get the history from another node", "%v", err)
		}
	}
	review := a.before.Review(env.Marshal())
	a.review = &review
	return nil
}

// sign adds the signature of one key, after a person has agreed.
func (a *approval) sign(cmd *cobra.Command, env *envelope.Envelope, p *consensus.Proposal, ref string) error {
	s, public, err := openKey(cmd.Context(), ref)
	if err != nil {
		return err
	}
	id, err := envelope.KeyID(public)
	if err != nil {
		return err
	}
	who := fmt.Sprintf("key %.16s", id)
	if a.before != nil {
		org, role, ok := a.before.KeyOwner(public)
		if !ok {
			org, role, ok = p.Brings(public) // a key that comes in signs for itself
		}
		if !ok || role != consensus.KeyGovern {
			return refusedError(string(attest.CodeWrongSigner), "sign with a govern key in force of your organisation, or one that the proposal brings in", "key %s: %s %s", ref, listing(a.before), listedAs(org, role, ok))
		}
		who = fmt.Sprintf("%s, %s", org, who)
	}
	if err := a.agreed(cmd, who); err != nil {
		return err
	}
	return addSignature(env, s)
}

// asks reports whether there is a person to ask. Whoever runs this without a terminal has
// decided before.
func (a *approval) asks(cmd *cobra.Command) bool {
	in, ok := cmd.InOrStdin().(*os.File)
	return !a.yes && ok && isTerminal(in)
}

// agreed asks a person at a terminal.
func (a *approval) agreed(cmd *cobra.Command, who string) error {
	return a.confirmed(cmd, "sign this for "+printable(who)+"?", "sign", "nothing was signed")
}

// confirmed asks a person at a terminal a question.
func (a *approval) confirmed(cmd *cobra.Command, question, verb, otherwise string) error {
	if !a.asks(cmd) {
		return nil
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s Type yes: ", question)
	line, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 100)).ReadString('\n')
	if err == nil && strings.TrimSpace(line) == "yes" {
		return nil
	}
	return refusedError("not_confirmed", "type yes to "+verb+", or call it with --yes", "%s", otherwise)
}

// printReview shows what the proposal does to the policy.
func (a *approval) printReview(w io.Writer) {
	r := a.review
	if r == nil {
		return
	}
	fmt.Fprintf(w, "held against the policy of epoch %d, base %d, of mesh %s\n", r.Epoch, r.Base, a.before.MeshID().Short())
	for _, e := range r.Removed {
		fmt.Fprintf(w, "  - %s\n", printable(e.Describe()))
	}
	for _, e := range r.Added {
		fmt.Fprintf(w, "  + %s\n", printable(e.Describe()))
		for _, file := range e.IMA {
			fmt.Fprintf(w, "    file %s\n", file)
		}
	}
	if r.Class != "" {
		fmt.Fprintf(w, "  %s\n", signaturesText(r.Class, r.Signatures))
	}
}

// readProposals reads files of one proposal and returns their signatures together.
func readProposals(paths []string) (*envelope.Envelope, *consensus.Proposal, error) {
	var parts [][]byte
	for _, path := range paths {
		raw, err := readProposal(path)
		if err != nil {
			return nil, nil, err
		}
		parts = append(parts, raw)
	}
	merged, err := consensus.Merge(parts...)
	if err != nil {
		return nil, nil, refusedError("other_proposal", "approve each proposal by itself", "%s: %v", strings.Join(paths, ", "), err)
	}
	p, env, err := consensus.ParseProposal(merged)
	if err != nil {
		return nil, nil, usageError("make the draft again with meshnode policy show --draft", "%s: %v", strings.Join(paths, ", "), err)
	}
	return env, p, nil
}

// readProposal reads a draft or a signed proposal as an envelope.
func readProposal(path string) ([]byte, error) {
	data, err := readLimited(path, strictyaml.MaxSize)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(data, []byte(`{"payloadType"`)) {
		raw := bytes.TrimSuffix(data, []byte("\n"))
		if _, _, err := consensus.ParseProposal(raw); err != nil {
			return nil, usageError("get the file again from whoever signed it", "%s: %v", path, err)
		}
		return raw, nil
	}
	payload, err := consensus.ParseDraft(path, data)
	if err != nil {
		return nil, usageError("mend "+path, "%v", err)
	}
	return (&envelope.Envelope{Payload: payload}).Marshal(), nil
}

// addSignature signs unless this key has signed already. An old signature by it that does not
// hold says that what it signed was another content.
func addSignature(env *envelope.Envelope, s signature.Signer) error {
	pub, err := s.PublicKey()
	if err != nil {
		return err
	}
	id, err := envelope.KeyID(pub)
	if err != nil {
		return err
	}
	for _, old := range env.Signatures {
		if old.KeyID != id {
			continue
		}
		one := envelope.Envelope{Payload: env.Payload, Signatures: []envelope.Signature{old}}
		if _, err := one.Verify([]envelope.Key{{Public: pub}}); err != nil {
			return refusedError(string(attest.CodeBadSignature), "get the file again from whoever made it; approve it only if it says what you approved",
				"key %.16s has signed already, and its signature does not hold: the content was changed after that", id)
		}
		return nil
	}
	return env.Sign(s)
}

// writeProposal writes env and sets *out to the file. A file that is there already must
// hold the same proposal: its signatures are kept.
func writeProposal(env *envelope.Envelope, first string, out *string) error {
	if *out == "" {
		*out = first
		if ext := filepath.Ext(first); ext == ".yaml" || ext == ".yml" {
			*out = strings.TrimSuffix(first, ext) + ".json"
		}
	}
	data := env.Marshal()
	if _, err := os.Stat(*out); err == nil {
		old, err := readProposal(*out)
		if err != nil {
			return err
		}
		if data, err = consensus.Merge(old, data); err != nil {
			return usageError("choose another file with -o", "%s: holds another proposal", *out)
		}
		merged, err := envelope.Parse(data)
		if err != nil {
			return err
		}
		*env = *merged
	} else if !errors.Is(err, fs.ErrNotExist) {
		return usageError("check the path", "%v", err)
	}
	return writeOver(*out, data, 0o644)
}

func printProposal(w io.Writer, p *consensus.Proposal) {
	for _, line := range p.Describe() {
		fmt.Fprintln(w, printable(line))
	}
}

func (a *approval) printSignatures(cmd *cobra.Command, env *envelope.Envelope, p *consensus.Proposal) error {
	ids := []string{}
	for _, s := range env.Signatures {
		ids = append(ids, s.KeyID)
	}
	if a.review != nil {
		*a.review = a.before.Review(env.Marshal()) // with the new signatures
	}
	if a.asJSON {
		v := map[string]any{"id": p.ID(), "class": p.Class(), "proposal": p, "signatures": ids, "file": a.out}
		if a.review != nil {
			v["review"] = a.review
		}
		return printJSON(cmd.OutOrStdout(), v)
	}
	by := ""
	if len(ids) > 0 {
		by = ", by keys " + strings.Join(ids, ", ")
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%d signatures%s\n", len(ids), by)
	if a.before == nil {
		fmt.Fprintln(cmd.OutOrStdout(), "held against no policy: --genesis says whose keys these are and whether they may sign")
	}
	if a.review != nil && a.review.Class != "" {
		fmt.Fprintln(cmd.OutOrStdout(), signaturesText(a.review.Class, a.review.Signatures))
	}
	if a.out != "" {
		fmt.Fprintf(cmd.OutOrStdout(), "written to %s; submit it with meshnode policy propose %s\n", a.out, a.out)
	}
	return nil
}
