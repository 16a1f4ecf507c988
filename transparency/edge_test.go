package transparency

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// grown returns a tree of n leaves.
func grown(t *testing.T, n int) *Tree {
	t.Helper()
	tree := newTree(t, nil)
	appendLeaves(t, tree, 0, n)
	return tree
}

// A tree that goes on from another's edge has the same roots, and after it was given the tiles
// the same leaves and proofs.
func TestResume(t *testing.T) {
	for _, n := range []int{0, 1, 7, 255, 256, 257, 600, 65535, 65536, 66000} {
		whole, resumed := grown(t, n), newTree(t, nil)
		if err := resumed.Resume(whole.Edge()); err != nil {
			t.Fatalf("%d: %v", n, err)
		}
		const more = 300
		for _, tree := range []*Tree{whole, resumed} {
			appendLeaves(t, tree, n, n+more)
		}
		for size := n; size <= n+more; size += 20 {
			want, err1 := whole.RootAt(uint64(size))
			got, err2 := resumed.RootAt(uint64(size))
			if err1 != nil || err2 != nil || got != want {
				t.Fatalf("%d: root at %d: %s (%v), want %s (%v)", n, size, got, err2, want, err1)
			}
		}
		if _, err := resumed.Leaf(0); n >= 256 && err == nil {
			t.Errorf("%d: a leaf that is missing was found", n)
		}
		hashes := 0
		for name := resumed.Missing(); name != ""; name = resumed.Missing() {
			data, err := whole.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, bad := range [][]byte{nil, data[:len(data)-1], append(bytes.Clone(data), 0), flipAt(data, 0), flipAt(data, len(data)-1)} {
				if _, _, err := resumed.Fill(name, bad); !errors.Is(err, ErrForeignTile) {
					t.Fatalf("%d: %s with another content: %v", n, name, err)
				}
			}
			first, leaves, err := resumed.Fill(name, data)
			if err != nil {
				t.Fatalf("%d: %v", n, err)
			}
			for i, h := range leaves {
				if h != LeafHash(leaf(int(first)+i)) {
					t.Fatalf("%d: leaf %d has another hash", n, int(first)+i)
				}
			}
			hashes += len(leaves)
		}
		if hashes != n/256*256 {
			t.Errorf("%d: %d leaf hashes, want %d", n, hashes, n/256*256)
		}
		for i := 0; i < n; i += 1 + n/17 {
			if got, err := resumed.Leaf(uint64(i)); err != nil || !bytes.Equal(got, leaf(i)) {
				t.Fatalf("%d: leaf %d: %v", n, i, err)
			}
			want, err1 := whole.InclusionProof(uint64(i), uint64(n+more))
			got, err2 := resumed.InclusionProof(uint64(i), uint64(n+more))
			if err1 != nil || err2 != nil || len(got) != len(want) {
				t.Fatalf("%d: proof of %d: %v, %v", n, i, err1, err2)
			}
		}
		if _, _, err := resumed.Fill("tile/0/000", nil); err == nil {
			t.Errorf("%d: a file that is not missing was taken", n)
		}
	}
}

func flipAt(data []byte, i int) []byte {
	out := bytes.Clone(data)
	out[i] ^= 1
	return out
}

// A tree that has a beginning keeps its tiles and misses only what came after.
func TestResumeLongerTree(t *testing.T) {
	whole, behind := grown(t, 1000), grown(t, 300)
	if err := behind.Resume(whole.Edge()); err != nil {
		t.Fatal(err)
	}
	var missing []string
	for name := behind.Missing(); name != ""; name = behind.Missing() {
		data, err := whole.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := behind.Fill(name, data); err != nil {
			t.Fatal(err)
		}
		missing = append(missing, name)
	}
	if got := strings.Join(missing, " "); got != "tile/0/001 tile/0/002 tile/entries/001 tile/entries/002" {
		t.Errorf("missing were %s", got)
	}
	if got, err := behind.Leaf(10); err != nil || !bytes.Equal(got, leaf(10)) {
		t.Errorf("an old leaf: %v", err)
	}
	if err := whole.Resume(grown(t, 300).Edge()); err == nil {
		t.Error("a tree was made shorter")
	}
}

func TestEdgeRefused(t *testing.T) {
	for name, c := range map[string]struct {
		alter func(e *Edge)
		want  string
	}{
		"size":           {func(e *Edge) { e.Size++ }, "bytes, want"},
		"huge":           {func(e *Edge) { e.Size = 1 << 41 }, "an edge of size"},
		"level missing":  {func(e *Edge) { e.Tiles = e.Tiles[:1] }, "levels"},
		"level too many": {func(e *Edge) { e.Tiles = append(e.Tiles, nil) }, "levels"},
		"tile cut":       {func(e *Edge) { e.Tiles[0] = e.Tiles[0][32:] }, "bytes, want"},
		"no bundle":      {func(e *Edge) { e.Bundle = nil }, "entry 0"},
		"bundle cut":     {func(e *Edge) { e.Bundle = e.Bundle[:len(e.Bundle)-1] }, "unfinished bundle"},
		"bundle longer":  {func(e *Edge) { e.Bundle = append(e.Bundle, 0) }, "bytes behind"},
		"entry altered":  {func(e *Edge) { e.Bundle = flipAt(e.Bundle, 5) }, "is not the one in the tree"},
		"hash altered":   {func(e *Edge) { e.Tiles[0] = flipAt(e.Tiles[0], 3) }, "is not the one in the tree"},
	} {
		e := grown(t, 600).Edge()
		c.alter(&e)
		if err := newTree(t, nil).Resume(e); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	// What nothing in the edge itself shows, the root does.
	e := grown(t, 600).Edge()
	e.Tiles[1] = flipAt(e.Tiles[1], 3)
	tree := newTree(t, nil)
	if err := tree.Resume(e); err != nil || tree.Root() == grown(t, 600).Root() {
		t.Errorf("an altered hash of full tiles: %v", err)
	}
}
