package main

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
	"github.com/spf13/cobra"
)

func recoverCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Let a mesh go on from its log after a majority was lost, or around a power-off",
		Long: `A mesh whose majority of seats is gone cannot order anything. It goes on, as a higher
incarnation, from a published checkpoint of its log, if the organisations sign a Recovery:

  1. meshnode recover inspect  at each copy of the log that was kept: which one is newest?
  2. meshnode recover draft    a Recovery from that copy
  3. meshnode recover sign     by each organisation, offline, after it compared with its receipts
  4. enroll serve --recovery FILE, and recovery: FILE in each node's configuration; start all

With draft --planned the first three steps come before the mesh is stopped.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(recoverInspectCommand(), recoverDraftCommand(), recoverSignCommand())
	return cmd
}

// keptLog is what recover inspect says of one log.
type keptLog struct {
	Log         string                 `json:"log"`
	OK          bool                   `json:"ok"`
	MeshID      string                 `json:"mesh_id,omitempty"`
	Origin      string                 `json:"origin,omitempty"`
	Incarnation uint64                 `json:"incarnation"`
	Epoch       uint64                 `json:"epoch"`
	Base        uint64                 `json:"base"`
	Policy      string                 `json:"policy,omitempty"` // the digest of the policy state
	Size        uint64                 `json:"size"`
	Root        string                 `json:"root"`
	Level       string                 `json:"level"`
	Cosigners   []identity.OrgID       `json:"cosigners"`
	Cosigned    time.Time              `json:"cosigned,omitzero"` // by the last of a quorum
	Witness     string                 `json:"witness,omitempty"` // an outside witness that has cosigned
	Witnesses   int                    `json:"witnesses"`         // how many the policy names
	Findings    []transparency.Finding `json:"findings"`

	state *consensus.State
}

func recoverInspectCommand() *cobra.Command {
	var genesis, receipts string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect DIR|URL... [--genesis FILE]",
		Short: "Say what logs that were kept hold, and which of them is the newest",
		Long: `Audit each log and say where it ends: incarnation, epoch, size and root, who has cosigned.

DIR is a log ("checkpoint" and "tile/"), or a node's data directory, of whose boots every log
is looked at. Exit 0: all hold. 1: one does not. With --receipts what is found newest is
remembered: recover sign then refuses anything older.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts := audit.Options{At: time.Now()}
			if genesis != "" {
				g, err := signedGenesis(genesis)
				if err != nil {
					return err
				}
				opts.Genesis = g
			}
			kept, err := inspectLogs(cmd, args, opts)
			if err != nil {
				return err
			}
			newest := newestKept(kept)
			if newest >= 0 && receipts != "" {
				if err := observe(receipts, kept[newest]); err != nil {
					return err
				}
			}
			bad := false
			for i, k := range kept {
				bad = bad || !k.OK
				if asJSON {
					err = printJSON(cmd.OutOrStdout(), k)
				} else {
					_, err = fmt.Fprint(cmd.OutOrStdout(), printable(keptText(k, i == newest && len(kept) > 1)))
				}
				if err != nil {
					return unavailableError("unavailable", "", "%v", err)
				}
			}
			if bad {
				return exitStatus(exitRefused)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&genesis, "genesis", "", "genesis file of the mesh that is meant (default: the log's own)")
	cmd.Flags().StringVar(&receipts, "receipts", "", "file of this organisation's receipts, to remember what was seen")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object per log")
	return cmd
}

// inspectLogs audits every log that the arguments name.
func inspectLogs(cmd *cobra.Command, args []string, opts audit.Options) ([]keptLog, error) {
	var out []keptLog
	for _, arg := range args {
		locations := []string{arg}
		if boots, err := filepath.Glob(filepath.Join(arg, "boot-*", "log", "checkpoint")); err == nil && len(boots) > 0 && !isURL(arg) {
			locations = locations[:0]
			for _, b := range boots {
				locations = append(locations, filepath.Dir(b))
			}
		}
		for _, location := range locations {
			k, err := inspectLog(cmd, location, opts)
			if err != nil {
				return nil, err
			}
			out = append(out, k)
		}
	}
	return out, nil
}

