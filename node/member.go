package node

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// This file is the second flow: peer → attested connection → membership → round.
//
//	peer's public URL ──► announcement (Credential checked)  ──► policy chain (verified, kept if longer)
//	      └──► dial that very peer id ──► exchange (admit.go on both sides) ──► mesh.Link
//	              ├─ refused: the reason goes to status; try again, later and later
//	              └─ up: linked ──► follow, prove (follow.go) ──► Credential and edges ordered (edges.go)
//	                                    └──► eligible ──► rounds (participate.go)
//
// One goroutine per configured peer keeps at most one link to it. Peers that dial us need
// no entry: they come in by the same exchange.

// Times of the dialler.
const (
	dialWithin   = 10 * time.Second
	dialFirst    = 250 * time.Millisecond
	dialSlowest  = 3 * time.Second
	dialPatience = 1500 * time.Millisecond // how long the higher peer id lets the lower one dial
)

// keepLinked keeps a link to the node behind url until ctx ends.
func (n *Node) keepLinked(ctx context.Context, url string) {
	var p patience
	for ctx.Err() == nil {
		link, err := n.reach(ctx, url)
		var lived time.Duration
		if err == nil {
			up := time.Now()
			select {
			case <-link.Done():
			case <-ctx.Done():
				return
			}
			lived = time.Since(up)
		} else {
			n.log.Debug("no link", "url", url, "error", err)
		}
		select {
		case <-time.After(p.next(lived)):
		case <-ctx.Done():
			return
		}
	}
}

// patience is how long to wait before the next dial: twice as long after each that failed,
// and after each link that did not last, so that two nodes of different minds do not attest
// each other in a loop. The zero value begins.
type patience struct{ pause time.Duration }

// next returns the wait after a link that lived so long; 0 if there was none.
func (p *patience) next(lived time.Duration) time.Duration {
	if lived >= dialSlowest {
		p.pause = 0
		return 0
	}
	p.pause = min(max(dialFirst, 2*p.pause), dialSlowest)
	return p.pause/2 + rand.N(p.pause)
}

// reach returns the link to the node behind url, or makes one.
func (n *Node) reach(ctx context.Context, url string) (mesh.Link, error) {
	ctx, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	n.addresses.resolve(ctx, url, n.now())
	a, err := n.directory.Announcement(ctx, url)
	if err != nil {
		n.unreachable(url, err)
		return nil, err
	}
	subject, refused := judge{n}.Credential(a.Peer, a.Credential)
	if refused != nil {
		n.peers.update(identity.NodeRef{}, url, n.now(), func(p *PeerStatus) {
			if p.State == PeerConnected && p.Peer != a.Peer.String() {
				return // an older boot of the node answers there, a newer one is linked
			}
			p.State, p.Code, p.Reason, p.Peer = PeerRefused, refused.Code, refused, a.Peer.String()
		})
		n.changed.notify()
		if refused.Code == attest.CodeWrongIncarnation {
			n.pullPolicy(ctx, url) // which says whether ours or its own is over
		}
		return nil, &RefusedError{*refused}
	}
	n.addresses.announced(url, a.Peer, a.Addresses)
	if n.stale() != nil { // who is fresh hears of each step by itself
		n.pullPolicy(ctx, url)
	}
	n.peers.update(subject.Node, url, n.now(), func(p *PeerStatus) {
		if p.State == PeerConnected {
			return // what the link itself has shown counts
		}
		p.Peer = a.Peer.String()
		p.Seat = slices.Contains(subject.Roles, RoleSeat)
		if p.State == "" {
			p.State = PeerUnreachable
		}
	})
	if why := n.peers.refused(a.Peer, n.openings()); why != nil {
		return nil, &RefusedError{*why} // who dials proves itself first: it would cost us a quote each time
	}
	if a.Peer < n.self && !n.waitLinked(ctx, a.Peer, dialPatience) {
		n.log.Debug("the lower peer id has not dialled; dialling", "peer", subject.Node.String())
	}
	link, err := n.mesh.Dial(ctx, a.Peer, a.Addresses)
	if err != nil {
		n.noteDialFailure(subject, err)
		return nil, err
	}
	return link, nil
}

