package audit

import (
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
)

// A state leaf is one that nobody signs: it must follow from the leaves before it, as far as those
// tell.
func TestStateLeaves(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(m *mesh)
		want string
	}{
		{"as derived", func(m *mesh) { m.LogState(consensus.DigestEvery) }, ""},
		{"two", func(m *mesh) {
			m.LogState(consensus.DigestEvery)
			m.Tick(consensus.DigestPause)
			m.LogState(2 * consensus.DigestEvery)
		}, ""},
		{"of another policy", func(m *mesh) {
			leaf := m.LogState(consensus.DigestEvery)
			m.Leaves[len(m.Leaves)-1] = audittest.AlterState(leaf, func(l *consensus.LoggedState) { l.Policy = strings.Repeat("00", 32) })
		}, "8:not_derived"},
		{"of an earlier epoch", func(m *mesh) {
			leaf := m.LogState(consensus.DigestEvery)
			m.Leaves[len(m.Leaves)-1] = audittest.AlterState(leaf, func(l *consensus.LoggedState) { l.Epoch++ })
		}, "8:not_derived"},
		{"twice", func(m *mesh) { m.Force(m.LogState(consensus.DigestEvery)) }, "9:not_derived"},
		{"of another digest, which only seats can know", func(m *mesh) {
			leaf := m.LogState(consensus.DigestEvery)
			m.Leaves[len(m.Leaves)-1] = audittest.AlterState(leaf, func(l *consensus.LoggedState) { l.Digest = strings.Repeat("00", 32) })
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
