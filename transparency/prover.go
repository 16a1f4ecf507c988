package transparency

import (
	"context"
	"errors"
	"fmt"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"
)

// maxKeptTiles bounds the tiles that a Prover keeps, 2 MiB.
const maxKeptTiles = 256

// Prover reads leaves of a published log together with their proofs of inclusion in one of its
// trees. Every hash is held against the root, and every leaf against its hash, so that what it
// returns is in that tree, whoever serves the files. It is for one goroutine.
type Prover struct {
	r    *Reader
	head Checkpoint
	kept map[tlog.Tile][]byte
	at   int64    // number of the bundle in hand, -1 for none
	in   [][]byte // its entries
}

// Prover returns a Prover of the tree of head, whose signatures are the caller's to check.
func (r *Reader) Prover(head Checkpoint) *Prover {
	return &Prover{r: r, head: head, kept: map[tlog.Tile][]byte{}, at: -1}
}

// Leaf returns a leaf and its proof of inclusion. The error is a *Tampered if the files are not
// of one tree with the head's root, and wraps ErrUnavailable or the context's error if they could
// not be read.
func (p *Prover) Leaf(ctx context.Context, index uint64) (leaf []byte, proof []Hash, err error) {
	if p.head.Size > maxLogSize || index >= p.head.Size {
		return nil, nil, fmt.Errorf("log: leaf %d of a tree of size %d", index, p.head.Size)
	}
	size, n := int64(p.head.Size), int64(index)>>torchwood.TileHeight
	if p.at != n {
		width := min(torchwood.TileWidth, size-n<<torchwood.TileHeight)
		entries, problem, err := p.r.bundle(ctx, tileAt(entriesLevel, n, int(width)))
		if err != nil {
			return nil, nil, err
		}
		if problem != nil {
			return nil, nil, &Tampered{[]Finding{{uint64(n)<<torchwood.TileHeight + uint64(problem.offset), problem.code, problem.message}}}
		}
		p.at, p.in = n, entries
	}
	leaf = p.in[index%torchwood.TileWidth]
	hashes := tlog.TileHashReader(tlog.Tree{N: size, Hash: tlog.Hash(p.head.Root)}, &tileSource{ctx, p})
	path, err := tlog.ProveRecord(size, int64(index), hashes)
	var bad *Tampered
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil, nil, ctx.Err()
	case errors.Is(err, ErrUnavailable) || errors.As(err, &bad):
		return nil, nil, err
	default: // tiles that do not lead to the root
		return nil, nil, &Tampered{[]Finding{{index, CodeTileMismatch, err.Error()}}}
	}
	if tlog.CheckRecord(path, size, tlog.Hash(p.head.Root), int64(index), tlog.RecordHash(leaf)) != nil {
		return nil, nil, &Tampered{[]Finding{{index, CodeEntryMismatch, "the entry is not the one whose hash the tree holds"}}}
	}
	return leaf, fromTlog(path), nil
}

// tileSource is the tlog.TileReader of one call of Leaf.
type tileSource struct {
	ctx context.Context
	p   *Prover
}

// Height implements tlog.TileReader.
func (s *tileSource) Height() int { return torchwood.TileHeight }

// ReadTiles implements tlog.TileReader; the package verifies what it is given.
func (s *tileSource) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	out := make([][]byte, len(tiles))
	for i, t := range tiles {
		if data, ok := s.p.kept[t]; ok {
			out[i] = data
			continue
		}
		hashes, problem, err := s.p.r.hashTile(s.ctx, t)
		if err != nil {
			return nil, err
		}
		if problem != nil {
			first := (uint64(t.N)<<torchwood.TileHeight + uint64(problem.offset)) << (torchwood.TileHeight * t.L)
			return nil, &Tampered{[]Finding{{first, problem.code, problem.message}}}
		}
		for _, h := range hashes {
			out[i] = append(out[i], h[:]...)
		}
	}
	return out, nil
}

// SaveTiles implements tlog.TileReader: these tiles were verified.
func (s *tileSource) SaveTiles(tiles []tlog.Tile, data [][]byte) {
	if len(s.p.kept)+len(tiles) > maxKeptTiles {
		clear(s.p.kept)
	}
	for i, t := range tiles {
		s.p.kept[t] = data[i]
	}
}
