package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/machine"
	"github.com/attestmesh/meshnode/attest/vtpm"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

const attestHelp = `Get evidence about this machine: a report of an SEV-SNP guest, a quote of a TD or of a TPM,
or the report that a paravisor (Azure) left in its TPM with a quote of that, and the
certificates and logs that the machine has for it. meshnode appraise judges it.

The report data is what the evidence is over; a TPM quotes its SHA-256. Less than 64 bytes
are filled up with zeros. Without --report-data it is random and printed, so that the
evidence is fresh and good for nothing else.

Reports come from configfs-tsm or the vendor's device, quotes of a TPM from --tpm, a device
or the unix socket of swtpm. A certified attestation key that came with the machine is used;
without one a new key is made in the TPM, which nobody vouches for until an organisation's
enroller has activated it.

Exit codes: 0 the evidence was written · 2 usage · 3 no device, or it does not answer.`

// attestFlags are the options of meshnode attest.
type attestFlags struct {
	reportData, output, kind string
	tpm, eventLog, imaLog    string
	json                     bool
}

func attestCommand() *cobra.Command {
	var f attestFlags
	cmd := &cobra.Command{
		Use:   "attest",
		Short: "Get evidence about this machine from its TEE or TPM",
		Long:  attestHelp,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runAttest(cmd.Context(), cmd.OutOrStdout(), f)
		},
	}
	cmd.Flags().StringVar(&f.reportData, "report-data", "", "what the evidence is over, up to 64 bytes in `HEX`")
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "`FILE` for the evidence, default standard output")
	cmd.Flags().StringVar(&f.kind, "kind", "", strings.Join(machine.Kinds(), " ")+"; default the strongest there is")
	cmd.Flags().StringVar(&f.tpm, "tpm", vtpm.DefaultDevice, "`PATH` of a TPM's device or of an emulator's socket")
	cmd.Flags().StringVar(&f.eventLog, "event-log", "", "TCG event log of the TPM's machine, a `FILE`; default this machine's")
	cmd.Flags().StringVar(&f.imaLog, "ima-log", "", "IMA list of the TPM's machine, a `FILE`; default this machine's")
	cmd.Flags().BoolVar(&f.json, "json", false, "print one JSON object; needs -o")
	return cmd
}

// attested is the outcome: the shape of --json.
type attested struct {
	Kind       string         `json:"kind"`
	ReportData string         `json:"report_data"`
	File       string         `json:"file"`
	Items      []attestedItem `json:"items"`
}

type attestedItem struct {
	Type string `json:"type"`
	Size int    `json:"size"`
}

func runAttest(ctx context.Context, out io.Writer, f attestFlags) error {
	data, err := reportDataOf(f.reportData)
	if err != nil {
		return err
	}
	if f.json && f.output == "" {
		return usageError("add -o FILE", "--json without a file for the evidence")
	}
	if file, ok := out.(*os.File); ok && f.output == "" && isTerminal(file) {
		return usageError("add -o FILE", "evidence is binary, and standard output a terminal")
	}
	options := machine.TPM(f.tpm)
	if f.eventLog != "" {
		options.EventLog = f.eventLog
	}
	if f.imaLog != "" {
		options.IMALog = f.imaLog
	}
	if f.kind != "" && !slices.Contains(machine.Kinds(), f.kind) {
		return usageError("use one of "+strings.Join(machine.Kinds(), " "), "--kind %q: unknown kind", f.kind)
	}
	remedy := "meshnode doctor says what this machine has; a device may need another user or group"
	if f.tpm != vtpm.DefaultDevice && (f.kind == "" || strings.Contains(f.kind, attest.KindVTPM)) { // doctor looks at the machine's own
		remedy = "give --tpm the device of a TPM, or the socket of an emulator that runs; it may need another user or group"
	}
	attester, closer, err := machine.Find(ctx, f.kind, options)
	if err != nil {
		return attestFailure(ctx, remedy, err)
	}
	ev, err := attester.Attest(ctx, data)
	if err = errors.Join(err, closer()); err != nil {
		return attestFailure(ctx, remedy, err)
	}
	raw, err := ev.Encode()
	if err != nil {
		return err
	}
	if f.output == "" {
		_, err := out.Write(raw)
		return err
	}
	if err := writeEvidence(f.output, raw); err != nil {
		return usageError("name a file in a directory that you can write", "%v", err)
	}
	result := attested{Kind: ev.Kind, ReportData: hex.EncodeToString(data[:]), File: f.output}
	for _, it := range ev.Items {
		result.Items = append(result.Items, attestedItem{it.Type, len(it.Data)})
	}
	if f.json {
		return printJSON(out, result)
	}
	fmt.Fprintf(out, "%s: evidence of kind %s\n  report data  %s\n", printable(result.File), result.Kind, result.ReportData)
	for _, it := range result.Items {
		fmt.Fprintf(out, "  %-52s %d bytes\n", it.Type, it.Size)
	}
	return nil
}

func attestFailure(ctx context.Context, remedy string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return unavailableError("unavailable", remedy, "%v", err)
}

// reportDataOf decodes --report-data; without one it is random.
func reportDataOf(text string) (data attest.ReportData, err error) {
	if text == "" {
		_, err = rand.Read(data[:])
		return data, err
	}
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) > len(data) {
		return data, usageError("give up to 64 bytes in hex", "--report-data is not up to %d bytes in hex", len(data))
	}
	copy(data[:], raw)
	return data, nil
}

// writeEvidence replaces the file as a whole.
func writeEvidence(path string, raw []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(raw)
	if err = errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// isTerminal reports whether f is a terminal.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
