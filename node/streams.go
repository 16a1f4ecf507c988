package node

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/mesh"
)

// What a peer may speak depends on what the stream is for and on what holds now:
//
//	class    protocols                                     open while
//	control  found seat raft cosign clock digest complain  both ends have the role seat
//	policy   follow head gossip snapshot                   the link is up
//	log      submit petition checkpoint tile               the link is up
//	data     round blob                                    nothing is withheld from the peer
//
// A link is closed when its peer's evidence is not accepted any more (evict.go). All that
// stops short of that withholds data only and leaves the rest open: a node that is stale,
// behind, quarantined or suspended must still hear the mesh, and a seat must still vote, or
// it could never be cured. Permit asks when a stream opens, Keep while it is open.

// class is what a protocol is for. The zero class is refused.
type class int

const (
	classNone class = iota
	classControl
	classPolicy
	classLog
	classData
)

// class returns what protocol is for.
func (p protocols) class(protocol mesh.Protocol) class {
	switch protocol {
	case p.found, p.seat, p.raft, p.cosign, p.clock, p.digest, p.complain:
		return classControl
	case p.follow, p.head, p.gossip, p.snapshot:
		return classPolicy
	case p.submit, p.petition, p.checkpoint, p.tile:
		return classLog
	case p.round, p.blob:
		return classData
	}
	return classNone
}

// behindGrace is how long after an ordered change a peer that has not heard of it is
// served: a revocation is in force on every node that hears the mesh within this time.
const behindGrace = 5 * time.Second

// recheckEvery bounds how long a stream outlives what permitted it where only time has
// passed; a change of policy rechecks at once.
const recheckEvery = 500 * time.Millisecond

// Permit decides about each stream: who may speak what, now.
func (j judge) Permit(s *mesh.Session, p mesh.Protocol) *attest.Reason {
	n := j.n
	switch n.protocols.class(p) {
	case classControl:
		// Seats among themselves. The Raft transport's own guard then demands that the
		// peer is in the configuration.
		if !slices.Contains(s.Roles, RoleSeat) || !n.isSeat() {
			return reason(attest.CodeNotSeat, string(p), fmt.Sprint(s.Roles), RoleSeat)
		}
		return nil
	case classPolicy, classLog:
		// Every attested peer, also before the start and before this node has caught up.
		// The handlers answer with what there is.
		return nil
	case classData:
		return n.withheld(s)
	}
	return reason(attest.CodeProtocol, "protocol", string(p), "a protocol of this mesh")
}

// Keep decides about each open stream when something has changed. A peer's roles are those of
// the Credential of its newest attestation; what an ordered decision takes from a seat closes
// its link or ends its part in Raft.
func (j judge) Keep(s *mesh.Session, p mesh.Protocol) *attest.Reason {
	switch j.n.protocols.class(p) {
	case classControl:
		if !slices.Contains(s.Roles, RoleSeat) {
			return reason(attest.CodeNotSeat, string(p), fmt.Sprint(s.Roles), RoleSeat)
		}
	case classData:
		return j.n.withheld(s)
	}
	return nil
}

// withheld says why this node exchanges no data with a peer now, or nil. Whatever closes
// data streams alone is asked here and nowhere else: this node's own freshness and what
// puts it out, the peer's epoch, what suspends the peer or was heard to revoke it, the proof of
// the peer's verdict.
func (n *Node) withheld(s *mesh.Session) *attest.Reason {
	if why := n.withdrawn(); why != nil {
		return why
	}
	if why := n.behind(s); why != nil {
		return why
	}
	if why := n.suspendedPeer(s); why != nil {
		return why
	}
	if why := n.revokedPeer(s); why != nil {
		return why
	}
	return n.quarantined(s)
}

// behind says that a peer judges under an older policy than it could, or nil. The epoch is
// that of the ordered state: a policy chain that somebody published may hold a step that
// the mesh refused.
func (n *Node) behind(s *mesh.Session) *attest.Reason {
	epoch, theirs := n.machine.Epoch(), s.PeerEpoch
	if l, ok := n.linkTo(s.Peer); ok {
		theirs = max(theirs, l.PeerEpoch())
	}
	if theirs >= epoch || n.now().Sub(n.machine.DecidedAt(theirs+1)) <= behindGrace {
		return nil
	}
	return reason(attest.CodeBehind, "epoch of "+s.Node.String(), fmt.Sprint(theirs), fmt.Sprint(epoch))
}

// watchStreams ends streams that time has overtaken, until ctx ends.
func (n *Node) watchStreams(ctx context.Context) {
	tick := time.NewTicker(recheckEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		n.watchProofs()
		n.recheck()
	}
}

// recheck tells peers the epoch and ends the streams that are not permitted any more.
func (n *Node) recheck() {
	n.mesh.AnnounceEpoch()
	n.mesh.Recheck()
}
