package node

import (
	"context"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/mesh"
)

// This file is the third flow: proposal → approvals → allowed set → eviction.
//
//	signed proposal ──► propose ──► Raft ──► State.Apply on every replica (epoch + 1)
//	                       └─ narrow: at once at whoever hears it (heard.go, gossip.go)
//	                                              │
//	       rejudge: the stored claims of every live link under the new policy, no new quote
//	            ├─ affirming: the peer is told the epoch, nothing else happens
//	            └─ not:       edge (contraindicated) ──► log
//	                          link closed with the reason; decided and closed times recorded
//	       reconcile.go (leader): voters that the state does not want leave the Raft configuration
//
// An evicted node that dials again meets admit.go, which refuses it with the same code.

// propose submits a signed proposal and returns what it changed.
func (n *Node) propose(ctx context.Context, raw []byte) (Submission, error) {
	p, _, err := consensus.ParseProposal(raw)
	if err != nil {
		return Submission{}, malformed(err)
	}
	out, err := n.submitHeard(ctx, consensus.KindProposal, raw)
	if err != nil {
		return Submission{}, err
	}
	answer := Submission{ID: p.ID().String(), Class: string(p.Class()), Epoch: uint64(n.machine.Epoch()), LeafIndex: out.First}
	if a := out.Proposal; a != nil {
		answer.Class, answer.Epoch = string(a.Class), uint64(a.Epoch)
		for _, org := range a.Organisations {
			answer.Organisations = append(answer.Organisations, string(org))
		}
	}
	return answer, nil
}

// watchPolicy judges every link again after each change that may put a peer out, and every
// stream after each that may withhold its data, until ctx ends.
func (n *Node) watchPolicy(ctx context.Context) {
	lastEpoch, lastMoved, lastSuspended := n.epoch(), n.machine.Moved(), n.machine.Suspended()
	for {
		changed := n.changed.wait()
		if e, moved := n.epoch(), n.machine.Moved(); e != lastEpoch || moved != lastMoved {
			decided := n.now()
			if at := n.machine.DecidedAt(e); e != lastEpoch && !at.IsZero() {
				decided = at
			}
			lastEpoch, lastMoved = e, moved
			n.rejudge(decided)
		}
		if s := n.machine.Suspended(); s != lastSuspended {
			lastSuspended = s
			n.recheck()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// rejudge applies the policy in force to the stored claims of every link, and closes the
// links to boots that a newer one has replaced or whose Credentials are void.
func (n *Node) rejudge(decided time.Time) {
	for _, link := range n.mesh.Links() {
		n.rejudgeLink(link, decided)
	}
	for _, seat := range n.spared() {
		n.log.Warn("a seat does not meet what is demanded of it by now; it keeps its vote, or nothing could be ordered", "seat", seat.String())
	}
	n.recheck()
}

func (n *Node) rejudgeLink(link mesh.Link, decided time.Time) {
	s := link.Session()
	result := (judge{n}).Rejudge(s.Subject, s.Claims)
	if !result.Affirming() {
		n.evict(link, result, decided)
		return
	}
	n.edges.record(s.Subject, nil, result) // a note that is new gets into the log
}

// evict closes a link whose peer an ordered decision has put out. Closing tells the peer
// the reason; it must not hold up the closing of others.
func (n *Node) evict(link mesh.Link, result attest.Result, decided time.Time) {
	s := link.Session()
	why := attest.NewReason(attest.CodeRevoked, "measurement", s.Claims.Measurement, "an allowed measurement")
	if len(result.Reasons) > 0 {
		why = result.Reasons[0]
	}
	n.peers.refuse(s.Peer, why, n.openings())
	switch why.Code {
	case attest.CodeRetired, attest.CodeOrganisationRemoved, attest.CodeNoCredential, attest.CodeNotStrong: // not about what it runs
	default:
		n.edges.record(s.Subject, nil, result)
	}
	n.tasks.Go(func() {
		_ = link.Close(why)
		<-link.Done()
		if spare, ok := n.linkTo(s.Peer); ok {
			n.rejudgeLink(spare, decided) // of two links of one peer only one is shown
		}
		closed := n.now()
		n.peers.closed(Closing{Node: s.Node.String(), Peer: s.Peer.String(), Code: why.Code, Decided: decided, Closed: closed})
		n.peers.update(s.Node, "", closed, func(p *PeerStatus) {
			if p.Peer != s.Peer.String() {
				return // a newer boot is linked already
			}
			p.State, p.Code, p.Reason, p.Verdict = PeerEvicted, why.Code, &why, result.Verdict
			if why.Code == attest.CodeRetired {
				p.State = PeerRetired
			}
		})
		n.log.Info("evicted", "node", s.Node.String(), "code", why.Code, "after", closed.Sub(decided).String())
		n.changed.notify()
	})
}
