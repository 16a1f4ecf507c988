package transparency

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/attestmesh/meshnode/internal/durable"
)

// Every root, read while the tree grows and again afterwards, is the one that an
// implementation we did not use computes. 66,000 leaves reach the third tile level.
func TestRootsAgreeWithMerkle(t *testing.T) {
	f := &compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	r, tree := f.NewEmptyRange(0), newTree(t, nil)
	if got := tree.Root(); !bytes.Equal(got[:], rfc6962.DefaultHasher.EmptyRoot()) {
		t.Errorf("empty root %s", got)
	}
	roots := map[int]Hash{}
	for i := range 66_000 {
		appendLeaves(t, tree, i, i+1)
		if err := r.Append(rfc6962.DefaultHasher.HashLeaf(leaf(i)), nil); err != nil {
			t.Fatal(err)
		}
		if n := i + 1; n < 600 || n%251 == 0 || n > 65_500 && n < 65_600 {
			want, _ := r.GetRootHash(nil)
			if got := tree.Root(); !bytes.Equal(got[:], want) {
				t.Fatalf("root at %d: got %s, want %x", n, got, want)
			}
			roots[n] = tree.Root()
		}
	}
	for n, want := range roots {
		if n%17 != 0 {
			continue
		}
		if got, err := tree.RootAt(uint64(n)); err != nil || got != want {
			t.Errorf("RootAt(%d) = %s, %v; want %s", n, got, err, want)
		}
	}
	if _, err := tree.RootAt(66_001); err == nil {
		t.Error("a root beyond the size")
	}
}

// However often partial tiles were written on the way, root and full tiles are equal.
func TestBatchingDoesNotMatter(t *testing.T) {
	full := func(root string) map[string]string {
		all := files(t, root)
		for name := range all {
			if strings.Contains(name, ".p/") {
				delete(all, name)
			}
		}
		return all
	}
	const n = 1500
	plain := filepath.Join(t.TempDir(), "log")
	want := newTree(t, openDir(t, plain))
	appendLeaves(t, want, 0, n)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 5 {
		path := filepath.Join(t.TempDir(), "log")
		tree := newTree(t, openDir(t, path))
		for size := 0; size < n; {
			next := min(n, size+1+rng.IntN(200))
			appendLeaves(t, tree, size, next)
			size = next
			if err := tree.Flush(uint64(rng.IntN(size + 1))); err != nil {
				t.Fatal(err)
			}
		}
		if tree.Root() != want.Root() {
			t.Errorf("root %s, want %s", tree.Root(), want.Root())
		}
		got, wantFiles := full(path), full(plain)
		if len(got) != len(wantFiles) {
			t.Errorf("%d full tiles, want %d", len(got), len(wantFiles))
		}
		for name, data := range wantFiles {
			if got[name] != data {
				t.Errorf("%s differs", name)
			}
		}
	}
}

