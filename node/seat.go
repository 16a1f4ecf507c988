package node

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/consensus/replica"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/transparency"
)

// The life of a seat, after the founding ceremony. An organisation's seat is vacant once its
// holder has rebooted, or was evicted, drained or retired; a node of the organisation with
// the role seat takes it, without a human step:
//
//	Credential and edges ordered ──► a candidate in the state of every node
//	  leader (reconcile.go): non-voter in the Raft configuration ──► the log is replicated here
//	  log key from a holder
//	  at a tick q that Raft has delivered here:
//	     Ready {q, digest of state, rounds and log} ──► every seat: is that my own digest at q?
//	     ◄── one signature each; ⌊n/2⌋+1 organisations' and its own are ordered as "ready"
//	holder in the state
//	  leader: voter; then the server of the boot before leaves the configuration
//
// A seat that does not hear Raft (cut off, or not added yet) follows the ordered commands as
// every member does: which peers may speak Raft to it is itself ordered, and all the others
// may have taken their seats since it last heard of any. What it follows and what Raft delivers
// later are compared command by command (machine.go).

const (
	// deafAfter is how long a seat may hear no leader before it follows others: longer than
	// an election takes.
	deafAfter     = 6 * time.Second
	deafEvery     = 500 * time.Millisecond
	confirmWithin = 3 * time.Second
	// logKeyWithin is how long a candidate waits for the log key.
	logKeyWithin = 30 * time.Second
	// maxMarks are the ticks at which digests are remembered: half a minute.
	maxMarks = 16
)

// seatRequest asks a holder of a seat for its signature, or for the log key.
type seatRequest struct {
	Ready  []byte `json:"ready,omitempty"` // the payload
	LogKey bool   `json:"log_key,omitempty"`
}

type seatReply struct {
	Ready  []byte `json:"ready,omitempty"`   // an envelope with one signature
	LogKey []byte `json:"log_key,omitempty"` // Ed25519 seed
	Error  string `json:"error,omitempty"`
}

// mark is what a node had after one command.
type mark struct {
	seq    uint64
	digest string
}

// mark remembers the digest after a tick while a seat is to be taken: every node does so
// after the same commands, since who is a candidate is ordered. m.mu is held.
func (m *Machine) mark(kind consensus.Kind) {
	if kind != consensus.KindTick || len(m.state.Candidates()) == 0 {
		return
	}
	m.marks = append(m.marks, mark{m.seq(), m.readyDigest()})
	if len(m.marks) > maxMarks {
		m.marks = slices.Delete(m.marks, 0, len(m.marks)-maxMarks)
	}
}

// readyDigest is the digest of a Ready: the SHA-256 of the length-prefixed "meshnode/v1
// ready", the digests of state and rounds, u64 log size and log root. m.mu is held.
func (m *Machine) readyDigest() string {
	state, ledger := m.state.Digest(), m.ledger.Digest()
	size, root := m.tree.Head()
	var buf []byte
	for _, part := range [][]byte{[]byte("meshnode/v1 ready"), state[:], ledger[:], binary.BigEndian.AppendUint64(nil, size), root[:]} {
		buf = attest.LengthPrefixed(buf, part)
	}
	sum := sha256.Sum256(buf)
	return hex.EncodeToString(sum[:])
}

// markAt returns the digest after command seq; false if it is not remembered. passed says
// that it never will be.
func (m *Machine) markAt(seq uint64) (digest string, ok, passed bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, k := range m.marks {
		if k.seq == seq {
			return k.digest, true, false
		}
	}
	return "", false, m.seq() >= seq
}

// newestMark returns the newest remembered digest whose command Raft has delivered here.
func (m *Machine) newestMark() (mark, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, k := range slices.Backward(m.marks) {
		if k.seq <= m.ordered {
			return k, true
		}
	}
	return mark{}, false
}

// followWhileDeaf follows the ordered commands whenever Raft does not deliver them.
func (n *Node) followWhileDeaf(ctx context.Context) {
	for ctx.Err() == nil {
		if n.deaf() {
			n.followUntil(ctx, func() bool { return !n.deaf() })
		}
		n.pause(ctx, deafEvery)
	}
}

// followUntil follows until heard says so.
func (n *Node) followUntil(ctx context.Context, heard func() bool) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { defer close(done); n.follow(ctx) }()
	for !heard() && ctx.Err() == nil {
		n.pause(ctx, deafEvery)
	}
	cancel()
	<-done
}

// pause returns at the next change, after d, or with ctx.
func (n *Node) pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-n.changed.wait():
	case <-timer.C:
	case <-ctx.Done():
	}
}

// deaf reports whether no leader delivers commands to this node.
func (n *Node) deaf() bool {
	r := n.raft()
	return r == nil || !r.Hears(deafAfter)
}

