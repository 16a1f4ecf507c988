package main

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/collateral"
	"github.com/attestmesh/meshnode/attest/collect"
	"github.com/attestmesh/meshnode/attest/eventlog"
	"github.com/attestmesh/meshnode/attest/ima"
	"github.com/attestmesh/meshnode/attest/schemes"
)

const appraiseHelp = `Verify evidence offline and appraise it.

FILE is an SEV-SNP report (bare, with certificates appended, or go-sev-guest's protobuf),
a TDX quote, a TPM's quote (go-tpm-tools' attestation protobuf, or TPMS_ATTEST with signature,
register values and key beside it), Azure's HCL report with the quotes beside it, a TCG or
dstack event log, an IMA list, or a folder with one of them and what belongs to it:
certificates, collateral, event log.
Certificates and collateral beside a FILE are found too. For a FILE nothing is ever fetched:
--collateral names a store that meshnode collateral fetch filled, or any folder of such files.
Of what is in it and in the evidence, that counts which was newest at the time of --at, so
that an old verdict can be judged again with the collateral of its day and of today.

https://HOST:PORT is the endpoint of a node: on one connection its certificate's evidence is
read and a fresh challenge answered, whose evidence must carry that connection's exporter.
With --genesis the mesh's policy, the Credential and the majority's word for both are verified
too; without it the best verdict is "warning", whoever's node it is.

--policy says which evidence is good enough and which software is wanted (what a client demands
of a node, organisations and services, is in the policy of meshnode proxy). Start from the file
that --default-policy prints; nothing in it may be left out, and the wanted software is added:

  references:
    - {kind: sevsnp, measurement: HEX}

Without --policy the strictest demands are made but no software is named as wanted, so the
best verdict is "warning". Logs alone prove nothing: verdict "none", with the registers
they replay to.

--forecast says besides what will be said of genuine FILEs, and changes neither verdict nor
exit code. By Intel's TCB info (its JSON with the signing chain beside it, or a folder or store
that holds one, like the early set that meshnode collateral fetch --update early fills): which
TCB status and verdict from which date on, and which component is short. By a raised policy in
YAML: the verdict under it, and which component is below its floors for AMD.

Exit codes: 0 affirming, warning, or a log · 1 refused or not genuine · 2 no evidence ·
3 cannot decide. Of several files the worst by 2, 1, 3, 0.`

// notEvidence is the remedy for files that are none.
const notEvidence = "give a report, quote, attestation or log, or the folder of one; a node is https://HOST:PORT"

// appraiseFlags are the options of meshnode appraise.
type appraiseFlags struct {
	policy, reportData, at, collateral, genesis, forecast string
	explain, json, defaultPolicy                          bool
}

func appraiseCommand() *cobra.Command {
	var f appraiseFlags
	cmd := &cobra.Command{
		Use:   "appraise FILE|https://HOST:PORT...",
		Short: "Verify SEV-SNP, TDX and TPM evidence and say what it is worth",
		Long:  appraiseHelp,
		Args: func(cmd *cobra.Command, files []string) error {
			if f.defaultPolicy {
				return cobra.NoArgs(cmd, files)
			}
			return cobra.MinimumNArgs(1)(cmd, files)
		},
		RunE: func(cmd *cobra.Command, files []string) error {
			if f.defaultPolicy {
				return printDefaultPolicy(cmd.OutOrStdout())
			}
			a, err := newAppraiser(f)
			if err != nil {
				return err
			}
			return a.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), files)
		},
	}
	cmd.Flags().StringVar(&f.policy, "policy", "", "appraisal policy, a YAML `FILE`")
	cmd.Flags().BoolVar(&f.defaultPolicy, "default-policy", false, "print the policy that holds without --policy, as a file to start from, and stop")
	cmd.Flags().StringVar(&f.reportData, "report-data", "", "report data or TPM nonce that the evidence must carry, in `HEX`")
	cmd.Flags().StringVar(&f.at, "at", "", "appraise as of `TIME` (RFC 3339), default now")
	cmd.Flags().StringVar(&f.collateral, "collateral", "", "store or folder `DIR` with certificates and collateral")
	cmd.Flags().StringVar(&f.genesis, "genesis", "", "the mesh's genesis `FILE`, for https addresses")
	cmd.Flags().StringVar(&f.forecast, "forecast", "", "say also what other TCB levels or another policy would make of it: TCB info, folder, store or policy `FILE`")
	cmd.Flags().BoolVar(&f.explain, "explain", false, "print all claims and the trustworthiness vector")
	cmd.Flags().BoolVar(&f.json, "json", false, "print one JSON object a line")
	return cmd
}