func inspectLog(cmd *cobra.Command, location string, opts audit.Options) (keptLog, error) {
	report, err := auditLog(cmd, location, opts)
	if err != nil {
		return keptLog{}, err
	}
	k := keptLog{Log: location, OK: report.OK, Origin: report.Origin, Size: report.Size, Root: report.Root.String(), Level: report.Level.String(),
		Cosigners: report.Cosigners, Cosigned: report.Fresh, Findings: report.Findings, state: report.State}
	s := report.State
	if s == nil {
		return k, nil
	}
	digest := s.PolicyDigest()
	k.MeshID, k.Incarnation, k.Epoch, k.Base, k.Policy = s.MeshID().String(), uint64(s.Incarnation()), uint64(s.Epoch()), s.Base(), hex.EncodeToString(digest[:])
	k.Witnesses = len(s.Witnesses())
	if reader, err := openLog(cmd.Context(), location); err == nil {
		defer reader.Close()
		if note, err := reader.Checkpoint(cmd.Context()); err == nil && k.Witnesses > 0 {
			if _, name, err := transparency.WitnessedBy(note, transparency.OutsideOf(s.Witnesses())); err == nil {
				k.Witness = name
			}
		}
	}
	return k, nil
}

// newestKept returns the index of the log that goes furthest, -1 if none holds.
func newestKept(kept []keptLog) int {
	best := -1
	for i, k := range kept {
		if k.OK && (best < 0 || k.Incarnation > kept[best].Incarnation || k.Incarnation == kept[best].Incarnation && k.Size > kept[best].Size) {
			best = i
		}
	}
	return best
}

