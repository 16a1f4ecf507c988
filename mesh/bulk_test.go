package mesh

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/meshtest"
)

func (w *world) bulk(from, to *node, p Protocol) (Stream, error) {
	return from.Bulk(testContext(w.t), to.Self(), to.Addrs(), p)
}

func TestBulk(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		if _, err := w.bulk(a, b, echo); err == nil {
			t.Fatal("a bulk stream without a link")
		}
		w.dial(a, b)
		w.linkTo(b, a)
		announced := make(chan Link, 8)
		b.Notify(func(l Link) { announced <- l })
		<-announced
		message := make([]byte, 3<<20)
		_, _ = rand.Read(message)
		for _, p := range [][2]*node{{a, b}, {b, a}} { // either end of the link may open
			s, err := w.bulk(p[0], p[1], echo)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				_, _ = s.Write(message)
				_ = s.CloseWrite()
			}()
			got, err := io.ReadAll(s)
			if err != nil || !bytes.Equal(got, message) {
				t.Fatalf("echo of %d bytes: got %d, %v", len(message), len(got), err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if _, err := s.Write([]byte("x")); err == nil {
				t.Error("wrote on a closed stream")
			}
		}
		if len(a.Links()) != 1 || len(b.Links()) != 1 || len(announced) != 0 {
			t.Errorf("%d and %d links, %d more announced", len(a.Links()), len(b.Links()), len(announced))
		}
		if a.Attester.Quotes.Load() != 1 || b.Attester.Quotes.Load() != 1 {
			t.Errorf("%d and %d quotes: a bulk connection took evidence", a.Attester.Quotes.Load(), b.Attester.Quotes.Load())
		}
		eventually(t, "no bulk connection is left", func() bool { return a.bulkConns() == 0 && b.bulkConns() == 0 })
	})
}

// bulkConns counts the peers with inbound bulk streams.
func (n *node) bulkConns() int {
	h := n.hub()
	h.bulks.mu.Lock()
	defer h.bulks.mu.Unlock()
	return len(h.bulks.byPeer)
}

// What was written before Close arrives, however slowly it is read.
func TestBulkCloseDelivers(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		start, got := make(chan struct{}), make(chan int64, 1)
		b.Handle("/meshnode/test/slow/1", func(_ Link, s Stream) {
			defer s.Close()
			<-start
			n, err := io.Copy(io.Discard, s)
			if err != nil {
				t.Error(err)
			}
			got <- n
		})
		w.dial(a, b)
		w.linkTo(b, a)
		s, err := w.bulk(a, b, "/meshnode/test/slow/1")
		if err != nil {
			t.Fatal(err)
		}
		message := make([]byte, 128<<10) // fits what is between the ends
		if _, err := s.Write(message); err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
		close(start)
		if n := <-got; n != int64(len(message)) {
			t.Errorf("%d bytes arrived of %d", n, len(message))
		}
	})
}

func TestBulkPermit(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		gate := func(code attest.Code) func(*meshtest.Node, *Config) {
			return func(n *meshtest.Node, _ *Config) {
				n.Judge.PermitFunc = func(_ *Session, p Protocol) *attest.Reason {
					if p != "/meshnode/test/"+Protocol(code)+"/1" {
						return nil
					}
					r := attest.NewReason(code, "protocol", string(p), "another")
					return &r
				}
			}
		}
		a, b := w.node("alpha/n1", gate("behind")), w.node("beta/n1", gate("not_seat"))
		for _, p := range []Protocol{"/meshnode/test/behind/1", "/meshnode/test/not_seat/1"} {
			b.Handle(p, func(Link, Stream) { t.Error("a handler of a refused stream ran") })
		}
		w.dial(a, b)
		w.linkTo(b, a)
		quotes := a.Attester.Quotes.Load()
		_, err := w.bulk(a, b, "/meshnode/test/behind/1")
		wantRefusal(t, err, false, attest.CodeBehind)
		if a.Attester.Quotes.Load() != quotes {
			t.Error("connected for a stream that this side does not permit")
		}
		_, err = w.bulk(a, b, "/meshnode/test/not_seat/1")
		wantRefusal(t, err, true, attest.CodeNotSeat)
		_, err = w.bulk(a, b, "/meshnode/test/unknown/1")
		wantRefusal(t, err, true, attest.CodeProtocol)
		for _, p := range []Protocol{"", "x", controlProtocol} {
			if _, err := w.bulk(a, b, p); err == nil {
				t.Errorf("opened %q", p)
			}
		}
		if _, err := a.Bulk(testContext(t), b.Self(), nil, echo); err == nil {
			t.Error("a bulk stream to no address")
		}
		if _, err := a.Bulk(testContext(t), b.Self(), a.Addrs(), echo); err == nil {
			t.Error("a bulk stream to this node itself")
		}
		if l, ok := a.Link(b.Self()); !ok || l.Cause() != (attest.Reason{}) {
			t.Error("a refused bulk stream cost the link")
		}
	})
}

