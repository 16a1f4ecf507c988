package mesh

import (
	"context"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/internal/ratio"
	"github.com/attestmesh/meshnode/mesh/meshtest"
)

// BenchmarkRatioReattest is the processor time in milliseconds of both ends for one
// re-attestation on a live connection: the median of 200. Both prove themselves with
// evidence of SEV-SNP's shape, which is the dearest to sign and to verify.
func BenchmarkRatioReattest(b *testing.B) {
	v := attesttest.NewSEVSNP(sevsnp.Milan, 3)
	p := newBenchPair(b, func(n *meshtest.Node, cfg *Config) { onTEE(b, v, n, cfg) })
	l := p.dial()
	again := ratio.CPU(1, func() {
		if err := l.Reattest(context.Background()); err != nil {
			b.Fatal(err)
		}
	})
	for b.Loop() {
		var took []time.Duration
		for range 200 {
			took = append(took, again())
		}
		ratio.Print("channel.reattest_ms", float64(ratio.Median(took))/float64(time.Millisecond))
	}
}
