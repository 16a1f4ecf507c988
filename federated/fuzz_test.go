package federated

import (
	"bytes"
	"testing"
)

// corpus returns one well-formed body of each kind, of a running job.
func corpus(f *testing.F) map[string][]byte {
	m := newMesh(f, five()...)
	job := m.submit(m.give(small(), 1))
	jobBody, err := JobCommand(job.Envelope)
	if err != nil {
		f.Fatal(err)
	}
	next, _ := m.status(job.ID).Next()
	open, err := OpenCommand(next)
	if err != nil {
		f.Fatal(err)
	}
	a := m.deliver(job, m.open(job.ID, ""))
	closing, err := m.closeCommand(a)
	m.must(KindRoundClose, closing, err)
	commit, err := m.commitCommand(job.ID, m.result(job, a))
	if err != nil {
		f.Fatal(err)
	}
	return map[string][]byte{KindJob: jobBody, KindRoundOpen: open, KindRoundClose: closing, KindRoundCommit: commit}
}

// No body makes Apply panic, and a refused one leaves no trace.
func FuzzApply(f *testing.F) {
	for kind, body := range corpus(f) {
		f.Add(kind, body)
	}
	m := newMesh(f, five()...)
	spec := m.give(small(), 1)
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		m.t, m.ledger, m.follower = t, NewLedger(testMeshID), NewLedger(testMeshID)
		job := m.submit(spec)
		m.open(job.ID, "")
		_ = CheckCommand(kind, body)
		before := m.ledger.Digest()
		out := m.ledger.Apply(kind, body, m)
		if out.Reason != nil && m.ledger.Digest() != before {
			t.Fatalf("refused with %s and changed", out.Reason)
		}
	})
}

func FuzzParseCertificate(f *testing.F) {
	m := newMesh(f, five()...)
	m.round(m.submit(m.give(small(), 1)))
	f.Add(m.dir[CertificateFile(0)].Data)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := ParseCertificate(raw)
		if err != nil {
			return
		}
		if back, err := c.Marshal(); err != nil || !bytes.Equal(back, raw) {
			t.Fatalf("accepted a spelling that Marshal does not write: %v", err)
		}
		// Judging must not panic, whatever it says.
		VerifyOne(m.dir, c, VerifyOptions{GovernKeys: m.GovernKeys()})
	})
}

func FuzzParseSpec(f *testing.F) {
	f.Add([]byte(minimal))
	f.Add([]byte("name: t\ntrain: {epochs: 3}\nlabels: &a [x, *a]\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		spec, err := ParseSpec("f", raw)
		if err != nil {
			return
		}
		env, err := NewJob(testMeshID, spec)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseJob(env.Marshal()); err != nil {
			t.Fatalf("a valid spec makes a job that does not parse: %v", err)
		}
	})
}
