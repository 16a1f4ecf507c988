package node

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/attestmesh/meshnode/federated/chunk"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/mesh/meshtest"
)

// countingMesh counts bulk streams and can fail to open them.
type countingMesh struct {
	mesh.Mesh
	opened atomic.Int64
	broken atomic.Bool
}

func (m *countingMesh) Bulk(ctx context.Context, peer identity.PeerID, addrs []string, p mesh.Protocol) (mesh.Stream, error) {
	if m.broken.Load() {
		return nil, errors.New("a firewall")
	}
	s, err := m.Mesh.Bulk(ctx, peer, addrs, p)
	if err == nil {
		m.opened.Add(1)
	}
	return s, err
}

// blobNode is a node with a mesh and blobs and nothing else.
func blobNode(t *testing.T, network *mesh.MemoryNetwork, root *meshtest.Root, name string) (*Node, *countingMesh) {
	id := identity.MeshID{7}
	pretended := root.NewNode(id, name)
	m, err := mesh.NewMemory(network, mesh.Config{
		Key: pretended.Key, MeshID: id, Quoter: pretended.Quoter, Judge: pretended.Judge,
		Incarnation: func() identity.Incarnation { return 0 }, Epoch: func() identity.Epoch { return 0 },
		Credential: func() []byte { return pretended.Credential },
	})
	if err != nil {
		t.Fatal(err)
	}
	counting := &countingMesh{Mesh: m}
	n := &Node{mesh: counting, protocols: newProtocols(id), blobs: newBlobs(nil), addresses: newAddressBook(false),
		peers: newPeerBook(), log: slog.New(slog.DiscardHandler)}
	m.Handle(n.protocols.blob, n.handleBlobRequest)
	t.Cleanup(func() { _ = m.Close(); pretended.Close() })
	return n, counting
}

// Large blobs go over a bulk connection where the peer's address is known; small ones, and
// all where there is no way to connect, go over the link.
func TestLargeBlobsTakeTheBulkPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, root := &mesh.MemoryNetwork{}, meshtest.NewRoot()
		n, counting := blobNode(t, network, root, "alpha/n1")
		peer, _ := blobNode(t, network, root, "beta/n1")
		link, err := n.mesh.Dial(t.Context(), peer.mesh.Self(), peer.mesh.Addrs())
		if err != nil {
			t.Fatal(err)
		}
		blob := func(size int) chunk.Root {
			r, err := peer.blobs.Put(bytes.Repeat([]byte{byte(size)}, size), false)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		small, large := blob(bulkFrom-1), blob(bulkFrom)
		fetch := func(r chunk.Root, size int, bulk int64) {
			t.Helper()
			before := counting.opened.Load()
			data, err := n.askBlob(t.Context(), link, r)
			if err != nil || len(data) != size {
				t.Fatalf("%d bytes, %v; want %d", len(data), err, size)
			}
			if got := counting.opened.Load() - before; got != bulk {
				t.Errorf("%d bulk streams for %d bytes, want %d", got, size, bulk)
			}
		}
		fetch(large, bulkFrom, 0) // no address is known
		n.addresses.announced("http://beta", peer.mesh.Self(), peer.mesh.Addrs())
		fetch(large, bulkFrom, 1)
		fetch(small, bulkFrom-1, 0)
		counting.broken.Store(true)
		fetch(large, bulkFrom, 0)
		for _, size := range []int{bulkFrom - 1, bulkFrom} {
			s, err := n.openLarge(t.Context(), link, n.protocols.blob, size)
			if err != nil {
				t.Fatal(err)
			}
			_ = s.Reset()
		}
	})
}
