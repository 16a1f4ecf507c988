package transparency

import (
	"bytes"
	"testing"
	"time"

	"filippo.io/torchwood"
)

// outsider is a witness outside the mesh, and the line it cosigns a checkpoint with.
func outsider(t *testing.T, name string) (Outside, func(checkpoint []byte) []byte) {
	t.Helper()
	s, err := torchwood.NewCosignatureSigner(name, key(name))
	if err != nil {
		t.Fatal(err)
	}
	w, err := ParseOutside(s.Verifier().String())
	if err != nil {
		t.Fatal(err)
	}
	return w, func(checkpoint []byte) []byte {
		line, err := Cosign(checkpoint, name, key(name))
		if err != nil {
			t.Fatal(err)
		}
		return line
	}
}

// An outside witness is reported by name and time, and makes no checkpoint more published.
func TestOutside(t *testing.T) {
	a, b := cosigner("alpha", "n1"), cosigner("beta", "n1")
	near, nearLine := outsider(t, "witness.example/near")
	far, farLine := outsider(t, "witness.example/far")
	silent, _ := outsider(t, "witness.example/silent")
	tree := newTree(t, openDir(t, t.TempDir()))
	appendLeaves(t, tree, 0, 9)
	bare := sign(t, tree, a)
	for _, w := range []struct {
		by   Outside
		line []byte
	}{{near, nearLine(bare)}, {far, farLine(bare)}} {
		out, err := MergeOutside(bare, w.line, w.by)
		if err != nil {
			t.Fatal(err)
		}
		bare = out
	}
	policy := Policy{Origin: testOrigin, LogKey: public("log"), Cosigners: []Cosigner{a, b}, Quorum: QuorumOf(2), Outside: []Outside{silent, far, near}, At: time.Now()}
	v, err := Verify(bare, policy)
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Outside) != 2 || v.Outside[0].Name != far.Name() || v.Outside[1].Name != near.Name() || time.Since(v.Outside[0].At) > time.Minute {
		t.Errorf("got %+v, want far and near, in the policy's order", v.Outside)
	}
	if v.Level != Unpublished || len(v.Orgs) != 1 || v.Strangers != 0 || len(v.Problems) != 0 {
		t.Errorf("got level %s, %v, %d strangers, %v: witnesses count for no organisation", v.Level, v.Orgs, v.Strangers, v.Problems)
	}
	// A checkpoint that was cosigned again keeps what only the older one has, once.
	again, err := KeepOutside(bare, sign(t, tree, a, b), policy.Outside)
	if err != nil {
		t.Fatal(err)
	}
	if again, err = KeepOutside(bare, again, policy.Outside); err != nil {
		t.Fatal(err)
	}
	if v, err := Verify(again, policy); err != nil || len(v.Outside) != 2 || len(v.Orgs) != 2 || len(v.Problems) != 0 {
		t.Errorf("got %+v, %v", v, err)
	}
	if _, err := KeepOutside(again[:len(again)-9], again, policy.Outside); err == nil {
		t.Error("a broken note was accepted")
	}

	// A line that does not verify, by another key or over another text, displaces no good one and is none.
	other := append([]byte("\u2014 "+near.Name()), farLine(again)[len("\u2014 "+far.Name()):]...)
	bad := append(sign(t, tree, a, b), other...)
	kept, err := KeepOutside(again, bad, policy.Outside)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := Verify(kept, policy); err != nil || len(v.Outside) != 2 {
		t.Errorf("a bad line displaced a good one: %+v, %v", v, err)
	}
	if kept, err := KeepOutside(bad, sign(t, tree, a, b), policy.Outside); err != nil || bytes.Contains(kept, other) {
		t.Errorf("a bad line was kept, or nothing: %v", err)
	}

	// A line over another checkpoint is no cosignature of this one.
	appendLeaves(t, tree, 9, 12)
	larger := sign(t, tree, a)
	if kept, err := KeepOutside(again, larger, policy.Outside); err != nil || string(kept) != string(larger) {
		t.Errorf("cosignatures of another size were kept: %v\n%s", err, kept)
	}
	if _, err := MergeOutside(larger, nearLine(bare), near); err == nil {
		t.Error("a line over another checkpoint was merged")
	}
	if _, err := MergeOutside(larger, farLine(larger), near); err == nil {
		t.Error("another witness's line was merged")
	}
	forged := append([]byte(nil), larger...)
	forged = append(forged, nearLine(bare)...)
	if v, err := Verify(forged, policy); err != nil || len(v.Outside) != 0 || len(v.Problems) != 1 || v.Problems[0].Code != CodeCosignatureInvalid {
		t.Errorf("got %+v, %v", v, err)
	}
}

func TestOutsidePolicies(t *testing.T) {
	a := cosigner("alpha", "n1")
	w, _ := outsider(t, "witness.example")
	log, _ := outsider(t, testOrigin)
	seat, _ := outsider(t, testOrigin+"/alpha/n1/8")
	tree := newTree(t, openDir(t, t.TempDir()))
	cp := sign(t, tree, a)
	for name, outside := range map[string][]Outside{
		"zero value": {{}}, "twice": {w, w}, "named as the log": {log}, "named as a seat": {seat},
	} {
		p := Policy{Origin: testOrigin, LogKey: public("log"), Cosigners: []Cosigner{a}, Quorum: QuorumOf(2), Outside: outside, At: time.Now()}
		if _, err := Verify(cp, p); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// A list that was never to be in force does not keep every checkpoint from being believed.
	if s, err := torchwood.NewCosignatureSigner(w.Name(), key("another")); err != nil {
		t.Fatal(err)
	} else if got := OutsideOf([]string{"x", w.Key(), s.Verifier().String()}); len(got) != 1 || got[0].Key() != w.Key() {
		t.Errorf("of two keys under one name %v count", got)
	}
	if _, err := MergeOutside(cp, nil, Outside{}); err == nil {
		t.Error("the zero witness merges")
	}
	for _, vkey := range []string{"", "x", "witness.example+00000000+AAAA", "witness.example+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"} {
		if w, err := ParseOutside(vkey); err == nil || w.Name() != "" {
			t.Errorf("%q: %v", vkey, w)
		}
	}
}
