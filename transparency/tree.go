package transparency

import (
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"path"
	"slices"
	"sync"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/attestmesh/meshnode/internal/durable"
)

const (
	checkpointName = "checkpoint"
	entriesLevel   = -1 // tlog.Tile.L of an entry bundle
)

// Tree is the log as a seat's state machine builds it. Leaves are appended in the order
// of the Raft log; full tiles are written as they fill, partial ones by Flush and Publish.
// Nothing is synced but by Sync: the Raft log is what a tree is rebuilt from.
//
// One goroutine writes (Append, Flush, Publish, Sync; a second one waits), any number
// read. Memory holds the right edge of the tree only. What is read back from the
// directory is checked against that edge before it is used, so a host that edits tiles
// can break this node's proofs but not make it vouch for another history.
type Tree struct {
	store store

	writer    sync.Mutex         // held during every write
	failed    error              // owned by writer: the first lost write, for ever
	published int64              // owned by writer: size of the newest published checkpoint
	partials  map[tlog.Tile]bool // owned by writer: partial tiles in the store
	unsynced  map[string]bool    // owned by writer: files written since the last Sync
	missing   []tlog.Tile        // owned by writer: full tiles that Resume has skipped

	mu  sync.RWMutex
	now view // guarded by mu, replaced by the writer as a whole
}

// view is the tree at one size. Its slices are append-only: a view taken under the lock
// stays valid while the tree grows.
type view struct {
	size   int64
	edge   []tlog.Hash // edge[l] is the last complete subtree of 2^l leaves, where bit l of size is set
	tiles  [][]byte    // tiles[L] holds the hashes of the unfinished tile of level L
	bundle []byte      // the unfinished entry bundle
}

// NewTree returns an empty tree that writes into dir, which must be empty: every boot is
// a new identity and builds its tree anew, and two trees in one directory would be two
// histories. A nil dir keeps everything in memory, for simulations.
func NewTree(dir *durable.Dir) (*Tree, error) {
	t := &Tree{partials: map[tlog.Tile]bool{}, unsynced: map[string]bool{}}
	if dir == nil {
		t.store = &memStore{files: map[string][]byte{}}
		return t, nil
	}
	old, err := os.ReadDir(dir.Path())
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	if len(old) > 0 {
		return nil, fmt.Errorf("log: %s is not empty (it holds %q); a tree starts in an empty directory", dir.Path(), old[0].Name())
	}
	t.store = dirStore{dir}
	return t, nil
}

// Append adds a leaf and returns its index: AppendAll of one.
func (t *Tree) Append(leaf []byte) (uint64, error) { return t.AppendAll([][]byte{leaf}) }

// AppendAll adds the leaves of one command, which readers see all at once, and returns the
// index of the first. If one is over MaxLeaf all are refused without effect.
// When a full tile cannot be written the tree stays as it was and refuses every later
// Append with the same error: a state machine that skipped a leaf would build another
// history, so it must stop.
func (t *Tree) AppendAll(leaves [][]byte) (first uint64, err error) {
	for _, leaf := range leaves {
		if len(leaf) > MaxLeaf {
			return 0, fmt.Errorf("log: a leaf of %d bytes, the limit is %d", len(leaf), MaxLeaf)
		}
	}
	t.writer.Lock()
	defer t.writer.Unlock()
	if t.failed != nil {
		return 0, t.failed
	}
	next := t.now // only the writer replaces it
	first = uint64(next.size)
	for _, leaf := range leaves {
		var full []fullTile
		if next, full, err = next.grow(leaf); err != nil {
			return 0, err
		}
		for _, f := range full {
			if err := t.put(torchwood.TilePath(f.tile), f.data); err != nil {
				t.failed = fmt.Errorf("log: leaf %d is not stored: %w", next.size-1, err)
				return 0, t.failed
			}
		}
	}
	t.mu.Lock()
	t.now = next
	t.mu.Unlock()
	return first, nil
}

type fullTile struct {
	tile tlog.Tile
	data []byte
}