func keptText(k keptLog, newest bool) string {
	var b strings.Builder
	mark := ""
	if newest {
		mark = "   <- the newest of these"
	}
	fmt.Fprintf(&b, "log          %s%s\n", k.Log, mark)
	if k.MeshID != "" {
		fmt.Fprintf(&b, "mesh         %s\nincarnation  %d, epoch %d, base %d\n", k.MeshID, k.Incarnation, k.Epoch, k.Base)
	}
	fmt.Fprintf(&b, "checkpoint   size %d, root %s\ncosigners    %s (%s)\n", k.Size, k.Root, orNobody(k.Cosigners), k.Level)
	if !k.Cosigned.IsZero() {
		fmt.Fprintf(&b, "cosigned     %s by a quorum\n", k.Cosigned.Format(time.RFC3339))
	}
	if k.Witnesses > 0 {
		fmt.Fprintf(&b, "witness      %s, of %d\n", orNone(k.Witness), k.Witnesses)
	}
	for _, f := range k.Findings {
		fmt.Fprintf(&b, "FINDING      entry %d: %s: %s\n", f.Index, f.Code, f.Message)
	}
	if k.OK {
		b.WriteString("verdict      a mesh can go on from here\n\n")
	} else {
		b.WriteString("verdict      NOT as it should be: nothing goes on from this log\n\n")
	}
	return b.String()
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func recoverDraftCommand() *cobra.Command {
	var genesis, out string
	var orgs []string
	var incarnation uint64
	var planned, asJSON bool
	var open time.Duration
	cmd := &cobra.Command{
		Use:   "draft DIR|URL --genesis FILE -o FILE",
		Short: "Draft a Recovery that goes on from the newest checkpoint of a log",
		Long: `Audit a log and draft a Recovery that goes on from its newest checkpoint. The file holds the
policy's signed history, so that whoever signs it needs nothing else but genesis.

With --planned the Recovery is for a mesh that will be stopped: it goes on from whatever
checkpoint is the newest then, if nothing but narrowings was ordered since.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if genesis == "" || out == "" {
				return usageError("name the mesh's genesis with --genesis and the file to write with -o", "--genesis and -o are both needed")
			}
			g, err := signedGenesis(genesis)
			if err != nil {
				return err
			}
			kept, err := inspectLogs(cmd, args, audit.Options{At: time.Now(), Genesis: g})
			if err != nil {
				return err
			}
			i := newestKept(kept)
			if i < 0 {
				return refusedError(string(attest.CodeRolledBack), "look at it with meshnode recover inspect "+args[0], "%s: no log there holds", args[0])
			}
			k := kept[i]
			r := consensus.Recovery{Incarnation: identity.Incarnation(incarnation), Planned: planned, Created: time.Now(), Organisations: k.state.OrganisationIDs()}
			if len(orgs) > 0 {
				r.Organisations = nil
				for _, org := range orgs {
					r.Organisations = append(r.Organisations, identity.OrgID(org))
				}
				slices.Sort(r.Organisations)
			}
			if incarnation == 0 {
				r.Incarnation = k.state.Incarnation() + 1
			}
			if open == 0 {
				open = consensus.MaxRecovery
			}
			r.Expires = r.Created.Add(open)
			var nonce [16]byte
			_, _ = rand.Read(nonce[:])
			r.Nonce = hex.EncodeToString(nonce[:])
			file, err := k.state.DraftRecovery(r, consensus.CheckpointSeen{Size: k.Size, Root: k.Root})
			if err != nil {
				return recoveryFailure("draft", err)
			}
			raw, err := file.Encode()
			if err != nil {
				return err
			}
			if err := writeNew(out, raw, 0o644); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), recoveryView(file, out))
			}
			for _, line := range file.Describe() {
				fmt.Fprintln(cmd.OutOrStdout(), printable(line))
			}
			fmt.Fprintf(cmd.OutOrStdout(), "written to %s; each organisation signs it with meshnode recover sign\n", out)
			return nil
		},
	}
	cmd.Flags().StringVar(&genesis, "genesis", "", "the mesh's signed genesis file")
	cmd.Flags().StringVarP(&out, "output", "o", "", "file to write the draft to")
	cmd.Flags().StringSliceVar(&orgs, "organisations", nil, "whose seats found the incarnation, all of them at once (default: every organisation)")
	cmd.Flags().Uint64Var(&incarnation, "incarnation", 0, "number of the incarnation (default: the next; a higher one where that was signed for before)")
	cmd.Flags().BoolVar(&planned, "planned", false, "for a mesh that will be stopped")
	cmd.Flags().DurationVar(&open, "open", 0, "how long it may start the incarnation (default and most 24h; with --planned at most 720h)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// recoveryFailure gives a refusal of a Recovery its exit code.
func recoveryFailure(what string, err error) error {
	var refused *attest.Error
	if errors.As(err, &refused) {
		r := consensus.ReasonOf(err)
		return refusedError(string(r.Code), r.Remedy, "%s: %s", what, r.String())
	}
	return usageError("see meshnode recover --help", "%s: %v", what, err)
}

// readRecovery reads a recovery file.
func readRecovery(path string, g *consensus.Genesis) (*consensus.RecoveryFile, error) {
	raw, err := readLimited(path, consensus.MaxRecoveryFile+1)
	if err != nil {
		return nil, err
	}
	f, err := consensus.ParseRecoveryFile(g, bytes.TrimSuffix(raw, []byte("\n")))
	if err != nil {
		return nil, recoveryFailure(path, err)
	}
	return f, nil
}

// signFlags are what recover sign is told.
type signFlags struct {
	genesis, receipts, witness, log, out string
	keys, neverOrdered                   []string
	noWitness, asJSON                    bool
}

func recoverSignCommand() *cobra.Command {
	var f signFlags
	cmd := &cobra.Command{
		Use:   "sign FILE... --genesis FILE [--key KEY --receipts FILE]",
		Short: "Show what a Recovery does, as its bytes say it, and sign it (offline)",
		Long: `Show what a recovery file does, recomputed from its bytes and from genesis, and sign it with a
govern key. It needs no node. Several copies of one file are merged.

It is refused if this organisation has seen more: its receipts hold the newest checkpoint,
base and Recovery that it ever signed or looked at, and the proposals that it approved. A
witness that genesis names is asked by whoever signs: --witness names the newest checkpoint
that it has cosigned. --log checks a copy of the log against the file.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return signRecovery(cmd, args, f) },
	}
	cmd.Flags().StringVar(&f.genesis, "genesis", "", "the mesh's signed genesis file")
	cmd.Flags().StringArrayVar(&f.keys, "key", nil, "file of a govern key; may be repeated")
	cmd.Flags().StringVar(&f.receipts, "receipts", "", "file of this organisation's receipts (default: receipts.json beside the first key)")
	cmd.Flags().StringVar(&f.log, "log", "", "copy of the log, DIR or URL, to check against the file")
	cmd.Flags().StringVar(&f.witness, "witness", "", "file with the newest checkpoint that a witness of genesis has cosigned")
	cmd.Flags().BoolVar(&f.noWitness, "without-witness", false, "sign although no witness could be asked")
	cmd.Flags().StringSliceVar(&f.neverOrdered, "never-ordered", nil, "id of a proposal that this organisation approved and that is known never to have been ordered")
	cmd.Flags().StringVarP(&f.out, "output", "o", "", "file to write the result to (default: the first FILE)")
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "print one JSON object")
	return cmd
}

