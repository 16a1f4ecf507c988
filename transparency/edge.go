package transparency

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"
)

// Edge is the right edge of a tree: what a tree needs to go on, without the full tiles.
// Appending to it gives the roots of the whole tree.
type Edge struct {
	Size uint64
	// Tiles[L] holds the hashes of the unfinished tile of level L, 32 bytes each; it is empty
	// where the level ends with a full tile.
	Tiles [][]byte
	// Bundle is the unfinished entry bundle (C2SP tlog-tiles).
	Bundle []byte
}

// Edge returns the right edge as it is now.
func (t *Tree) Edge() Edge {
	v := t.view()
	e := Edge{Size: uint64(v.size), Bundle: bytes.Clone(v.bundle)}
	for _, tile := range v.tiles {
		e.Tiles = append(e.Tiles, bytes.Clone(tile))
	}
	return e
}

// view checks that the parts of e belong together and returns the tree's view of it. That they
// belong to a log only a root can say.
func (e Edge) view() (view, error) {
	if e.Size > maxLogSize || len(e.Tiles) > levels(maxLogSize) {
		return view{}, fmt.Errorf("log: an edge of size %d with %d levels", e.Size, len(e.Tiles))
	}
	v := view{size: int64(e.Size), edge: make([]tlog.Hash, bits.Len64(e.Size)), bundle: slices.Clip(e.Bundle)}
	if want := levels(v.size); len(e.Tiles) != want {
		return view{}, fmt.Errorf("log: an edge of size %d with %d levels, want %d", e.Size, len(e.Tiles), want)
	}
	for level, data := range e.Tiles {
		last := lastTile(level, v.size)
		if len(data) != last.W*tlog.HashSize {
			return view{}, fmt.Errorf("log: the unfinished tile of level %d has %d bytes, want %d", level, len(data), last.W*tlog.HashSize)
		}
		v.tiles = append(v.tiles, slices.Clip(data))
		if last.W == 0 {
			continue
		}
		for bit := range torchwood.TileHeight {
			l := level*torchwood.TileHeight + bit
			if v.size>>l&1 == 0 {
				continue
			}
			h, err := tlog.HashFromTile(last, data, tlog.StoredHashIndex(l, v.size>>l-1))
			if err != nil {
				return view{}, fmt.Errorf("log: %w", err)
			}
			v.edge[l] = h
		}
	}
	return v, e.checkBundle()
}

// checkBundle demands that the bundle holds the leaves of the unfinished tile.
func (e Edge) checkBundle() error {
	rest, width := e.Bundle, int(e.Size%torchwood.TileWidth)
	for i := range width {
		leaf, after, err := torchwood.ReadTileEntry(rest)
		if err != nil {
			return fmt.Errorf("log: entry %d of the unfinished bundle: %w", i, err)
		}
		if h := tlog.RecordHash(leaf); !bytes.Equal(h[:], e.Tiles[0][i*tlog.HashSize:(i+1)*tlog.HashSize]) {
			return fmt.Errorf("log: entry %d of the unfinished bundle is not the one in the tree", i)
		}
		rest = after
	}
	if len(rest) != 0 {
		return fmt.Errorf("log: %d bytes behind the unfinished bundle", len(rest))
	}
	return nil
}

