package mesh

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/exchange"
	"github.com/attestmesh/meshnode/mesh/meshtest"
	"github.com/attestmesh/meshnode/mesh/meshtest/memtransport"
)

// part ends a link in peace: both ends keep what they know of each other.
func part(t *testing.T, l Link, ends ...*node) {
	t.Helper()
	_ = l.Close(attest.NewReason(attest.CodeShutdown, "", "", ""))
	eventually(t, "no link left", func() bool {
		for _, n := range ends {
			if len(n.Links()) > 0 {
				return false
			}
		}
		return true
	})
}

func (n *node) wantCount(t *testing.T, name string, want uint64) {
	t.Helper()
	if got := n.Counters()[name]; got != want {
		t.Errorf("%s is %d, want %d; all: %v", name, got, want, n.Counters())
	}
}

// held returns what a node remembers of its full exchanges.
func (n *node) held() [2]int {
	v, k := n.hub().pairs.Len()
	return [2]int{v, k}
}

// A reconnect inside the window costs no quote and no appraisal, in either direction, and
// its verdict is no younger than the evidence.
func TestFastReconnect(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		l := w.dial(a, b)
		first, firstBack := l.Session(), w.linkTo(b, a).Session()
		if first.Fast || firstBack.Fast || first.NotAfter.Sub(first.AttestedAt) != exchange.DefaultWindow {
			t.Errorf("first sessions %+v, %+v", first, firstBack)
		}
		part(t, l, a, b)
		for _, p := range [][2]*node{{a, b}, {b, a}} {
			l := w.dial(p[0], p[1])
			back := w.linkTo(p[1], p[0])
			for _, s := range []*Session{l.Session(), back.Session()} {
				was := first
				if s.Peer == a.Self() {
					was = firstBack
				}
				if !s.Fast || !s.NotAfter.Equal(was.NotAfter) || !s.AttestedAt.Equal(was.AttestedAt) || !s.Result.Affirming() ||
					s.Claims.Measurement != was.Claims.Measurement || s.Established.Before(was.Established) {
					t.Errorf("fast session %+v after %+v", s, was)
				}
			}
			s, err := l.Open(testContext(t), echo)
			if err != nil {
				t.Fatal(err)
			}
			_ = s.Close()
			part(t, l, a, b)
		}
		for _, n := range []*node{a, b} {
			if q, ap := n.Attester.Quotes.Load(), n.Judge.Appraisals.Load(); q != 1 || ap != 1 {
				t.Errorf("%d quotes, %d appraisals", q, ap)
			}
			n.wantCount(t, "attested/full", 1)
			n.wantCount(t, "attested/fast", 2)
		}
		// One that goes not in peace takes the pair with it, at both ends.
		l = w.dial(a, b)
		back := w.linkTo(b, a)
		_ = l.Close(attest.NewReason(attest.CodeRevoked, "measurement", "00", "another"))
		await(t, "Done", back.Done(), 2*time.Second)
		if a.held() != [2]int{} || b.held() != [2]int{} {
			t.Errorf("after a revocation %v and %v are held", a.held(), b.held())
		}
	})
}

// Reattest replaces verdict and keys at both ends, on the same connection, for whoever asks
// the connection, and leaves its streams alone.
func TestReattest(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		l := w.dial(a, b)
		back := w.linkTo(b, a)
		kept, err := l.Open(testContext(t), echo)
		if err != nil {
			t.Fatal(err)
		}
		for i, opener := range []Link{l, back} {
			mine, theirs := l.Session(), back.Session()
			time.Sleep(10 * time.Millisecond)
			if err := opener.Reattest(testContext(t)); err != nil {
				t.Fatalf("opened by end %d: %v", i, err)
			}
			// Who opened has its verdict; the frame that gives the other end its own is sent.
			eventually(t, "a new verdict at the other end", func() bool { return l.Session() != mine && back.Session() != theirs })
			for _, p := range [][2]*Session{{mine, l.Session()}, {theirs, back.Session()}} {
				was, is := p[0], p[1]
				if is == was || is.Fast || !is.AttestedAt.After(was.AttestedAt) || !is.NotAfter.After(was.NotAfter) ||
					is.Initiator != was.Initiator || is.Peer != was.Peer {
					t.Errorf("session %+v became %+v", was, is)
				}
			}
		}
		if q := a.Attester.Quotes.Load(); q != 3 {
			t.Errorf("%d quotes", q)
		}
		a.wantCount(t, "attested/again", 2)
		b.wantCount(t, "attested/again", 2)
		if m, ok := a.Mesh.(*libp2pMesh); ok {
			var s *Session
			conns := m.swarm.Conns()
			if len(conns) != 1 || !conns[0].As(&s) || s != l.Session() || !attestedAs(conns[0], conns[0].RemotePeer()) {
				t.Error("the connection shows another verdict than the link")
			}
		}
		one := make([]byte, 1)
		if _, err := kept.Write(one); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(kept, one); err != nil {
			t.Fatal(err)
		}
		_ = kept.Close()
		// The keys are the new ones at both ends: a reconnect is fast.
		part(t, l, a, b)
		if l := w.dial(a, b); !l.Session().Fast || !w.linkTo(b, a).Session().Fast {
			t.Error("the pair keys do not fit after a re-attestation")
		}
	})
}

