package consensus

import (
	"fmt"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/ratio"
)

// proposals returns a mesh of five seats with a full allowed set, and n proposals that three of
// five organisations have signed.
func proposals(b *testing.B, n int) (*mesh, []Command) {
	b.Helper()
	m := governing(b, 5, func(g *Genesis) {
		g.Policy.Entries = []Entry{entry(b, "new"), entry(b, "old")}
		for i := range MaxEntries - len(g.Policy.Entries) {
			g.Policy.Entries = append(g.Policy.Entries, entry(b, fmt.Sprint(i)))
		}
		sortEntries(g.Policy.Entries)
		g.Limits.Proposals = MaxQuota
	})
	m.attestAll(allNew)
	var out []Command
	for i := range n {
		p := m.propose(remove(fmt.Sprint(i)), func(p *Proposal) { p.Nonce = fmt.Sprintf("%032x", i) })
		out = append(out, must(NewCommand(KindProposal, m.sign(m.payload(p), m.governors(3)...))))
	}
	return m, out
}

// BenchmarkRatioApply is the time to apply a proposal of three of five organisations to a full
// allowed set, signatures and eviction included: a median, in milliseconds.
func BenchmarkRatioApply(b *testing.B) {
	m, commands := proposals(b, 101)
	for b.Loop() {
		var took []time.Duration
		for _, c := range commands {
			began := time.Now()
			out := m.s.Apply(c)
			took = append(took, time.Since(began))
			if out.Reason != nil && out.Reason.Code != attest.CodeReplayed {
				b.Fatal(out.Reason)
			}
		}
		ratio.Print("consensus.apply_3of5_ms", float64(ratio.Median(took))/float64(time.Millisecond))
	}
}
