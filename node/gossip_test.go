package node

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/consensus"
)

// dial links two nodes.
func (c *crowd) dial(a, b *Node) {
	c.t.Helper()
	if _, err := a.mesh.Dial(c.t.Context(), b.self, b.mesh.Addrs()); err != nil {
		c.t.Fatalf("%s to %s: %v", a.ref, b.ref, err)
	}
}

// removal is a signed narrowing.
func (c *crowd) removal(release string, orgs ...string) []byte {
	c.t.Helper()
	return c.proposal(orgs, consensus.Action{RemoveEntry: &consensus.RemoveEntry{Measurement: attesttest.Measurement(release)}})
}

// chainOf is seats, all linked with each other, and members each of which is linked with the
// one before it alone, the first with a seat.
func chainOf(t *testing.T, members int, release func(int) string, f func(t *testing.T, c *crowd, members []*Node)) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, len(crowdOrgs)+members, release)
		defer c.close()
		c.found()
		for i, n := range c.nodes[:len(crowdOrgs)] {
			for _, other := range c.nodes[:i] {
				c.dial(n, other)
			}
		}
		for i, n := range c.nodes[len(crowdOrgs):] {
			if i == 0 {
				c.dial(n, c.nodes[0])
				continue
			}
			c.dial(n, c.nodes[len(crowdOrgs)+i-1])
		}
		synctest.Wait()
		f(t, c, c.nodes[len(crowdOrgs):])
	})
}

// A member that no seat is linked to learns of an ordered change from the members it has.
func TestPolicyReachesMembersOfMembers(t *testing.T) {
	chainOf(t, 4, func(int) string { return "new" }, func(t *testing.T, c *crowd, members []*Node) {
		began := time.Now()
		c.fed = c.nodes[:len(crowdOrgs)]
		c.order(consensus.KindProposal, c.removal("old", crowdOrgs[:4]...))
		synctest.Wait()
		for _, n := range members {
			if n.epoch() != 1 || n.machine.Epoch() != 0 {
				t.Errorf("%s judges under epoch %d, ordered %d", n.ref, n.epoch(), n.machine.Epoch())
			}
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

// A narrowing acts at whoever hears it, before anything is ordered, and changes neither epoch
// nor digest.
func TestNarrowingActsBeforeItIsOrdered(t *testing.T) {
	last := len(crowdOrgs) + 3
	chainOf(t, 4, func(i int) string {
		if i == last {
			return "old"
		}
		return "new"
	}, func(t *testing.T, c *crowd, members []*Node) {
		before := members[2].machine.Digest()
		link, ok := members[2].linkTo(members[3].self)
		if !ok {
			t.Fatal("no link")
		}
		if _, _, err := c.nodes[3].machine.Hear(c.removal("old", crowdOrgs[:4]...)); err != nil {
			t.Fatal(err)
		}
		<-link.Done()
		if code := link.Cause().Code; code != attest.CodeRevoked {
			t.Errorf("the link ended with %s", code)
		}
		if n := members[2]; n.epoch() != 0 || n.machine.Digest() != before || len(n.Status().Provisional) != 1 {
			t.Errorf("epoch %d, digest moved: %v, %d provisional", n.epoch(), n.machine.Digest() != before, len(n.Status().Provisional))
		}
	})
}