// startFounder starts this seat's Raft replica with the seats of b as its configuration.
func (n *Node) startFounder(b *consensus.Bootstrap, logKey ed25519.PrivateKey) error {
	for _, c := range b.Seats() {
		if c.Peer == n.self {
			return n.startReplica(b, c, logKey)
		}
	}
	return errors.New("this boot is no founder")
}

// startReplica starts Raft: a founder's with its log key, another's without one, to be added
// by a leader.
func (n *Node) startReplica(b *consensus.Bootstrap, own *consensus.Credential, logKey ed25519.PrivateKey) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.replica != nil {
		return errors.New("this seat runs already")
	}
	var servers []identity.PeerID
	for _, c := range b.Seats() {
		servers = append(servers, c.Peer)
	}
	w, err := transparency.NewWitness(n.machine.tree, n.genesis.Origin(b.Incarnation), b.LogPublic(),
		n.genesis.CosignerName(b.Incarnation, n.ref, own.BootSeq), n.keys.Cosigner)
	if err != nil {
		return err
	}
	founder := logKey != nil
	r, err := n.newReplica(servers, !founder)
	if err != nil {
		return err
	}
	n.replica, n.founder, n.logPrivate, n.cosignerWitness = r, founder, logKey, w
	tasks := []func(context.Context){n.reconcile, n.runClock, n.runPublisher, n.orderHeard, n.runStateLog, n.runSnapshots, n.runComparison, n.runPetitions, n.runOutside}
	if founder {
		tasks = append(tasks, func(ctx context.Context) { n.orderBootstrap(ctx, b) })
	}
	for _, task := range tasks {
		n.tasks.Go(func() { task(n.ctx) })
	}
	return nil
}

func (n *Node) isFounder() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.founder
}

// takeSeat starts Raft on a node with the role seat that is no founder, and does what is this
// node's part whenever its organisation's seat is vacant.
func (n *Node) takeSeat(ctx context.Context) {
	var asked time.Time // since when this node has asked for the log key
	for ; ctx.Err() == nil; n.pause(ctx, deafEvery) {
		var bootstrap *consensus.Bootstrap
		var candidate, holder, knows bool
		n.machine.View(func(s *consensus.State, _ *federated.Ledger) {
			bootstrap, candidate, knows = s.Bootstrap(), s.IsCandidate(n.self), s.Genesis().SeatsReturn()
			own, known := s.Node(n.self)
			holder = known && own.Seat
		})
		if bootstrap == nil || !knows {
			continue
		}
		if n.raft() == nil {
			own, err := consensus.ParseCredential(n.credential())
			if err == nil {
				err = n.startReplica(bootstrap, own, nil)
			}
			if err != nil {
				n.fail(fmt.Errorf("start raft: %w", err))
				return
			}
		}
		if !candidate && !holder {
			asked = time.Time{}
			continue
		}
		if n.logKey() == nil {
			if asked.IsZero() {
				asked = n.now()
			}
			n.askLogKey(ctx)
		}
		// Whoever takes a seat has the key before, so that it never ends with a seat that is
		// stopped. If nobody has it any more, votes are needed all the same.
		if candidate && (n.logKey() != nil || n.now().Sub(asked) > logKeyWithin) {
			n.becomeReady(ctx)
		}
	}
}

// becomeReady has the newest tick that Raft has delivered here confirmed, and the Ready ordered.
// That is this boot's start-up proof as well: seats of a majority of organisations have signed
// its new identity with a state that it has reached. So whoever holds a seat has proved itself,
// and seats that are started anew one after the other can never come to wait for each other.
func (n *Node) becomeReady(ctx context.Context) {
	worth := n.began()
	k, ok := n.machine.newestMark()
	if !ok || !n.raft().Hears(deafAfter) {
		return
	}
	r := consensus.Ready{MeshID: n.genesis.MeshID(), Incarnation: n.incarnation(), Node: n.ref, Peer: n.self, Seq: k.seq, Digest: k.digest}
	payload, err := r.Payload()
	if err != nil {
		n.log.Error("ready", "error", err)
		return
	}
	own, err := consensus.ConfirmReady(n.key, payload)
	if err != nil {
		n.log.Error("ready", "error", err)
		return
	}
	signed := gather(ctx, n.seatLinks(), confirmWithin, func(ctx context.Context, l mesh.Link) ([]byte, error) {
		reply, err := n.askSeat(ctx, l, seatRequest{Ready: payload})
		if err != nil {
			n.log.Info("not confirmed", "seat", n.nameOf(l.Peer()), "error", err)
		}
		return reply.Ready, err
	})
	var want int
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { want = s.ReadyQuorum() })
	if len(signed) < want {
		n.log.Info("not ready yet", "confirmed", len(signed), "needed", want)
		return
	}
	raw, err := consensus.Merge(append(signed, own)...)
	if err != nil {
		n.log.Warn("ready", "error", err)
		return
	}
	command, err := consensus.NewCommand(consensus.KindReady, raw)
	if err != nil {
		n.log.Error("ready", "error", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	if _, err := n.submit(ctx, command); err != nil {
		n.log.Warn("seat not taken", "error", err)
		return
	}
	n.log.Info("this node holds the seat of its organisation", "command", k.seq)
	n.completed(worth)
}

// askLogKey gets the key with which leaders sign checkpoints from a seat that has it.
func (n *Node) askLogKey(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, confirmWithin)
	defer cancel()
	var public ed25519.PublicKey
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { public = s.LogKey() })
	for _, l := range n.seatLinks() {
		reply, err := n.askSeat(ctx, l, seatRequest{LogKey: true})
		if err == nil && len(reply.LogKey) != ed25519.SeedSize {
			err = fmt.Errorf("a key of %d bytes", len(reply.LogKey))
		}
		if err != nil {
			n.log.Info("no log key", "seat", n.nameOf(l.Peer()), "error", err)
			continue
		}
		if key := ed25519.NewKeyFromSeed(reply.LogKey); public.Equal(key.Public()) {
			n.mu.Lock()
			n.logPrivate = key
			n.mu.Unlock()
			return
		}
		n.log.Warn("another key than the log's", "seat", n.nameOf(l.Peer()))
	}
}

