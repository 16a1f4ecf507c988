package node

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/ratio"
	"github.com/attestmesh/meshnode/mesh"
)

// BenchmarkRatioRevocation is how long data streams outlive the decision to revoke, on seven
// seats and fifty members in one process, by the wall clock. The decision is the moment at
// which one member is handed the signed narrowing; it reaches the others by gossip, each of
// which verifies it by itself, judges its links anew and resets the streams, while Raft has
// ordered nothing yet. The figure is the 99th percentile over all streams of ten victims, each
// of which has one with every peer that it is linked to. Machines and links are real, the
// network is memory: what a real one adds is its round trips, three for each hop of the flood.
func BenchmarkRatioRevocation(b *testing.B) {
	const members, victims = 50, 10
	release := func(i int) string {
		if m := i - len(crowdOrgs); m >= 0 && m%(members/victims) == 2 {
			return fmt.Sprintf("old%d", m/(members/victims))
		}
		return "new"
	}
	for range b.N {
		c := newCrowd(b, len(crowdOrgs)+members, release)
		c.found()
		for v := range victims {
			c.propose(consensus.Action{AddEntry: &consensus.AddEntry{Entry: c.entry(fmt.Sprintf("old%d", v))}})
		}
		c.link(4)
		// No results are logged here: ordered time stands still, so that nobody is in quarantine.
		still := time.Now()
		for _, n := range c.nodes {
			n.wall = func() time.Time { return still }
		}
		var took []time.Duration
		for v := range victims {
			c.tick()
			for _, n := range c.nodes {
				n.completed(n.began())
			}
			i := len(crowdOrgs) + v*(members/victims) + 2
			took = append(took, c.revoke(release(i), c.nodes[i], c.nodes[len(c.nodes)-1-v])...)
		}
		c.close()
		slices.Sort(took)
		b.Logf("%d streams: median %s, last %s", len(took), took[len(took)/2], took[len(took)-1])
		ratio.Print("revocation.p99_s", took[(len(took)*99+99)/100-1].Seconds())
	}
}

// revoke hands the removal of what a victim runs to a node, and returns how long each data
// stream with the victim went on. It then orders the removal.
func (c *crowd) revoke(release string, victim, at *Node) (took []time.Duration) {
	c.t.Helper()
	victim.mesh.Handle(victim.protocols.blob, func(l mesh.Link, _ mesh.Stream) { <-l.Done() })
	byPeer := map[identity.PeerID]*Node{}
	for _, n := range c.nodes {
		byPeer[n.self] = n
	}
	var streams []mesh.Stream
	for _, l := range victim.mesh.Links() {
		back, ok := byPeer[l.Peer()].mesh.Link(victim.self)
		if !ok {
			continue
		}
		s, err := back.Open(c.t.Context(), victim.protocols.blob)
		if err != nil {
			c.t.Fatalf("%s to %s: %v", l.Session().Node, victim.ref, err)
		}
		streams = append(streams, s)
	}
	if len(streams) < 5 {
		c.t.Fatalf("%d streams with %s", len(streams), victim.ref)
	}
	raw := c.removal(release, crowdOrgs[:4]...)
	ended := make(chan time.Duration, len(streams))
	decided := time.Now()
	for _, s := range streams {
		go func() { // each is awaited
			_ = s.SetDeadline(decided.Add(time.Minute))
			var one [1]byte
			_, _ = s.Read(one[:])
			ended <- time.Since(decided)
		}()
	}
	if _, fresh, err := at.machine.Hear(raw); err != nil || !fresh {
		c.t.Fatalf("not heard: %v", err)
	}
	for range streams {
		took = append(took, <-ended)
	}
	for _, l := range victim.mesh.Links() {
		select {
		case <-l.Done():
		case <-time.After(time.Minute):
			c.t.Fatalf("%s is still linked to %s", victim.ref, l.Session().Node)
		}
		if code := l.Cause().Code; code != attest.CodeRevoked {
			c.t.Errorf("the link with %s ended with %s", l.Session().Node, code)
		}
	}
	c.order(consensus.KindProposal, raw)
	return took
}
