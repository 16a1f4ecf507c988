package node

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// maxHistory bounds the ordered commands that are kept for members who follow, keepHistory how
// many are kept behind the newest published state: who needs older ones starts from that
// state (snapshot.go). The first is reached only where no state is published.
const (
	maxHistory  = 1 << 20
	keepHistory = 4096
)

// errHalted is wrapped by every error after a command that this release cannot apply:
// going on would build another history than the other seats'.
var errHalted = errors.New("the replicated machine has halted")

// Applied is the outcome of one ordered command.
type Applied struct {
	// Seq counts ordered commands from 1, on every node alike.
	Seq uint64
	// First is the index of the first leaf and Count how many there are.
	First, Count uint64
	// Proposal describes the proposal that took effect, if the command was one.
	Proposal *consensus.Accepted
	// Reason is why the command was refused and changed nothing; nil if it was not.
	Reason *attest.Reason
	// Again are the results of a batch that were left out for a quota, by their index: they may
	// be ordered after the next tick.
	Again []int
	// Err is set if the machine has halted.
	Err error `json:"-"`

	kind consensus.Kind
}

// Machine is the replicated machine: the governance state, the federated ledger and the
// log, fed with one ordered history. Seats feed it from Raft, other members from a seat's
// stream of the same commands. Given the same commands it has the same state everywhere;
// the wall clock enters only as the local record of when something was applied.
type Machine struct {
	genesis *consensus.Genesis
	now     func() time.Time
	changed *notifier
	news    *notifier // wakes who passes on policy steps and what was heard
	tree    *transparency.Tree
	checked checked

	mu      sync.RWMutex
	state   *consensus.State             // guarded by mu
	ledger  *federated.Ledger            // guarded by mu
	history [][]byte                     // guarded by mu; ordered commands, for followers
	keep    uint64                       // how many commands are kept behind a published copy
	base    uint64                       // guarded by mu; how many commands came before history
	states  states                       // guarded by mu; copies of the state at digest commands
	before  *earlierHead                 // guarded by mu; until the tiles behind a snapshot have come
	saved   *savedState                  // guarded by mu; the newest digest command, nil before the first
	leaves  map[transparency.Hash]uint64 // guarded by mu; index of each leaf by its hash
	applied map[identity.Epoch]time.Time // guarded by mu; when this node applied each epoch
	tickAt  time.Time                    // guarded by mu; when this node applied the newest tick of a majority
	ordered uint64                       // guarded by mu; commands that Raft has delivered here
	marks   []mark                       // guarded by mu; newest last
	clockAt time.Time                    // guarded by mu; when this node applied the newest tick of any
	gaps    uint64                       // guarded by mu; counts ticks that came after maxStaleness
	moved   uint64                       // guarded by mu; see Moved
	changes uint64                       // guarded by mu; counts changes of what is suspended
	pulled  *consensus.PolicyState       // guarded by mu; a policy chain ahead of the ordered one, or nil
	heard   consensus.Provisional        // guarded by mu; see heard.go
	lapsed  uint64                       // guarded by mu; counts what left heard without having been ordered
	gated   bool                         // guarded by mu; see strong.go
	awaited []awaited                    // guarded by mu; oldest first
	opened  uint64                       // guarded by mu; counts changes that have become strong
	halted  error                        // guarded by mu
}

func newMachine(g *consensus.Genesis, tree *transparency.Tree, changed *notifier, now func() time.Time) *Machine {
	return &Machine{
		genesis: g, now: now, changed: changed, news: newNotifier(), tree: tree, keep: keepHistory,
		state: consensus.NewState(g), ledger: federated.NewLedger(g.MeshID()),
		leaves: map[transparency.Hash]uint64{}, applied: map[identity.Epoch]time.Time{},
	}
}

// errFollowed is the outcome of a command that came by another way first: what it did is not
// kept. Whoever submitted it asks again and hears that it is ordered.
var errFollowed = errors.New("applied before Raft delivered it")