// grow returns the view after one more leaf, and the tiles that this leaf filled.
func (v view) grow(leaf []byte) (view, []fullTile, error) {
	hashes, err := tlog.StoredHashesForRecordHash(v.size, tlog.RecordHash(leaf), v.edgeReader())
	if err != nil {
		return view{}, nil, fmt.Errorf("log: %w", err)
	}
	next := view{size: v.size + 1, edge: slices.Clone(v.edge), tiles: slices.Clone(v.tiles)}
	top := len(hashes) - 1
	for len(next.edge) <= top {
		next.edge = append(next.edge, tlog.Hash{})
	}
	next.edge[top] = hashes[top]
	var full []fullTile
	if next.bundle, err = torchwood.AppendTileEntry(v.bundle, leaf); err != nil {
		return view{}, nil, fmt.Errorf("log: %w", err)
	}
	if next.size%torchwood.TileWidth == 0 {
		full = append(full, fullTile{tileAt(entriesLevel, v.size>>torchwood.TileHeight, torchwood.TileWidth), next.bundle})
		next.bundle = nil
	}
	for level := 0; level*torchwood.TileHeight <= top; level++ {
		if len(next.tiles) == level {
			next.tiles = append(next.tiles, nil)
		}
		h := hashes[level*torchwood.TileHeight]
		next.tiles[level] = append(next.tiles[level], h[:]...)
		if len(next.tiles[level]) == maxHashTile {
			n := v.size >> (torchwood.TileHeight * (level + 1))
			full = append(full, fullTile{tileAt(level, n, torchwood.TileWidth), next.tiles[level]})
			next.tiles[level] = nil
		}
	}
	return next, full, nil
}

func tileAt(level int, n int64, width int) tlog.Tile {
	return tlog.Tile{H: torchwood.TileHeight, L: level, N: n, W: width}
}

// edgeReader reads hashes of complete subtrees on the right edge, all that appending a
// leaf and computing the root ask for.
func (v view) edgeReader() tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			level, _ := tlog.SplitStoredHashIndex(x)
			if level >= len(v.edge) {
				return nil, fmt.Errorf("log: hash %d is not on the right edge of size %d", x, v.size)
			}
			out[i] = v.edge[level]
		}
		return out, nil
	})
}

func (v view) root() (tlog.Hash, error) { return tlog.TreeHash(v.size, v.edgeReader()) }

// put writes one file and remembers it for Sync. The writer lock is held.
func (t *Tree) put(name string, data []byte) error {
	if err := t.store.put(name, data); err != nil {
		return err
	}
	t.unsynced[name] = true
	return nil
}

// Flush writes the partial tiles of the tree at size, which readers of a checkpoint of
// that size need, and removes partial tiles whose full tile lies below it. A failed Flush
// may be repeated.
func (t *Tree) Flush(size uint64) error {
	t.writer.Lock()
	defer t.writer.Unlock()
	return t.flush(size)
}

func (t *Tree) flush(size uint64) error {
	v := t.now
	if size > uint64(v.size) {
		return fmt.Errorf("log: flush at size %d, the tree has %d", size, v.size)
	}
	for level := entriesLevel; level < len(v.tiles); level++ {
		tile := lastTile(level, int64(size))
		if tile.W == 0 || t.partials[tile] {
			continue
		}
		data, err := t.prefix(v, tile)
		if err != nil {
			return err
		}
		if err := t.put(torchwood.TilePath(tile), data); err != nil {
			return fmt.Errorf("log: partial tiles of size %d: %w", size, err)
		}
		t.partials[tile] = true
	}
	return t.dropPartials(int64(size))
}

// lastTile returns the unfinished tile of a level in the tree of a size; its width may be 0.
func lastTile(level int, size int64) tlog.Tile {
	n := size >> (torchwood.TileHeight * max(level, 0))
	return tileAt(level, n>>torchwood.TileHeight, int(n%torchwood.TileWidth))
}

