package node

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/consensus/replica"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/canonical"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// A snapshot is a copy of the machine just before a digest command, and the commands from
// that one on:
//
//	snapshot  [1, copy, checkpoint, [command, …]]
//	copy      [1, commands before, governance state, ledger, places, log size, [tile, …], bundle]
//
// in deterministic CBOR. Places are the leaf indices of the edges; tiles and bundle are the
// unfinished ones of the log (transparency.Edge). Who gets one restores the copy and
// applies the commands. The first of them derives the leaf with the digest of what was
// restored, and that leaf and all after it lead to the root in the checkpoint, which a
// quorum of organisations has cosigned: a copy that differs in anything leads to another
// root, and is refused before anything else was touched. Whom the copy itself names as
// cosigners must have Credentials by the organisations that the policy chain in it names, and
// that is verified from genesis on. What comes after the checkpoint is believed as if it had been
// ordered one by one.

const snapshotVersion = 1

// maxSnapshotCommands bounds the commands of a snapshot.
const maxSnapshotCommands = 1 << 17

var snapshots = canonical.NewCBOR(maxSnapshotCommands)

type wireSnapshot struct {
	_          struct{} `cbor:",toarray"`
	Version    int
	Copy       []byte
	Checkpoint []byte
	Commands   [][]byte
}

type wireCopy struct {
	_       struct{} `cbor:",toarray"`
	Version int
	Seq     uint64
	State   []byte
	Ledger  []byte
	Places  []byte
	Size    uint64
	Tiles   [][]byte
	Bundle  []byte
}

// states are the copies that a machine holds: the newest one that a published checkpoint
// covers, and the next one, which waits for that.
type states struct {
	published, pending *savedState
	// restored is what CheckSnapshot has verified last, for Restore.
	restored *restored
}

// savedState is the machine just before a digest command.
type savedState struct {
	seq        uint64 // commands before it
	leaf       uint64 // index of the state leaf
	digest     [32]byte
	copied     []byte // nil where it was too large
	checkpoint []byte // of a size above leaf
}

// logState executes a digest command. The caller holds m.mu.
func (m *Machine) logState(c consensus.Command) consensus.Outcome {
	saved := &savedState{seq: m.seq(), leaf: m.tree.Size(), digest: m.digest()}
	if m.states.pending == nil && m.state.LogStateDue(saved.seq) {
		// One that is too large is none: the log is kept whole instead.
		saved.copied, _ = m.copy()
	}
	out := m.state.LogState(c, saved.seq, saved.digest)
	if out.Reason != nil {
		return out
	}
	m.saved = saved
	if m.states.pending == nil {
		m.states.pending = saved
	}
	return out
}

// copy encodes the machine. The caller holds m.mu.
func (m *Machine) copy() ([]byte, error) {
	state, err := m.state.Image()
	if err != nil {
		return nil, err
	}
	ledger, err := m.ledger.Image()
	if err != nil {
		return nil, err
	}
	edge := m.tree.Edge()
	return snapshots.Encode(wireCopy{Version: snapshotVersion, Seq: m.seq(), State: state, Ledger: ledger, Places: m.places(),
		Size: edge.Size, Tiles: edge.Tiles, Bundle: edge.Bundle})
}

// published notes a published checkpoint. The copy that it covers replaces the one before, and
// commands that were ordered long before it are let go. While seats are vacant fewer may publish
// than whoever gets a copy demands: the copy then waits for a checkpoint that has enough, and the
// log is kept.
func (m *Machine) published(size uint64, note []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.states.pending
	if p == nil || size <= p.leaf {
		return
	}
	if v, err := transparency.Verify(note, snapshotPolicy(m)); err != nil || v.Level < transparency.Published {
		return
	}
	p.checkpoint = note
	m.states.published, m.states.pending = p, nil
	if have := m.seq(); have > m.keep {
		if cut := min(p.seq, have-m.keep); cut > m.base {
			m.history = slices.Clone(m.history[cut-m.base:])
			m.base = cut
		}
	}
}

