package attest

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// slow is an attester that takes its time; it notes when each quote began.
type slow struct {
	takes  time.Duration
	mu     sync.Mutex
	quotes int
}

func (*slow) Kind() string { return KindSim }

func (s *slow) Attest(ctx context.Context, data ReportData) (Evidence, error) {
	s.mu.Lock()
	s.quotes++
	s.mu.Unlock()
	select {
	case <-time.After(s.takes):
		return Evidence{Kind: KindSim, Items: []Item{{Type: TypeSimReport, Data: data[:]}}}, nil
	case <-ctx.Done():
		return Evidence{}, ctx.Err()
	}
}

func (s *slow) made() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.quotes
}

const quoteTime = 100 * time.Millisecond

// withQuoter runs f in a bubble with a running quoter on a device of quoteTime.
func withQuoter(t *testing.T, f func(*testing.T, *Quoter, *slow)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		device := &slow{takes: quoteTime}
		q := NewQuoter(device, [32]byte{1}, "self", func() [32]byte { return [32]byte{2} })
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { q.Run(ctx); close(done) }()
		f(t, q, device)
		cancel()
		<-done
	})
}

type prove func(context.Context, [32]byte) (Proof, error)

func bindOf(i int) (b [32]byte) {
	binary.BigEndian.PutUint64(b[:], uint64(i)+1)
	return b
}

// ask makes n concurrent challenges from binder first on, checks each proof against its
// binder and returns how long the slowest took.
func ask(t *testing.T, p prove, first, n int) (slowest time.Duration) {
	t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i := range n {
		wg.Go(func() {
			start, bind := time.Now(), bindOf(first+i)
			proof, err := p(context.Background(), bind)
			if err != nil {
				t.Error(err)
				return
			}
			want, err := proof.ReportData(bind, [32]byte{1}, "self")
			if err != nil || string(want[:]) != string(proof.Evidence.Items[0].Data) {
				t.Errorf("challenge %d: the proof is not of its binder (%v)", first+i, err)
			}
			mu.Lock()
			defer mu.Unlock()
			slowest = max(slowest, time.Since(start))
		})
	}
	wg.Wait()
	return slowest
}

// 50 challenges at once, of either lane, share a few quotes of a slow device.
func TestChallengesShareQuotes(t *testing.T) {
	for name, lane := range map[string]func(*Quoter) prove{
		"peers":   func(q *Quoter) prove { return q.Prove },
		"clients": func(q *Quoter) prove { return q.ProveClient },
		"mixed": func(q *Quoter) prove {
			return func(ctx context.Context, b [32]byte) (Proof, error) {
				if b[7]%2 == 0 {
					return q.Prove(ctx, b)
				}
				return q.ProveClient(ctx, b)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			withQuoter(t, func(t *testing.T, q *Quoter, device *slow) {
				if d := ask(t, lane(q), 0, 50); d > 500*time.Millisecond {
					t.Errorf("the last of 50 challenges took %s, want at most 500 ms", d)
				}
				if n := device.made(); n > 3 {
					t.Errorf("%d quotes for 50 challenges, want at most 3", n)
				}
			})
		})
	}
}

// Whatever clients ask for, a peer waits for the quote in progress and its own, and at
// least every second quote is without clients as long as peers wait. Clients get theirs too.
func TestClientsDoNotStarvePeers(t *testing.T) {
	withQuoter(t, func(t *testing.T, q *Quoter, device *slow) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		var wg, peers sync.WaitGroup
		var mu sync.Mutex
		served, withClients := 0, map[ReportData]bool{}
		for i := range 200 {
			wg.Go(func() {
				for ctx.Err() == nil {
					start := time.Now()
					p, err := q.ProveClient(ctx, bindOf(10_000+i))
					if ctx.Err() != nil {
						return
					}
					if err != nil || time.Since(start) > 3*quoteTime {
						t.Errorf("a client waited %s and got %v", time.Since(start), err)
					}
					mu.Lock()
					served++
					withClients[ReportData(p.Evidence.Items[0].Data)] = true
					mu.Unlock()
				}
			})
		}
		// Two peers ask so that one of them waits whenever a quote begins.
		for j := range 2 {
			peers.Go(func() {
				time.Sleep(time.Duration(j)*quoteTime + quoteTime/2) // virtual: into the middle of a quote
				for i := range 20 {
					if d := ask(t, q.Prove, 100*j+i, 1); d > 2*quoteTime {
						t.Errorf("a peer waited %s, want at most two quotes", d)
					}
				}
			})
		}
		peers.Wait()
		cancel()
		wg.Wait()
		if all := device.made(); len(withClients) > all/2+1 || len(withClients) < all/2-1 {
			t.Errorf("%d of %d quotes carried clients, want half", len(withClients), all)
		}
		if served < 1000 {
			t.Errorf("%d clients served", served)
		}
	})
}

