package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/strictyaml"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/spf13/cobra"
)

func policyApproveCommand() *cobra.Command {
	var keys []string
	var out string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "approve FILE... [--key KEY]... [-o FILE]",
		Short: "Show what a proposal does, as its bytes say it, and sign it (offline)",
		Long: `Show what a proposal does and sign it. It needs no node and no network.

FILE is a draft (YAML, from meshnode policy show --draft) or a proposal that others have
signed. Several files of one proposal are merged: their signatures are put together.
Without --key and -o nothing is written. The result goes to -o FILE, by default to the
first FILE, with .json in place of .yaml.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			env, p, err := readProposals(args)
			if err != nil {
				return err
			}
			// What gets signed is shown before it is signed.
			if !asJSON {
				printProposal(cmd.OutOrStdout(), p)
			}
			for _, path := range keys {
				s, err := loadSigner(path)
				if err != nil {
					return err
				}
				if err := addSignature(env, s); err != nil {
					return err
				}
			}
			if len(keys) > 0 || out != "" {
				if err := writeProposal(env, args[0], &out); err != nil {
					return err
				}
			}
			return printSignatures(cmd, env, p, out, asJSON)
		},
	}
	cmd.Flags().StringArrayVar(&keys, "key", nil, "file of a govern key; may be repeated")
	cmd.Flags().StringVarP(&out, "output", "o", "", "file to write the signed proposal to")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
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

// addSignature signs unless this key has signed already.
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
		if old.KeyID == id {
			return nil
		}
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

func printSignatures(cmd *cobra.Command, env *envelope.Envelope, p *consensus.Proposal, out string, asJSON bool) error {
	ids := []string{}
	for _, s := range env.Signatures {
		ids = append(ids, s.KeyID)
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), map[string]any{"id": p.ID(), "class": p.Class(), "proposal": p, "signatures": ids, "file": out})
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%d signatures, by keys %s\n", len(ids), strings.Join(ids, ", "))
	if out != "" {
		fmt.Fprintf(cmd.OutOrStdout(), "written to %s; submit it with meshnode policy propose %s\n", out, out)
	}
	return nil
}
