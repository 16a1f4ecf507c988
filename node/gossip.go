package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// Gossip is how signed policy reaches nodes that no seat is linked to, and how what takes away
// acts before it is ordered:
//
//	a step of the policy chain, or a statement of consensus.Provisional
//	     ──► verified from genesis by this very node (heard.go) ──► acts ──► passed on
//
// One exchange is one message each way (gossipMessage) on a stream of its own: each end says
// what it has and sends what the other has not. It happens as soon as one end has a statement
// that the other, as far as it knows, has not (the flood), or has heard that the other judges
// under a newer epoch, when a link is new, and every gossipEvery (the pull), so that what a
// flood missed arrives all the same. A node passes on only what it has verified, and knows of
// each peer what that has, so that everything crosses a link about once.
//
// What peers cost is bounded: the size of a message, exchanges per peer and time, and faults:
// a statement that does not verify costs its sender one of few, and a peer that has none left
// is not listened to until it has one again. The same bad bytes are not verified twice.

// Limits of gossip.
const (
	gossipEvery       = 10 * time.Second       // the pull, a fifth more or less by chance
	gossipEveryUnseen = 2 * time.Second        // the pull of a node without a link to a seat
	gossipWithin      = 3 * time.Second        // one exchange
	gossipRetry       = time.Second            // after one that failed
	gossipNext        = 200 * time.Millisecond // after one that brought a part of a longer chain
	// maxGossip bounds the statements and steps of one message in bytes, maxGossipSteps the
	// steps in number.
	maxGossip      = 512 << 10
	maxGossipSteps = 64
	// gossipBurst and gossipRate bound the exchanges that one peer opens: at once, and a
	// second. faultBurst and faultRate bound the statements of it that do not verify.
	gossipBurst, gossipRate = 64, 8.0
	faultBurst, faultRate   = 8, 0.1
	// maxRefused bounds the remembered bytes that did not verify.
	maxRefused = 1024
)

// gossipMessage is what one end says in an exchange: what it has, and what the other end has
// not as far as the sender knows.
type gossipMessage struct {
	Incarnation identity.Incarnation `json:"incarnation"`
	// Steps and Chain are length and digest of the sender's policy chain (consensus.ChainDigest).
	Steps int    `json:"steps"`
	Chain string `json:"chain"`
	// Heard are the statements that act at the sender and are not ordered yet.
	Heard []consensus.StatementID `json:"heard"`
	// Published and Root are size and root of the newest published checkpoint that the sender has.
	Published uint64 `json:"published"`
	Root      string `json:"root,omitempty"`

	// Policy are steps of the chain from number From on, Statements envelopes, Checkpoint the
	// sender's newest, where the receiver's is another.
	From       int      `json:"from"`
	Policy     [][]byte `json:"policy"`
	Statements [][]byte `json:"statements"`
	Checkpoint []byte   `json:"checkpoint,omitempty"`
}

func (m *gossipMessage) check() error {
	switch {
	case len(m.Heard) > consensus.MaxProvisional || len(m.Statements) > consensus.MaxProvisional || len(m.Policy) > maxGossipSteps:
		return fmt.Errorf("%d heard, %d statements, %d steps: %w", len(m.Heard), len(m.Statements), len(m.Policy), errMalformed)
	case m.Steps < 0 || m.Steps > consensus.MaxChain || m.From < 0 || m.From > consensus.MaxChain:
		return fmt.Errorf("%d steps from %d: %w", m.Steps, m.From, errMalformed)
	}
	return nil
}

// gossip is what this node knows about its peers' knowledge, and what they may still cost.
type gossip struct {
	mu      sync.Mutex
	peers   map[identity.PeerID]*gossiper // guarded by mu; a linked peer's, and any that owes
	refused map[[32]byte]struct{}         // guarded by mu; SHA-256 of bytes that did not verify
}

// gossiper is one peer.
type gossiper struct {
	heard     bool // it has said what it has
	has       gossipMessage
	known     map[consensus.StatementID]bool
	exchanges allowance
	faults    allowance
	shows     allowance // checkpoints
}

