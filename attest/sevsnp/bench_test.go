package sevsnp

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"testing"

	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/validate"
	"github.com/google/go-sev-guest/verify"

	"github.com/attestmesh/meshnode/internal/ratio"
)

// BenchmarkRatioVerify is a whole verification of a report against one check of the P-384
// signature that it carries: of a machine whose chain is remembered, and of one seen for
// the first time; and that against go-sev-guest on the same evidence.
func BenchmarkRatioVerify(b *testing.B) {
	known, ev := scheme(b), milan()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	digest := sha512.Sum384([]byte("report"))
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		b.Fatal(err)
	}
	ours := func(s *Scheme) func() {
		return func() {
			if _, err := s.Verify(context.Background(), ev, nil, milanAt); err != nil {
				b.Fatal(err)
			}
		}
	}
	one := func() {
		if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], signature) {
			b.Fatal("a good signature was refused")
		}
	}
	// What the library does to the same end, from the same bytes: verify and validate, of
	// which one alone does not compare the certificate with the report.
	library := func() {
		report, cert := ev.Items[0].Data, ev.Items[1].Data
		att := &spb.Attestation{Report: must(abi.ReportToProto(report)), CertificateChain: &spb.CertificateChain{VcekCert: cert}}
		if err := verify.SnpAttestation(att, &verify.Options{DisableCertFetching: true, Now: milanAt}); err != nil {
			b.Fatal(err)
		}
		if err := validate.SnpAttestation(att, &validate.Options{GuestPolicy: abi.SnpPolicy{SMT: true, Debug: true}, PermitProvisionalFirmware: true}); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		ratio.Print("attest.snp_cached_vs_p384", ratio.Of(25, ratio.CPU(20, ours(known)), ratio.CPU(20, one)))
		ratio.Print("attest.snp_first_vs_p384", ratio.Of(15, ratio.CPU(20, ours(&Scheme{roots: known.roots})), ratio.CPU(20, one)))
		ratio.Print("attest.snp_vs_library", ratio.Of(15, ratio.CPU(20, ours(&Scheme{roots: known.roots})), ratio.CPU(20, library)))
	}
}
