package transparency

import (
	"context"
	"errors"
	"fmt"
	"math/bits"

	"filippo.io/torchwood"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/attestmesh/meshnode/internal/canonical"
)

// wireWalker is a saved Walker: deterministic CBOR.
type wireWalker struct {
	_              struct{} `cbor:",toarray"`
	At, Read       uint64
	Gap, Broken    bool
	Missing        uint64
	Entries, Tiles wireLane
	Found          wireFindings
	Runs           []wireRun
	Cut            uint64
}

type wireRun struct {
	_           struct{} `cbor:",toarray"`
	First, Last uint64
}

// wireLane holds hashes of 32 bytes one behind the other.
type wireLane struct {
	_     struct{} `cbor:",toarray"`
	End   uint64
	Range []byte   // of the compact range, from the left
	Nodes [][]byte // by level
	Diffs wireFindings
	First []wireFinding // one or none
}

type wireFindings struct {
	_    struct{} `cbor:",toarray"`
	List []wireFinding
	More uint64
}

type wireFinding struct {
	_       struct{} `cbor:",toarray"`
	Index   uint64
	Code    string
	Message []byte // may hold what a log says
}

var walkers = canonical.NewCBOR(1024)

// MarshalBinary encodes w, which can be done between two Walks and in Progress.
func (w *Walker) MarshalBinary() ([]byte, error) {
	if w.over != nil {
		return nil, w.over
	}
	im := wireWalker{At: w.at, Read: w.read, Gap: w.gap, Broken: w.broken, Missing: uint64(w.missing), Cut: uint64(w.cut),
		Entries: w.entries.wire(), Tiles: w.tiles.wire(), Found: w.found.wire()}
	for _, r := range w.runs {
		im.Runs = append(im.Runs, wireRun{First: r.first, Last: r.last})
	}
	return walkers.Encode(im)
}

// UnmarshalWalker decodes what MarshalBinary returned.
func UnmarshalWalker(raw []byte) (*Walker, error) {
	var im wireWalker
	if err := walkers.Decode(raw, &im); err != nil {
		return nil, fmt.Errorf("log: saved walk: %w", err)
	}
	w := &Walker{at: im.At, read: im.Read, gap: im.Gap, broken: im.Broken, missing: int(im.Missing), cut: int(im.Cut), found: im.Found.findings()}
	for _, r := range im.Runs {
		w.runs = append(w.runs, run{r.First, r.Last})
	}
	var err error
	if w.entries, err = im.Entries.lane(); err == nil {
		w.tiles, err = im.Tiles.lane()
	}
	end := im.Entries.End
	if err == nil && (im.At > maxLogSize || im.Read > im.At || end != im.Tiles.End || end > im.At || !im.Broken && end != im.At ||
		!im.Gap && im.Read != im.At || len(w.entries.nodes) != len(w.tiles.nodes) || len(w.runs) > maxFindings || im.Missing > maxLogSize || im.Cut > maxLogSize) {
		err = errors.New("its parts do not belong together")
	}
	if err != nil {
		return nil, fmt.Errorf("log: saved walk: %w", err)
	}
	return w, nil
}

func (l *lane) wire() wireLane {
	im := wireLane{End: l.tree.End(), Diffs: l.diffs.wire()}
	for _, h := range l.tree.Hashes() {
		im.Range = append(im.Range, h...)
	}
	for _, level := range l.nodes {
		var data []byte
		for _, h := range level {
			data = append(data, h[:]...)
		}
		im.Nodes = append(im.Nodes, data)
	}
	if l.first != nil {
		im.First = []wireFinding{{Index: l.first.Index, Code: l.first.Code, Message: []byte(l.first.Message)}}
	}
	return im
}

func (im *wireLane) lane() (*lane, error) {
	if im.End > maxLogSize || len(im.Range) != bits.OnesCount64(im.End)*tlog.HashSize {
		return nil, fmt.Errorf("%d bytes of hashes for %d leaves", len(im.Range), im.End)
	}
	hashes := make([][]byte, 0, len(im.Range)/tlog.HashSize)
	for rest := im.Range; len(rest) > 0; rest = rest[tlog.HashSize:] {
		hashes = append(hashes, rest[:tlog.HashSize])
	}
	tree, err := rangeFactory.NewRange(0, im.End, hashes)
	if err != nil {
		return nil, err
	}
	l := &lane{tree: tree, diffs: im.Diffs.findings()}
	if len(im.Nodes) != max(levels(int64(im.End)), 1) {
		return nil, fmt.Errorf("%d levels for %d leaves", len(im.Nodes), im.End)
	}
	for level, data := range im.Nodes {
		last := lastTile(level, int64(im.End)).W
		// A full tile of a level above the leaves may wait to be compared.
		if n := len(data) / tlog.HashSize; len(data)%tlog.HashSize != 0 || n != last && (level == 0 || last != 0 || n != torchwood.TileWidth) {
			return nil, fmt.Errorf("%d bytes of hashes in level %d of %d leaves", len(data), level, im.End)
		}
		var nodes []Hash
		for rest := data; len(rest) > 0; rest = rest[tlog.HashSize:] {
			nodes = append(nodes, Hash(rest))
		}
		l.nodes = append(l.nodes, nodes)
	}
	if len(im.First) > 1 {
		return nil, errors.New("two first findings")
	}
	for _, f := range im.First {
		l.first = &Finding{f.Index, f.Code, string(f.Message)}
	}
	return l, nil
}

func (f *findings) wire() wireFindings {
	im := wireFindings{More: uint64(f.more)}
	for _, x := range f.list {
		im.List = append(im.List, wireFinding{Index: x.Index, Code: x.Code, Message: []byte(x.Message)})
	}
	return im
}

func (im *wireFindings) findings() findings {
	out := findings{more: int(im.More)}
	for _, x := range im.List {
		out.list = append(out.list, Finding{x.Index, x.Code, string(x.Message)})
	}
	return out
}

// RootAt returns the root that the log of a checkpoint, whose signatures it does not look at,
// had at a smaller size: by its tiles, which are held against the checkpoint's root. An error
// that wraps ErrUnavailable or is the context's says nothing about the log.
func (r *Reader) RootAt(ctx context.Context, head Checkpoint, size uint64) (Hash, error) {
	if size == 0 && head.Size <= maxLogSize {
		return Hash(rfc6962.DefaultHasher.EmptyRoot()), nil
	}
	root, _, err := r.Prover(head).Earlier(ctx, size)
	return root, err
}
