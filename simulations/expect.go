package simulations

import (
	"fmt"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/consensus/replica"
	"github.com/attestmesh/meshnode/node"
	"github.com/attestmesh/meshnode/transparency"
)

// checkLeader holds if one of the nodes leads in the highest term.
func (p *player) checkLeader(names []string) error {
	hosts, err := p.nodes(names)
	if err != nil {
		return err
	}
	leader, err := p.leader()
	if err != nil {
		return err
	}
	if !slices.Contains(hosts, leader) {
		return fmt.Errorf("%s leads, want one of %v", leader.name, names)
	}
	return nil
}

// checkPhase holds if every node says that it is in a phase, for a reason of this code.
func (p *player) checkPhase(phase, code string, names []string) error {
	all, err := p.statuses(names)
	if err != nil {
		return err
	}
	for _, s := range all {
		got := ""
		if s.PhaseReason != nil {
			got = string(s.PhaseReason.Code)
		}
		if string(s.Phase) != phase || code != "" && got != code {
			return fmt.Errorf("%s is %s (%s), want %s (%s)", s.Node, s.Phase, got, phase, code)
		}
	}
	return nil
}

// checkClosed holds if every node has recorded that it closed its link to name within
// limit of the last proposal.
func (p *player) checkClosed(name string, names []string, limit time.Duration) error {
	name = p.real(name)
	all, err := p.statuses(names, name)
	if err != nil {
		return err
	}
	for _, s := range all {
		i := slices.IndexFunc(s.Closed, func(c node.Closing) bool { return c.Node == name && !c.Closed.Before(p.world.proposed) })
		if i < 0 {
			return fmt.Errorf("%s has closed no link to %s, %s after the proposal", s.Node, name, time.Since(p.world.proposed))
		}
		took := s.Closed[i].Closed.Sub(p.world.proposed)
		if took > limit {
			return fmt.Errorf("%s closed its link to %s after %s", s.Node, name, took)
		}
		p.result.Evicted = max(p.result.Evicted, took)
	}
	return nil
}

// checkLinked holds if each node is connected to each other one, with old since before the
// last proposal.
func (p *player) checkLinked(names []string, old bool) error {
	hosts, err := p.nodes(names)
	if err != nil {
		return err
	}
	all, err := statuses(hosts)
	if err != nil {
		return err
	}
	for i, s := range all {
		connected := map[string]bool{hosts[i].name: true}
		for _, peer := range s.Peers {
			connected[peer.Node] = connected[peer.Node] || peer.State == node.PeerConnected && !(old && peer.Since.After(p.world.proposed))
		}
		for _, h := range hosts {
			if !connected[h.name] {
				return fmt.Errorf("%s is not connected to %s", s.Node, h.name)
			}
		}
	}
	return nil
}

// checkProof holds if every one of the nodes at has this proof of its verdict on each of the
// others.
func (p *player) checkProof(want node.Proof, names, at []string) error {
	subjects, err := p.nodes(names)
	if err != nil {
		return err
	}
	all, err := p.statuses(at)
	if err != nil {
		return err
	}
	for _, s := range all {
		proofs := map[string]node.Proof{s.Node: want}
		for _, peer := range s.Peers {
			proofs[peer.Node] = peer.Proof
		}
		for _, h := range subjects {
			if proofs[h.name] != want {
				return fmt.Errorf("at %s the verdict on %s is %q, want %s", s.Node, h.name, proofs[h.name], want)
			}
		}
	}
	return nil
}

// checkUnlinked holds if no node is connected to name.
func (p *player) checkUnlinked(name string, names []string) error {
	name = p.real(name)
	all, err := p.statuses(names, name)
	if err != nil {
		return err
	}
	for _, s := range all {
		for _, peer := range s.Peers {
			if peer.Node == name && peer.State == node.PeerConnected {
				return fmt.Errorf("%s is connected to %s", s.Node, name)
			}
		}
	}
	return nil
}

// checkVoters holds if the Raft configuration of every node is exactly voters.
func (p *player) checkVoters(voters, names []string) error {
	want, err := p.nodes(voters)
	if err != nil {
		return err
	}
	all, err := p.statuses(names)
	if err != nil {
		return err
	}
	var wanted []string
	for _, h := range want {
		wanted = append(wanted, h.name)
	}
	slices.Sort(wanted)
	for _, s := range all {
		if !slices.Equal(s.Raft.Voters, wanted) {
			return fmt.Errorf("%s has the voters %v, want %v", s.Node, s.Raft.Voters, wanted)
		}
	}
	return nil
}

// checkVoting holds if every node is a voter by its own view, and the leader or one that hears it.
func (p *player) checkVoting(names []string) error {
	all, err := p.statuses(names)
	if err != nil {
		return err
	}
	for _, s := range all {
		if (s.Raft.State != string(replica.Leader) && s.Raft.State != string(replica.Follower)) || s.Raft.Leader == "" {
			return fmt.Errorf("%s is %s under leader %q, want a voter", s.Node, s.Raft.State, s.Raft.Leader)
		}
	}
	return nil
}

// checkLogs holds if all nodes have the same state and log, and with published that each
// has verified a published checkpoint over all of it.
func (p *player) checkLogs(names []string, published bool) error {
	all, err := p.statuses(names)
	if err != nil {
		return err
	}
	for _, s := range all {
		first := all[0]
		if s.State != first.State || s.Log.Size != first.Log.Size || s.Log.Root != first.Log.Root {
			return fmt.Errorf("%s is at %s, %s at %s", s.Node, where(s), first.Node, where(first))
		}
		pub := s.Log.Published
		if published && (pub.Size != s.Log.Size || pub.Root != s.Log.Root || pub.Level == transparency.Unpublished.String()) {
			return fmt.Errorf("%s has %d leaves, published are %d (%s)", s.Node, s.Log.Size, pub.Size, pub.Level)
		}
	}
	return nil
}

// checkCopied demands that nodes hold a published copy of the state, behind which they keep little.
func (p *player) checkCopied(names []string) error {
	all, err := p.statuses(names)
	if err != nil {
		return err
	}
	for _, s := range all {
		if s.Log.Copied == 0 {
			return fmt.Errorf("%s holds no published copy of the state after %d commands", s.Node, s.State.Commands)
		}
	}
	return nil
}

func where(s node.Status) string {
	return fmt.Sprintf("command %d (%.8s), leaf %d (%.8s)", s.State.Commands, s.State.Digest, s.Log.Size, s.Log.Root)
}
