package attest

import (
	"context"
	"errors"
	"slices"
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
//
// Binders wait in two lanes. Those of peers (Prove) are all in the next quote that begins,
// so that a peer waits for the quote in progress and its own, whatever else is asked for.
// Those of clients (ProveClient), whom nobody enrolled and of whom there is no end, ride
// along, but never in two quotes in a row while a peer waits: at least every second quote
// is the peers' alone. A client thus waits for at most three quotes. Both lanes are bounded.
type Quoter struct {
	attester Attester
	meshID   [32]byte
	self     string
	head     func() [32]byte
	turn     chan struct{} // holds one token: a quote or a record is made by its holder

	mu        sync.Mutex
	peers     []*request // guarded by mu, as all below
	clients   []*request
	hadClient bool // the last quote carried a client's binder
	wake      chan struct{}
}

type request struct {
	bind [32]byte
	done chan struct{}
	out  Proof
	err  error
}

// Limits of the lanes; one quote can carry both together.
const (
	// MaxClientChallenges is how many clients may wait for a quote.
	MaxClientChallenges = 1 << 10
	maxPeerChallenges   = 1<<MaxPath - MaxClientChallenges
)

// ErrQuoterBusy is returned when more binders wait than their lane holds.
var ErrQuoterBusy = errors.New("attest: too many challenges wait for a quote")

// NewQuoter returns a quoter for the node with binary peer id self. head returns the
// current head of the runtime event log.
func NewQuoter(a Attester, meshID [32]byte, self string, head func() [32]byte) *Quoter {
	q := &Quoter{attester: a, meshID: meshID, self: self, head: head, turn: make(chan struct{}, 1), wake: make(chan struct{}, 1)}
	q.turn <- struct{}{}
	return q
}

// Kind returns the kind of evidence the quoter makes.
func (q *Quoter) Kind() string { return q.attester.Kind() }

// Head returns the current head of the runtime event log.
func (q *Quoter) Head() [32]byte { return q.head() }

// Prove waits for a quote that covers bind, on behalf of a peer or of this node itself.
func (q *Quoter) Prove(ctx context.Context, bind [32]byte) (Proof, error) {
	return q.wait(ctx, &q.peers, maxPeerChallenges, bind)
}

// ProveClient waits for a quote that covers a client's challenge. Clients cannot delay
// peers (see Quoter); where more than MaxClientChallenges wait, the answer is
// ErrQuoterBusy at once. The end of ctx takes the challenge back: clients that hung up
// cost no quote.
func (q *Quoter) ProveClient(ctx context.Context, bind [32]byte) (Proof, error) {
	return q.wait(ctx, &q.clients, MaxClientChallenges, bind)
}

func (q *Quoter) wait(ctx context.Context, lane *[]*request, limit int, bind [32]byte) (Proof, error) {
	r := &request{bind: bind, done: make(chan struct{})}
	q.mu.Lock()
	if len(*lane) >= limit {
		q.mu.Unlock()
		return Proof{}, ErrQuoterBusy
	}
	*lane = append(*lane, r)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
	select {
	case <-r.done:
		return r.out, r.err
	case <-ctx.Done():
		q.mu.Lock()
		defer q.mu.Unlock()
		if i := slices.Index(*lane, r); i >= 0 {
			*lane = slices.Delete(*lane, i, i+1)
		}
		return Proof{}, ctx.Err()
	}
}

// Run quotes until ctx ends and then fails what still waits.
func (q *Quoter) Run(ctx context.Context) {
	for {
		for batch := q.take(); len(batch) > 0; batch = q.take() {
			q.quote(ctx, batch)
		}
		if ctx.Err() != nil {
			return
		}
		select {
		case <-ctx.Done():
		case <-q.wake:
		}
	}
}

// take empties the lanes into one batch, or leaves the clients where they are.
func (q *Quoter) take() []*request {
	q.mu.Lock()
	defer q.mu.Unlock()
	batch := q.peers
	q.peers = nil
	if q.hadClient && len(batch) > 0 {
		q.hadClient = false
		return batch
	}
	q.hadClient = len(q.clients) > 0
	batch = append(batch, q.clients...)
	q.clients = nil
	return batch
}

// Record runs record while no quote is made. record adds an event to the runtime event log
// and calls extend with its encoding first; where that fails it must add nothing, and what
// the event names must not start. Without an Extender extend does nothing. A failed extend
// may have moved the register: the log then explains it no more, and peers refuse.
func (q *Quoter) Record(ctx context.Context, record func(extend func(event []byte) error) error) error {
	select {
	case <-q.turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { q.turn <- struct{}{} }()
	return record(func(event []byte) error {
		if e, ok := q.attester.(Extender); ok {
			return e.Extend(ctx, event)
		}
		return nil
	})
}

func (q *Quoter) quote(ctx context.Context, batch []*request) {
	<-q.turn // records end when their own contexts do
	defer func() { q.turn <- struct{}{} }()
	binders := make([][32]byte, len(batch))
	for i, r := range batch {
		binders[i] = r.bind
	}
	head := q.head()
	root, proofs, err := BatchRoot(binders)
	var ev Evidence
	if err == nil {
		err = ctx.Err()
	}
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
