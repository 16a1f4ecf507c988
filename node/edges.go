package node

import (
	"context"
	"crypto/rand"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// Limits of the outbox.
const (
	maxPendingEdges = 1024
	// edgeShare is the part of the pending findings that may be about one organisation's
	// peers, of which it can invent any number, and edgeEvidence how many bytes of evidence
	// by them are held.
	edgeShare      = 4
	edgeEvidence   = 32 << 20
	edgeEvery      = 250 * time.Millisecond
	heartbeatEvery = time.Minute
	// A finding that is in no log after relogFirst is ordered again, then later and later:
	// it may have been refused because the subject's Credential came after it.
	relogEvery   = time.Second // looked for
	relogFirst   = 3 * time.Second
	relogSlowest = time.Minute
)

// edges are this node's findings about others, and its outbox of those that are not ordered yet
// (outbox.go). Only changes are logged, and one heartbeat before a result expires, so a flood
// of handshakes is no flood of leaves. Run owns the goroutines.
type edges struct {
	n       *Node
	own     identity.NodeRef // nobody judges itself, as an older boot of it
	dir     *durable.Dir     // the outbox's files; nil in simulations
	older   olderFindings    // belongs to drain
	failure string           // belongs to signWaiting: what the disk said last
	wake    chan struct{}    // there is something to sign
	signed  chan struct{}    // there is something to drain

	mu      sync.Mutex
	box     outbox                    // guarded by mu
	last    map[identity.PeerID]edge  // guarded by mu; newest finding per subject, ordered or not
	missing map[identity.PeerID]relog // guarded by mu; linked subjects whose finding is in no log
	held    map[identity.OrgID]int    // guarded by mu; bytes of evidence in last
	full    uint64                    // guarded by mu; the tick since which a quota is used up
}

// relog is when a finding is ordered again.
type relog struct {
	at    time.Time
	pause time.Duration
}

type edge struct {
	subject  mesh.Subject
	evidence []byte // encoded; what the log commits to and members can disclose
	result   attest.Result
}

func newEdges(n *Node) *edges {
	return &edges{n: n, wake: make(chan struct{}, 1), signed: make(chan struct{}, 1), box: newOutbox(),
		last: map[identity.PeerID]edge{}, missing: map[identity.PeerID]relog{}, held: map[identity.OrgID]int{}}
}

// record notes a finding about a subject whose Credential is valid. Without evidence it
// is a new judgement of what the subject showed last. It does not block.
func (e *edges) record(s mesh.Subject, evidence []byte, r attest.Result) {
	if s.Node == e.own {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	next := edge{s, evidence, r}
	if old, ok := e.last[s.Peer]; ok {
		since := r.At.Sub(old.result.At) // much below zero once a clock that was ahead is right
		if old.saysSame(next) && since < consensus.HeartbeatAfter && since > -consensus.ClockSkew {
			return
		}
		if evidence == nil {
			next.evidence = old.evidence
		}
	}
	if !e.evidenceFits(next) {
		return // strangers beyond any plausible mesh; their refusals are in the local log
	}
	switch {
	case e.box.room(s.Node.Org):
		e.box.add(next)
	case r.Affirming():
		e.box.delayed++ // its link brings it back when there is room: relogMissing
	default:
		e.box.turned++
		return
	}
	e.held[e.last[s.Peer].subject.Node.Org] -= len(e.last[s.Peer].evidence)
	e.held[s.Node.Org] += len(next.evidence)
	e.last[s.Peer] = next
	nudge(e.wake)
}

// nudge wakes who waits for c, or will.
func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// evidenceFits makes room for what a finding brings, if there is any; mu is held.
func (e *edges) evidenceFits(next edge) bool {
	org := next.subject.Node.Org
	if len(e.last) >= maxPeers {
		e.forget(func(edge) bool { return true })
	}
	over := func() bool { return e.held[org]+e.box.held[org]+len(next.evidence) > edgeEvidence }
	if over() {
		e.forget(func(ed edge) bool { return ed.subject.Node.Org == org })
	}
	return !over()
}

// forget drops findings that do not wait to be ordered, of boots long gone mostly; the price
// is one repeated finding for each that is not. mu is held.
func (e *edges) forget(which func(edge) bool) {
	for peer, ed := range e.last {
		if e.box.ofPeer[peer] > 0 || !which(ed) {
			continue
		}
		delete(e.last, peer)
		org := ed.subject.Node.Org
		if e.held[org] -= len(ed.evidence); e.held[org] == 0 {
			delete(e.held, org)
		}
	}
}

// erase forgets the evidence that an order covers. What is said about its subjects from now on
// commits to none, until they show some again.
func (e *edges) erase(order Erasure) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for peer, ed := range e.last {
		if order.covers(ed.subject.Node, ed.result.At) {
			e.held[ed.subject.Node.Org] -= len(ed.evidence)
			ed.evidence = nil
			e.last[peer] = ed
		}
	}
	for _, f := range e.box.queue { // what is being signed is kept from the disk by the order itself
		if !f.busy && order.covers(f.subject.Node, f.result.At) {
			e.box.release(f)
		}
	}
}

func (a edge) saysSame(b edge) bool {
	return a.result.Verdict == b.result.Verdict && a.result.Measurement == b.result.Measurement &&
		a.result.Kind == b.result.Kind && a.result.Reference == b.result.Reference &&
		slices.EqualFunc(a.result.Reasons, b.result.Reasons, func(x, y attest.Reason) bool { return x.Code == y.Code })
}

// run signs findings as they come, and has them ordered, until ctx ends.
func (e *edges) run(ctx context.Context) {
	var draining sync.WaitGroup
	defer draining.Wait()
	draining.Go(func() { e.runDrain(ctx) })
	heartbeat, relog := time.NewTicker(heartbeatEvery), time.NewTicker(relogEvery)
	defer relog.Stop()
	defer heartbeat.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-heartbeat.C:
			// Stored claims of live links, judged again: the link has been up all the time.
			for _, l := range e.n.links() {
				s := l.Session()
				e.record(s.Subject, nil, attest.Appraise(s.Claims, e.n.policyFor(s.Subject), e.n.time()))
			}
		case <-relog.C:
			e.relogMissing(e.n.now())
		case <-e.wake:
		}
		if e.n.machine.Started() {
			e.signWaiting()
			nudge(e.signed)
		}
	}
}

