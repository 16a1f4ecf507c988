package sevsnp

import (
	"crypto/x509"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/validate"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"

	"github.com/attestmesh/meshnode/attest"
)

// Each test here is a hole of go-sev-guest, shown with it and with us. One that fails
// because the library does right now is good news: compare, and drop ours.

// answers is a getter that has one answer.
type answers []byte

func (a answers) Get(string) ([]byte, error) {
	if a == nil {
		return nil, errors.New("nothing is fetched")
	}
	return a, nil
}

// TestLibraryKnowsNoTurin: a certificate of Turin's shape is refused, and a made-up one of
// Milan's shape, which AMD never issues, is accepted.
func TestLibraryKnowsNoTurin(t *testing.T) {
	v := vendors[Turin]()
	roots := Roots{Turin: v.root}
	right := v.vcek(nil)
	if byLibrary(roots, v.report(5, nil), right, milanAt) == nil {
		t.Error("the library verifies Turin now")
	}
	if got := verdict(t, v.scheme(t), evidence(v.report(5, nil), right), milanAt); got != "" {
		t.Errorf("Turin's shape: we say %q", got)
	}
	wrong := v.vcek(func(l *leaf) {
		l.ExtraExtensions = append(append(levels(Milan), extension(make([]byte, 64), 4), integer(0, 1)), extension(ia5("Turin-B0"), 2))
	})
	if err := byLibrary(roots, v.report(5, nil), wrong, milanAt); err != nil {
		t.Errorf("the library refuses Milan's shape now: %v", err)
	}
	if got := verdict(t, v.scheme(t), evidence(v.report(5, nil), wrong), milanAt); got != attest.CodeNotGenuine {
		t.Errorf("Milan's shape: we say %q", got)
	}
}

// TestLibraryKnowsNoZen4c: Bergamo, Siena and Turin dense are no product to it.
func TestLibraryKnowsNoZen4c(t *testing.T) {
	v := vendors[Genoa]()
	for name, model := range map[string]byte{"Bergamo": 0xa0, "Siena": 0xa0, "another": 0xa2} {
		report := v.report(3, func(b []byte) { b[offCPUID+1] = model })
		if byLibrary(Roots{Genoa: v.root}, report, v.vcek(nil), milanAt) == nil {
			t.Errorf("the library verifies %s now", name)
		}
		if got := verdict(t, v.scheme(t), evidence(report, v.vcek(nil)), milanAt); got != "" {
			t.Errorf("%s: we say %q", name, got)
		}
	}
}

// TestLibraryChecksNoListDates: a revocation list that expired long ago is as good to it as
// a new one. To us it is stale, and a policy that demands one is not satisfied.
func TestLibraryChecksNoListDates(t *testing.T) {
	v := vendors[Milan]()
	old := v.crl(func(l *x509.RevocationList) {
		l.ThisUpdate, l.NextUpdate = milanAt.AddDate(-1, 0, 0), milanAt.AddDate(0, -6, 0)
	})
	report, vcek := v.report(3, nil), v.vcek(nil)
	att := &spb.Attestation{Report: must(abi.ReportToProto(report)), CertificateChain: &spb.CertificateChain{VcekCert: vcek}}
	err := verify.SnpAttestation(att, &verify.Options{DisableCertFetching: true, CheckRevocations: true, Getter: answers(old), Now: milanAt,
		TrustedRoots: map[string][]*trust.AMDRootCerts{Milan: {vendorRoot(Milan, v.root)}}})
	if err != nil {
		t.Errorf("the library refuses an old list now: %v", err)
	}
	c, err := v.scheme(t).Verify(t.Context(), withCRL(evidence(report, vcek), old), nil, milanAt)
	if err != nil {
		t.Fatal(err)
	}
	p := attest.StrictPolicy()
	p.SEVSNP.RequireCRL = true
	if r := attest.Appraise(c, p, milanAt); r.Verdict != attest.VerdictNone || r.Code() != attest.CodeCollateralStale {
		t.Errorf("we say %s %v", r.Verdict, r.Reasons)
	}
}

