package node

import (
	"context"
	"crypto/rand"
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

// Recovery, as a node takes part in it. When a majority of the seats is gone, or all nodes
// were switched off, the organisations sign a Recovery and every node is started anew:
//
//	run with recovery: FILE ──► find the log that it goes on from, replay it (oldlog.go)
//	                            refuse if a longer published log is known, or a majority lives
//	   founding seats       ──► the founding ceremony (found.go) in the new incarnation, whose
//	                            first command is [recovery, bootstrap]
//	   every other node     ──► hears of it by the policy chain that peers publish, proves the
//	                            chain from genesis, reads the old log from peers, follows
//
// A process belongs to one incarnation for its life. One that hears of a higher one, with
// its Recovery and the Bootstrap that all of its founders' enrollers have signed, stops: a
// majority that was frozen meanwhile and thaws is many such processes. Nothing of a lower
// incarnation is valid in a higher one, so that they get no stream and accuse nobody.

const (
	recoverEvery  = time.Second
	aliveWithin   = 2 * time.Second
	recoverWithin = 5 * time.Minute // reading and replaying one log
)

// Incarnated is implemented by enrollers that serve meshes which have been recovered. In
// returns the same boot before the enroller of an incarnation.
type Incarnated interface {
	In(identity.Incarnation) Enroller
}

// recover brings this node's machine to where the incarnation of the recovery file begins.
// It tries until there is a log to go on from, and says why not in status.
func (n *Node) recover(ctx context.Context, f *consensus.RecoveryFile) error {
	if _, err := f.Founding(time.Time{}); err != nil {
		return &ConfigError{Field: "recovery", Err: err, Remedy: "have more organisations sign it: meshnode recover sign"}
	}
	for {
		err := n.tryRecover(ctx, f)
		var refused *RefusedError
		if err == nil || ctx.Err() != nil || errors.As(err, &refused) {
			return err
		}
		n.waitsFor(attest.NewReason(attest.CodeUnavailable, "log to go on from", err.Error(), fmt.Sprintf("size %d, root %.16s", f.Recovery.Checkpoint.Size, f.Recovery.Checkpoint.Root)))
		select {
		case <-time.After(recoverEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (n *Node) tryRecover(ctx context.Context, f *consensus.RecoveryFile) error {
	ctx, cancel := context.WithTimeout(ctx, recoverWithin)
	defer cancel()
	l, err := n.chooseLog(ctx, f.Recovery)
	if err != nil {
		return err
	}
	n.setBefore(l.state)
	return n.resume(l, f.Envelope().Marshal())
}

// chooseLog returns the log that r goes on from: the one that it names, if nobody has a longer
// one; for a planned one the longest published one that holds what it names.
func (n *Node) chooseLog(ctx context.Context, r *consensus.Recovery) (*oldLog, error) {
	if r.Planned {
		l := n.newestLog(ctx, r.PreviousOrigin, r.Checkpoint.Size-1, n.keptLogs())
		if l == nil {
			return nil, fmt.Errorf("no published log of %s with %d entries or more in %s/boot-*/log or at a peer", r.PreviousOrigin, r.Checkpoint.Size, n.cfg.Data)
		}
		if err := l.holds(r.Checkpoint); err != nil {
			l.close()
			return nil, err
		}
		return l, nil
	}
	find, cancel := inTurn(ctx, 2)
	defer cancel()
	l, err := n.findLog(find, r.Checkpoint)
	if err != nil {
		return nil, err
	}
	if longer := n.newestLog(ctx, r.PreviousOrigin, r.Checkpoint.Size, n.keptLogs()); longer != nil {
		l.close()
		longer.close()
		return nil, &RefusedError{attest.NewReason(attest.CodeRolledBack, "recovery", fmt.Sprintf("size %d", r.Checkpoint.Size), fmt.Sprintf("at least %d, which a quorum has cosigned: %s", longer.at.Size, longer.from))}
	}
	return l, nil
}

// setBefore keeps the state that the incarnation goes on from: it knows whose word says that
// the lower one lives.
func (n *Node) setBefore(s *consensus.State) {
	policy := *s.PolicyState // Recover replaces what this points to, and changes none of it
	n.mu.Lock()
	defer n.mu.Unlock()
	n.before, n.beforeQuorum = &policy, s.Quorum()
}

// resume makes the log l, and the state in which the Recovery raw leaves it, this node's own, and
// gives up l.
func (n *Node) resume(l *oldLog, raw []byte) error {
	defer l.close()
	was := n.incarnation()
	if err := l.state.Recover(raw, l.at, time.Time{}); err != nil {
		return &RefusedError{*consensus.ReasonOf(err)}
	}
	if err := n.machine.resume(l); err != nil {
		return err
	}
	if l.note != nil {
		if err := n.machine.tree.Publish(l.note); err != nil {
			return err
		}
	}
	inc := n.incarnation()
	if e, ok := n.enroller.(Incarnated); ok && inc != was { // before any task of this node runs
		n.enroller = e.In(inc)
	}
	n.log.Info("going on from an older log", "incarnation", uint64(inc), "size", l.at.Size, "root", l.at.Root, "log", l.from)
	return nil
}

// resume replaces the machine's state, which has applied nothing yet, by that of l. The tree
// may hold a part of l already.
func (m *Machine) resume(l *oldLog) error {
	defer m.changed.notify()
	m.mu.Lock()
	defer m.mu.Unlock()
	size := m.tree.Size()
	if len(m.history) > 0 || size > l.at.Size {
		return fmt.Errorf("a log of %d leaves cannot be resumed on %d leaves and %d commands", l.at.Size, size, len(m.history))
	}
	if size > 0 {
		root, err := m.tree.RootAt(size)
		if err == nil {
			err = l.holds(consensus.CheckpointSeen{Size: size, Root: root.String()})
		}
		if err != nil {
			return err
		}
	}
	if err := l.leaves.appendTo(m.tree, size); err != nil {
		return err
	}
	if _, root := m.tree.Head(); root.String() != l.at.Root {
		return fmt.Errorf("size %d has root %s here, want %s", l.at.Size, root, l.at.Root)
	}
	if err := errors.Join(m.tree.Flush(l.at.Size), m.tree.Sync()); err != nil {
		return err
	}
	err := l.leaves.each(func(i uint64, leaf []byte) error {
		m.leaves[transparency.LeafHash(leaf)] = i
		return nil
	})
	if err != nil {
		return err
	}
	m.state, m.ledger = l.state, l.ledger
	if m.pulled != nil && m.pulled.Incarnation() != m.state.Incarnation() {
		m.pulled = nil
	}
	m.resettle()
	return nil
}

// waitsFor says in status why this node is not enrolled yet.
func (n *Node) waitsFor(why attest.Reason) {
	n.log.Warn("waiting", "reason", why.String())
	n.mu.Lock()
	n.phaseReason = &why
	n.mu.Unlock()
	n.changed.notify()
}

// discover looks for a higher incarnation in what peers publish, and brings this node's
// machine to where it begins. It reports whether there was one.
func (n *Node) discover(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, recoverWithin)
	defer cancel()
	var best *consensus.PolicyState
	for _, chain := range n.publishedChains(ctx) {
		p, err := consensus.ReplayPolicy(n.genesis, chain)
		if err != nil {
			n.log.Warn("policy not believed", "error", err)
			continue
		}
		if p.Started() && p.Incarnation() > n.incarnation() && (best == nil || p.Incarnation() > best.Incarnation()) {
			best = p
		}
	}
	if best == nil {
		return false
	}
	if err := n.enter(ctx, best); err != nil {
		n.waitsFor(attest.NewReason(attest.CodeUnavailable, fmt.Sprintf("log of incarnation %d", best.Incarnation()), err.Error(), "a peer that serves it"))
		return false
	}
	return true
}

// enter goes on from the log that p, an incarnation that has started, goes on from.
func (n *Node) enter(ctx context.Context, p *consensus.PolicyState) error {
	l, err := n.findLog(ctx, p.Continues())
	if err != nil {
		return err
	}
	return n.resume(l, p.Recovery().Raw())
}

// publishedChains returns the policy chains that the configured peers publish.
func (n *Node) publishedChains(ctx context.Context) (out [][][]byte) {
	ctx, cancel := context.WithTimeout(ctx, publicTimeout)
	defer cancel()
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, url := range n.cfg.Peers {
		all.Go(func() {
			if doc, err := n.directory.Policy(ctx, url); err == nil && len(doc.Chain) > 0 {
				mu.Lock()
				defer mu.Unlock()
				out = append(out, doc.Chain)
			}
		})
	}
	all.Wait()
	return out
}

// considerChain keeps a policy chain that a peer publishes if it is of this incarnation and
// longer than what is known, and ends the node if it is of a higher one that has started.
func (n *Node) considerChain(url string, chain [][]byte) {
	_, err := n.machine.Extend(0, chain)
	if err == nil {
		return
	}
	// Another beginning than ours may be that of a mesh which went on without our tail.
	p, bad := consensus.ReplayPolicy(n.genesis, chain)
	switch {
	case bad != nil:
		n.log.Warn("policy not believed", "url", url, "error", bad)
	case p.Incarnation() > n.incarnation() && p.Started():
		n.superseded(p)
	case p.Incarnation() == n.incarnation() && n.machine.await(p):
	default:
		n.log.Debug("policy not extended", "url", url, "error", err)
	}
}

// await keeps a policy chain of the incarnation that this machine waits for. It may hold steps
// of the lower one that the machine's own log, which align replaces then, is too short for.
func (m *Machine) await(p *consensus.PolicyState) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.state.Recovering() || !p.Started() || p.Incarnation() != m.state.Incarnation() {
		return false
	}
	if m.pulled == nil || m.pulled.Steps() < p.Steps() {
		m.pulled = p
		m.resettle()
		m.moved++
		m.changed.notify()
		m.news.notify()
	}
	return true
}

// superseded ends this process: the mesh goes on without it.
func (n *Node) superseded(p *consensus.PolicyState) {
	n.fail(&RefusedError{attest.NewReason(attest.CodeSuperseded, "incarnation", fmt.Sprint(n.incarnation()),
		fmt.Sprintf("%d, recovered from size %d of %s", p.Incarnation(), p.Continues().Size, p.Recovery().PreviousOrigin))})
}

// align makes a machine that has applied nothing begin where the incarnation that peers have
// started began: a planned Recovery leaves that to its founders.
func (n *Node) align(ctx context.Context) {
	for ctx.Err() == nil {
		p := n.machine.Pulled()
		var at consensus.CheckpointSeen
		n.machine.View(func(s *consensus.State, _ *federated.Ledger) { at = s.Continues() })
		if n.incarnation() == 0 || n.machine.Started() || p != nil && p.Started() && p.Continues() == at {
			return
		}
		if p != nil && p.Started() {
			if size := n.machine.tree.Size(); size > p.Continues().Size {
				n.fail(&RefusedError{attest.NewReason(attest.CodeRolledBack, "log that the mesh went on from", fmt.Sprintf("size %d", p.Continues().Size), fmt.Sprintf("at least %d, which this node has kept", size))})
				return
			}
			if err := n.enter(ctx, p); err != nil {
				n.log.Warn("the log that the mesh went on from is not here yet", "error", err)
			}
		}
		select {
		case <-time.After(recoverEvery):
		case <-ctx.Done():
		}
	}
}

// adoptNewest goes on from a longer log that another founder has kept, while the incarnation
// of a planned Recovery has not begun.
func (n *Node) adoptNewest(ctx context.Context) {
	r := n.plannedRecovery()
	if r == nil || n.machine.Started() {
		return
	}
	l := n.newestLog(ctx, r.PreviousOrigin, n.machine.tree.Size(), n.peerLogs())
	if l == nil {
		return
	}
	n.setBefore(l.state)
	if err := n.resume(l, r.Raw()); err != nil {
		n.log.Warn("a longer log is not gone on from", "log", l.from, "error", err)
	}
}

func (n *Node) plannedRecovery() (r *consensus.Recovery) {
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) {
		if got := s.Recovery(); s.Recovering() && got.Planned {
			r = got
		}
	})
	return r
}

// majorityReason is what holdsBack found last.
func (n *Node) majorityReason() *attest.Reason {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.heldBack
}

// majorityLives says that seats which are a quorum of the lower incarnation have just signed
// a fresh nonce, or nil: while the mesh orders, nothing is recovered from it.
func (n *Node) majorityLives(ctx context.Context) *attest.Reason {
	n.mu.Lock()
	before, quorum := n.before, n.beforeQuorum
	n.mu.Unlock()
	prober, ok := n.directory.(HeadDirectory)
	if before == nil || !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, aliveWithin)
	defer cancel()
	var nonce [nonceSize]byte
	_, _ = rand.Read(nonce[:])
	var mu sync.Mutex
	alive := map[identity.OrgID]bool{}
	var all sync.WaitGroup
	for _, url := range n.cfg.Peers {
		all.Go(func() {
			raw, err := prober.Head(ctx, url, hex.EncodeToString(nonce[:]))
			if err != nil {
				return
			}
			if _, seat, err := before.VerifyHead(raw, hex.EncodeToString(nonce[:])); err == nil {
				mu.Lock()
				defer mu.Unlock()
				alive[seat.Organisation] = true
			}
		})
	}
	all.Wait()
	if quorum == 0 || len(alive) < quorum {
		return nil
	}
	var orgs []identity.OrgID
	for org := range alive {
		orgs = append(orgs, org)
	}
	slices.Sort(orgs)
	return reason(attest.CodeLiveMajority, "incarnation "+fmt.Sprint(before.Incarnation()), fmt.Sprintf("seats of %v order and answer", orgs), fmt.Sprintf("fewer than %d", quorum))
}
