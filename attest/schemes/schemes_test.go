package schemes

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"slices"
	"testing"

	"github.com/attestmesh/meshnode/attest"
)

func kinds(t *testing.T, roots ...crypto.PublicKey) []string {
	t.Helper()
	all, err := Under(Roots{Sim: roots})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, s := range all {
		out = append(out, s.Kind())
	}
	slices.Sort(out)
	return out
}

func TestSimulatedEvidenceNeedsARoot(t *testing.T) {
	if got, want := kinds(t), []string{attest.KindSEVSNP, "sevsnp,vtpm", attest.KindTDX, "tdx,vtpm", attest.KindVTPM}; !slices.Equal(got, want) {
		t.Errorf("without roots: %v, want %v", got, want)
	}
	root, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := kinds(t, root), []string{attest.KindSEVSNP, "sevsnp,vtpm", attest.KindSim, attest.KindTDX, "tdx,vtpm", attest.KindVTPM}; !slices.Equal(got, want) {
		t.Errorf("with a root: %v, want %v", got, want)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Under(Roots{Sim: []crypto.PublicKey{other.Public()}}); err == nil {
		t.Error("a root of another kind of key was taken")
	}
}
