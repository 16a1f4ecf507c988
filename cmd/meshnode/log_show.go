package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/transparency"
)

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
		Long: `List the entries of a log: number, kind, signatures, and the name of what it is about. Only the
tree is checked, and that at the end: what an entry says of itself, nobody has verified (log audit).

Exit 0: the entries make up the tree. 1: they do not. 2: no log. 3: it could not be read.`,
		Args: cobra.ExactArgs(1),
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
				_, err := fmt.Fprintln(cmd.OutOrStdout(), printable(fmt.Sprintf("%6d  %-18s  %-12s  %s", l.Index, l.Kind, signatures(l.Signed), l.Name)))
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

func signatures(n int) string {
	if n == 1 {
		return "1 signature"
	}
	return fmt.Sprintf("%d signatures", n)
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
