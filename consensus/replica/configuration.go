package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/attestmesh/meshnode/internal/identity"
)

// The configuration changes by one server at a time, and only as far as nobody has changed
// it since the change was decided: raft compares the index of the newest configuration. Raft's
// own GetConfiguration cannot tell that index, in v1.8.0 it is always 0, which compares
// nothing. A change of which the configuration shows the effect already is no error.
// Errors of the changes are those of Apply.

// Server is one server of the configuration.
type Server struct {
	Peer identity.PeerID
	// Voter is false for a server that gets the log and has no vote.
	Voter bool
}

// Servers returns the newest configuration in the log, committed or not.
func (r *Replica) Servers() []Server {
	latest, _ := r.store.latest()
	var out []Server
	for _, s := range latest.configuration.Servers {
		if p, err := r.transport.peer(s.ID); err == nil {
			out = append(out, Server{p, s.Suffrage == raft.Voter})
		}
	}
	return out
}

// AddNonvoter has peer sent the log without giving it a vote, and returns once that is
// committed. Whether it catches up is not waited for.
func (r *Replica) AddNonvoter(ctx context.Context, peer identity.PeerID) error {
	if err := peer.Validate(); err != nil {
		return err
	}
	id, address := raft.ServerID(peer.String()), raft.ServerAddress(peer.String())
	return r.change(ctx, func(c raft.Configuration) bool { _, in := serverOf(c, id); return in },
		func(prev uint64, wait time.Duration) error {
			return r.raft.AddNonvoter(id, address, prev, wait).Error()
		})
}

// AddVoter gives peer, which is in the configuration as a non-voter, a vote, and returns once
// that is committed. It counts from the moment the change is in the log: a voter that has not
// caught up holds up every commit for which it is needed, so who is not in yet is refused.
func (r *Replica) AddVoter(ctx context.Context, peer identity.PeerID) error {
	id, address := raft.ServerID(peer.String()), raft.ServerAddress(peer.String())
	if latest, ok := r.store.latest(); ok {
		if _, in := serverOf(latest.configuration, id); !in {
			return fmt.Errorf("%s is no non-voter", peer)
		}
	}
	return r.change(ctx, func(c raft.Configuration) bool { s, in := serverOf(c, id); return in && s.Suffrage == raft.Voter },
		func(prev uint64, wait time.Duration) error { return r.raft.AddVoter(id, address, prev, wait).Error() })
}

// RemoveServer takes peer out of the configuration, and returns once that is committed.
func (r *Replica) RemoveServer(ctx context.Context, peer identity.PeerID) error {
	id := raft.ServerID(peer.String())
	return r.change(ctx, func(c raft.Configuration) bool { _, in := serverOf(c, id); return !in },
		func(prev uint64, wait time.Duration) error { return r.raft.RemoveServer(id, prev, wait).Error() })
}

func serverOf(c raft.Configuration, id raft.ServerID) (raft.Server, bool) {
	i := slices.IndexFunc(c.Servers, func(s raft.Server) bool { return s.ID == id })
	if i < 0 {
		return raft.Server{}, false
	}
	return c.Servers[i], true
}

// change makes a change unless the newest configuration shows its effect.
func (r *Replica) change(ctx context.Context, done func(raft.Configuration) bool, do func(prev uint64, wait time.Duration) error) error {
	latest, ok := r.store.latest()
	if !ok {
		return errors.New("no configuration yet")
	}
	if done(latest.configuration) {
		return nil
	}
	return r.submit(ctx, func(wait time.Duration) error { return do(latest.index, wait) })
}

// HandOver makes the most advanced voter take over from this leader, and returns once another
// leads; whoever does not lead has nothing to hand over. A transfer that fails ends this
// replica: raft v1.8.0 can leave such a leader refusing every write for ever while its
// followers hear its heartbeats (hashicorp/raft#696). Call it when the process is about to end.
func (r *Replica) HandOver(ctx context.Context) error {
	if len(r.Voters()) < 2 {
		return errors.New("leadership transfer: there is no other voter")
	}
	err := r.submit(ctx, func(time.Duration) error { return r.raft.LeadershipTransfer().Error() })
	if err != nil && r.State() != Leader {
		return nil
	}
	if err != nil {
		err = fmt.Errorf("leadership transfer: %w", err)
		r.fatal(err)
	}
	return err
}

// Hears reports whether this replica takes part: it leads, or belongs into the configuration
// and has heard its leader within limit, or has not had so long to. What a replica that does
// not hear is told otherwise may be newer than its own log.
func (r *Replica) Hears(limit time.Duration) bool {
	switch r.State() {
	case None:
		return false
	case Leader:
		return true
	}
	if !slices.ContainsFunc(r.Servers(), func(s Server) bool { return s.Peer == r.cfg.Self }) {
		return false
	}
	since := r.began
	if at := r.raft.LastContact(); at.After(since) {
		since = at
	}
	return time.Since(since) <= limit
}

// Distrust refuses every request of a peer from now on, for d or, if that is zero, for ever:
// appends, so that as a leader it loses this follower, and votes, so that it wins none here.
// What ends later of this and what was said before holds. It loses its office once a majority does the same; one replica alone only stops hearing
// it. What it is sent by this replica does not change.
func (r *Replica) Distrust(peer identity.PeerID, d time.Duration, why error) {
	until := time.Time{}
	if d > 0 {
		until = time.Now().Add(d)
	}
	r.transport.guard.Lock()
	r.transport.guard.distrust(peer, distrust{why, until})
	r.transport.guard.Unlock()
	r.log.Warn("distrusts a seat", "peer", peer.String(), "why", why)
}