var (
	errNoState  = errors.New("no published copy of the state yet")
	errNotLevel = errors.New("this node has followed commands that Raft has still to deliver")
)

// Snapshot returns what encodes a snapshot of this moment, as Raft knows it: a machine that has
// come further by following others is not what Raft's log led to.
func (m *Machine) Snapshot() (encode func() ([]byte, error), err error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.ordered != m.seq() {
		return nil, errNotLevel
	}
	return m.snapshot()
}

// Give returns what encodes a snapshot of this moment for a member.
func (m *Machine) Give() (encode func() ([]byte, error), err error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.snapshot()
}

// snapshot is Give. The caller holds m.mu.
func (m *Machine) snapshot() (encode func() ([]byte, error), err error) {
	p := m.states.published
	if m.halted != nil {
		return nil, m.halted
	}
	if p == nil || p.copied == nil {
		return nil, errNoState
	}
	commands := slices.Clone(m.history[p.seq-m.base:])
	if len(commands) > maxSnapshotCommands {
		return nil, fmt.Errorf("%d commands since the published copy, the limit is %d", len(commands), maxSnapshotCommands)
	}
	return func() ([]byte, error) {
		return snapshots.Encode(wireSnapshot{Version: snapshotVersion, Copy: p.copied, Checkpoint: p.checkpoint, Commands: commands})
	}, nil
}

// SavedSeq returns how many commands came before the newest published copy; 0 without.
func (m *Machine) SavedSeq() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if p := m.states.published; p != nil && p.copied != nil {
		return p.seq
	}
	return 0
}

// restored is a machine that was made from a snapshot, beside the one that runs.
type restored struct {
	sum      [32]byte // SHA-256 of the snapshot
	machine  *Machine
	saved    *savedState
	edge     transparency.Edge
	size     uint64 // of the checkpoint …
	root     transparency.Hash
	leaves   [][]byte // after edge
	commands [][]byte
}

// open verifies a snapshot and makes a machine of it, in memory.
func (m *Machine) open(raw []byte) (*restored, error) {
	r, err := m.openSnapshot(raw)
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	return r, nil
}

func (m *Machine) openSnapshot(raw []byte) (*restored, error) {
	if len(raw) > replica.MaxSnapshot {
		return nil, fmt.Errorf("%d bytes, the limit is %d", len(raw), replica.MaxSnapshot)
	}
	var w wireSnapshot
	if err := snapshots.Decode(raw, &w); err != nil {
		return nil, err
	}
	var c wireCopy
	if err := snapshots.Decode(w.Copy, &c); err != nil {
		return nil, fmt.Errorf("copy: %w", err)
	}
	if w.Version != snapshotVersion || c.Version != snapshotVersion {
		return nil, fmt.Errorf("versions %d and %d, this release reads %d", w.Version, c.Version, snapshotVersion)
	}
	tree, err := transparency.NewTree(nil)
	if err != nil {
		return nil, err
	}
	r := &restored{sum: sha256.Sum256(raw), edge: transparency.Edge{Size: c.Size, Tiles: c.Tiles, Bundle: c.Bundle}, commands: w.Commands}
	if err := tree.Resume(r.edge); err != nil {
		return nil, err
	}
	next := newMachine(m.genesis, tree, newNotifier(), m.now)
	next.base, next.states.pending = c.Seq, &savedState{} // there is a copy already
	if next.state, err = consensus.Restore(m.genesis, c.State); err != nil {
		return nil, err
	}
	if next.ledger, err = federated.RestoreLedger(m.genesis.MeshID(), c.Ledger); err != nil {
		return nil, err
	}
	if err := next.place(c.Places); err != nil {
		return nil, err
	}
	r.machine = next
	if err := r.replay(w.Checkpoint); err != nil {
		return nil, err
	}
	r.saved.copied = w.Copy
	return r, nil
}

// place sets the leaf indices of the edges.
func (m *Machine) place(places []byte) error {
	edges := m.state.AllEdges()
	if len(places) != 8*len(edges) {
		return fmt.Errorf("%d bytes of places for %d edges", len(places), len(edges))
	}
	for i, e := range edges {
		m.leaves[transparency.LeafHash(e.Raw())] = binary.BigEndian.Uint64(places[8*i:])
	}
	return nil
}

