package transparency

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestEarlier: at every size the root is the one that the tree had, and the proof leads on from it.
func TestEarlier(t *testing.T) {
	tree, path := publishedLog(t, 300)
	size, last := tree.Head()
	r, err := OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	head := Checkpoint{testOrigin, size, last}
	p := r.Prover(head)
	for n := uint64(1); n <= size; n++ {
		root, proof, err := p.Earlier(t.Context(), n)
		want, err2 := tree.RootAt(n)
		if err != nil || err2 != nil || root != want {
			t.Fatalf("size %d: %v, %v, %v", n, root, err, err2)
		}
		if n < size {
			if err := VerifyConsistency(Checkpoint{testOrigin, n, root}, head, proof); err != nil {
				t.Fatalf("size %d: %v", n, err)
			}
		}
	}
	for _, n := range []uint64{0, size + 1} {
		if _, _, err := p.Earlier(t.Context(), n); err == nil {
			t.Errorf("size %d: no error", n)
		}
	}
	name := filepath.Join(path, "tile/0/000")
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	raw[40] ^= 1
	if err := os.WriteFile(name, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	var bad *Tampered
	if _, _, err := r.Prover(head).Earlier(t.Context(), 100); !errors.As(err, &bad) {
		t.Errorf("a tile that was changed: %v", err)
	}
}

// TestPinned: a pinned reader gives the checkpoint it was given, and files as they are.
func TestPinned(t *testing.T) {
	tree, path := publishedLog(t, 3)
	r, err := OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := r.Pinned([]byte("mine"))
	if got, err := p.Checkpoint(t.Context()); err != nil || string(got) != "mine" {
		t.Errorf("%q, %v", got, err)
	}
	size, root := tree.Head()
	if _, _, err := p.Prover(Checkpoint{testOrigin, size, root}).Leaf(t.Context(), 2); err != nil {
		t.Error(err)
	}
}
