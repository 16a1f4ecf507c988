package mesh

import (
	"context"
	"io"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/meshtest"
	"github.com/attestmesh/meshnode/mesh/meshtest/memtransport"
)

// Attacks and bad inputs of group 24 (several connections of one peer) and of group 10 as
// far as it is about epochs. Group 25 is TestStrangersCostNothing, 26 the tests of
// re-attestation, 27 and 28 those of the window and of pairs.

// Both ends dial at once, a hundred times over: each time one connection stays, it works,
// and nobody is left with a link that the other end does not have.
func TestGroup24SimultaneousOpensLeaveOneLink(t *testing.T) {
	t.Run("memory", func(t *testing.T) {
		memory(t, func(t *testing.T, w *world, _ *MemoryNetwork) {
			crossDials(t, w.node("alpha/n1", nil), w.node("beta/n1", nil), 100)
		})
	})
	t.Run("libp2p in virtual time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			memtransport.Epoch()
			wire := &memtransport.Network{Latency: 5 * time.Millisecond}
			w := &world{t: t, root: meshtest.NewRoot(), meshID: identity.MeshID{7}, start: NewLibp2p}
			on := func(name string) *node {
				return w.node(name, func(_ *meshtest.Node, c *Config) {
					c.Transport, c.Listen = wire.Host(name), []string{"/ip4/10.0.0.1/tcp/0"}
				})
			}
			crossDials(t, on("alpha/n1"), on("beta/n1"), 100)
		})
	})
	t.Run("libp2p", func(t *testing.T) {
		w := newLibp2pWorld(t)
		crossDials(t, w.node("alpha/n1", nil), w.node("beta/n1", nil), 5) // each waits for real time
	})
}

func crossDials(t *testing.T, a, b *node, times int) {
	for range times {
		var both sync.WaitGroup
		for _, p := range [][2]*node{{a, b}, {b, a}} {
			both.Go(func() {
				if _, err := p[0].Dial(testContext(t), p[1].Self(), p[1].Addrs()); err != nil {
					t.Error(err)
				}
			})
		}
		both.Wait()
		var la, lb Link
		eventually(t, "one link at both ends", func() bool {
			var okA, okB bool
			la, okA = a.Link(b.Self())
			lb, okB = b.Link(a.Self())
			return okA && okB && len(a.hub().everyLink()) == 1 && len(b.hub().everyLink()) == 1 && la.Session().Initiator != lb.Session().Initiator
		})
		s, err := la.Open(testContext(t), echo)
		if err == nil {
			if _, err = s.Write([]byte{1}); err == nil {
				_, err = io.ReadFull(s, make([]byte, 1))
			}
			_ = s.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		part(t, la, a, b)
	}
}

// Somebody has a peer's identity key and Credential and nothing else of it. His connection
// is refused; that of the peer and what runs on it go on, no handler hears of him, and what
// the victim remembers of the peer is as it was.
func TestGroup24SecondConnectionIsJudgedByItself(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		l := w.dial(a, b)
		back := w.linkTo(b, a)
		s, err := l.Open(testContext(t), echo)
		if err != nil {
			t.Fatal(err)
		}
		var opened atomic.Int32
		b.Handle(bulk, func(_ Link, s Stream) { opened.Add(1); _ = s.Reset() })
		remembered := b.held()
		thief := w.node("alpha/n1", func(n *meshtest.Node, c *Config) {
			n.Key, n.Peer, n.Credential = a.Key, a.Peer, a.Credential
			foreignEvidence(w)(n, c)
			c.Key = a.Key
			if len(w.listen) == 0 {
				c.Listen = []string{"/memory/thief"}
			}
		})
		for range 3 {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			_, err := thief.Dial(ctx, b.Self(), b.Addrs())
			cancel()
			wantRefusal(t, err, true, attest.CodeNotGenuine)
		}
		thief.wantNoLink(t)
		if _, err = s.Write([]byte{1}); err == nil {
			_, err = io.ReadFull(s, make([]byte, 1))
		}
		if now, ok := b.Link(a.Self()); err != nil || !ok || now != back || len(b.hub().everyLink()) != 1 || opened.Load() != 0 {
			t.Errorf("the peer's own stream: %v; its link stands: %t; %d links, %d streams opened", err, now == back, len(b.hub().everyLink()), opened.Load())
		}
		if b.held() != remembered {
			t.Errorf("the victim remembers %v, and remembered %v", b.held(), remembered)
		}
		_ = s.Close()
		part(t, l, a, b)
		if again := w.dial(a, b); !again.Session().Fast {
			t.Error("the thief has cost the peer its fast reconnect")
		}
	})
}

// Whatever epoch a peer names, it gets in (each end judges under its own policy), and what it
// named is known. An older one on a new connection is believed: it belongs to that boot's
// connection and only withholds data from it.
func TestGroup10EpochsLockNobodyOut(t *testing.T) {
	conformance(t, func(t *testing.T, w *world) {
		var epoch atomic.Uint64
		a := w.node("alpha/n1", func(_ *meshtest.Node, c *Config) {
			c.Epoch = func() identity.Epoch { return identity.Epoch(epoch.Load()) }
		})
		b := w.node("beta/n1", nil) // at 3
		for _, e := range []uint64{0, 2, 3, 4, math.MaxUint64, 1} {
			epoch.Store(e)
			l := w.dial(a, b)
			back := w.linkTo(b, a)
			if back.PeerEpoch() != identity.Epoch(e) || l.PeerEpoch() != 3 {
				t.Errorf("epoch %d is known as %d, 3 as %d", e, back.PeerEpoch(), l.PeerEpoch())
			}
			part(t, l, a, b)
		}
		if q := a.Attester.Quotes.Load(); q != 1 {
			t.Errorf("%d quotes for six epochs", q)
		}
	})
}
