package node

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// A member without a seat speaks no Raft. It follows the ordered commands from two seats at
// once, so that one that is cut off, frozen or evicted holds up nothing, and applies them
// to its own machine, which checks every signature of governance itself. Where no seat is
// linked it follows other members, who also pass on what it submits and its nonces (relay.go).
// What no signature covers (the order, the credentials, the rounds) it believes once a
// published checkpoint of a quorum of organisations has the root its own tree computed
// (publish.go). It serves nothing before seats of ⌊n/2⌋+1 organisations have signed its
// own nonce with an epoch and a log size that it has reached: a host that feeds a starting
// node an old mesh cannot get those signatures.

const (
	followBatch   = 64
	followLanes   = 2
	followSilence = 3 * consensus.TickInterval // every tick is a command
	followRelayed = time.Minute
	headWithin    = 2 * time.Second
	proveEvery    = 500 * time.Millisecond
	// Limits of heads that one peer may ask a seat for: it proves itself with two a second, and has one
	// signed for each batch of its clients' challenges (headPause).
	peerHeadRate  = 100
	peerHeadBurst = 200
)

type followRequest struct {
	From uint64 `json:"from"`
}

// follow applies commands from followLanes seats at a time until ctx ends.
func (n *Node) follow(ctx context.Context) {
	followed := &followedSeats{busy: map[identity.PeerID]bool{}}
	var lanes sync.WaitGroup
	for range followLanes {
		lanes.Go(func() { n.followLane(ctx, followed) })
	}
	lanes.Wait()
}

// followedSeats keeps two lanes from following one seat: it may be the one that is cut off.
type followedSeats struct {
	mu   sync.Mutex
	busy map[identity.PeerID]bool // guarded by mu
	next int                      // guarded by mu; where the next search begins
}

// take returns a link that no lane follows, or false.
func (f *followedSeats) take(links []mesh.Link) (mesh.Link, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for range links {
		f.next++
		if l := links[f.next%len(links)]; !f.busy[l.Peer()] {
			f.busy[l.Peer()] = true
			return l, true
		}
	}
	return nil, false
}

func (f *followedSeats) release(peer identity.PeerID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.busy, peer)
}

// followLane follows one seat after another.
func (n *Node) followLane(ctx context.Context, followed *followedSeats) {
	for ctx.Err() == nil {
		changed := n.changed.wait()
		links, relayed := n.seatLinks(), false
		if len(links) == 0 {
			// Before the first command no seat is known but by its Credential.
			links = slices.DeleteFunc(n.mesh.Links(), func(l mesh.Link) bool { return !slices.Contains(l.Session().Roles, RoleSeat) })
		}
		if len(links) == 0 {
			links, relayed = n.mesh.Links(), true
		}
		if link, ok := followed.take(links); ok {
			err := n.followFrom(ctx, link, relayed)
			if errors.Is(err, errNotKept) {
				err = n.catchUp(ctx, link)
			}
			followed.release(link.Peer())
			n.log.Info("stopped following", "node", n.nameOf(link.Peer()), "error", err)
		}
		select {
		case <-changed:
		case <-time.After(submitRetry):
		case <-ctx.Done():
		}
	}
}

// followFrom applies the commands that a peer sends. One that holds no seat is followed for a
// while only: there may be a link to a seat by then.
func (n *Node) followFrom(ctx context.Context, link mesh.Link, relayed bool) error {
	if relayed {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, followRelayed)
		defer cancel()
	}
	s, err := n.open(ctx, link, n.protocols.follow)
	if err != nil {
		return err
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	seq := n.machine.Seq()
	if err := writeMessage(s, followRequest{From: seq}); err != nil {
		return err
	}
	n.log.Info("following", "seat", n.nameOf(link.Peer()), "from", seq)
	for {
		_ = s.SetDeadline(n.now().Add(followSilence))
		raw, err := readFrame(s, consensus.MaxCommand)
		if err != nil {
			return err
		}
		if len(raw) == 0 {
			return errNotKept
		}
		if err := n.machine.Check(raw); err != nil {
			n.noteNewer(link.Peer(), err)
			return fmt.Errorf("%s sends a command that nobody signed: %w", n.nameOf(link.Peer()), err)
		}
		seq++
		if err := n.machine.follow(seq, raw); err != nil {
			return fmt.Errorf("%s: %w", n.nameOf(link.Peer()), err)
		}
	}
}

