package replica

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/attestmesh/meshnode/internal/identity"
)

// Peers opens authenticated streams to other seats.
type Peers interface {
	// Open returns a new byte stream to peer, whose other end learns that we opened it. It
	// gives up when ctx ends. The stream keeps order and loses nothing, or fails; its
	// Close returns at once and makes pending Reads and Writes on it return. Several
	// goroutines may call Open at once.
	Open(ctx context.Context, peer identity.PeerID) (io.ReadWriteCloser, error)
}

// raftView is what the guard reads of raft. All of it may be called at any time.
type raftView interface {
	CurrentTerm() uint64
	CommitIndex() uint64
	State() raft.RaftState
	LeaderWithID() (raft.ServerAddress, raft.ServerID)
}

// transport implements raft.Transport, raft.WithPreVote and raft.WithClose.
type transport struct {
	self    identity.PeerID
	peers   Peers
	member  func(identity.PeerID) bool
	learner func(identity.PeerID) bool
	check   func([]byte) error
	// checkSnapshot is Machine.CheckSnapshot.
	checkSnapshot func([]byte, []identity.PeerID) error
	snapshotSlot  chan struct{}
	heartbeat     time.Duration
	refused       func(identity.PeerID, error)

	raft   atomic.Pointer[raftView] // nil until attach
	ready  chan struct{}            // closed by attach
	store  *watchedStore
	floor0 uint64 // what the store knew to be committed when we started
	rpcs   chan raft.RPC

	// gate is held from the guard's look at raft's state until raft has answered, so that
	// no other request changes that state in between.
	gate  chan struct{}
	guard struct {
		sync.Mutex // held for no waiting
		*guard
	}

	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	mu     sync.Mutex // held for no I/O
	closed bool
	wg     sync.WaitGroup // Add under mu while not closed
	out    map[identity.PeerID]*dial
	in     map[identity.PeerID]*incoming
	ids    map[raft.ServerID]identity.PeerID // those parsed already: few, but needed often
}

func newTransport(cfg Config, store *watchedStore, floor uint64, refused func(identity.PeerID, error)) *transport {
	t := &transport{
		self: cfg.Self, peers: cfg.Peers, member: cfg.Member, learner: cfg.Learner, check: cfg.Machine.Check,
		heartbeat: cfg.Timing.Heartbeat, refused: refused,
		ready: make(chan struct{}), store: store, floor0: max(floor, foundingIndex), rpcs: make(chan raft.RPC),
		gate: make(chan struct{}, 1),
		out:  map[identity.PeerID]*dial{}, in: map[identity.PeerID]*incoming{},
		ids: map[raft.ServerID]identity.PeerID{},
	}
	t.checkSnapshot, t.snapshotSlot = cfg.Machine.CheckSnapshot, make(chan struct{}, 1)
	t.snapshotSlot <- struct{}{}
	t.guard.guard = newGuard(cfg.Timing.Heartbeat, cfg.Timing.Election)
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

// attach lets requests in.
func (t *transport) attach(r raftView) {
	t.raft.Store(&r)
	close(t.ready)
}

// Close implements raft.WithClose: it ends all streams and calls. It does not wait.
func (t *transport) Close() error {
	t.mu.Lock()
	t.closed = true
	in, out := t.in, t.out
	t.in, t.out = map[identity.PeerID]*incoming{}, map[identity.PeerID]*dial{}
	t.mu.Unlock()
	t.cancel()
	for _, c := range in {
		c.Close()
	}
	for _, d := range out {
		d.fail(errClosed)
	}
	return nil
}

// committed returns the newest index known to be committed. Raft does not count what a snapshot
// brought.
func (t *transport) committed() uint64 {
	floor := max(t.floor0, t.store.snapshotIndex())
	if r := t.raft.Load(); r != nil {
		return max(floor, (*r).CommitIndex())
	}
	return floor
}

// view collects what the guard needs to know.
func (t *transport) view() view {
	v := view{self: t.self, now: time.Now(), floor: t.committed(), entry: func(i uint64) (l raft.Log, err error) {
		err = t.store.GetLog(i, &l)
		return l, err
	}, before: func(i uint64) (raft.Configuration, bool) {
		m, ok := t.store.before(i)
		return m.configuration, ok
	}}
	if r := t.raft.Load(); r != nil {
		v.leads = (*r).State() == raft.Leader
		v.term = (*r).CurrentTerm()
		_, v.leader = (*r).LeaderWithID()
	}
	return v
}

// admitReply guards what comes back. Replies carry terms, too.
func (t *transport) admitReply(peer identity.PeerID, reply any) error {
	select {
	case <-t.ready:
	case <-t.ctx.Done():
		return errClosed
	}
	v := t.view()
	t.guard.Lock()
	err := t.guard.admitReply(v, peer, reply)
	t.guard.Unlock()
	if err != nil {
		t.refused(peer, err)
	}
	return err
}

// peer returns the peer of a server id.
func (t *transport) peer(id raft.ServerID) (identity.PeerID, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p, ok := t.ids[id]; ok {
		return p, nil
	}
	p, err := identity.ParsePeerID(string(id))
	if err == nil {
		t.ids[id] = p
	}
	return p, err
}

// stream returns the outgoing stream to a peer, opening it where there is none.
func (t *transport) stream(id raft.ServerID, timeout time.Duration) (*outgoing, error) {
	peer, err := t.peer(id)
	if err != nil {
		return nil, err
	}
	if !t.mayHear(peer) {
		t.drop(peer)
		return nil, fmt.Errorf("%s is not in the allowed set", peer.Short())
	}
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil, errClosed
	}
	d := t.out[peer]
	if d == nil || !d.usable() {
		d = &dial{done: make(chan struct{})}
		t.out[peer] = d
		t.wg.Go(func() { t.open(t.ctx, d, peer) })
	}
	t.mu.Unlock()
	select {
	case <-d.done: // the common case needs no timer
		return d.out, d.err
	default:
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-d.done:
		return d.out, d.err
	case <-timer.C:
		return nil, fmt.Errorf("open a raft stream to %s: %w", peer.Short(), errDeadline)
	case <-t.ctx.Done():
		return nil, errClosed
	}
}

