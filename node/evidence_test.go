package node

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/identity"
)

var (
	betaN1  = identity.NodeRef{Org: "beta", Name: "n1"}
	gammaN1 = identity.NodeRef{Org: "gamma", Name: "n1"}
)

// evidenceOf opens the evidence of one boot in a data directory.
func evidenceOf(t *testing.T, path, boot string, opts ...durable.Option) *evidenceStore {
	t.Helper()
	data, err := durable.Open(path, opts...)
	if err != nil {
		t.Fatal(err)
	}
	s, err := openEvidence(data, boot)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// shownBy stores evidence behind a result, which it returns.
func shownBy(t *testing.T, s *evidenceStore, subject identity.NodeRef, at time.Time, evidence string) *consensus.AttestationResult {
	t.Helper()
	salt := [saltBytes]byte{1, byte(len(evidence))}
	commitment := consensus.EvidenceCommitment(salt, []byte(evidence))
	if err := s.keep(subject, at, commitment, salt, []byte(evidence)); err != nil {
		t.Fatal(err)
	}
	if names, err := filepath.Glob(s.data.Path("boot-*", "evidence", "*", "*", commitment)); err == nil && len(names) == 1 {
		if err := os.Chtimes(names[0], at, at); err != nil { // as if it had been written then
			t.Fatal(err)
		}
	}
	return &consensus.AttestationResult{Subject: consensus.Party{Node: subject}, Evidence: commitment, At: at}
}

// contains reports whether any file below dir has text in it.
func contains(t *testing.T, dir, text string) (found bool) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		found = found || bytes.Contains(raw, []byte(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// refusedErased demands that evidence cannot be disclosed, because it was deleted on purpose.
func refusedErased(t *testing.T, s *evidenceStore, r *consensus.AttestationResult, now time.Time, why string) {
	t.Helper()
	_, err := s.open(r, defaultKeepEvidence, now)
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Reason.Code != codeErased || !strings.Contains(err.Error(), why) {
		t.Errorf("got %v, want a refusal: %s", err, why)
	}
}

func TestErasedEvidenceIsGone(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	first := evidenceOf(t, dir, "boot-1")
	old := shownBy(t, first, betaN1, now.Add(-time.Hour), "CANARY of an earlier boot")
	s := evidenceOf(t, dir, "boot-2")
	mine := shownBy(t, s, betaN1, now.Add(-time.Minute), "CANARY of this boot")
	others := shownBy(t, s, gammaN1, now.Add(-time.Minute), "another's")
	unfinished := s.data.Path("boot-2", "evidence", "beta", "n1", ".half.tmp1")
	if err := os.WriteFile(unfinished, []byte("CANARY half written"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(unfinished, now, now); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*consensus.AttestationResult{old, mine, others} {
		if raw, err := s.open(r, defaultKeepEvidence, now); err != nil || len(raw) <= saltBytes {
			t.Fatalf("before: %d bytes, %v", len(raw), err)
		}
	}
	backup := t.TempDir()
	if err := os.CopyFS(backup+"/data", os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}

	got, err := s.erase(Erasure{At: now, Subject: &betaN1, Before: now})
	if err != nil || got.Files != 3 {
		t.Fatalf("erased %d files, want 3: %v", got.Files, err)
	}
	refusedErased(t, s, old, now, "erased at")
	refusedErased(t, s, mine, now, "erased at")
	if _, err := s.open(others, defaultKeepEvidence, now); err != nil {
		t.Errorf("another node's evidence: %v", err)
	}
	if contains(t, dir, "CANARY") {
		t.Error("erased evidence is still on the disk")
	}
	// What was in hand when the order came is not written after it; what comes later is kept.
	shownBy(t, s, betaN1, now.Add(-time.Second), "CANARY in hand")
	if contains(t, dir, "CANARY") {
		t.Error("evidence was written after it was erased")
	}
	later := shownBy(t, s, betaN1, now.Add(time.Second), "shown anew")

	// A later boot, on an older copy of the directory with the files of then.
	if err := os.CopyFS(dir+"/boot-0/evidence", os.DirFS(backup+"/data/boot-1/evidence")); err != nil {
		t.Fatal(err)
	}
	restored, err := filepath.Glob(dir + "/boot-0/evidence/beta/n1/*")
	if err != nil || len(restored) != 1 {
		t.Fatal(restored, err)
	}
	if err := os.Chtimes(restored[0], old.At, old.At); err != nil { // as cp --preserve does
		t.Fatal(err)
	}
	again := evidenceOf(t, dir, "boot-3")
	refusedErased(t, again, old, now, "erased at")
	if contains(t, dir, "CANARY") {
		t.Error("a later boot finds erased evidence")
	}
	if _, err := again.open(later, defaultKeepEvidence, now); err != nil {
		t.Errorf("what was shown after the order: %v", err)
	}
}

// What an order covers is told by when a result was made, by the mesh's time: not by when its evidence
// came to the disk, nor by the clock of a host that is wrong.
func TestErasureGoesByTheResult(t *testing.T) {
	dir, made := t.TempDir(), time.Now().Add(-time.Minute)
	s := evidenceOf(t, dir, "boot-1")
	salt := [saltBytes]byte{1}
	commitment := consensus.EvidenceCommitment(salt, []byte("CANARY"))
	if err := s.keep(betaN1, made, commitment, salt, []byte("CANARY")); err != nil { // it was in the outbox for a minute
		t.Fatal(err)
	}
	if list, err := s.list(); err != nil || len(list) != 1 || !list[0].At.Equal(made) {
		t.Errorf("listed: %+v, %v", list, err)
	}
	if err := os.WriteFile(s.data.Path("boot-1", "evidence", "beta", "n1", ".half.tmp1"), []byte("CANARY half written"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := s.erase(Erasure{At: made, Before: made.Add(time.Second)})
	if err != nil || got.Files != 2 || contains(t, dir, "CANARY") {
		t.Errorf("erased %d files, want 2: %v", got.Files, err)
	}
}

// A node that dies between the order's record and the last deletion has erased it after its next start.
func TestErasureSurvivesEveryFault(t *testing.T) {
	for failAt := 1; ; failAt++ {
		dir, now, steps := t.TempDir(), time.Now(), 0
		var results []*consensus.AttestationResult
		clean := evidenceOf(t, dir, "boot-1")
		for _, text := range []string{"CANARY one", "CANARY two..", "CANARY three......"} {
			results = append(results, shownBy(t, clean, betaN1, now.Add(-time.Hour), text))
		}
		died := errors.New("died")
		s := evidenceOf(t, dir, "boot-1", durable.WithFault(func(durable.Op, string) error {
			if steps++; steps >= failAt {
				return died
			}
			return nil
		}))
		_, err := s.erase(Erasure{At: now, Before: now})
		if err == nil {
			if failAt < 6 {
				t.Fatalf("only %d steps: the fault was not seen", failAt-1)
			}
			break
		}
		after := evidenceOf(t, dir, "boot-2")
		if len(after.erased) == 0 {
			continue // the order was never acknowledged, and nothing is gone by halves that it says is
		}
		if contains(t, dir, "CANARY") {
			t.Errorf("step %d failed: evidence is still there after the next start", failAt)
		}
		for _, r := range results {
			refusedErased(t, after, r, now, "erased at")
		}
	}
}

// In a directory whose name is a pattern nothing would be found, and an order of erasure delete nothing.
func TestDataIsNoPattern(t *testing.T) {
	for name, ok := range map[string]bool{"/d/n1": true, "n-1.d": true, "/d/[1]": false, "/d/n?": false, "/d*/n": false, `/d\n`: false} {
		if err := (&Config{Data: name}).checkData(); (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOldEvidenceIsDeleted(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	s := evidenceOf(t, dir, "boot-1")
	old := shownBy(t, s, betaN1, now.Add(-defaultKeepEvidence-time.Hour), "CANARY")
	young := shownBy(t, s, betaN1, now.Add(-defaultKeepEvidence+time.Hour), "young")
	if n, err := s.sweep(now.Add(-defaultKeepEvidence)); n != 1 || err != nil {
		t.Fatalf("%d deleted: %v", n, err)
	}
	refusedErased(t, s, old, now, "keep_evidence")
	if _, err := s.open(young, defaultKeepEvidence, now); err != nil || contains(t, dir, "CANARY") {
		t.Errorf("young: %v", err)
	}
	lost := &consensus.AttestationResult{Subject: consensus.Party{Node: betaN1}, Evidence: strings.Repeat("00", 32), At: now}
	if _, err := s.open(lost, defaultKeepEvidence, now); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("never kept: %v", err)
	}
}

func TestDamagedEvidenceIsNotDisclosed(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	s := evidenceOf(t, dir, "boot-1")
	r := shownBy(t, s, betaN1, now, "evidence")
	if err := os.WriteFile(filepath.Join(dir, "boot-1/evidence/beta/n1", r.Evidence), make([]byte, 40), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.open(r, defaultKeepEvidence, now); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("got %v", err)
	}
	for _, bad := range []string{"*", "../../../x", strings.Repeat("z", 64), ""} {
		if _, err := s.read(bad); !errors.Is(err, errMalformed) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// After an order the outbox has nothing to commit to, until new evidence is shown.
func TestErasureReachesTheOutbox(t *testing.T) {
	e, s, at := newEdges(nil), testSubject(t, 1), time.Unix(1000, 0)
	e.record(s, []byte("shown once"), affirming(at))
	e.erase(Erasure{Subject: &gammaN1, Before: at})
	if got := e.box.queue; len(got) != 1 || string(got[0].evidence) != "shown once" {
		t.Fatalf("another node's order: %v", got)
	}
	e.erase(Erasure{Subject: &s.Node, Before: at})
	if got := e.taken(); len(got) != 1 || got[0].evidence != nil {
		t.Errorf("what waits is over %v", got)
	}
	e.record(s, nil, affirming(at.Add(consensus.HeartbeatAfter)))
	if got := e.taken(); len(got) != 1 || got[0].evidence != nil {
		t.Errorf("a later result is over %v", got)
	}
	if e.held[s.Node.Org] != 0 || e.box.held[s.Node.Org] != 0 {
		t.Errorf("%d and %d bytes are held", e.held[s.Node.Org], e.box.held[s.Node.Org])
	}
	e.record(s, []byte("shown anew"), attest.Refuse(at.Add(2*consensus.HeartbeatAfter), attest.NewReason(attest.CodeRevoked, "", "", "")))
	if got := e.taken(); len(got) != 1 || string(got[0].evidence) != "shown anew" {
		t.Errorf("got %v", got)
	}
}