// allowance is a token bucket: of burst at first, then rate a second.
type allowance struct {
	tokens float64
	at     time.Time
}

func (a *allowance) left(now time.Time, burst, rate float64) bool {
	if a.at.IsZero() {
		a.tokens = burst
	} else {
		a.tokens = min(burst, a.tokens+rate*max(0, now.Sub(a.at).Seconds()))
	}
	a.at = now
	return a.tokens >= 1
}

func newGossip() *gossip {
	return &gossip{peers: map[identity.PeerID]*gossiper{}, refused: map[[32]byte]struct{}{}}
}

// of returns what is known about a peer. mu is held.
func (g *gossip) of(peer identity.PeerID) *gossiper {
	p := g.peers[peer]
	if p == nil {
		if len(g.peers) >= maxPeers {
			for other := range g.peers { // any: it is pulled from again, and may err anew
				delete(g.peers, other)
				break
			}
		}
		p = &gossiper{known: map[consensus.StatementID]bool{}}
		g.peers[peer] = p
	}
	return p
}

// admits reports whether a peer may open an exchange, and counts it.
func (g *gossip) admits(peer identity.PeerID, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.of(peer)
	if !p.faults.left(now, faultBurst, faultRate) || !p.exchanges.left(now, gossipBurst, gossipRate) {
		return false
	}
	p.exchanges.tokens--
	return true
}

// shown reports whether a peer may show a checkpoint, and counts it.
func (g *gossip) shown(peer identity.PeerID, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.of(peer)
	if !p.faults.left(now, faultBurst, faultRate) || !p.shows.left(now, checkpointBurst, checkpointRate) {
		return false
	}
	p.shows.tokens--
	return true
}

// listens reports whether a peer may err once more.
func (g *gossip) listens(peer identity.PeerID, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.of(peer).faults.left(now, faultBurst, faultRate)
}

// note remembers what a peer has said that it has.
func (g *gossip) note(peer identity.PeerID, m gossipMessage) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.of(peer)
	p.heard, p.has = true, gossipMessage{Incarnation: m.Incarnation, Steps: m.Steps, Chain: m.Chain, Published: m.Published, Root: m.Root}
	clear(p.known)
	for _, id := range m.Heard {
		p.known[id] = true
	}
}

// fault counts a statement of a peer that did not verify. It reports whether it may err again.
func (g *gossip) fault(peer identity.PeerID, raw []byte, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.refused) >= maxRefused {
		clear(g.refused)
	}
	g.refused[sha256.Sum256(raw)] = struct{}{}
	p := g.of(peer)
	if p.faults.left(now, faultBurst, faultRate) {
		p.faults.tokens--
	}
	return p.faults.tokens >= 1
}

// bad reports whether these bytes did not verify before.
func (g *gossip) bad(raw []byte) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, bad := g.refused[sha256.Sum256(raw)]
	return bad
}

// message returns what to say to a peer that has what its newest message said; nothing is
// known of one that has said nothing. news reports whether that is a statement that it has not;
// steps of the policy it asks for when it hears that this node's epoch is newer.
func (n *Node) message(peer identity.PeerID) (m gossipMessage, news bool) {
	g := n.gossip
	var has gossipMessage
	known := map[consensus.StatementID]bool{}
	g.mu.Lock()
	p := g.of(peer)
	heard := p.heard
	if heard {
		has = p.has
		for id := range p.known {
			known[id] = true
		}
	}
	g.mu.Unlock()
	m = gossipMessage{Heard: []consensus.StatementID{}, Policy: [][]byte{}, Statements: [][]byte{}}
	room := maxGossip
	n.machine.Agreed(func(s *consensus.State) {
		m.Incarnation, m.Steps, m.Chain = s.Incarnation(), s.Steps(), chainDigest(s, s.Steps())
		if heard && has.Incarnation == m.Incarnation && has.Steps < m.Steps && has.Chain == chainDigest(s, has.Steps) {
			m.From = has.Steps
			m.Policy = s.StepsFrom(has.Steps, room)
			m.Policy = m.Policy[:min(len(m.Policy), maxGossipSteps)]
		}
	})
	for _, raw := range m.Policy {
		room -= len(raw)
	}
	for _, h := range n.machine.Heard() {
		m.Heard = append(m.Heard, h.ID)
		if known[h.ID] || len(h.Raw) > room {
			continue
		}
		room -= len(h.Raw)
		m.Statements = append(m.Statements, h.Raw)
	}
	newest, _ := n.lastPublished()
	if newest.note != nil {
		m.Published, m.Root = newest.Size, newest.Root.String()
	}
	if heard && m.Root != has.Root && len(newest.note) <= room { // also to who has a larger one: it may be of another history
		m.Checkpoint = newest.note
	}
	return m, len(m.Statements) > 0
}

