package node

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
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
)

// The founding ceremony, once per incarnation and without a human step:
//
//	every seat attests every other
//	the seat of the smallest organisation id makes the log key and a Bootstrap payload
//	  ── offer {payload, log key} ──► each seat: are these the peers that I have attested?
//	                                  its own enroller signs the payload
//	  ◄── one signature each
//	  ── envelope with all signatures ──► each seat verifies all of them, has its enroller
//	                                  record the start, starts Raft with these servers
//	Bootstrap is the first command; its order is every founder's admission and start-up proof
//
// A seat that is gone before the start makes the attempt fail; the next counts one higher.
// An enroller that recorded a start signs no other attempt: a half-started mesh needs a
// Recovery, never a second history.

const (
	foundEvery   = 500 * time.Millisecond
	foundWithin  = 30 * time.Second
	startWithin  = 20 * time.Second
	maxAttempts  = 1 << 16
	foundVersion = 1
)

// foundOffer is the coordinator's first message, foundStart its second.
type foundOffer struct {
	Version int    `json:"version"`
	Payload []byte `json:"payload"`
	LogKey  []byte `json:"log_key"` // Ed25519 seed
}

type foundStart struct {
	Bootstrap []byte `json:"bootstrap"`
}

type foundReply struct {
	Envelope []byte         `json:"envelope,omitempty"`
	Reason   *attest.Reason `json:"reason,omitempty"`
	Error    string         `json:"error,omitempty"`
}

func (r foundReply) err(from identity.NodeRef) error {
	switch {
	case r.Reason != nil:
		return fmt.Errorf("%s: %w", from, &RefusedError{*r.Reason})
	case r.Error != "":
		return fmt.Errorf("%s: %s", from, r.Error)
	}
	return nil
}

// found takes part in the ceremony until this seat's Raft replica runs or the mesh turns
// out to be started already.
func (n *Node) found(ctx context.Context) {
	tick := time.NewTicker(foundEvery)
	defer tick.Stop()
	attempt := uint32(1)
	for n.raft() == nil && !n.meshStarted() && attempt < maxAttempts {
		n.adoptNewest(ctx)
		if peers, ok := n.founders(); ok && n.coordinates() && !n.holdsBack(ctx) {
			err := n.coordinate(ctx, attempt, peers)
			if err == nil {
				return
			}
			n.log.Warn("founding attempt failed", "attempt", attempt, "error", err)
			attempt++
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// meshStarted reports whether a peer has shown a Bootstrap: this seat came too late and is
// a member without a vote.
func (n *Node) meshStarted() (ok bool) {
	n.machine.Agreed(func(s *consensus.State) { ok = s.Started() })
	return ok
}

// founding returns the organisations whose seats found this incarnation.
func (n *Node) founding() (orgs []identity.OrgID) {
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { orgs = s.Founders() })
	return orgs
}

// coordinates reports whether this seat's organisation has the smallest id of the founders.
func (n *Node) coordinates() bool { return n.founding()[0] == n.ref.Org }

// founders returns a link to a seat of every other founding organisation, or false while one
// is missing.
func (n *Node) founders() (map[identity.OrgID]mesh.Link, bool) {
	founding := n.founding()
	links := map[identity.OrgID]mesh.Link{}
	for _, l := range n.links() {
		if s := l.Session(); slices.Contains(s.Roles, RoleSeat) && s.Node.Org != n.ref.Org && slices.Contains(founding, s.Node.Org) {
			links[s.Node.Org] = l
		}
	}
	return links, len(links) == len(founding)-1
}

// holdsBack reports whether the incarnation that is to be recovered from is alive.
func (n *Node) holdsBack(ctx context.Context) bool {
	why := n.majorityLives(ctx)
	n.mu.Lock()
	changed := why == nil != (n.heldBack == nil)
	n.heldBack = why
	n.mu.Unlock()
	if changed && why != nil {
		n.log.Error("not founding", "reason", why.String())
	}
	if changed {
		n.changed.notify()
	}
	return why != nil
}

// coordinate runs one attempt from the offer to the other seats' start.
func (n *Node) coordinate(ctx context.Context, attempt uint32, peers map[identity.OrgID]mesh.Link) error {
	ctx, cancel := context.WithTimeout(ctx, foundWithin)
	defer cancel()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	credentials := [][]byte{n.credential()}
	for _, l := range peers {
		credentials = append(credentials, l.Session().Credential)
	}
	var payload []byte
	now := n.time()
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) {
		payload, err = s.NewBootstrap(attempt, credentials, public, now)
	})
	if err != nil {
		return err
	}
	own, err := n.enroller.SignBootstrap(ctx, payload)
	if err != nil {
		return err
	}
	streams := map[identity.OrgID]mesh.Stream{}
	defer func() {
		for _, s := range streams {
			s.Close()
		}
	}()
	signed, err := n.offer(ctx, foundOffer{foundVersion, payload, private.Seed()}, peers, streams)
	if err != nil {
		return err
	}
	bootstrap, err := consensus.Merge(append(signed, own)...)
	if err != nil {
		return err
	}
	if err := n.start(ctx, bootstrap, private); err != nil {
		return err
	}
	n.tellStart(bootstrap, peers, streams)
	return nil
}

