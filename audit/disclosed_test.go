package audit

import (
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
)

// Disclosed evidence counts if it is what the result commits to and genuine under genesis.
func TestDisclosedEvidence(t *testing.T) {
	forger := attesttest.New("disclosed")
	g := newMesh(t).Genesis
	g.Roots.Sim = nil
	for _, r := range forger.Roots() {
		g.Roots.Sim = append(g.Roots.Sim, envelope.PublicKey{PublicKey: r})
	}
	attester := forger.Attester(attesttest.Measurement("new"))
	salt := [saltSize]byte{7}
	file := func(f attesttest.Forgery) (string, []byte) {
		attester.Forge(f)
		ev, err := attester.Attest(t.Context(), attest.ReportData{1})
		if err != nil {
			t.Fatal(err)
		}
		raw, err := ev.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return consensus.EvidenceCommitment(salt, raw), append(salt[:], raw...)
	}
	genuine, raw := file(attesttest.Genuine)
	forged, bad := file(attesttest.WrongRoot)
	other := strings.Repeat("0", 64)
	e := NewEvidence(fstest.MapFS{genuine: {Data: raw}}, fstest.MapFS{"boot-1/evidence/" + forged: {Data: bad}, "evidence/" + other: {Data: raw}, strings.Repeat("1", 64): {Data: raw[:3]}})
	of := func(commitment string) Disclosed {
		return e.Disclose(g, &consensus.AttestationResult{Kind: attest.KindSim, Evidence: commitment, At: time.Now()})
	}
	if d := of(genuine); !d.Given || d.Err != nil || d.Claims.Measurement != attesttest.Measurement("new") {
		t.Errorf("genuine: %+v", d)
	}
	for commitment, want := range map[string]string{forged: "not_genuine", other: "not what the result commits to", strings.Repeat("1", 64): "not what the result commits to"} {
		if d := of(commitment); !d.Given || d.Err == nil || !strings.Contains(d.Err.Error(), want) {
			t.Errorf("%s: %+v, want %q", commitment[:8], d, want)
		}
	}
	if d := of(strings.Repeat("2", 64)); d.Given || d.Err != nil {
		t.Errorf("not disclosed: %+v", d)
	}
	if d := e.Disclose(g, &consensus.AttestationResult{Kind: attest.KindTDX, Evidence: genuine, At: time.Now()}); d.Err == nil {
		t.Error("simulated evidence behind a result on TDX was believed")
	}
}