// prefix returns the data of a partial tile, from memory or, if it has filled up since,
// from the store.
func (t *Tree) prefix(v view, tile tlog.Tile) ([]byte, error) {
	if tile.L >= 0 {
		r := &tileReader{store: t.store, view: v, read: map[tlog.Tile][]byte{}}
		data, err := r.tile(tile.L, tile.N)
		if err != nil {
			return nil, err
		}
		return data[:tile.W*tlog.HashSize], nil
	}
	data := v.bundle
	if tile.N != v.size>>torchwood.TileHeight {
		var err error
		if data, err = t.store.get(torchwood.TilePath(tileAt(entriesLevel, tile.N, torchwood.TileWidth)), maxBundle); err != nil {
			return nil, fmt.Errorf("log: %w", err)
		}
	}
	rest := data
	for range tile.W {
		var err error
		if _, rest, err = torchwood.ReadTileEntry(rest); err != nil {
			return nil, fmt.Errorf("log: entries from %d: %w", tile.N<<torchwood.TileHeight, err)
		}
	}
	return data[:len(data)-len(rest)], nil
}

func (t *Tree) dropPartials(size int64) error {
	dirs := map[string]bool{}
	for tile := range t.partials {
		if tile.N >= lastTile(tile.L, size).N {
			continue
		}
		name := torchwood.TilePath(tile)
		if err := t.store.drop(name); err != nil {
			return fmt.Errorf("log: remove %s: %w", name, err)
		}
		delete(t.partials, tile)
		delete(t.unsynced, name)
		dirs[path.Dir(name)] = true
	}
	for dir := range dirs {
		if err := t.store.drop(dir); err != nil {
			return fmt.Errorf("log: remove %s: %w", dir, err)
		}
	}
	return nil
}

// Publish makes a signed checkpoint of this tree readable: first the partial tiles of its
// size, then the file "checkpoint". It checks that size and root are this tree's and that
// the size is not below the one published last; the signatures are the caller's concern.
func (t *Tree) Publish(checkpoint []byte) error {
	c, err := ParseCheckpoint(checkpoint)
	if err != nil {
		return err
	}
	root, err := t.RootAt(c.Size)
	if err != nil {
		return err
	}
	if root != c.Root {
		return fmt.Errorf("log: a checkpoint of size %d with root %s, this tree has %s; not published", c.Size, c.Root, root)
	}
	t.writer.Lock()
	defer t.writer.Unlock()
	if int64(c.Size) < t.published {
		return fmt.Errorf("log: a checkpoint of size %d after one of size %d; not published", c.Size, t.published)
	}
	if err := t.flush(c.Size); err != nil {
		return err
	}
	if err := t.put(checkpointName, checkpoint); err != nil {
		return fmt.Errorf("log: publish size %d: %w", c.Size, err)
	}
	t.published = int64(c.Size)
	return nil
}

// Sync makes everything written so far durable. A failed Sync is final, as with Append.
func (t *Tree) Sync() error {
	t.writer.Lock()
	defer t.writer.Unlock()
	if t.failed != nil {
		return t.failed
	}
	if len(t.unsynced) == 0 {
		return nil
	}
	names := make([]string, 0, len(t.unsynced))
	for name := range t.unsynced {
		names = append(names, name)
	}
	slices.Sort(names)
	if err := t.store.sync(names); err != nil {
		t.failed = fmt.Errorf("log: sync: %w", err)
		return t.failed
	}
	clear(t.unsynced)
	return nil
}

// ReadFile returns a file of the log by its C2SP name ("checkpoint" or a tile path), for
// serving. Other names and absent files wrap fs.ErrNotExist.
func (t *Tree) ReadFile(name string) ([]byte, error) {
	limit := int64(maxBundle)
	if name == checkpointName {
		limit = maxNote
	} else if _, err := torchwood.ParseTilePath(name); err != nil {
		return nil, fmt.Errorf("log: %.100q: %w", name, fs.ErrNotExist)
	}
	return t.store.get(name, limit)
}

func (t *Tree) view() view {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.now
}

// levels is how many tile levels a tree of a size has.
func levels(size int64) int {
	return (bits.Len64(uint64(size)) + torchwood.TileHeight - 1) / torchwood.TileHeight
}
