package audit

import (
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/federated/chunk"
)

// Rounds are held against the membership at their index and against the round before.
func TestRounds(t *testing.T) {
	outsider := func(m *mesh) {
		m.Command(consensus.KindCredential, m.Credential("beta/n2"))
		m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n2", "new")) // one organisation is not enough
	}
	for _, c := range []struct {
		name string
		do   func(m *mesh)
		want string
	}{
		{"three rounds", func(m *mesh) { m.Force(m.Round(0)); m.Force(m.Round(1)); m.Force(m.Round(2)) }, ""},
		{"signed by somebody else", func(m *mesh) {
			m.Force(audittest.Sign(payloadOf(m, m.Round(0)), "alpha/n1 peer"))
		}, "8:bad_signature"},
		{"of another mesh", func(m *mesh) { m.Force(m.Round(0, func(r *federated.Round) { r.MeshID[0] ^= 1 })) }, "8:wrong_mesh"},
		{"aggregated by a node that is not eligible", func(m *mesh) {
			outsider(m)
			m.Force(m.Round(0, func(r *federated.Round) { r.Aggregator, r.Peer = audittest.Ref("beta/n2"), audittest.PeerOf("beta/n2") }))
		}, "10:not_aggregator"},
		{"with a trainer that is not eligible", func(m *mesh) {
			outsider(m)
			m.Force(m.Round(0, func(r *federated.Round) {
				r.Accepted[1].Node, r.Accepted[1].Peer = audittest.Ref("beta/n2"), audittest.PeerOf("beta/n2")
			}))
		}, "10:not_eligible"},
		{"with an evicted trainer", func(m *mesh) {
			later := func(r *consensus.AttestationResult) { r.At = r.At.Add(time.Second) }
			m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n1", "old", later), m.Result("gamma/n1", "beta/n1", "old", later))
			m.Force(m.Round(0))
			m.Command(consensus.KindProposal, m.Proposal(audittest.Remove("old"), "alpha", "gamma"))
			m.Force(m.Round(1))
		}, "13:not_eligible"},
		{"on results that have run out", func(m *mesh) {
			m.Force(m.Round(0))
			m.Tick(3 * time.Hour)
			m.Command(consensus.KindCredential, m.Credential("beta/n2"))
			m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n2", "new"))
			m.Force(m.Round(1))
		}, "11:not_aggregator 11:not_eligible 11:not_eligible"},
		{"nobody took part", func(m *mesh) { m.Force(m.Round(0, func(r *federated.Round) { r.Accepted = nil })) }, "8:below_minimum"},
		{"of an epoch to come", func(m *mesh) { m.Force(m.Round(0, func(r *federated.Round) { r.Epoch = 1 })) }, "8:behind"},
		{"round left out", func(m *mesh) { m.Force(m.Round(0)); m.Force(m.Round(2)) }, "9:stale_round"},
		{"round twice", func(m *mesh) { m.Force(m.Round(0)); m.Force(m.Round(0)) }, "9:stale_round"},
		{"from another model", func(m *mesh) {
			m.Force(m.Round(0))
			m.Force(m.Round(1, func(r *federated.Round) { r.BaseRoot = chunk.Root{5} }))
		}, "9:root_mismatch"},
		{"by another rule", func(m *mesh) {
			m.Force(m.Round(0))
			m.Force(m.Round(1))
			m.Force(m.Round(2, func(r *federated.Round) { r.Rule = "median" }))
		}, "10:protocol"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := started(t)
			c.do(m)
			r := m.audit(m.publish("alpha/n1", "gamma/n1"), func(o *Options) { o.At = o.At.Add(4 * time.Hour) })
			if got := codes(r); got != c.want {
				t.Errorf("got %q, want %q\n%+v", got, c.want, r.Findings)
			}
			if c.want == "" && (r.Rounds != 3 || !strings.Contains(strings.Join(r.Proves(), " "), "3 training rounds")) {
				t.Errorf("%d rounds", r.Rounds)
			}
		})
	}
}