// Apply applies the next command that Raft delivers and returns an Applied. It is called by
// one goroutine. A seat that was cut off, or has not caught up yet, may have followed others
// meanwhile (seat.go); what it has applied already must be the same.
func (m *Machine) Apply(_, _ uint64, raw []byte) any {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ordered++
	switch {
	case m.halted != nil || m.ordered > m.seq():
		return m.applyLocked(raw)
	case m.ordered > m.base && !bytes.Equal(m.history[m.ordered-1-m.base], raw):
		m.halted = fmt.Errorf("%w at command %d: Raft delivers another than the one that this node has followed: two histories", errHalted, m.ordered)
		m.changed.notify()
		return Applied{Err: m.halted}
	}
	return Applied{Seq: m.ordered, Err: errFollowed}
}

func (m *Machine) apply(raw []byte) Applied {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.applyLocked(raw)
}

// follow applies command number seq, which some seat says was ordered. One that was
// applied already must be the same: two seats that order differently are two histories.
func (m *Machine) follow(seq uint64, raw []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch have := m.seq(); {
	case seq <= m.base:
		return nil // long ago; a published state holds what it led to
	case seq <= have:
		if !bytes.Equal(m.history[seq-1-m.base], raw) {
			return fmt.Errorf("command %d is another than the one applied here: two histories", seq)
		}
		return nil
	case seq > have+1:
		return fmt.Errorf("command %d comes after %d", seq, have)
	}
	return m.applyLocked(raw).Err
}

func (m *Machine) applyLocked(raw []byte) Applied {
	defer m.changed.notify()
	if m.halted != nil {
		return Applied{Err: m.halted}
	}
	leaves, out, err := m.dispatch(raw)
	out.First, out.Count = m.tree.Size(), uint64(len(leaves))
	if err == nil {
		// Together, so that no checkpoint falls between a decision and what it derives.
		_, err = m.tree.AppendAll(leaves)
	}
	for i, leaf := range leaves {
		m.leaves[transparency.LeafHash(leaf)] = out.First + uint64(i)
	}
	if err == nil && len(m.history) >= maxHistory {
		err = fmt.Errorf("%d ordered commands are kept already", maxHistory)
	}
	if err != nil {
		m.halted = fmt.Errorf("%w at command %d: %w", errHalted, m.seq()+1, err)
		return Applied{Err: m.halted}
	}
	m.history = append(m.history, slices.Clone(raw))
	out.Seq = m.seq()
	m.mark(out.kind)
	return out
}

// seq returns how many commands were applied. The caller holds m.mu.
func (m *Machine) seq() uint64 { return m.base + uint64(len(m.history)) }

// dispatch hands the command to the room that owns its kind. An error halts the machine.
func (m *Machine) dispatch(raw []byte) ([][]byte, Applied, error) {
	if results := m.checked.take(raw); results != nil {
		return m.outcome(consensus.Command{Kind: consensus.KindResults}, m.state.ApplyResults(results))
	}
	c, err := consensus.DecodeCommand(raw)
	if err != nil {
		return nil, Applied{}, err
	}
	switch c.Kind {
	case consensus.KindDigest:
		out := m.logState(c)
		return out.Leaves, Applied{Reason: out.Reason}, nil
	case consensus.KindJob, consensus.KindRoundOpen, consensus.KindRoundClose, consensus.KindRoundCommit:
		out := m.ledger.Apply(string(c.Kind), c.Body, m.members(m.state))
		return out.Leaves, Applied{Reason: out.Reason, kind: c.Kind}, nil
	}
	var before *consensus.PolicyState
	if c.Kind == consensus.KindProposal && m.gated {
		before, _ = m.state.PolicyState.Append(nil) // a copy
	}
	out := m.state.Apply(c)
	m.notInForce(before, m.tree.Size()) // its leaf is the next
	return m.outcome(c, out)
}

