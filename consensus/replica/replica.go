package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/attestmesh/meshnode/internal/identity"
)

// Errors on which callers branch.
var (
	// ErrNotLeader says that the command was not ordered: another replica leads, or none.
	// The error is a *NotLeaderError.
	ErrNotLeader = errors.New("not the leader")
	// ErrUnknownOutcome says that the command may have been ordered, or still be.
	ErrUnknownOutcome = errors.New("outcome unknown")
	// ErrClosed says that the replica has ended, and the command was not ordered.
	ErrClosed = errors.New("replica is closed")
)

// NotLeaderError is ErrNotLeader with whom to ask.
type NotLeaderError struct {
	// Leader is the leader as far as this replica knows; zero if it knows none.
	Leader identity.PeerID
}

// Error implements error.
func (e *NotLeaderError) Error() string {
	if e.Leader == "" {
		return ErrNotLeader.Error() + ": no leader is known"
	}
	return ErrNotLeader.Error() + ": ask " + e.Leader.String()
}

// Is reports whether target is ErrNotLeader.
func (e *NotLeaderError) Is(target error) bool { return target == ErrNotLeader }

// State is what a replica is doing.
type State string

// The states.
const (
	Follower  State = "follower"
	Candidate State = "candidate"
	Leader    State = "leader"
	// None is the state of a replica that has been removed, has failed, or is closed.
	None State = "none"
)

// Timing replaces raft's times, for tests and simulations. Zero fields mean the times of
// limits.go, with which all seats of a mesh run.
type Timing struct {
	Heartbeat, Election, Lease, Commit time.Duration
}

// Config is what a replica needs. Fields without "may" are required.
type Config struct {
	// Self is this seat; its text form is server id and server address.
	Self identity.PeerID
	// Peers opens streams to the other seats.
	Peers Peers
	// Member reports whether a peer may take part at this moment. It is asked about each
	// request in and each stream out, and must answer at once.
	Member func(identity.PeerID) bool
	// Learner reports whether a peer that is no Member may be sent what a leader sends to
	// non-voters; no request of one is heard. It may be nil: nobody.
	Learner func(identity.PeerID) bool
	// Machine executes commands.
	Machine Machine
	// Store holds the log; New's success gives it to the replica, whose Close closes it.
	Store Store
	// Servers are the founding voters, the same on every replica, with Self among them unless
	// Join is set. They are used when Store is empty; a Store that is not has its own
	// configuration.
	Servers []identity.PeerID
	// Join says that Self is none of the founding voters: the replica knows the founding
	// entry of the log, votes in nothing and campaigns for nothing until a leader has added it.
	Join bool
	// Log receives what operators should see. It may be nil.
	Log *slog.Logger
	// Fatal is called at most once, on a goroutine of its own, with the reason why this
	// replica cannot go on; it has fallen silent then. The node is expected to end. It may
	// be nil.
	Fatal func(error)
	// Refused is told of each stream or message of a peer that the guard refused. It must
	// return at once. It may be nil.
	Refused func(peer identity.PeerID, reason error)
	// Timing may be zero.
	Timing Timing
	// Trailing is how many entries are kept behind a snapshot; zero means those of limits.go.
	Trailing uint64
}

// Replica is one seat's copy of the machine.
type Replica struct {
	cfg       Config
	log       *slog.Logger
	said      lastSaid
	raft      *raft.Raft
	transport *transport
	store     *watchedStore
	adapter   *adapter
	leaders   chan Leadership
	refusals  atomic.Uint64
	began     time.Time

	stop chan struct{} // closed by Close, ends watch
	own  sync.WaitGroup

	mu      sync.Mutex // held for no waiting
	state   struct{ silent, closing bool }
	applies sync.WaitGroup // Add under mu while not closing
	closed  chan struct{}  // closed when Close is done
	closeE  error
}

// Leadership is a change of leader or state.
type Leadership struct {
	Term   uint64
	Leader identity.PeerID // zero if unknown
	State  State
}

// New starts a replica.
func New(cfg Config) (*Replica, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("replica: %w", err)
	}
	r := &Replica{
		cfg: cfg, log: cfg.Log, said: lastSaid{at: map[string]time.Time{}},
		leaders: make(chan Leadership, 1), began: time.Now(), stop: make(chan struct{}), closed: make(chan struct{}),
	}
	store, err := watch(cfg.Store, r.fatal)
	if err != nil {
		return nil, fmt.Errorf("replica: %w", err)
	}
	floor, err := cfg.Store.GetCommitIndex()
	if err != nil {
		return nil, fmt.Errorf("replica: raft store: commit index: %w", err)
	}
	r.store = store
	r.transport = newTransport(cfg, store, floor, r.refuse)
	store.commit = r.transport.committed
	r.adapter = newAdapter(cfg.Machine, cfg.Self, r.fatal, r.removed)
	r.adapter.snapshotIndex = store.snapshotIndex
	if err := r.start(); err != nil {
		r.transport.Close()
		return nil, fmt.Errorf("replica: %w", err)
	}
	return r, nil
}

