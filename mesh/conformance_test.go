package mesh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/meshtest"
)

func TestAttestedStreams(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		l := w.dial(a, b)
		back := w.linkTo(b, a)
		for _, c := range []struct {
			s         *Session
			peer      *node
			name      string
			initiator bool
		}{{l.Session(), b, "beta/n1", true}, {back.Session(), a, "alpha/n1", false}} {
			if c.s.Peer != c.peer.Self() || c.s.Node.String() != c.name || c.s.Initiator != c.initiator ||
				!c.s.Result.Affirming() || !c.s.Claims.Bound || c.s.PeerEpoch != 3 || c.s.Established.IsZero() {
				t.Errorf("session %+v, want one about %s", c.s, c.name)
			}
		}
		for _, l := range []Link{l, back} { // both ends may open
			s, err := l.Open(testContext(t), echo)
			if err != nil {
				t.Fatal(err)
			}
			message := bytes.Repeat([]byte("attested "), 100_000) // more than any buffer
			go func() {
				_, _ = s.Write(message)
				_ = s.CloseWrite()
			}()
			got, err := io.ReadAll(s)
			if err != nil || !bytes.Equal(got, message) {
				t.Fatalf("echo of %d bytes: got %d, %v", len(message), len(got), err)
			}
			_ = s.Close()
		}
		if again := w.dial(a, b); again != l {
			t.Error("a second dial made a second link")
		}
		if a.Attester.Quotes.Load() != 1 || b.Attester.Quotes.Load() != 1 {
			t.Errorf("%d and %d quotes for one connection", a.Attester.Quotes.Load(), b.Attester.Quotes.Load())
		}
		if l.Cause() != (attest.Reason{}) {
			t.Errorf("a live link has cause %v", l.Cause())
		}
	})
}

func TestNotify(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		a, b, c := w.node("alpha/n1", nil), w.node("beta/n1", nil), w.node("gamma/n1", nil)
		early := make(chan Link, 8)
		b.Notify(func(l Link) { early <- l })
		w.dial(a, b)
		w.dial(b, c)
		seen := map[identity.PeerID]int{}
		for range 2 {
			l := <-early
			seen[l.Peer()]++
		}
		late := make(chan Link, 8)
		b.Notify(func(l Link) { late <- l })
		for range 2 {
			l := <-late
			seen[l.Peer()]++
		}
		if seen[a.Self()] != 2 || seen[c.Self()] != 2 || len(early)+len(late) != 0 {
			t.Errorf("notified %v, %d and %d more", seen, len(early), len(late))
		}
	})
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name   string
		dialer func(*world) func(*meshtest.Node, *Config)
		theirs func(*world) func(*meshtest.Node, *Config)

		remote bool        // what Dial says
		code   attest.Code // what Dial says
		inner  attest.Code // what the refusing side knows
		quotes bool        // the dialler made a quote
	}{
		{name: "no credential", dialer: func(*world) func(*meshtest.Node, *Config) {
			return func(_ *meshtest.Node, c *Config) { c.Credential = func() []byte { return nil } }
		}, remote: true, code: attest.CodeNoCredential, inner: attest.CodeNoCredential},
		{name: "another node's credential", dialer: func(w *world) func(*meshtest.Node, *Config) {
			return func(_ *meshtest.Node, c *Config) {
				other := w.root.NewNode(w.meshID, "other/n1")
				other.Close()
				c.Credential = func() []byte { return other.Credential }
			}
		}, remote: true, code: attest.CodeNoCredential, inner: attest.CodeNoCredential},
		{name: "another mesh", dialer: func(*world) func(*meshtest.Node, *Config) {
			return func(_ *meshtest.Node, c *Config) { c.MeshID = identity.MeshID{8} }
		}, remote: true, code: attest.CodeNoCredential, inner: attest.CodeWrongMesh},
		{name: "another incarnation", dialer: func(*world) func(*meshtest.Node, *Config) {
			return func(_ *meshtest.Node, c *Config) { c.Incarnation = func() identity.Incarnation { return 1 } }
		}, remote: true, code: attest.CodeNoCredential, inner: attest.CodeWrongIncarnation},
		{name: "evidence of a foreign root", dialer: foreignEvidence,
			remote: true, code: attest.CodeNotGenuine, inner: attest.CodeNotGenuine, quotes: true},
		{name: "the dialled has a foreign root", theirs: foreignEvidence,
			remote: false, code: attest.CodeNotGenuine, inner: attest.CodeNotGenuine, quotes: true},
		{name: "the dialled has no credential", theirs: func(*world) func(*meshtest.Node, *Config) {
			return func(_ *meshtest.Node, c *Config) { c.Credential = func() []byte { return nil } }
		}, remote: false, code: attest.CodeNoCredential, inner: attest.CodeNoCredential},
		{name: "policy", theirs: func(*world) func(*meshtest.Node, *Config) {
			return func(n *meshtest.Node, _ *Config) {
				n.Judge.AppraiseFunc = func(Subject) *attest.Reason {
					r := attest.NewReason(attest.CodeRevoked, "measurement", strings.Repeat("ab", 48), "an allowed one")
					return &r
				}
			}
		}, remote: true, code: attest.CodeRevoked, inner: attest.CodeRevoked, quotes: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			conformance(t, func(t *testing.T, w *world) {
				change := func(f func(*world) func(*meshtest.Node, *Config)) func(*meshtest.Node, *Config) {
					if f == nil {
						return nil
					}
					return f(w)
				}
				a, b := w.node("alpha/n1", change(c.dialer)), w.node("beta/n1", change(c.theirs))
				for _, n := range []*node{a, b} {
					n.Handle(echo, func(Link, Stream) { t.Error("a handler ran") })
					n.Notify(func(Link) { t.Error("a link was announced") })
				}
				for range 2 { // no back-off hides the reason the second time
					_, err := a.Dial(testContext(t), b.Self(), b.Addrs())
					r := wantRefusal(t, err, c.remote, c.code)
					if c.code == c.inner && c.inner == attest.CodeRevoked && r.Reasons[0].Got != strings.Repeat("ab", 48) {
						t.Errorf("the reason lost its measurement: %v", r.Reasons)
					}
					refuser, refused := b, a
					if !c.remote {
						refuser, refused = a, b
					}
					if got := <-refuser.refusals; got.Remote || got.Peer != refused.Self() || got.Code() != c.inner {
						t.Errorf("the refusing side noted %v, want code %s", &got, c.inner)
					}
					if got := <-refused.refusals; !got.Remote || got.Peer != refuser.Self() {
						t.Errorf("the refused side noted %v", &got)
					}
				}
				a.wantNoLink(t)
				b.wantNoLink(t)
				if made := a.Attester.Quotes.Load() > 0; made != c.quotes {
					t.Errorf("the dialler made %d quotes", a.Attester.Quotes.Load())
				}
				if c.remote && b.Attester.Quotes.Load() != 0 {
					t.Errorf("the dialled made %d quotes for a peer it refused", b.Attester.Quotes.Load())
				}
			})
		})
	}
}

