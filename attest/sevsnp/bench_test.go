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

// BenchmarkRatioVerify is a whole verification of a report with its certificate, chain
// included, against one check of the P-384 signature that the report carries.
func BenchmarkRatioVerify(b *testing.B) {
	s, ev := scheme(b), milan()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	digest := sha512.Sum384([]byte("report"))
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		b.Fatal(err)
	}
	verify := func() {
		if _, err := s.Verify(context.Background(), ev, nil, milanAt); err != nil {
			b.Fatal(err)
		}
	}
	one := func() {
		if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], signature) {
			b.Fatal("a good signature was refused")
		}
	}
	for b.Loop() {
		ratio.Print("snp.appraise_vs_p384", ratio.Of(15, ratio.CPU(20, verify), ratio.CPU(20, one)))
	}
}