// A client alone is not held up: no quote is made only to be without clients.
func TestClientAlone(t *testing.T) {
	withQuoter(t, func(t *testing.T, q *Quoter, device *slow) {
		for i := range 5 {
			if d := ask(t, q.ProveClient, i, 1); d != quoteTime {
				t.Errorf("challenge %d took %s", i, d)
			}
		}
		if device.made() != 5 {
			t.Errorf("%d quotes", device.made())
		}
	})
}

// The clients' queue is bounded, a full one does not concern peers, and those who hang up
// leave it.
func TestClientQueueIsBounded(t *testing.T) {
	withQuoter(t, func(t *testing.T, q *Quoter, device *slow) {
		go func() { ask(t, q.Prove, 0, 1) }() // the device is busy with this one
		synctest.Wait()
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for i := range MaxClientChallenges {
			wg.Go(func() {
				if _, err := q.ProveClient(ctx, bindOf(1+i)); !errors.Is(err, context.Canceled) {
					t.Errorf("got %v", err)
				}
			})
		}
		synctest.Wait()
		if _, err := q.ProveClient(ctx, bindOf(0)); !errors.Is(err, ErrQuoterBusy) {
			t.Errorf("one more: got %v, want ErrQuoterBusy", err)
		}
		cancel()
		wg.Wait()
		if d := ask(t, q.Prove, 5000, 1); d > 2*quoteTime {
			t.Errorf("a peer waited %s", d)
		}
		synctest.Wait()
		if n := device.made(); n != 2 {
			t.Errorf("%d quotes, want 2: nobody waits for the clients'", n)
		}
		if d := ask(t, q.ProveClient, 6000, 1); d != quoteTime {
			t.Errorf("a client after those who left waited %s", d)
		}
	})
}

// When the quoter ends, everyone who waits in either lane is told.
func TestQuoterEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := NewQuoter(&slow{takes: time.Hour}, [32]byte{1}, "self", func() [32]byte { return [32]byte{} })
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { q.Run(ctx) })
		for i, p := range []prove{q.Prove, q.ProveClient, q.Prove, q.ProveClient} {
			wg.Go(func() {
				if _, err := p(context.Background(), bindOf(i)); !errors.Is(err, context.Canceled) {
					t.Errorf("got %v", err)
				}
			})
			synctest.Wait()
		}
		cancel()
		wg.Wait()
	})
}

// registered is an attester with a register that moves while it quotes.
type registered struct {
	slow
	register byte // owned by whoever calls
}

func (r *registered) Attest(ctx context.Context, data ReportData) (Evidence, error) {
	before := r.register
	ev, err := r.slow.Attest(ctx, data)
	ev.Items = append(ev.Items, Item{Type: TypeSimReport, Data: []byte{before, r.register}})
	return ev, err
}

func (r *registered) Extend(_ context.Context, event []byte) error {
	time.Sleep(quoteTime / 3)
	if len(event) != 1 {
		return errors.New("broken")
	}
	r.register += event[0]
	return nil
}

// The head in the report data and the register in the quote are of the same moment, however
// records and quotes fall together.
func TestQuoterKeepsHeadAndRegisterInStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var logged byte
		head := func() [32]byte { mu.Lock(); defer mu.Unlock(); return [32]byte{logged} }
		q := NewQuoter(&registered{slow: slow{takes: quoteTime}}, [32]byte{}, "self", head)
		ctx, cancel := context.WithCancel(context.Background())
		var running, asking sync.WaitGroup
		running.Go(func() { q.Run(ctx) })
		record := func(event ...byte) error {
			return q.Record(ctx, func(extend func([]byte) error) error {
				if err := extend(event); err != nil {
					return err
				}
				mu.Lock()
				defer mu.Unlock()
				logged += event[0]
				return nil
			})
		}
		for i := range 20 {
			asking.Go(func() {
				time.Sleep(time.Duration(i) * quoteTime / 4)
				p, err := q.Prove(ctx, bindOf(i))
				if err != nil {
					t.Error(err)
					return
				}
				if at := p.Evidence.Items[1].Data; at[0] != p.RuntimeHead[0] || at[1] != p.RuntimeHead[0] {
					t.Errorf("head %d, register %d to %d", p.RuntimeHead[0], at[0], at[1])
				}
			})
			asking.Go(func() {
				time.Sleep(time.Duration(i) * quoteTime / 7)
				if err := record(1); err != nil {
					t.Error(err)
				}
			})
		}
		asking.Wait()
		if logged != 20 {
			t.Errorf("got %d records, want 20", logged)
		}
		if err := record(1, 2); err == nil || logged != 20 {
			t.Errorf("got %v with %d records, want the register's error", err, logged)
		}
		cancel()
		running.Wait()
		if err := q.Record(ctx, func(func([]byte) error) error { return nil }); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
