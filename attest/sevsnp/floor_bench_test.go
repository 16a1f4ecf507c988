package sevsnp

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"math/big"
	"testing"

	"github.com/cloudflare/circl/ecc/p384"

	"github.com/attestmesh/meshnode/internal/ratio"
)

// BenchmarkRatioFloor measures what lies below the floor: the same ECDSA check with circl's
// P-384 against crypto/ecdsa. Verification uses crypto/ecdsa all the same; see
// docs/PERFORMANCE.md.
func BenchmarkRatioFloor(b *testing.B) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	digest := sha512.Sum384([]byte("report"))
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		b.Fatal(err)
	}
	point, err := key.PublicKey.Bytes() // 0x04, X, Y
	if err != nil {
		b.Fatal(err)
	}
	x, y := new(big.Int).SetBytes(point[1:49]), new(big.Int).SetBytes(point[49:])
	theirs := func() {
		if !circlVerify(x, y, digest[:], r, s) {
			b.Fatal("a good signature was refused")
		}
	}
	ours := func() {
		if !ecdsa.Verify(&key.PublicKey, digest[:], r, s) {
			b.Fatal("a good signature was refused")
		}
	}
	if circlVerify(x, y, digest[:], s, r) {
		b.Fatal("a wrong signature was accepted")
	}
	for b.Loop() {
		ratio.Print("attest.p384_circl_vs_go", ratio.Of(25, ratio.CPU(20, theirs), ratio.CPU(20, ours)))
	}
}

// circlVerify is FIPS 186-5 §6.4.2 for a digest of the curve's size.
func circlVerify(x, y *big.Int, digest []byte, r, s *big.Int) bool {
	curve := p384.P384()
	n := curve.Params().N
	w := new(big.Int).ModInverse(s, n)
	u1 := new(big.Int).Mul(new(big.Int).SetBytes(digest), w)
	u2 := new(big.Int).Mul(r, w)
	got, _ := curve.CombinedMult(x, y, u1.Mod(u1, n).Bytes(), u2.Mod(u2, n).Bytes())
	return got.Mod(got, n).Cmp(r) == 0
}
