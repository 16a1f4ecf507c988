package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/consensus/replica"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/identity"
)

// compared returns what each seat makes of the newest digest.
func (c *crowd) compared() (errs []error) {
	c.t.Helper()
	for _, n := range c.nodes[:len(crowdOrgs)] {
		seq, own, ok := n.machine.newestDigest()
		if !ok {
			c.t.Fatalf("%s has logged no state", n.ref)
		}
		cmp := newComparison(seq, own)
		n.compare(c.t.(*testing.T).Context(), cmp)
		if len(cmp.digests) != len(crowdOrgs)-1 {
			c.t.Fatalf("%s heard of %d seats", n.ref, len(cmp.digests))
		}
		errs = append(errs, n.judgeDigests(cmp))
	}
	return errs
}

// A machine whose state differs on one seat alone (planted) ends that seat, which names the
// command, and no other (M18).
func TestPlantedStateEndsItsSeat(t *testing.T) {
	c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
	defer c.close()
	c.found()
	c.affirm()
	c.link(len(crowdOrgs) - 1)
	c.idle(consensus.DigestEvery)
	const planted = 3
	c.nodes[planted].machine.mu.Lock()
	c.nodes[planted].machine.ledger = federated.NewLedger(identity.MeshID{1}) // no leaf shows it
	c.nodes[planted].machine.mu.Unlock()
	c.order(consensus.KindDigest)
	for i, err := range c.compared() {
		switch {
		case i != planted && err != nil:
			t.Errorf("%s would end: %v", c.nodes[i].ref, err)
		case i == planted && (err == nil || !strings.Contains(err.Error(), fmt.Sprintf("after %d commands", consensus.DigestEvery))):
			t.Errorf("%s goes on: %v", c.nodes[i].ref, err)
		}
	}
	if _, ok := c.nodes[0].machine.digestAt(7); ok {
		t.Error("a digest of another moment")
	}
}

// Half of the mesh against the other half ends nobody: who is right is not for a minority to say.
func TestContradiction(t *testing.T) {
	for _, c := range []struct {
		said string // what the seats of other organisations say; "a" is one's own
		want int    // organisations that end it; 0 if none do
	}{
		{"", 0}, {"aaaa", 0}, {"abbb", 3}, {"aabb", 0}, {"bbcc", 0}, {"bbbc", 3}, {"bbbb", 4},
	} {
		cmp := newComparison(7, "a")
		for i, d := range c.said {
			peer := identity.PeerID(fmt.Sprint(i))
			cmp.digests[peer], cmp.orgs[peer] = string(d), identity.OrgID(fmt.Sprint("org-", i))
		}
		if digest, orgs := cmp.contradicted(3); len(orgs) != c.want || c.want > 0 && digest != "b" {
			t.Errorf("%q: %v say %q", c.said, orgs, digest)
		}
	}
	// One organisation is one voice, whatever number of seats it shows.
	cmp := newComparison(7, "a")
	for i := range 5 {
		peer := identity.PeerID(fmt.Sprint(i))
		cmp.digests[peer], cmp.orgs[peer] = "b", "org"
	}
	if _, orgs := cmp.contradicted(3); orgs != nil {
		t.Errorf("%v end a seat", orgs)
	}
	if _, orgs := cmp.contradicted(0); orgs != nil {
		t.Errorf("no quorum ends a seat: %v", orgs)
	}
}

// The machine of the leader is the broken one: the others follow it no longer, it ends, and
// the mesh goes on under another. With real replicas, on a virtual clock.
func TestWrongLeaderIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
		defer c.close()
		c.raft()
		wrong := c.leading()
		member := c.nodes[0]
		for i := uint64(1); ; i++ {
			if wrong.machine.Seq() >= consensus.DigestEvery-2 {
				break
			}
			command, err := consensus.NewCommand(consensus.KindCredential, c.renewal(member, time.Duration(i)*time.Second))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := wrong.submit(t.Context(), command); err != nil {
				t.Fatal(err)
			}
		}
		wrong.machine.mu.Lock()
		wrong.machine.ledger = federated.NewLedger(identity.MeshID{1})
		wrong.machine.mu.Unlock()
		<-wrong.ctx.Done()
		if err := context.Cause(wrong.ctx); err == nil || !strings.Contains(err.Error(), "this machine is not theirs") {
			t.Fatalf("it ended with %v", err)
		}
		others := slices.DeleteFunc(slices.Clone(c.nodes), func(n *Node) bool { return n == wrong })
		var next *Node
		await(t, "another leads", func() bool {
			for _, n := range others {
				if n.raft().State() == replica.Leader {
					next = n
				}
			}
			return next != nil
		})
		before := next.tickSeq()
		await(t, "ticks go on", func() bool { return next.tickSeq() > before })
		for _, n := range others {
			if n.ctx.Err() != nil {
				t.Errorf("%s ended: %v", n.ref, context.Cause(n.ctx))
			}
		}
	})
}

// Real seats log their state when it is due, publish it, and store it in Raft.
func TestSeatsStoreTheirState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
		defer c.close()
		c.raft()
		leader := c.leading()
		for _, raw := range c.edgesOfSeats() {
			command, err := consensus.NewCommand(consensus.KindResults, raw)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := leader.submit(t.Context(), command); err != nil {
				t.Fatal(err)
			}
		}
		for i := 1; leader.machine.Seq() < consensus.DigestEvery; i++ {
			command, err := consensus.NewCommand(consensus.KindCredential, c.renewal(c.nodes[0], time.Duration(i)*time.Second))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := leader.submit(t.Context(), command); err != nil {
				t.Fatal(err)
			}
		}
		await(t, "every seat has stored a state", func() bool {
			for _, n := range c.nodes {
				if n.machine.SavedSeq() == 0 || n.raft().Stats().SnapshotIndex == 0 {
					return false
				}
			}
			return true
		})
		m := c.fresh()
		if err := m.Restore(snapshotOf(t, c.nodes[3].machine)); err != nil {
			t.Fatal(err)
		}
		same(t, c.nodes[3].machine, m)
	})
}
