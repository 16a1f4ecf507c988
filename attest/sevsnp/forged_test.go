package sevsnp

import (
	"context"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	snptest "github.com/google/go-sev-guest/testing"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/testdata"
	"github.com/google/go-sev-guest/verify/trust"

	"github.com/attestmesh/meshnode/attest"
)

// forge makes a chain with the library's public test keys, whose VCEK is for the given TCB
// and the sample's chip, and returns its roots, its VCEK and a signer of reports.
func forge(t *testing.T, tcb kds.TCBParts) (Roots, []byte, func(func([]byte)) []byte) {
	t.Helper()
	chip := testdata.AttestationBytes[0x1A0:0x1E0]
	b := &snptest.AmdSignerBuilder{
		Keys: snptest.DefaultAmdKeys(), ProductName: "Milan-B0",
		ArkCreationTime: milanAt.AddDate(-1, 0, 0), AskCreationTime: milanAt.AddDate(-1, 0, 0),
		AsvkCreationTime: milanAt.AddDate(-1, 0, 0), VcekCreationTime: milanAt.AddDate(-1, 0, 0), VlekCreationTime: milanAt.AddDate(-1, 0, 0),
		VcekCustom: snptest.CertOverride{Extensions: snptest.CustomExtensions(tcb, chip, "", "Milan-B0")},
	}
	s, err := b.TestOnlyCertChain()
	if err != nil {
		t.Fatal(err)
	}
	sign := func(edit func([]byte)) []byte {
		raw := slices.Clone(testdata.AttestationBytes)
		clear(raw[0x2A0:])
		edit(raw)
		r, v, err := s.Sign(abi.SignedComponent(raw))
		if err != nil {
			t.Fatal(err)
		}
		if err := abi.SetSignature(r, v, raw); err != nil {
			t.Fatal(err)
		}
		return raw
	}
	return Roots{Milan: {ARK: s.Ark, ASK: s.Ask, ASVK: s.Asvk}}, s.Vcek.Raw, sign
}

// sampleTCB is the reported TCB of the sample.
func sampleTCB() kds.TCBParts {
	return kds.DecomposeTCBVersion(kds.TCBVersion(binary.LittleEndian.Uint64(testdata.AttestationBytes[0x180:])))
}

// TestLibraryAcceptsOtherTCB: go-sev-guest's verify accepts a report under the certificate
// of another TCB or another chip; we do not.
func TestLibraryAcceptsOtherTCB(t *testing.T) {
	higher := sampleTCB()
	higher.UcodeSpl++
	for name, tc := range map[string]struct {
		tcb  kds.TCBParts
		edit func([]byte)
		want attest.Code
	}{
		"agreement":  {sampleTCB(), func([]byte) {}, ""},
		"other TCB":  {higher, func([]byte) {}, attest.CodeCertificateMismatch},
		"other chip": {sampleTCB(), func(b []byte) { b[0x1A0]++ }, attest.CodeCertificateMismatch},
		"masked":     {sampleTCB(), func(b []byte) { clear(b[0x1A0:0x1E0]) }, ""},
	} {
		roots, vcek, sign := forge(t, tc.tcb)
		raw := sign(tc.edit)
		parsed, err := abi.ReportToProto(raw)
		if err != nil {
			t.Fatal(err)
		}
		att := &spb.Attestation{Report: parsed, CertificateChain: &spb.CertificateChain{VcekCert: vcek}}
		err = verify.SnpAttestation(att, &verify.Options{DisableCertFetching: true, Now: milanAt,
			TrustedRoots: map[string][]*trust.AMDRootCerts{Milan: {vendorRoot(Milan, roots[Milan])}}})
		if err != nil {
			t.Errorf("%s: the library refuses now: %v", name, err)
		}
		s, err := WithRoots(roots)
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Verify(context.Background(), evidence(raw, vcek), nil, milanAt)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || code(t, err) != tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
		// Nothing of this chains to AMD.
		if _, err := scheme(t).Verify(context.Background(), evidence(raw, vcek), nil, milanAt); err == nil || code(t, err) != attest.CodeNotGenuine {
			t.Errorf("%s: under AMD's roots: got %v", name, err)
		}
	}
}

// TestNewerVersion: what is correctly signed but of a version nobody knows yet is not
// called forged.
func TestNewerVersion(t *testing.T) {
	roots, vcek, sign := forge(t, sampleTCB())
	s, err := WithRoots(roots)
	if err != nil {
		t.Fatal(err)
	}
	raw := sign(func(b []byte) { b[0] = maxVersion + 1 })
	if _, err := s.Verify(context.Background(), evidence(raw, vcek), nil, milanAt); err == nil || code(t, err) != attest.CodeUnsupported {
		t.Errorf("got %v, want unsupported", err)
	}
	if _, err := s.Verify(context.Background(), evidence(raw, vcek), nil, milanAt.Add(40*365*24*time.Hour)); err == nil || code(t, err) != attest.CodeNotGenuine {
		t.Errorf("expired: got %v", err)
	}
}

// TestUnknownPart: Bergamo and Siena are Genoa's kin; a Milan certificate does not fit them, and
// a part nobody knows fits no certificate.
func TestUnknownPart(t *testing.T) {
	roots, vcek, sign := forge(t, sampleTCB())
	s, err := WithRoots(roots)
	if err != nil {
		t.Fatal(err)
	}
	for name, fm := range map[string][2]byte{"Siena": {0x19, 0xa0}, "Zen 6": {0x1b, 0x00}} {
		raw := sign(func(b []byte) { b[0] = 3; b[0x188], b[0x189] = fm[0], fm[1] })
		if _, err := s.Verify(context.Background(), evidence(raw, vcek), nil, milanAt); err == nil || code(t, err) != attest.CodeCertificateMismatch {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
