package transparency

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"testing"
)

// walkInSteps walks the log in a directory as walkDir does, but is stopped after every bundle,
// saved, and goes on from what was saved.
func walkInSteps(t testing.TB, location string) Walked {
	t.Helper()
	r, err := OpenReader(location)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cp, err := r.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := ParseCheckpoint(cp)
	if err != nil {
		t.Fatal(err)
	}
	w, next := NewWalker(), uint64(0)
	for range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		out, err := w.Walk(ctx, r, c, WalkOptions{Leaf: func(i uint64, _ []byte) error {
			if i != next {
				t.Errorf("leaf %d after %d", i, next)
			}
			next++
			return nil
		}, Progress: func(uint64, uint64) { cancel() }})
		cancel()
		if err == nil {
			return out
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		w = saved(t, w)
	}
	t.Fatal("does not end")
	return Walked{}
}

func saved(t testing.TB, w *Walker) *Walker {
	t.Helper()
	raw, err := w.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	next, err := UnmarshalWalker(raw)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// A walker follows a log from checkpoint to checkpoint, and the root at each is the one that
// the log had then.
func TestWalkerGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	tree := newTree(t, openDir(t, path))
	r, err := OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w, heads := NewWalker(), []Checkpoint{}
	for _, size := range []int{0, 1, 3, 3, 255, 256, 257, 511, 513, 1000, 1024, 66000} {
		before, _ := tree.Head()
		appendLeaves(t, tree, int(before), size)
		if err := tree.Publish(sign(t, tree)); err != nil {
			t.Fatal(err)
		}
		_, root := tree.Head()
		head := Checkpoint{testOrigin, uint64(size), root}
		next := before
		out, err := w.Walk(t.Context(), r, head, WalkOptions{Each: func(e Entry) error {
			if e.Index != next || e.Hash != LeafHash(leaf(int(next))) || e.Prepared != string(e.Leaf) {
				t.Errorf("%d: entry %d, prepared %v", next, e.Index, e.Prepared)
			}
			next++
			return nil
		}, Prepare: func(leaf []byte) any { return string(leaf) }})
		if err != nil || !out.Held || len(out.Findings) > 0 || next != uint64(size) || w.At() != uint64(size) {
			t.Fatalf("size %d: %+v, %v, up to %d", size, out, err, next)
		}
		w = saved(t, w)
		for _, old := range heads {
			if got, err := r.RootAt(t.Context(), head, old.Size); err != nil || got != old.Root {
				t.Fatalf("size %d: the root at size %d is %s, %v; want %s", size, old.Size, got, err, old.Root)
			}
		}
		heads = append(heads, head)
	}
	if _, err := w.Walk(t.Context(), r, heads[3], WalkOptions{}); err == nil {
		t.Error("walked to a smaller size")
	}
}

// What was read as the beginning of a bundle is held against the longer bundle that follows.
func TestWalkerSeesRewrittenTail(t *testing.T) {
	tree, path := publishedLog(t, 300)
	r, err := OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	_, root := tree.Head()
	w := NewWalker()
	if out, err := w.Walk(t.Context(), r, Checkpoint{testOrigin, 300, root}, WalkOptions{}); err != nil || !out.Held {
		t.Fatalf("%+v, %v", out, err)
	}
	appendLeaves(t, tree, 300, 400)
	if err := tree.Publish(sign(t, tree)); err != nil {
		t.Fatal(err)
	}
	x := tamper{t, path}
	x.entries("tile/entries/001.p/144", func(e [][]byte) [][]byte { e[7] = []byte("other"); return e })
	x.edit("tile/0/001.p/144", flip(32*9))
	_, root = tree.Head()
	out, err := w.Walk(t.Context(), r, Checkpoint{testOrigin, 400, root}, WalkOptions{})
	if err != nil || !out.Held || codes(out) != "263:entry_mismatch 265:tile_mismatch" {
		t.Errorf("%s, %+v, %v", codes(out), out, err)
	}
}

func TestUnmarshalWalkerRefuses(t *testing.T) {
	_, path := publishedLog(t, 600)
	w := NewWalker()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.Walk(ctx, r, Checkpoint{testOrigin, 600, Hash{1}}, WalkOptions{Progress: func(uint64, uint64) { cancel() }}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	good, err := w.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	again, err := UnmarshalWalker(good)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := again.MarshalBinary(); err != nil || !reflect.DeepEqual(back, good) {
		t.Errorf("%x, %v", back, err)
	}
	for i := range good {
		bad := append([]byte{}, good...)
		bad[i] ^= 1
		if w, err := UnmarshalWalker(bad); err == nil {
			if back, err := w.MarshalBinary(); err != nil || !reflect.DeepEqual(back, bad) {
				t.Errorf("byte %d flipped: decoded, and encodes to something else", i)
			}
		}
		if _, err := UnmarshalWalker(good[:i]); err == nil {
			t.Errorf("%d of %d bytes decoded", i, len(good))
		}
	}
	if _, err := UnmarshalWalker(append(good, 0)); err == nil {
		t.Error("a byte behind it was accepted")
	}
}

func FuzzUnmarshalWalker(f *testing.F) {
	raw, err := NewWalker().MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		w, err := UnmarshalWalker(raw)
		if err != nil {
			return
		}
		if back, err := w.MarshalBinary(); err != nil || string(back) != string(raw) {
			t.Errorf("%x encodes to %x, %v", raw, back, err)
		}
	})
}

// sameWalk requires that a walk in steps finds what one walk does.
func sameWalk(t testing.TB, location string, whole Walked) {
	t.Helper()
	steps := walkInSteps(t, location)
	if fmt.Sprintf("%+v", steps) != fmt.Sprintf("%+v", whole) {
		t.Errorf("in steps %+v\nat once  %+v", steps, whole)
	}
}

// A walk that is stopped where a tile above the leaves has just become full still looks at it.
func TestWalkerStopsAtFullTile(t *testing.T) {
	tree, path := publishedLog(t, 66_000)
	tamper{t, path}.edit("tile/1/000", flip(32*7))
	_, root := tree.Head()
	head := Checkpoint{testOrigin, 66_000, root}
	r, err := OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := NewWalker()
	if _, err := w.Walk(ctx, r, head, WalkOptions{Progress: func(done, _ uint64) {
		if done == 65_536 {
			cancel()
		}
	}}); !errors.Is(err, context.Canceled) || w.At() != 65_536 {
		t.Fatalf("%v at %d", err, w.At())
	}
	for _, w := range []*Walker{saved(t, w), w} {
		out, err := w.Walk(t.Context(), r, head, WalkOptions{})
		if err != nil || !out.Held || codes(out) != "1792:tile_mismatch" {
			t.Errorf("%s, %+v, %v", codes(out), out, err)
		}
	}
}
