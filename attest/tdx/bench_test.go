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

// BenchmarkRatioVerify is a whole verification of a quote, with the quoting enclave's
// report and its certificate chain, against one check of the quote's P-256 signature.
func BenchmarkRatioVerify(b *testing.B) {
	s, ev := scheme(b), evidence(rawQuote())
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	digest := sha256.Sum256([]byte("quote"))
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		b.Fatal(err)
	}
	verify := func() {
		if _, err := s.Verify(context.Background(), ev, nil, sampleAt); err != nil {
			b.Fatal(err)
		}
	}
	one := func() {
		if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], signature) {
			b.Fatal("a good signature was refused")
		}
	}
	for b.Loop() {
		ratio.Print("tdx.appraise_vs_p256", ratio.Of(15, ratio.CPU(40, verify), ratio.CPU(40, one)))
	}
}
