package audit

import (
	"crypto/ed25519"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// placeOf is the size and root of leaves.
func (m *mesh) placeOf(leaves [][]byte) consensus.CheckpointSeen {
	m.t.Helper()
	tree := transparency.NewAccumulator()
	for _, leaf := range leaves {
		m.check(tree.Append(leaf))
	}
	root, err := tree.Root()
	m.check(err)
	return consensus.CheckpointSeen{Size: tree.Size(), Root: root.String()}
}

// replayed is the state that leaves lead to.
func (m *mesh) replayed(leaves [][]byte) *consensus.State {
	m.t.Helper()
	s := consensus.NewState(m.g)
	c, err := consensus.NewCommand(consensus.KindBootstrap, leaves[0], leaves[1])
	m.check(err)
	if out := s.Apply(c); out.Reason != nil {
		m.t.Fatal(out.Reason)
	}
	for _, leaf := range leaves[2:] {
		_, err := s.Replay(leaf)
		m.check(err)
	}
	return s
}

// recoverTo goes on in a higher incarnation from the first leaves, with the boots "ORG/n1
// LIFE" as seats, all of which run "new". The Recovery was drafted on as many as drafted.
func (m *mesh) recoverTo(inc identity.Incarnation, life string, drafted, from int, change ...func(*consensus.Recovery)) {
	m.t.Helper()
	r := consensus.Recovery{Incarnation: inc, Organisations: []identity.OrgID{"alpha", "beta", "gamma"}, Nonce: strings.Repeat("cd", 16),
		Planned: drafted < from, Created: m.at, Expires: m.at.Add(time.Hour)}
	file, err := m.replayed(m.leaves[:drafted]).DraftRecovery(r, m.placeOf(m.leaves[:drafted]))
	m.check(err)
	if len(change) > 0 {
		r := *file.Recovery
		change[0](&r)
		payload, err := r.Payload()
		m.check(err)
		m.recoverBy(m.sign(payload, "alpha govern", "beta govern"), life, from)
		return
	}
	m.recoverBy(m.sign(file.Envelope().Payload, "alpha govern", "beta govern"), life, from)
}

func (m *mesh) recoverBy(recovery []byte, life string, from int) {
	m.t.Helper()
	m.leaves = m.leaves[:from]
	m.s = m.replayed(m.leaves)
	m.check(m.s.Recover(recovery, m.placeOf(m.leaves), m.at))
	var creds [][]byte
	for _, org := range m.s.Founders() {
		creds = append(creds, m.credential(string(org)+"/n1 "+life, func(c *consensus.Credential) { c.Incarnation = m.s.Incarnation() }))
	}
	payload, err := m.s.NewBootstrap(1, creds, m.logKey().Public().(ed25519.PublicKey), m.at)
	m.check(err)
	m.command(consensus.KindRecovery, recovery, m.sign(payload, "alpha enroll", "beta enroll", "gamma enroll"))
	var batch [][]byte
	for _, v := range m.s.Founders() {
		for _, o := range m.s.Founders() {
			if v != o {
				batch = append(batch, m.result(string(v)+"/n1 "+life, string(o)+"/n1 "+life, "new", func(r *consensus.AttestationResult) { r.Incarnation = m.s.Incarnation() }))
			}
		}
	}
	m.command(consensus.KindResults, batch...)
}

func again(life string) []string {
	return []string{"alpha/n1 " + life, "beta/n1 " + life, "gamma/n1 " + life}
}

// A log over several incarnations is one log: each goes on from exactly the leaves before it.
func TestAuditOverIncarnations(t *testing.T) {
	m := started(t)
	m.command(consensus.KindProposal, m.proposal(remove("old"), "alpha", "beta"))
	given := len(m.leaves)
	m.command(consensus.KindCredential, m.credential("alpha/n2")) // the tail, which is given up
	m.recoverTo(1, "again", given, given)
	report := m.audit(m.publish(again("again")...))
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
	drafted := len(m.leaves)
	m.command(consensus.KindCredential, m.credential("beta/n3", func(c *consensus.Credential) { c.Incarnation = 1 }))
	m.recoverTo(2, "third", drafted, len(m.leaves))
	report = m.audit(m.publish(again("third")...))
	if !report.OK || len(report.Recoveries) != 2 || !report.Recoveries[1].Planned {
		t.Fatalf("recoveries %+v, findings %v", report.Recoveries, report.Findings)
	}
}

// G14: a lying majority cannot go on from other leaves than the organisations signed for, and
// nobody who is of a lower incarnation counts in a higher one.
func TestAuditRefusesRecovery(t *testing.T) {
	good := func() *mesh {
		m := started(t)
		m.command(consensus.KindProposal, m.proposal(remove("old"), "alpha", "beta"))
		m.recoverTo(1, "again", len(m.leaves), len(m.leaves))
		return m
	}
	for name, tc := range map[string]struct {
		change    func(m *mesh)
		cosigners []string
		want      string
	}{
		"one leaf fewer":        {func(m *mesh) { m.leaves = append(m.leaves[:8:8], m.leaves[9:]...) }, again("again"), "8:recovery_invalid"},
		"one leaf more":         {func(m *mesh) { m.leaves = append(append(m.leaves[:9:9], m.leaves[7]), m.leaves[9:]...) }, again("again"), "9:replayed 10:recovery_invalid"},
		"two leaves exchanged":  {func(m *mesh) { m.leaves[6], m.leaves[7] = m.leaves[7], m.leaves[6] }, again("again"), "9:recovery_invalid"},
		"without its Bootstrap": {func(m *mesh) { m.leaves = append(m.leaves[:10:10], m.leaves[11:]...) }, again("again"), "10:recovery_invalid"},
		"without its Recovery":  {func(m *mesh) { m.leaves = append(m.leaves[:9:9], m.leaves[10:]...) }, again("again"), ""},
		"one signature": {func(m *mesh) {
			r, _, err := consensus.ParseRecovery(m.leaves[9])
			m.check(err)
			payload, err := r.Payload()
			m.check(err)
			m.leaves[9] = m.sign(payload, "alpha govern")
		}, again("again"), "9:recovery_invalid"},
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
	drafted := len(m.leaves)
	m.command(consensus.KindCredential, m.credential("beta/n3"))
	m.recoverTo(1, "again", drafted, len(m.leaves), func(r *consensus.Recovery) { r.Checkpoint.Root = strings.Repeat("00", 32) })
	if got := codes(m.audit(m.publish(again("again")...))); got != "9:recovery_invalid" {
		t.Errorf("a planned Recovery of another log: %q", got)
	}

	// The log of the lower incarnation, whose name is that of a higher one.
	m = good()
	path := m.publish(again("again")...)
	raw, err := os.ReadFile(filepath.Join(path, "checkpoint"))
	m.check(err)
	m.check(os.WriteFile(filepath.Join(path, "checkpoint"), []byte(strings.Replace(string(raw), m.g.Origin(1), m.g.Origin(7), 1)), 0o600))
	if got := codes(m.audit(path)); got != "17:checkpoint_invalid" {
		t.Errorf("a checkpoint of an incarnation that the log has not: %q", got)
	}
}
