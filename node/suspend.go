package node

import (
	"context"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// A suspension is one organisation's, ordered like everything else, and takes data alone:
//
//	signed suspension ──► suspend ──► Raft ──► State.Apply on every replica, members' too
//	                         └──► heard.go, gossip.go: at whoever hears it, before it is ordered
//	                                               │
//	       recheck: data streams from and to whom it hits are reset, at both ends
//	       it answers no client and starts no service; it is in no new round
//
// Links, Raft, policy and log streams never ask, so that whoever is suspended hears of the
// lift, and a seat that is suspended votes for it.

// suspend submits a signed suspension and returns where it stands.
func (n *Node) suspend(ctx context.Context, raw []byte) (Submission, error) {
	x, _, err := consensus.ParseSuspension(raw)
	if err != nil {
		return Submission{}, malformed(err)
	}
	return n.submitSuspension(ctx, consensus.KindSuspension, raw, x.ID())
}

// lift submits the signed end of a suspension.
func (n *Node) lift(ctx context.Context, raw []byte) (Submission, error) {
	l, _, err := consensus.ParseSuspensionLift(raw)
	if err != nil {
		return Submission{}, malformed(err)
	}
	return n.submitSuspension(ctx, consensus.KindLift, raw, l.Suspension)
}

func (n *Node) submitSuspension(ctx context.Context, kind consensus.Kind, raw []byte, id consensus.SuspensionID) (Submission, error) {
	out, err := n.submitHeard(ctx, kind, raw)
	if err != nil {
		return Submission{}, err
	}
	return Submission{ID: id.String(), Epoch: uint64(n.machine.Epoch()), LeafIndex: out.First}, nil
}

// withdrawn says why this node serves no data to anybody now, or nil: it is stale, or put out.
func (n *Node) withdrawn() *attest.Reason {
	if why := n.stale(); why != nil {
		return why
	}
	return n.putOut()
}

// putOut says why this node is not to serve data, though it is fresh, or nil: it is suspended,
// or what it runs is not allowed any more.
func (n *Node) putOut() *attest.Reason {
	if why := n.suspendedNode(n.ref); why != nil {
		return why
	}
	return n.disallowed()
}

// suspendedNode says what suspends a node, or nil.
func (n *Node) suspendedNode(ref identity.NodeRef) (why *attest.Reason) {
	n.machine.Present(func(st *consensus.State) {
		if x, ok := st.SuspendedNode(ref, st.Now()); ok {
			why = suspension(ref, x)
		}
	})
	return why
}

// whileServing returns a context that ends with ctx and as soon as this node is put out, or
// stale for recheckEvery. release must be called.
func (n *Node) whileServing(ctx context.Context) (serving context.Context, release func()) {
	ctx, cancel := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() { // release waits for it
		defer close(watched)
		tick := time.NewTicker(recheckEvery)
		defer tick.Stop()
		for {
			changed := n.changed.wait()
			if n.withdrawn() != nil {
				cancel()
			}
			select {
			case <-changed:
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, func() { cancel(); <-watched }
}

// suspendedPeer says what suspends a peer, or nil: by name or by what others found it to run,
// or by what this node itself found, which may not be ordered yet.
func (n *Node) suspendedPeer(s *mesh.Session) (why *attest.Reason) {
	n.machine.Present(func(st *consensus.State) {
		x, ok := st.SuspendedNode(s.Node, st.Now())
		if !ok {
			x, ok = st.SuspendedRun(s.Result.Kind, s.Result.Measurement, s.Result.Reference, st.Now())
		}
		if ok {
			why = suspension(s.Node, x)
		}
	})
	return why
}

func suspension(ref identity.NodeRef, x consensus.InForce) *attest.Reason {
	return reason(attest.CodeSuspended, ref.String(), x.String(), "no suspension in force")
}

// SuspensionView is one suspension in force.
type SuspensionView struct {
	ID           string          `json:"id"`
	Organisation string          `json:"organisation"`
	Entry        string          `json:"entry,omitempty"`
	Node         string          `json:"node,omitempty"`
	Cause        consensus.Cause `json:"cause"`
	Issued       time.Time       `json:"issued"`
	Until        time.Time       `json:"until"` // by ordered time
}

func suspensionViews(all []consensus.InForce) []SuspensionView {
	out := []SuspensionView{}
	for _, x := range all {
		v := SuspensionView{ID: x.ID().String(), Organisation: string(x.Organisation), Entry: x.Entry, Cause: x.Cause, Issued: x.Issued, Until: x.Ends}
		if x.Node != nil {
			v.Node = x.Node.String()
		}
		out = append(out, v)
	}
	return out
}
