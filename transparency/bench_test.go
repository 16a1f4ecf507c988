package transparency

import (
	"encoding/binary"
	"path/filepath"
	"testing"
)

// BenchmarkAppend appends leaves of 1 KiB, in memory and into a directory; what fsync
// costs on top is the Raft log's.
func BenchmarkAppend(b *testing.B) {
	for _, where := range []string{"memory", "directory"} {
		b.Run(where, func(b *testing.B) {
			tree := newTree(b, nil)
			if where == "directory" {
				tree = newTree(b, openDir(b, filepath.Join(b.TempDir(), "log")))
			}
			leaf := make([]byte, 1024)
			for i := 0; b.Loop(); i++ {
				binary.BigEndian.PutUint64(leaf, uint64(i))
				if _, err := tree.Append(leaf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkWalk reads a log of 100,000 leaves of 1 KiB from a directory; one operation is
// one leaf.
func BenchmarkWalk(b *testing.B) {
	const n = 100_000
	path := filepath.Join(b.TempDir(), "log")
	tree := newTree(b, openDir(b, path))
	leaf := make([]byte, 1024)
	for i := range n {
		binary.BigEndian.PutUint64(leaf, uint64(i))
		if _, err := tree.Append(leaf); err != nil {
			b.Fatal(err)
		}
	}
	if err := tree.Publish(sign(b, tree)); err != nil {
		b.Fatal(err)
	}
	r, err := OpenReader(path)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	size, root := tree.Head()
	for b.Loop() {
		w, err := r.Walk(b.Context(), Checkpoint{testOrigin, size, root}, WalkOptions{})
		if err != nil || len(w.Findings) > 0 {
			b.Fatal(w.Findings, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/leaf")
}

// BenchmarkVerifyProof verifies a proof in a log of 100,000 leaves with the log's and five
// cosigners' signatures.
func BenchmarkVerifyProof(b *testing.B) {
	tree := newTree(b, nil)
	appendLeaves(b, tree, 0, 100_000)
	by := []Cosigner{cosigner("alpha", "n1"), cosigner("beta", "n1"), cosigner("gamma", "n1"), cosigner("delta", "n1"), cosigner("epsilon", "n1")}
	path, err := tree.InclusionProof(4711, tree.Size())
	if err != nil {
		b.Fatal(err)
	}
	proof, p := FormatProof(4711, path, sign(b, tree, by...)), testPolicy(5, by...)
	for b.Loop() {
		if _, _, err := VerifyProof(leaf(4711), proof, p, Strong); err != nil {
			b.Fatal(err)
		}
	}
}
