package audit

import (
	"testing"
	"time"

	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/transparency"
)

func (m *mesh) changes(location string) (Report, []Change, [][]byte) {
	m.t.Helper()
	r, err := transparency.OpenReader(location)
	m.check(err)
	defer r.Close()
	report, changes, chain, err := Changes(m.t.Context(), r, Options{Genesis: m.Genesis, At: time.Now().Add(4 * time.Hour)})
	m.check(err)
	return report, changes, chain
}

func TestChanges(t *testing.T) {
	m := started(t) // leaves 0 to 7
	m.Command(consensus.KindProposal, m.Proposal(m.Add("next"), "alpha", "beta"))
	m.Tick(40 * time.Minute)
	m.AttestAll("new") // 9 to 14
	m.Command(consensus.KindProposal, m.Proposal(audittest.Remove("old"), "beta", "gamma"))
	report, changes, chain := m.changes(m.publish(seats...))
	if !report.OK || len(changes) != 3 || len(chain) != 4 {
		t.Fatalf("%d changes, %d links, %+v", len(changes), len(chain), report.Findings)
	}
	for i, want := range []struct {
		leaf  uint64
		class consensus.Class
		org   string
	}{{1, "", "alpha"}, {8, consensus.ClassWiden, "alpha"}, {15, consensus.ClassNarrow, "beta"}} {
		c := changes[i]
		if c.Leaf != want.leaf || c.Class != want.class || string(c.Organisations[0]) != want.org || int(c.Epoch) != i {
			t.Errorf("change %d: %+v", i, c)
		}
	}
	if first, second := changes[1].After, changes[2].After; !first.Before(second) || second.Before(m.At.Add(-consensus.ClockSkew)) {
		t.Errorf("ordered after %s and %s", first, second)
	}
	if _, err := consensus.ReplayPolicy(m.Genesis, chain); err != nil {
		t.Error(err)
	}
	// What is wrong with a log is said, and what can be told of it is told.
	m.Force(m.Proposal(m.Add("forged"), "alpha"))
	if report, changes, _ := m.changes(m.publish(seats...)); report.OK || len(changes) != 3 {
		t.Errorf("%d changes, findings %v", len(changes), report.Findings)
	}
	m.Leaves = m.Leaves[:1]
	if report, changes, _ := m.changes(m.publish()); report.OK || len(changes) != 0 {
		t.Errorf("%d changes, findings %v", len(changes), report.Findings)
	}
}
