package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/consensus/replica"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/federated/chunk"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Rounds, as this node takes part in them: the driver here (while it leads), the
// participant in participate.go, the aggregator in aggregate.go. What a round is and when
// a command may change it is decided by federated.Ledger on every replica; these files
// only move bytes and watch clocks.

const (
	driveEvery      = 200 * time.Millisecond
	aggregatorGrace = time.Second // how long an aggregator may be unreachable
)

// turn names one attempt at a round.
type turn struct {
	job            federated.JobID
	round, attempt uint32
}

func turnOf(o *federated.OpenRound) turn { return turn{o.Job, o.Round, o.Attempt} }

// workbench is this node's private record of its work in rounds. None of it is replicated.
type workbench struct {
	mu        sync.Mutex
	kept      map[keptKey]kept                                   // guarded by mu
	trainings map[federated.JobID]map[uint32]int                 // guarded by mu
	openings  map[keptKey]map[identity.NodeRef]federated.Opening // guarded by mu
	accuracy  map[keptKey]float64                                // guarded by mu
	committed map[keptKey]time.Time                              // guarded by mu; when this node saw it
	settled   map[keptKey]bool                                   // guarded by mu; this node has seen to the committed round
	opened    map[turn]time.Time                                 // guarded by mu
	lost      map[turn]time.Time                                 // guarded by mu; since when the aggregator is unreachable
	waiting   map[federated.JobID]string                         // guarded by mu
	sessions  map[turn]*session                                  // guarded by mu; attempts that this node aggregates
}

type keptKey struct {
	job   federated.JobID
	round uint32
}

// kept is work that has been done: another attempt needs a signature and no training.
type kept struct {
	base chunk.Root
	work federated.Work
	salt federated.Digest
}

func newWorkbench() *workbench {
	return &workbench{
		kept: map[keptKey]kept{}, trainings: map[federated.JobID]map[uint32]int{},
		openings: map[keptKey]map[identity.NodeRef]federated.Opening{}, accuracy: map[keptKey]float64{},
		committed: map[keptKey]time.Time{}, settled: map[keptKey]bool{}, opened: map[turn]time.Time{}, lost: map[turn]time.Time{},
		waiting: map[federated.JobID]string{}, sessions: map[turn]*session{},
	}
}

// since returns how long ago key was first noted in m, noting it now if it was not.
func since[K comparable](mu *sync.Mutex, m map[K]time.Time, key K, now time.Time) time.Duration {
	mu.Lock()
	defer mu.Unlock()
	at, ok := m[key]
	if !ok {
		m[key], at = now, now
	}
	return now.Sub(at)
}

// Epoch implements federated.Members.
func (v memberView) Epoch() identity.Epoch { return v.s.Epoch() }

// Node implements federated.Members.
func (v memberView) Node(peer identity.PeerID) (federated.Member, bool) {
	node, ok := v.s.Node(peer)
	if !ok {
		return federated.Member{}, false
	}
	return v.member(node), v.s.IsEligible(peer, v.s.Now())
}

// Eligible implements federated.Members.
func (v memberView) Eligible() []federated.Member {
	var out []federated.Member
	for _, node := range v.s.Eligible(v.s.Now()) {
		if node.Drained {
			continue // the rounds that it is in come to their end: Node goes on knowing it
		}
		out = append(out, v.member(node))
	}
	return out
}

// GovernKeys implements federated.Members.
func (v memberView) GovernKeys() []envelope.Key {
	return v.s.GovernKeys()
}

func (v memberView) member(node consensus.Node) federated.Member {
	m := federated.Member{Ref: node.Ref, Peer: node.Peer, Roles: node.Roles, Measurement: node.Measurement, Kind: node.Kind}
	for _, edge := range v.s.Affirming(node.Peer, v.s.Now()) {
		if i, ok := v.leafOf(edge.Raw()); ok {
			m.Affirming = append(m.Affirming, i)
		}
	}
	slices.Sort(m.Affirming)
	return m
}

