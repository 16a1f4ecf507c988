package audit

import (
	"testing"

	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
)

// reboot orders another boot of beta/n1 and two edges on it: leaves 8 to 11.
func (m *mesh) reboot() {
	m.t.Helper()
	m.Command(consensus.KindCredential, m.Credential("beta/n1 again"))
	m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n1 again", "new"), m.Result("gamma/n1", "beta/n1 again", "new"))
}

// The life of a seat is in the log, and an auditor who replays it counts whoever holds it as a
// cosigner, and nobody who does not.
func TestSeats(t *testing.T) {
	after := []string{"alpha/n1", "beta/n1 again", "gamma/n1"}
	for _, c := range []struct {
		name   string
		do     func(m *mesh)
		cosign []string
		want   string
	}{
		{"a seat returns", func(m *mesh) {
			m.reboot()
			m.Command(consensus.KindReady, m.Ready("beta/n1 again", "alpha/n1", "gamma/n1"))
		}, after, ""},
		{"drained, and taken by the next boot", func(m *mesh) {
			m.Command(consensus.KindDrain, m.Drain("beta/n1"))
			m.reboot()
			m.Command(consensus.KindReady, m.Ready("beta/n1 again", "alpha/n1", "gamma/n1"))
		}, after, ""},
		{"retired", func(m *mesh) { m.Command(consensus.KindRetirement, m.Retirement("beta/n1", "beta enroll")) }, []string{"alpha/n1", "gamma/n1"}, ""},
		{"the leaf that follows from a Ready is missing", func(m *mesh) {
			m.reboot()
			out := m.Command(consensus.KindReady, m.Ready("beta/n1 again", "alpha/n1", "gamma/n1"))
			m.Leaves = m.Leaves[:len(m.Leaves)-len(out.Leaves)+1]
			m.Force(m.Credential("gamma/n2"))
		}, after, "13:derived_missing"},
		{"a seat that is said to be taken", func(m *mesh) {
			m.reboot()
			out := m.Command(consensus.KindReady, m.Ready("beta/n1 again", "alpha/n1", "gamma/n1"))
			m.Leaves = append(m.Leaves[:len(m.Leaves)-2], out.Leaves[1])
		}, []string{"alpha/n1", "gamma/n1"}, "12:not_derived"},
		{"too few confirm", func(m *mesh) {
			m.reboot()
			m.Force(m.Ready("beta/n1 again", "alpha/n1"))
		}, []string{"alpha/n1", "gamma/n1"}, "12:threshold"},
		{"nobody else has seen it", func(m *mesh) {
			m.Command(consensus.KindCredential, m.Credential("beta/n1 again"))
			m.Force(m.Ready("beta/n1 again", "alpha/n1", "gamma/n1"))
		}, []string{"alpha/n1", "gamma/n1"}, "10:not_ready"},
		{"a seat that is held", func(m *mesh) {
			m.Command(consensus.KindCredential, m.Credential("beta/n2"))
			m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n2", "new"))
			m.Force(m.Ready("beta/n2", "alpha/n1", "gamma/n1"))
		}, seats, "10:seat_held"},
		{"drained by another", func(m *mesh) {
			raw, err := consensus.SignDrain(audittest.Key("alpha/n1 peer"), consensus.Drain{MeshID: m.Genesis.MeshID(), Node: audittest.Ref("beta/n1"), Peer: audittest.PeerOf("beta/n1")})
			m.check(err)
			m.Force(raw)
		}, seats, "8:wrong_signer"},
		{"retired by another organisation", func(m *mesh) { m.Force(m.Retirement("beta/n1", "alpha govern")) }, seats, "8:wrong_signer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := started(t)
			c.do(m)
			if r := m.audit(m.publish(c.cosign...)); codes(r) != c.want {
				t.Errorf("got %q, want %q: %+v", codes(r), c.want, r.Findings)
			}
		})
	}
}
