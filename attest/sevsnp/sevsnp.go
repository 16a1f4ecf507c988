// Package sevsnp decides the authenticity of AMD SEV-SNP attestation reports (AMD 56860,
// "SEV Secure Nested Paging Firmware ABI Specification"), versions 2 to 5.
//
// Evidence items: one TypeSEVSNPReport, exactly 1,184 bytes; TypeCertificate in DER. The
// certificate of the key that signed the report (VCEK or VLEK) must be among them; the
// chain above it is compiled in, so other certificates are allowed and not used. Nothing
// is ever fetched. Any other item type is refused.
//
// Verify establishes, in this order: one certificate of the kind the report names; it
// chains to AMD's root at the given time; the report's signature is by its key; the
// certificate's product, TCB and chip id are those of the report (go-sev-guest's verify
// does not compare them); the report data. go-sev-guest does chain and signature for
// Milan and Genoa; parts it does not know (Turin, Zen 4c) take the same steps here.
//
// A certificate whose chain and whose first report held is remembered (package chains):
// while all certificates of the chain are valid, its next reports cost one signature. That
// signature, the format of the report, its agreement with the certificate and the report
// data are checked every time.
//
// Errors, as codes: malformed (sizes, item types), collateral_missing (no certificate),
// not_genuine (chain, signature, format), certificate_mismatch, not_bound, and
// unsupported for a correctly signed report of a version this release does not know.
//
// Revocation: AMD's CRLs revoke intermediates; none is consulted, because the accepted
// intermediates are compiled in and a revoked one is dropped with the next release.
package sevsnp

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/chains"
)

// Scheme verifies reports under its roots. Its zero value has none and refuses all.
type Scheme struct {
	roots Roots
	// known are endorsement keys that chain to roots, by digest of the certificate.
	known *chains.Memory[endorsement]
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
	for product, r := range roots {
		if err := r.check(product); err != nil {
			return nil, err
		}
	}
	return &Scheme{roots: maps.Clone(roots), known: chains.New[endorsement](maxKnown)}, nil
}

// Kind returns attest.KindSEVSNP.
func (s *Scheme) Kind() string { return attest.KindSEVSNP }

// Verify implements attest.Scheme.
func (s *Scheme) Verify(ctx context.Context, ev attest.Evidence, data *attest.ReportData, at time.Time) (attest.Claims, error) {
	if err := ctx.Err(); err != nil {
		return attest.Claims{}, err
	}
	if at.IsZero() { // to crypto/x509 and the library the zero time means the clock
		return attest.Claims{}, refuse(attest.CodeNotGenuine, "at", "no time", "the time to verify at", nil)
	}
	raw, certs, err := split(ev)
	if err != nil {
		return attest.Claims{}, refuse(attest.CodeMalformed, "evidence", "", "", err)
	}
	r, err := parseReport(raw)
	if err != nil {
		return attest.Claims{}, refuse(attest.CodeMalformed, "report", "", "", err)
	}
	if r.version < minVersion {
		return attest.Claims{}, refuse(attest.CodeNotGenuine, "sevsnp.version", fmt.Sprint(r.version), fmt.Sprintf("%d or later", minVersion), nil)
	}
	e, err := s.choose(r, certs, at)
	if err != nil {
		return attest.Claims{}, err
	}
	if err := s.authentic(r, e, at); err != nil {
		return attest.Claims{}, err
	}
	if reason := e.disagrees(r); reason != nil {
		return attest.Claims{}, &attest.Error{Reason: *reason}
	}
	c := r.claims(e.product)
	c.At = at
	if data != nil {
		if !bytes.Equal(raw[0x50:0x90], data[:]) {
			return attest.Claims{}, refuse(attest.CodeNotBound, "report_data", c.ReportData, fmt.Sprintf("%x", data[:]), nil)
		}
		c.Bound = true
	}
	return c, nil
}

func refuse(code attest.Code, claim, got, want string, err error) *attest.Error {
	return &attest.Error{Reason: attest.NewReason(code, claim, got, want), Err: err}
}

// split takes evidence apart and refuses what does not belong.
func split(ev attest.Evidence) (raw []byte, certs [][]byte, err error) {
	if err := ev.Check(); err != nil {
		return nil, nil, err
	}
	if ev.Kind != attest.KindSEVSNP {
		return nil, nil, fmt.Errorf("kind %q, want %q", ev.Kind, attest.KindSEVSNP)
	}
	for _, it := range ev.Items {
		switch it.Type {
		case attest.TypeSEVSNPReport:
			if raw != nil {
				return nil, nil, errors.New("two reports")
			}
			raw = it.Data
		case attest.TypeCertificate:
			certs = append(certs, it.Data)
		default:
			return nil, nil, fmt.Errorf("item %q is not SEV-SNP's", it.Type)
		}
	}
	if raw == nil {
		return nil, nil, errors.New("no report")
	}
	return raw, certs, nil
}

// choose picks the certificate of the key that the report says signed it: the one that
// agrees with the report if there is one, so that certificates of other machines in the
// same folder do no harm.
func (s *Scheme) choose(r report, certs [][]byte, at time.Time) (endorsement, error) {
	var first *endorsement
	var broken error
	for _, der := range certs {
		e, ok, err := s.endorsement(der, at)
		if err != nil {
			broken = err
			continue
		}
		if !ok {
			continue
		}
		if e.disagrees(r) == nil {
			return e, nil
		}
		if first == nil {
			first = &e
		}
	}
	switch {
	case first != nil:
		return *first, nil
	case broken != nil:
		return endorsement{}, refuse(attest.CodeNotGenuine, "certificate", "unreadable", r.signingKey, broken)
	default:
		return endorsement{}, refuse(attest.CodeCollateralMissing, "certificate", "", "the "+r.signingKey+" certificate", nil)
	}
}

