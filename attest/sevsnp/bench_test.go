package sevsnp

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"testing"

	"github.com/attestmesh/meshnode/internal/ratio"
)

// BenchmarkRatioVerify is a whole verification of a report against one check of the P-384
// signature that it carries: of a machine whose chain is remembered, and of one seen for
// the first time.
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
	verify := func(s *Scheme) func() {
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
	for b.Loop() {
		ratio.Print("attest.snp_cached_vs_p384", ratio.Of(25, ratio.CPU(20, verify(known)), ratio.CPU(20, one)))
		ratio.Print("attest.snp_first_vs_p384", ratio.Of(15, ratio.CPU(20, verify(&Scheme{roots: known.roots})), ratio.CPU(20, one)))
	}
}