// appraiser holds what all files of one call share.
type appraiser struct {
	flags   appraiseFlags
	policy  attest.Policy
	want    []byte
	at      time.Time
	roots   []*x509.Certificate // of TPM attestation keys
	schemes map[string]attest.Scheme
	within  time.Duration // everything that is asked of one node

	collateral collateral.Index // empty without --collateral
	forecaster *forecaster      // nil without --forecast
}

func newAppraiser(f appraiseFlags) (*appraiser, error) {
	a := &appraiser{flags: f, policy: attest.StrictPolicy(), at: time.Now().UTC(), schemes: map[string]attest.Scheme{}, within: nodeWithin}
	var err error
	if f.at != "" {
		if a.at, err = time.Parse(time.RFC3339, f.at); err != nil || a.at.IsZero() {
			return nil, usageError("give a time like 2026-03-01T00:00:00Z", "--at %q is no RFC 3339 time", f.at)
		}
	}
	if f.reportData != "" {
		if a.want, err = hex.DecodeString(f.reportData); err != nil || len(a.want) > attest.ReportDataSize {
			return nil, usageError("give up to 64 bytes in hex", "--report-data is not up to %d bytes in hex", attest.ReportDataSize)
		}
	}
	if f.policy != "" {
		if a.policy, a.roots, err = readAppraisalPolicy(f.policy); err != nil {
			return nil, err
		}
	}
	if f.collateral != "" {
		if a.collateral, err = readCollateral(f.collateral); err != nil {
			return nil, err
		}
	}
	if f.forecast != "" {
		if a.forecaster, err = newForecaster(f); err != nil {
			return nil, err
		}
	}
	known, err := schemes.Under(schemes.Roots{VTPM: a.roots})
	if err != nil {
		return nil, err
	}
	for _, s := range known {
		a.schemes[s.Kind()] = s
	}
	return a, nil
}

// appraised is the outcome of one input: the shape of --json.
type appraised struct {
	File     string          `json:"file"`
	Verdict  attest.Verdict  `json:"verdict"`
	Kind     string          `json:"kind"`
	Genuine  *bool           `json:"genuine"` // nil: nothing that could be, not to be decided by this release, or refused for something else
	Bound    bool            `json:"bound"`
	Claims   any             `json:"claims"`
	Reasons  []attest.Reason `json:"reasons"`
	EAR      *attest.EAR     `json:"ear,omitempty"`
	Forecast *forecast       `json:"forecast,omitempty"`
	// Connection is set for an https address.
	Connection *nodeConnection `json:"connection,omitempty"`

	claims attest.Claims
	result attest.Result
	detail string
	exit   int
}

func (a *appraiser) run(ctx context.Context, out, errOut io.Writer, files []string) error {
	exit := exitOK
	for _, file := range files {
		if strings.HasPrefix(file, "https://") {
			r, err := a.appraiseNode(ctx, file)
			if err != nil {
				if len(files) == 1 {
					return err
				}
				f := asFailure(ctx, err)
				if err := a.printFailure(out, errOut, file, f); err != nil {
					return err
				}
				exit = worseExit(exit, f.exit)
				continue
			}
			exit = worseExit(exit, r.exit)
			if err := a.print(out, r); err != nil {
				return err
			}
			continue
		}
		inputs, err := collect.Path(file)
		if err != nil {
			f := usageError(notEvidence, "%v", err)
			if len(files) == 1 {
				return f
			}
			if err := a.printFailure(out, errOut, file, asFailure(ctx, f)); err != nil {
				return err
			}
			exit = worseExit(exit, exitUsage)
			continue
		}
		for _, in := range inputs {
			in.Evidence, _ = a.collateral.Complete(in.Evidence, a.at)
			r, err := a.appraise(ctx, in)
			if err == nil && a.forecaster != nil {
				r.Forecast, err = a.forecast(ctx, in, r)
			}
			if err != nil {
				return err
			}
			exit = worseExit(exit, r.exit)
			if err := a.print(out, r); err != nil {
				return err
			}
		}
	}
	if exit != exitOK {
		return exitStatus(exit)
	}
	return nil
}

// worseExit orders exit codes 2 > 1 > 3 > 0.
func worseExit(a, b int) int {
	rank := []int{exitOK, exitUnavailable, exitRefused, exitUsage}
	if slices.Index(rank, b) > slices.Index(rank, a) {
		return b
	}
	return a
}

