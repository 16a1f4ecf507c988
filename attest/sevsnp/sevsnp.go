// Package sevsnp decides the authenticity of AMD SEV-SNP attestation reports (AMD 56860,
// "SEV Secure Nested Paging Firmware ABI Specification"), versions 2 to 5, of Milan, Genoa
// (with Bergamo and Siena) and Turin, signed with a VCEK or a VLEK (AMD 57230, "Versioned
// Chip Endorsement Key Certificate and KDS Interface Specification").
//
// # Evidence items
//
// One TypeSEVSNPReport, exactly 1,184 bytes. TypeCertificate in DER: the certificate of the
// key that signed the report must be among them; the chain above it (ASK or ASVK, ARK) is
// compiled in, so other certificates are allowed and not used. TypeCRL in DER, at most 8:
// AMD's revocation lists. Any other item type is refused. Nothing is ever fetched.
//
// # What Verify establishes, in this order
//
//  1. Sizes; a version from 2 on; that the report says it is signed.
//  2. One certificate of the kind that the report names chains to AMD's root: its issuer's
//     signature (RSA-4096 with PSS and SHA-384), all dates at the given time. Its key is
//     P-384, its extensions are complete and none is twice.
//  3. The report's signature (ECDSA P-384 with SHA-384 over bytes 0 to 0x29F) is by its
//     key, and zeros follow it.
//  4. Product, reported TCB (all 8 bytes) and, unless the host masks it or the key is a
//     VLEK, the chip id are those of the certificate. The product is the one whose
//     intermediate issued the certificate, and in version 3 and later also the one that
//     CPUID family and model give.
//  5. Reserved bytes are zero: a report with others is of a firmware that says more than
//     this release understands. Reserved bits of POLICY and PLATFORM_INFO are left to the
//     appraisal, which sees the numbers.
//  6. No revocation list names the chain; whether one is current is a claim.
//  7. The report data.
//
// The claims hold every field. Verify judges none of them: debugging, TCB floors, masked
// ids and the rest are for attest.Appraise.
//
// # What differs between products
//
// A TCB_VERSION is boot loader, TEE, four reserved bytes, SNP, microcode; on Turin it is
// FMC, boot loader, TEE, SNP, three reserved bytes, microcode, and its certificates have an
// extension for the FMC. A chip id has 64 bytes; on Turin 8, followed by zeros.
//
// # Why not go-sev-guest's verify
//
// Its roots and its parser of them are used. Its verification is not: it knows no
// certificate of Turin's and no Zen 4c part, has no ASVK, compares neither TCB nor chip
// with the certificate, checks no dates of revocation lists, and fails on roots without an
// ASK. The tests hold each of these, and that both agree wherever it can decide.
//
// # Memory
//
// A certificate whose chain and whose first report held is remembered (package chains):
// while all certificates of the chain are valid, its next reports cost one signature. That
// signature, the format of the report, its agreement with the certificate, revocation and
// the report data are checked every time. So is a revocation list remembered whose
// signature held.
//
// # Errors, as codes
//
// malformed (sizes, item types, a revocation list that is none), collateral_missing (no
// certificate), not_genuine (chain, signature, an unsigned report), certificate_mismatch,
// certificate_revoked, not_bound, and unsupported for a correctly signed report of a
// version or with bytes that this release does not know.
package sevsnp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/chains"
)

// Scheme verifies reports under its roots. Its zero value has none and refuses all.
type Scheme struct {
	roots Roots
	// known are endorsement keys that chain to roots, by digest of the certificate.
	known *chains.Memory[endorsement]
	// lists are revocation lists signed under roots, by digest of the list.
	lists *chains.Memory[checkedCRL]
}

// New returns a scheme that trusts AMD.
func New() (*Scheme, error) {
	roots, err := AMDRoots()
	if err != nil {
		return nil, err
	}
	return WithRoots(roots)
}

// WithRoots returns a scheme that trusts exactly roots; for tests with made-up keys.
func WithRoots(roots Roots) (*Scheme, error) {
	if len(roots) == 0 {
		return nil, errors.New("sevsnp: no roots")
	}
	own := Roots{}
	for product, r := range roots {
		if err := r.check(product); err != nil {
			return nil, err
		}
		own[product] = r
	}
	return &Scheme{roots: own, known: chains.New[endorsement](maxKnown), lists: chains.New[checkedCRL](maxKnownCRLs)}, nil
}

