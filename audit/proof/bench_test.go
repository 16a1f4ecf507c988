package proof

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/ratio"
)

// BenchmarkRatioFile verifies a whole proof file of a result in a mesh of five organisations: the log's and
// five cosigners' signatures, and all that leads there from a genesis that is read anew each time. It
// is for information; log.proof_verify_ms is the bare proof.
func BenchmarkRatioFile(b *testing.B) {
	m := audittest.New(audittest.Options{At: audittest.CompleteAt, Edit: func(g *consensus.Genesis) {
		for _, org := range []string{"delta", "epsilon"} {
			o := consensus.Organisation{ID: identity.OrgID(org), Roles: []string{consensus.OrgMember}}
			for _, role := range []string{consensus.KeyGovern, consensus.KeyEnroll, consensus.KeyEmergency} {
				o.Keys = append(o.Keys, consensus.Key{Role: role, Public: audittest.Public(org + " " + role)})
			}
			g.Organisations = append(g.Organisations, o)
		}
		slices.SortFunc(g.Organisations, func(a, b consensus.Organisation) int { return strings.Compare(string(a.ID), string(b.ID)) })
	}}).Start()
	m.Command(consensus.KindProposal, m.Proposal(m.Add("next"), "alpha", "beta", "gamma", "delta"))
	m.Tick(time.Minute)
	m.LogState(consensus.DigestEvery)
	result := m.Find(envelope.TypeAttestationResult)[9]
	data, p := export(b, m, at(int(result)), m.Cosigners()...)
	if len(p.Cosigners) != 5 {
		b.Fatalf("cosigned by %v", p.Cosigners)
	}
	raw := m.Genesis.Raw()
	verify := func() {
		g, err := consensus.ParseGenesis(raw)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Verify(data, Options{Genesis: g, At: m.At}); err != nil {
			b.Fatal(err)
		}
	}
	const calls = 20
	for b.Loop() {
		one := ratio.CPU(calls, verify)
		one()
		var took []time.Duration
		for range 9 {
			took = append(took, one()/calls)
		}
		ratio.Print("log.proof_file_ms", float64(ratio.Median(took))/float64(time.Millisecond))
		ratio.Print("log.proof_file_kib", float64(len(data))/1024)
	}
}
