package node

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/attestmesh/meshnode/federated/chunk"
	"github.com/attestmesh/meshnode/internal/durable"
)

// blobs is the node's content-addressed store of models and updates. Names are roots as
// chunk.RootOf computes them, so whatever is read back is checked against its name.
// Blobs of jobs whose terms disclose fully are files; all others stay in memory.
type blobs struct {
	dir *durable.Dir // nil keeps everything in memory
	// older are directories of this node's earlier boots: a job that goes on in a recovered mesh
	// begins with a model of theirs.
	older []*durable.Dir

	mu  sync.Mutex
	mem map[chunk.Root][]byte // guarded by mu
}

func newBlobs(dir *durable.Dir) *blobs { return &blobs{dir: dir, mem: map[chunk.Root][]byte{}} }

// Put stores data durably where disclose is set, and returns its root.
func (b *blobs) Put(data []byte, disclose bool) (chunk.Root, error) {
	root, err := chunk.RootOf(data)
	if err != nil {
		return chunk.Root{}, err
	}
	if disclose && b.dir != nil {
		return root, b.dir.WriteFile(root.String(), data, 0o600)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mem[root] = data
	return root, nil
}

// Get returns the blob named root; an absent one is fs.ErrNotExist, a damaged one says so.
func (b *blobs) Get(root chunk.Root) ([]byte, error) {
	b.mu.Lock()
	data, ok := b.mem[root]
	b.mu.Unlock()
	if ok {
		return data, nil
	}
	if b.dir == nil {
		return nil, fs.ErrNotExist
	}
	data, err := b.dir.ReadFile(root.String(), maxBlob)
	for i := 0; i < len(b.older) && errors.Is(err, fs.ErrNotExist); i++ {
		data, err = b.older[i].ReadFile(root.String(), maxBlob)
	}
	if err != nil {
		return nil, err
	}
	if got, err := chunk.RootOf(data); err != nil || got != root {
		return nil, fmt.Errorf("blob %s: the file is damaged", root)
	}
	return data, nil
}

// Has reports whether the blob is here and whole.
func (b *blobs) Has(root chunk.Root) bool {
	_, err := b.Get(root)
	return err == nil
}
