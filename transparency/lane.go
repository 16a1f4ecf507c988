package transparency

import (
	"slices"

	"filippo.io/torchwood"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
)

var rangeFactory = &compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}

// lane is one recomputation of a tree: the accumulator, and the hashes of each level of tiles
// since the last full tile.
type lane struct {
	tree  *compact.Range
	nodes [][]Hash // never empty; of level 0 the leaves of the unfinished bundle
	diffs findings // tiles of level ≥ 1 that hold something else
	first *Finding // the first of them: leaves are compared from the left, lower tiles first
}

func newLane() *lane { return &lane{tree: rangeFactory.NewEmptyRange(0), nodes: make([][]Hash, 1)} }

func cloneRange(tree *compact.Range) *compact.Range {
	hashes := make([][]byte, len(tree.Hashes()))
	for i, h := range tree.Hashes() {
		hashes[i] = slices.Clone(h)
	}
	next, err := rangeFactory.NewRange(0, tree.End(), hashes)
	if err != nil { // it is the range that these are the hashes of
		panic(err)
	}
	return next
}

func (l *lane) clone() *lane {
	next := &lane{tree: cloneRange(l.tree), diffs: findings{slices.Clone(l.diffs.list), l.diffs.more}, first: l.first}
	for _, n := range l.nodes {
		next.nodes = append(next.nodes, slices.Clone(n))
	}
	return next
}

func (l *lane) append(h Hash) error {
	if l.nodes[0] = append(l.nodes[0], h); len(l.nodes[0]) == torchwood.TileWidth {
		l.nodes[0] = l.nodes[0][:0]
	}
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

func (l *lane) root() (Hash, error) { return rootOf(l.tree) }

func rootOf(tree *compact.Range) (Hash, error) {
	if tree.End() == 0 {
		return Hash(rfc6962.DefaultHasher.EmptyRoot()), nil
	}
	h, err := tree.GetRootHash(nil)
	if err != nil {
		return Hash{}, err
	}
	return Hash(h), nil
}
