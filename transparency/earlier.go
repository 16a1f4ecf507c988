package transparency

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// Earlier returns the root that the log had at a size, 0 < size ≤ that of the Prover's tree, and the
// proof of consistency (RFC 6962 §2.1.2) that leads from there to the root of the Prover's tree. Its
// errors are those of Leaf.
func (p *Prover) Earlier(ctx context.Context, size uint64) (Hash, []Hash, error) {
	if p.head.Size > maxLogSize || size == 0 || size > p.head.Size {
		return Hash{}, nil, fmt.Errorf("log: size %d of a tree of size %d", size, p.head.Size)
	}
	if size == p.head.Size {
		return p.head.Root, nil, nil
	}
	n, m := int64(p.head.Size), int64(size)
	hashes := tlog.TileHashReader(tlog.Tree{N: n, Hash: tlog.Hash(p.head.Root)}, &tileSource{ctx, p})
	root, err := tlog.TreeHash(m, hashes)
	var path tlog.TreeProof
	if err == nil {
		path, err = tlog.ProveTree(n, m, hashes)
	}
	if err == nil {
		// tlog.TileHashReader before x/mod v0.41 gives some tiles unchecked: see tileReader. This
		// proof binds the root to that of the head.
		err = tlog.CheckTree(path, n, tlog.Hash(p.head.Root), m, root)
	}
	var bad *Tampered
	switch {
	case err == nil:
		return Hash(root), fromTlog(path), nil
	case ctx.Err() != nil:
		return Hash{}, nil, ctx.Err()
	case errors.Is(err, ErrUnavailable) || errors.As(err, &bad):
		return Hash{}, nil, err
	}
	return Hash{}, nil, &Tampered{[]Finding{{size, CodeTileMismatch, err.Error()}}}
}
