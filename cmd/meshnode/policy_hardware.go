package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/collect"
	"github.com/attestmesh/meshnode/attest/schemes"
	"github.com/attestmesh/meshnode/node"
)

func policyHardwareCommand() *cobra.Command {
	var asJSON bool
	var saltFile string
	cmd := &cobra.Command{
		Use:   "hardware --salt FILE EVIDENCE",
		Short: "Commit to the chip of a machine, for a list of chips that names none (offline)",
		Long: `Commit to the chip of a machine. The commitment goes into limit_hardware, add_hardware or
remove_hardware of a proposal; it is public and says nothing of the chip to whoever has no salt.

EVIDENCE is what meshnode attest -o FILE wrote on that machine; it must be genuine. The salt is
of this one machine: FILE is made if it is not there, and the machine's own configuration names
it (attester.hardware_salt). Keep it from others: with it, a chip can be looked for in the list.`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&saltFile, "salt", "", "`FILE` with the machine's salt; made if it is not there")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if saltFile == "" {
			return usageError("name a file for this machine's salt", "--salt is missing")
		}
		known, err := schemes.Under(schemes.Roots{})
		if err != nil {
			return err
		}
		kind, id, err := hardwareOf(cmd.Context(), known, args[0], time.Now())
		if err != nil {
			return err
		}
		salt, made, err := saltIn(saltFile)
		if err != nil {
			return err
		}
		commitment, err := attest.HardwareCommitment(salt, kind, id)
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), map[string]any{"kind": kind, "commitment": commitment, "salt_file": saltFile, "salt_made": made})
		}
		fmt.Fprintln(cmd.OutOrStdout(), commitment)
		return nil
	}
	return cmd
}

// hardwareOf returns the kind and the id of the chip that made the evidence in a file.
func hardwareOf(ctx context.Context, known []attest.Scheme, file string, at time.Time) (kind, id string, err error) {
	inputs, err := collect.Path(file)
	if err != nil {
		return "", "", usageError(notEvidence, "%v", err)
	}
	if len(inputs) != 1 {
		return "", "", usageError("name the evidence of one machine", "%s: %d pieces of evidence", file, len(inputs))
	}
	for _, s := range known {
		if s.Kind() != inputs[0].Kind {
			continue
		}
		claims, err := attest.Verify(ctx, s, inputs[0].Evidence, nil, at)
		var refusal *attest.Error
		switch {
		case errors.As(err, &refusal) && (refusal.Reason.Code == attest.CodeCollateralMissing || refusal.Reason.Code == attest.CodeCollateralStale):
			return "", "", unavailableError(string(refusal.Reason.Code), refusal.Reason.Remedy, "%s: %v", file, err)
		case errors.As(err, &refusal):
			return "", "", refusedError(string(refusal.Reason.Code), refusal.Reason.Remedy, "%s: %v", file, err)
		case err != nil:
			return "", "", err
		case claims.HardwareID == "":
			return "", "", refusedError(string(attest.CodeMaskedChipID), "have the host show the chip id (MASK_CHIP_ID off)", "%s: names no chip", file)
		}
		return attest.HardwareKind(claims.Kind), claims.HardwareID, nil
	}
	return "", "", usageError("use evidence of sevsnp or tdx", "%s: evidence of kind %s names no chip", file, inputs[0].Kind)
}

// saltIn reads a salt, or makes one that nobody else has.
func saltIn(path string) (salt [attest.SaltSize]byte, made bool, err error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		_, _ = rand.Read(salt[:])
		return salt, true, writeNew(path, []byte(hex.EncodeToString(salt[:])+"\n"), 0o600)
	}
	if salt, err = node.ReadSalt(path); err != nil {
		return salt, false, usageError("name the salt that was made for this machine, or a file that is not there", "%v", err)
	}
	return salt, false, nil
}