// handleFollow sends the ordered commands to a member for as long as the link lives.
func (n *Node) handleFollow(link mesh.Link, s mesh.Stream) {
	defer s.Close()
	_ = s.SetDeadline(n.now().Add(forwardWithin))
	var req followRequest
	if readMessage(s, &req) != nil {
		return
	}
	for seq := req.From; ; {
		changed := n.changed.wait()
		commands, kept := n.machine.Since(seq, followBatch)
		if !kept {
			_ = s.SetDeadline(n.now().Add(forwardWithin))
			_ = writeFrame(s, nil) // which is no command: errNotKept
			return
		}
		for _, raw := range commands {
			_ = s.SetDeadline(n.now().Add(forwardWithin))
			if writeFrame(s, raw) != nil {
				return
			}
			seq++
		}
		if seq < n.machine.Seq() {
			continue
		}
		select {
		case <-changed:
		case <-link.Done():
			return
		case <-n.ctx.Done():
			return
		}
	}
}

// Head is what a seat signs over a starting node's nonce: how far the mesh has come.
type Head = consensus.Head

type headRequest struct {
	Nonce []byte `json:"nonce"`
	// Relay asks a member without a seat for the heads of the seats that are linked to it.
	Relay bool `json:"relay,omitempty"`
}

type headReply struct {
	Head  []byte   `json:"head,omitempty"`
	Heads [][]byte `json:"heads,omitempty"` // of others, relayed
}

const nonceSize = 32