// Kind returns attest.KindSEVSNP.
func (s *Scheme) Kind() string { return attest.KindSEVSNP }

// Verify implements attest.Scheme.
func (s *Scheme) Verify(ctx context.Context, ev attest.Evidence, data *attest.ReportData, at time.Time) (attest.Claims, error) {
	if err := ctx.Err(); err != nil {
		return attest.Claims{}, err
	}
	if at.IsZero() { // to crypto/x509 the zero time means the clock
		return attest.Claims{}, refuse(attest.CodeNotGenuine, "at", "no time", "the time to verify at", nil)
	}
	it, err := split(ev)
	if err != nil {
		return attest.Claims{}, refuse(attest.CodeMalformed, "evidence", "", "", err)
	}
	r, err := parseReport(it.report)
	if err != nil {
		return attest.Claims{}, refuse(attest.CodeMalformed, "report", "", "", err)
	}
	if r.version < minVersion {
		return attest.Claims{}, refuse(attest.CodeNotGenuine, "sevsnp.version", fmt.Sprint(r.version), fmt.Sprintf("%d or later", minVersion), nil)
	}
	if r.signingKey == "none" {
		return attest.Claims{}, refuse(attest.CodeNotGenuine, "sevsnp.signing_key", "none: the report is not signed", "VCEK or VLEK", nil)
	}
	e, err := s.endorser(r, it.certs, at)
	if err != nil {
		return attest.Claims{}, err
	}
	return s.establish(r, e, it.lists, data, at)
}

// establish takes the steps after the signature and returns the claims.
func (s *Scheme) establish(r report, e endorsement, lists [][]byte, data *attest.ReportData, at time.Time) (attest.Claims, error) {
	if r.version > maxVersion {
		return attest.Claims{}, refuse(attest.CodeUnsupported, "sevsnp.version", fmt.Sprint(r.version), fmt.Sprintf("%d to %d", minVersion, maxVersion), nil)
	}
	if reason := e.disagrees(r); reason != nil {
		return attest.Claims{}, &attest.Error{Reason: *reason}
	}
	if where := r.surplus(); where != "" {
		return attest.Claims{}, refuse(attest.CodeUnsupported, "sevsnp.reserved", where+" are not zero", fmt.Sprintf("a report of version %d as AMD 56860 has it", r.version), nil)
	}
	root := s.roots[e.product]
	c := r.claims(e)
	c.At = at
	c.SEVSNP.CertificateNotAfter = chains.Validity(e.cert, root.intermediate(e.kind), root.ARK).To
	if err := s.revocation(c.SEVSNP, e, root, lists, at); err != nil {
		return attest.Claims{}, err
	}
	if data != nil {
		if !bytes.Equal(r.raw[offReportData:offMeasurement], data[:]) {
			return attest.Claims{}, refuse(attest.CodeNotBound, "report_data", c.ReportData, fmt.Sprintf("%x", data[:]), nil)
		}
		c.Bound = true
	}
	return c, nil
}

func refuse(code attest.Code, claim, got, want string, err error) *attest.Error {
	return &attest.Error{Reason: attest.NewReason(code, claim, got, want), Err: err}
}

// items are the parts of evidence.
type items struct {
	report       []byte
	certs, lists [][]byte
}

// split takes evidence apart and refuses what does not belong.
func split(ev attest.Evidence) (it items, err error) {
	if err := ev.Check(); err != nil {
		return items{}, err
	}
	if ev.Kind != attest.KindSEVSNP {
		return items{}, fmt.Errorf("kind %q, want %q", ev.Kind, attest.KindSEVSNP)
	}
	for _, item := range ev.Items {
		switch item.Type {
		case attest.TypeSEVSNPReport:
			if it.report != nil {
				return items{}, errors.New("two reports")
			}
			it.report = item.Data
		case attest.TypeCertificate:
			it.certs = append(it.certs, item.Data)
		case attest.TypeCRL:
			it.lists = append(it.lists, item.Data)
		default:
			return items{}, fmt.Errorf("item %q is not SEV-SNP's", item.Type)
		}
	}
	if it.report == nil {
		return items{}, errors.New("no report")
	}
	if len(it.lists) > maxCRLs {
		return items{}, fmt.Errorf("%d revocation lists, the limit is %d", len(it.lists), maxCRLs)
	}
	return it, nil
}
