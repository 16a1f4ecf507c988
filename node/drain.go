package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/consensus/replica"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Draining is the first half of a shutdown, on the operator's word:
//
//	services answer nobody new
//	the Raft configuration is settled: nobody else is being replaced
//	leadership is handed over
//	signed drain ──► Raft ──► no new round includes this node; its seat is vacant
//	        reconcile.go (leader): its server leaves the Raft configuration
//	the rounds and requests that it is in come to their end
//
// Then the process can be stopped without anybody missing it. There is no way back but a
// restart. If the mesh refuses, since it would lose its quorum, the node goes on as before.

// DrainState is how far a drain has come.
type DrainState string

// The states.
const (
	DrainRunning DrainState = "draining"
	DrainDone    DrainState = "drained"
)

// Drain is the answer about a drain: what it still waits for.
type Drain struct {
	State   DrainState `json:"state"`
	Waiting string     `json:"waiting_for,omitempty"`
}

const (
	drainEvery = 250 * time.Millisecond
	// leftWithin bounds the wait for the word that this server has left the configuration:
	// once nobody sends to it any more the word may not come.
	leftWithin = 10 * time.Second
)

// drain is the record of one; nil while there is none.
type drain struct {
	waiting string
	done    bool
	failed  *attest.Reason // the last one was refused
}

// handleDrain starts a drain, or tells how far the one that runs has come. The request names
// the node, so that nobody drains another one by mistake.
func (n *Node) handleDrain(w http.ResponseWriter, r *http.Request) {
	if name := r.PathValue("org") + "/" + r.PathValue("name"); name != n.ref.String() {
		writeSubmitError(w, &RefusedError{attest.NewReason(attest.CodeUnknownNode, "drain", name, "this node, "+n.ref.String())})
		return
	}
	n.mu.Lock()
	if n.draining == nil {
		n.draining = &drain{waiting: "its turn"}
		n.tasks.Go(func() { n.drainNow(n.ctx) })
	}
	d := *n.draining
	if d.failed != nil {
		n.draining = nil
	}
	n.mu.Unlock()
	switch {
	case d.failed != nil:
		writeSubmitError(w, &RefusedError{*d.failed})
	case d.done:
		writeJSON(w, http.StatusOK, Drain{State: DrainDone})
	default:
		writeJSON(w, http.StatusOK, Drain{State: DrainRunning, Waiting: d.waiting})
	}
}

// drained says that this node was drained, or is being drained, or nil.
func (n *Node) drained() *attest.Reason {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.draining == nil || n.draining.failed != nil {
		return nil
	}
	got := "being drained: waits for " + n.draining.waiting
	if n.draining.done {
		got = "drained: it can be stopped"
	}
	return reason(attest.CodeDrained, n.ref.String(), got, "a node that takes part")
}

func (n *Node) drainDone() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.draining != nil && n.draining.done
}

// unserved says why this node answers no client now, or nil.
func (n *Node) unserved() *attest.Reason {
	if why := n.withdrawn(); why != nil {
		return why
	}
	return n.drained()
}

// drainNow drains this node.
func (n *Node) drainNow(ctx context.Context) {
	err := n.leaveMesh(ctx)
	var refused *RefusedError
	n.mu.Lock()
	switch {
	case errors.As(err, &refused):
		n.draining.failed = &refused.Reason
	default:
		n.draining.done = err == nil
	}
	n.mu.Unlock()
	n.log.Info("drain ended", "error", err)
	n.changed.notify()
}

func (n *Node) leaveMesh(ctx context.Context) error {
	if err := n.waitFor(ctx, "the Raft configuration to settle", n.settled); err != nil {
		return err
	}
	if err := n.orderDrain(ctx); err != nil {
		return err
	}
	// Only then does this node know of every round that was opened with it.
	if err := n.waitFor(ctx, "its own word to come back", n.stateSaysDrained); err != nil {
		return err
	}
	began := n.now()
	if err := n.waitFor(ctx, "the leader to take this server out", func() bool {
		return n.leftRaft() || n.now().Sub(began) > leftWithin
	}); err != nil {
		return err
	}
	return n.waitFor(ctx, "rounds and requests to end", func() bool { return !n.inRound() && n.services.busy() == 0 })
}

// waitFor returns once ok holds.
func (n *Node) waitFor(ctx context.Context, what string, ok func() bool) error {
	n.mu.Lock()
	n.draining.waiting = what
	n.mu.Unlock()
	for !ok() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n.pause(ctx, drainEvery)
	}
	return nil
}

