package mesh

import (
	"io"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/exchange"
	"github.com/attestmesh/meshnode/mesh/meshtest"
)

const bulk Protocol = "/meshnode/test/bulk/1"

// mind is a judge's opinion that changes while streams are open: it refuses one protocol.
type mind struct{ refused atomic.Pointer[Protocol] }

func (m *mind) refuse(p Protocol) { m.refused.Store(&p) }

func (m *mind) opinion(_ *Session, p Protocol) *attest.Reason {
	if refused := m.refused.Load(); refused == nil || *refused != p {
		return nil
	}
	r := attest.NewReason(attest.CodeStale, string(p), "not any more", "permitted")
	return &r
}

func (m *mind) change(n *meshtest.Node, _ *Config) {
	n.Judge.PermitFunc, n.Judge.KeepFunc = m.opinion, m.opinion
}

// A recheck ends exactly the streams that are refused, at both ends, with the reason; link
// and verdict stay, and no quote is made.
func TestRecheckEndsRefusedStreamsOnly(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		var m mind
		a, b := w.node("alpha/n1", m.change), w.node("beta/n1", nil)
		ended := make(chan error, 1)
		b.Handle(bulk, func(_ Link, s Stream) {
			defer s.Close()
			_, err := io.Copy(io.Discard, s)
			ended <- err
		})
		l := w.dial(a, b)
		back := w.linkTo(b, a)
		kept, err := l.Open(testContext(t), echo)
		if err != nil {
			t.Fatal(err)
		}
		lost, err := l.Open(testContext(t), bulk)
		if err != nil {
			t.Fatal(err)
		}
		a.Recheck()
		if _, err := lost.Write([]byte("still here")); err != nil {
			t.Fatalf("a recheck of an unchanged mind: %v", err)
		}
		m.refuse(bulk)
		a.Recheck()
		one := make([]byte, 1)
		_, err = lost.Read(one)
		wantRefusal(t, err, false, attest.CodeStale)
		_, err = lost.Write(one)
		wantRefusal(t, err, false, attest.CodeStale)
		select {
		case err := <-ended:
			if err == nil {
				t.Error("the handler saw an orderly end")
			}
		case <-time.After(10 * time.Second):
			t.Fatal("the handler still runs")
		}
		if _, err = kept.Write(one); err == nil {
			_, err = io.ReadFull(kept, one)
		}
		if err != nil {
			t.Errorf("the other stream: %v", err)
		}
		// Both ends hear the reason when they try again.
		_, err = l.Open(testContext(t), bulk)
		wantRefusal(t, err, false, attest.CodeStale)
		_, err = back.Open(testContext(t), bulk)
		wantRefusal(t, err, true, attest.CodeStale)
		if l.Cause() != (attest.Reason{}) || len(b.Links()) != 1 {
			t.Errorf("the link went down: %v", l.Cause())
		}
		if a.Attester.Quotes.Load() != 1 || b.Attester.Quotes.Load() != 1 {
			t.Errorf("%d and %d quotes", a.Attester.Quotes.Load(), b.Attester.Quotes.Load())
		}
	})
}

// A stream that the peer opened is ended alike, and its handler hears the reason.
func TestRecheckEndsInboundStreams(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		var m mind
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", m.change)
		ended := make(chan error, 1)
		b.Handle(bulk, func(_ Link, s Stream) {
			_, err := io.Copy(io.Discard, s)
			ended <- err
		})
		s, err := w.dial(a, b).Open(testContext(t), bulk)
		if err != nil {
			t.Fatal(err)
		}
		m.refuse(bulk)
		b.Recheck()
		select {
		case err := <-ended:
			wantRefusal(t, err, false, attest.CodeStale)
		case <-time.After(10 * time.Second):
			t.Fatal("the handler still runs")
		}
		if _, err := s.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("the opener read %v, want an error", err)
		}
	})
}