// mayHear reports whether this replica may send to a peer.
func (t *transport) mayHear(peer identity.PeerID) bool { return t.member(peer) || t.learner(peer) }

// drop closes the streams of a peer that is no member any more.
func (t *transport) drop(peer identity.PeerID) {
	t.mu.Lock()
	d, in := t.out[peer], t.in[peer]
	delete(t.out, peer)
	t.mu.Unlock()
	if in != nil {
		in.Close()
	}
	if d != nil {
		d.fail(errRefused)
	}
}

// call sends a request and waits for its answer.
func (t *transport) call(id raft.ServerID, request any, timeout time.Duration) (any, error) {
	o, err := t.stream(id, timeout)
	if err != nil {
		return nil, err
	}
	done := make(chan *call, 1)
	if err := o.send(request, timeout, func(c *call) { done <- c }); err != nil {
		return nil, err
	}
	c := <-done // the call's own deadline, or Close, ends it
	return c.reply, c.err
}

// Consumer implements raft.Transport.
func (t *transport) Consumer() <-chan raft.RPC { return t.rpcs }

// LocalAddr implements raft.Transport.
func (t *transport) LocalAddr() raft.ServerAddress { return raft.ServerAddress(t.self.String()) }

// AppendEntries implements raft.Transport. Of entries that do not fit into one frame it
// sends the first ones and cuts args to them: raft advances by what args holds afterwards.
func (t *transport) AppendEntries(id raft.ServerID, _ raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	timeout, err := t.fit(args)
	if err != nil {
		return err
	}
	if !isHeartbeat(args) {
		t.reach(id, args.Term)
	}
	reply, err := t.call(id, args, timeout)
	if err != nil {
		return err
	}
	*resp = *reply.(*raft.AppendEntriesResponse)
	return nil
}

// reach waits until there is a stream to a peer, for as long as this replica leads in term
// and the peer is a member. Raft doubles its pause at each append that fails, up to 10.24 s,
// and sits it out whatever happens: a follower that was cut off for some seconds would hear
// heartbeats again at once, yet no command (a revocation, say) for as long. Heartbeats have
// a pause of their own, which raft bounds.
func (t *transport) reach(id raft.ServerID, term uint64) {
	tick := time.NewTicker(reachEvery)
	defer tick.Stop()
	for {
		if _, err := t.stream(id, t.heartbeat); err == nil {
			return
		}
		peer, err := t.peer(id)
		if r := t.raft.Load(); err != nil || r == nil || (*r).State() != raft.Leader || (*r).CurrentTerm() != term || !t.mayHear(peer) {
			return
		}
		select {
		case <-tick.C:
		case <-t.ctx.Done():
			return
		}
	}
}

// isHeartbeat reports whether args are what raft's heartbeats are: a term and nothing else.
func isHeartbeat(args *raft.AppendEntriesRequest) bool {
	return args.PrevLogEntry == 0 && args.LeaderCommitIndex == 0 && len(args.Entries) == 0
}

// fit cuts args to one frame and returns the deadline for it.
func (t *transport) fit(args *raft.AppendEntriesRequest) (time.Duration, error) {
	if len(args.Entries) == 0 {
		return t.heartbeat, nil
	}
	n := fitting(args.Entries)
	if n == 0 {
		return 0, fmt.Errorf("entry %d of %d bytes fits into no frame", args.Entries[0].Index, len(args.Entries[0].Data))
	}
	args.Entries = args.Entries[:n]
	return bulkFactor * t.heartbeat, nil
}

// RequestVote implements raft.Transport.
func (t *transport) RequestVote(id raft.ServerID, _ raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	reply, err := t.call(id, args, t.heartbeat)
	if err != nil {
		return err
	}
	*resp = *reply.(*raft.RequestVoteResponse)
	return nil
}

// RequestPreVote implements raft.WithPreVote.
func (t *transport) RequestPreVote(id raft.ServerID, _ raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	reply, err := t.call(id, args, t.heartbeat)
	if err != nil {
		return err
	}
	*resp = *reply.(*raft.RequestPreVoteResponse)
	return nil
}

// TimeoutNow implements raft.Transport.
func (t *transport) TimeoutNow(id raft.ServerID, _ raft.ServerAddress, args *raft.TimeoutNowRequest, _ *raft.TimeoutNowResponse) error {
	_, err := t.call(id, args, t.heartbeat)
	return err
}

// EncodePeer implements raft.Transport.
func (t *transport) EncodePeer(id raft.ServerID, _ raft.ServerAddress) []byte { return []byte(id) }

// DecodePeer implements raft.Transport.
func (t *transport) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler implements raft.Transport and ignores the handler, as raft allows:
// beside the main loop a heartbeat's term lets a deposed leader store a command under its
// successor's term (hashicorp/raft#695).
func (t *transport) SetHeartbeatHandler(func(raft.RPC)) {}
