package node

import (
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/consensus"
)

// Three clocks, and what each is for:
//
//	now    intervals: deadlines, ages, how long something took. Its values carry Go's
//	       monotonic clock, so that nobody changes an interval by setting a clock.
//	wall   this machine's clock. A host can set it to anything, and so it is worth one
//	       sample of a tick and no more once there is a better one.
//	time   what begins and ends at a time is judged by: Credentials, entries, collateral,
//	       results, certificates. It is the mesh's, from the newest tick on, while this
//	       node has proved that it is fresh. Before that it is the wall clock, but never
//	       earlier than what was ordered: what has expired does not come back.
//
// Fewer than a third of seats that lie move the mesh's time to no time at which no honest
// seat's clock is (consensus.stepTime). A node whose own clock is wrong when it starts refuses
// the others' Credentials, and says so, until its clock is right or it is fresh.

func (n *Node) now() time.Time { return time.Now() }

func (n *Node) time() time.Time {
	ordered, at := n.machine.Now()
	if ordered.IsZero() {
		return n.wall()
	}
	mesh := ordered.Add(n.now().Sub(at))
	if n.proven() {
		return mesh
	}
	if wall := n.wall(); wall.After(ordered) {
		return wall
	}
	return ordered
}

// clockOff is how far this machine's clock may be from the mesh's time before status says so.
const clockOff = 10 * time.Second

// clockWarning says that this machine's clock is wrong, as far as can be told, or nothing: by
// the mesh's time, or before that by when the enroller says that it issued the Credential.
func (n *Node) clockWarning(issued time.Time) string {
	by, want, limit := "the mesh", n.time(), clockOff
	if ordered, _ := n.machine.Now(); ordered.IsZero() || !n.proven() {
		n.mu.Lock()
		since := n.now().Sub(n.credAt)
		n.mu.Unlock()
		by, want, limit = "the enroller", issued.Add(since), consensus.ClockSkew
	}
	off := n.wall().Sub(want).Round(time.Second)
	if off.Abs() <= limit {
		return ""
	}
	return fmt.Sprintf("this machine's clock is off by %s, by that of %s: set it right; until it is, this node may refuse what others have not", off, by)
}