// offer sends the offer to every other seat and returns their enrollers' signatures. The
// streams stay open for the start.
func (n *Node) offer(ctx context.Context, offer foundOffer, peers map[identity.OrgID]mesh.Link, streams map[identity.OrgID]mesh.Stream) ([][]byte, error) {
	for org, l := range peers {
		s, err := n.open(ctx, l, n.protocols.found)
		if err != nil {
			return nil, err
		}
		streams[org] = s
		if err := writeMessage(s, offer); err != nil {
			return nil, err
		}
	}
	var signed [][]byte
	for org, s := range streams {
		var reply foundReply
		if err := readMessage(s, &reply); err != nil {
			return nil, fmt.Errorf("%s: %w", org, err)
		}
		if err := reply.err(peers[org].Session().Node); err != nil {
			return nil, err
		}
		signed = append(signed, reply.Envelope)
	}
	return signed, nil
}

// tellStart sends the signed Bootstrap to every other seat. One that does not hear it
// leaves a mesh of one voter fewer; it cannot be taken back.
func (n *Node) tellStart(bootstrap []byte, peers map[identity.OrgID]mesh.Link, streams map[identity.OrgID]mesh.Stream) {
	for org, s := range streams {
		if err := writeMessage(s, foundStart{bootstrap}); err != nil {
			n.log.Warn("a founder did not hear the start", "organisation", org, "error", err)
			continue
		}
		var reply foundReply
		if err := errors.Join(readMessage(s, &reply), reply.err(peers[org].Session().Node)); err != nil {
			n.log.Warn("a founder did not start", "organisation", org, "error", err)
		}
	}
}

// handleFound is the other seats' part.
func (n *Node) handleFound(link mesh.Link, s mesh.Stream) {
	defer s.Close()
	ctx, cancel := context.WithTimeout(n.ctx, foundWithin)
	defer cancel()
	_ = s.SetDeadline(n.now().Add(foundWithin))
	var offer foundOffer
	if readMessage(s, &offer) != nil {
		return
	}
	envelope, err := n.considerOffer(ctx, link, offer)
	if err != nil {
		n.log.Warn("founding offer refused", "from", n.nameOf(link.Peer()), "error", err)
		_ = writeMessage(s, refusal(err))
		return
	}
	if writeMessage(s, foundReply{Envelope: envelope}) != nil {
		return
	}
	var start foundStart
	if readMessage(s, &start) != nil {
		return
	}
	if err := n.start(ctx, start.Bootstrap, ed25519.NewKeyFromSeed(offer.LogKey)); err != nil {
		n.log.Warn("not started", "error", err)
		_ = writeMessage(s, refusal(err))
		return
	}
	_ = writeMessage(s, foundReply{})
}

func refusal(err error) foundReply {
	var refused *RefusedError
	if errors.As(err, &refused) {
		return foundReply{Reason: &refused.Reason}
	}
	if r := consensus.ReasonOf(err); r != nil {
		return foundReply{Reason: r}
	}
	return foundReply{Error: err.Error()}
}

