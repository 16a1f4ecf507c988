package tdx

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"testing"

	"github.com/attestmesh/meshnode/internal/ratio"
)

// BenchmarkRatioVerify is a whole verification of a quote, without collateral, against one
// check of the P-256 signature that it carries: of a platform that is remembered, and of
// one seen for the first time.
func BenchmarkRatioVerify(b *testing.B) {
	known, ev := scheme(b), evidence(rawQuote())
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	digest := sha256.Sum256([]byte("quote"))
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		b.Fatal(err)
	}
	verify := func(s *Scheme) func() {
		return func() {
			if _, err := s.Verify(context.Background(), ev, nil, sampleAt); err != nil {
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
		ratio.Print("attest.tdx_cached_vs_p256", ratio.Of(25, ratio.CPU(100, verify(known)), ratio.CPU(100, one)))
		ratio.Print("attest.tdx_first_vs_p256", ratio.Of(15, ratio.CPU(40, verify(&Scheme{root: known.root})), ratio.CPU(40, one)))
	}
}
