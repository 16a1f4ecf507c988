package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/ratls"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// A client's challenge: nonce in, everything out that she needs to decide by herself.
//
//	her nonce ─┬─ exporter of her connection ──► binder ──► Quoter's lane for clients ──► proof
//	           └─ leaf ──► batch of all who wait ──► seats sign its root: heads ──┐
//	policy chain (whose digest the heads name), newest checkpoint, runtime log ◄──┘
//
// A node that does not hear the mesh itself answers nothing: its policy may be an old one.

const (
	// challengeWithin bounds the whole answer, quote and heads.
	challengeWithin = 10 * time.Second
	// headPause is between the beginnings of two batches.
	headPause = 20 * time.Millisecond
	// maxWaitingHeads bounds the challenges that wait for a batch.
	maxWaitingHeads = attest.MaxClientChallenges
	// headTries bounds how often a batch is asked again because the policy changed under it,
	// proveTries how often a quote is, because something was started under it.
	headTries  = 3
	proveTries = 3
)

var errClientsBusy = errors.New("too many challenges wait for heads")

// challenge answers POST ratls.Path.
func (e *endpoint) challenge(w http.ResponseWriter, r *http.Request) {
	if !e.challenges.Allow(remote(r), e.n.now()) {
		refuseClient(w, attest.NewReason(attest.CodeBusy, "challenges", "too many", fmt.Sprintf("%.0f a second", challengeRate)))
		return
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, ratls.MaxRequest))
	if err != nil {
		refuseClient(w, attest.NewReason(attest.CodeMalformed, "challenge", err.Error(), fmt.Sprintf("at most %d bytes", ratls.MaxRequest)))
		return
	}
	req, err := ratls.DecodeRequest(raw)
	if err != nil {
		refuseClient(w, attest.NewReason(attest.CodeMalformed, "challenge", err.Error(), `{"nonce":"64 hex"}`))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), challengeWithin)
	defer cancel()
	answer, why := e.answer(ctx, r, req.Nonce)
	if why != nil {
		e.n.strangers.Warn("client not answered", "remote", remote(r), "reason", why.String())
		refuseClient(w, *why)
		return
	}
	body, err := answer.Encode()
	if err != nil {
		e.n.log.Error("answer to a client", "error", err)
		refuseClient(w, attest.NewReason(attest.CodeLimit, "answer", err.Error(), ""))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(body)
}

// answer puts together what the challenge asks for, or says why there is none.
func (e *endpoint) answer(ctx context.Context, r *http.Request, nonce [ratls.NonceSize]byte) (ratls.Answer, *attest.Reason) {
	n := e.n
	if why := n.unserved(); why != nil {
		return ratls.Answer{}, why
	}
	checkpoint, _ := n.lastPublished()
	if checkpoint.note == nil {
		return ratls.Answer{}, reason(attest.CodeStale, "checkpoint", "none published yet", "one that a majority of organisations cosigned")
	}
	if r.TLS == nil {
		return ratls.Answer{}, reason(attest.CodeProtocol, "connection", "not TLS", "TLS 1.3")
	}
	ekm, err := ratls.EKM(r.TLS.ExportKeyingMaterial, nonce)
	if err != nil {
		return ratls.Answer{}, reason(attest.CodeProtocol, "exporter", err.Error(), "TLS 1.3")
	}
	a := ratls.Answer{Peer: n.self, Credential: n.credential(), Checkpoint: checkpoint.note, Certificate: shownOn(r)}
	var heads clientHeads
	var headsErr error
	var wg sync.WaitGroup
	wg.Go(func() { heads, headsErr = e.heads.get(ctx, ratls.HeadLeaf(nonce)) })
	a.Proof, a.RuntimeLog, err = e.prove(ctx, e.claimant().ChallengeBinder(nonce, ekm))
	wg.Wait()
	switch {
	case errors.Is(err, attest.ErrQuoterBusy) || errors.Is(headsErr, errClientsBusy):
		return ratls.Answer{}, reason(attest.CodeBusy, "challenges", "too many wait", fmt.Sprintf("at most %d", attest.MaxClientChallenges))
	case err != nil:
		return ratls.Answer{}, reason(attest.CodeUnavailable, "attester", err.Error(), "fresh evidence")
	case headsErr != nil:
		return ratls.Answer{}, reason(attest.CodeStale, "heads", headsErr.Error(), "signed by a majority of organisations")
	}
	a.Heads, a.Policy, a.Seats = heads.Heads, heads.chain, n.newSeats()
	return a, nil
}

// newSeats returns the Credentials of the seats that the policy chain does not name.
func (n *Node) newSeats() (out [][]byte) {
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) {
		if !s.Started() {
			return
		}
		founders := s.Bootstrap().Seats()
		for _, seat := range s.Seats() {
			if !slices.ContainsFunc(founders, func(c *consensus.Credential) bool { return c.Peer == seat.Peer }) {
				out = append(out, seat.Credential.Raw())
			}
		}
	})
	return out
}

// prove returns a proof of bind and the runtime log that replays to its head.
func (e *endpoint) prove(ctx context.Context, bind [32]byte) (proof, log []byte, err error) {
	for range proveTries {
		p, err := e.n.quoter.ProveClient(ctx, bind)
		if err != nil {
			return nil, nil, err
		}
		log, head := e.n.runtime.Snapshot()
		if head == p.RuntimeHead {
			proof, err := ratls.EncodeProof(p)
			return proof, log, err
		}
	}
	return nil, nil, errors.New("programs are being started")
}

