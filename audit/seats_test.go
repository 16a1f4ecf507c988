package audit

import (
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/consensus"
)

// ready returns the word of a boot, confirmed by the boots named.
func (m *mesh) ready(boot string, by ...string) []byte {
	m.t.Helper()
	r := consensus.Ready{MeshID: m.g.MeshID(), Node: m.ref(strings.Split(boot, " ")[0]), Peer: peerOf(boot), Seq: 9, Digest: strings.Repeat("ab", 32)}
	payload, err := r.Payload()
	m.check(err)
	var parts [][]byte
	for _, b := range append([]string{boot}, by...) {
		raw, err := consensus.ConfirmReady(key(b+" peer"), payload)
		m.check(err)
		parts = append(parts, raw)
	}
	raw, err := consensus.Merge(parts...)
	m.check(err)
	return raw
}

func (m *mesh) drain(boot string) []byte {
	m.t.Helper()
	raw, err := consensus.SignDrain(key(boot+" peer"), consensus.Drain{MeshID: m.g.MeshID(), Node: m.ref(strings.Split(boot, " ")[0]), Peer: peerOf(boot)})
	m.check(err)
	return raw
}

func (m *mesh) retirement(boot, label string) []byte {
	m.t.Helper()
	raw, err := consensus.SignRetirement(m.signer(label), consensus.Retirement{MeshID: m.g.MeshID(), Node: m.ref(strings.Split(boot, " ")[0]), Peer: peerOf(boot)})
	m.check(err)
	return raw
}

// reboot orders another boot of beta/n1 and two edges on it: leaves 8 to 11.
func (m *mesh) reboot() {
	m.t.Helper()
	m.command(consensus.KindCredential, m.credential("beta/n1 again"))
	m.command(consensus.KindResults, m.result("alpha/n1", "beta/n1 again", "new"), m.result("gamma/n1", "beta/n1 again", "new"))
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
			m.command(consensus.KindReady, m.ready("beta/n1 again", "alpha/n1", "gamma/n1"))
		}, after, ""},
		{"drained, and taken by the next boot", func(m *mesh) {
			m.command(consensus.KindDrain, m.drain("beta/n1"))
			m.reboot()
			m.command(consensus.KindReady, m.ready("beta/n1 again", "alpha/n1", "gamma/n1"))
		}, after, ""},
		{"retired", func(m *mesh) { m.command(consensus.KindRetirement, m.retirement("beta/n1", "beta enroll")) }, []string{"alpha/n1", "gamma/n1"}, ""},
		{"the leaf that follows from a Ready is missing", func(m *mesh) {
			m.reboot()
			out := m.command(consensus.KindReady, m.ready("beta/n1 again", "alpha/n1", "gamma/n1"))
			m.leaves = m.leaves[:len(m.leaves)-len(out.Leaves)+1]
			m.force(m.credential("gamma/n2"))
		}, after, "13:derived_missing"},
		{"a seat that is said to be taken", func(m *mesh) {
			m.reboot()
			out := m.command(consensus.KindReady, m.ready("beta/n1 again", "alpha/n1", "gamma/n1"))
			m.leaves = append(m.leaves[:len(m.leaves)-2], out.Leaves[1])
		}, []string{"alpha/n1", "gamma/n1"}, "12:not_derived"},
		{"too few confirm", func(m *mesh) {
			m.reboot()
			m.force(m.ready("beta/n1 again", "alpha/n1"))
		}, []string{"alpha/n1", "gamma/n1"}, "12:threshold"},
		{"nobody else has seen it", func(m *mesh) {
			m.command(consensus.KindCredential, m.credential("beta/n1 again"))
			m.force(m.ready("beta/n1 again", "alpha/n1", "gamma/n1"))
		}, []string{"alpha/n1", "gamma/n1"}, "10:not_ready"},
		{"a seat that is held", func(m *mesh) {
			m.command(consensus.KindCredential, m.credential("beta/n2"))
			m.command(consensus.KindResults, m.result("alpha/n1", "beta/n2", "new"))
			m.force(m.ready("beta/n2", "alpha/n1", "gamma/n1"))
		}, seats, "10:seat_held"},
		{"drained by another", func(m *mesh) {
			raw, err := consensus.SignDrain(key("alpha/n1 peer"), consensus.Drain{MeshID: m.g.MeshID(), Node: m.ref("beta/n1"), Peer: peerOf("beta/n1")})
			m.check(err)
			m.force(raw)
		}, seats, "8:wrong_signer"},
		{"retired by another organisation", func(m *mesh) { m.force(m.retirement("beta/n1", "alpha govern")) }, seats, "8:wrong_signer"},
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
