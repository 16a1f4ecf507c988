package node

import (
	"context"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/consensus/replica"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/identity"
)

// The leader keeps the Raft configuration equal to what the ordered state wants: every holder
// of a seat a voter, every candidate for a vacant one a non-voter, nobody else. It makes one
// change at a time and looks again, so that whoever leads next goes on from wherever the last
// one stopped.
//
// The server of a boot that has been replaced is as good as dead: nobody listens to it any
// more. It stays in the configuration until its successor has a vote, so that the number of
// copies that a commit needs does not fall with every reboot, except where it takes away the
// last vote that may fail (an even number of voters), or no successor comes.

const (
	// reconcileEvery bounds how long a failed change waits.
	reconcileEvery = time.Second
	// successorWithin is how long a replaced voter is kept for a successor that does not come.
	successorWithin = time.Minute
	// maxLearners bounds the non-voters, each of which costs the leader as much as a voter.
	maxLearners = 10
	// maxOrgLearners bounds those of one organisation: one that has many candidates must not keep
	// others' out.
	maxOrgLearners = 2
)

// step is one change of the configuration.
type step string

const (
	addLearner   step = "non-voter added"
	addVoter     step = "voter added"
	removeServer step = "server removed"
)

// server is one server of the configuration and what is known about it.
type server struct {
	replica.Server
	org     identity.OrgID
	holds   bool // a seat, in the state
	learns  bool // it may take a vacant one
	retired bool // a newer boot is known
	live    bool // linked, or this node itself
	waited  bool // successorWithin has passed since it was found to be unwanted
}

// wanted is a node that should be in the configuration.
type wanted struct {
	peer identity.PeerID
	org  identity.OrgID
	live bool
}

// plan is all that decides about the next change.
type plan struct {
	servers    []server
	holders    []wanted                // of seats, in order
	candidates []wanted                // for vacant ones, in order
	expected   map[identity.OrgID]bool // a node may take the seat once others have attested it
}

// next returns the next change, or false if nothing is to be done now.
func (p plan) next() (step, identity.PeerID, bool) {
	for _, s := range p.servers {
		if !s.Voter && !s.holds && !s.learns {
			return removeServer, s.Peer, true
		}
	}
	for _, h := range p.holders {
		if s, in := p.server(h.peer); in && s.Voter || !h.live {
			continue
		} else if !in {
			return addLearner, h.peer, true
		}
		if p.live()+1 >= quorumOf(p.voters()+1) {
			return addVoter, h.peer, true
		}
		for _, s := range p.servers { // too few live: the larger configuration could not commit
			if s.Voter && !s.holds {
				return removeServer, s.Peer, true
			}
		}
	}
	for _, s := range p.servers {
		if s.Voter && !s.holds && !p.keeps(s) {
			return removeServer, s.Peer, true
		}
	}
	learners := len(p.servers) - p.voters()
	for _, c := range p.candidates {
		if _, in := p.server(c.peer); in || !c.live {
			continue
		}
		own := p.learners(c.org)
		if len(own) < maxOrgLearners && learners < maxLearners {
			return addLearner, c.peer, true
		}
		for _, s := range own {
			if !s.live { // it makes room for one that is
				return removeServer, s.Peer, true
			}
		}
	}
	return "", "", false
}

// learners returns the non-voters of an organisation.
func (p plan) learners(org identity.OrgID) (out []server) {
	for _, s := range p.servers {
		if !s.Voter && s.org == org {
			out = append(out, s)
		}
	}
	return out
}

// keeps reports whether an unwanted voter stays for now.
func (p plan) keeps(s server) bool {
	if !s.retired || s.waited {
		return false
	}
	comes := p.expected[s.org]
	for _, c := range p.candidates {
		comes = comes || c.org == s.org
	}
	for _, h := range p.holders {
		if h.org == s.org {
			successor, in := p.server(h.peer)
			comes = !in || !successor.Voter
		}
	}
	// Without it: no fewer may fail, and where none may now perhaps one.
	spare, without := p.live()-quorumOf(p.voters()), p.live()-quorumOf(p.voters()-1)
	return comes && (spare > 0 || without <= spare)
}

func (p plan) server(peer identity.PeerID) (server, bool) {
	for _, s := range p.servers {
		if s.Peer == peer {
			return s, true
		}
	}
	return server{}, false
}

func (p plan) voters() (n int) {
	for _, s := range p.servers {
		if s.Voter {
			n++
		}
	}
	return n
}

// live counts the voters whose vote can be heard.
func (p plan) live() (n int) {
	for _, s := range p.servers {
		if s.Voter && s.holds && s.live {
			n++
		}
	}
	return n
}

func quorumOf(voters int) int { return voters/2 + 1 }

// reconcile makes the changes while this node leads, until ctx ends.
func (n *Node) reconcile(ctx context.Context) {
	unwanted := map[identity.PeerID]time.Time{} // since when
	for ; ctx.Err() == nil; n.pause(ctx, reconcileEvery) {
		r := n.raft()
		if r == nil || r.State() != replica.Leader || !n.machine.Started() {
			clear(unwanted)
			continue
		}
		for ctx.Err() == nil {
			what, peer, ok := n.plan(r, unwanted).next()
			if !ok || !n.changeServers(ctx, r, what, peer) {
				break
			}
		}
	}
}

// plan looks at the configuration, the state and the links.
func (n *Node) plan(r *replica.Replica, unwanted map[identity.PeerID]time.Time) plan {
	p := plan{expected: map[identity.OrgID]bool{}}
	live := func(peer identity.PeerID) bool { return peer == n.self || n.hasLink(peer) }
	now := n.now()
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) {
		for _, v := range r.Servers() {
			ref, _ := s.NodeOf(v.Peer)
			node, _ := s.Node(v.Peer)
			p.servers = append(p.servers, server{Server: v, org: ref.Org, holds: node.Seat, learns: s.IsCandidate(v.Peer), retired: s.Retired(v.Peer)})
		}
		for _, h := range s.Seats() {
			p.holders = append(p.holders, wanted{peer: h.Peer, org: h.Ref.Org})
		}
		for _, c := range s.Candidates() {
			p.candidates = append(p.candidates, wanted{peer: c.Peer, org: c.Ref.Org})
		}
		for _, org := range s.Vacant() {
			p.expected[org] = s.SeatExpected(org)
		}
	})
	for i, s := range p.servers {
		p.servers[i].live = live(s.Peer)
		if s.holds {
			delete(unwanted, s.Peer)
		} else if _, known := unwanted[s.Peer]; !known {
			unwanted[s.Peer] = now
		}
		p.servers[i].waited = !s.holds && now.Sub(unwanted[s.Peer]) >= successorWithin
	}
	for _, list := range [][]wanted{p.holders, p.candidates} {
		for i := range list {
			list[i].live = live(list[i].peer)
		}
	}
	return p
}

// changeServers makes one change and reports whether it is done.
func (n *Node) changeServers(ctx context.Context, r *replica.Replica, what step, peer identity.PeerID) bool {
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	change := map[step]func(context.Context, identity.PeerID) error{
		addLearner: r.AddNonvoter, addVoter: r.AddVoter, removeServer: r.RemoveServer}[what]
	if err := change(ctx, peer); err != nil {
		n.log.Warn("raft configuration not changed yet", "wanted", string(what), "peer", peer.String(), "error", err)
		return false
	}
	n.log.Info(string(what), "node", n.nameOf(peer), "peer", peer.String())
	n.changed.notify()
	return true
}