// Both ends at once, many times: one exchange serves both, nothing waits for ever.
func TestReattestFromBothEnds(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		change := func(_ *meshtest.Node, c *Config) { c.FullBurst = 1000 }
		a, b := w.node("alpha/n1", change), w.node("beta/n1", change)
		l := w.dial(a, b)
		back := w.linkTo(b, a)
		for i := range 20 {
			var wg sync.WaitGroup
			for _, end := range []Link{l, back, l, back} {
				wg.Go(func() {
					if err := end.Reattest(testContext(t)); err != nil {
						t.Errorf("round %d: %v", i, err)
					}
				})
			}
			wg.Wait()
		}
		if l.Cause() != (attest.Reason{}) || back.Cause() != (attest.Reason{}) {
			t.Errorf("causes %v, %v", l.Cause(), back.Cause())
		}
		if q := a.Attester.Quotes.Load(); q > 81 {
			t.Errorf("%d quotes for 80 calls", q)
		}
	})
}

// By itself, with virtual time: links outlive many windows, and are attested about once in
// each.
func TestReattestTimer(t *testing.T) {
	run := func(t *testing.T, w *world, change func(string) func(*meshtest.Node, *Config)) {
		a, b := w.node("alpha/n1", change("alpha")), w.node("beta/n1", change("beta"))
		l := w.dial(a, b)
		back := w.linkTo(b, a)
		for range 60 {
			time.Sleep(time.Minute)
			for _, end := range []Link{l, back} {
				if s := end.Session(); s.Expired(time.Now()) || end.Cause() != (attest.Reason{}) {
					t.Fatalf("verdict from %s to %s, cause %v", s.AttestedAt, s.NotAfter, end.Cause())
				}
			}
		}
		// Between 0.64 and 0.96 of 5 min, and the earlier of two.
		if n := a.Counters()["attested/again"]; n < 12 || n > 20 || n != b.Counters()["attested/again"] {
			t.Errorf("attested again %d and %d times in an hour", n, b.Counters()["attested/again"])
		}
		// Inside a window both ends hold each other's keys.
		if a.held() != [2]int{1, 1} || b.held() != [2]int{1, 1} {
			t.Errorf("held: %v, %v", a.held(), b.held())
		}
	}
	t.Run("memory", func(t *testing.T) {
		memory(t, func(t *testing.T, w *world, _ *MemoryNetwork) {
			run(t, w, func(string) func(*meshtest.Node, *Config) { return nil })
		})
	})
	t.Run("libp2p", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			memtransport.Epoch()
			wire := &memtransport.Network{}
			run(t, &world{t: t, root: meshtest.NewRoot(), meshID: identity.MeshID{7}, start: NewLibp2p}, func(name string) func(*meshtest.Node, *Config) {
				return func(_ *meshtest.Node, c *Config) {
					c.Transport, c.Listen = wire.Host(name), []string{"/ip4/10.0.0.1/tcp/0"}
				}
			})
		})
	})
}

// A fast connection has what was left of the window, and is attested again within it.
func TestFastConnectionIsAttestedInTime(t *testing.T) {
	memory(t, func(t *testing.T, w *world, _ *MemoryNetwork) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		part(t, w.dial(a, b), a, b)
		time.Sleep(exchange.DefaultWindow - 5*time.Second)
		l := w.dial(a, b)
		s := l.Session()
		if left := time.Until(s.NotAfter); !s.Fast || left > 5*time.Second {
			t.Fatalf("fast %v with %s left", s.Fast, left)
		}
		time.Sleep(10 * time.Second)
		if l.Cause() != (attest.Reason{}) || l.Session().Fast {
			t.Errorf("cause %v, fast %v", l.Cause(), l.Session().Fast)
		}
		// After the window there is nothing to be fast with.
		part(t, l, a, b)
		time.Sleep(exchange.DefaultWindow)
		if w.dial(a, b).Session().Fast {
			t.Error("fast after the window")
		}
	})
}

