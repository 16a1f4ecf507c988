package replica

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/attestmesh/meshnode/internal/identity"
)

// Stats is a replica's own account of itself.
type Stats struct {
	Leadership
	LastIndex, CommitIndex, AppliedIndex uint64
	// SnapshotIndex is the index of the stored snapshot; 0 without.
	SnapshotIndex uint64
	// Voters of the newest configuration in the log.
	Voters []identity.PeerID
	// LastContact is when a leader was last heard of; zero if never.
	LastContact time.Time
	// Refused counts what the guard refused.
	Refused uint64
}

// Stats returns the account.
func (r *Replica) Stats() Stats {
	return Stats{
		Leadership: r.leadership(),
		LastIndex:  r.raft.LastIndex(), CommitIndex: r.raft.CommitIndex(), AppliedIndex: r.AppliedIndex(),
		SnapshotIndex: r.store.snapshotIndex(),
		Voters:        r.Voters(), LastContact: r.raft.LastContact(), Refused: r.refusals.Load(),
	}
}

func (r *Replica) leadership() Leadership {
	return Leadership{Term: r.Term(), Leader: r.Leader(), State: r.State()}
}

// Leader returns the leader as far as this replica knows; zero if it knows none.
func (r *Replica) Leader() identity.PeerID {
	_, id := r.raft.LeaderWithID()
	p, err := r.transport.peer(id)
	if err != nil || r.silent() {
		return ""
	}
	return p
}

// State returns what this replica is doing.
func (r *Replica) State() State {
	if r.silent() {
		return None
	}
	switch r.raft.State() {
	case raft.Leader:
		return Leader
	case raft.Candidate:
		return Candidate
	case raft.Follower:
		return Follower
	}
	return None
}

// Term returns raft's current term.
func (r *Replica) Term() uint64 { return r.raft.CurrentTerm() }

// AppliedIndex returns the index of the newest command or configuration executed here.
func (r *Replica) AppliedIndex() uint64 {
	applied, _ := r.adapter.position()
	return applied
}

// Voters returns the voters of the newest configuration in the log, committed or not.
func (r *Replica) Voters() []identity.PeerID {
	var out []identity.PeerID
	for _, s := range r.Servers() {
		if s.Voter {
			out = append(out, s.Peer)
		}
	}
	return out
}

// LeaderCh returns the channel on which changes of leader or state are told to one reader.
// A change that is not read is replaced by the next.
func (r *Replica) LeaderCh() <-chan Leadership { return r.leaders }

// Done returns a channel that is closed when the replica has ended after Close.
func (r *Replica) Done() <-chan struct{} { return r.closed }

// watch tells changes and watches the commit index of a leader.
func (r *Replica) watch(changes <-chan raft.Observation) {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	var stalled time.Time
	var commit uint64
	last := Leadership{}
	for {
		select {
		case <-r.stop:
			return
		case <-changes:
		case now := <-ticker.C:
			c := r.raft.CommitIndex()
			if r.State() != Leader || c != commit || c >= r.raft.LastIndex() {
				stalled, commit = now, c
			} else if now.Sub(stalled) >= commitStall {
				r.fatal(fmt.Errorf("leader has committed nothing beyond entry %d for %v, the log ends at %d: another seat must lead",
					c, commitStall, r.raft.LastIndex()))
			}
		}
		if now := r.leadership(); now != last {
			last = now
			r.tell(now)
		}
	}
}

// tell replaces what LeaderCh holds. Only watch calls it.
func (r *Replica) tell(l Leadership) {
	select {
	case <-r.leaders:
	default:
	}
	r.leaders <- l
}

func (r *Replica) silent() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.silent
}

// fallSilent cuts this replica off, so that it neither votes, campaigns nor answers. It
// reports whether it was the first to do so.
func (r *Replica) fallSilent() bool {
	r.mu.Lock()
	first := !r.state.silent
	r.state.silent = true
	r.mu.Unlock()
	if r.transport != nil {
		r.transport.Close()
	}
	return first
}

// fatal ends this replica's part. It is called from raft's goroutines and waits for
// nothing.
func (r *Replica) fatal(err error) {
	if !r.fallSilent() {
		return
	}
	r.log.Error("replica has failed", "error", err)
	if r.cfg.Fatal != nil {
		go r.cfg.Fatal(err)
	}
}

// removed ends this replica's part after its removal from the configuration.
func (r *Replica) removed() {
	if r.fallSilent() {
		r.log.Info("this seat has been removed from the raft configuration")
	}
}

// refuse accounts for what the guard refused.
func (r *Replica) refuse(peer identity.PeerID, reason error) {
	r.refusals.Add(1)
	if r.said.due(string(peer), time.Now()) {
		r.log.Warn("refused a raft message", "peer", peer.String(), "reason", reason)
	}
	if r.cfg.Refused != nil {
		r.cfg.Refused(peer, reason)
	}
}

// Close hands leadership over if it can, answers waiting calls, stops and closes the
// store. It takes at most three times closeTimeout; a Machine that does not return by then is
// left behind and reported.
func (r *Replica) Close() error {
	r.mu.Lock()
	first := !r.state.closing
	r.state.closing = true
	r.mu.Unlock()
	if !first {
		<-r.closed
		return r.closeE
	}
	defer close(r.closed)
	if r.State() == Leader && len(r.Voters()) > 1 {
		within(closeTimeout, func() { r.raft.LeadershipTransfer().Error() }) // best effort: the others elect anyway
	}
	// Raft forgets calls that wait while it stops, so they must be answered before: by
	// being executed, or because this replica does not lead any more.
	answered := make(chan struct{})
	go func() { r.applies.Wait(); close(answered) }()
	within(closeTimeout, func() { <-answered })
	r.fallSilent()
	stopped := r.raft.Shutdown()
	if !within(closeTimeout, func() { stopped.Error(); <-answered; r.transport.wg.Wait() }) {
		r.closeE = errors.New("replica: raft has not stopped: the machine or the store does not return")
	}
	close(r.stop)
	r.own.Wait()
	r.tell(r.leadership())
	if r.closeE == nil {
		r.closeE = r.cfg.Store.Close()
	}
	return r.closeE
}

// within runs f and reports whether it returned in time. If not it goes on by itself.
func within(limit time.Duration, f func()) bool {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	go func() { defer cancel(); f() }()
	<-ctx.Done()
	return errors.Is(ctx.Err(), context.Canceled)
}
