package audit

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
)

// logState orders a digest command after seq others.
func (m *mesh) logState(seq uint64) []byte {
	m.t.Helper()
	c, err := consensus.NewCommand(consensus.KindDigest)
	m.check(err)
	out := m.s.LogState(c, seq, m.s.Digest())
	if out.Reason != nil {
		m.t.Fatalf("digest refused: %v", out.Reason)
	}
	m.leaves = append(m.leaves, out.Leaves...)
	return out.Leaves[0]
}

// alter returns a state leaf that says something else.
func (m *mesh) alter(leaf []byte, change func(l *consensus.LoggedState)) []byte {
	m.t.Helper()
	env, err := envelope.Parse(leaf)
	m.check(err)
	st, err := envelope.Decode[consensus.LoggedState](env.Payload, envelope.TypeState)
	m.check(err)
	change(&st.Predicate)
	payload, err := json.Marshal(st)
	m.check(err)
	return (&envelope.Envelope{Payload: payload}).Marshal()
}

// A state leaf is one that nobody signs: it must follow from the leaves before it, as far as those
// tell.
func TestStateLeaves(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(m *mesh)
		want string
	}{
		{"as derived", func(m *mesh) { m.logState(consensus.DigestEvery) }, ""},
		{"two", func(m *mesh) {
			m.logState(consensus.DigestEvery)
			m.tick(consensus.DigestPause)
			m.logState(2 * consensus.DigestEvery)
		}, ""},
		{"of another policy", func(m *mesh) {
			leaf := m.logState(consensus.DigestEvery)
			m.leaves[len(m.leaves)-1] = m.alter(leaf, func(l *consensus.LoggedState) { l.Policy = strings.Repeat("00", 32) })
		}, "8:not_derived"},
		{"of an earlier epoch", func(m *mesh) {
			leaf := m.logState(consensus.DigestEvery)
			m.leaves[len(m.leaves)-1] = m.alter(leaf, func(l *consensus.LoggedState) { l.Epoch++ })
		}, "8:not_derived"},
		{"twice", func(m *mesh) { m.force(m.logState(consensus.DigestEvery)) }, "9:not_derived"},
		{"of another digest, which only seats can know", func(m *mesh) {
			leaf := m.logState(consensus.DigestEvery)
			m.leaves[len(m.leaves)-1] = m.alter(leaf, func(l *consensus.LoggedState) { l.Digest = strings.Repeat("00", 32) })
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := started(t)
			c.do(m)
			if got := codes(m.audit(m.publish(seats...))); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