func foreignEvidence(w *world) func(*meshtest.Node, *Config) {
	return func(n *meshtest.Node, c *Config) {
		foreign := attest.NewQuoter(meshtest.NewRoot().NewAttester(), c.MeshID, string(n.Peer), func() [32]byte { return [32]byte{} })
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); foreign.Run(ctx) }()
		w.t.Cleanup(func() { cancel(); <-done })
		c.Quoter = foreign
		n.Attester.Quotes.Store(1) // counted elsewhere
	}
}

func TestPermit(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		var closed atomic.Bool
		gate := func(code attest.Code) func(*meshtest.Node, *Config) {
			return func(n *meshtest.Node, _ *Config) {
				n.Judge.PermitFunc = func(s *Session, p Protocol) *attest.Reason {
					if p == "/meshnode/test/"+Protocol(code)+"/1" || closed.Load() {
						r := attest.NewReason(code, "protocol", string(p), "another")
						return &r
					}
					return nil
				}
			}
		}
		a, b := w.node("alpha/n1", gate("behind")), w.node("beta/n1", gate("not_seat"))
		for _, p := range []Protocol{"/meshnode/test/behind/1", "/meshnode/test/not_seat/1"} {
			b.Handle(p, func(Link, Stream) { t.Error("a handler of a refused stream ran") })
		}
		l := w.dial(a, b)
		_, err := l.Open(testContext(t), "/meshnode/test/behind/1")
		wantRefusal(t, err, false, attest.CodeBehind)
		_, err = l.Open(testContext(t), "/meshnode/test/not_seat/1")
		wantRefusal(t, err, true, attest.CodeNotSeat)
		_, err = l.Open(testContext(t), "/meshnode/test/unknown/1")
		wantRefusal(t, err, true, attest.CodeProtocol)
		for _, p := range []Protocol{"", "x", controlProtocol, "/" + Protocol(strings.Repeat("x", MaxProtocol))} {
			if _, err := l.Open(testContext(t), p); err == nil {
				t.Errorf("opened %.20q", p)
			}
		}
		s, err := l.Open(testContext(t), echo)
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
		closed.Store(true)
		_, err = l.Open(testContext(t), echo)
		wantRefusal(t, err, false, attest.CodeBehind)
	})
}