// A node whose runtime event log has grown is asked for evidence again.
func TestRuntimeHeadVoidsFast(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		part(t, w.dial(a, b), a, b)
		head := [32]byte{1}
		a.Head.Store(&head)
		l := w.dial(a, b)
		if s := w.linkTo(b, a).Session(); s.Fast || s.RuntimeHead != head {
			t.Errorf("the verdict about a changed node: fast %v, head %x", s.Fast, s.RuntimeHead)
		}
		if !l.Session().Fast {
			t.Error("the unchanged node had to show evidence too")
		}
	})
}

// What a peer runs is found out on the live connection: link closed with the reason at
// both ends, pair dropped, refusals counted once at each.
func TestReattestRefuses(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		var swapped atomic.Bool
		a := w.node("alpha/n1", nil)
		b := w.node("beta/n1", func(n *meshtest.Node, _ *Config) {
			n.Judge.AppraiseFunc = func(Subject) *attest.Reason {
				if !swapped.Load() {
					return nil
				}
				r := attest.NewReason(attest.CodeMeasurementNotAllowed, "measurement", "66", "an allowed one")
				return &r
			}
		})
		for i, openedByA := range []bool{true, false} {
			swapped.Store(false)
			l := w.dial(a, b)
			back := w.linkTo(b, a)
			s, err := l.Open(testContext(t), echo)
			if err != nil {
				t.Fatal(err)
			}
			swapped.Store(true)
			opener := back
			if openedByA {
				opener = l
			}
			err = opener.Reattest(testContext(t))
			wantRefusal(t, err, openedByA, attest.CodeMeasurementNotAllowed)
			await(t, "Done", l.Done(), 2*time.Second)
			await(t, "Done at the other end", back.Done(), 2*time.Second)
			if l.Cause().Code != attest.CodeMeasurementNotAllowed || back.Cause().Code != attest.CodeMeasurementNotAllowed {
				t.Errorf("causes %v and %v", l.Cause(), back.Cause())
			}
			if _, err := s.Read(make([]byte, 1)); err == nil {
				t.Error("a stream survived")
			}
			eventually(t, "counters", func() bool {
				return a.Counters()["refused_us/measurement_not_allowed"] == uint64(i+1) && b.Counters()["refused/measurement_not_allowed"] == uint64(i+1)
			})
			if a.held() != [2]int{} || b.held() != [2]int{} {
				t.Errorf("held after a refusal: %v, %v", a.held(), b.held())
			}
			a.wantNoLink(t)
			b.wantNoLink(t)
			for range 1 {
				<-a.refusals
				<-b.refusals
			}
		}
	})
}

// What the policy has come to refuse while the evidence was being judged does not stay until
// the next change of the policy.
func TestReattestUnderAChangedPolicy(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		a := w.node("alpha/n1", nil)
		var armed atomic.Bool
		b := w.node("beta/n1", func(n *meshtest.Node, _ *Config) {
			var judged atomic.Bool
			n.Judge.AppraiseFunc = func(Subject) *attest.Reason {
				if !armed.Load() || !judged.Swap(true) {
					return nil
				}
				r := attest.NewReason(attest.CodeRevoked, "measurement", "00", "another")
				return &r
			}
		})
		l := w.dial(a, b)
		back := w.linkTo(b, a)
		armed.Store(true)
		_ = l.Reattest(testContext(t)) // who sends the last frame has done its part
		await(t, "Done", back.Done(), 2*time.Second)
		await(t, "Done at the other end", l.Done(), 2*time.Second)
		if back.Cause().Code != attest.CodeRevoked {
			t.Errorf("cause %v", back.Cause())
		}
		if b.held() != [2]int{} {
			t.Errorf("held: %v", b.held())
		}
	})
}

