package federated

import (
	"slices"
	"testing"

	"github.com/attestmesh/meshnode/internal/identity"
)

// What is forecast of a round for every set of nodes that could go, before and after its
// close, is what the ledger then decides.
func TestForecast(t *testing.T) {
	fates := map[Fate]int{}
	for set := range 1 << 5 {
		for _, closed := range []bool{false, true} {
			m := newMesh(t, five()...)
			spec := m.give(small(), 1)
			spec.MinParticipants = 3
			job := m.submit(spec)
			a := m.deliver(job, m.open(job.ID, ""))
			if closed {
				body, err := m.closeCommand(a)
				m.must(KindRoundClose, body, err)
			}
			before := m.ledger.Digest()
			for i, n := range m.nodes {
				m.gone[n.Peer] = set&(1<<i) != 0
			}
			all := m.ledger.Forecast(m)
			if len(all) != 1 || m.ledger.Digest() != before {
				t.Fatalf("%d forecasts", len(all))
			}
			f := all[0]
			for i, n := range m.nodes {
				if slices.Contains(f.Lost, n.Ref) != (set&(1<<i) != 0) {
					t.Fatalf("set %05b: lost %v", set, f.Lost)
				}
			}
			if f.Attempt != 1 || len(f.Participants) != 5 || (f.Reason == nil) != (f.Fate == FateGoesOn) {
				t.Fatalf("got %+v", f)
			}
			fates[f.Fate]++
			if got := m.fate(job, a, closed); got != f.Fate {
				t.Fatalf("set %05b, closed %v: %s, forecast %+v", set, closed, got, f)
			}
		}
	}
	for _, f := range []Fate{FateGoesOn, FateAgain, FateWaits} {
		if fates[f] == 0 {
			t.Errorf("no round was forecast as %s: %v", f, fates)
		}
	}
}

// fate finds out what becomes of an attempt: the aggregator leaves out who has gone, if it
// has not closed yet; where it cannot commit, another attempt without it is opened.
func (m *fakeMesh) fate(job Job, a *attempt, closed bool) Fate {
	m.t.Helper()
	ok := true
	if !closed {
		for i, acc := range slices.Backward(a.accepted) {
			if m.gone[acc.Peer] {
				a.accepted, a.statements = slices.Delete(a.accepted, i, i+1), slices.Delete(a.statements, i, i+1)
			}
		}
		body, err := m.closeCommand(a)
		ok = m.apply(KindRoundClose, body, err).Reason == nil
	}
	if ok {
		commit, err := m.commitCommand(job.ID, m.result(job, a))
		ok = m.apply(KindRoundCommit, commit, err).Reason == nil
	}
	if ok {
		return FateGoesOn
	}
	next, _ := m.status(job.ID).Next()
	next.Cause, next.Exclude = "it cannot commit", []identity.PeerID{a.open.Aggregator.Peer}
	body, err := OpenCommand(next)
	if m.apply(KindRoundOpen, body, err).Reason == nil {
		return FateAgain
	}
	return FateWaits
}