// held opens a bulk stream whose other end waits.
func (w *world) held(a, b *node) (ours, theirs Stream) {
	accepted := make(chan Stream, 1)
	b.Handle("/meshnode/test/held/1", func(_ Link, s Stream) { accepted <- s })
	w.dial(a, b)
	w.linkTo(b, a)
	ours, err := w.bulk(a, b, "/meshnode/test/held/1")
	if err != nil {
		w.t.Fatal(err)
	}
	return ours, <-accepted
}

func reading(s Stream) <-chan error {
	ended := make(chan error, 1)
	go func() { _, err := s.Read(make([]byte, 1)); ended <- err }()
	return ended
}

func TestBulkEndsWithItsLink(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		ours, theirs := w.held(a, b)
		here, there := reading(ours), reading(theirs)
		l, _ := b.Link(a.Self())
		_ = l.Close(attest.NewReason(attest.CodeRevoked, "", "", ""))
		for _, ended := range []<-chan error{here, there} {
			if err := <-ended; err == nil || errors.Is(err, io.EOF) {
				t.Errorf("a read on a revoked link ended with %v", err)
			}
		}
		if _, err := w.bulk(a, b, echo); err == nil {
			t.Error("a bulk stream on a closed link")
		}
	})
}

// A bulk stream that is permitted no longer ends like any other, and its link stays.
func TestRecheckEndsBulk(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		var m mind
		a, b := w.node("alpha/n1", m.change), w.node("beta/n1", nil)
		ours, theirs := w.held(a, b)
		here, there := reading(ours), reading(theirs)
		m.refuse("/meshnode/test/held/1")
		a.Recheck()
		wantRefusal(t, <-here, false, attest.CodeStale)
		if err := <-there; err == nil || errors.Is(err, io.EOF) {
			t.Errorf("the other end's read ended with %v", err)
		}
		if l, ok := a.Link(b.Self()); !ok || l.Cause() != (attest.Reason{}) {
			t.Error("the link went with the stream")
		}
	})
}

func TestBulkDeadlinesAndReset(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		ours, theirs := w.held(a, b)
		_ = ours.SetDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read after the deadline: %v", err)
		}
		_ = ours.SetDeadline(time.Time{})
		read := reading(ours)
		if err := theirs.Reset(); err != nil {
			t.Fatal(err)
		}
		if err := <-read; err == nil || errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read of a reset stream: %v", err)
		}
		_ = ours.Close()
		// A peer that does not answer holds Close up neither here nor for long.
		ours, _ = w.held(a, b)
		read = reading(ours)
		begun := time.Now()
		_ = ours.Close()
		if err := <-read; err == nil || time.Since(begun) > time.Second {
			t.Errorf("a blocked read ended with %v after %s", err, time.Since(begun))
		}
	})
}

func TestBulkIsBounded(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		release := make(chan struct{})
		b.Handle("/meshnode/test/wait/1", func(_ Link, s Stream) { <-release; _ = s.Close() })
		w.dial(a, b)
		w.linkTo(b, a)
		var open []Stream
		for range maxBulks {
			s, err := w.bulk(a, b, "/meshnode/test/wait/1")
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, s)
		}
		if _, err := w.bulk(a, b, "/meshnode/test/wait/1"); err == nil {
			t.Error("one more than allowed")
		}
		close(release)
		for _, s := range open {
			_ = s.Close()
		}
		eventually(t, "places again", func() bool { return b.bulkConns() == 0 })
		s, err := w.bulk(a, b, echo)
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
	})
}

// A mesh that closes in the middle of a transfer leaves nobody waiting.
func TestCloseEndsBulk(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		b.Handle("/meshnode/test/deaf/1", func(l Link, _ Stream) { <-l.Done() })
		w.dial(a, b)
		w.linkTo(b, a)
		var wg sync.WaitGroup
		s, err := w.bulk(a, b, "/meshnode/test/deaf/1")
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for {
				if _, err := s.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		})
		if err := a.Mesh.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
}

// A bulk connection of an attested peer that has no link here is closed: it cannot be the
// way around what links are asked.
func TestBulkNeedsALinkAtBothEnds(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		b.Handle(echo, func(Link, Stream) { t.Error("a handler ran") })
		w.dial(a, b)
		w.linkTo(b, a)
		// As if the link had ended there and the peer did not care.
		b.hub().remove(b.hub().peers[a.Self()][0])
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if _, err := a.Bulk(ctx, b.Self(), b.Addrs(), echo); err == nil || ctx.Err() != nil {
			t.Errorf("got %v", err)
		}
		if _, ok := b.Link(identity.PeerID(a.Self())); ok {
			t.Error("the bulk connection became a link")
		}
	})
}
