package audittest

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/transparency"
)

// Publish writes the log into dir, which must be new or empty, with a checkpoint that boots have
// cosigned.
func (m *Mesh) Publish(dir string, boots ...string) {
	tree := must(transparency.NewTree(must(durable.Open(dir))))
	must(tree.AppendAll(m.Leaves))
	check(tree.Publish(m.Checkpoint(tree, boots...)))
}

// LogKey returns the log key of the present incarnation.
func (m *Mesh) LogKey() ed25519.PrivateKey {
	if inc := m.State.Incarnation(); inc > 0 {
		return Key(fmt.Sprint("log ", inc))
	}
	return Key("log")
}

// Checkpoint signs what tree has come to, with the cosignatures of boots.
func (m *Mesh) Checkpoint(tree *transparency.Tree, boots ...string) []byte {
	size, root := tree.Head()
	return m.Sealed(size, root, boots...)
}

// Sealed signs any size and root as a checkpoint of the present incarnation, with the
// cosignatures of boots, among which Witness may be.
func (m *Mesh) Sealed(size uint64, root transparency.Hash, boots ...string) []byte {
	at := m.CosignedAt()
	text := fmt.Sprintf("%s\n%d\n%s\n", m.State.Origin(), size, base64.StdEncoding.EncodeToString(root[:]))
	cp := must(transparency.NewCheckpoint(transparency.Checkpoint{Origin: m.State.Origin(), Size: size, Root: root}, m.LogKey()))
	for _, boot := range boots {
		name, key := WitnessName, Key(Witness)
		if boot != Witness {
			name, key = m.CosignerName(boot), Key(boot+" cosigner")
		}
		cp = append(cp, Cosign(text, name, key, at)...)
	}
	return cp
}

// CosignedAt returns the time of the cosignatures that a checkpoint would have now.
func (m *Mesh) CosignedAt() time.Time {
	switch {
	case !m.Cosigned.IsZero():
		return m.Cosigned
	case m.newest.After(m.At):
		return m.newest
	}
	return m.At
}

// CosignerName returns the name under which a boot cosigns.
func (m *Mesh) CosignerName(boot string) string {
	n, ok := m.State.Node(PeerOf(boot))
	if !ok {
		panic("audittest: " + boot + " is no node")
	}
	name := m.State.CosignerName(n.Ref, n.BootSeq)
	if name != transparency.CosignerName(m.State.Origin(), n.Ref, n.BootSeq) {
		panic("audittest: two packages name cosigners differently: " + name)
	}
	return name
}

// Witness stands for an outside witness where boots are named, and is the label of its key; no
// policy names it unless it is told to.
const (
	Witness     = "witness"
	WitnessName = "witness.example.org/w1"
)

const cosignature = 4 // c2sp.org/signed-note, signature types

func cosignerKey(name string, pub ed25519.PublicKey) (id [4]byte, key []byte) {
	key = append([]byte{cosignature}, pub...)
	sum := sha256.Sum256(append([]byte(name+"\n"), key...))
	return [4]byte(sum[:4]), key
}

// WitnessKey returns the verifier key of Witness.
func WitnessKey() string {
	id, key := cosignerKey(WitnessName, Key(Witness).Public().(ed25519.PublicKey))
	return fmt.Sprintf("%s+%x+%s", WitnessName, id, base64.StdEncoding.EncodeToString(key))
}

// Cosign returns the line of a cosignature/v1 (c2sp.org/tlog-cosignature) at a given time, over
// the text of a checkpoint.
func Cosign(text, name string, key ed25519.PrivateKey, at time.Time) []byte {
	id, _ := cosignerKey(name, key.Public().(ed25519.PublicKey))
	line := binary.BigEndian.AppendUint64(id[:], uint64(at.Unix()))
	line = append(line, ed25519.Sign(key, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", at.Unix(), text))...)
	return fmt.Appendf(nil, "— %s %s\n", name, base64.StdEncoding.EncodeToString(line))
}

// Place returns the size and root of leaves.
func Place(leaves [][]byte) consensus.CheckpointSeen {
	tree := transparency.NewAccumulator()
	for _, leaf := range leaves {
		check(tree.Append(leaf))
	}
	return consensus.CheckpointSeen{Size: tree.Size(), Root: must(tree.Root()).String()}
}