// runDrain has findings ordered: it may wait for a leader, which signing does not.
func (e *edges) runDrain(ctx context.Context) {
	retry := time.NewTicker(edgeEvery)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-retry.C:
		case <-e.signed:
		}
		if e.n.machine.Started() {
			e.drain(ctx)
		}
	}
}

// relogMissing looks for the findings about linked peers that no log holds.
func (e *edges) relogMissing(now time.Time) {
	for _, l := range e.n.links() {
		_, logged := e.n.machine.logged(e.n.self, l.Session(), math.MaxUint64)
		e.relog(l.Peer(), logged, now)
	}
}

// relog has the newest finding about peer ordered again if it was not logged in time.
func (e *edges) relog(peer identity.PeerID, logged bool, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if logged {
		delete(e.missing, peer)
		return
	}
	if e.box.ofPeer[peer] > 0 {
		return
	}
	last, known := e.last[peer]
	m, missed := e.missing[peer]
	switch {
	case !known:
	case !missed:
		if len(e.missing) < maxPeers {
			e.missing[peer] = relog{now.Add(relogFirst), relogFirst}
		}
	case !now.Before(m.at) && e.box.room(last.subject.Node.Org):
		m.pause = min(2*m.pause, relogSlowest)
		e.missing[peer] = relog{now.Add(m.pause), m.pause}
		e.box.add(last)
	}
}

// signEdge makes the public statement of a finding. The evidence itself stays here, under
// the name of its commitment, together with the salt: whoever deletes the file has erased
// the only opening.
func (n *Node) signEdge(ed edge) ([]byte, error) {
	var salt [32]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return nil, err
	}
	commitment := consensus.EvidenceCommitment(salt, ed.evidence)
	if err := n.evidence.keep(ed.subject.Node, ed.result.At, commitment, salt, ed.evidence); err != nil {
		return nil, err
	}
	r := consensus.ResultOf(ed.result, commitment)
	r.Verifier = consensus.Party{Node: n.ref, Peer: n.self}
	r.Subject = consensus.Party{Node: ed.subject.Node, Peer: ed.subject.Peer}
	r.MeshID, r.Incarnation = n.genesis.MeshID(), n.incarnation()
	return consensus.SignResult(n.key, r)
}
