package node

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/transparency"
)

// The leader publishes: it signs a checkpoint of its own tree with the log key, asks every
// seat for a cosignature, which a seat gives only to a root that it computed itself, and
// sends the result to everybody. Each node verifies it against its own tree and the
// members in its own state before it believes or serves it.

const (
	publishEvery   = time.Second
	republishEvery = time.Minute // while nothing grows: shows that the cosigners live
	cosignWithin   = 2 * time.Second
)

// published is the newest checkpoint that this node has verified.
type published struct {
	note []byte
	transparency.Verified
}

type cosignReply struct {
	Line  []byte `json:"line,omitempty"`
	Error string `json:"error,omitempty"`
}

func (n *Node) runPublisher(ctx context.Context) {
	tick := time.NewTicker(publishEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !n.leads() || n.logKey() == nil { // who took a seat lately may still ask for the key
			continue
		}
		size := n.machine.tree.Size()
		if last, at := n.lastPublished(); last.Size == size && last.Level == transparency.Strong && n.now().Sub(at) < republishEvery {
			continue
		}
		if err := n.publish(ctx); err != nil {
			n.log.Warn("checkpoint not published", "size", size, "error", err)
		}
	}
}

// publish makes one checkpoint of the present size and collects cosignatures.
func (n *Node) publish(ctx context.Context) error {
	size, root := n.machine.tree.Head()
	note, err := transparency.NewCheckpoint(transparency.Checkpoint{Origin: n.origin(), Size: size, Root: root}, n.logKey())
	if err != nil {
		return err
	}
	own, err := n.witness().Cosign(note)
	if err != nil {
		return err
	}
	type cosignature struct {
		by   transparency.Cosigner
		line []byte
	}
	cosigners := n.cosigners()
	lines := gather(ctx, n.seatLinks(), cosignWithin, func(ctx context.Context, l mesh.Link) (cosignature, error) {
		line, err := n.askCosignature(ctx, l, note)
		if err != nil {
			n.log.Warn("no cosignature", "seat", n.nameOf(l.Peer()), "error", err)
		}
		return cosignature{cosigners[l.Peer()], line}, err
	})
	for _, c := range append(lines, cosignature{cosigners[n.self], own}) {
		if c.by.Name == "" {
			continue // its affirming result is not in the log yet
		}
		merged, err := transparency.Merge(note, c.line, c.by)
		if err != nil {
			n.log.Warn("bad cosignature", "cosigner", c.by.Name, "error", err)
			continue
		}
		note = merged
	}
	if err := n.acceptCheckpoint(note); err != nil {
		return err
	}
	n.announceCheckpoint(ctx, note)
	return nil
}

func (n *Node) askCosignature(ctx context.Context, l mesh.Link, note []byte) ([]byte, error) {
	s, err := n.open(ctx, l, n.protocols.cosign)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if err := writeFrame(s, note); err != nil {
		return nil, err
	}
	var reply cosignReply
	if err := readMessage(s, &reply); err != nil {
		return nil, err
	}
	if reply.Error != "" {
		return nil, fmt.Errorf("refused: %s", reply.Error)
	}
	return reply.Line, nil
}

// handleCosign cosigns the leader's checkpoint once this seat's own tree has that root.
func (n *Node) handleCosign(_ mesh.Link, s mesh.Stream) {
	defer s.Close()
	deadline := n.now().Add(cosignWithin)
	_ = s.SetDeadline(deadline)
	note, err := readFrame(s, maxMessage)
	if err != nil {
		return
	}
	c, err := transparency.ParseCheckpoint(note)
	if err == nil {
		err = n.waitSize(c.Size, deadline)
	}
	var reply cosignReply
	if w := n.witness(); err == nil && w != nil {
		reply.Line, err = w.Cosign(note)
	}
	if err != nil {
		reply.Error = err.Error()
		n.log.Warn("cosignature refused", "error", err)
	}
	_ = writeMessage(s, reply)
}

// waitSize waits until this node's tree holds size leaves.
func (n *Node) waitSize(size uint64, deadline time.Time) error {
	timer := time.NewTimer(deadline.Sub(n.now()))
	defer timer.Stop()
	for {
		changed := n.changed.wait()
		if n.machine.tree.Size() >= size {
			return nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return fmt.Errorf("size %d, this node has %d", size, n.machine.tree.Size())
		case <-n.ctx.Done():
			return n.ctx.Err()
		}
	}
}

// announceCheckpoint sends a published checkpoint to every linked node.
func (n *Node) announceCheckpoint(ctx context.Context, note []byte) {
	gather(ctx, n.links(), cosignWithin, func(ctx context.Context, l mesh.Link) (struct{}, error) {
		s, err := n.open(ctx, l, n.protocols.checkpoint)
		if err != nil {
			return struct{}{}, err
		}
		defer s.Close()
		return struct{}{}, writeFrame(s, note)
	})
}