// outcome settles what a command of governance did.
func (m *Machine) outcome(c consensus.Command, out consensus.Outcome) ([][]byte, Applied, error) {
	if out.Reason == nil && out.EpochChanged {
		m.applied[m.state.Epoch()] = m.now()
	}
	if len(out.Evicted)+len(out.Retired) > 0 || out.DemandsChanged {
		m.moved++
	}
	if out.SuspensionsChanged {
		m.changes++
	}
	m.settle(out.EpochChanged || out.SuspensionsChanged || c.Kind == consensus.KindBootstrap || c.Kind == consensus.KindWithdrawal)
	if out.Reason == nil && c.Kind == consensus.KindTick {
		m.clockAt = m.now()
	}
	// A tick that no majority has signed shows nobody that the mesh goes on: one node can make it.
	// Where fewer seats than that are held, all of them have to sign.
	if out.Reason == nil && c.Kind == consensus.KindTick && out.Sampled >= m.state.ReadyQuorum() {
		now := m.now()
		if !m.tickAt.IsZero() && now.Sub(m.tickAt) > maxStaleness {
			m.gaps++
		}
		m.tickAt = now
	}
	applied := Applied{Reason: out.Reason, Proposal: out.Proposal, kind: c.Kind}
	for _, skip := range out.Skipped {
		if skip.Reason.Code == attest.CodeQuota {
			applied.Again = append(applied.Again, skip.Index)
		}
	}
	return out.Leaves, applied, nil
}

// Limits of what is remembered of Check: of maxChecked commands that they have passed, of
// maxVerified, which follow each other closely, what was decoded.
const (
	maxChecked  = 256
	maxVerified = 32
)

// checked remembers the newest commands that have passed Check, by their SHA-256. A batch of
// results is a hundred signatures; it is offered by its submitter, again while nobody leads, then
// stored, and then applied.
type checked struct {
	mu       sync.Mutex
	passed   map[[32]byte]bool               // guarded by mu
	order    [maxChecked][32]byte            // guarded by mu; a ring
	next     int                             // guarded by mu
	verified map[[32]byte]*consensus.Results // guarded by mu; of the newest in order
}

func (c *checked) has(sum [32]byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.passed[sum]
}

// add remembers a command; results is nil for other kinds.
func (c *checked) add(sum [32]byte, results *consensus.Results) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.passed[sum] {
		return
	}
	if c.passed == nil {
		c.passed, c.verified = map[[32]byte]bool{}, map[[32]byte]*consensus.Results{}
	}
	delete(c.passed, c.order[c.next])
	delete(c.verified, c.order[(c.next+maxChecked-maxVerified)%maxChecked])
	c.order[c.next], c.passed[sum] = sum, true
	if results != nil {
		c.verified[sum] = results
	}
	c.next = (c.next + 1) % maxChecked
}

// take returns what was decoded of a results command, once; nil where that is not there any more.
func (c *checked) take(raw []byte) *consensus.Results {
	sum := sha256.Sum256(raw)
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.verified[sum]
	delete(c.verified, sum)
	return out
}

// Check is the follower's guard: it refuses an entry whose results are not signed by who
// they say, before the entry is stored. It reads immutable bytes only, so what has passed passes
// again.
func (m *Machine) Check(raw []byte) error {
	sum := sha256.Sum256(raw)
	if m.checked.has(sum) {
		return nil
	}
	results, err := checkCommand(raw)
	if err == nil {
		m.checked.add(sum, results)
	}
	return err
}

func checkCommand(raw []byte) (*consensus.Results, error) {
	c, err := consensus.DecodeCommand(raw)
	if err != nil {
		return nil, err
	}
	switch c.Kind {
	case consensus.KindJob, consensus.KindRoundOpen, consensus.KindRoundClose, consensus.KindRoundCommit:
		return nil, federated.CheckCommand(string(c.Kind), c.Body)
	case consensus.KindResults:
		return consensus.VerifyResults(c)
	}
	return nil, nil
}