// runDriver opens rounds while this node leads, until ctx ends.
func (n *Node) runDriver(ctx context.Context) {
	tick := time.NewTicker(driveEvery)
	defer tick.Stop()
	for {
		changed := n.changed.wait()
		if n.leads() {
			for _, job := range n.jobs() {
				n.drive(ctx, job)
			}
		}
		select {
		case <-tick.C:
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (n *Node) leads() bool {
	r := n.raft()
	return r != nil && r.State() == replica.Leader && n.machine.Started()
}

func (n *Node) jobs() (out []federated.JobStatus) {
	n.machine.View(func(_ *consensus.State, l *federated.Ledger) { out = l.Jobs() })
	return out
}

func (n *Node) job(id federated.JobID) (out federated.JobStatus, ok bool) {
	n.machine.View(func(_ *consensus.State, l *federated.Ledger) { out, ok = l.Job(id) })
	return out, ok
}

// drive opens the next round, or the next attempt where the open one cannot end.
func (n *Node) drive(ctx context.Context, job federated.JobStatus) {
	next, ok := job.Next()
	if !ok {
		return
	}
	var cause string
	if job.Open != nil {
		if cause = n.hopeless(job); cause == "" {
			return
		}
		next.Exclude = append(next.Exclude, job.Open.Aggregator.Peer)
	} else if pause := time.Duration(job.Job.Spec.Interval) * time.Second; len(job.Committed) > 0 &&
		since(&n.work.mu, n.work.committed, keptKey{job.Job.ID, uint32(len(job.Committed) - 1)}, n.now()) < pause {
		return
	}
	gone := n.unreachableMembers()
	for _, m := range append(gone, n.putOutMembers()...) {
		next.Exclude = append(next.Exclude, m.Peer)
	}
	if cause == "" && len(gone) > 0 {
		cause = "unreachable: " + refNames(gone)
	}
	next.Cause = cause[:min(len(cause), federated.MaxCause)]
	slices.Sort(next.Exclude)
	next.Exclude = slices.Compact(next.Exclude)
	var why *attest.Reason
	n.machine.View(func(s *consensus.State, l *federated.Ledger) { _, why = l.Plan(next, n.machine.members(s)) })
	n.work.mu.Lock()
	n.work.waiting[job.Job.ID] = ""
	if why != nil {
		n.work.waiting[job.Job.ID] = why.String()
	}
	n.work.mu.Unlock()
	if why != nil {
		return
	}
	n.log.Info("opening a round", "job", job.Job.ID, "round", next.Round, "attempt", next.Attempt, "cause", next.Cause)
	body, err := federated.OpenCommand(next)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, submitTimeout)
		defer cancel()
		_, err = n.submit(ctx, consensus.Command{V: consensus.CommandVersion, Kind: consensus.KindRoundOpen, Body: body})
	}
	if err != nil {
		n.log.Warn("round not opened", "job", job.Job.ID, "round", next.Round, "error", err)
	}
}

// putOutMembers returns the members that are eligible but for what was heard and not ordered yet.
func (n *Node) putOutMembers() (out []federated.Member) {
	if !n.machine.Hears() {
		return nil
	}
	var all []federated.Member
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { all = n.machine.members(s).Eligible() })
	n.machine.Present(func(s *consensus.State) {
		out = slices.DeleteFunc(all, func(m federated.Member) bool { return s.IsEligible(m.Peer, s.Now()) })
	})
	return out
}

// hopeless says why the open attempt cannot end, or "".
func (n *Node) hopeless(job federated.JobStatus) string {
	o, now := job.Open, n.now()
	if why := n.suspendedNode(o.Aggregator.Ref); why != nil {
		return fmt.Sprintf("aggregator %s is suspended", o.Aggregator.Ref)
	}
	var revoked attest.Code
	n.machine.Present(func(s *consensus.State) { revoked = s.Disallowed(o.Aggregator.Ref) })
	if revoked != "" {
		return fmt.Sprintf("aggregator %s is put out: %s", o.Aggregator.Ref, revoked)
	}
	if cause := n.lostParticipants(job); cause != "" {
		return cause
	}
	if o.Aggregator.Peer != n.self && !n.hasLink(o.Aggregator.Peer) {
		if since(&n.work.mu, n.work.lost, turnOf(o), now) >= aggregatorGrace {
			return fmt.Sprintf("aggregator %s is unreachable", o.Aggregator.Ref)
		}
		return ""
	}
	n.work.mu.Lock()
	delete(n.work.lost, turnOf(o))
	n.work.mu.Unlock()
	if open := since(&n.work.mu, n.work.opened, turnOf(o), now); open > time.Duration(job.Job.Spec.Deadline)*time.Second {
		return fmt.Sprintf("aggregator %s did not finish in %d seconds", o.Aggregator.Ref, job.Job.Spec.Deadline)
	}
	return ""
}

// putOutOf returns the participants of an attempt that are not eligible any more, by what was
// ordered or heard.
func (n *Node) putOutOf(o *federated.OpenRound) map[identity.PeerID]bool {
	out := map[identity.PeerID]bool{}
	n.machine.Present(func(s *consensus.State) {
		for _, m := range o.Participants {
			if !s.IsEligible(m.Peer, s.Now()) {
				out[m.Peer] = true
			}
		}
	})
	return out
}

// lostParticipants says that the open attempt cannot end for want of those that were put out
// since it began, or "": an update that was accepted does not count any more, or too few are left.
func (n *Node) lostParticipants(job federated.JobStatus) string {
	o := job.Open
	out := n.putOutOf(o)
	lost := slices.DeleteFunc(slices.Clone(o.Participants), func(m federated.Member) bool { return !out[m.Peer] })
	if o.Closed != nil {
		lost = slices.DeleteFunc(lost, func(m federated.Member) bool {
			return !slices.ContainsFunc(o.Closed.Accepted, func(a federated.Accepted) bool { return a.Peer == m.Peer })
		})
		if len(lost) > 0 {
			return "put out after the update was accepted: " + refNames(lost)
		}
		return ""
	}
	if left, least := len(o.Participants)-len(lost), job.Job.Spec.MinParticipants; left < least {
		return fmt.Sprintf("%d participants are left of at least %d; put out: %s", left, least, refNames(lost))
	}
	return ""
}

// unreachableMembers returns the eligible members that this node has no link to.
func (n *Node) unreachableMembers() []federated.Member {
	var all []federated.Member
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { all = n.machine.members(s).Eligible() })
	return slices.DeleteFunc(all, func(m federated.Member) bool { return m.Peer == n.self || n.hasLink(m.Peer) })
}

func refNames(members []federated.Member) string {
	var out []string
	for _, m := range members {
		out = append(out, m.Ref.String())
	}
	return strings.Join(out, ", ")
}