func chainDigest(s *consensus.State, steps int) string {
	d, _ := s.ChainDigest(steps)
	return hex.EncodeToString(d[:])
}

// gossipWith exchanges with the peer of a link until it is down.
func (n *Node) gossipWith(l mesh.Link) {
	pull := time.NewTimer(0)
	defer pull.Stop()
	for due := false; ; {
		news := n.machine.news.wait()
		if due || n.owes(l) { // asked for every link at every change: it must cost little
			further, err := n.gossipOnce(n.ctx, l)
			pause := n.gossipPause()
			switch {
			case err != nil:
				pause, news = gossipRetry, nil // not at once again
			case further:
				pause = gossipNext
			}
			due = false
			pull.Reset(pause)
		}
		select {
		case <-news:
		case <-pull.C:
			due = true
		case <-l.Done():
			return
		case <-n.ctx.Done():
			return
		}
	}
}

// owes reports whether this node has a statement for the peer of a link, or the peer a policy
// for this node.
func (n *Node) owes(l mesh.Link) bool {
	if l.PeerEpoch() > n.epoch() && n.followsPolicy() {
		return true
	}
	if !n.machine.Hears() {
		return false
	}
	_, news := n.message(l.Peer())
	return news
}

// gossipPause is the time to the next pull.
func (n *Node) gossipPause() time.Duration {
	every := gossipEvery
	if len(n.seatLinks()) == 0 && !n.holdsSeat(n.self) {
		every = gossipEveryUnseen
	}
	return every - every/5 + rand.N(2*every/5)
}

// followsPolicy reports whether this node takes policy steps from gossip: not a seat before
// its Bootstrap, which would take its own founding for a mesh that it came too late for.
func (n *Node) followsPolicy() bool { return !n.isSeat() || n.machine.Started() }

// gossipOnce is one exchange that this node opens. It reports whether that brought a part of a
// chain of which there is more.
func (n *Node) gossipOnce(ctx context.Context, l mesh.Link) (further bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, gossipWithin)
	defer cancel()
	s, err := n.open(ctx, l, n.protocols.gossip)
	if err != nil {
		return false, err
	}
	defer s.Close()
	ours, _ := n.message(l.Peer())
	if err := writeMessage(s, ours); err != nil {
		return false, err
	}
	var theirs gossipMessage
	if err := readMessage(s, &theirs); err != nil {
		return false, err
	}
	err = n.hearGossip(l.Peer(), theirs)
	have := n.policySteps()
	return have > ours.Steps && have < theirs.Steps, err
}

// handleGossip answers an exchange.
func (n *Node) handleGossip(l mesh.Link, s mesh.Stream) {
	defer s.Close()
	if !n.gossip.admits(l.Peer(), n.now()) {
		_ = s.Reset()
		return
	}
	_ = s.SetDeadline(n.now().Add(gossipWithin))
	var theirs gossipMessage
	if readMessage(s, &theirs) != nil {
		return
	}
	if err := n.hearGossip(l.Peer(), theirs); err != nil {
		_ = s.Reset()
		return
	}
	ours, _ := n.message(l.Peer())
	if writeMessage(s, ours) == nil {
		n.gossip.sent(l.Peer(), ours)
	}
}