func (n *Node) askSeat(ctx context.Context, l mesh.Link, req seatRequest) (seatReply, error) {
	s, err := n.open(ctx, l, n.protocols.seat)
	if err != nil {
		return seatReply{}, err
	}
	defer s.Close()
	if err := writeMessage(s, req); err != nil {
		return seatReply{}, err
	}
	var reply seatReply
	if err := readMessage(s, &reply); err != nil {
		return seatReply{}, err
	}
	if reply.Error != "" {
		return seatReply{}, errors.New(reply.Error)
	}
	return reply, nil
}

// handleSeat is a holder's part: it confirms what it has itself, and hands the log key to
// whoever holds a seat or may take a vacant one.
func (n *Node) handleSeat(link mesh.Link, s mesh.Stream) {
	defer s.Close()
	deadline := n.now().Add(confirmWithin)
	_ = s.SetDeadline(deadline)
	var req seatRequest
	if readMessage(s, &req) != nil {
		return
	}
	var reply seatReply
	var err error
	switch {
	case !n.holdsSeat(n.self):
		err = errors.New("this node holds no seat")
	case n.silent() != nil:
		err = errors.New("this node hears no ticks") // what it has may be old
	case req.Ready != nil:
		reply.Ready, err = n.confirm(link.Peer(), req.Ready, deadline)
	case req.LogKey && (n.holdsSeat(link.Peer()) || n.isCandidate(link.Peer())) && n.logKey() != nil:
		reply.LogKey = n.logKey().Seed()
	default:
		err = errors.New("nothing for this peer")
	}
	if err != nil {
		reply = seatReply{Error: err.Error()}
	}
	_ = writeMessage(s, reply)
}

// confirm signs a candidate's Ready if this seat had the same after the same command.
func (n *Node) confirm(peer identity.PeerID, payload []byte, deadline time.Time) ([]byte, error) {
	r, err := consensus.DecodeReady(payload)
	if err != nil {
		return nil, err
	}
	if r.Peer != peer || r.MeshID != n.genesis.MeshID() || r.Incarnation != n.incarnation() {
		return nil, errors.New("a Ready of another peer or mesh")
	}
	if !n.isCandidate(peer) {
		return nil, errors.New("no vacant seat that this peer may take")
	}
	ctx, cancel := context.WithDeadline(n.ctx, deadline)
	defer cancel()
	for {
		digest, ok, passed := n.machine.markAt(r.Seq)
		switch {
		case ok && digest != r.Digest:
			n.log.Error("a candidate for a seat has another state", "node", r.Node.String(), "command", r.Seq)
			return nil, fmt.Errorf("another state after command %d: %.16s here", r.Seq, digest)
		case ok:
			return consensus.ConfirmReady(n.key, payload)
		case passed:
			return nil, fmt.Errorf("what was after command %d is not remembered", r.Seq)
		case ctx.Err() != nil:
			return nil, fmt.Errorf("command %d has not come here yet", r.Seq)
		}
		n.pause(ctx, deafEvery)
	}
}

// seatJoining is the state of a seat whose place in the Raft configuration is not settled: it
// has no vote yet, or the server of the boot before is still counted. Until then one failure
// less can be borne than afterwards, so nothing else should be restarted.
const seatJoining = "joining"

// seatState says what a replica is, for people.
func (n *Node) seatState(r *replica.Replica) string {
	state := r.State()
	if state == replica.None {
		return string(state)
	}
	votes, others := false, false
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) {
		for _, server := range r.Servers() {
			ref, known := s.NodeOf(server.Peer)
			votes = votes || server.Peer == n.self && server.Voter
			others = others || server.Peer != n.self && server.Voter && known && ref.Org == n.ref.Org
		}
	})
	if !votes || others {
		return seatJoining
	}
	return string(state)
}