// View runs f on a consistent state. f must not keep what it is given nor block.
func (m *Machine) View(f func(*consensus.State, *federated.Ledger)) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	f(m.state, m.ledger)
}

// Seq returns how many commands were applied.
func (m *Machine) Seq() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.seq()
}

// Digest names the ordered state, federated ledger included.
func (m *Machine) Digest() StateStatus {
	m.mu.RLock()
	defer m.mu.RUnlock()
	sum := m.digest()
	return StateStatus{Commands: m.seq(), Digest: hex.EncodeToString(sum[:])}
}

// digest is that of everything that decides what commands do: the governance state, the
// federated ledger, and where in the log the edges stand, which rounds refer to. The caller holds
// m.mu.
func (m *Machine) digest() [32]byte {
	state, ledger, places := m.state.Digest(), m.ledger.Digest(), sha256.Sum256(m.places())
	return sha256.Sum256(slices.Concat(state[:], ledger[:], places[:]))
}

// places returns the leaf index of every edge, u64 big-endian each, in the order of
// State.AllEdges. The caller holds m.mu.
func (m *Machine) places() []byte {
	var out []byte
	for _, e := range m.state.AllEdges() {
		out = binary.BigEndian.AppendUint64(out, m.leaves[transparency.LeafHash(e.Raw())])
	}
	return out
}

// memberView shows the governance state to the federated ledger: it is all that one knows
// of the other.
type memberView struct {
	s      *consensus.State
	leafOf func(leaf []byte) (uint64, bool)
}

// members returns the ledger's view of s. The caller holds m.mu, as View and Apply do.
func (m *Machine) members(s *consensus.State) memberView {
	return memberView{s, func(leaf []byte) (uint64, bool) {
		i, ok := m.leaves[transparency.LeafHash(leaf)]
		return i, ok
	}}
}

// leafIndex returns where a leaf stands in the log.
func (m *Machine) leafIndex(leaf []byte) (uint64, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	i, ok := m.leaves[transparency.LeafHash(leaf)]
	return i, ok
}

// Since returns the commands after the first seq, at most limit. It is false for commands that
// are not kept any more.
func (m *Machine) Since(seq uint64, limit int) ([][]byte, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if seq < m.base {
		return nil, false
	}
	if seq >= m.seq() {
		return nil, true
	}
	rest := m.history[seq-m.base:]
	return slices.Clone(rest[:min(limit, len(rest))]), true
}

// Moved counts the changes that may put a linked peer out: evictions, by vote or by an
// entry's end, demands that came due, and newer boots.
func (m *Machine) Moved() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.moved
}

// Suspended counts the changes of what is suspended.
func (m *Machine) Suspended() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.changes
}

// Halted returns why the machine has halted, or nil.
func (m *Machine) Halted() error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.halted
}

// DecidedAt returns when this node applied the change to epoch e.
func (m *Machine) DecidedAt(e identity.Epoch) time.Time {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.applied[e]
}

// TickAt returns when this node applied the newest tick that seats of a majority have signed.
func (m *Machine) TickAt() time.Time {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.tickAt
}

// Now returns the ordered time, zero before the first tick, and when this node heard of it.
func (m *Machine) Now() (ordered, at time.Time) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.state.Now(), m.clockAt
}

// TickSeq returns the number of the newest tick.
func (m *Machine) TickSeq() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.state.TickSeq()
}

// Gaps counts the ticks that came later than maxStaleness after the one before.
func (m *Machine) Gaps() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.gaps
}

// Epoch returns the policy epoch.
func (m *Machine) Epoch() identity.Epoch {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.state.Epoch()
}

// Started reports whether Bootstrap was ordered.
func (m *Machine) Started() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.state.Started()
}

// PolicyChain returns the signed history of the policy.
func (m *Machine) PolicyChain() [][]byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.state.PolicyChain()
}
