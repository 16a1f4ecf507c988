package transparency

import (
	"context"
	"crypto/sha256"
	"runtime"
	"sync"

	"filippo.io/torchwood"
)

// maxReaders bounds how many bundles are read at once, and with them the memory of a walk: a
// bundle of the largest entries has 16 MiB.
const maxReaders = 16

var leafPrefix = []byte{0}

// bundleRead is a bundle and its level-0 tile as they were read.
type bundleRead struct {
	n     int64
	width int

	entries      []Entry
	entryProblem *fileProblem
	hashes       []Hash
	tileProblem  *fileProblem
	err          error
	done         chan struct{} // closed when the above are set
}

func (b *bundleRead) base() uint64 { return uint64(b.n) << torchwood.TileHeight }

// ahead reads bundles before they are asked for, on all cores, and gives them in order.
type ahead struct {
	order  chan *bundleRead
	cancel context.CancelFunc
	all    sync.WaitGroup
}

// readAhead reads the bundles from w.at to the end.
func (w *walk) readAhead(ctx context.Context) *ahead {
	ctx, cancel := context.WithCancel(ctx)
	readers := min(runtime.GOMAXPROCS(0), maxReaders)
	a := &ahead{order: make(chan *bundleRead, readers), cancel: cancel}
	work := make(chan *bundleRead)
	first, size := int64(w.at)>>torchwood.TileHeight, int64(w.want.Size)
	if w.at == w.want.Size {
		first = size // nothing is left of the last bundle
	}
	a.all.Go(func() {
		defer close(a.order)
		defer close(work)
		for n := first; n<<torchwood.TileHeight < size; n++ {
			b := &bundleRead{n: n, width: int(min(torchwood.TileWidth, size-n<<torchwood.TileHeight)), done: make(chan struct{})}
			select {
			case a.order <- b:
			case <-ctx.Done():
				return
			}
			select {
			case work <- b:
			case <-ctx.Done():
				return
			}
		}
	})
	for range readers {
		a.all.Go(func() {
			for b := range work {
				b.read(ctx, w.r, w.opts.Prepare)
				close(b.done)
			}
		})
	}
	return a
}

// next returns the next bundle.
func (a *ahead) next(ctx context.Context) (*bundleRead, error) {
	select {
	case b, ok := <-a.order:
		if !ok {
			return nil, ctx.Err()
		}
		select {
		case <-b.done:
			return b, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// stop ends reading and waits for it.
func (a *ahead) stop() {
	a.cancel()
	a.all.Wait()
}

func (b *bundleRead) read(ctx context.Context, r *Reader, prepare func([]byte) any) {
	leaves, problem, err := r.bundle(ctx, tileAt(entriesLevel, b.n, b.width))
	if err != nil {
		b.err = err
		return
	}
	b.entryProblem = problem
	if b.hashes, b.tileProblem, b.err = r.hashTile(ctx, tileAt(0, b.n, b.width)); b.err != nil {
		return
	}
	b.entries = make([]Entry, len(leaves))
	h := sha256.New()
	for i, leaf := range leaves {
		b.entries[i] = Entry{Index: b.base() + uint64(i), Leaf: leaf}
		h.Reset()
		h.Write(leafPrefix) // RFC 6962 §2.1
		h.Write(leaf)
		h.Sum(b.entries[i].Hash[:0])
		if prepare != nil && ctx.Err() == nil {
			b.entries[i].Prepared = prepare(leaf)
		}
	}
}