// considerOffer decides whether this seat takes part and returns its enroller's signature.
func (n *Node) considerOffer(ctx context.Context, link mesh.Link, offer foundOffer) ([]byte, error) {
	if offer.Version != foundVersion || len(offer.LogKey) != ed25519.SeedSize {
		return nil, &RefusedError{attest.NewReason(attest.CodeWrongVersion, "founding offer", fmt.Sprint(offer.Version), fmt.Sprint(foundVersion))}
	}
	if want := n.founding()[0]; link.Session().Node.Org != want {
		return nil, &RefusedError{attest.NewReason(attest.CodeProtocol, "coordinator", string(link.Session().Node.Org), string(want))}
	}
	if n.raft() != nil {
		return nil, &RefusedError{attest.NewReason(attest.CodeReplayed, "founding offer", "this seat has started", "one start per boot")}
	}
	now := n.time()
	var b *consensus.Bootstrap
	var err error
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { b, err = s.CheckBootstrap(offer.Payload, now) })
	if err != nil {
		return nil, err
	}
	if public := ed25519.NewKeyFromSeed(offer.LogKey).Public().(ed25519.PublicKey); !public.Equal(b.LogPublic()) {
		return nil, &RefusedError{attest.NewReason(attest.CodeProtocol, "log key", "another key than the payload names", "its private half")}
	}
	if n.holdsBack(ctx) {
		return nil, &RefusedError{*n.majorityReason()}
	}
	if err := n.waitSeats(ctx, b); err != nil {
		return nil, err
	}
	return n.enroller.SignBootstrap(ctx, offer.Payload)
}

// waitSeats waits until this node has itself attested every seat of b, under the very
// peer ids that b names.
func (n *Node) waitSeats(ctx context.Context, b *consensus.Bootstrap) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	for {
		changed := n.changed.wait()
		missing := slices.DeleteFunc(b.Seats(), func(c *consensus.Credential) bool {
			_, linked := n.linkTo(c.Peer)
			return linked || c.Peer == n.self
		})
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("no attested link to the seat %s", missing[0].Ref())
		}
	}
}

// start verifies the fully signed Bootstrap, has the enroller record it and starts Raft.
func (n *Node) start(ctx context.Context, bootstrap []byte, logKey ed25519.PrivateKey) error {
	now := n.time()
	var b *consensus.Bootstrap
	var err error
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { b, err = s.ParseBootstrap(bootstrap, now) })
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(b.Seats(), func(c *consensus.Credential) bool { return c.Peer == n.self }) {
		return &RefusedError{attest.NewReason(attest.CodeNotSeat, "bootstrap", "without this boot of "+n.ref.String(), "a seat for it")}
	}
	if err := n.enroller.Started(ctx, b.Attempt); err != nil {
		return err
	}
	n.log.Info("starting", "attempt", b.Attempt, "seats", len(b.Seats()))
	return n.startFounder(b, logKey)
}

// orderBootstrap makes the first leader order Bootstrap as the first command. Every seat
// knows it; whoever leads orders it, and a second order is refused by the machine.
func (n *Node) orderBootstrap(ctx context.Context, b *consensus.Bootstrap) {
	tick := time.NewTicker(foundEvery)
	defer tick.Stop()
	kind, first := consensus.KindBootstrap, n.genesis.Raw()
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) {
		if r := s.Recovery(); r != nil {
			kind, first = consensus.KindRecovery, r.Raw()
		}
	})
	command, err := consensus.NewCommand(kind, first, b.Raw())
	if err != nil {
		n.fail(fmt.Errorf("bootstrap: %w", err))
		return
	}
	for !n.machine.Started() {
		changed := n.changed.wait()
		if n.raft().State() == replica.Leader {
			ctx, cancel := context.WithTimeout(ctx, submitTimeout)
			_, err := n.submit(ctx, command)
			cancel()
			if err != nil && !isRefused(err) {
				n.log.Warn("bootstrap not ordered yet", "error", err)
			}
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
	n.log.Info("the mesh has started", "mesh", n.genesis.MeshID().String())
	n.completed(n.began())
}
