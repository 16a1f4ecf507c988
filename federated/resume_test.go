package federated

import (
	"bytes"
	"slices"
	"testing"

	"github.com/attestmesh/meshnode/attest"
)

// A mesh that was recovered has the round leaves of its log and nothing else: the job goes
// on after its last committed round once it is submitted again, and ends in the same model.
func TestJobResumes(t *testing.T) {
	straight := newMesh(t, five()...)
	job := straight.submit(straight.give(small(), 3))
	for range 4 {
		straight.finish(job, straight.deliver(job, straight.open(job.ID, "")))
	}

	m := newMesh(t, five()...)
	if again := m.submit(m.give(small(), 3)); again.ID != job.ID {
		t.Fatalf("job %s, want %s", again.ID, job.ID)
	}
	for range 2 {
		m.finish(job, m.deliver(job, m.open(job.ID, "")))
	}
	m.open(job.ID, "") // an attempt that leaves nothing behind
	leaves := m.leaves
	m.ledger, m.follower, m.leaves = NewLedger(testMeshID), NewLedger(testMeshID), nil
	for _, leaf := range leaves {
		if err := m.ledger.Resume(leaf); err != nil {
			t.Fatal(err)
		}
		if err := m.follower.Resume(bytes.Clone(leaf)); err != nil {
			t.Fatal(err)
		}
	}
	if m.ledger.Digest() == NewLedger(testMeshID).Digest() || len(m.ledger.Jobs()) != 0 {
		t.Error("what was resumed is not in the digest, or a job that nobody has submitted is listed")
	}
	body, err := OpenCommand(RoundOpen{Job: job.ID, Round: 2, Attempt: 1})
	m.refuse(attest.CodeUnknownJob, KindRoundOpen, body, err)
	body, err = JobCommand(job.Envelope)
	m.must(KindJob, body, err)
	st := m.status(job.ID)
	if st.State != StateWaiting || len(st.Committed) != 2 {
		t.Fatalf("state %s after %d rounds", st.State, len(st.Committed))
	}
	for range 2 {
		m.finish(job, m.deliver(job, m.open(job.ID, "")))
	}
	if got, want := m.status(job.ID).ModelRoot(), straight.status(job.ID).ModelRoot(); got != want || m.status(job.ID).State != StateDone {
		t.Errorf("model %s, without the break %s", got, want)
	}
	m.refuse(attest.CodeDuplicate, KindJob, body, nil)
}

func TestResumeRefuses(t *testing.T) {
	m := newMesh(t, five()...)
	job := m.submit(m.give(small(), 2))
	for range 2 {
		m.finish(job, m.deliver(job, m.open(job.ID, "")))
	}
	other := testMeshID
	other[0]++
	flipped := slices.Clone(m.leaves[0])
	flipped[len(flipped)-20] ^= 1
	for name, tc := range map[string]struct {
		ledger *Ledger
		leaf   []byte
	}{
		"a round left out": {NewLedger(testMeshID), m.leaves[1]},
		"other mesh":       {NewLedger(other), m.leaves[0]},
		"after commands":   {m.ledger, m.leaves[0]},
		"no statement":     {NewLedger(testMeshID), []byte("{}")},
		"bad signature":    {NewLedger(testMeshID), flipped},
	} {
		if err := tc.ledger.Resume(tc.leaf); err == nil {
			t.Errorf("%s: resumed", name)
		}
	}
	twice := NewLedger(testMeshID)
	if err := twice.Resume(m.leaves[0]); err != nil {
		t.Fatal(err)
	}
	if err := twice.Resume(m.leaves[0]); err == nil {
		t.Error("a round twice was resumed")
	}
}