// prove gets the start-up proof, and a new one after every gap or when ordered time lags: it asks every linked seat to
// sign a fresh nonce until enough organisations name nothing that this node has not
// reached. A founder's first proof is the order of its Bootstrap.
func (n *Node) prove(ctx context.Context) {
	tick := time.NewTicker(proveEvery)
	defer tick.Stop()
	for {
		if n.machine.Started() && (!n.proven() || n.lags(maxStaleness/3)) && (!n.isFounder() || n.provenOnce()) {
			n.tryProof(ctx)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (n *Node) tryProof(ctx context.Context) {
	worth := n.began()
	nonce := make([]byte, nonceSize)
	_, _ = rand.Read(nonce)
	heads := gather(ctx, n.seatLinks(), headWithin, func(ctx context.Context, l mesh.Link) (orgHead, error) {
		return n.askHead(ctx, l, nonce)
	})
	reached := map[identity.OrgID]bool{}
	if len(heads) < n.quorum() {
		heads = append(heads, n.relayedHeads(ctx, nonce)...)
	}
	if n.holdsSeat(n.self) {
		reached[n.ref.Org] = true // its own head is what it has reached
	}
	for _, h := range heads {
		if n.reached(h.Head) {
			reached[h.org] = true
		}
	}
	if quorum := n.quorum(); quorum > 0 && len(reached) >= quorum {
		n.log.Info("start-up proof complete", "organisations", len(reached))
		n.completed(worth)
	}
}

type orgHead struct {
	Head
	org identity.OrgID
	raw []byte // as signed
}

// askHead has a seat sign a nonce.
func (n *Node) askHead(ctx context.Context, l mesh.Link, nonce []byte) (orgHead, error) {
	reply, err := n.requestHead(ctx, l, headRequest{Nonce: nonce})
	if err != nil {
		return orgHead{}, err
	}
	return n.readHead(reply.Head, l.Peer(), l.Session().Node.Org, nonce)
}

func (n *Node) requestHead(ctx context.Context, l mesh.Link, req headRequest) (reply headReply, err error) {
	s, err := n.open(ctx, l, n.protocols.head)
	if err != nil {
		return reply, err
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	if err := writeMessage(s, req); err != nil {
		return reply, err
	}
	err = readMessage(s, &reply)
	return reply, err
}

// readHead verifies a head that a seat has signed over a nonce.
func (n *Node) readHead(raw []byte, seat identity.PeerID, org identity.OrgID, nonce []byte) (orgHead, error) {
	env, err := envelope.Parse(raw)
	if err != nil {
		return orgHead{}, err
	}
	if err := env.VerifyPeer(seat); err != nil {
		return orgHead{}, err
	}
	st, err := envelope.Decode[Head](env.Payload, envelope.TypeHead)
	if err != nil {
		return orgHead{}, err
	}
	h := st.Predicate
	if h.Nonce != hex.EncodeToString(nonce) || h.MeshID != n.genesis.MeshID() || h.Incarnation != n.incarnation() {
		return orgHead{}, fmt.Errorf("%s signed another nonce or mesh", n.nameOf(seat))
	}
	return orgHead{h, org, raw}, nil
}

// handleHead signs this seat's head over a peer's nonce. A seat that has come through a gap
// signs too: any majority of organisations holds one that stored whatever was ordered, and if
// all waited for each other after an outage none would ever be fresh again. One that hears
// no ticks does not.
func (n *Node) handleHead(l mesh.Link, s mesh.Stream) {
	defer s.Close()
	_ = s.SetDeadline(n.now().Add(headWithin))
	var req headRequest
	if readMessage(s, &req) != nil || len(req.Nonce) != nonceSize {
		return
	}
	if req.Relay {
		n.relayHeads(l, s, req.Nonce)
		return
	}
	if !n.peerHeads.Allow(string(l.Peer()), n.now()) {
		_ = s.Reset()
		return
	}
	if !n.signsHeads() {
		return
	}
	_, raw, err := n.signHead(req.Nonce)
	if err != nil {
		n.log.Error("head", "error", err)
		return
	}
	_ = writeMessage(s, headReply{Head: raw})
}

// signsHeads reports whether this node is a seat that hears the mesh.
func (n *Node) signsHeads() bool { return n.provenOnce() && n.silent() == nil && n.holdsSeat(n.self) }

// signHead signs how far this node has come, over a nonce.
func (n *Node) signHead(nonce []byte) (Head, []byte, error) {
	size, root := n.machine.tree.Head()
	h := Head{MeshID: n.genesis.MeshID(), Incarnation: n.incarnation(), Nonce: hex.EncodeToString(nonce),
		Epoch: n.machine.Epoch(), Policy: n.policyDigest(), Tick: n.tickSeq(), Size: size, Root: root.String()}
	raw, err := signStatement(n.key, envelope.TypeHead, envelope.SubjectOf(n.ref.String(), []byte(n.self)), h)
	return h, raw, err
}

// reached reports whether this node has come as far as h: h's tick or a later one, the
// same policy, and h's root in its own tree at h's size.
func (n *Node) reached(h Head) bool {
	root, err := n.machine.tree.RootAt(h.Size)
	return err == nil && root.String() == h.Root && h.Policy == n.policyDigest() && h.Tick <= n.tickSeq()
}

func (n *Node) policyDigest() (hex string) {
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { hex = fmt.Sprintf("%x", s.PolicyDigest()) })
	return hex
}

func (n *Node) quorum() (q int) {
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { q = s.Quorum() })
	return q
}

// signStatement signs a Statement with this node's peer key.
func signStatement[P any](key ed25519.PrivateKey, predicateType string, subject envelope.Subject, predicate P) ([]byte, error) {
	signer, err := envelope.NewSigner(key)
	if err != nil {
		return nil, err
	}
	env, err := envelope.SignStatement(signer, predicateType, subject, predicate)
	if err != nil {
		return nil, err
	}
	return env.Marshal(), nil
}