// Proofs of every kind verify with the library that did not make them.
func TestProofsAgreeWithMerkle(t *testing.T) {
	tree := newTree(t, openDir(t, filepath.Join(t.TempDir(), "log")))
	const n = 700
	appendLeaves(t, tree, 0, n)
	rng := rand.New(rand.NewPCG(3, 4))
	raw := func(in []Hash) (out [][]byte) {
		for _, h := range in {
			out = append(out, h[:])
		}
		return out
	}
	for range 300 {
		size := 1 + rng.Uint64N(n)
		i, older := rng.Uint64N(size), 1+rng.Uint64N(size)
		root, err := tree.RootAt(size)
		if err != nil {
			t.Fatal(err)
		}
		p, err := tree.InclusionProof(i, size)
		if err != nil {
			t.Fatal(err)
		}
		got, err := tree.Leaf(i)
		if err != nil || !bytes.Equal(got, leaf(int(i))) {
			t.Fatalf("Leaf(%d) = %q, %v", i, got, err)
		}
		if err := proof.VerifyInclusion(rfc6962.DefaultHasher, i, size, rfc6962.DefaultHasher.HashLeaf(got), raw(p), root[:]); err != nil {
			t.Fatalf("leaf %d in %d: %v", i, size, err)
		}
		oldRoot, err := tree.RootAt(older)
		if err != nil {
			t.Fatal(err)
		}
		p, err = tree.ConsistencyProof(older, size)
		if err != nil {
			t.Fatal(err)
		}
		if err := proof.VerifyConsistency(rfc6962.DefaultHasher, older, size, raw(p), oldRoot[:], root[:]); err != nil {
			t.Fatalf("%d to %d: %v", older, size, err)
		}
		a, b := Checkpoint{testOrigin, older, oldRoot}, Checkpoint{testOrigin, size, root}
		if err := VerifyConsistency(a, b, p); err != nil {
			t.Fatal(err)
		}
		b.Root[3] ^= 1
		if VerifyConsistency(a, b, p) == nil {
			t.Fatalf("%d to %d: a fork is consistent", older, size)
		}
	}
	for _, bad := range [][2]uint64{{n, n}, {0, n + 1}} {
		if _, err := tree.InclusionProof(bad[0], bad[1]); err == nil {
			t.Errorf("a proof of %v", bad)
		}
	}
	if _, err := tree.ConsistencyProof(0, 5); err == nil {
		t.Error("a consistency proof from size 0")
	}
	if _, err := tree.Leaf(n); err == nil {
		t.Error("a leaf beyond the size")
	}
}

// The bytes of tiles are fixed for ever; leaves are "a", "bb" and "".
func TestGoldenTiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	tree := newTree(t, openDir(t, path))
	for _, l := range []string{"a", "bb", ""} {
		if _, err := tree.Append([]byte(l)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tree.Flush(3); err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, name := range []string{"tile/entries/000.p/3", "tile/0/000.p/3"} {
		data, err := tree.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		got += fmt.Sprintf("%s %x\n", name, data)
	}
	got += "root " + tree.Root().String()
	// SHA-256("\x00a"), SHA-256("\x00bb") and SHA-256("\x00"), by sha256sum.
	const want = "tile/entries/000.p/3 00016100026262" + "0000\n" +
		"tile/0/000.p/3 022a6979e6dab7aa5ae4c3e5e45f7e977112a7e63593820dbec1ec738a24f93c" +
		"69372b398d6cc28945af8d2474c0b7661b6ab4587d2eb59364e914adf655fcee" +
		"6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d\n" +
		"root 5e2227d87da378625be56faa430e47d4e213afad4ed137737dda6fda5bb28b6a"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// Partial tiles stay as long as a reader of a published size needs them and no longer.
func TestPartialTilesGo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	tree := newTree(t, openDir(t, path))
	has := func(name string) bool {
		_, err := os.Stat(filepath.Join(path, name))
		return err == nil
	}
	appendLeaves(t, tree, 0, 10)
	if err := tree.Flush(10); err != nil {
		t.Fatal(err)
	}
	appendLeaves(t, tree, 10, 300)
	if err := tree.Flush(20); err != nil { // the tile is full by now
		t.Fatal(err)
	}
	for _, name := range []string{"tile/0/000.p/10", "tile/entries/000.p/10", "tile/0/000.p/20", "tile/entries/000.p/20", "tile/0/000", "tile/entries/000"} {
		if !has(name) {
			t.Errorf("%s is missing", name)
		}
	}
	if err := tree.Flush(300); err != nil {
		t.Fatal(err)
	}
	if has("tile/0/000.p") || has("tile/entries/000.p") || !has("tile/0/001.p/44") || !has("tile/1/000.p/1") {
		t.Errorf("after passing the full tile: %v", files(t, path))
	}
	if err := tree.Flush(301); err == nil {
		t.Error("flushed a size that does not exist")
	}
}

func TestNewTreeRefusesUsedDirectory(t *testing.T) {
	_, path := publishedLog(t, 3)
	if _, err := NewTree(openDir(t, path)); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("got %v", err)
	}
}