func (n *Node) handleCheckpoint(link mesh.Link, s mesh.Stream) {
	defer s.Close()
	deadline := n.now().Add(cosignWithin)
	_ = s.SetDeadline(deadline)
	note, err := readFrame(s, maxMessage)
	if err != nil {
		return
	}
	if c, err := transparency.ParseCheckpoint(note); err == nil && n.waitSize(c.Size, deadline) != nil {
		return // still catching up; the next one comes within a second of growth
	}
	if err := n.acceptCheckpoint(note); err != nil {
		n.log.Warn("checkpoint not accepted", "from", n.nameOf(link.Peer()), "error", err)
	}
}

// acceptCheckpoint verifies a checkpoint against this node's members and tree and, if it
// is published and newer, serves it. Cosignatures of outside witnesses on the one that is served
// and on this one are kept, whichever of the two is the newer: a witness may be slow.
func (n *Node) acceptCheckpoint(note []byte) error {
	policy := n.checkpointPolicy()
	v, err := transparency.Verify(note, policy)
	if err != nil {
		return err
	}
	root, err := n.machine.tree.RootAt(v.Size)
	if err != nil {
		return err
	}
	if root != v.Root {
		return fmt.Errorf("size %d has root %s here, the checkpoint says %s: two histories", v.Size, root, v.Root)
	}
	if v.Level < transparency.Published {
		return fmt.Errorf("size %d is cosigned by %v only", v.Size, v.Orgs)
	}
	if before, _ := n.lastPublished(); before.Size == v.Size {
		older, newer := before.note, note
		if olderThan(v, before.Verified) {
			older, newer = note, before.note
		}
		if note, err = transparency.KeepOutside(older, newer, policy.Outside); err != nil {
			return err
		}
		if v, err = transparency.Verify(note, policy); err != nil {
			return err
		}
	}
	if err := n.publishHere(note, v); err != nil {
		return err
	}
	n.machine.published(v.Size, note)
	return nil
}

// olderThan reports whether a checkpoint is worth less than another one: smaller, cosigned by
// fewer, or by a quorum that was complete earlier.
func olderThan(a, b transparency.Verified) bool {
	switch {
	case a.Size != b.Size:
		return a.Size < b.Size
	case a.Level != b.Level:
		return a.Level < b.Level
	}
	return a.Fresh.Before(b.Fresh)
}

// publishHere serves a checkpoint that was verified, unless it is older than the one that is served.
// One that shows no new cosignature of seats does not put off the leader's next.
func (n *Node) publishHere(note []byte, v transparency.Verified) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if olderThan(v, n.newest.Verified) {
		return nil
	}
	if err := n.machine.tree.Publish(note); err != nil {
		return err
	}
	if olderThan(n.newest.Verified, v) {
		n.newestAt = n.now()
	}
	n.newest = published{note, v}
	n.changed.notify()
	return nil
}

func (n *Node) lastPublished() (published, time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.newest, n.newestAt
}

// checkpointPolicy is what checkpoints are held against now.
func (n *Node) checkpointPolicy() transparency.Policy {
	p := transparency.Policy{Origin: n.origin(), At: n.time()}
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) {
		p.LogKey = s.LogKey()
		p.Quorum = transparency.Quorum{Published: s.Quorum(), Strong: s.StrongQuorum()}
	})
	for _, c := range n.cosigners() {
		p.Cosigners = append(p.Cosigners, c)
	}
	p.Outside = n.outsideKeys()
	return p
}

// cosigners returns the seats' cosigner keys that count: those whose Credential and
// affirming result are in the log.
func (n *Node) cosigners() (out map[identity.PeerID]transparency.Cosigner) {
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { out = cosignersOf(s) })
	return out
}

func cosignersOf(s *consensus.State) map[identity.PeerID]transparency.Cosigner {
	out := map[identity.PeerID]transparency.Cosigner{}
	for _, seat := range s.Seats() {
		if seat.Standing != consensus.StandingMeasured {
			continue
		}
		c := seat.Credential
		out[c.Peer] = transparency.Cosigner{Name: s.CosignerName(c.Ref(), c.BootSeq), Org: c.Organisation, Key: c.CosignerKey()}
	}
	return out
}

func (n *Node) origin() (o string) {
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { o = s.Origin() })
	return o
}

func (n *Node) logKey() ed25519.PrivateKey {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.logPrivate
}

func (n *Node) witness() *transparency.Witness {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cosignerWitness
}
