package mesh

import (
	"context"
	"runtime"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

// attestations bounds what valid Credentials can cost this node. A full attestation that the
// peer began takes a token of that peer, before a quote is made or evidence is judged; and
// evidence, whoever began, is judged by a pool of as many workers as there are processors.
// Whoever finds no token, or the pool's queue full, is refused with code busy.
//
// One organisation can have Credentials made for as many peers as it likes, so the queue
// serves organisations in turn, and each has only its own part of it, and of the peers whose
// tokens are counted.
type attestations struct {
	burst int

	mu      sync.Mutex
	peers   map[identity.PeerID]*account
	counted map[identity.OrgID]int // how many of peers are an organisation's
	free    int                    // workers
	queues  map[identity.OrgID][]*ticket
	turn    []identity.OrgID // organisations with a queue, the next one first
	waiting int
}

// account is what one peer has left.
type account struct {
	bucket
	org identity.OrgID
}

// ticket is a place in a queue; ready is closed when a worker is its.
type ticket struct{ ready chan struct{} }

func newAttestations(workers, burst int) *attestations {
	return &attestations{burst: burst, peers: map[identity.PeerID]*account{}, counted: map[identity.OrgID]int{},
		free: workers, queues: map[identity.OrgID][]*ticket{}}
}

// processors is the size of the pool.
func processors() int { return runtime.GOMAXPROCS(0) }

// allow takes a token of a peer.
func (a *attestations) allow(whose Subject, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	b := a.peers[whose.Peer]
	if b == nil {
		org := whose.Node.Org
		if len(a.peers) >= maxBuckets || a.counted[org] >= maxBuckets/orgShare {
			a.forget(now)
		}
		if len(a.peers) >= maxBuckets || a.counted[org] >= maxBuckets/orgShare {
			return false // that many peers do not attest within minutes in an honest mesh
		}
		b = &account{newBucket(fullRate, a.burst), org}
		a.peers[whose.Peer] = b
		a.counted[org]++
	}
	return b.take(now)
}

// forget drops the accounts from which nothing is missing; mu is held.
func (a *attestations) forget(now time.Time) {
	for p, b := range a.peers {
		if !b.full(now) {
			continue
		}
		delete(a.peers, p)
		if a.counted[b.org]--; a.counted[b.org] == 0 {
			delete(a.counted, b.org)
		}
	}
}

// acquire waits for a worker. The reason says why there is none: the queue is full, or ctx
// has ended.
func (a *attestations) acquire(ctx context.Context, org identity.OrgID) *attest.Reason {
	a.mu.Lock()
	if a.free > 0 {
		a.free--
		a.mu.Unlock()
		return nil
	}
	if a.waiting >= maxAppraisals || len(a.queues[org]) >= orgAppraisals {
		a.mu.Unlock()
		return busy("appraisals", "too many at once")
	}
	t := &ticket{make(chan struct{})}
	if len(a.queues[org]) == 0 {
		a.turn = append(a.turn, org)
	}
	a.queues[org] = append(a.queues[org], t)
	a.waiting++
	a.mu.Unlock()
	select {
	case <-t.ready:
		return nil
	case <-ctx.Done():
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case <-t.ready: // at the same moment
		a.releaseLocked()
	default:
		a.withdraw(org, t)
	}
	return busy("appraisals", "no turn in time")
}

// release gives a worker back.
func (a *attestations) release() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.releaseLocked()
}

func (a *attestations) releaseLocked() {
	if len(a.turn) == 0 {
		a.free++
		return
	}
	org := a.turn[0]
	a.turn = a.turn[1:]
	queue := a.queues[org]
	close(queue[0].ready)
	a.waiting--
	if queue = queue[1:]; len(queue) == 0 {
		delete(a.queues, org)
		return
	}
	a.queues[org] = queue
	a.turn = append(a.turn, org)
}

// withdraw takes t out of org's queue; mu is held.
func (a *attestations) withdraw(org identity.OrgID, t *ticket) {
	queue := remove(a.queues[org], t)
	a.waiting--
	if len(queue) == 0 {
		delete(a.queues, org)
		a.turn = remove(a.turn, org)
		return
	}
	a.queues[org] = queue
}

// remove returns s without x, in a slice of its own.
func remove[T comparable](s []T, x T) []T {
	out := make([]T, 0, len(s))
	for _, y := range s {
		if y != x {
			out = append(out, y)
		}
	}
	return out
}

func busy(claim, got string) *attest.Reason {
	r := attest.NewReason(attest.CodeBusy, claim, got, "room for another one")
	return &r
}

// pooledJudge is the owner's Judge behind the pool.
type pooledJudge struct {
	Judge
	pool *attestations
}

// Appraise implements Judge.
func (j pooledJudge) Appraise(ctx context.Context, s Subject, ev attest.Evidence, data attest.ReportData) (attest.Claims, attest.Result) {
	if why := j.pool.acquire(ctx, s.Node.Org); why != nil {
		return attest.Claims{}, attest.Refuse(time.Now(), *why)
	}
	defer j.pool.release()
	return j.Judge.Appraise(ctx, s, ev, data)
}

// inbound is the Judge of one exchange that the peer began. It is used by the goroutine of
// that exchange only.
type inbound struct {
	Judge
	pool *attestations
	v    *visitor // nil: came by no front
	paid bool
}

// guardInbound bounds what an exchange that the peer began may cost. Every such exchange
// is to be run with it: a connection that was accepted, and an attestation on a live one.
func (h *hub) guardInbound(p *exchange.Params, v *visitor) {
	j := &inbound{Judge: p.Judge, pool: h.attestations, v: v}
	p.Judge, p.Admit = j, j.admit
}

// admit hears of a valid Credential before anything is made or judged for it, and whether
// the exchange is a full one.
func (j *inbound) admit(s Subject, full bool) *attest.Reason {
	if !j.v.proved(s) {
		return busy("handshakes of "+s.Node.String(), "too many at once")
	}
	if !full {
		return nil
	}
	return j.pay(s)
}

// Appraise implements Judge. A peer may send evidence although it was not asked for any.
func (j *inbound) Appraise(ctx context.Context, s Subject, ev attest.Evidence, data attest.ReportData) (attest.Claims, attest.Result) {
	if why := j.pay(s); why != nil {
		return attest.Claims{}, attest.Refuse(time.Now(), *why)
	}
	return j.Judge.Appraise(ctx, s, ev, data)
}

// pay takes the one token that the exchange costs.
func (j *inbound) pay(s Subject) *attest.Reason {
	if !j.paid && !j.pool.allow(s, time.Now()) {
		return busy("attestations", "too many in a short time")
	}
	j.paid = true
	return nil
}