// appraise takes one input through the second and third door.
func (a *appraiser) appraise(ctx context.Context, in collect.Input) (appraised, error) {
	out := appraised{File: in.File, Kind: in.Kind, Claims: map[string]string{}, Reasons: []attest.Reason{}}
	scheme, ok := a.schemes[in.Kind]
	if !ok {
		return out, out.replay(in)
	}
	claims, err := a.verify(ctx, scheme, in)
	var refusal *attest.Error
	switch {
	case err == nil:
		out.result = attest.Appraise(claims, a.policy, a.at)
		out.Claims, out.Bound = claims, claims.Bound
	case errors.As(err, &refusal):
		out.result = refused(in.Kind, refusal.Reason, a.at)
		if refusal.Err != nil {
			out.detail = refusal.Err.Error()
		}
	default:
		return out, err
	}
	out.claims = claims
	genuine := claims.Genuine
	if out.result.Code() != attest.CodeUnsupported {
		out.Genuine = &genuine
	}
	out.Verdict = out.result.Verdict
	out.Reasons = append(out.Reasons, out.result.Reasons...)
	ear := out.result.EAR("meshnode " + version)
	out.EAR = &ear
	out.exit = map[attest.Verdict]int{attest.VerdictContraindicated: exitRefused, attest.VerdictNone: exitUnavailable}[out.Verdict]
	if out.result.Code() == attest.CodeMalformed {
		out.exit = exitUsage
	}
	return out, nil
}

// verify opens the second door and compares what the person said the evidence carries.
func (a *appraiser) verify(ctx context.Context, s attest.Scheme, in collect.Input) (attest.Claims, error) {
	if a.want == nil {
		return attest.Verify(ctx, s, in.Evidence, nil, a.at)
	}
	if !slices.Contains(strings.Split(in.Kind, ","), attest.KindVTPM) {
		var data attest.ReportData
		if copy(data[:], a.want) != len(data) {
			return attest.Claims{}, usageError("give all 64 bytes", "--report-data: %d bytes, but reports of kind %s carry %d", len(a.want), in.Kind, len(data))
		}
		return attest.Verify(ctx, s, in.Evidence, &data, a.at)
	}
	// A TPM, also beside a TEE, carries the nonce as given, or its SHA-256 where it is 64
	// bytes of report data.
	c, err := attest.Verify(ctx, s, in.Evidence, nil, a.at)
	if err != nil {
		return c, err
	}
	sum := sha256.Sum256(a.want)
	if c.ReportData != hex.EncodeToString(a.want) && (len(a.want) != attest.ReportDataSize || c.ReportData != hex.EncodeToString(sum[:])) {
		return attest.Claims{}, &attest.Error{Reason: attest.NewReason(attest.CodeNotBound, "nonce", c.ReportData, hex.EncodeToString(a.want))}
	}
	c.Bound, c.VTPM.NonceVerified = true, true
	return c, nil
}

// refused turns a refusal at the second door into a result: none where nothing could be
// decided, else contraindicated.
func refused(kind string, reason attest.Reason, at time.Time) attest.Result {
	r := attest.Refuse(at, reason)
	r.Kind = kind
	switch reason.Code {
	case attest.CodeCollateralMissing, attest.CodeCollateralStale, attest.CodeUnsupported, attest.CodeNoEndorsement:
		r.Verdict = attest.VerdictNone
	}
	return r
}

// replay handles logs without a quote: registers as claims, no verdict.
func (out *appraised) replay(in collect.Input) error {
	raw := in.Evidence.Items[0].Data
	out.Verdict, out.claims = attest.VerdictNone, attest.Claims{Kind: in.Kind}
	claims := map[string]any{}
	if in.Kind == attest.KindIMA {
		list, err := ima.Replay(raw)
		if err != nil {
			return usageError("give the list as the kernel shows it", "%s: %v", in.File, err)
		}
		out.claims.Registers = list.Registers
		out.claims.Measurement = list.Registers["sha1:pcr10"]
		if out.claims.Measurement == "" {
			out.claims.Measurement = list.Registers["sha256:pcr10"]
		}
		claims["format"], claims["entries"], claims["measurement"] = "ima", list.Entries, out.claims.Measurement
		claims["violations"], claims["unverified"] = list.Violations, list.Unverified
	} else {
		log, err := eventlog.Parse(raw)
		if err != nil {
			return usageError("give the log as the kernel shows it", "%s: %v", in.File, err)
		}
		out.claims.Registers = log.Registers()
		claims["format"], claims["entries"] = log.Format, log.Entries
		if bank := log.Strongest(); bank != "" {
			claims["boot"] = log.Facts(bank, log.Banks[bank]) // what they would prove if a quote held them
		}
	}
	claims["registers"] = out.claims.Registers
	out.Claims = claims
	return nil
}