func TestLeafLimit(t *testing.T) {
	tree := newTree(t, nil)
	if _, err := tree.Append(make([]byte, MaxLeaf+1)); err == nil {
		t.Fatal("accepted")
	}
	if _, err := tree.Append(make([]byte, MaxLeaf)); err != nil {
		t.Fatal(err)
	}
	if got, err := tree.Leaf(0); err != nil || len(got) != MaxLeaf {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// The leaves of one command appear together, across a tile border too, or not at all.
func TestAppendAll(t *testing.T) {
	one, all := newTree(t, nil), newTree(t, nil)
	appendLeaves(t, one, 0, 600)
	var leaves [][]byte
	for i := range 600 {
		leaves = append(leaves, leaf(i))
	}
	for _, cut := range [][2]int{{0, 0}, {0, 1}, {1, 250}, {250, 600}} {
		first, err := all.AppendAll(leaves[cut[0]:cut[1]])
		if err != nil || first != uint64(cut[0]) || all.Size() != uint64(cut[1]) {
			t.Errorf("%v: first %d, size %d, %v", cut, first, all.Size(), err)
		}
	}
	if one.Root() != all.Root() {
		t.Errorf("roots %s and %s", one.Root(), all.Root())
	}
	if _, err := all.AppendAll([][]byte{{1}, make([]byte, MaxLeaf+1)}); err == nil || all.Size() != 600 {
		t.Errorf("with a leaf over the limit: size %d, %v", all.Size(), err)
	}
}

var errInjected = errors.New("injected")

// Every step of an append that fills tiles fails once. The error surfaces, the tree keeps
// its size and root, refuses to go on, and what is on disk still audits as the last
// published state.
func TestAppendFaults(t *testing.T) {
	steps := 0
	count := func(fail int) (*Tree, string, error) {
		path, armed, seen := filepath.Join(t.TempDir(), "log"), false, 0
		dir := openDir(t, path, durable.WithFault(func(durable.Op, string) error {
			if !armed {
				return nil
			}
			if seen++; seen == fail {
				return errInjected
			}
			return nil
		}))
		tree := newTree(t, dir)
		appendLeaves(t, tree, 0, 255)
		if err := tree.Publish(sign(t, tree)); err != nil {
			t.Fatal(err)
		}
		armed = true
		_, err := tree.Append(leaf(255))
		steps = seen
		return tree, path, err
	}
	if _, _, err := count(0); err != nil {
		t.Fatal(err)
	}
	total := steps
	if total < 6 {
		t.Fatalf("%d steps: the fault hook does not see both tiles", total)
	}
	for fail := 1; fail <= total; fail++ {
		tree, path, err := count(fail)
		if !errors.Is(err, errInjected) {
			t.Fatalf("step %d: got %v", fail, err)
		}
		if tree.Size() != 255 {
			t.Errorf("step %d: size %d", fail, tree.Size())
		}
		if _, err := tree.Append(leaf(255)); !errors.Is(err, errInjected) {
			t.Errorf("step %d: the next append: %v", fail, err)
		}
		if err := tree.Sync(); !errors.Is(err, errInjected) {
			t.Errorf("step %d: sync: %v", fail, err)
		}
		if w := walkDir(t, path); len(w.Findings) != 0 || w.Read != 255 {
			t.Errorf("step %d: %+v", fail, w)
		}
	}
}

// A publication that fails at any step leaves the earlier checkpoint readable, and
// succeeds when repeated.
func TestPublishFaults(t *testing.T) {
	for fail := 1; ; fail++ {
		path, armed, seen := filepath.Join(t.TempDir(), "log"), false, 0
		tree := newTree(t, openDir(t, path, durable.WithFault(func(durable.Op, string) error {
			if !armed {
				return nil
			}
			if seen++; seen == fail {
				return errInjected
			}
			return nil
		})))
		appendLeaves(t, tree, 0, 200)
		if err := tree.Publish(sign(t, tree)); err != nil {
			t.Fatal(err)
		}
		appendLeaves(t, tree, 200, 300)
		armed = true
		err := tree.Publish(sign(t, tree))
		if seen < fail {
			if err != nil {
				t.Fatal(err)
			}
			if fail < 10 {
				t.Fatalf("only %d steps", fail)
			}
			return
		}
		if !errors.Is(err, errInjected) {
			t.Fatalf("step %d: got %v", fail, err)
		}
		if w := walkDir(t, path); len(w.Findings) != 0 || w.Read != 200 {
			t.Errorf("step %d: after the failure %+v", fail, w)
		}
		if err := tree.Publish(sign(t, tree)); err != nil {
			t.Errorf("step %d: repeated: %v", fail, err)
		}
		if w := walkDir(t, path); len(w.Findings) != 0 || w.Read != 300 {
			t.Errorf("step %d: after repeating %+v", fail, w)
		}
	}
}

func TestPublishRefuses(t *testing.T) {
	tree := newTree(t, nil)
	appendLeaves(t, tree, 0, 5)
	old := sign(t, tree)
	if err := tree.Publish(old); err != nil {
		t.Fatal(err)
	}
	if err := tree.Publish(signHead(t, Checkpoint{testOrigin, 5, Hash{1}})); err == nil {
		t.Error("published another root")
	}
	if err := tree.Publish(signHead(t, Checkpoint{testOrigin, 6, tree.Root()})); err == nil {
		t.Error("published a size that does not exist")
	}
	appendLeaves(t, tree, 5, 9)
	if err := tree.Publish(sign(t, tree)); err != nil {
		t.Fatal(err)
	}
	if err := tree.Publish(old); err == nil {
		t.Error("published an older size")
	}
	for _, name := range []string{"../x", "tile/0/000.p/300", "tile/8/0/000", "", "tile/0/001"} {
		if _, err := tree.ReadFile(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("ReadFile(%q): %v", name, err)
		}
	}
}

// A host that edits tiles under a running node gets errors, not proofs and roots of its
// own making; the root, which is what the node cosigns, stays right.
func TestEditedDiskIsNotBelieved(t *testing.T) {
	tree, path := publishedLog(t, 600)
	want := tree.Root()
	for _, name := range []string{"tile/0/000", "tile/entries/000"} {
		file := filepath.Join(path, name)
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		edited := bytes.Clone(data)
		edited[len(edited)-1] ^= 1
		if err := os.WriteFile(file, edited, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := tree.Leaf(255); err == nil {
			t.Errorf("%s edited: the leaf was returned", name)
		}
		if name == "tile/0/000" {
			if _, err := tree.InclusionProof(254, 600); err == nil {
				t.Error("a proof from an edited tile")
			}
			if _, err := tree.RootAt(255); err == nil {
				t.Error("an old root from an edited tile")
			}
		}
		if tree.Root() != want {
			t.Error("the root changed")
		}
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// One writer, many readers; run with -race.
func TestConcurrentReaders(t *testing.T) {
	tree := newTree(t, openDir(t, filepath.Join(t.TempDir(), "log")))
	appendLeaves(t, tree, 0, 1)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for r := range 3 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(r), 1))
			for {
				select {
				case <-done:
					return
				default:
				}
				size, root := tree.Head()
				i := rng.Uint64N(size)
				p, err := tree.InclusionProof(i, size)
				if err != nil {
					t.Error(err)
					return
				}
				if err := tlog.CheckRecord(toTlog(p), int64(size), tlog.Hash(root), int64(i), tlog.RecordHash(leaf(int(i)))); err != nil {
					t.Errorf("leaf %d in %d: %v", i, size, err)
					return
				}
			}
		})
	}
	for i := 1; i < 900; i++ {
		appendLeaves(t, tree, i, i+1)
		if i%50 == 0 {
			if err := tree.Publish(sign(t, tree)); err != nil {
				t.Error(err)
			}
		}
	}
	if err := tree.Sync(); err != nil {
		t.Error(err)
	}
	close(done)
	wg.Wait()
}

// Two programs compute one root.
func TestAccumulatorIsTheTree(t *testing.T) {
	tree, acc := newTree(t, nil), NewAccumulator()
	for i := range 600 {
		if root, err := acc.Root(); err != nil || root != tree.Root() {
			t.Fatalf("size %d: %s, %v, want %s", i, root, err, tree.Root())
		}
		appendLeaves(t, tree, i, i+1)
		if err := acc.Append(leaf(i)); err != nil {
			t.Fatal(err)
		}
	}
}
