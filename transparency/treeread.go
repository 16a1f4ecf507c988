package transparency

import (
	"fmt"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"
)

// Size returns the number of leaves.
func (t *Tree) Size() uint64 { return uint64(t.view().size) }

// Root returns the root at Size. It is computed from memory alone.
func (t *Tree) Root() Hash {
	h, err := t.view().root()
	if err != nil { // the edge of a view is complete
		panic(err)
	}
	return Hash(h)
}

// Head returns size and root of the same moment.
func (t *Tree) Head() (size uint64, root Hash) {
	v := t.view()
	h, err := v.root()
	if err != nil {
		panic(err)
	}
	return uint64(v.size), Hash(h)
}

// RootAt returns the root the tree had at an earlier size.
func (t *Tree) RootAt(size uint64) (Hash, error) {
	v := t.view()
	r, err := t.reader(v, size)
	if err != nil {
		return Hash{}, err
	}
	h, err := tlog.TreeHash(int64(size), r)
	return Hash(h), err
}

// Leaf returns leaf i.
func (t *Tree) Leaf(i uint64) ([]byte, error) {
	v := t.view()
	if i >= uint64(v.size) {
		return nil, fmt.Errorf("log: leaf %d, the size is %d", i, v.size)
	}
	r, err := t.reader(v, uint64(v.size))
	if err != nil {
		return nil, err
	}
	bundle, n := v.bundle, int64(i)>>torchwood.TileHeight
	if n != v.size>>torchwood.TileHeight {
		name := torchwood.TilePath(tileAt(entriesLevel, n, torchwood.TileWidth))
		if bundle, err = t.store.get(name, maxBundle); err != nil {
			return nil, fmt.Errorf("log: leaf %d: %w", i, err)
		}
	}
	var leaf []byte
	for range i%torchwood.TileWidth + 1 {
		if leaf, bundle, err = torchwood.ReadTileEntry(bundle); err != nil {
			return nil, fmt.Errorf("log: leaf %d: %w", i, err)
		}
	}
	want, err := r.ReadHashes([]int64{tlog.StoredHashIndex(0, int64(i))})
	if err != nil {
		return nil, fmt.Errorf("log: leaf %d: %w", i, err)
	}
	if tlog.RecordHash(leaf) != want[0] {
		return nil, fmt.Errorf("log: leaf %d as read back is not the one appended", i)
	}
	return append([]byte(nil), leaf...), nil
}

// InclusionProof proves leaf i in the tree of a size.
func (t *Tree) InclusionProof(i, size uint64) ([]Hash, error) {
	r, err := t.reader(t.view(), size)
	if err != nil {
		return nil, err
	}
	if i >= size {
		return nil, fmt.Errorf("log: proof of leaf %d in a tree of size %d", i, size)
	}
	p, err := tlog.ProveRecord(int64(size), int64(i), r)
	if err != nil {
		return nil, fmt.Errorf("log: proof of leaf %d: %w", i, err)
	}
	return fromTlog(p), nil
}

// ConsistencyProof proves that the tree of size b continues the tree of size a.
func (t *Tree) ConsistencyProof(a, b uint64) ([]Hash, error) {
	r, err := t.reader(t.view(), b)
	if err != nil {
		return nil, err
	}
	if a == 0 || a > b {
		return nil, fmt.Errorf("log: consistency of sizes %d and %d: want 0 < a ≤ b", a, b)
	}
	p, err := tlog.ProveTree(int64(b), int64(a), r)
	if err != nil {
		return nil, fmt.Errorf("log: consistency of sizes %d and %d: %w", a, b, err)
	}
	return fromTlog(p), nil
}

// VerifyConsistency checks a ConsistencyProof between two checkpoints of one origin.
func VerifyConsistency(older, newer Checkpoint, proof []Hash) error {
	if older.Origin != newer.Origin {
		return fmt.Errorf("consistency: origins %q and %q", older.Origin, newer.Origin)
	}
	if older.Size == 0 || older.Size > newer.Size || newer.Size > maxLogSize {
		return fmt.Errorf("consistency: sizes %d and %d: want 0 < older ≤ newer", older.Size, newer.Size)
	}
	err := tlog.CheckTree(toTlog(proof), int64(newer.Size), tlog.Hash(newer.Root), int64(older.Size), tlog.Hash(older.Root))
	if err != nil {
		return fmt.Errorf("consistency: sizes %d and %d are not one history: %w", older.Size, newer.Size, err)
	}
	return nil
}

// reader reads any hash of a complete subtree in a view. size is the largest tree the
// caller will ask about.
func (t *Tree) reader(v view, size uint64) (tlog.HashReader, error) {
	if size > uint64(v.size) {
		return nil, fmt.Errorf("log: size %d, the tree has %d", size, v.size)
	}
	return &tileReader{store: t.store, view: v, read: map[tlog.Tile][]byte{}}, nil
}

// tileReader reads unfinished tiles from a view and full ones from the store. A full tile
// counts only if its hash is the one its parent holds, up to a tile in memory.
// (tlog.TileHashReader would do the same, but before x/mod v0.41 it leaves out that check
// for some tiles of trees whose right edge shares tiles.)
type tileReader struct {
	store store
	view  view
	read  map[tlog.Tile][]byte // full tiles that were checked
}

// ReadHashes implements tlog.HashReader.
func (r *tileReader) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		t := tlog.TileForIndex(torchwood.TileHeight, x)
		data, err := r.tile(t.L, t.N)
		if err != nil {
			return nil, err
		}
		t.W = len(data) / tlog.HashSize
		if out[i], err = tlog.HashFromTile(t, data, x); err != nil {
			return nil, fmt.Errorf("log: %w", err)
		}
	}
	return out, nil
}

// tile returns what is known of a tile.
func (r *tileReader) tile(level int, n int64) ([]byte, error) {
	if level >= len(r.view.tiles) || n > lastTile(level, r.view.size).N {
		return nil, fmt.Errorf("log: no tile %d of level %d in a tree of size %d", n, level, r.view.size)
	}
	if n == lastTile(level, r.view.size).N {
		return r.view.tiles[level], nil
	}
	t := tileAt(level, n, torchwood.TileWidth)
	if data, ok := r.read[t]; ok {
		return data, nil
	}
	name := torchwood.TilePath(t)
	data, err := r.store.get(name, maxHashTile)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	top := torchwood.TileHeight * (level + 1) // level of the tile's own hash in the tree
	parent, err := r.ReadHashes([]int64{tlog.StoredHashIndex(top, n)})
	if err != nil {
		return nil, err
	}
	left, err1 := tlog.HashFromTile(t, data, tlog.StoredHashIndex(top-1, 2*n))
	right, err2 := tlog.HashFromTile(t, data, tlog.StoredHashIndex(top-1, 2*n+1))
	if err1 != nil || err2 != nil || tlog.NodeHash(left, right) != parent[0] {
		return nil, fmt.Errorf("log: %s as read back is not the tile written", name)
	}
	r.read[t] = data
	return data, nil
}