// sent notes what a peer has been sent in an answer.
func (g *gossip) sent(peer identity.PeerID, m gossipMessage) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.of(peer)
	if m.From+len(m.Policy) == m.Steps {
		p.has.Steps, p.has.Chain = m.Steps, m.Chain
	}
	for _, id := range m.Heard {
		p.known[id] = true
	}
}

// hearGossip takes what a peer says: what it has, and what this node has not. An error means
// that the peer is not listened to for now.
func (n *Node) hearGossip(peer identity.PeerID, m gossipMessage) error {
	if err := m.check(); err != nil {
		return err
	}
	if !n.gossip.listens(peer, n.now()) {
		return fmt.Errorf("%s: too much that did not verify", peer.Short())
	}
	n.gossip.note(peer, m)
	if m.Incarnation != n.incarnation() {
		return nil
	}
	var deaf error
	fault := func(raw []byte, err error) {
		n.strangers.Info("gossip not believed", "from", n.nameOf(peer), "error", err)
		if !n.gossip.fault(peer, raw, n.now()) {
			deaf = fmt.Errorf("%s: too much that does not verify: %w", peer.Short(), err)
		}
	}
	if len(m.Policy) > 0 && n.followsPolicy() {
		if _, err := n.machine.Extend(m.From, m.Policy); err != nil && !errors.Is(err, errAnotherChain) && !consensus.Later(err) {
			fault(m.Policy[len(m.Policy)-1], err)
		}
	}
	for _, raw := range m.Statements {
		if deaf != nil || n.gossip.bad(raw) {
			continue
		}
		h, fresh, err := n.machine.Hear(raw)
		switch {
		case err != nil && !consensus.Later(err):
			fault(raw, err)
		case fresh:
			n.log.Info("in force before it is ordered", "from", n.nameOf(peer), "kind", h.Kind, "id", h.ID.String(), "says", h.Says)
		}
	}
	if len(m.Checkpoint) > 0 && deaf == nil && !n.gossip.bad(m.Checkpoint) {
		if err := n.hearCheckpoint(peer, m.Checkpoint); errors.Is(err, errForeign) {
			fault(m.Checkpoint, err)
		} else if err != nil {
			n.strangers.Info("checkpoint not accepted", "from", n.nameOf(peer), "error", err)
		}
	}
	return deaf
}

func (n *Node) policySteps() (steps int) {
	n.machine.Agreed(func(s *consensus.State) { steps = s.Steps() })
	return steps
}

// orderHeard has ordered what acts already, while this node leads: whoever submitted it may
// have met a mesh that could order nothing.
func (n *Node) orderHeard(ctx context.Context) {
	tick := time.NewTicker(orderHeardEvery)
	defer tick.Stop()
	waiting := map[consensus.StatementID]bool{} // seen a tick ago: whoever submitted it is faster
	refused := map[consensus.StatementID]time.Time{}
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		before := waiting
		waiting = map[consensus.StatementID]bool{}
		for _, h := range n.machine.Heard() {
			waiting[h.ID] = true
			if at, no := refused[h.ID]; no && n.now().Sub(at) < refusedAgain || !before[h.ID] || !n.leads() {
				continue
			}
			if isRefused(n.orderOne(ctx, h)) {
				refused[h.ID] = n.now()
			}
		}
		maps.DeleteFunc(refused, func(id consensus.StatementID, _ time.Time) bool { return !waiting[id] })
	}
}

func (n *Node) orderOne(ctx context.Context, h *consensus.Heard) error {
	command, err := consensus.NewCommand(h.Kind, h.Raw)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, orderHeardEvery)
		defer cancel()
		_, err = n.submit(ctx, command)
	}
	if err != nil {
		n.log.Warn("in force and not ordered", "kind", h.Kind, "id", h.ID.String(), "error", err)
	}
	return err
}

// orderHeardEvery is how often a leader has ordered what it has heard and nobody submitted.
const orderHeardEvery = 2 * time.Second

// refusedAgain is how long what was refused, a quota for one, is not ordered again.
const refusedAgain = time.Minute
