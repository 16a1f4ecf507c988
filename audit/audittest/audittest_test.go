package audittest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/attestmesh/meshnode/internal/envelope"
)

// Complete has every kind of leaf, and is the same bytes in each run.
func TestComplete(t *testing.T) {
	m := Complete()
	for _, kind := range []string{envelope.TypeGenesis, envelope.TypeBootstrap, envelope.TypeRecovery, envelope.TypeCredential, envelope.TypeProposal,
		envelope.TypeAttestationResult, envelope.TypeSuspension, envelope.TypeSuspensionLift, envelope.TypeReady, envelope.TypeDrain, envelope.TypeRetirement,
		envelope.TypeWithdrawal, envelope.TypeMembership, envelope.TypeRound, envelope.TypeState} {
		if len(m.Find(kind)) == 0 {
			t.Errorf("no leaf of %s", kind)
		}
	}
	a, b := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	m.Publish(a, append(m.Cosigners(), Witness)...)
	again := Complete()
	again.Publish(b, append(again.Cosigners(), Witness)...)
	for _, name := range []string{"checkpoint", fmt.Sprintf("tile/entries/000.p/%d", len(m.Leaves))} {
		x, err := os.ReadFile(filepath.Join(a, name))
		y, err2 := os.ReadFile(filepath.Join(b, name))
		if err != nil || err2 != nil || !bytes.Equal(x, y) {
			t.Errorf("%s differs: %v %v", name, err, err2)
		}
	}
}
