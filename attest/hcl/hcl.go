// Package hcl decides the authenticity of composite evidence of Azure's confidential
// machines: a report of the TEE, SEV-SNP or TDX, and a quote of the TPM that the paravisor
// (HCL, Host Compatibility Layer; now OpenHCL) runs inside the TEE, below the guest.
//
// What ties them together is the HCL report, NV index 0x01400001 of that TPM: it holds JSON
// "runtime data", which name the TPM's attestation key (HCLAkPub), and their hash is the
// report data of the TEE's report. So the TEE's hardware says which software, the paravisor,
// it measured, and that software says which TPM is its own. Layout: see Parse. (Microsoft,
// "Azure confidential VMs guest attestation design", and OpenHCL's source, package
// openhcl_attestation_protocol.)
//
// Evidence items of kinds "sevsnp,vtpm" and "tdx,vtpm": one TypeHCLReport; for TDX one
// TypeTDXQuote (the TD's report inside the HCL report cannot be verified elsewhere); what
// supports the TEE's report, as its scheme takes it; a TPM's quote in either form of package
// vtpm, the key of which need not be given, with its logs. The report of an SEV-SNP guest is
// taken from the HCL report. A TEE's report outside one is refused with ak_binding, equal
// Binding or not: two machines can put the same bytes into a report and into a quote, and
// only a report that names the key says that there is one machine.
//
// Verify establishes: the TEE's report is genuine; its report data are the hash of the
// runtime data and zeros; an SEV-SNP report was made at VMPL 0, where the paravisor runs
// (the guest below could have its own runtime data put into a report of another level); the
// quote is genuine under the key named. AKTrust is "report". The quote's nonce, SHA-256 of
// the report data of the exchange, binds the whole.
//
// Measurement and hardware are the TEE's, registers both's: rtmrN, pcrN. The measurement is
// that of the paravisor and its firmware; what it started is in the PCRs alone. Whoever can
// start a guest can start one that names any key: the evidence is worth what the measured
// paravisor is, and a policy without its measurement as a reference value says nothing. One
// whose reference value names no register of the TPM says nothing of the guest: the best
// verdict is then "warning".
//
// SecureBoot is the event log's where there is one, and the paravisor's word else; where both
// speak, both must say that it is on.
//
// Errors, as codes: malformed, ak_binding, no_endorsement (a TD without a quote), and those
// of packages sevsnp, tdx and vtpm.
package hcl

