package node

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
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
	var again retry
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
		last, at := n.lastPublished()
		grown := last.Size != size
		if !grown && last.Level == transparency.Strong && n.now().Sub(at) < republishEvery || !grown && !again.due(n.now(), len(n.seatLinks())) {
			continue
		}
		if err := n.publish(ctx); err != nil {
			n.log.Warn("checkpoint not published", "size", size, "error", err)
		}
		if now, _ := n.lastPublished(); grown || now.Level == transparency.Strong {
			again = retry{}
		}
	}
}

// retry is when a leader asks anew for the cosignatures that are missing while nothing grows: at once
// when a seat is linked, else later and later. Its zero value asks.
type retry struct {
	seats int
	next  time.Time
	pause time.Duration
}

func (r *retry) due(now time.Time, seats int) bool {
	if seats > r.seats {
		r.pause = 0
	} else if now.Before(r.next) {
		r.seats = seats
		return false
	}
	r.seats, r.pause = seats, min(max(publishEvery, 2*r.pause), republishEvery)
	r.next = now.Add(r.pause)
	return true
}

// publish makes one checkpoint of the present size and collects cosignatures.
func (n *Node) publish(ctx context.Context) error {
	if err := n.mayCosign(n.self); err != nil {
		return err
	}
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
func (n *Node) handleCosign(l mesh.Link, s mesh.Stream) {
	defer s.Close()
	deadline := n.now().Add(cosignWithin)
	_ = s.SetDeadline(deadline)
	note, err := readFrame(s, maxCheckpoint)
	if err != nil {
		return
	}
	c, err := transparency.ParseCheckpoint(note)
	if err == nil {
		err = n.waitSize(c.Size, deadline)
	}
	if err == nil {
		_, err = n.hold(l.Peer(), note) // a root of its own is all that the witness looks at
	}
	if err == nil {
		err = n.mayCosign(l.Peer())
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
	n.showCheckpoint(ctx, n.links(), note)
}

func (n *Node) handleCheckpoint(link mesh.Link, s mesh.Stream) {
	defer s.Close()
	if !n.gossip.shown(link.Peer(), n.now()) {
		_ = s.Reset()
		return
	}
	deadline := n.now().Add(cosignWithin)
	_ = s.SetDeadline(deadline)
	note, err := readFrame(s, maxCheckpoint)
	if err != nil || n.gossip.bad(note) {
		return
	}
	if c, err := transparency.ParseCheckpoint(note); err == nil && c.Origin == n.origin() {
		_ = n.waitSize(c.Size, deadline) // else it is kept until the tree has come to it
	}
	if err := n.hearCheckpoint(link.Peer(), note); errors.Is(err, errForeign) {
		n.gossip.fault(link.Peer(), note, n.now())
		n.strangers.Info("checkpoint not believed", "from", n.nameOf(link.Peer()), "error", err)
	} else if err != nil {
		n.strangers.Warn("checkpoint not accepted", "from", n.nameOf(link.Peer()), "error", err)
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
		return fmt.Errorf("size %d has root %s here, the checkpoint says %s: %w", v.Size, root, v.Root, errTwoHistories)
	}
	if v.Level < transparency.Published {
		return fmt.Errorf("size %d is cosigned by %v only, %d organisations are needed", v.Size, v.Orgs, policy.Quorum.Published)
	}
	if err := n.agreesWithSeen(note, v); err != nil {
		return err
	}
	before, _ := n.lastPublished()
	n.noteWitnessed(v)
	if before.Size == v.Size {
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
	if before.note == nil || !noNews(v, before.Verified) {
		if err := n.publishHere(note, v); err != nil {
			return err
		}
		n.machine.published(v.Size, note)
		if !olderThan(v, before.Verified) {
			n.believed(note)
		}
	}
	if n.strong(v) {
		n.machine.strengthen(v.Size)
	}
	return nil
}

// noNews reports whether a checkpoint of one's own history is worth no more than another one: lines of
// nobody anybody can add, and others leave out.
func noNews(a, b transparency.Verified) bool {
	return a.Size == b.Size && a.Level == b.Level && a.Fresh.Equal(b.Fresh) && len(a.Orgs) <= len(b.Orgs) &&
		slices.EqualFunc(a.Outside, b.Outside, func(x, y transparency.Witnessed) bool { return x.Name == y.Name && x.At.Equal(y.At) })
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
	n.publishing.Lock()
	defer n.publishing.Unlock()
	if now, _ := n.lastPublished(); olderThan(v, now.Verified) {
		return nil
	}
	if err := n.machine.tree.Publish(note); err != nil { // to the disk: nobody waits for it who asks for n.mu
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
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
		if !n.conflicts.guilty(c.Name) {
			p.Cosigners = append(p.Cosigners, c)
		}
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
