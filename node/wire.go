package node

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// Limits on what peers may send on the streams of this package.
const (
	maxMessage = 1 << 20   // a JSON message
	maxCommand = 512 << 10 // a submitted command
	maxBlob    = 256 << 20 // a model or an update
)

// protocols are the names of the streams between nodes. The mesh id in each keeps two
// meshes apart even where a machine belongs to both.
type protocols struct {
	found, seat, raft, submit, follow, head, gossip, cosign, checkpoint, clock, round, blob, snapshot, tile, digest, petition, complain mesh.Protocol
}

func newProtocols(id identity.MeshID) protocols {
	name := func(s string) mesh.Protocol {
		return mesh.Protocol("/meshnode/" + id.Short() + "/" + s + "/1")
	}
	return protocols{
		found: name("found"), seat: name("seat"), raft: name("raft"), submit: name("submit"), follow: name("follow"),
		head: name("head"), gossip: name("gossip"), cosign: name("cosign"), checkpoint: name("checkpoint"), clock: name("clock"),
		round: name("round"), blob: name("blob"), snapshot: name("snapshot"), tile: name("tile"), digest: name("digest"),
		petition: name("petition"), complain: name("complain"),
	}
}

// writeMessage sends v as u32 big-endian length and JSON.
func writeMessage(w io.Writer, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFrame(w, data)
}

// readMessage receives one JSON message of at most maxMessage bytes into v.
func readMessage(r io.Reader, v any) error {
	data, err := readFrame(r, maxMessage)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

// writeFrame sends u32 big-endian length and data.
func writeFrame(w io.Writer, data []byte) error {
	buf := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(data)), uint32(len(data)))
	_, err := w.Write(append(buf, data...))
	return err
}

// readFrame receives one frame and refuses a longer one before allocating for it.
func readFrame(r io.Reader, limit uint32) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > limit {
		return nil, fmt.Errorf("a frame of %d bytes, the limit is %d", n, limit)
	}
	data := make([]byte, n)
	_, err := io.ReadFull(r, data)
	return data, err
}
