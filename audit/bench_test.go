package audit

import (
	"crypto/ed25519"
	"runtime"
	"testing"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/ratio"
	"github.com/attestmesh/meshnode/transparency"
)

// BenchmarkRatioAudit is how many entries an audit on all processors does in the time of one raw
// Ed25519 check on one of them: as many as there are processors would be the signatures' cost
// alone.
func BenchmarkRatioAudit(b *testing.B) {
	const entries = 12_000
	m := complete(b)
	m.Grow(entries)
	path := m.publish(m.Cosigners()...)
	opts := Options{Genesis: m.Genesis, At: time.Now().Add(time.Minute)}
	type signed struct {
		by                 ed25519.PublicKey
		message, signature []byte
	}
	var raw []signed // those of the log
	for _, leaf := range m.Leaves[entries-1000:] {
		res, err := consensus.ParseResult(leaf)
		m.check(err)
		by, err := res.Verifier.Peer.PublicKey()
		m.check(err)
		env, err := envelope.Parse(leaf)
		m.check(err)
		raw = append(raw, signed{by, dsse.PAE(envelope.PayloadType, env.Payload), env.Signatures[0].Sig})
	}
	audit := func() {
		r, err := transparency.OpenReader(path)
		if err != nil {
			b.Fatal(err)
		}
		defer r.Close()
		report, err := Log(b.Context(), r, opts)
		if err != nil || !report.OK || report.Entries != entries {
			b.Fatalf("%d entries, %.1000v, %v", report.Entries, report.Findings, err)
		}
	}
	verify := func() {
		for i := range entries {
			if s := &raw[i%len(raw)]; !ed25519.Verify(s.by, s.message, s.signature) {
				b.Fatal("a good signature was refused")
			}
		}
	}
	for b.Loop() {
		wall := ratio.Of(5, ratio.Wall(1, verify), ratio.Wall(1, audit))
		ratio.Print("log.audit_vs_rawverify", wall)
		ratio.Print("log.audit_vs_rawverify_per_core", wall/float64(runtime.GOMAXPROCS(0)))
		// What is left of one core where other processes have the rest of it.
		ratio.Print("log.audit_cpu_vs_rawverify", ratio.Of(5, ratio.CPU(1, verify), ratio.CPU(1, audit)))
	}
}
