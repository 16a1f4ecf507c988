package federated

import (
	"bytes"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/internal/canonical"
	"github.com/attestmesh/meshnode/internal/identity"
)

// worked returns a mesh whose ledger has something of everything: a committed round, a closed
// attempt that excludes somebody, and a job that has failed.
func worked(t testing.TB) *fakeMesh {
	t.Helper()
	m := newMesh(t, five()...)
	job := m.submit(m.give(small(), 2))
	m.round(job)
	first := m.deliver(job, m.open(job.ID, ""))
	second := m.deliver(job, m.open(job.ID, "aggregator unreachable", m.nodeOf(first.open.Aggregator.Peer)))
	body, err := m.closeCommand(second)
	m.must(KindRoundClose, body, err)
	spec := m.give(small(), 1)
	spec.Name = "other"
	failing := m.submit(spec)
	for range MaxAttempts {
		m.open(failing.ID, "no answer")
	}
	o, _ := m.status(failing.ID).Next()
	o.Cause = "no answer"
	body, err = OpenCommand(o)
	m.must(KindRoundOpen, body, err)
	if m.status(failing.ID).State != StateFailed {
		t.Fatal("the job has not failed")
	}
	return m
}

// (That every field survives is tested by all tests of this package: see fakeMesh.apply.)
func TestLedgerImageAltered(t *testing.T) {
	m := worked(t)
	raw, err := m.ledger.Image()
	if err != nil {
		t.Fatal(err)
	}
	want := m.ledger.Digest()
	for name, c := range map[string]struct {
		alter func(w *wireLedger)
		err   string // empty where only the digest tells
	}{
		"version":          {func(w *wireLedger) { w.Version++ }, "version 2"},
		"mesh":             {func(w *wireLedger) { w.Mesh[0] ^= 1 }, "of mesh"},
		"job dropped":      {func(w *wireLedger) { w.Jobs = w.Jobs[:1] }, ""},
		"job twice":        {func(w *wireLedger) { w.Jobs[1] = w.Jobs[0] }, "or twice"},
		"signer added":     {func(w *wireLedger) { w.Jobs[0].Signers += ",zeta" }, ""},
		"no signer":        {func(w *wireLedger) { w.Jobs[0].Signers = "" }, "signers"},
		"failure undone":   {func(w *wireLedger) { w.Jobs[1].Failed = nil }, ""},
		"half a failure":   {func(w *wireLedger) { w.Jobs[1].Failed = w.Jobs[1].Failed[:2] }, "failed"},
		"failed and open":  {func(w *wireLedger) { w.Jobs[1].Open = w.Jobs[0].Open }, "cannot have"},
		"round undone":     {func(w *wireLedger) { w.Jobs[0].Committed = nil }, "open round"},
		"result replaced":  {func(w *wireLedger) { w.Jobs[0].Committed[0].Leaf = w.Jobs[0].Committed[0].Round.Close }, "round statement"},
		"round of another": {func(w *wireLedger) { w.Jobs[0].Committed[0].Round.Attempt++ }, "round 0"},
		"who took part":    {func(w *wireLedger) { w.Jobs[0].Committed[0].Members[0].Affirming = nil }, ""},
		"who added up":     {func(w *wireLedger) { w.Jobs[0].Committed[0].AggregatorAt.Kind = "sim2" }, ""},
		"attempts reset":   {func(w *wireLedger) { w.Jobs[0].Open[0].Attempt = 1 }, "the close is of"},
		"attempt dropped":  {func(w *wireLedger) { w.Jobs[0].Open = nil }, ""},
		"close undone":     {func(w *wireLedger) { w.Jobs[0].Open[0].Close = nil }, "without a close"},
		"open again":       {func(w *wireLedger) { w.Jobs[0].Open[0].Close, w.Jobs[0].Open[0].Updates = nil, nil }, ""},
		"update dropped":   {func(w *wireLedger) { w.Jobs[0].Open[0].Updates = w.Jobs[0].Open[0].Updates[1:] }, "update statements"},
		"exclusion undone": {func(w *wireLedger) { w.Jobs[0].Open[0].Exclude = nil }, ""},
		"excluded nobody":  {func(w *wireLedger) { w.Jobs[0].Open[0].Exclude[0] = []byte("x") }, "exclude"},
		"cause":            {func(w *wireLedger) { w.Jobs[0].Open[0].Cause = "else" }, ""},
		"participant":      {func(w *wireLedger) { w.Jobs[0].Open[0].Participants[0].Ref = "x" }, "open round"},
		"aggregator":       {func(w *wireLedger) { w.Jobs[0].Open[0].Aggregator = w.Jobs[0].Open[0].Participants[0] }, ""},
		"epoch":            {func(w *wireLedger) { w.Jobs[0].Open[0].Epoch++ }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var w wireLedger
			if err := imageDecode.Unmarshal(raw, &w); err != nil {
				t.Fatal(err)
			}
			c.alter(&w)
			altered, err := imageEncode.Marshal(w)
			if err != nil {
				t.Fatal(err)
			}
			l, err := RestoreLedger(testMeshID, altered)
			switch {
			case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
				t.Fatalf("got %v, want %q", err, c.err)
			case err == nil && l.Digest() == want:
				t.Fatal("the digest is the logged one")
			}
		})
	}
	if _, err := RestoreLedger(identity.MeshID{1}, raw); err == nil {
		t.Error("restored in another mesh")
	}
	if _, err := RestoreLedger(testMeshID, make([]byte, MaxImage+1)); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("got %v, want the size limit", err)
	}
	wide := append([]byte{raw[0], 0x18, 1}, raw[2:]...)
	if _, err := RestoreLedger(testMeshID, wide); err == nil || !strings.Contains(err.Error(), canonical.ErrForm.Error()) {
		t.Errorf("a number of two bytes: %v", err)
	}
}

func TestLedgerImageBitFlips(t *testing.T) {
	m := worked(t)
	raw, err := m.ledger.Image()
	if err != nil {
		t.Fatal(err)
	}
	want := m.ledger.Digest()
	for i := 0; i < len(raw)*8; i += 251 {
		flipped := bytes.Clone(raw)
		flipped[i/8] ^= 1 << (i % 8)
		if l, err := RestoreLedger(testMeshID, flipped); err == nil && l.Digest() == want {
			t.Fatalf("bit %d of byte %d may be flipped", i%8, i/8)
		}
	}
	for n := 0; n < len(raw); n += 503 {
		if _, err := RestoreLedger(testMeshID, raw[:n]); err == nil {
			t.Fatalf("accepted the first %d bytes", n)
		}
	}
}

func FuzzLedgerImage(f *testing.F) {
	raw, err := worked(f).ledger.Image()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		l, err := RestoreLedger(testMeshID, raw)
		if err != nil {
			return
		}
		if again, err := l.Image(); err != nil || !bytes.Equal(again, raw) {
			t.Fatalf("accepted %x, which encodes to %x (%v)", raw, again, err)
		}
	})
}