// replay applies the commands and holds the log that they lead to against the checkpoint.
func (r *restored) replay(note []byte) error {
	m := r.machine
	c, err := transparency.ParseCheckpoint(note)
	if err != nil {
		return err
	}
	var policy *transparency.Policy
	for i, raw := range r.commands {
		out := m.apply(raw)
		if out.Err != nil {
			return fmt.Errorf("command %d: %w", m.base+uint64(i)+1, out.Err)
		}
		if i == 0 {
			if r.saved = m.saved; r.saved == nil {
				return errors.New("the first command is no digest")
			}
		}
		if end := out.First + out.Count; out.Count == 0 || end > c.Size {
			if err := m.Check(raw); err != nil {
				return fmt.Errorf("command %d: %w", out.Seq, err)
			}
		}
		if policy == nil && m.tree.Size() >= c.Size {
			p := snapshotPolicy(m)
			policy = &p
		}
	}
	switch {
	case r.saved == nil || policy == nil:
		return fmt.Errorf("%d commands lead to %d leaves, the checkpoint has %d", len(r.commands), m.tree.Size(), c.Size)
	case c.Size <= r.saved.leaf:
		return fmt.Errorf("a checkpoint of size %d, below the state leaf %d", c.Size, r.saved.leaf)
	}
	root, err := m.tree.RootAt(c.Size)
	if err != nil {
		return err
	}
	if root != c.Root {
		return fmt.Errorf("leads to root %s at size %d, the checkpoint says %s: not the state that was logged", root, c.Size, c.Root)
	}
	v, err := transparency.Verify(note, *policy)
	if err != nil {
		return err
	}
	if v.Level < transparency.Published {
		return fmt.Errorf("its checkpoint of size %d is cosigned by %v only, want %d organisations", c.Size, v.Orgs, policy.Quorum.Published)
	}
	r.saved.checkpoint, r.size, r.root = note, c.Size, c.Root
	for i := r.edge.Size; i < m.tree.Size(); i++ {
		leaf, err := m.tree.Leaf(i)
		if err != nil {
			return err
		}
		r.leaves = append(r.leaves, leaf)
	}
	return nil
}

// snapshotPolicy is what the checkpoint of a snapshot is held against.
func snapshotPolicy(m *Machine) transparency.Policy {
	p := transparency.Policy{Origin: m.state.Origin(), LogKey: m.state.LogKey(), At: m.now()}
	quorum := m.state.SnapshotQuorum()
	p.Quorum = transparency.Quorum{Published: quorum, Strong: max(quorum, m.state.StrongQuorum())}
	for _, c := range cosignersOf(m.state) {
		p.Cosigners = append(p.Cosigners, c)
	}
	return p
}