// settled reports whether every voter holds a seat, as far as this node is one of them.
func (n *Node) settled() (ok bool) {
	r := n.raft()
	if r == nil || !n.holdsSeat(n.self) {
		return true
	}
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) {
		ok = !slices.ContainsFunc(r.Servers(), func(server replica.Server) bool {
			seat, known := s.Node(server.Peer)
			return server.Voter && !(known && seat.Seat)
		})
	})
	return ok
}

// orderDrain hands over leadership and has the drain ordered.
func (n *Node) orderDrain(ctx context.Context) error {
	raw, err := consensus.SignDrain(n.key, consensus.Drain{MeshID: n.genesis.MeshID(), Incarnation: n.incarnation(), Node: n.ref, Peer: n.self})
	if err != nil {
		return err
	}
	command, err := consensus.NewCommand(consensus.KindDrain, raw)
	if err != nil {
		return err
	}
	if why := n.drainRefused(); why != nil {
		return &RefusedError{*why} // before leadership is given away
	}
	for ctx.Err() == nil {
		if r := n.raft(); r != nil && r.State() == replica.Leader && len(r.Voters()) > 1 {
			if err := r.HandOver(ctx); err != nil {
				return err
			}
		}
		wait, cancel := context.WithTimeout(ctx, submitTimeout)
		_, err = n.submit(wait, command)
		cancel()
		if err == nil {
			return nil
		}
		if refused := (*RefusedError)(nil); errors.As(err, &refused) {
			if n.stateSaysDrained() {
				return nil // an earlier try was ordered
			}
			return err
		}
		n.log.Warn("drain not ordered yet", "error", err)
	}
	return ctx.Err()
}

func (n *Node) stateSaysDrained() (ok bool) {
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { ok = s.Drained(n.self) })
	return ok
}

// drainRefused says why the mesh would refuse a drain in the present state, or nil.
func (n *Node) drainRefused() (why *attest.Reason) {
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { why = s.DrainRefused(n.self) })
	return why
}

// leftRaft reports whether this server is in no Raft configuration, as far as it knows.
func (n *Node) leftRaft() bool {
	r := n.raft()
	return r == nil || r.State() == replica.None || !slices.ContainsFunc(r.Servers(), func(s replica.Server) bool { return s.Peer == n.self })
}

// inRound reports whether an open round names this node.
func (n *Node) inRound() bool {
	is := func(m federated.Member) bool { return m.Peer == n.self }
	return slices.ContainsFunc(n.jobs(), func(j federated.JobStatus) bool {
		return j.Open != nil && (is(j.Open.Aggregator) || slices.ContainsFunc(j.Open.Participants, is))
	})
}

// retire submits an organisation's word that one boot of its node is void.
func (n *Node) retire(ctx context.Context, raw []byte) (Submission, error) {
	r, _, err := consensus.ParseRetirement(raw)
	if err != nil {
		return Submission{}, malformed(err)
	}
	command, err := consensus.NewCommand(consensus.KindRetirement, raw)
	if err != nil {
		return Submission{}, malformed(err)
	}
	out, err := n.submit(ctx, command)
	if err != nil {
		return Submission{}, err
	}
	return Submission{ID: r.Peer.String(), Epoch: uint64(n.machine.Epoch()), LeafIndex: out.First}, nil
}

// NodeView is what the ordered state knows of one node: what a retirement names.
type NodeView struct {
	Node        string `json:"node"`
	Peer        string `json:"peer"`
	BootSeq     uint64 `json:"boot_seq"`
	MeshID      string `json:"mesh_id"`
	Incarnation uint64 `json:"incarnation"`
	Seat        bool   `json:"seat"`
	Standing    string `json:"standing"`
	Drained     bool   `json:"drained,omitempty"`
}

// handleNode tells what the ordered state knows of one node.
func (n *Node) handleNode(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("org") + "/" + r.PathValue("name")
	var v *NodeView
	if ref, err := identity.ParseNodeRef(name); err == nil {
		n.machine.View(func(s *consensus.State, _ *federated.Ledger) {
			if node, ok := s.NodeByRef(ref); ok {
				v = &NodeView{Node: name, Peer: node.Peer.String(), BootSeq: uint64(node.BootSeq), MeshID: s.MeshID().String(),
					Incarnation: uint64(s.Incarnation()), Seat: node.Seat, Standing: string(node.Standing), Drained: node.Drained}
			}
		})
	}
	if v == nil {
		writeControlError(w, http.StatusNotFound, &ControlError{string(attest.CodeUnknownNode), fmt.Sprintf("no node %.80q has a Credential in the log", name), "meshnode peers names the nodes"})
		return
	}
	writeJSON(w, http.StatusOK, v)
}