import (
	"context"
	"crypto"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// TPM verifies a quote under a key that a TEE's report names; a *vtpm.Scheme does.
type TPM interface {
	VerifyNamed(ctx context.Context, ev attest.Evidence, named crypto.PublicKey, data *attest.ReportData, at time.Time) (attest.Claims, error)
}

// Scheme verifies one TEE together with the TPM of its paravisor.
type Scheme struct {
	tee attest.Scheme
	tpm TPM
}

// New returns the scheme for a TEE whose own scheme is given, of kind sevsnp or tdx.
func New(tee attest.Scheme, tpm TPM) (*Scheme, error) {
	if tee == nil || tpm == nil {
		return nil, errors.New("hcl: no scheme of a part")
	}
	if k := tee.Kind(); k != attest.KindSEVSNP && k != attest.KindTDX {
		return nil, fmt.Errorf("hcl: a TEE of kind %q, want %s or %s", k, attest.KindSEVSNP, attest.KindTDX)
	}
	return &Scheme{tee, tpm}, nil
}

// Kind returns "sevsnp,vtpm" or "tdx,vtpm".
func (s *Scheme) Kind() string { return s.tee.Kind() + "," + attest.KindVTPM }

func refuse(code attest.Code, claim, got, want string, err error) *attest.Error {
	return &attest.Error{Reason: attest.NewReason(code, claim, got, want), Err: err}
}

// Verify implements attest.Scheme.
func (s *Scheme) Verify(ctx context.Context, ev attest.Evidence, data *attest.ReportData, at time.Time) (attest.Claims, error) {
	p, err := s.split(ev)
	if err != nil {
		return attest.Claims{}, err
	}
	tee, err := s.tee.Verify(ctx, p.tee, nil, at)
	if err != nil {
		return attest.Claims{}, err
	}
	if p.report == nil {
		return attest.Claims{}, refuse(attest.CodeAKBinding, "report_data", tee.ReportData, "runtime data that name an attestation key, with the report", nil)
	}
	if err := vouches(tee, *p.report); err != nil {
		return attest.Claims{}, err
	}
	tpm, err := s.tpm.VerifyNamed(ctx, p.tpm, p.report.AK, data, at)
	if err != nil {
		return attest.Claims{}, err
	}
	return s.compose(tee, tpm, *p.report), nil
}

// vouches reports why a TEE's report does not vouch for the runtime data.
func vouches(tee attest.Claims, r Report) error {
	if want := hex.EncodeToString(r.ReportData[:]); tee.ReportData != want {
		return refuse(attest.CodeAKBinding, "report_data", tee.ReportData, want+", the hash of the runtime data", nil)
	}
	if v := tee.SEVSNP; v != nil && v.VMPL != 0 {
		return refuse(attest.CodeAKBinding, "sevsnp.vmpl", fmt.Sprint(v.VMPL), "0, where the paravisor runs", nil)
	}
	return nil
}

// compose joins the claims of both.
func (s *Scheme) compose(tee, tpm attest.Claims, r Report) attest.Claims {
	out := tee
	out.Kind, out.Genuine = s.Kind(), tee.Genuine && tpm.Genuine
	out.Bound, out.ReportData = tpm.Bound, tpm.ReportData
	out.Registers = map[string]string{}
	maps.Copy(out.Registers, tee.Registers)
	maps.Copy(out.Registers, tpm.Registers)
	v := *tpm.VTPM
	v.Paravisor = &attest.ParavisorClaims{RuntimeData: hex.EncodeToString(r.Digest), SecureBoot: r.Runtime.SecureBoot,
		TPMEnabled: r.Runtime.TPMEnabled, TPMPersisted: r.Runtime.TPMPersisted, ConsoleEnabled: r.Runtime.ConsoleEnabled,
		VMUniqueID: r.Runtime.VMUniqueID, UserData: r.Runtime.userData}
	if said := r.Runtime.SecureBoot; said != nil && (v.SecureBoot == nil && !v.LogReplayed || v.SecureBoot != nil && !*said) {
		v.SecureBoot = said
	}
	out.VTPM = &v
	return out
}

// parts are the evidence of both, and what ties them together.
type parts struct {
	report   *Report
	tee, tpm attest.Evidence
}

// split gives each scheme its items; each refuses what is not its own.
func (s *Scheme) split(ev attest.Evidence) (parts, error) {
	malformed := func(err error) (parts, error) {
		return parts{}, refuse(attest.CodeMalformed, "evidence", "", "", err)
	}
	if err := ev.Check(); err != nil {
		return malformed(err)
	}
	if ev.Kind != s.Kind() {
		return malformed(fmt.Errorf("kind %q, want %q", ev.Kind, s.Kind()))
	}
	out := parts{tee: attest.Evidence{Kind: s.tee.Kind()}, tpm: attest.Evidence{Kind: attest.KindVTPM}}
	for _, it := range ev.Items {
		switch {
		case it.Type == attest.TypeHCLReport:
			if out.report != nil {
				return malformed(errors.New("two HCL reports"))
			}
			r, err := Parse(it.Data)
			if err != nil {
				return malformed(err)
			}
			if r.TEE != s.tee.Kind() {
				return malformed(fmt.Errorf("an HCL report with a report of kind %s, want %s", r.TEE, s.tee.Kind()))
			}
			out.report = &r
		case slices.Contains(tpmItems, it.Type):
			out.tpm.Items = append(out.tpm.Items, it)
		default:
			out.tee.Items = append(out.tee.Items, it)
		}
	}
	if len(out.tpm.Items) == 0 {
		return malformed(errors.New("no quote of a TPM"))
	}
	if out.report != nil && s.tee.Kind() == attest.KindSEVSNP {
		// One that lies beside it as well is then a second report, which its scheme refuses.
		out.tee.Items = append(out.tee.Items, attest.Item{Type: attest.TypeSEVSNPReport, Data: out.report.Hardware})
	}
	if s.tee.Kind() == attest.KindTDX && len(out.tee.Find(attest.TypeTDXQuote)) == 0 {
		return parts{}, refuse(attest.CodeNoEndorsement, "tdx quote", "", "the quote that was made of the TD's report", nil)
	}
	return out, nil
}

// tpmItems are the TPM's; all others are the TEE's. The key is named by the report, so that
// certificates are the TEE's too.
var tpmItems = []string{attest.TypeTPMQuote, attest.TypeTPMAttest, attest.TypeTPMSignature, attest.TypeTPMPCRs, attest.TypeTPMPublic,
	attest.TypeEventLog, attest.TypeIMALog}