// Streams are judged by the new verdict as soon as there is one.
func TestReattestRechecksStreams(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		a := w.node("alpha/n1", nil)
		first := make(chan *Session, 1)
		b := w.node("beta/n1", func(n *meshtest.Node, _ *Config) {
			n.Judge.KeepFunc = func(s *Session, _ Protocol) *attest.Reason {
				was := <-first
				first <- was
				if s == was {
					return nil
				}
				r := attest.NewReason(attest.CodeNotSeat, "roles", "member", "seat")
				return &r
			}
		})
		l := w.dial(a, b)
		first <- w.linkTo(b, a).Session()
		s, err := l.Open(testContext(t), echo)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Reattest(testContext(t)); err != nil {
			t.Fatal(err)
		}
		_ = s.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := s.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the stream stays: %v", err)
		}
		if l.Cause() != (attest.Reason{}) {
			t.Errorf("cause %v", l.Cause())
		}
	})
}

// Of two links to a peer that is refused on one, the other does not stay.
func TestReattestRefusesSpares(t *testing.T) {
	memory(t, func(t *testing.T, w *world, _ *MemoryNetwork) {
		var swapped atomic.Bool
		a := w.node("alpha/n1", nil)
		b := w.node("beta/n1", func(n *meshtest.Node, _ *Config) {
			n.Judge.AppraiseFunc = func(Subject) *attest.Reason {
				if !swapped.Load() {
					return nil
				}
				r := attest.NewReason(attest.CodeMeasurementNotAllowed, "measurement", "66", "an allowed one")
				return &r
			}
		})
		w.dial(a, b)
		w.linkTo(b, a)
		if err := a.Mesh.(*memoryMesh).connect(testContext(t), b.Self(), b.Addrs()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		back := b.hub().everyLink()
		if len(back) != 2 {
			t.Fatalf("%d links", len(back))
		}
		swapped.Store(true)
		wantRefusal(t, back[0].Reattest(testContext(t)), false, attest.CodeMeasurementNotAllowed)
		if left := b.hub().everyLink(); len(left) != 0 {
			t.Errorf("%d links to a refused peer are left", len(left))
		}
		for _, l := range back {
			<-l.Done()
			if l.Cause().Code != attest.CodeMeasurementNotAllowed {
				t.Errorf("cause %v", l.Cause())
			}
		}
	})
}

// A quoting device that is out of order costs the link only when the window is over.
func TestReattestWithoutDevice(t *testing.T) {
	memory(t, func(t *testing.T, w *world, _ *MemoryNetwork) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		l := w.dial(a, b)
		back := w.linkTo(b, a)
		begun := l.Session().AttestedAt
		synctest.Wait()
		b.Attester.Delay = time.Hour
		if err := l.Reattest(testContext(t)); err == nil {
			t.Fatal("attested without a device")
		}
		if l.Cause() != (attest.Reason{}) {
			t.Fatalf("closed at once: %v", l.Cause())
		}
		<-l.Done()
		<-back.Done()
		if took := time.Since(begun); took < exchange.DefaultWindow || took > exchange.DefaultWindow+exchange.TotalTimeout {
			t.Errorf("closed after %s", took)
		}
		if l.Cause().Code != attest.CodeStale || back.Cause().Code != attest.CodeStale {
			t.Errorf("causes %v, %v", l.Cause(), back.Cause())
		}
		if a.Counters()["refused/stale"]+b.Counters()["refused/stale"] == 0 {
			t.Errorf("counters %v, %v", a.Counters(), b.Counters())
		}
	})
}

// rawStream opens a stream as a peer that keeps to no rule of ours.
func rawStream(t *testing.T, l Link, p Protocol) Stream {
	t.Helper()
	s, err := l.(*link).carrier.open(testContext(t), p)
	if err != nil {
		t.Fatal(err)
	}
	_ = s.SetDeadline(time.Now().Add(30 * time.Second))
	return s
}

// Never answered: the one who waits closes; and who opens and says nothing is closed too.
func TestReattestUnanswered(t *testing.T) {
	memory(t, func(t *testing.T, w *world, _ *MemoryNetwork) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		// The peer accepts the stream and falls silent.
		l := w.dial(a, b)
		back := w.linkTo(b, a)
		synctest.Wait()
		s := rawStream(t, l, reattestProtocol)
		if _, err := exchange.ReadFrame(s, exchange.FrameAccept, 0); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		<-back.Done()
		if took := time.Since(begun); took > exchange.TotalTimeout+time.Second || back.Cause().Code != attest.CodeUnavailable {
			t.Errorf("closed after %s: %v", took, back.Cause())
		}
		b.wantCount(t, "refused/unavailable", 1)
		if b.held() != [2]int{} {
			t.Errorf("held: %v", b.held())
		}
		<-l.Done()
	})
}