// Resume makes t, which must be shorter, the tree that e is the edge of. What lies between is
// missing until Fill is given it: until then proofs that need it fail. Whoever calls it knows
// that t and e are of one log.
func (t *Tree) Resume(e Edge) error {
	v, err := e.view()
	if err != nil {
		return err
	}
	t.writer.Lock()
	defer t.writer.Unlock()
	if t.failed != nil {
		return t.failed
	}
	if v.size < t.now.size {
		return fmt.Errorf("log: the edge has size %d, this tree %d", v.size, t.now.size)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.missing = missingTiles(t.now.size, v.size)
	t.now = v
	return nil
}

// missingTiles returns the full tiles that fill up between two sizes, upper levels first.
func missingTiles(from, to int64) []tlog.Tile {
	var out []tlog.Tile
	for level := levels(to) - 1; level >= 0; level-- {
		for n := lastTile(level, from).N; n < lastTile(level, to).N; n++ {
			out = append(out, tileAt(level, n, torchwood.TileWidth))
		}
	}
	for n := lastTile(entriesLevel, from).N; n < lastTile(entriesLevel, to).N; n++ {
		out = append(out, tileAt(entriesLevel, n, torchwood.TileWidth))
	}
	return out
}

// ErrForeignTile is wrapped by Fill's errors about tiles that are not of this log.
var ErrForeignTile = errors.New("not the tile of this log")

// Missing returns the name of a file that Fill wants next; "" if nothing is missing.
func (t *Tree) Missing() string {
	t.writer.Lock()
	defer t.writer.Unlock()
	if len(t.missing) == 0 {
		return ""
	}
	return torchwood.TilePath(t.missing[0])
}

// Fill stores the file that Missing named, once its content is the one that this tree's edge
// commits to. It returns the hashes of the leaves in it, where it is a tile of those, and the
// index of the first.
func (t *Tree) Fill(name string, data []byte) (first uint64, leaves []Hash, err error) {
	t.writer.Lock()
	defer t.writer.Unlock()
	if len(t.missing) == 0 || torchwood.TilePath(t.missing[0]) != name {
		return 0, nil, fmt.Errorf("log: %.100q is not missing", name)
	}
	tile := t.missing[0]
	first = uint64(tile.N) << torchwood.TileHeight
	if tile.L == entriesLevel {
		err = t.checkEntries(tile, data)
	} else {
		err = t.checkTile(tile, data)
	}
	if err != nil {
		return 0, nil, err
	}
	if err := t.put(name, data); err != nil {
		return 0, nil, fmt.Errorf("log: %s: %w", name, err)
	}
	t.missing = t.missing[1:]
	if tile.L != 0 {
		return 0, nil, nil
	}
	for b := data; len(b) > 0; b = b[tlog.HashSize:] {
		leaves = append(leaves, Hash(b[:tlog.HashSize]))
	}
	return first, leaves, nil
}

// checkTile holds a full tile against its own hash, which its parent has.
func (t *Tree) checkTile(tile tlog.Tile, data []byte) error {
	if len(data) != maxHashTile {
		return fmt.Errorf("log: %s: %d bytes, want %d: %w", torchwood.TilePath(tile), len(data), maxHashTile, ErrForeignTile)
	}
	r := &tileReader{store: t.store, view: t.now, read: map[tlog.Tile][]byte{}}
	top := torchwood.TileHeight * (tile.L + 1)
	parent, err := r.ReadHashes([]int64{tlog.StoredHashIndex(top, tile.N)})
	if err != nil {
		return err
	}
	left, err1 := tlog.HashFromTile(tile, data, tlog.StoredHashIndex(top-1, 2*tile.N))
	right, err2 := tlog.HashFromTile(tile, data, tlog.StoredHashIndex(top-1, 2*tile.N+1))
	if err1 != nil || err2 != nil || tlog.NodeHash(left, right) != parent[0] {
		return fmt.Errorf("log: %s: %w", torchwood.TilePath(tile), ErrForeignTile)
	}
	return nil
}

// checkEntries holds a full bundle against the hashes of its leaves.
func (t *Tree) checkEntries(tile tlog.Tile, data []byte) error {
	name := torchwood.TilePath(tile)
	if len(data) > maxBundle {
		return fmt.Errorf("log: %s: %d bytes, the limit is %d: %w", name, len(data), maxBundle, ErrForeignTile)
	}
	r := &tileReader{store: t.store, view: t.now, read: map[tlog.Tile][]byte{}}
	hashes, err := r.tile(0, tile.N)
	if err != nil {
		return err
	}
	rest := data
	for i := range torchwood.TileWidth {
		leaf, after, err := torchwood.ReadTileEntry(rest)
		if err != nil {
			return fmt.Errorf("log: %s: entry %d: %w", name, i, ErrForeignTile)
		}
		if h := tlog.RecordHash(leaf); !bytes.Equal(h[:], hashes[i*tlog.HashSize:(i+1)*tlog.HashSize]) {
			return fmt.Errorf("log: %s: entry %d: %w", name, i, ErrForeignTile)
		}
		rest = after
	}
	if len(rest) != 0 {
		return fmt.Errorf("log: %s: %d bytes behind it: %w", name, len(rest), ErrForeignTile)
	}
	return nil
}
