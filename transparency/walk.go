package transparency

import (
	"context"
	"errors"
	"fmt"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"
)

// WalkOptions are what happens while a log is read. All may be nil.
type WalkOptions struct {
	// Leaf gets every leaf in order, before it is known whether the tree holds it, until
	// the first that cannot be read. Its error ends the walk and is returned by it. It
	// may keep the slice.
	Leaf func(index uint64, leaf []byte) error
	// Each is Leaf with what is known of the leaf besides.
	Each func(Entry) error
	// Prepare is called with every leaf ahead of Each, on several goroutines and in no order.
	Prepare func(leaf []byte) any
	// Progress is called after every bundle; a Walker can be saved then.
	Progress func(done, size uint64)
}

// Entry is one leaf of a walk.
type Entry struct {
	Index uint64
	Leaf  []byte
	Hash  Hash
	// Prepared is what Prepare returned for Leaf.
	Prepared any
}

// Walked is what a Walk found.
type Walked struct {
	Read     uint64 // leaves given to Leaf
	Root     Hash   // root of the entries as read; zero if they were not all there
	Findings []Finding
	More     int // findings beyond those listed
	// Held says that every entry was there and that they give the checkpoint's root.
	Held bool
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
	return NewWalker().Walk(ctx, r, want, opts)
}

// Walker walks a log that grows: each Walk goes on where the one before ended, be that at its
// checkpoint or, after the context's error or ErrUnavailable, at a full bundle before. It
// recomputes the tree twice: from the entries and from the level-0 tiles. Where one of the two
// is missing it borrows the other's hash; both missing is broken.
type Walker struct {
	entries, tiles *lane
	found          findings
	at             uint64 // leaves looked at
	read           uint64
	gap            bool // an entry could not be read: Leaf gets no more
	missing        int  // files missing in a row
	broken         bool // a hash is unknown: no root can be computed

	runs []run // where entries and level-0 tiles differ
	cut  int   // differences beyond maxFindings runs

	over error // why there is nothing to go on from
}

// run is a range of leaves, first and last included.
type run struct{ first, last uint64 }

// NewWalker returns a walker before the first leaf.
func NewWalker() *Walker { return &Walker{entries: newLane(), tiles: newLane()} }

// At returns how many leaves were looked at.
func (w *Walker) At() uint64 { return w.at }

// Read returns how many leaves were given to Leaf.
func (w *Walker) Read() uint64 { return w.read }

// Accumulator returns one of the leaves that were read, where none is missing.
func (w *Walker) Accumulator() *Accumulator { return &Accumulator{cloneRange(w.entries.tree)} }

// Walk is Reader.Walk from where w is. A checkpoint of fewer leaves is refused. After a Walk
// that did not hold, or that Leaf has ended, w can go no further.
func (w *Walker) Walk(ctx context.Context, r *Reader, want Checkpoint, opts WalkOptions) (Walked, error) {
	switch {
	case w.over != nil:
		return Walked{Read: w.read}, w.over
	case want.Size > maxLogSize:
		return Walked{Read: w.read}, fmt.Errorf("log: size %d, the limit is %d", want.Size, int64(maxLogSize))
	case want.Size < w.at:
		return Walked{Read: w.read}, fmt.Errorf("log: size %d, but %d leaves were read before", want.Size, w.at)
	}
	err := (&walk{w, r, want, opts}).run(ctx)
	out := Walked{Read: w.read}
	if err == nil {
		out.Root = w.judge(want)
		out.Held = !w.broken && !w.gap && out.Root == want.Root
	} else if !errors.Is(err, ErrUnavailable) && ctx.Err() == nil {
		w.over = fmt.Errorf("log: the walk was ended at leaf %d", w.at)
	}
	out.Findings, out.More = w.found.sorted(), w.found.more
	switch {
	case out.Held:
		w.settle()
	case err == nil:
		w.over = fmt.Errorf("log: the leaves read so far are not those of the checkpoint of size %d", want.Size)
	}
	return out, err
}

// settle goes on from the entries, which are in the tree, and from no finding.
func (w *Walker) settle() {
	w.entries.diffs, w.entries.first = findings{}, nil
	w.tiles = w.entries.clone()
	w.found, w.runs, w.cut = findings{}, nil, 0
}

// walk is one Walk.
type walk struct {
	*Walker
	r    *Reader
	want Checkpoint
	opts WalkOptions
}