// clientHeads is what one challenge gets of a batch.
type clientHeads struct {
	ratls.Heads
	chain [][]byte // whose digest a majority of the heads name
}

// headBatches has seats sign heads for clients, one batch at a time: challenges that arrive
// while one is out share the next. run is its only goroutine.
type headBatches struct {
	// ask returns heads over the root of a batch and the policy chain that they name.
	ask  func(ctx context.Context, root [32]byte) (statements, chain [][]byte, err error)
	wake chan struct{}

	mu      sync.Mutex
	waiting []*headWaiter // guarded by mu
}

type headWaiter struct {
	leaf [32]byte
	done chan struct{} // closed once out and err are set
	out  clientHeads
	err  error
}

func newHeadBatches(ask func(context.Context, [32]byte) (statements, chain [][]byte, err error)) *headBatches {
	return &headBatches{ask: ask, wake: make(chan struct{}, 1)}
}

// get waits for a batch with leaf.
func (b *headBatches) get(ctx context.Context, leaf [32]byte) (clientHeads, error) {
	w := &headWaiter{leaf: leaf, done: make(chan struct{})}
	b.mu.Lock()
	if len(b.waiting) >= maxWaitingHeads {
		b.mu.Unlock()
		return clientHeads{}, errClientsBusy
	}
	b.waiting = append(b.waiting, w)
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
	select {
	case <-w.done:
		return w.out, w.err
	case <-ctx.Done():
		return clientHeads{}, ctx.Err()
	}
}

// run gathers until ctx ends and then fails what still waits.
func (b *headBatches) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			for _, w := range b.take() {
				w.err = ctx.Err()
				close(w.done)
			}
			return
		case <-b.wake:
			if batch := b.take(); len(batch) > 0 {
				pause := time.NewTimer(headPause)
				b.serve(ctx, batch)
				select { // seats sign no more than so many for one peer
				case <-pause.C:
				case <-ctx.Done():
				}
				pause.Stop()
			}
		}
	}
}

func (b *headBatches) take() []*headWaiter {
	b.mu.Lock()
	defer b.mu.Unlock()
	batch := b.waiting
	b.waiting = nil
	return batch
}

func (b *headBatches) serve(ctx context.Context, batch []*headWaiter) {
	leaves := make([][32]byte, len(batch))
	for i, w := range batch {
		leaves[i] = w.leaf
	}
	root, inclusions, err := attest.BatchRoot(leaves)
	var statements, chain [][]byte
	if err == nil {
		statements, chain, err = b.ask(ctx, root)
	}
	for i, w := range batch {
		if w.err = err; err == nil {
			w.out = clientHeads{ratls.Heads{Inclusion: inclusions[i], Statements: statements}, chain}
		}
		close(w.done)
	}
}

// headsOver returns heads over root and the chain that they name. Around a change of the
// policy the seats and this node may be a step apart: then it asks again.
func (n *Node) headsOver(ctx context.Context, root [32]byte) (statements, chain [][]byte, err error) {
	for range headTries {
		changed := n.changed.wait()
		digest, chain, quorum, seats := n.policyToShow()
		heads := n.clientHeads(ctx, root[:], digest, quorum, seats)
		if len(heads) >= quorum && quorum > 0 {
			for _, h := range heads {
				statements = append(statements, h.raw)
			}
			return statements, chain, nil
		}
		err = fmt.Errorf("%d organisations with our policy, %d are needed", len(heads), quorum)
		select {
		case <-changed:
		case <-time.After(submitRetry):
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
	return nil, nil, err
}

// policyToShow returns the policy chain with its digest, how many organisations must sign
// that it is the newest, and whose signatures count. A client knows the seats of Bootstrap
// and no later ones.
func (n *Node) policyToShow() (digest string, chain [][]byte, quorum int, seats map[identity.PeerID]identity.OrgID) {
	seats = map[identity.PeerID]identity.OrgID{}
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) {
		digest, chain = fmt.Sprintf("%x", s.PolicyDigest()), s.PolicyChain()
		if b := s.Bootstrap(); b != nil {
			for _, c := range b.Seats() {
				seats[c.Peer] = c.Organisation
			}
			quorum = len(b.Seats())/2 + 1
		}
	})
	return digest, chain, quorum, seats
}

// clientHeads returns one head of each organisation whose seat answers and has the policy
// of digest; as soon as there are enough it waits for no other.
func (n *Node) clientHeads(ctx context.Context, nonce []byte, digest string, quorum int, seats map[identity.PeerID]identity.OrgID) map[identity.OrgID]orgHead {
	ctx, enough := context.WithCancel(ctx)
	defer enough()
	var mu sync.Mutex
	found := map[identity.OrgID]orgHead{}
	note := func(h orgHead, peer identity.PeerID) {
		org, ok := seats[peer]
		if !ok || h.Policy != digest {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if found[org] = h; len(found) >= quorum {
			enough()
		}
	}
	if n.holdsSeat(n.self) {
		if h, raw, err := n.signHead(nonce); err == nil {
			note(orgHead{Head: h, raw: raw}, n.self)
		}
	}
	gather(ctx, n.seatLinks(), headWithin, func(ctx context.Context, l mesh.Link) (struct{}, error) {
		h, err := n.askHead(ctx, l, nonce)
		if err == nil {
			note(h, l.Peer())
		}
		return struct{}{}, err
	})
	return found
}
