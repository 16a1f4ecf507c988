package audit

import (
	"crypto/ed25519"
	"runtime"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/ratio"
	"github.com/attestmesh/meshnode/transparency"
)

// BenchmarkRatioAudit is how much of what this machine could verify, with all processors
// at raw Ed25519 signatures, an audit of as many signed results does: 1 would be the
// signatures' cost alone.
func BenchmarkRatioAudit(b *testing.B) {
	const results = 900
	m := started(b)
	for i := range results { // each changes what its verifier said last
		later := func(r *consensus.AttestationResult) { r.At = r.At.Add(time.Duration(i+1) * time.Second) }
		m.Force(m.Result(seats[i%3], seats[(i+1)%3], []string{"old", "new"}[i/3%2], later))
	}
	path := m.publish(seats...)
	opts := Options{Genesis: m.Genesis, At: time.Now().Add(time.Hour)}
	message := make([]byte, 1024)
	signature, by := ed25519.Sign(audittest.Key("log"), message), audittest.Key("log").Public().(ed25519.PublicKey)
	audit := func() {
		r, err := transparency.OpenReader(path)
		if err != nil {
			b.Fatal(err)
		}
		defer r.Close()
		report, err := Log(b.Context(), r, opts)
		if err != nil || !report.OK || report.Results < results {
			b.Fatalf("%d results, %.1000v, %v", report.Results, report.Findings, err)
		}
	}
	verify := func() {
		for range results {
			if !ed25519.Verify(by, message, signature) {
				b.Fatal("a good signature was refused")
			}
		}
	}
	cores := float64(runtime.GOMAXPROCS(0))
	for b.Loop() {
		// Raw signatures on one core, measured; times the cores, which none of them shares.
		ratio.Print("audit.vs_signatures_all_cores", ratio.Of(5, ratio.Wall(1, verify), ratio.Wall(1, audit))/cores)
	}
}