// waitLinked waits for peer to dial us, so that two nodes rarely dial each other at once.
func (n *Node) waitLinked(ctx context.Context, peer identity.PeerID, patience time.Duration) bool {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		changed := n.changed.wait()
		if _, ok := n.linkTo(peer); ok {
			return true
		}
		select {
		case <-changed:
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// pullPolicy keeps the longest signed policy history that any peer publishes. It proves
// itself, so it does not matter who serves it; what is newest only seats can say.
func (n *Node) pullPolicy(ctx context.Context, url string) {
	doc, err := n.directory.Policy(ctx, url)
	if err != nil || len(doc.Chain) == 0 {
		return
	}
	n.considerChain(url, doc.Chain)
}

func (n *Node) unreachable(url string, err error) {
	n.peers.update(identity.NodeRef{}, url, n.now(), func(p *PeerStatus) {
		if p.State != PeerEvicted && p.State != PeerConnected {
			p.State, p.Note = PeerUnreachable, oneLine(err)
		}
	})
}

// maxNote bounds the note on a peer that cannot be reached.
const maxNote = 240

// oneLine makes an error of several lines, as libp2p's are, fit a table.
func oneLine(err error) string {
	s := strings.Join(strings.Fields(err.Error()), " ")
	if len(s) > maxNote {
		s = strings.ToValidUTF8(s[:maxNote], "") + " …"
	}
	return s
}

func (n *Node) noteDialFailure(s mesh.Subject, err error) {
	var refused *mesh.Refusal
	n.peers.update(s.Node, "", n.now(), func(p *PeerStatus) {
		switch {
		case errors.As(err, &refused):
			// Recorded by noteRefusal, which hears of both directions.
		case p.State != PeerConnected && p.State != PeerEvicted && p.State != PeerRetired:
			p.State, p.Note = PeerUnreachable, oneLine(err)
		}
	})
	n.changed.notify()
}

// noteRefusal hears every refused exchange, whoever dialled.
func (n *Node) noteRefusal(r mesh.Refusal) {
	if !n.meshUp.Load() {
		return
	}
	ref, known := n.refOf(r.Peer)
	if !known {
		n.strangers.Info("refused", "peer", r.Peer.String(), "by_them", r.Remote, "reasons", r.Error())
		return
	}
	why := r.Reasons[0]
	if !r.Remote {
		n.peers.refuse(r.Peer, why, n.openings())
	}
	n.peers.update(ref, "", n.now(), func(p *PeerStatus) {
		switch {
		case p.State == PeerConnected && (p.Peer != r.Peer.String() || n.hasLink(r.Peer)):
			return // another connection of a peer that is linked, or an older boot of it
		case p.Peer == r.Peer.String() && (p.State == PeerEvicted || p.State == PeerRetired):
			return // the ordered decision says more than this attempt
		case p.Peer == r.Peer.String() && why.Code == attest.CodeBusy && (p.State == PeerRefused || p.State == PeerRefusesUs):
			return // it asked again too often; why it was refused says more
		case p.Peer == r.Peer.String() && p.State == PeerRefusesUs && p.Code == attest.CodeRetired && r.Remote && why.Code == attest.CodeNoCredential:
			return // it told us why when it closed the link; whom it does not recognise any more it owes no reason
		}
		p.Peer, p.Code, p.Reason, p.Note = r.Peer.String(), why.Code, &why, ""
		switch {
		case why.Code == attest.CodeUnavailable || why.Code == attest.CodeBusy:
			p.State = PeerUnreachable
		case r.Remote:
			p.State = PeerRefusesUs
		default:
			p.State, p.Verdict = PeerRefused, attest.VerdictContraindicated
		}
	})
	n.changed.notify()
}

// linked is called for every new link, whoever dialled.
func (n *Node) linked(l mesh.Link) {
	s := l.Session()
	n.peers.update(s.Node, "", n.now(), func(p *PeerStatus) {
		*p = PeerStatus{Node: s.Node.String(), URL: p.URL, Since: p.Since, State: PeerConnected, Peer: s.Peer.String(),
			Kind: s.Claims.Kind, Measurement: s.Claims.Measurement, Verdict: s.Result.Verdict,
			Seat: slices.Contains(s.Roles, RoleSeat)}
	})
	n.log.Info("linked", "node", s.Node.String(), "peer", s.Peer.String(), "kind", s.Claims.Kind, "verdict", s.Result.Verdict)
	n.changed.notify()
	n.tasks.Go(func() {
		<-l.Done()
		why := l.Cause()
		n.peers.update(s.Node, "", n.now(), func(p *PeerStatus) {
			if p.State != PeerConnected || p.Peer != s.Peer.String() || n.hasLink(s.Peer) {
				return // the entry speaks of a newer boot, or of a newer link
			}
			p.State, p.Verdict = PeerUnreachable, ""
			if why.Code == attest.CodeRevoked || why.Code == attest.CodeRetired {
				p.State = PeerRefusesUs
			}
			p.Code, p.Reason = why.Code, &why
		})
		n.log.Info("link down", "node", s.Node.String(), "code", why.Code)
		n.changed.notify()
	})
	n.tasks.Go(func() { n.gossipWith(l) })
	// The policy may have changed between the verdict and this moment.
	if result := (judge{n}).Rejudge(s.Subject, s.Claims); !result.Affirming() {
		n.evict(l, result, n.machine.DecidedAt(n.machine.Epoch()))
		return
	}
	n.peers.accept(s.Peer)
	n.reportHardware(s)
}

func (n *Node) hasLink(peer identity.PeerID) bool {
	_, ok := n.linkTo(peer)
	return ok
}

// refOf names a peer whose Credential was ordered or is held by a link.
func (n *Node) refOf(peer identity.PeerID) (identity.NodeRef, bool) {
	var ref identity.NodeRef
	var ok bool
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) {
		if node, known := s.Node(peer); known {
			ref, ok = node.Ref, true
		}
	})
	if ok {
		return ref, true
	}
	if l, linked := n.linkTo(peer); linked {
		return l.Session().Node, true
	}
	return n.peers.named(peer)
}

// nameOf is refOf for people: the short peer id where no name is known.
func (n *Node) nameOf(peer identity.PeerID) string {
	if peer == n.self {
		return n.ref.String()
	}
	if ref, ok := n.refOf(peer); ok {
		return ref.String()
	}
	return peer.Short()
}