// TestLibraryPassesOverTheASVK: its check of a VLEK's revocation looks for the ASK's serial.
func TestLibraryPassesOverTheASVK(t *testing.T) {
	v := vendors[Milan]()
	report, vlek, list := v.report(3, func(b []byte) { b[offKeyInfo] = 4 }), v.vlek(nil), v.crl(nil, v.root.ASVK)
	att := &spb.Attestation{Report: must(abi.ReportToProto(report)), CertificateChain: &spb.CertificateChain{VlekCert: vlek}}
	err := verify.SnpAttestation(att, &verify.Options{DisableCertFetching: true, CheckRevocations: true, Getter: answers(list), Now: milanAt,
		TrustedRoots: map[string][]*trust.AMDRootCerts{Milan: {vendorRoot(Milan, v.root)}}})
	if err != nil {
		t.Errorf("the library sees a revoked ASVK now: %v", err)
	}
	if got := verdict(t, v.scheme(t), withCRL(evidence(report, vlek), list), milanAt); got != attest.CodeCertificateRevoked {
		t.Errorf("we say %q", got)
	}
}

// TestLibraryFailsOnVLEKRoots: it dereferences the ASK that roots for VLEKs have not. We
// refuse such roots when the scheme is made.
func TestLibraryFailsOnVLEKRoots(t *testing.T) {
	v := vendors[Milan]()
	root := Root{ARK: v.root.ARK, ASVK: v.root.ASVK}
	att := &spb.Attestation{Report: must(abi.ReportToProto(v.report(3, func(b []byte) { b[offKeyInfo] = 4 }))), CertificateChain: &spb.CertificateChain{VlekCert: v.vlek(nil)}}
	failed := func() (p any) {
		defer func() { p = recover() }()
		_ = verify.SnpAttestation(att, &verify.Options{DisableCertFetching: true, CheckRevocations: true, Getter: answers(v.crl(nil)), Now: milanAt,
			TrustedRoots: map[string][]*trust.AMDRootCerts{Milan: {vendorRoot(Milan, root)}}})
		return nil
	}()
	if failed == nil {
		t.Error("the library does not panic on roots without an ASK now")
	}
	if _, err := WithRoots(Roots{Milan: root}); err == nil {
		t.Error("we took roots without an ASK")
	}
}

// TestLibraryValidatesOnlyWhenAsked: with its default options it accepts a masked chip,
// device access to memory (TIO) and missing alias checks; and it refuses a genuine Turin
// for a bit that has no name in its specification.
func TestLibraryValidatesOnlyWhenAsked(t *testing.T) {
	v := vendors[Milan]()
	options := func() *validate.Options {
		return &validate.Options{GuestPolicy: abi.SnpPolicy{SMT: true, MigrateMA: false, Debug: false}, PermitProvisionalFirmware: true}
	}
	try := func(edit func([]byte)) (ours attest.Claims, byThem error) {
		t.Helper()
		report, vcek := v.report(3, func(b []byte) {
			copy(b[offPlatformInfo:], make([]byte, 8))
			for _, off := range []int{offCurrentTCB, offCommittedTCB, offLaunchTCB} {
				copy(b[off:], b[offReportedTCB:][:8])
			}
			copy(b[offVMPL:], make([]byte, 4))
			copy(b[offCommitted:], b[offCurrent:][:3])
			edit(b)
		}), v.vcek(nil)
		att := &spb.Attestation{Report: must(abi.ReportToProto(report)), CertificateChain: &spb.CertificateChain{VcekCert: vcek}}
		c, err := v.scheme(t).Verify(t.Context(), evidence(report, vcek), nil, milanAt)
		if err != nil {
			t.Fatal(err)
		}
		return c, validate.SnpAttestation(att, options())
	}
	p := attest.StrictPolicy()
	p.SEVSNP.AllowMaskedID, p.SEVSNP.PlatformInfoAllowed, p.SEVSNP.PlatformInfoRequired = false, []string{"alias_check_complete"}, []string{"alias_check_complete"}
	aliases := func(b []byte) { b[offPlatformInfo] = 1 << 5 }
	for name, tc := range map[string]struct {
		edit func([]byte)
		want attest.Code
	}{
		"nothing":        {aliases, attest.CodeNoReferenceValues},
		"masked chip":    {func(b []byte) { aliases(b); clear(b[offChipID:][:64]) }, attest.CodeMaskedChipID},
		"TIO":            {func(b []byte) { b[offPlatformInfo] = 1<<5 | 1<<7 }, attest.CodePlatformInfo},
		"no alias check": {func([]byte) {}, attest.CodePlatformInfo},
	} {
		c, err := try(tc.edit)
		if err != nil {
			t.Errorf("%s: the library refuses now: %v", name, err)
		}
		if r := attest.Appraise(c, p, milanAt); r.Code() != tc.want {
			t.Errorf("%s: we say %v, want %s", name, r.Reasons, tc.want)
		}
	}
	if _, err := abi.ParseSnpPlatformInfo(0x67); err == nil { // as a genuine Turin has it
		t.Error("the library knows bit 6 of PLATFORM_INFO now; so should we")
	}
}

