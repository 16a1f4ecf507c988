package transparency

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What a Prover reads from files is what the tree proves from memory, at full and partial tiles
// of both levels.
func TestProver(t *testing.T) {
	for _, n := range []int{1, 2, 255, 256, 257, 700} {
		tree, path := publishedLog(t, n)
		size, root := tree.Head()
		head := Checkpoint{testOrigin, size, root}
		r, err := OpenReader(path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		p := r.Prover(head)
		for i := 0; i < n; i += 1 + n/40 {
			got, proof, err := p.Leaf(t.Context(), uint64(i))
			if err != nil {
				t.Fatalf("leaf %d of %d: %v", i, n, err)
			}
			want, err := tree.InclusionProof(uint64(i), size)
			if err != nil || !slices.Equal(proof, want) || !bytes.Equal(got, leaf(i)) {
				t.Errorf("leaf %d of %d: %q with %d hashes, want %q with %d (%v)", i, n, got, len(proof), leaf(i), len(want), err)
			}
			if err := VerifyInclusion(got, uint64(i), proof, size, root); err != nil {
				t.Error(err)
			}
			if VerifyInclusion(append(got, 0), uint64(i), proof, size, root) == nil || VerifyInclusion(got, uint64(i)+1, proof, size, root) == nil {
				t.Errorf("leaf %d of %d is proven as another", i, n)
			}
		}
		if _, _, err := p.Leaf(t.Context(), size); err == nil {
			t.Error("a leaf behind the end was proven")
		}
	}
}

// Files that are not of the head's tree are named, and a cancelled context is no finding.
func TestProverOfOtherFiles(t *testing.T) {
	tree, path := publishedLog(t, 700)
	size, root := tree.Head()
	head := Checkpoint{testOrigin, size, root}
	read := func(head Checkpoint) error {
		r, err := OpenReader(path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		_, _, err = r.Prover(head).Leaf(t.Context(), 3)
		return err
	}
	wants := func(err error, code string) {
		t.Helper()
		var bad *Tampered
		if !errors.As(err, &bad) || bad.Findings[0].Code != code {
			t.Errorf("got %v, want %s", err, code)
		}
	}
	other := head
	other.Root[0]++
	wants(read(other), CodeTileMismatch)
	edit := func(name string, change func([]byte) []byte) func() {
		file := filepath.Join(path, name)
		was, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, change(bytes.Clone(was)), 0o644); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := os.WriteFile(file, was, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	back := edit("tile/entries/000", func(b []byte) []byte { return bytes.Replace(b, []byte("leaf 3;"), []byte("leaf x;"), 1) })
	wants(read(head), CodeEntryMismatch)
	back()
	back = edit("tile/0/000", func(b []byte) []byte { return b[:len(b)-1] })
	wants(read(head), CodeTileMalformed)
	back()
	back = edit("tile/entries/000", func(b []byte) []byte { return b[:len(b)/2] })
	wants(read(head), CodeEntriesMalformed)
	back()
	if err := read(head); err != nil {
		t.Fatal(err)
	}
	r, err := OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := r.Prover(head).Leaf(ctx, 3); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A trimmed checkpoint holds what counts and is exact; whatever is added or respelled is not.
func TestExact(t *testing.T) {
	a, b, c := cosigner("alpha", "n1"), cosigner("beta", "n1"), cosigner("gamma", "n1")
	head := Checkpoint{testOrigin, 9, Hash{1}}
	raw := signHead(t, head, a, b, c)
	p := testPolicy(3, a, b)
	if _, err := VerifyExact(raw, p); err == nil || !strings.Contains(err.Error(), "1 signatures by names") {
		t.Errorf("a stranger's signature: %v", err)
	}
	trimmed, err := Trim(raw, p)
	if err != nil {
		t.Fatal(err)
	}
	v, err := VerifyExact(trimmed, p)
	if err != nil || v.Level != Published || len(v.Orgs) != 2 {
		t.Fatalf("%+v, %v", v, err)
	}
	// Every single byte of it counts.
	for i := range trimmed {
		for _, x := range []byte{1, 2, 0x20} {
			bad := bytes.Clone(trimmed)
			bad[i] ^= x
			if _, err := VerifyExact(bad, p); err == nil {
				t.Fatalf("byte %d changed by %#x is accepted:\n%s", i, x, bad)
			}
		}
	}
	lines := strings.SplitAfter(string(trimmed), "\n")
	if _, err := VerifyExact([]byte(string(trimmed)+lines[len(lines)-2]), p); err == nil {
		t.Error("a signature twice is accepted")
	}
	if _, err := Trim(signHead(t, head), Policy{Origin: testOrigin, LogKey: public("other"), Quorum: QuorumOf(3), At: p.At}); err == nil {
		t.Error("trimmed without the log's signature")
	}
}