func signRecovery(cmd *cobra.Command, args []string, f signFlags) error {
	if f.genesis == "" {
		return usageError("name the mesh's genesis with --genesis", "no genesis")
	}
	g, err := signedGenesis(f.genesis)
	if err != nil {
		return err
	}
	file, err := readRecoveries(args, g)
	if err != nil {
		return err
	}
	if !f.asJSON { // what gets signed is shown before it is signed
		for _, line := range file.Describe() {
			fmt.Fprintln(cmd.OutOrStdout(), printable(line))
		}
	}
	if f.log != "" {
		if err := checkAgainstLog(cmd, file, f.log, g); err != nil {
			return err
		}
	}
	if len(f.keys) > 0 {
		if err := signWithReceipts(cmd.Context(), file, f, time.Now()); err != nil {
			return err
		}
	}
	if f.out == "" {
		f.out = args[0]
	}
	if len(f.keys) > 0 || len(args) > 1 {
		if err := writeRecovery(file, f.out, g); err != nil {
			return err
		}
	}
	if f.asJSON {
		return printJSON(cmd.OutOrStdout(), recoveryView(file, f.out))
	}
	if have, need := file.Signed(); len(f.keys) > 0 {
		fmt.Fprintf(cmd.OutOrStdout(), "written to %s: have %d of the %d organisations that it needs\n", f.out, len(have), need)
	}
	return nil
}

// recoveryView is the output of recover draft and sign --json.
func recoveryView(file *consensus.RecoveryFile, path string) map[string]any {
	have, need := file.Signed()
	if have == nil {
		have = []identity.OrgID{}
	}
	return map[string]any{"id": file.Recovery.ID().String(), "incarnation": file.Recovery.Incarnation, "recovery": file.Recovery, "have": have, "need": need, "file": path}
}

// readRecoveries reads files of one Recovery and puts their signatures together.
func readRecoveries(paths []string, g *consensus.Genesis) (*consensus.RecoveryFile, error) {
	var file *consensus.RecoveryFile
	for _, path := range paths {
		next, err := readRecovery(path, g)
		if err != nil {
			return nil, err
		}
		if file == nil {
			file = next
		} else if err := file.Add(next.Envelope().Marshal()); err != nil {
			return nil, refusedError("other_recovery", "sign each Recovery by itself", "%s: %v", path, err)
		}
	}
	return file, nil
}

// writeRecovery writes file; signatures in a file that is there already are kept.
func writeRecovery(file *consensus.RecoveryFile, path string, g *consensus.Genesis) error {
	if _, err := os.Stat(path); err == nil {
		old, err := readRecovery(path, g)
		if err != nil {
			return err
		}
		if err := file.Add(old.Envelope().Marshal()); err != nil {
			return usageError("choose another file with -o", "%s: holds another Recovery", path)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return usageError("check the path", "%v", err)
	}
	raw, err := file.Encode()
	if err != nil {
		return err
	}
	return writeOver(path, raw, 0o644)
}

// checkAgainstLog demands that a copy of the log leads to what the file goes on from.
func checkAgainstLog(cmd *cobra.Command, file *consensus.RecoveryFile, location string, g *consensus.Genesis) error {
	kept, err := inspectLogs(cmd, []string{location}, audit.Options{At: time.Now(), Genesis: g})
	if err != nil {
		return err
	}
	i := newestKept(kept)
	if i < 0 {
		return refusedError(string(attest.CodeRolledBack), "look at it with meshnode recover inspect "+location, "%s: no log there holds", location)
	}
	k, r := kept[i], file.Recovery
	if !r.Planned {
		if k.Origin != r.PreviousOrigin || k.Size != r.Checkpoint.Size || k.Root != r.Checkpoint.Root {
			return refusedError(string(attest.CodeRolledBack), "draft the Recovery again from the newest log",
				"%s ends at size %d of %s, root %s; the Recovery goes on from size %d of %s, root %s", k.Log, k.Size, k.Origin, k.Root, r.Checkpoint.Size, r.PreviousOrigin, r.Checkpoint.Root)
		}
		return nil
	}
	if k.Origin != r.PreviousOrigin || k.Size < r.Checkpoint.Size || k.Base != r.Base {
		return refusedError(string(attest.CodeRolledBack), "draft the Recovery again from the newest log",
			"%s ends at size %d of %s on base %d; the planned Recovery goes on from size %d of %s or later, on base %d", k.Log, k.Size, k.Origin, k.Base, r.Checkpoint.Size, r.PreviousOrigin, r.Base)
	}
	return nil
}