// complete refuses what is missing and fills in what may be zero.
func (c *Config) complete() error {
	if err := c.Self.Validate(); err != nil {
		return err
	}
	if c.Peers == nil || c.Member == nil || c.Machine == nil || c.Store == nil {
		return errors.New("Peers, Member, Machine and Store are required")
	}
	if c.Learner == nil {
		c.Learner = func(identity.PeerID) bool { return false }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	set := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	if c.Trailing == 0 {
		c.Trailing = trailingLogs
	}
	set(&c.Timing.Heartbeat, heartbeatTimeout)
	set(&c.Timing.Election, electionTimeout)
	set(&c.Timing.Lease, leaseTimeout)
	set(&c.Timing.Commit, commitTimeout)
	return nil
}

// founding returns the founding configuration, of which all founders make the same bytes.
func (c *Config) founding() (raft.Configuration, error) {
	peers := slices.Clone(c.Servers)
	slices.SortFunc(peers, func(a, b identity.PeerID) int { return strings.Compare(string(a), string(b)) })
	var out raft.Configuration
	for _, p := range peers {
		out.Servers = append(out.Servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(p.String()), Address: raft.ServerAddress(p.String())})
	}
	switch founder := slices.Contains(peers, c.Self); {
	case !founder && !c.Join:
		return out, fmt.Errorf("%s is none of the %d founding servers, and its store is empty", c.Self, len(peers))
	case founder && c.Join:
		return out, fmt.Errorf("%s is a founding server and cannot join", c.Self)
	}
	return out, checkConfiguration(out)
}

func (r *Replica) start() error {
	snapshots := snapshotStore{r.store}
	conf := r.raftConfig()
	exists, err := raft.HasExistingState(r.store, r.store, snapshots)
	if err != nil {
		return err
	}
	if !exists {
		founding, err := r.cfg.founding()
		if err != nil {
			return err
		}
		if err := raft.BootstrapCluster(conf, r.store, r.store, snapshots, r.transport, founding); err != nil {
			return err
		}
	}
	if r.raft, err = raft.NewRaft(conf, r.adapter, r.store, r.store, snapshots, r.transport); err != nil {
		return err
	}
	changes := make(chan raft.Observation, 1)
	r.raft.RegisterObserver(raft.NewObserver(changes, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.RaftState:
			return true
		}
		return false
	}))
	r.transport.attach(r.raft)
	r.own.Go(func() { r.watch(changes) })
	return nil
}

func (r *Replica) raftConfig() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(r.cfg.Self.String())
	c.Logger = newQuietLogger(r.log)
	c.HeartbeatTimeout, c.ElectionTimeout = r.cfg.Timing.Heartbeat, r.cfg.Timing.Election
	c.LeaderLeaseTimeout, c.CommitTimeout = r.cfg.Timing.Lease, r.cfg.Timing.Commit
	c.MaxAppendEntries = maxEntries
	c.BatchApplyCh = true
	c.TrailingLogs = r.cfg.Trailing
	c.SnapshotThreshold = math.MaxUint64 // whoever owns the machine knows when it has one to give
	c.SnapshotInterval = 24 * time.Hour
	c.NoLegacyTelemetry = true
	c.PreVoteDisabled = false
	// A removed leader is shut down by removed, through Close's path: raft's own shutdown
	// leaves the futures of waiting commands unanswered for ever.
	c.ShutdownOnRemove = false
	return c
}

// Serve answers the requests of a stream that peer opened, until it ends; it owns rwc. The
// stream must satisfy what Peers says of streams, and peer must have been authenticated.
func (r *Replica) Serve(peer identity.PeerID, rwc io.ReadWriteCloser) { r.transport.serve(peer, rwc) }

// Apply has the command ordered and executed, and returns what this replica's Machine made
// of it. Errors that are neither ErrUnknownOutcome nor a failure of the Machine say that
// the command was not ordered and will not be.
func (r *Replica) Apply(ctx context.Context, command []byte) (any, error) {
	if len(command) == 0 || len(command) > MaxCommand {
		return nil, fmt.Errorf("command of %d bytes, want 1 to %d", len(command), MaxCommand)
	}
	if err := r.cfg.Machine.Check(command); err != nil {
		return nil, err
	}
	var future raft.ApplyFuture
	err := r.submit(ctx, func(wait time.Duration) error {
		future = r.raft.Apply(bytes.Clone(command), wait)
		return future.Error()
	})
	if err != nil {
		return nil, err
	}
	if m, ok := future.Response().(machineError); ok {
		return nil, m.err
	}
	return future.Response(), nil
}

// Barrier returns once this replica, as leader, has executed every command that was
// committed before the call: a read after it is linearizable. Errors are those of Apply.
func (r *Replica) Barrier(ctx context.Context) error {
	return r.submit(ctx, func(wait time.Duration) error { return r.raft.Barrier(wait).Error() })
}

// submit runs a request to raft's leader and gives its error a meaning. do gets the time
// in which raft must accept the request. It may outlive ctx, but not Close.
func (r *Replica) submit(ctx context.Context, do func(wait time.Duration) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r.mu.Lock()
	if r.state.silent || r.state.closing {
		r.mu.Unlock()
		return ErrClosed
	}
	r.applies.Add(1)
	r.mu.Unlock()
	if r.raft.State() != raft.Leader {
		r.applies.Done()
		return &NotLeaderError{Leader: r.Leader()}
	}
	wait := acceptTimeout
	if deadline, ok := ctx.Deadline(); ok {
		wait = max(min(wait, time.Until(deadline)), 1)
	}
	done := make(chan error, 1)
	go func() { // Close waits for it
		defer r.applies.Done()
		done <- do(wait)
	}()
	select {
	case err := <-done:
		return r.meaning(err)
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, ctx.Err())
	}
}

// meaning translates raft's errors.
func (r *Replica) meaning(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return &NotLeaderError{Leader: r.Leader()}
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("raft took the request not in time: %w", context.DeadlineExceeded)
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown):
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
	}
	return err
}

// WaitApplied returns once this replica has executed the entry at index, which is one that
// Machine.Apply was given or AppliedIndex returned, here or elsewhere.
func (r *Replica) WaitApplied(ctx context.Context, index uint64) error {
	for {
		applied, moved := r.adapter.position()
		if applied >= index {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("applied %d of %d: %w", applied, index, ctx.Err())
		case <-r.closed:
			return ErrClosed
		}
	}
}
