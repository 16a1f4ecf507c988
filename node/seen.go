package node

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/transparency"
)

// A node believes no older log than it has seen, across its boots: each keeps its log, and with it
// the newest checkpoint that it believed (jobkeep.go makes both durable). The first checkpoint of a
// new boot must be no smaller, and its tree must have that root at that size; else somebody has
// rolled the mesh back, or shows this node another history. Within one boot the tree itself cannot
// fall. The disk need not be believed: what is there can keep this node from
// believing others, and nothing else.

// seen is the newest checkpoint of an earlier boot.
type seen struct {
	transparency.Checkpoint
	note []byte
}

// loadSeen reads what earlier boots have kept.
func (n *Node) loadSeen() {
	logs, _ := filepath.Glob(filepath.Join(n.cfg.Data, "boot-*", "log"))
	newest := map[string]seen{}
	for _, dir := range logs {
		if dir == n.logDir {
			continue
		}
		ctx, cancel := context.WithTimeout(n.ctx, keptWithin)
		note, c, err := readNote(ctx, dir)
		cancel()
		if err == nil && c.Size > newest[c.Origin].Size {
			newest[c.Origin] = seen{c, note}
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range newest {
		n.seen = append(n.seen, s)
	}
}

// agreesWithSeen refuses a published checkpoint that is older than one that this node has believed
// before, or of another history. One whose tiles have not come yet is looked at again.
func (n *Node) agreesWithSeen(note []byte, v transparency.Verified) error {
	n.mu.Lock()
	list := n.seen
	n.mu.Unlock()
	for i, s := range list {
		if s.Origin != v.Origin {
			continue
		}
		if by, err := transparency.Signers(s.note, n.logPublic(), nil, nil); err != nil || !by.LogKey {
			continue // no checkpoint of this log, whoever put it there
		}
		if v.Size < s.Size {
			return &RefusedError{attest.NewReason(attest.CodeRolledBack, "checkpoint", fmt.Sprintf("size %d", v.Size), fmt.Sprintf("at least %d, which this node has believed before", s.Size))}
		}
		root, err := n.machine.tree.RootAt(s.Size)
		if err != nil {
			continue
		}
		if root != s.Root {
			n.believed(note) // against which the old one is held
			if by, err := transparency.Signers(s.note, n.logPublic(), n.knownCosigners(), nil); err == nil {
				n.contradicted(s.note, by)
			}
			return &RefusedError{attest.NewReason(attest.CodeRolledBack, fmt.Sprintf("root at size %d", s.Size), root.String(), s.Root.String()+", which this node has believed before")}
		}
		n.mu.Lock()
		n.seen = append(append([]seen{}, list[:i]...), list[i+1:]...)
		n.mu.Unlock()
		break
	}
	return nil
}
