package mesh

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

// hub is what both implementations share: the table of links, handlers, notifications and
// dials. It owns the goroutines counted in wg, which end when ctx does.
type hub struct {
	cfg    Config
	self   identity.PeerID
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	wake   chan struct{} // one token: the notifier has work

	attestations *attestations // and cfg.Judge is behind its pool
	pairs        *exchange.Pairs
	counters     *counters
	bulks        bulkCount

	mu        sync.Mutex
	closed    bool
	handlers  map[Protocol]func(Link, Stream)
	notifiees []func(Link)
	pending   []notification
	peers     map[identity.PeerID][]*link // live links; the first is the one that Links shows
	channels  map[*channel]*link          // links until they are down
	dials     map[identity.PeerID]*dial
}

type notification struct {
	f func(Link)
	l *link
}

func newHub(cfg Config) (*hub, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	pairs, err := exchange.NewPairs(cfg.Window)
	if err != nil {
		return nil, fmt.Errorf("mesh: %w", err)
	}
	pool := newAttestations(processors(), cmp.Or(cfg.FullBurst, fullBurst))
	cfg.Judge = pooledJudge{cfg.Judge, pool}
	h := &hub{
		attestations: pool, pairs: pairs, counters: newCounters(), cfg: cfg, self: identity.PeerIDFromKey(cfg.Key.Public().(ed25519.PublicKey)), wake: make(chan struct{}, 1),
		handlers: map[Protocol]func(Link, Stream){}, peers: map[identity.PeerID][]*link{},
		channels: map[*channel]*link{}, dials: map[identity.PeerID]*dial{},
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.spawn(h.notifier)
	return h, nil
}

// spawn runs f in a goroutine that Close waits for; false if the hub is closed.
func (h *hub) spawn(f func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.spawnLocked(f)
}

func (h *hub) spawnLocked(f func()) bool {
	if h.closed {
		return false
	}
	h.wg.Go(f)
	return true
}

// Self implements Mesh.
func (h *hub) Self() identity.PeerID { return h.self }

// Handle implements Mesh.
func (h *hub) Handle(p Protocol, handler func(Link, Stream)) {
	if err := validateProtocol(p); err != nil {
		panic(err) // a programming error: protocols are constants of the program
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if handler == nil {
		delete(h.handlers, p)
		return
	}
	h.handlers[p] = handler
}

func (h *hub) handler(p Protocol) func(Link, Stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.handlers[p]
}

// Notify implements Mesh.
func (h *hub) Notify(f func(Link)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.notifiees = append(h.notifiees, f)
	for _, ls := range h.peers {
		for _, l := range ls {
			if l.notified {
				h.pending = append(h.pending, notification{f, l})
			}
		}
	}
	h.wakeNotifier()
}

func (h *hub) wakeNotifier() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// notifier delivers notifications in order. What is pending is bounded by links times
// notified functions, since each pair is queued once.
func (h *hub) notifier() {
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-h.wake:
		}
		h.mu.Lock()
		batch := h.pending
		h.pending = nil
		h.mu.Unlock()
		for _, n := range batch {
			if h.ctx.Err() != nil {
				return
			}
			n.f(n.l)
		}
	}
}

// register makes a link of an attested connection. It returns nil if there can be none;
// then the caller drops the connection.
func (h *hub) register(ch *channel, c carrier) *link {
	l := newLink(h, ch, c)
	h.mu.Lock()
	defer h.mu.Unlock()
	peer := l.Peer()
	ls := h.peers[peer]
	if h.closed || len(ls) >= maxLinksPerPeer {
		return nil
	}
	h.channels[ch] = l
	h.peers[peer] = append(ls, l)
	l.arm()
	h.spawnLocked(l.announce) // the epoch may have risen since our HELLO
	if len(ls) == 0 {
		h.show(l)
		return l
	}
	keep, drop := choose(ls[0], l)
	h.promote(keep)
	if h.self < peer {
		h.spawnLocked(func() { h.closeLater(drop, duplicateGrace) })
	} else {
		h.spawnLocked(func() { h.settle(keep, drop) })
	}
	return l
}

// choose decides which of two live links to one peer stays; a is the older.
func choose(a, b *link) (keep, drop *link) {
	if a.Session().Initiator == b.Session().Initiator || b.since.Sub(a.since) > crossingWindow {
		return b, a
	}
	lowerIsUs := a.hub.self < a.Peer()
	if a.Session().Initiator == lowerIsUs {
		return a, b
	}
	return b, a
}

// promote shows l instead of its siblings and tells the notified of it, once.
func (h *hub) promote(l *link) {
	ls := h.peers[l.Peer()]
	i := slices.Index(ls, l)
	ls[0], ls[i] = ls[i], ls[0]
	h.show(l)
}

func (h *hub) show(l *link) {
	if l.notified {
		return
	}
	l.notified = true
	for _, f := range h.notifiees {
		h.pending = append(h.pending, notification{f, l})
	}
	h.wakeNotifier()
}

// closeLater closes the losing link of two, after the peer had time to see the winner.
func (h *hub) closeLater(l *link, after time.Duration) {
	timer := time.NewTimer(after)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.done:
		return
	case <-h.ctx.Done():
	}
	_ = l.Close(attest.NewReason(attest.CodeDuplicate, "connection", "a second one", "one per peer"))
}