func (w *walk) run(ctx context.Context) error {
	ahead := w.readAhead(ctx)
	defer ahead.stop()
	for {
		if err := w.upper(ctx, false); err != nil {
			return err
		}
		if w.at == w.want.Size {
			return w.upper(ctx, true)
		}
		b, err := ahead.next(ctx)
		if err != nil {
			return err
		}
		if err := w.bundle(b); err != nil {
			return err
		}
		if w.missing > maxMissing {
			w.found.add(b.base(), CodeEntriesMissing, fmt.Sprintf("%d files in a row are missing; the rest of %d entries was not looked for", w.missing, w.want.Size))
			w.broken = true
			return nil
		}
		if w.opts.Progress != nil {
			w.opts.Progress(w.at, w.want.Size)
		}
	}
}

// bundle takes one bundle and its level-0 tile, from leaf w.at on.
func (w *walk) bundle(b *bundleRead) error {
	if b.err != nil {
		return b.err
	}
	base := b.base()
	w.note(base, b.entryProblem)
	w.note(base, b.tileProblem)
	w.compareTail(b)
	unknown := len(b.entries) < b.width && len(b.hashes) < b.width
	for i := int(w.at - base); i < b.width; i++ {
		if i < len(b.entries) && !w.gap {
			if err := w.give(b, i); err != nil {
				return err
			}
			w.read++
		}
		w.gap = w.gap || i >= len(b.entries)
		if w.broken = w.broken || unknown; w.broken {
			continue
		}
		if err := w.leaf(base+uint64(i), i, b); err != nil {
			return err
		}
	}
	w.at = base + uint64(b.width)
	return nil
}

func (w *walk) give(b *bundleRead, i int) error {
	e := b.entries[i]
	if w.opts.Leaf != nil {
		if err := w.opts.Leaf(e.Index, e.Leaf); err != nil {
			return err
		}
	}
	if w.opts.Each != nil {
		return w.opts.Each(e)
	}
	return nil
}

// compareTail holds what a bundle says of leaves that were read before, as a shorter bundle,
// against what they were: those are in the tree.
func (w *walk) compareTail(b *bundleRead) {
	for i, h := range w.entries.nodes[0] {
		if i < len(b.entries) && b.entries[i].Hash != h {
			w.found.add(b.base()+uint64(i), CodeEntryMismatch, fmt.Sprintf("entry %d is not the one that was read before", b.base()+uint64(i)))
		}
		if i < len(b.hashes) && b.hashes[i] != h {
			w.found.add(b.base()+uint64(i), CodeTileMismatch, fmt.Sprintf("the level-0 tile holds another hash for entry %d than it had before", b.base()+uint64(i)))
		}
	}
}

// leaf feeds both recomputations with leaf index, which is number i of its bundle and tile.
func (w *walk) leaf(index uint64, i int, b *bundleRead) error {
	var fromEntry, fromTile Hash
	if i < len(b.entries) {
		fromEntry = b.entries[i].Hash
	} else {
		fromEntry = b.hashes[i]
	}
	if i < len(b.hashes) {
		fromTile = b.hashes[i]
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

func (w *walk) note(base uint64, p *fileProblem) {
	if p == nil {
		w.missing = 0
		return
	}
	if p.code == CodeEntriesMissing || p.code == CodeTileMissing {
		w.missing++
	}
	w.found.add(base+uint64(p.offset), p.code, p.message)
}

func (w *walk) differ(index uint64) {
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
func (w *walk) upper(ctx context.Context, end bool) error {
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
			if width == torchwood.TileWidth {
				l.nodes[level] = l.nodes[level][:0]
			}
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
func (w *Walker) judge(head Checkpoint) Hash {
	if w.broken {
		return Hash{}
	}
	fromEntries, err1 := w.entries.root()
	fromTiles, err2 := w.tiles.root()
	if err1 != nil || err2 != nil {
		w.found.add(head.Size, CodeRootMismatch, fmt.Sprintf("no root: %v %v", err1, err2))
		return Hash{}
	}
	truth := w.entries // the recomputation that higher tiles are held against
	code, format := CodeEntryMismatch, "entry %s is not the one whose hash the tree holds"
	switch want := head.Root; {
	case fromEntries == want:
		code, format = CodeTileMismatch, "the level-0 tile holds another hash than entry %s gives, and the entry is the one in the tree"
	case fromTiles == want:
		truth = w.tiles
	default:
		index, where := head.Size, "nothing else says where they differ"
		if len(w.runs) > 0 {
			index, where = w.runs[0].first, fmt.Sprintf("entries and tiles first differ at leaf %d", w.runs[0].first)
		} else if w.entries.first != nil {
			index, where = w.entries.first.Index, "entries and level-0 tiles agree, but "+w.entries.first.Message
		}
		w.found.add(index, CodeRootMismatch, fmt.Sprintf("the checkpoint of size %d says root %s, the entries give %s; %s", head.Size, want, fromEntries, where))
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
