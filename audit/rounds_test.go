package audit

import (
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/federated/chunk"
)

// round is the leaf of a round of job 0011223344556677 with two participants.
func (m *mesh) round(n byte, change ...func(*federated.Round)) []byte {
	m.t.Helper()
	r := federated.Round{Turn: federated.Turn{MeshID: m.g.MeshID(), Job: "0011223344556677", Round: uint32(n), Attempt: 1}, Epoch: m.s.Epoch(),
		Rule: "fedavg", Arithmetic: "f64-ordered-v1", ResultRoot: chunk.Root{n + 1}, Aggregator: m.ref("gamma/n1"), Peer: peerOf("gamma/n1"), Rejected: []federated.Rejected{}}
	if n > 0 {
		r.BaseRoot = chunk.Root{n}
	}
	for _, node := range []string{"alpha/n1", "beta/n1"} {
		r.Accepted = append(r.Accepted, federated.Accepted{Node: m.ref(node), Peer: peerOf(node), UpdateRoot: chunk.Root{9}, Examples: federated.Digest{8}, Statement: federated.Digest{7}})
	}
	for _, f := range change {
		f(&r)
	}
	e, err := federated.SignRound(m.signer(r.Aggregator.String()+" peer"), r)
	m.check(err)
	return e.Marshal()
}

// Rounds are held against the membership at their index and against the round before.
func TestRounds(t *testing.T) {
	outsider := func(m *mesh) {
		m.command(consensus.KindCredential, m.credential("beta/n2"))
		m.command(consensus.KindResults, m.result("alpha/n1", "beta/n2", "new")) // one organisation is not enough
	}
	for _, c := range []struct {
		name string
		do   func(m *mesh)
		want string
	}{
		{"three rounds", func(m *mesh) { m.force(m.round(0)); m.force(m.round(1)); m.force(m.round(2)) }, ""},
		{"signed by somebody else", func(m *mesh) {
			m.force(m.sign(payloadOf(m, m.round(0)), "alpha/n1 peer"))
		}, "8:bad_signature"},
		{"of another mesh", func(m *mesh) { m.force(m.round(0, func(r *federated.Round) { r.MeshID[0] ^= 1 })) }, "8:wrong_mesh"},
		{"aggregated by a node that is not eligible", func(m *mesh) {
			outsider(m)
			m.force(m.round(0, func(r *federated.Round) { r.Aggregator, r.Peer = m.ref("beta/n2"), peerOf("beta/n2") }))
		}, "10:not_aggregator"},
		{"with a trainer that is not eligible", func(m *mesh) {
			outsider(m)
			m.force(m.round(0, func(r *federated.Round) { r.Accepted[1].Node, r.Accepted[1].Peer = m.ref("beta/n2"), peerOf("beta/n2") }))
		}, "10:not_eligible"},
		{"with an evicted trainer", func(m *mesh) {
			later := func(r *consensus.AttestationResult) { r.At = r.At.Add(time.Second) }
			m.command(consensus.KindResults, m.result("alpha/n1", "beta/n1", "old", later), m.result("gamma/n1", "beta/n1", "old", later))
			m.force(m.round(0))
			m.command(consensus.KindProposal, m.proposal(remove("old"), "alpha", "gamma"))
			m.force(m.round(1))
		}, "13:not_eligible"},
		{"on results that have run out", func(m *mesh) {
			m.force(m.round(0))
			m.tick(3 * time.Hour)
			m.command(consensus.KindCredential, m.credential("beta/n2"))
			m.command(consensus.KindResults, m.result("alpha/n1", "beta/n2", "new"))
			m.force(m.round(1))
		}, "11:not_aggregator 11:not_eligible 11:not_eligible"},
		{"nobody took part", func(m *mesh) { m.force(m.round(0, func(r *federated.Round) { r.Accepted = nil })) }, "8:below_minimum"},
		{"of an epoch to come", func(m *mesh) { m.force(m.round(0, func(r *federated.Round) { r.Epoch = 1 })) }, "8:behind"},
		{"round left out", func(m *mesh) { m.force(m.round(0)); m.force(m.round(2)) }, "9:stale_round"},
		{"round twice", func(m *mesh) { m.force(m.round(0)); m.force(m.round(0)) }, "9:stale_round"},
		{"from another model", func(m *mesh) {
			m.force(m.round(0))
			m.force(m.round(1, func(r *federated.Round) { r.BaseRoot = chunk.Root{5} }))
		}, "9:root_mismatch"},
		{"by another rule", func(m *mesh) {
			m.force(m.round(0))
			m.force(m.round(1))
			m.force(m.round(2, func(r *federated.Round) { r.Rule = "median" }))
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