func TestCloseTellsTheReason(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		ended := make(chan error, 1)
		b.Handle("/meshnode/test/sink/1", func(_ Link, s Stream) {
			_, err := io.Copy(io.Discard, s)
			ended <- err
		})
		l := w.dial(a, b)
		back := w.linkTo(b, a)
		s, err := l.Open(testContext(t), "/meshnode/test/sink/1")
		if err != nil {
			t.Fatal(err)
		}
		reason := attest.NewReason(attest.CodeRevoked, "measurement", "cafe", "an allowed one")
		begun := time.Now()
		if err := l.Close(reason); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took > FarewellTimeout {
			t.Errorf("closing took %s", took)
		}
		select {
		case <-l.Done():
		default:
			t.Error("Close returned before the link was down")
		}
		await(t, "the peer's Done", back.Done(), 2*time.Second)
		if l.Cause() != reason || back.Cause() != reason {
			t.Errorf("causes %v and %v, want %v", l.Cause(), back.Cause(), reason)
		}
		if err := <-ended; err == nil {
			t.Error("the peer's stream ended as if nothing had happened")
		}
		if _, err := s.Write([]byte("x")); err == nil {
			t.Error("a stream survived its link")
		}
		if _, err := l.Open(testContext(t), echo); err == nil || !strings.Contains(err.Error(), "revoked") {
			t.Errorf("open on a closed link: %v", err)
		}
		a.wantNoLink(t)
		b.wantNoLink(t)
		_ = l.Close(attest.NewReason(attest.CodeShutdown, "", "", "")) // changes nothing
		if l.Cause() != reason {
			t.Errorf("a second Close changed the cause to %v", l.Cause())
		}
		if again := w.dial(a, b); again == l {
			t.Error("a closed link was dialled again")
		}
	})
}

func TestMeshCloseSaysShutdown(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		l := w.dial(a, b)
		w.linkTo(b, a)
		if err := b.Mesh.Close(); err != nil {
			t.Fatal(err)
		}
		await(t, "Done", l.Done(), 2*time.Second)
		if l.Cause().Code != attest.CodeShutdown {
			t.Errorf("cause %v", l.Cause())
		}
		if _, err := b.Dial(testContext(t), a.Self(), a.Addrs()); !errors.Is(err, ErrClosed) {
			t.Errorf("dial on a closed mesh: %v", err)
		}
		if _, err := a.Dial(testContext(t), b.Self(), b.Addrs()); err == nil {
			t.Error("dialled a closed mesh")
		}
		if err := b.Mesh.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
}

func TestConcurrentDialsAreOne(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		var wg sync.WaitGroup
		links := make([]Link, 8)
		for i := range links {
			wg.Go(func() { links[i], _ = a.Dial(testContext(t), b.Self(), b.Addrs()) })
		}
		wg.Wait()
		for _, l := range links {
			if l == nil || l != links[0] {
				t.Fatal("dials disagree about the link")
			}
		}
		if q := a.Attester.Quotes.Load(); q != 1 {
			t.Errorf("%d quotes", q)
		}
		// One that joins with the right address survives the failure of a wrong one.
		c := w.node("gamma/n1", func(n *meshtest.Node, _ *Config) { n.Attester.Delay = 300 * time.Millisecond })
		wrong, right := make(chan error, 1), make(chan error, 1)
		go func() { _, err := a.Dial(testContext(t), c.Self(), b.Addrs()); wrong <- err }()
		go func() { _, err := a.Dial(testContext(t), c.Self(), c.Addrs()); right <- err }()
		if err := <-right; err != nil {
			t.Errorf("the right address: %v", err)
		}
		<-wrong // either, by who was first
	})
}

