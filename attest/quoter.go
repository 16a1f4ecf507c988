package attest

import (
	"context"
	"errors"
	"sync"
)

// Proof is evidence together with the inclusion of one binder under its quote.
type Proof struct {
	Evidence    Evidence
	RuntimeHead [32]byte
	Inclusion   Inclusion
}

// Quoter makes proofs asynchronously: binders that arrive while the device is busy share
// the next quote, so a slow attester costs two quote times, not one per challenge. It owns
// one goroutine, which Run is.
type Quoter struct {
	attester Attester
	meshID   [32]byte
	self     string
	head     func() [32]byte

	mu      sync.Mutex
	pending []*request // guarded by mu
	wake    chan struct{}
}

type request struct {
	bind [32]byte
	done chan struct{}
	out  Proof
	err  error
}

// ErrQuoterBusy is returned when more binders wait than one quote can carry.
var ErrQuoterBusy = errors.New("attest: too many challenges wait for a quote")

// NewQuoter returns a quoter for the node with binary peer id self. head returns the
// current head of the runtime event log.
func NewQuoter(a Attester, meshID [32]byte, self string, head func() [32]byte) *Quoter {
	return &Quoter{attester: a, meshID: meshID, self: self, head: head, wake: make(chan struct{}, 1)}
}

// Kind returns the kind of evidence the quoter makes.
func (q *Quoter) Kind() string { return q.attester.Kind() }

// Prove waits for a quote that covers bind.
func (q *Quoter) Prove(ctx context.Context, bind [32]byte) (Proof, error) {
	r := &request{bind: bind, done: make(chan struct{})}
	q.mu.Lock()
	if len(q.pending) >= 1<<MaxPath {
		q.mu.Unlock()
		return Proof{}, ErrQuoterBusy
	}
	q.pending = append(q.pending, r)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
	select {
	case <-r.done:
		return r.out, r.err
	case <-ctx.Done():
		return Proof{}, ctx.Err()
	}
}

// Run quotes until ctx ends and then fails what still waits.
func (q *Quoter) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			for _, r := range q.take() {
				r.err = ctx.Err()
				close(r.done)
			}
			return
		case <-q.wake:
			if batch := q.take(); len(batch) > 0 {
				q.quote(ctx, batch)
			}
		}
	}
}

func (q *Quoter) take() []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	batch := q.pending
	q.pending = nil
	return batch
}

func (q *Quoter) quote(ctx context.Context, batch []*request) {
	binders := make([][32]byte, len(batch))
	for i, r := range batch {
		binders[i] = r.bind
	}
	head := q.head()
	root, proofs, err := BatchRoot(binders)
	var ev Evidence
	if err == nil {
		ev, err = q.attester.Attest(ctx, NewReportData(q.attester.Kind(), q.meshID, q.self, head, root))
	}
	for i, r := range batch {
		if r.err = err; err == nil {
			r.out = Proof{Evidence: ev, RuntimeHead: head, Inclusion: proofs[i]}
		}
		close(r.done)
	}
}

// ReportData returns the report data that p's evidence must carry if p proves bind.
func (p Proof) ReportData(bind, meshID [32]byte, attester string) (ReportData, error) {
	root, err := p.Inclusion.Root(bind)
	if err != nil {
		return ReportData{}, err
	}
	return NewReportData(p.Evidence.Kind, meshID, attester, p.RuntimeHead, root), nil
}