// endorsement reads a certificate, or recalls it with what was established of its chain.
func (s *Scheme) endorsement(der []byte, at time.Time) (e endorsement, ok bool, err error) {
	if e, ok := s.known.Recall(sha256.Sum256(der), at); ok {
		return e, true, nil
	}
	return parseEndorsement(der)
}

// way is one way of verifying a chain. They differ in what they read, so that a chain that
// held by one is not thereby verified by another.
type way uint8

const (
	libraryByName way = 1 << iota // go-sev-guest, the product by the certificate's product name
	libraryByPart                 // go-sev-guest, the product by the report's CPUID
	ownWay                        // this package
)

// wayOf returns the way for a certificate and a report of its product.
func wayOf(r report, e endorsement) way {
	switch {
	case r.version > maxVersion || e.kind != r.signingKey || !r.libraryKnows(e.product):
		// Where the key kinds differ there is nothing to gain from the library's error.
		return ownWay
	case r.version < 3:
		return libraryByName
	default:
		return libraryByPart
	}
}

// authentic verifies chain and signature, the chain only if it is not known to hold.
func (s *Scheme) authentic(r report, e endorsement, at time.Time) error {
	root, ok := s.roots[e.product]
	if !ok {
		return refuse(attest.CodeNotGenuine, "certificate", "issued by "+e.cert.Issuer.CommonName, "AMD's intermediates", nil)
	}
	if e.kind == "VLEK" && root.ASVK == nil {
		// go-sev-guest dereferences nil on roots that lack an intermediate.
		return refuse(attest.CodeNotGenuine, "certificate", "VLEK of "+e.product, "an ASVK among the roots", nil)
	}
	how, known := wayOf(r, e), false
	// The library looks for the root of the report's product.
	if r.product == "" || r.product == e.product {
		known = e.held&how != 0
	}
	var err error
	if how == ownWay {
		err = direct(r, e, root, at, known)
	} else {
		err = library(r, e, root, at, known)
	}
	if err != nil {
		return refuse(attest.CodeNotGenuine, "report", "not verified", "a chain to AMD's root and a valid signature", err)
	}
	if !known {
		s.remember(e, root, how)
	}
	if r.version > maxVersion {
		return refuse(attest.CodeUnsupported, "sevsnp.version", fmt.Sprint(r.version), fmt.Sprintf("%d to %d", minVersion, maxVersion), nil)
	}
	return nil
}

// remember keeps that the chain of e held one way; the ways of e are those it was recalled
// with. Two at the same time may lose one of theirs, which is then verified again.
func (s *Scheme) remember(e endorsement, root Root, how way) {
	e.held |= how
	s.known.Keep(sha256.Sum256(e.cert.Raw), chains.Validity(e.cert, root.intermediate(e.kind), root.ARK), e)
}

// library lets go-sev-guest verify: all, or the report alone where the chain is known.
// Options and attestation are made anew for each call, because it changes both; roots are
// explicit, because with none it falls back to its own and knows no ASVK; fetching is off;
// and a panic on crafted bytes is an error.
func library(r report, e endorsement, root Root, at time.Time, known bool) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("go-sev-guest failed: %v", p)
		}
	}()
	parsed, err := abi.ReportToProto(r.raw)
	if err != nil {
		return err
	}
	// The library verifies its own re-encoding; it must be the bytes that we read.
	back, err := abi.ReportToAbiBytes(parsed)
	if err != nil || !bytes.Equal(back, r.raw) {
		return errors.New("the report has bits outside the fields of its version")
	}
	if known {
		return verify.SnpReportSignature(r.raw, e.cert)
	}
	chain := &sevsnp.CertificateChain{Extras: map[string][]byte{}}
	if e.kind == "VLEK" {
		chain.VlekCert = e.cert.Raw
	} else {
		chain.VcekCert = e.cert.Raw
	}
	return verify.SnpAttestation(&sevsnp.Attestation{Report: parsed, CertificateChain: chain}, &verify.Options{
		DisableCertFetching: true,
		Getter:              offline{},
		Now:                 at,
		TrustedRoots:        map[string][]*trust.AMDRootCerts{e.product: {root.vendor(e.product)}},
	})
}

// offline is a getter that never gets.
type offline struct{}

func (offline) Get(string) ([]byte, error) {
	return nil, errors.New("nothing is fetched while verifying")
}

// direct does chain, unless it is known, and signature without the library.
func direct(r report, e endorsement, root Root, at time.Time, known bool) error {
	if e.cert.SignatureAlgorithm != x509.SHA384WithRSAPSS || e.cert.IsCA {
		return fmt.Errorf("the certificate is signed with %v, want SHA-384 with RSA-PSS", e.cert.SignatureAlgorithm)
	}
	if !known {
		roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
		roots.AddCert(root.ARK)
		intermediates.AddCert(root.intermediate(e.kind))
		_, err := e.cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: at,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		if err != nil {
			return err
		}
	}
	if !isZero(r.raw[0x330:]) { // the 512-byte field holds R and S of 72 bytes each
		return errors.New("bytes behind the signature")
	}
	der, err := abi.ReportToSignatureDER(r.raw) // checks that the algorithm is ECDSA P-384
	if err != nil {
		return err
	}
	return e.cert.CheckSignature(x509.ECDSAWithSHA384, r.raw[:0x2A0], der)
}
