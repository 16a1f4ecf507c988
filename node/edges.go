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
	"github.com/attestmesh/meshnode/federated"
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

// edges is this node's outbox of signed results: what it found out about others, until it
// is ordered. Only changes are logged, and one heartbeat before a result expires, so a
// flood of handshakes is no flood of leaves. Run owns the only goroutine.
type edges struct {
	n    *Node
	own  identity.NodeRef // nobody judges itself, as an older boot of it
	wake chan struct{}

	mu      sync.Mutex
	pending map[identity.PeerID]edge  // guarded by mu
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
	return &edges{n: n, wake: make(chan struct{}, 1), pending: map[identity.PeerID]edge{},
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
		if old.saysSame(next) && r.At.Sub(old.result.At) < consensus.HeartbeatAfter {
			return
		}
		if evidence == nil {
			next.evidence = old.evidence
		}
	}
	if !e.room(next) {
		return // strangers beyond any plausible mesh; their refusals are in the local log
	}
	e.pending[s.Peer] = next
	e.held[e.last[s.Peer].subject.Node.Org] -= len(e.last[s.Peer].evidence)
	e.held[s.Node.Org] += len(next.evidence)
	e.last[s.Peer] = next
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// room makes room for a finding, if there is any; mu is held.
func (e *edges) room(next edge) bool {
	peer, org := next.subject.Peer, next.subject.Node.Org
	if _, waits := e.pending[peer]; !waits {
		ofOrg := 0
		for _, ed := range e.pending {
			if ed.subject.Node.Org == org {
				ofOrg++
			}
		}
		if len(e.pending) >= maxPendingEdges || ofOrg >= maxPendingEdges/edgeShare {
			return false
		}
	}
	if len(e.last) >= maxPeers {
		e.forget(func(edge) bool { return true })
	}
	over := func() bool { return e.held[org]+len(next.evidence) > edgeEvidence }
	if over() {
		e.forget(func(ed edge) bool { return ed.subject.Node.Org == org })
	}
	return !over()
}

// forget drops findings that do not wait to be ordered, of boots long gone mostly; the price
// is one repeated finding for each that is not. mu is held.
func (e *edges) forget(which func(edge) bool) {
	for peer, ed := range e.last {
		if _, waits := e.pending[peer]; waits || !which(ed) {
			continue
		}
		delete(e.last, peer)
		org := ed.subject.Node.Org
		if e.held[org] -= len(ed.evidence); e.held[org] == 0 {
			delete(e.held, org)
		}
	}
}

func (a edge) saysSame(b edge) bool {
	return a.result.Verdict == b.result.Verdict && a.result.Measurement == b.result.Measurement &&
		a.result.Kind == b.result.Kind && a.result.Reference == b.result.Reference &&
		slices.EqualFunc(a.result.Reasons, b.result.Reasons, func(x, y attest.Reason) bool { return x.Code == y.Code })
}

// run orders pending edges until ctx ends.
func (e *edges) run(ctx context.Context) {
	retry, heartbeat, relog := time.NewTicker(edgeEvery), time.NewTicker(heartbeatEvery), time.NewTicker(relogEvery)
	defer retry.Stop()
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
		case <-retry.C:
		case <-relog.C:
			e.relogMissing(e.n.now())
		case <-e.wake:
		}
		if e.n.machine.Started() {
			e.flush(ctx)
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
	if _, waits := e.pending[peer]; waits {
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
	case !now.Before(m.at) && len(e.pending) < maxPendingEdges:
		m.pause = min(2*m.pause, relogSlowest)
		e.missing[peer] = relog{now.Add(m.pause), m.pause}
		e.pending[peer] = last
	}
}

// flush orders the Credentials that the state lacks, then the findings.
func (e *edges) flush(ctx context.Context) {
	n := e.n
	n.orderCredential(ctx, n.self, n.credential())
	if e.heldBack(n.machine.TickSeq()) {
		return
	}
	batch := e.take()
	if len(batch) == 0 {
		return
	}
	envelopes := n.signEdges(ctx, batch)
	if len(envelopes) == 0 {
		return
	}
	command, err := consensus.NewCommand(consensus.KindResults, envelopes...)
	if err != nil {
		n.log.Error("findings cannot be ordered", "error", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	out, err := n.submit(ctx, command)
	if err == nil && len(out.Again) > 0 {
		e.giveBack(left(batch, envelopes, out.Again))
		e.holdBack(n.machine.TickSeq())
	}
	if err != nil {
		var count int
		if !isRefused(err) || passes(err) {
			count = e.giveBack(batch)
		}
		if passes(err) {
			e.holdBack(n.machine.TickSeq())
		}
		n.log.Warn("findings not ordered", "kept", count, "error", err)
	}
}

// signEdges signs a batch. What is about a peer whose Credential the machine refuses would be
// refused as well: it leaves nothing here either, since an organisation can invent such peers.
func (n *Node) signEdges(ctx context.Context, batch map[identity.PeerID]edge) (envelopes [][]byte) {
	for peer, ed := range batch {
		n.orderCredential(ctx, peer, ed.subject.Credential)
		known := false
		n.machine.View(func(s *consensus.State, _ *federated.Ledger) { _, known = s.Node(peer) })
		n.mu.Lock()
		refused := n.badCredentials[peer] != nil
		n.mu.Unlock()
		if refused && !known {
			continue
		}
		raw, err := n.signEdge(ed)
		if err != nil {
			n.log.Error("a finding cannot be signed", "peer", peer.String(), "error", err)
			continue
		}
		envelopes = append(envelopes, raw)
	}
	return envelopes
}

// take removes at most one command's worth of pending findings.
func (e *edges) take() map[identity.PeerID]edge {
	e.mu.Lock()
	defer e.mu.Unlock()
	batch := map[identity.PeerID]edge{}
	for peer, ed := range e.pending {
		if len(batch) == consensus.MaxResults {
			break
		}
		batch[peer] = ed
		delete(e.pending, peer)
	}
	return batch
}

// giveBack puts back what was not ordered, unless something newer has come meanwhile.
func (e *edges) giveBack(batch map[identity.PeerID]edge) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	for peer, ed := range batch {
		if _, newer := e.pending[peer]; !newer {
			e.pending[peer] = ed
		}
	}
	return len(e.pending)
}

// holdBack keeps findings here until another tick than seq: a quota is used up.
func (e *edges) holdBack(seq uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.full = seq
}

// heldBack reports whether findings wait for another tick than seq.
func (e *edges) heldBack(seq uint64) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.full != 0 && e.full == seq
}

// left returns the findings of a batch whose statements, by their index, were left out.
func left(batch map[identity.PeerID]edge, envelopes [][]byte, again []int) map[identity.PeerID]edge {
	out := map[identity.PeerID]edge{}
	for _, i := range again {
		if i < 0 || i >= len(envelopes) { // a leader says so
			continue
		}
		r, err := consensus.ParseResult(envelopes[i])
		if err != nil {
			continue
		}
		if ed, ok := batch[r.Subject.Peer]; ok {
			out[r.Subject.Peer] = ed
		}
	}
	return out
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
	if n.evidenceDir != nil {
		if err := n.evidenceDir.Replace(commitment, append(salt[:], ed.evidence...), 0o600); err != nil {
			return nil, err
		}
	}
	r := consensus.ResultOf(ed.result, commitment)
	r.Verifier = consensus.Party{Node: n.ref, Peer: n.self}
	r.Subject = consensus.Party{Node: ed.subject.Node, Peer: ed.subject.Peer}
	r.MeshID, r.Incarnation = n.genesis.MeshID(), n.incarnation()
	return consensus.SignResult(n.key, r)
}

// orderCredential has a Credential ordered that the state does not know, or knows another one
// in place of that is void. A refusal is remembered, as that a newer boot is known, unless it
// passes by itself or the same boot may get another Credential.
func (n *Node) orderCredential(ctx context.Context, peer identity.PeerID, raw []byte) {
	known := false
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { known = s.Stands(peer) })
	n.mu.Lock()
	known = known || n.badCredentials[peer] != nil
	n.mu.Unlock()
	if known || len(raw) == 0 {
		return
	}
	command, err := consensus.NewCommand(consensus.KindCredential, raw)
	if err == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, submitTimeout)
		defer cancel()
		_, err = n.submit(ctx, command)
	}
	if err == nil {
		return
	}
	n.log.Warn("credential not ordered", "peer", peer.String(), "error", err)
	if isRefused(err) && !passes(err) && refusedAs(err) != attest.CodeNoCredential {
		n.mu.Lock()
		defer n.mu.Unlock()
		if len(n.badCredentials) < maxPeers {
			n.badCredentials[peer] = err
		}
	}
}
