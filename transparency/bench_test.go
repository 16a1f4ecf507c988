package transparency

import (
	"crypto/ed25519"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/internal/ratio"
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

// sixSigned returns a leaf of a log of 100,000 and its proof with the log's and five
// cosigners' signatures.
func sixSigned(b *testing.B) (entry, proof []byte, p Policy) {
	tree := newTree(b, nil)
	appendLeaves(b, tree, 0, 100_000)
	by := []Cosigner{cosigner("alpha", "n1"), cosigner("beta", "n1"), cosigner("gamma", "n1"), cosigner("delta", "n1"), cosigner("epsilon", "n1")}
	path, err := tree.InclusionProof(4711, tree.Size())
	if err != nil {
		b.Fatal(err)
	}
	return leaf(4711), FormatProof(4711, path, sign(b, tree, by...)), testPolicy(5, by...)
}

// BenchmarkVerifyProof verifies a proof offline.
func BenchmarkVerifyProof(b *testing.B) {
	entry, proof, p := sixSigned(b)
	for b.Loop() {
		if _, _, err := VerifyProof(entry, proof, p, Strong); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRatioProof is the same in milliseconds of processor time, and against the six signatures alone.
func BenchmarkRatioProof(b *testing.B) {
	entry, proof, p := sixSigned(b)
	message := []byte("as long as a checkpoint is, more or less, which hardly matters to Ed25519: a hundred bytes and more")
	signature, by := ed25519.Sign(key("log"), message), public("log")
	verify := func() {
		if _, _, err := VerifyProof(entry, proof, p, Strong); err != nil {
			b.Fatal(err)
		}
	}
	six := func() {
		for range 6 {
			if !ed25519.Verify(by, message, signature) {
				b.Fatal("a good signature was refused")
			}
		}
	}
	const calls = 50
	for b.Loop() {
		var took []time.Duration
		one := ratio.CPU(calls, verify)
		timed := func() time.Duration { d := one(); took = append(took, d/calls); return d }
		vs := ratio.Of(15, timed, ratio.CPU(calls, six))
		ratio.Print("log.proof_verify_ms", float64(ratio.Median(took))/float64(time.Millisecond))
		ratio.Print("log.proof_verify_vs_6_signatures", vs)
	}
}

// BenchmarkRatioAppendTree appends batches of 256 leaves of 1 KiB to a tree in a directory: of what
// the whole state machine takes (node, log.append_vs_bound), the tree's part.
// The bound is what no log can do without: the leaves' hashes, and their bytes in a file
// with one fsync a batch. The tree itself does not sync, because the Raft log under it
// does; what it would cost if it did is the second line.
func BenchmarkRatioAppendTree(b *testing.B) {
	const batch = 256
	leaves := make([][]byte, batch)
	n := uint64(0)
	fresh := func() [][]byte {
		for i := range leaves {
			leaves[i] = make([]byte, 1024)
			binary.BigEndian.PutUint64(leaves[i], n)
			n++
		}
		return leaves
	}
	f, err := os.Create(filepath.Join(b.TempDir(), "bound"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	bound := func() {
		var all []byte
		var sum Hash
		for _, l := range fresh() {
			sum, all = LeafHash(l), append(all, l...)
		}
		if _, err := f.Write(append(all, sum[:]...)); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
	appending := func(sync bool) func() {
		tree := newTree(b, openDir(b, filepath.Join(b.TempDir(), "log")))
		return func() {
			if _, err := tree.AppendAll(fresh()); err != nil {
				b.Fatal(err)
			}
			if !sync {
				return
			}
			if err := tree.Sync(); err != nil {
				b.Fatal(err)
			}
		}
	}
	for b.Loop() {
		ratio.Print("log.append_tree_vs_bound", ratio.Of(25, ratio.Wall(4, bound), ratio.Wall(4, appending(false))))
		ratio.Print("log.append_tree_synced_vs_bound", ratio.Of(25, ratio.Wall(4, bound), ratio.Wall(4, appending(true))))
	}
}
