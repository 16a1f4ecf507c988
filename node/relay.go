package node

import (
	"context"
	"errors"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// A member need not be linked to a seat. Others, to whom seats are, pass on for it what no
// relay can forge: ordered commands (any node serves follow), published checkpoints and signed
// policy (gossip.go), its nonce to the seats and their heads back, and what it submits. One
// hop for what is asked, so that nothing goes in circles.

const (
	relayWithin = headWithin / 2 // a relay's own wait for the seats
	maxRelays   = 3              // members that are asked for heads at a time
)

var errNoSeatLinked = errors.New("no link to any seat")

// relays returns some links to members without a seat.
func (n *Node) relays() []mesh.Link {
	var out []mesh.Link
	for _, l := range n.links() { // in no order
		if len(out) < maxRelays && !n.holdsSeat(l.Peer()) {
			out = append(out, l)
		}
	}
	return out
}

// relayedHeads asks members for the heads of the seats that they are linked to.
func (n *Node) relayedHeads(ctx context.Context, nonce []byte) (out []orgHead) {
	var seats []consensus.Node
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { seats = s.Seats() })
	replies := gather(ctx, n.relays(), headWithin, func(ctx context.Context, l mesh.Link) (headReply, error) {
		return n.requestHead(ctx, l, headRequest{Nonce: nonce, Relay: true})
	})
	seen := map[identity.PeerID]bool{}
	for _, r := range replies {
		for _, raw := range r.Heads[:min(len(r.Heads), len(seats))] {
			for _, seat := range seats { // few: as many as organisations
				h, err := n.readHead(raw, seat.Peer, seat.Ref.Org, nonce)
				if err == nil && !seen[seat.Peer] {
					seen[seat.Peer] = true
					out = append(out, h)
				}
			}
		}
	}
	return out
}

// relayHeads has the seats that are linked to this node sign a peer's nonce.
func (n *Node) relayHeads(l mesh.Link, s mesh.Stream, nonce []byte) {
	if !n.gossip.admits(l.Peer(), n.now()) {
		_ = s.Reset()
		return
	}
	reply := headReply{Heads: [][]byte{}}
	for _, h := range gather(n.ctx, n.seatLinks(), relayWithin, func(ctx context.Context, l mesh.Link) (orgHead, error) {
		return n.askHead(ctx, l, nonce)
	}) {
		reply.Heads = append(reply.Heads, h.raw)
	}
	_ = writeMessage(s, reply)
}

// submitRelay returns the link over which a node without a link to a seat submits.
func (n *Node) submitRelay(now time.Time) (mesh.Link, error) {
	relays := n.relays()
	if len(relays) == 0 {
		return nil, errNoSeatLinked
	}
	return relays[int(now.UnixNano()/int64(submitRetry))%len(relays)], nil
}