// TestLibraryKeepsTheFirstList: it writes the first revocation list into the roots it was
// given and asks for no other until that one expires, so that a revocation is not heard of.
func TestLibraryKeepsTheFirstList(t *testing.T) {
	v := vendors[Milan]()
	report, vcek := v.report(3, nil), v.vcek(nil)
	roots := map[string][]*trust.AMDRootCerts{Milan: {vendorRoot(Milan, v.root)}}
	s := v.scheme(t)
	for i, list := range [][]byte{v.crl(nil), v.crl(nil, v.root.ASK)} {
		att := &spb.Attestation{Report: must(abi.ReportToProto(report)), CertificateChain: &spb.CertificateChain{VcekCert: vcek}}
		if err := verify.SnpAttestation(att, &verify.Options{DisableCertFetching: true, CheckRevocations: true, Getter: answers(list), Now: milanAt, TrustedRoots: roots}); err != nil {
			t.Errorf("list %d: the library refuses now: %v", i, err)
		}
		if got := verdict(t, s, withCRL(evidence(report, vcek), list), milanAt); (got == attest.CodeCertificateRevoked) != (i == 1) {
			t.Errorf("list %d: we say %q", i, got)
		}
	}
	if roots[Milan][0].CRL == nil {
		t.Error("it leaves its roots alone now")
	}
}

// TestAgreesWithTheLibrary: where it can decide, and is not known to decide wrongly, we
// decide as it does: all products and kinds of keys, at all edges of time.
func TestAgreesWithTheLibrary(t *testing.T) {
	for _, product := range []string{Milan, Genoa} {
		v := vendors[product]()
		for _, version := range []byte{2, 3, 4, 5} {
			for _, vlek := range []bool{false, true} {
				cert, key := v.vcek(nil), byte(0)
				if vlek {
					cert, key = v.vlek(nil), 4
				}
				report := v.report(version, func(b []byte) { b[offKeyInfo] = key })
				flipped := slices.Clone(report)
				flipped[offMeasurement] ^= 1
				for _, at := range []time.Time{milanAt, milanAt.AddDate(-2, 0, 0), milanAt.AddDate(7, 0, 0), milanAt.AddDate(30, 0, 0)} {
					for name, raw := range map[string][]byte{"genuine": report, "flipped": flipped} {
						theirs, ours := byLibrary(Roots{product: v.root}, raw, cert, at), verdict(t, v.scheme(t), evidence(raw, cert), at)
						if (theirs == nil) != (ours == "") || (theirs == nil) != (name == "genuine" && at.Equal(milanAt)) {
							t.Errorf("%s v%d, VLEK %v, %s at %s: the library says %v, we %q", product, version, vlek, name, at, theirs, ours)
						}
					}
				}
			}
		}
	}
}
