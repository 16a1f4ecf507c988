package mesh

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/meshtest"
)

// A peer that attests again and again is refused before it costs a quote or a check of
// evidence, while others are served; it gets in again at the rate that it may.
func TestAttestationsPerPeer(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		a, b, c := w.node("alpha/n1", nil), w.node("beta/n1", nil), w.node("gamma/n1", nil)
		once := func() error {
			l, err := a.Dial(testContext(t), b.Self(), b.Addrs())
			if err != nil {
				return err
			}
			_ = l.Close(attest.NewReason(attest.CodeRevoked, "", "", "")) // the next one is full
			eventually(t, "no link at the other end", func() bool { return len(b.Links()) == 0 })
			return nil
		}
		for i := range fullBurst {
			if err := once(); err != nil {
				t.Fatalf("attestation %d: %v", i, err)
			}
		}
		quotes, appraisals := b.Attester.Quotes.Load(), b.Judge.Appraisals.Load()
		own := a.Attester.Quotes.Load()
		wantRefusal(t, once(), true, attest.CodeBusy)
		if b.Attester.Quotes.Load() != quotes || b.Judge.Appraisals.Load() != appraisals || a.Attester.Quotes.Load() != own {
			t.Error("a refused peer cost a quote or a check of evidence")
		}
		if r := <-b.refusals; r.Remote || r.Code() != attest.CodeBusy {
			t.Errorf("the refusing side reports %v", r)
		}
		w.dial(c, b)
	})
}

func TestAttestationsRefill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool, peer := newAttestations(1, fullBurst), subjectOf("p/n1")
		take := func() (n int) {
			for pool.allow(peer, time.Now()) {
				n++
			}
			return n
		}
		if got := take(); got != fullBurst {
			t.Errorf("%d at once, want %d", got, fullBurst)
		}
		time.Sleep(30 * time.Second)
		if got := take(); got != 3 {
			t.Errorf("%d in 30 s, want 3", got)
		}
		for i := range maxBuckets {
			if ok := pool.allow(subjectOf(fmt.Sprintf("org%d/n%d", i%orgShare, i)), time.Now()); ok != (i < maxBuckets-1) {
				t.Fatalf("peer %d: %v", i, ok)
			}
		}
		time.Sleep(time.Hour)
		if !pool.allow(subjectOf("org0/more"), time.Now()) || len(pool.peers) > maxBuckets || len(pool.counted) > 1 {
			t.Errorf("%d buckets an hour later, of %v", len(pool.peers), pool.counted)
		}
	})
}

// An organisation that attests as more peers than there are accounts keeps its own out and
// nobody else's.
func TestAttestationsPerOrganisation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool, served := newAttestations(1, fullBurst), 0
		for i := range 2 * maxBuckets {
			if pool.allow(subjectOf(fmt.Sprintf("mallory/n%d", i)), time.Now()) {
				served++
			}
		}
		if served != maxBuckets/orgShare {
			t.Errorf("%d peers of one organisation were served, want %d", served, maxBuckets/orgShare)
		}
		for i := range maxBuckets / orgShare {
			if !pool.allow(subjectOf(fmt.Sprintf("beta/n%d", i)), time.Now()) {
				t.Fatalf("peer %d of another organisation is refused", i)
			}
		}
	})
}

// gate is a Judge whose appraisals wait.
type gate struct {
	Judge
	open            chan struct{}
	running, served atomic.Int64
}

func (g *gate) Appraise(_ context.Context, s Subject, _ attest.Evidence, _ attest.ReportData) (attest.Claims, attest.Result) {
	g.running.Add(1)
	<-g.open
	g.running.Add(-1)
	g.served.Add(1)
	return attest.Claims{}, attest.Result{Verdict: attest.VerdictAffirming}
}

// An organisation that floods the pool is served a part of it, another one is served in
// turn, and more than the queue holds is refused at once.
func TestPoolServesOrganisationsInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const workers = 2
		g := &gate{open: make(chan struct{})}
		j := pooledJudge{g, newAttestations(workers, fullBurst)}
		results := make(chan attest.Result, 1024)
		ask := func(ctx context.Context, org identity.OrgID) {
			go func() {
				_, r := j.Appraise(ctx, Subject{Node: identity.NodeRef{Org: org}}, attest.Evidence{}, attest.ReportData{})
				results <- r
			}()
			synctest.Wait()
		}
		ctx := context.Background()
		for range workers + orgAppraisals {
			ask(ctx, "flood")
		}
		if g.running.Load() != workers {
			t.Fatalf("%d run at once, want %d", g.running.Load(), workers)
		}
		ask(ctx, "flood")
		if r := <-results; r.Code() != attest.CodeBusy {
			t.Errorf("more than the organisation's part: %v", r)
		}
		done := make(chan struct{})
		go func() {
			j.Appraise(ctx, Subject{Node: identity.NodeRef{Org: "honest"}}, attest.Evidence{}, attest.ReportData{})
			close(done)
		}()
		synctest.Wait()
		for range 3 { // two that ran already, and one of the flood's queue before its turn
			g.open <- struct{}{}
			synctest.Wait()
		}
		g.open <- struct{}{}
		synctest.Wait()
		select {
		case <-done:
		default:
			t.Error("the honest organisation waits behind the flood")
		}
		// Who gives up leaves no place behind.
		waiting := j.pool.waiting
		short, cancel := context.WithCancel(ctx)
		ask(short, "late")
		cancel()
		synctest.Wait()
		for r := range results {
			if r.Code() == attest.CodeBusy {
				break
			}
		}
		if j.pool.waiting != waiting {
			t.Errorf("%d wait, want %d", j.pool.waiting, waiting)
		}
		close(g.open)
		synctest.Wait()
		if p := j.pool; p.waiting != 0 || p.free != workers || len(p.queues) != 0 || len(p.turn) != 0 {
			t.Errorf("left: %d waiting, %d of %d free, queues %v, turns %v", p.waiting, p.free, workers, p.queues, p.turn)
		}
	})
}

// A thousand peers without a Credential cost no quote and no check of evidence.
func TestStrangersCostNothing(t *testing.T) {
	memory(t, func(t *testing.T, w *world, _ *MemoryNetwork) {
		n := w.node("alpha/n1", nil)
		stranger := w.node("beta/n1", func(_ *meshtest.Node, c *Config) { c.Credential = func() []byte { return nil } })
		for range 1000 {
			_, err := stranger.Dial(testContext(t), n.Self(), n.Addrs())
			wantRefusal(t, err, true, attest.CodeNoCredential)
			<-n.refusals
			<-stranger.refusals
		}
		if n.Attester.Quotes.Load() != 0 || n.Judge.Appraisals.Load() != 0 || n.Judge.Credentials.Load() != 1000 {
			t.Errorf("%d quotes, %d appraisals, %d Credentials judged", n.Attester.Quotes.Load(), n.Judge.Appraisals.Load(), n.Judge.Credentials.Load())
		}
	})
}
