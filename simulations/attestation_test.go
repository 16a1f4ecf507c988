package simulations

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/mesh/exchange"
	"github.com/attestmesh/meshnode/mesh/meshtest/memtransport"
	"github.com/attestmesh/meshnode/node"
)

// Whole nodes over two windows and an outage: every link is attested again in time, status
// says when, and who finds each other again inside the window needs no evidence.
func TestLinksAreAttestedAgain(t *testing.T) {
	long(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		memtransport.Epoch()
		w, err := newWorld([]string{"alpha", "beta", "gamma"}, []string{"new"}, 1, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			for _, h := range w.hosts {
				if err := h.stop(); err != nil {
					t.Error(err)
				}
			}
			time.Sleep(time.Second)
		}()
		for _, org := range []string{"alpha", "beta", "gamma"} {
			if err := w.start(org+"/n1", "new", []string{node.RoleSeat}); err != nil {
				t.Fatal(err)
			}
		}
		linked := func(within time.Duration) []node.Status {
			t.Helper()
			var out []node.Status
			for end := time.Now().Add(within); ; time.Sleep(pollEvery) {
				out = out[:0]
				complete := true
				for _, h := range w.hosts {
					s, err := h.status()
					if err != nil {
						t.Fatal(err)
					}
					complete = complete && s.Phase == node.PhaseMember && len(s.Peers) == 2
					for _, p := range s.Peers {
						complete = complete && p.State == node.PeerConnected
					}
					out = append(out, s)
				}
				if complete {
					return out
				}
				if time.Now().After(end) {
					t.Fatalf("not all linked: %+v", out)
				}
			}
		}
		linked(expectWithin)
		time.Sleep(2*exchange.DefaultWindow + time.Minute)
		for _, s := range linked(0) {
			if s.Counters["attested/again"] < 4 || s.Counters["refused/stale"] != 0 {
				t.Errorf("%s: counters %v", s.Node, s.Counters)
			}
			for _, p := range s.Peers {
				if p.Mode != node.ModeFull || p.NotAfter.Sub(p.AttestedAt) != exchange.DefaultWindow || !p.NotAfter.After(time.Now()) {
					t.Errorf("%s about %s: %+v", s.Node, p.Node, p.AttestationStatus)
				}
			}
		}
		// Two lose each other and come back: no evidence is needed for that, though what is
		// near the end of its window by then is attested again at once.
		before := linked(0)
		w.wire.Cut(w.hosts[0].machine, w.hosts[1].machine)
		w.wire.Heal(w.hosts[0].machine, w.hosts[1].machine)
		time.Sleep(3 * time.Second)
		for i, s := range linked(expectWithin) {
			full := s.Counters["attested/full"] - before[i].Counters["attested/full"]
			fast := s.Counters["attested/fast"] - before[i].Counters["attested/fast"]
			if full != 0 || (fast > 0) != (i < 2) {
				t.Errorf("%s: %d full and %d fast connections", s.Node, full, fast)
			}
		}
	})
}
