package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/audit/proof"
)

// verifiedProof is one line of log verify --json: of a file that holds with all that it says, of
// another with the reason.
type verifiedProof struct {
	File    string `json:"file"`
	OK      bool   `json:"ok"`
	Code    string `json:"code,omitempty"`
	Message string `json:"message,omitempty"`
	Remedy  string `json:"remedy,omitempty"`
	*proof.Report
	Proves    []string `json:"proves"`
	ProvesNot []string `json:"proves_not"`

	exit int
}

func logVerifyCommand() *cobra.Command {
	var genesis, at string
	var maxAge time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify --genesis FILE PROOF...",
		Short: "Check proofs, and misbehaviour files, offline, with genesis and the files alone",
		Long: `Check files that meshnode log prove made: no log, no network. Every proof of inclusion,
every signature, every change of the policy since genesis, the log's signature and the
cosignatures of a majority of all organisations have to hold; nothing of it can be left out.
It says what was proven, by whom, and what the file leaves open.

A file that a node has written to DATA/misbehaviour is verified too: it names the
organisations that have cosigned two histories of the log, or says that only the log's
key has signed both, which convicts nobody.

Exit 0: every file holds. 1: one does not. 2: one is no proof. 3: one is a plain
tlog-proof without what links it to genesis, or older than --max-age. Of several files
the worst by 2, 1, 3, 0.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if genesis == "" {
				return usageError("give --genesis FILE, from a source that you trust", "a proof holds for one genesis: without it anybody can make one")
			}
			opts := proof.Options{At: time.Now(), MaxAge: maxAge}
			if cmd.Flags().Changed("max-age") && maxAge <= 0 {
				return usageError("give a duration such as 720h, or leave it out", "--max-age %s: want more than zero", maxAge)
			}
			var err error
			if at != "" {
				if opts.At, err = time.Parse(time.RFC3339, at); err != nil {
					return usageError("give a time like 2026-01-31T12:00:00Z", "--at %.40q is no time", at)
				}
			}
			if opts.Genesis, err = signedGenesis(genesis); err != nil {
				return err
			}
			exit := exitOK
			for i, path := range args {
				v, code := verifyFile(path, opts)
				exit = worseExit(exit, code)
				if asJSON {
					err = printJSON(cmd.OutOrStdout(), v)
				} else {
					if i > 0 {
						fmt.Fprintln(cmd.OutOrStdout())
					}
					_, err = io.WriteString(cmd.OutOrStdout(), printable(v.text()))
				}
				if err != nil {
					return unavailableError("unavailable", "", "%v", err)
				}
			}
			if exit != exitOK {
				return exitStatus(exit)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&genesis, "genesis", "", "genesis `FILE` of the mesh that is meant; required")
	cmd.Flags().StringVar(&at, "at", "", "verify as of `TIME` (RFC 3339), default now: cosignatures made later do not count")
	cmd.Flags().DurationVar(&maxAge, "max-age", 0, "exit 3 if the quorum's cosignatures are older (default: no limit)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object per file")
	return cmd
}

func verifyProofFile(path string, opts proof.Options) (verifiedProof, int) {
	out := verifiedProof{File: path, Proves: []string{}, ProvesNot: []string{}}
	data, err := readLimited(path, proof.MaxFile)
	if err == nil {
		out.Report, err = proof.Verify(data, opts)
	}
	if err != nil {
		out.Report = nil
		var f *failure
		if !errors.As(proofFailure(path, err, nil), &f) {
			f = &failure{exit: exitUsage, code: string(attest.CodeMalformed), message: err.Error()}
		}
		out.Code, out.Message, out.Remedy, out.exit = f.code, f.message, f.remedy, f.exit
		return out, f.exit
	}
	out.OK, out.Proves, out.ProvesNot = true, out.Report.Proves(), out.Report.ProvesNot()
	return out, exitOK
}

// proofRemedies say what to do where a code of package attest has no remedy, or another.
var proofRemedies = map[attest.Code]string{
	audit.CodeGenesisMismatch:   "give the genesis of the mesh that the proof is of",
	audit.CodeCheckpointInvalid: "have it made again from the published log (meshnode log prove)",
	audit.CodeUnpublished:       "have it made again once a majority of all organisations has cosigned (meshnode log prove)",
	attest.CodeStale:            "have it made again from the mesh's newest checkpoint (meshnode log prove)",
}

// proofFailure gives an error about a proof its exit code; other decides about errors that are not.
func proofFailure(path string, err error, other func(error) error) error {
	var refused *proof.Refused
	var malformed *proof.Malformed
	switch {
	case errors.As(err, &refused):
		remedy := proofRemedies[refused.Code]
		if remedy == "" {
			remedy = attest.NewReason(refused.Code, "", "", "").Remedy
		}
		why := refused.Message
		switch refused.Code {
		case attest.CodeStale, audit.CodeUnpublished, audit.CodeCheckpointInvalid: // about no entry
		default:
			why = fmt.Sprintf("entry %d: %s", refused.Index, why)
		}
		// A log whose checkpoint too few have cosigned as yet will have another.
		if refused.Code == attest.CodeStale || refused.Code == audit.CodeUnpublished && other != nil {
			return unavailableError(string(refused.Code), remedy, "%s: %s", path, why)
		}
		return refusedError(string(refused.Code), remedy, "%s: %s", path, why)
	case errors.Is(err, proof.ErrBare):
		return unavailableError(string(attest.CodeNotLinked), attest.NewReason(attest.CodeNotLinked, "", "", "").Remedy, "%s is %v", path, err)
	case errors.As(err, &malformed):
		return &failure{exit: exitUsage, code: string(attest.CodeMalformed), message: path + ": " + err.Error(), remedy: "give a file that meshnode log prove made"}
	case other != nil:
		return other(err)
	}
	return err
}

// notVerified says what came of a file that was not found to hold, as its exit code has it.
func notVerified(exit int, path, code, message, remedy string) string {
	verdict := "DOES NOT HOLD"
	switch exit {
	case exitUsage:
		verdict = "cannot be read"
	case exitUnavailable:
		verdict = "cannot decide"
	}
	out := fmt.Sprintf("verdict    %s: %s: %s\n", verdict, code, strings.TrimPrefix(message, path+": "))
	if remedy != "" {
		out += fmt.Sprintf("  try: %s\n", remedy)
	}
	return out
}

func (v *verifiedProof) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "proof      %s\n", v.File)
	if !v.OK {
		b.WriteString(notVerified(v.exit, v.File, v.Code, v.Message, v.Remedy))
		return b.String()
	}
	r := v.Report
	fmt.Fprintf(&b, "entry      %d of %d, %s\n", r.Index, r.Size, r.Kind)
	for _, line := range r.Says() {
		fmt.Fprintf(&b, "           %s\n", line)
	}
	fmt.Fprintf(&b, "mesh       %s\norigin     %s\nroot       %s\n", r.MeshID, r.Origin, r.Root)
	fmt.Fprintf(&b, "cosigners  %s (%s, %d of %d organisations)\n", orNobody(r.Cosigners), r.Level, len(r.Cosigners), r.Organisations)
	for _, w := range r.Outside {
		fmt.Fprintf(&b, "witness    %s at %s\n", w.Name, w.At.Format(time.RFC3339))
	}
	fmt.Fprintf(&b, "cosigned   %s by a quorum\nverdict    it holds\n\nThis proves\n", r.Fresh.Format(time.RFC3339))
	for _, line := range v.Proves {
		fmt.Fprintf(&b, "  - %s\n", line)
	}
	b.WriteString("It does not prove\n")
	for _, line := range v.ProvesNot {
		fmt.Fprintf(&b, "  - %s\n", line)
	}
	return b.String()
}
