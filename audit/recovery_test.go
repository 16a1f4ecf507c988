package audit

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/transparency"
)

// A log over several incarnations is one log: each goes on from exactly the leaves before it.
func TestAuditOverIncarnations(t *testing.T) {
	m := started(t)
	m.Command(consensus.KindProposal, m.Proposal(audittest.Remove("old"), "alpha", "beta"))
	given := len(m.Leaves)
	m.Command(consensus.KindCredential, m.Credential("alpha/n2")) // the tail, which is given up
	m.Recover(1, "again", given, given)
	report := m.audit(m.publish(audittest.Again("again")...))
	if !report.OK || report.Level != transparency.Strong || len(report.Cosigners) != 3 || report.Policies != 1 || len(report.Recoveries) != 1 {
		t.Fatalf("level %s, %d policies, recoveries %+v, findings %v", report.Level, report.Policies, report.Recoveries, report.Findings)
	}
	x := report.Recoveries[0]
	if x.Index != uint64(given) || x.Incarnation != 1 || fmt.Sprint(x.Signers) != "[alpha beta]" || len(x.Founders) != 3 {
		t.Errorf("recovery %+v", x)
	}
	if text := strings.Join(report.Proves(), "\n") + strings.Join(report.ProvesNot(), "\n"); !strings.Contains(text, "incarnation 1 goes on from exactly the 9 entries") || !strings.Contains(text, "given up") {
		t.Errorf("says\n%s", text)
	}
	// Planned: drafted here, from what is there when the mesh is stopped.
	drafted := len(m.Leaves)
	m.Command(consensus.KindCredential, m.Credential("beta/n3", func(c *consensus.Credential) { c.Incarnation = 1 }))
	m.Recover(2, "third", drafted, len(m.Leaves))
	report = m.audit(m.publish(audittest.Again("third")...))
	if !report.OK || len(report.Recoveries) != 2 || !report.Recoveries[1].Planned {
		t.Fatalf("recoveries %+v, findings %v", report.Recoveries, report.Findings)
	}
}

// G14: a lying majority cannot go on from other leaves than the organisations signed for, and
// nobody who is of a lower incarnation counts in a higher one.
func TestAuditRefusesRecovery(t *testing.T) {
	good := func() *mesh {
		m := started(t)
		m.Command(consensus.KindProposal, m.Proposal(audittest.Remove("old"), "alpha", "beta"))
		m.Recover(1, "again", len(m.Leaves), len(m.Leaves))
		return m
	}
	for name, tc := range map[string]struct {
		change    func(m *mesh)
		cosigners []string
		want      string
	}{
		"one leaf fewer":        {func(m *mesh) { m.Leaves = append(m.Leaves[:8:8], m.Leaves[9:]...) }, audittest.Again("again"), "8:recovery_invalid"},
		"one leaf more":         {func(m *mesh) { m.Leaves = append(append(m.Leaves[:9:9], m.Leaves[7]), m.Leaves[9:]...) }, audittest.Again("again"), "9:replayed 10:recovery_invalid"},
		"two leaves exchanged":  {func(m *mesh) { m.Leaves[6], m.Leaves[7] = m.Leaves[7], m.Leaves[6] }, audittest.Again("again"), "9:recovery_invalid"},
		"without its Bootstrap": {func(m *mesh) { m.Leaves = append(m.Leaves[:10:10], m.Leaves[11:]...) }, audittest.Again("again"), "10:recovery_invalid"},
		"without its Recovery":  {func(m *mesh) { m.Leaves = append(m.Leaves[:9:9], m.Leaves[10:]...) }, audittest.Again("again"), ""},
		"one signature": {func(m *mesh) {
			r, _, err := consensus.ParseRecovery(m.Leaves[9])
			m.check(err)
			payload, err := r.Payload()
			m.check(err)
			m.Leaves[9] = audittest.Sign(payload, "alpha govern")
		}, audittest.Again("again"), "9:recovery_invalid"},
		"old cosigners": {func(*mesh) {}, nil, "17:unpublished"},
	} {
		m := good()
		tc.change(m)
		report := m.audit(m.publish(tc.cosigners...))
		if report.OK || !strings.HasPrefix(codes(report), tc.want) {
			t.Errorf("%s: got %q, want %q", name, codes(report), tc.want)
		}
	}

	// A planned one, of a log that does not hold what it was drafted on.
	m := started(t)
	drafted := len(m.Leaves)
	m.Command(consensus.KindCredential, m.Credential("beta/n3"))
	m.Recover(1, "again", drafted, len(m.Leaves), func(r *consensus.Recovery) { r.Checkpoint.Root = strings.Repeat("00", 32) })
	if got := codes(m.audit(m.publish(audittest.Again("again")...))); got != "9:recovery_invalid" {
		t.Errorf("a planned Recovery of another log: %q", got)
	}

	// The log of the lower incarnation, whose name is that of a higher one.
	m = good()
	path := m.publish(audittest.Again("again")...)
	raw, err := os.ReadFile(filepath.Join(path, "checkpoint"))
	m.check(err)
	m.check(os.WriteFile(filepath.Join(path, "checkpoint"), []byte(strings.Replace(string(raw), m.Genesis.Origin(1), m.Genesis.Origin(7), 1)), 0o600))
	if got := codes(m.audit(path)); got != "17:checkpoint_invalid" {
		t.Errorf("a checkpoint of an incarnation that the log has not: %q", got)
	}
}
