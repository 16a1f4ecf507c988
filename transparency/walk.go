package transparency

import (
	"context"
	"fmt"

	"filippo.io/torchwood"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/tlog"
)

// WalkOptions are what happens while a log is read. Both may be nil.
type WalkOptions struct {
	// Leaf gets every leaf in order, before it is known whether the tree holds it, until
	// the first that cannot be read. Its error ends the walk and is returned by it. It
	// may keep the slice.
	Leaf func(index uint64, leaf []byte) error
	// Progress is called after every bundle.
	Progress func(done, size uint64)
}

// Walked is what a Walk found.
type Walked struct {
	Read     uint64 // leaves given to Leaf
	Root     Hash   // root of the entries as read; zero if they were not all there
	Findings []Finding
	More     int // findings beyond those listed
}

// Walk reads all entries and tiles of the log at a checkpoint, whose signatures it does
// not look at, and recomputes the tree. What is wrong with the log is in the Findings; an
// error means that the log could not be read to the end (ErrUnavailable, the context's, or
// Leaf's) and the Findings are those so far.
//
// Where an entry and its hash in the level-0 tile differ, the one that does not lead to
// the checkpoint's root is named. Where both lead to another root, the lowest tile that
// contradicts them bounds the place.
func (r *Reader) Walk(ctx context.Context, want Checkpoint, opts WalkOptions) (Walked, error) {
	if want.Size > maxLogSize {
		return Walked{}, fmt.Errorf("log: size %d, the limit is %d", want.Size, int64(maxLogSize))
	}
	w := &walker{r: r, want: want, opts: opts, entries: newLane(), tiles: newLane()}
	err := w.run(ctx)
	out := Walked{Read: w.read}
	if err == nil {
		out.Root = w.judge()
	}
	out.Findings, out.More = w.found.sorted(), w.found.more
	return out, err
}

// walker recomputes the tree twice: from the entries and from the level-0 tiles. Where one
// of the two is missing it borrows the other's hash; both missing is broken.
type walker struct {
	r    *Reader
	want Checkpoint
	opts WalkOptions

	entries, tiles *lane
	found          findings
	read           uint64
	gap            bool // an entry could not be read: Leaf gets no more
	missing        int  // files missing in a row
	broken         bool // a hash is unknown: no root can be computed

	runs []run // where entries and level-0 tiles differ
	cut  int   // differences beyond maxFindings runs
}

// run is a range of leaves, first and last included.
type run struct{ first, last uint64 }

// lane is one recomputation: the accumulator, and the hashes of the levels that tiles of
// level ≥ 1 hold, since the last such tile.
type lane struct {
	tree  *compact.Range
	nodes [][]Hash
	diffs findings // tiles of level ≥ 1 that hold something else
	first *Finding // the first of them: leaves are compared from the left, lower tiles first
}

func newLane() *lane {
	f := &compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	return &lane{tree: f.NewEmptyRange(0)}
}

func (l *lane) append(h Hash) error {
	return l.tree.Append(h[:], func(id compact.NodeID, hash []byte) {
		if id.Level == 0 || id.Level%torchwood.TileHeight != 0 {
			return
		}
		level := int(id.Level / torchwood.TileHeight)
		for len(l.nodes) <= level {
			l.nodes = append(l.nodes, nil)
		}
		l.nodes[level] = append(l.nodes[level], Hash(hash))
	})
}

func (l *lane) root() (Hash, error) {
	if l.tree.End() == 0 {
		return Hash(rfc6962.DefaultHasher.EmptyRoot()), nil
	}
	h, err := l.tree.GetRootHash(nil)
	if err != nil {
		return Hash{}, err
	}
	return Hash(h), nil
}

func (w *walker) run(ctx context.Context) error {
	size := int64(w.want.Size)
	for base := int64(0); base < size; base += torchwood.TileWidth {
		width := int(min(torchwood.TileWidth, size-base))
		if err := w.chunk(ctx, base>>torchwood.TileHeight, width); err != nil {
			return err
		}
		if w.missing > maxMissing {
			w.found.add(uint64(base), CodeEntriesMissing, fmt.Sprintf("%d files in a row are missing; the rest of %d entries was not looked for", w.missing, size))
			w.broken = true
			return nil
		}
		if w.opts.Progress != nil {
			w.opts.Progress(uint64(base)+uint64(width), w.want.Size)
		}
		if err := w.upper(ctx, false); err != nil {
			return err
		}
	}
	return w.upper(ctx, true)
}

// chunk reads one bundle and its level-0 tile.
func (w *walker) chunk(ctx context.Context, n int64, width int) error {
	base := uint64(n) << torchwood.TileHeight
	entries, problem, err := w.r.bundle(ctx, tileAt(entriesLevel, n, width))
	if err != nil {
		return err
	}
	w.note(base, problem)
	hashes, problem, err := w.r.hashTile(ctx, tileAt(0, n, width))
	if err != nil {
		return err
	}
	w.note(base, problem)
	for i, leaf := range entries {
		if w.gap || w.opts.Leaf == nil {
			break
		}
		if err := w.opts.Leaf(base+uint64(i), leaf); err != nil {
			return err
		}
		w.read++
	}
	w.gap = w.gap || len(entries) < width
	if w.broken = w.broken || len(entries) < width && len(hashes) < width; w.broken {
		return nil
	}
	for i := range width {
		if err := w.leaf(base+uint64(i), i, entries, hashes); err != nil {
			return err
		}
	}
	return nil
}

