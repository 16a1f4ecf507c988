package mesh

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/meshtest"
)

// memory runs f with virtual time on one MemoryNetwork.
func memory(t *testing.T, f func(*testing.T, *world, *MemoryNetwork)) {
	synctest.Test(t, func(t *testing.T) {
		network := &MemoryNetwork{}
		f(t, &world{t: t, root: meshtest.NewRoot(), meshID: identity.MeshID{7},
			start: func(c Config) (Mesh, error) { return NewMemory(network, c) }}, network)
	})
}

func TestCutAndHeal(t *testing.T) {
	memory(t, func(t *testing.T, w *world, network *MemoryNetwork) {
		a, b, c := w.node("alpha/n1", nil), w.node("beta/n1", nil), w.node("gamma/n1", nil)
		lab, lac := w.dial(a, b), w.dial(a, c)
		back := w.linkTo(b, a)
		s, err := lab.Open(testContext(t), echo)
		if err != nil {
			t.Fatal(err)
		}
		read := make(chan error, 1)
		go func() { _, err := s.Read(make([]byte, 1)); read <- err }()
		synctest.Wait()
		begun := time.Now()
		network.Cut(b.Self(), a.Self())
		<-lab.Done()
		<-back.Done()
		if err := <-read; err == nil || time.Since(begun) != 0 {
			t.Errorf("a cut read ended with %v after %s", err, time.Since(begun))
		}
		if lab.Cause().Code != attest.CodeUnavailable {
			t.Errorf("cause %v", lab.Cause())
		}
		if _, err := a.Dial(testContext(t), b.Self(), b.Addrs()); !errors.Is(err, errPartition) {
			t.Errorf("dial through a cut: %v", err)
		}
		if l, ok := a.Link(c.Self()); !ok || l != lac {
			t.Error("the cut took another link with it")
		}
		network.Heal(a.Self(), b.Self())
		w.dial(b, a)
	})
}

// A hanging attester of one peer holds nobody else up, and time-outs are exact.
func TestSlowAttester(t *testing.T) {
	memory(t, func(t *testing.T, w *world, _ *MemoryNetwork) {
		a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
		slow := w.node("gamma/n1", func(n *meshtest.Node, _ *Config) { n.Attester.Delay = 100 * time.Millisecond })
		begun := time.Now()
		w.dial(a, slow)
		if took := time.Since(begun); took != 100*time.Millisecond {
			t.Errorf("one quote took %s", took)
		}
		w.dial(a, b)
	})
}

// Both ends choose alike, whoever is older.
func TestChoose(t *testing.T) {
	lower, higher := identity.PeerID("a"), identity.PeerID("b")
	now := time.Now()
	for name, c := range map[string]struct {
		self, peer     identity.PeerID
		olderIs, newIs bool // dialled by self
		apart          time.Duration
		keepsNewer     bool
	}{
		"both by self":                      {lower, higher, true, true, 0, true},
		"both by the peer":                  {lower, higher, false, false, 0, true},
		"crossing, older by lower":          {lower, higher, true, false, time.Second, false},
		"crossing, newer by lower":          {lower, higher, false, true, time.Second, true},
		"crossing, seen by higher, own old": {higher, lower, true, false, time.Second, true},
		"crossing, seen by higher, own new": {higher, lower, false, true, time.Second, false},
		"long apart, older by lower":        {lower, higher, true, false, time.Minute, true},
	} {
		h := &hub{self: c.self}
		a := &link{hub: h, channel: newChannel(&Session{Subject: Subject{Peer: c.peer}, Initiator: c.olderIs}, nil), since: now}
		b := &link{hub: h, channel: newChannel(&Session{Subject: Subject{Peer: c.peer}, Initiator: c.newIs}, nil), since: now.Add(c.apart)}
		keep, drop := choose(a, b)
		if (keep == b) != c.keepsNewer || keep == drop {
			t.Errorf("%s: kept the newer: %v", name, keep == b)
		}
	}
}

// The peer has lost a link that we still believe in, and dials again: the new one stays.
func TestHalfDeadLinkIsReplaced(t *testing.T) {
	for _, age := range []time.Duration{time.Second, time.Minute} {
		memory(t, func(t *testing.T, w *world, _ *MemoryNetwork) {
			a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
			if b.Self() < a.Self() {
				a, b = b, a
			}
			for _, p := range [][2]*node{{a, b}, {b, a}} {
				from, to := p[0], p[1]
				old := w.dial(from, to)
				stale := w.linkTo(to, from)
				time.Sleep(age)
				from.hub().remove(old.(*link)) // as if its connection had died unnoticed at the other end
				fresh := w.dial(from, to)
				eventually(t, "the fresh link at the other end", func() bool {
					l, ok := to.Link(from.Self())
					return ok && l != stale
				})
				time.Sleep(2 * settleTimeout)
				if _, ok := from.Link(to.Self()); !ok {
					t.Error("the fresh link was closed")
				}
				select {
				case <-stale.Done():
				default:
					t.Error("the stale link stays")
				}
				_ = fresh.Close(attest.NewReason(attest.CodeShutdown, "", "", ""))
				_ = old.Close(attest.NewReason(attest.CodeShutdown, "", "", ""))
				time.Sleep(time.Second)
			}
		})
	}
}

func TestMemoryAddressTaken(t *testing.T) {
	memory(t, func(t *testing.T, w *world, _ *MemoryNetwork) {
		change := func(_ *meshtest.Node, c *Config) { c.Listen = []string{"here"} }
		a := w.node("alpha/n1", change)
		n := w.root.NewNode(w.meshID, "beta/n1")
		defer n.Close()
		cfg := a.hub().cfg
		cfg.Key = n.Key
		if _, err := w.start(cfg); err == nil {
			t.Error("two meshes listen on one address")
		}
	})
}