func TestCrossingDialsLeaveOneLink(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		for i := range 10 {
			a, b := w.node(fmt.Sprintf("alpha/n%d", i), nil), w.node(fmt.Sprintf("beta/n%d", i), nil)
			var wg sync.WaitGroup
			for _, p := range [][2]*node{{a, b}, {b, a}} {
				wg.Go(func() {
					if _, err := p[0].Dial(testContext(t), p[1].Self(), p[1].Addrs()); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			all := func(n *node) int {
				h := n.hub()
				h.mu.Lock()
				defer h.mu.Unlock()
				return len(h.channels)
			}
			var la Link
			eventually(t, "the same connection at both ends, and no other", func() bool {
				var okA, okB bool
				var lb Link
				la, okA = a.Link(b.Self())
				lb, okB = b.Link(a.Self())
				return okA && okB && all(a) == 1 && all(b) == 1 && la.Session().Initiator != lb.Session().Initiator
			})
			s, err := la.Open(testContext(t), echo)
			if err != nil {
				t.Fatal(err)
			}
			_ = s.Close()
		}
	})
}

func (n *node) hub() *hub {
	switch m := n.Mesh.(type) {
	case *memoryMesh:
		return m.hub
	case *libp2pMesh:
		return m.hub
	}
	return nil
}

func TestStreamDeadlinesAndReset(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		accepted := make(chan Stream, 1)
		b.Handle("/meshnode/test/held/1", func(_ Link, s Stream) { accepted <- s })
		s, err := w.dial(a, b).Open(testContext(t), "/meshnode/test/held/1")
		if err != nil {
			t.Fatal(err)
		}
		theirs := <-accepted
		_ = s.SetDeadline(time.Now().Add(50 * time.Millisecond))
		var timeout interface{ Timeout() bool }
		if _, err := s.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("read after the deadline: %v", err)
		}
		_ = s.SetDeadline(time.Time{})
		read := make(chan error, 1)
		go func() { _, err := s.Read(make([]byte, 1)); read <- err }()
		if err := theirs.Reset(); err != nil {
			t.Fatal(err)
		}
		if err := <-read; err == nil || err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read of a reset stream: %v", err)
		}
		_ = s.Close()
	})
}

func TestDialObeysItsContext(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		a := w.node("alpha/n1", nil)
		slow := w.node("beta/n1", func(n *meshtest.Node, _ *Config) { n.Attester.Delay = time.Hour })
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		begun := time.Now()
		_, err := a.Dial(ctx, slow.Self(), slow.Addrs())
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) > 2*time.Second {
			t.Errorf("got %v after %s", err, time.Since(begun))
		}
		for _, addrs := range [][]string{nil, {"no address"}} {
			if _, err := a.Dial(testContext(t), slow.Self(), addrs); err == nil {
				t.Errorf("dialled %q", addrs)
			}
		}
		if _, err := a.Dial(testContext(t), a.Self(), a.Addrs()); err == nil {
			t.Error("dialled itself")
		}
		if _, err := a.Dial(testContext(t), "nobody", slow.Addrs()); err == nil {
			t.Error("dialled a peer that is none")
		}
		other := w.node("gamma/n1", nil)
		_, err = a.Dial(testContext(t), slow.Self(), other.Addrs())
		if r := wantRefusal(t, err, false, attest.CodeWrongPeer); r.Reasons[0].Got != other.Self().String() {
			t.Errorf("reasons %v", r.Reasons)
		}
	})
}

func TestConfigRefusesGaps(t *testing.T) {
	w := newLibp2pWorld(t)
	n := w.root.NewNode(w.meshID, "alpha/n1")
	defer n.Close()
	full := Config{Key: n.Key, MeshID: w.meshID, Quoter: n.Quoter, Judge: n.Judge,
		Incarnation: func() identity.Incarnation { return 0 }, Epoch: func() identity.Epoch { return 0 },
		Credential: func() []byte { return nil }}
	for name, gap := range map[string]func(*Config){
		"key": func(c *Config) { c.Key = nil }, "mesh": func(c *Config) { c.MeshID = identity.MeshID{} },
		"incarnation": func(c *Config) { c.Incarnation = nil }, "epoch": func(c *Config) { c.Epoch = nil },
		"credential": func(c *Config) { c.Credential = nil }, "quoter": func(c *Config) { c.Quoter = nil },
		"judge":   func(c *Config) { c.Judge = nil },
		"address": func(c *Config) { c.Listen = []string{"/ip4/127.0.0.1/tcp/0", "nonsense"} },
		"udp":     func(c *Config) { c.Listen = []string{"/ip4/127.0.0.1/udp/0/quic-v1"} },
	} {
		c := full
		gap(&c)
		if m, err := NewLibp2p(c); err == nil {
			t.Errorf("without %s: started", name)
			_ = m.Close()
		}
	}
}