// CheckSnapshot decides whether Restore would take a snapshot, whose Raft configuration has
// these servers. It changes nothing.
func (m *Machine) CheckSnapshot(raw []byte, servers []identity.PeerID) error {
	r, err := m.open(raw)
	if err != nil {
		return err
	}
	for _, p := range servers {
		if _, known := r.machine.state.Node(p); !known && !r.machine.state.Retired(p) {
			return fmt.Errorf("snapshot: its Raft configuration has %s, of which its state knows nothing", p.Short())
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.agrees(r); err != nil {
		return err
	}
	m.states.restored = r
	return nil
}

// agrees demands that r is of the same history as far as that is known. The caller holds m.mu.
func (m *Machine) agrees(r *restored) error {
	if root, err := m.tree.RootAt(r.size); err == nil && root != r.root {
		return fmt.Errorf("snapshot: its log has root %s at size %d, this one %s: two histories", r.root, r.size, root)
	}
	first := r.machine.base
	for seq := max(first, m.base); seq < min(m.seq(), r.machine.seq()); seq++ {
		if !bytes.Equal(m.history[seq-m.base], r.commands[seq-first]) {
			return fmt.Errorf("snapshot: its command %d is another than the one applied here: two histories", seq+1)
		}
	}
	return nil
}

// Restore takes a snapshot in place of the commands that Raft has not delivered up to its end. A
// machine that has followed others beyond that stays as it is.
func (m *Machine) Restore(raw []byte) error {
	r, err := m.verified(raw)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.become(r); err != nil {
		return err
	}
	m.ordered = r.machine.seq()
	return nil
}

// CatchUp takes a snapshot that a member was given.
func (m *Machine) CatchUp(raw []byte) error {
	r, err := m.verified(raw)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if end := r.machine.seq(); end <= m.seq() {
		return fmt.Errorf("snapshot: of %d commands, %d were applied here already", end, m.seq())
	}
	return m.become(r)
}

// verified returns the machine of a snapshot, which CheckSnapshot may have made already.
func (m *Machine) verified(raw []byte) (*restored, error) {
	m.mu.Lock()
	r := m.states.restored
	m.states.restored = nil
	m.mu.Unlock()
	if r != nil && r.sum == sha256.Sum256(raw) {
		return r, nil
	}
	return m.open(raw)
}

// become makes this machine that of a snapshot: by the commands it lacks, where it has come as far
// as the copy, else by the copy. The caller holds m.mu.
func (m *Machine) become(r *restored) error {
	defer m.changed.notify()
	if m.halted != nil {
		return m.halted
	}
	if err := m.agrees(r); err != nil {
		return err
	}
	if m.seq() >= r.machine.seq() {
		return nil
	}
	if m.seq() >= r.machine.base && m.base <= r.machine.base {
		for _, raw := range r.commands[m.seq()-r.machine.base:] {
			if out := m.applyLocked(raw); out.Err != nil {
				return out.Err
			}
		}
		return nil
	}
	return m.adopt(r)
}

// adopt replaces everything. The caller holds m.mu.
func (m *Machine) adopt(r *restored) error {
	before := &earlierHead{}
	before.size, before.root = m.tree.Head()
	err := m.tree.Resume(r.edge)
	if err == nil {
		_, err = m.tree.AppendAll(r.leaves)
	}
	if err != nil {
		m.halted = fmt.Errorf("%w while a snapshot was restored: %w", errHalted, err)
		return m.halted
	}
	next, policy := r.machine, m.state.PolicyState
	m.state, m.ledger, m.history, m.base, m.saved = next.state, next.ledger, next.history, next.base, next.saved
	for h, i := range next.leaves {
		m.leaves[h] = i
	}
	m.states.published, m.states.pending = r.saved, nil
	m.before = before
	m.notInForce(policy, m.tree.Size()-1) // what it has passed over
	m.applied[m.state.Epoch()] = m.now()
	if now := m.now(); !m.tickAt.IsZero() && now.Sub(m.tickAt) > maxStaleness {
		m.gaps++
	}
	m.tickAt, m.clockAt = m.now(), m.now()
	m.moved++
	m.changes++
	// What was heard may have been ordered, and ended, in what the copy has passed over.
	m.settle(true)
	return nil
}

// fill stores a tile of the log that a restored machine lacks.
func (m *Machine) fill(name string, data []byte) error {
	first, leaves, err := m.tree.Fill(name, data)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, h := range leaves {
		if _, known := m.leaves[h]; !known { // of two equal leaves the later counts
			m.leaves[h] = first + uint64(i)
		}
	}
	return nil
}

// earlierHead is what the log was when a snapshot replaced it.
type earlierHead struct {
	size uint64
	root transparency.Hash
}

// checkBefore holds the log that a snapshot brought against the one that was there before, once
// all tiles have come. Both were cosigned by majorities: that they differ is no fault that
// could be mended here.
func (m *Machine) checkBefore() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.before
	if m.before = nil; b == nil || b.size == 0 {
		return nil
	}
	root, err := m.tree.RootAt(b.size)
	if err != nil {
		return fmt.Errorf("log before the snapshot: %w", err)
	}
	if root != b.root {
		return fmt.Errorf("size %d had root %s here, the snapshot says %s: two histories", b.size, b.root, root)
	}
	return nil
}
