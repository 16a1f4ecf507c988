package node

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/identity"
)

// ticks orders a tick every TickInterval, as the seats' clocks would, for d.
func (c *crowd) ticks(d time.Duration) {
	c.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(min(consensus.TickInterval, time.Until(end)))
		c.tick()
	}
	synctest.Wait()
}

// joinFrom starts what a member without a seat does to hear the mesh, from the i-th node on.
func (c *crowd) joinFrom(i int) {
	for _, n := range c.nodes[i:] {
		n.tasks.Go(func() { n.follow(n.ctx) })
		n.tasks.Go(func() { n.prove(n.ctx) })
	}
}

// believes demands that a node has the policy of an epoch, verified from genesis, and ordered.
func (c *crowd) believes(n *Node, epoch identity.Epoch) {
	c.t.Helper()
	var chain [][]byte
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { chain = s.PolicyChain() })
	p, err := consensus.ReplayPolicy(c.genesis, chain)
	if err != nil || p.Epoch() != epoch || n.epoch() != epoch {
		c.t.Errorf("%s judges under epoch %d and has %v, want %d", n.ref, n.epoch(), err, epoch)
	}
}

// Two hundred members without a vote, of whom twenty are linked to seats and the others to
// each other: all learn of the mesh, verify it from genesis, prove that they are fresh and
// follow each change. A part that is cut off serves nothing after max_staleness, to the
// millisecond, and does again when it hears the mesh. Under the race detector there are sixty:
// two hundred would take it minutes.
func TestTwoHundredMembers(t *testing.T) {
	members, near, cut := 200, 20, 30
	if raceDetector {
		members = 60
	}
	old := func(i int) bool { return i >= len(crowdOrgs)+near && i%20 == 0 }
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, len(crowdOrgs)+members, func(i int) string {
			if old(i) {
				return "old"
			}
			return "new"
		})
		defer c.close()
		seats, rest := c.nodes[:len(crowdOrgs)], c.nodes[len(crowdOrgs):]
		c.fed = seats
		c.found()
		for i, n := range seats {
			for _, other := range seats[:i] {
				c.dial(n, other)
			}
		}
		for i, n := range rest {
			if i < near {
				for k := range 4 { // organisations of a quorum
					c.dial(n, seats[(i+k)%len(seats)])
				}
				continue
			}
			c.dial(n, rest[i%near])
			c.dial(n, rest[i-1])
			c.dial(n, rest[(i*7)%i])
		}
		c.joinFrom(len(crowdOrgs))
		c.ticks(20 * time.Second)
		for _, n := range rest {
			if why := n.stale(); why != nil {
				t.Fatalf("%s is not fresh: %v", n.ref, why)
			}
			c.believes(n, 0)
		}

		decided := time.Now()
		c.order(consensus.KindProposal, c.removal("old", crowdOrgs[:4]...))
		synctest.Wait()
		for i, n := range c.nodes {
			if old(i) {
				continue
			}
			c.believes(n, 1)
			for _, l := range n.mesh.Links() {
				if l.Session().Claims.Measurement == attesttest.Measurement("old") {
					t.Errorf("%s is still linked to %s", n.ref, l.Session().Node)
				}
			}
		}
		if took := time.Since(decided); took > time.Second {
			t.Errorf("the change took %s", took)
		}

		// The last thirty hear each other, and nobody else.
		part, gone := map[identity.PeerID]bool{}, map[identity.PeerID]bool{}
		for i, n := range c.nodes {
			part[n.self], gone[n.self] = i >= len(c.nodes)-cut, old(i)
		}
		apart := func(f func(a, b identity.PeerID)) {
			for _, n := range rest[members-cut:] {
				for _, other := range c.nodes {
					if !part[other.self] {
						f(n.self, other.self)
					}
				}
			}
		}
		c.ticks(2 * time.Second)
		apart(c.network.Cut)
		one := rest[members-1]
		last := one.machine.TickAt()
		if age := time.Since(last); age != 0 {
			t.Fatalf("the newest tick is %s old", age)
		}
		c.propose(consensus.Action{AddEntry: &consensus.AddEntry{Entry: c.entry("third")}})
		c.ticks(14 * time.Second)
		time.Sleep(maxStaleness - time.Since(last))
		for _, n := range rest[members-cut:] {
			if why := n.withdrawn(); why != nil && !gone[n.self] {
				t.Errorf("%s is stale too early: %v", n.ref, why)
			}
		}
		time.Sleep(time.Millisecond)
		for _, n := range c.nodes {
			if gone[n.self] {
				continue
			}
			why := n.stale()
			if part[n.self] != (why != nil) {
				t.Errorf("%s: cut off %v, stale because %v", n.ref, part[n.self], why)
			}
			if part[n.self] {
				c.believes(n, 1)
			}
		}
		for _, l := range one.mesh.Links() { // both ends are cut off
			if why := (judge{one}).Permit(l.Session(), one.protocols.blob); why == nil || why.Code != attest.CodeStale {
				t.Errorf("data between members that are cut off: %v", why)
			}
		}

		apart(c.network.Heal)
		for i, n := range rest[members-cut:] {
			if gone[n.self] {
				continue
			}
			c.dial(n, rest[i%near])
		}
		c.ticks(10 * time.Second)
		for _, n := range c.nodes {
			if gone[n.self] {
				continue
			}
			if why := n.stale(); why != nil {
				t.Errorf("%s after all was healed: %v", n.ref, why)
			}
			c.believes(n, 2)
		}
	})
}