// The mind changes between Permit and the stream: no recheck would see it.
func TestStreamIsJudgedOnceMoreWhenItIsOpen(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		var permitted atomic.Bool
		a := w.node("alpha/n1", func(n *meshtest.Node, _ *Config) {
			n.Judge.PermitFunc = func(*Session, Protocol) *attest.Reason { permitted.Store(true); return nil }
			n.Judge.KeepFunc = func(_ *Session, p Protocol) *attest.Reason {
				if !permitted.Load() {
					t.Error("Keep was asked before Permit")
				}
				r := attest.NewReason(attest.CodeBehind, string(p), "old", "new")
				return &r
			}
		})
		b := w.node("beta/n1", nil)
		_, err := w.dial(a, b).Open(testContext(t), echo)
		wantRefusal(t, err, false, attest.CodeBehind)
	})
}

// The epoch travels on the control stream: it rises at the peer, never falls, and costs no
// quote.
func TestEpochIsAnnounced(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		var epoch atomic.Uint64
		epoch.Store(3)
		a := w.node("alpha/n1", func(_ *meshtest.Node, c *Config) {
			c.Epoch = func() identity.Epoch { return identity.Epoch(epoch.Load()) }
		})
		var heard []identity.Epoch
		told := make(chan identity.Epoch, 16)
		b := w.node("beta/n1", func(_ *meshtest.Node, c *Config) { c.OnEpoch = func(l Link) { told <- l.PeerEpoch() } })
		w.dial(a, b)
		back := w.linkTo(b, a)
		if back.PeerEpoch() != 3 {
			t.Errorf("epoch %d from the HELLO, want 3", back.PeerEpoch())
		}
		for next := uint64(4); next < 8; next++ {
			epoch.Store(next)
			a.AnnounceEpoch()
			a.AnnounceEpoch() // twice is once
			eventually(t, "the new epoch", func() bool { return back.PeerEpoch() == identity.Epoch(next) })
		}
		l, _ := a.Link(b.Self())
		raw, err := l.(*link).say(exchange.FrameEpoch, exchange.EncodeEpoch(2), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		_ = raw.Reset()
		if back.PeerEpoch() != 7 {
			t.Errorf("epoch %d after an older announcement, want 7", back.PeerEpoch())
		}
		for range 4 {
			heard = append(heard, <-told)
		}
		if len(told) != 0 || !slices.Equal(heard, []identity.Epoch{4, 5, 6, 7}) {
			t.Errorf("OnEpoch heard of %v and %d more, want 4 to 7", heard, len(told))
		}
		if a.Attester.Quotes.Load() != 1 || b.Attester.Quotes.Load() != 1 {
			t.Errorf("%d and %d quotes", a.Attester.Quotes.Load(), b.Attester.Quotes.Load())
		}
	})
}

// An epoch that rises during the exchange is announced without being asked for.
func TestEpochThatRisesDuringTheExchange(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		var calls atomic.Uint64
		a := w.node("alpha/n1", func(_ *meshtest.Node, c *Config) {
			c.Epoch = func() identity.Epoch { return identity.Epoch(min(calls.Add(1), 2)) } // 1 in the HELLO
		})
		b := w.node("beta/n1", nil)
		w.dial(a, b)
		back := w.linkTo(b, a)
		eventually(t, "the epoch after the HELLO", func() bool { return back.PeerEpoch() == 2 })
		if back.Session().PeerEpoch != 1 {
			t.Errorf("the HELLO said %d", back.Session().PeerEpoch)
		}
	})
}

// What is not an epoch changes nothing and harms nobody.
func TestBadEpochFrames(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		l := w.dial(a, b)
		back := w.linkTo(b, a)
		for _, body := range [][]byte{nil, {0x18, 0x07}, {0x20}, {0x07, 0x07}, make([]byte, exchange.MaxEpoch+1)} {
			raw, err := l.(*link).say(exchange.FrameEpoch, body, time.Second)
			if raw != nil {
				_ = raw.Reset()
			}
			if err == nil {
				t.Errorf("body %x was answered", body)
			}
		}
		if back.PeerEpoch() != 3 || back.Cause() != (attest.Reason{}) {
			t.Errorf("epoch %d, cause %v", back.PeerEpoch(), back.Cause())
		}
	})
}