// leaf feeds both recomputations with leaf index, which is number i of its bundle and tile.
func (w *walker) leaf(index uint64, i int, entries [][]byte, hashes []Hash) error {
	var fromEntry, fromTile Hash
	if i < len(entries) {
		fromEntry = Hash(rfc6962.DefaultHasher.HashLeaf(entries[i]))
	} else {
		fromEntry = hashes[i]
	}
	if i < len(hashes) {
		fromTile = hashes[i]
	} else {
		fromTile = fromEntry
	}
	if fromEntry != fromTile {
		w.differ(index)
	}
	if err := w.entries.append(fromEntry); err != nil {
		return err
	}
	return w.tiles.append(fromTile)
}

func (w *walker) note(base uint64, p *fileProblem) {
	if p == nil {
		w.missing = 0
		return
	}
	if p.code == CodeEntriesMissing || p.code == CodeTileMissing {
		w.missing++
	}
	w.found.add(base+uint64(p.offset), p.code, p.message)
}

func (w *walker) differ(index uint64) {
	if n := len(w.runs); n > 0 && w.runs[n-1].last+1 == index {
		w.runs[n-1].last = index
		return
	}
	if len(w.runs) == maxFindings {
		w.cut++
		return
	}
	w.runs = append(w.runs, run{index, index})
}

// upper compares the tiles of level ≥ 1 that have become full, or at the end also the
// partial ones, with both recomputations.
func (w *walker) upper(ctx context.Context, end bool) error {
	if w.broken {
		return nil
	}
	for level := 1; level < len(w.entries.nodes); level++ {
		width := len(w.entries.nodes[level])
		if width == 0 || width < torchwood.TileWidth && !end {
			continue
		}
		count := int64(w.entries.tree.End()) >> (torchwood.TileHeight * level)
		tile := tileAt(level, (count-1)>>torchwood.TileHeight, width)
		hashes, problem, err := w.r.hashTile(ctx, tile)
		if err != nil {
			return err
		}
		if problem != nil {
			first := tile.N<<torchwood.TileHeight + int64(problem.offset)
			w.note(uint64(first)<<(torchwood.TileHeight*level), &fileProblem{problem.code, 0, problem.message})
		}
		for _, l := range []*lane{w.entries, w.tiles} {
			l.compare(tile, hashes)
			l.nodes[level] = l.nodes[level][:0]
		}
	}
	return nil
}

func (l *lane) compare(t tlog.Tile, hashes []Hash) {
	for i, h := range hashes {
		if h == l.nodes[t.L][i] {
			continue
		}
		first := uint64(t.N<<torchwood.TileHeight+int64(i)) << (torchwood.TileHeight * t.L)
		last := first + 1<<(torchwood.TileHeight*t.L) - 1
		f := Finding{first, CodeTileMismatch, fmt.Sprintf("%s holds another hash for leaves %d to %d than they give", torchwood.TilePath(t), first, last)}
		l.diffs.add(f.Index, f.Code, f.Message)
		if l.first == nil {
			l.first = &f
		}
	}
}

// judge turns differences into findings and returns the root of the entries.
func (w *walker) judge() Hash {
	if w.broken {
		return Hash{}
	}
	fromEntries, err1 := w.entries.root()
	fromTiles, err2 := w.tiles.root()
	if err1 != nil || err2 != nil {
		w.found.add(w.want.Size, CodeRootMismatch, fmt.Sprintf("no root: %v %v", err1, err2))
		return Hash{}
	}
	truth := w.entries // the recomputation that higher tiles are held against
	code, format := CodeEntryMismatch, "entry %s is not the one whose hash the tree holds"
	switch want := w.want.Root; {
	case fromEntries == want:
		code, format = CodeTileMismatch, "the level-0 tile holds another hash than entry %s gives, and the entry is the one in the tree"
	case fromTiles == want:
		truth = w.tiles
	default:
		index, where := w.want.Size, "nothing else says where they differ"
		if len(w.runs) > 0 {
			index, where = w.runs[0].first, fmt.Sprintf("entries and tiles first differ at leaf %d", w.runs[0].first)
		} else if w.entries.first != nil {
			index, where = w.entries.first.Index, "entries and level-0 tiles agree, but "+w.entries.first.Message
		}
		w.found.add(index, CodeRootMismatch, fmt.Sprintf("the checkpoint of size %d says root %s, the entries give %s; %s", w.want.Size, want, fromEntries, where))
	}
	for _, r := range w.runs {
		what := fmt.Sprint(r.first)
		if r.last > r.first {
			what = fmt.Sprintf("%d (and every following one to %d)", r.first, r.last)
		}
		w.found.add(r.first, code, fmt.Sprintf(format, what))
	}
	w.found.more += w.cut
	w.found.merge(truth.diffs)
	return fromEntries
}
