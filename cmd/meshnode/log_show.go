package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
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

// shownEntry is one entry with what it says.
type shownEntry struct {
	shownLeaf
	Keys      []string        `json:"keyids"` // of the signatures
	Statement json.RawMessage `json:"statement"`
}

func logShowCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show DIR|URL [INDEX]",
		Short: "List the entries of a log, one line each (and audit nothing but the tree)",
		Long: `List the entries of a log: number, kind, signatures, and the name of what it is about; or show one
entry with the whole of what it says. Only the tree is checked, of a list at its end: what an
entry says of itself, nobody has verified (log audit).

Exit 0: the entries are in the tree. 1: they are not. 2: no log, or no such entry. 3: it could
not be read.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			var index uint64
			if len(args) == 2 {
				var err error
				if index, err = strconv.ParseUint(args[1], 10, 63); err != nil {
					return usageError("give the number of an entry", "%.40q is no number of an entry", args[1])
				}
			}
			reader, head, _, err := openHead(ctx, args[0])
			if err != nil {
				return err
			}
			defer reader.Close()
			if len(args) == 2 {
				if index >= head.Size {
					return usageError("give the number of an entry: the first is 0", "%s: no entry %d: the log has %d", args[0], index, head.Size)
				}
				leaf, _, err := reader.Prover(head).Leaf(ctx, index)
				if err != nil {
					return logFailure(ctx, args[0], err)
				}
				return printEntry(cmd, index, leaf, asJSON)
			}
			walked, err := reader.Walk(ctx, head, transparency.WalkOptions{Leaf: func(i uint64, leaf []byte) error {
				l := describeLeaf(i, leaf)
				if asJSON {
					return printJSON(cmd.OutOrStdout(), l)
				}
				_, err := fmt.Fprint(cmd.OutOrStdout(), printable(l.line()))
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

// printEntry prints one entry.
func printEntry(cmd *cobra.Command, index uint64, leaf []byte, asJSON bool) error {
	out := shownEntry{describeLeaf(index, leaf), []string{}, json.RawMessage("null")}
	if env, err := envelope.Parse(leaf); err == nil {
		for _, s := range env.Signatures {
			out.Keys = append(out.Keys, s.KeyID)
		}
		if json.Valid(env.Payload) {
			out.Statement = env.Payload
		}
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), out)
	}
	var b bytes.Buffer
	b.WriteString(out.line())
	for _, k := range out.Keys {
		fmt.Fprintf(&b, "signed by key %s\n", k)
	}
	if err := json.Indent(&b, out.Statement, "", "  "); err != nil {
		return err
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), printable(b.String()))
	return err
}

func (l shownLeaf) line() string {
	return fmt.Sprintf("%6d  %-18s  %-12s  %s\n", l.Index, l.Kind, signatures(l.Signed), l.Name)
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