// settle waits for the deciding end. If it closed neither link it has only one, and that
// is the newer.
func (h *hub) settle(a, b *link) {
	timer := time.NewTimer(settleTimeout)
	defer timer.Stop()
	select {
	case <-a.done:
	case <-b.done:
	case <-h.ctx.Done():
	case <-timer.C:
		if b.since.Before(a.since) {
			a = b
		}
		h.closeLater(a, 0)
	}
}

// remove takes a link out of the table; a spare takes its place.
func (h *hub) remove(l *link) {
	h.mu.Lock()
	defer h.mu.Unlock()
	ls := slices.DeleteFunc(h.peers[l.Peer()], func(x *link) bool { return x == l })
	if len(ls) == 0 {
		delete(h.peers, l.Peer())
		return
	}
	h.peers[l.Peer()] = ls
	h.show(ls[0])
}

// forget ends the connection's way from verdict to link.
func (h *hub) forget(l *link) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.channels, l.channel)
}

func (h *hub) byChannel(ch *channel) *link {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.channels[ch]
}

// Links implements Mesh.
func (h *hub) Links() []Link {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]Link, 0, len(h.peers))
	for _, ls := range h.peers {
		out = append(out, ls[0])
	}
	return out
}

// Link implements Mesh.
func (h *hub) Link(peer identity.PeerID) (Link, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if ls := h.peers[peer]; len(ls) > 0 {
		return ls[0], true
	}
	return nil, false
}

// others returns the other live links to the peer of l.
func (h *hub) others(l *link) []*link {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(h.peers[l.Peer()]), func(x *link) bool { return x == l })
}

// shutdown closes all links with code shutdown and refuses everything from now on. It
// reports whether this call was the first.
func (h *hub) shutdown() bool {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return false
	}
	h.closed = true
	var all []*link
	for _, ls := range h.peers {
		all = append(all, ls...)
	}
	h.mu.Unlock()
	h.cancel()
	var wg sync.WaitGroup
	for _, l := range all {
		wg.Go(func() { _ = l.Close(attest.NewReason(attest.CodeShutdown, "node", "stopping", "running")) })
	}
	wg.Wait()
	return true
}

// wait waits for the hub's goroutines, handlers included.
func (h *hub) wait() error {
	done := make(chan struct{})
	go func() { h.wg.Wait(); close(done) }()
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-timer.C:
		return errors.New("mesh: close: a stream handler or notified function does not return")
	}
}

// dial is one dial in progress; its fields below are guarded by hub.mu.
type dial struct {
	done   chan struct{}
	cancel context.CancelFunc

	waiters int
	addrs   []string
	link    *link
	err     error
}

// connector makes and registers one connection.
type connector func(ctx context.Context, peer identity.PeerID, addrs []string) error

// dialPeer runs connect once for all concurrent callers; it is cancelled when the last of
// them gives up.
func (h *hub) dialPeer(ctx context.Context, peer identity.PeerID, addrs []string, connect connector) (Link, error) {
	if err := peer.Validate(); err != nil {
		return nil, fmt.Errorf("mesh: dial: %w", err)
	}
	if peer == h.self {
		return nil, errors.New("mesh: dial: that is this node itself")
	}
	for {
		d, l, started, err := h.joinDial(peer, addrs, connect)
		if d == nil {
			if err != nil {
				return nil, err
			}
			return l, nil
		}
		select {
		case <-d.done:
		case <-ctx.Done():
			h.leaveDial(d)
			return nil, fmt.Errorf("mesh: dial %s: %w", peer, ctx.Err())
		}
		if d.err == nil {
			return d.link, nil
		}
		// A dial that somebody else began may not have known our addresses.
		if !started && slices.ContainsFunc(addrs, func(a string) bool { return !slices.Contains(d.addrs, a) }) {
			continue
		}
		return nil, d.err
	}
}

// joinDial returns the live link, or a dial to wait for and whether this call began it.
func (h *hub) joinDial(peer identity.PeerID, addrs []string, connect connector) (*dial, *link, bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, nil, false, ErrClosed
	}
	if ls := h.peers[peer]; len(ls) > 0 {
		return nil, ls[0], false, nil
	}
	if d := h.dials[peer]; d != nil {
		d.waiters++
		return d, nil, false, nil
	}
	ctx, cancel := context.WithTimeout(h.ctx, DialTimeout)
	d := &dial{done: make(chan struct{}), cancel: cancel, waiters: 1, addrs: addrs}
	h.dials[peer] = d
	h.spawnLocked(func() {
		defer cancel()
		h.endDial(peer, d, connect(ctx, peer, addrs))
	})
	return d, nil, true, nil
}

func (h *hub) leaveDial(d *dial) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d.waiters--; d.waiters == 0 {
		d.cancel()
	}
}

func (h *hub) endDial(peer identity.PeerID, d *dial, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.dials, peer)
	defer close(d.done)
	// A link may exist although this dial failed: the peer dialled us meanwhile.
	if ls := h.peers[peer]; len(ls) > 0 {
		d.link = ls[0]
		return
	}
	var refusal *Refusal
	switch {
	case errors.As(err, &refusal):
		told := refusal.Normalize()
		d.err = &told
	case err != nil:
		d.err = fmt.Errorf("mesh: dial %s: %w", peer, err)
	case h.closed:
		d.err = ErrClosed
	default:
		d.err = fmt.Errorf("mesh: dial %s: the connection was closed at once", peer)
	}
}