// A flood of re-attestation streams costs no more than the rate allows and is told busy;
// an honest call still gets through, and the link lives.
func TestReattestFlood(t *testing.T) {
	memory(t, func(t *testing.T, w *world, _ *MemoryNetwork) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		b.Attester.Delay = 50 * time.Millisecond
		l := w.dial(a, b)
		back := w.linkTo(b, a)
		synctest.Wait()
		// One exchange is under way …
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		first := make(chan error, 1)
		go func() { first <- back.Reattest(ctx) }()
		time.Sleep(10 * time.Millisecond)
		// … and everything else is refused.
		var flood []Stream
		for range 200 {
			flood = append(flood, rawStream(t, l, reattestProtocol))
		}
		for _, s := range flood {
			_, err := exchange.ReadFrame(s, exchange.FrameAccept, 0)
			var refused *exchange.RefusedError
			if !errors.As(err, &refused) || refused.Reasons[0].Code != attest.CodeBusy {
				t.Fatalf("got %v, want busy", err)
			}
			_ = s.Reset()
		}
		if err := <-first; err != nil {
			t.Errorf("the honest one: %v", err)
		}
		b.wantCount(t, "refused/busy", 200)
		if q := b.Attester.Quotes.Load(); q != 2 {
			t.Errorf("%d quotes", q)
		}
		if l.Cause() != (attest.Reason{}) || back.Cause() != (attest.Reason{}) {
			t.Errorf("causes %v, %v", l.Cause(), back.Cause())
		}
	})
}

// One end may not be made to attest more often than its rate, one after the other either.
func TestReattestRate(t *testing.T) {
	memory(t, func(t *testing.T, w *world, _ *MemoryNetwork) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		l := w.dial(a, b)
		synctest.Wait()
		var err error
		n := 0
		for ; err == nil && n < 100; n++ {
			err = l.Reattest(testContext(t))
		}
		wantRefusal(t, err, true, attest.CodeBusy)
		if n != fullBurst { // the connection took the first token

			t.Errorf("%d re-attestations in no time", n)
		}
		if l.Cause() != (attest.Reason{}) {
			t.Errorf("cause %v", l.Cause())
		}
		time.Sleep(time.Minute)
		if err := l.Reattest(testContext(t)); err != nil {
			t.Errorf("a minute later: %v", err)
		}
	})
}

// The setting of the window has bounds, and a link lives by it.
func TestWindow(t *testing.T) {
	memory(t, func(t *testing.T, w *world, _ *MemoryNetwork) {
		for _, bad := range []time.Duration{time.Second, -time.Minute, 2 * time.Hour} {
			n := w.root.NewNode(w.meshID, "gamma/n1")
			cfg := Config{Key: n.Key, MeshID: w.meshID, Quoter: n.Quoter, Judge: n.Judge, Window: bad,
				Incarnation: func() identity.Incarnation { return 0 }, Epoch: func() identity.Epoch { return 0 },
				Credential: func() []byte { return n.Credential }}
			if _, err := w.start(cfg); err == nil {
				t.Errorf("a window of %s", bad)
			}
			n.Close()
		}
		a, b := w.node("alpha/n1", func(_ *meshtest.Node, c *Config) { c.Window = time.Minute }), w.node("beta/n1", nil)
		l := w.dial(a, b)
		if s := l.Session(); s.NotAfter.Sub(s.AttestedAt) != time.Minute {
			t.Errorf("from %s to %s", s.AttestedAt, s.NotAfter)
		}
		time.Sleep(10 * time.Minute)
		if l.Cause() != (attest.Reason{}) || a.Counters()["attested/again"] < 10 {
			t.Errorf("cause %v, counters %v", l.Cause(), a.Counters())
		}
	})
}

// A peer cannot invent counters.
func TestCountersAreBounded(t *testing.T) {
	c := newCounters()
	for _, code := range []attest.Code{"invented", "another", attest.CodeStale} {
		c.refusal(true, code)
	}
	if len(c.counts) != 2 || c.counts["refused_us/other"] != 2 || c.counts["refused_us/stale"] != 1 {
		t.Errorf("%v", c.counts)
	}
}
