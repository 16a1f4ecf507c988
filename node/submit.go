package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/consensus/replica"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// RefusedError is a command that was ordered and changed nothing, or was refused before.
type RefusedError struct{ Reason attest.Reason }

// Error names code, got and want.
func (e *RefusedError) Error() string { return e.Reason.String() }

var errMalformed = errors.New("malformed")

func malformed(err error) error { return fmt.Errorf("%w: %w", errMalformed, err) }

// Times of the submission path.
const (
	submitRetry   = 300 * time.Millisecond // doubles every submitTries, three times
	submitTries   = 8
	forwardWithin = 10 * time.Second
)

// submitReply answers a forwarded command.
type submitReply struct {
	Applied Applied        `json:"applied"`
	Reason  *attest.Reason `json:"reason,omitempty"`
	Error   string         `json:"error,omitempty"`
}

// submit has a command ordered and returns its outcome; a refusal is a *RefusedError. It
// tries again until ctx ends while there is no leader to be found. Every command can be
// ordered twice without harm, so an outcome that got lost is asked for again.
func (n *Node) submit(ctx context.Context, c consensus.Command) (Applied, error) {
	raw, err := consensus.EncodeCommand(c)
	if err != nil {
		return Applied{}, malformed(err)
	}
	if err := n.machine.Check(raw); err != nil {
		if r := consensus.ReasonOf(err); r != nil {
			return Applied{}, &RefusedError{*r}
		}
		return Applied{}, malformed(err)
	}
	var last error
	waiting, granted := context.WithCancel(ctx)
	defer granted()
	n.tasks.Go(func() { n.petition(waiting, raw) })
	for attempt := 0; ; attempt++ {
		out, err := n.order(ctx, raw, true, true)
		var refused *RefusedError
		switch {
		case err == nil:
			return out, nil
		case errors.As(err, &refused):
			if attempt > 0 && refused.Reason.Code == attest.CodeReplayed {
				return out, nil // the first try had been ordered after all
			}
			return out, err
		}
		last = err
		select {
		case <-time.After(submitRetry << min(attempt/submitTries, 3)):
		case <-ctx.Done():
			return Applied{}, fmt.Errorf("not ordered: %w (%w)", ctx.Err(), last)
		}
	}
}

// order has raw ordered by this node if it leads, else by the leader as far as it is known. What
// is this node's own goes by another member if no seat is linked.
func (n *Node) order(ctx context.Context, raw []byte, forward, own bool) (Applied, error) {
	r := n.raft()
	if r != nil && r.State() == replica.Leader {
		if why := n.machine.overQuota(raw); why != nil {
			return Applied{Reason: why}, &RefusedError{*why}
		}
		res, err := r.Apply(ctx, raw)
		if err != nil {
			return Applied{}, err
		}
		out, ok := res.(Applied)
		switch {
		case !ok:
			return Applied{}, fmt.Errorf("the machine returned %T", res)
		case out.Err != nil:
			return Applied{}, out.Err
		case out.Reason != nil:
			return out, &RefusedError{*out.Reason}
		}
		return out, nil
	}
	if !forward {
		return Applied{}, replica.ErrNotLeader
	}
	link, err := n.towardsLeader(r)
	if errors.Is(err, errNoSeatLinked) && own {
		link, err = n.submitRelay(n.now())
	}
	if err != nil {
		return Applied{}, err
	}
	return n.forward(ctx, link, raw)
}

// towardsLeader returns the link to the leader, or from a node that hears none to some seat.
func (n *Node) towardsLeader(r *replica.Replica) (mesh.Link, error) {
	if r != nil && r.Hears(deafAfter) {
		leader := r.Leader()
		if leader == "" {
			return nil, errors.New("the seats have no leader at present")
		}
		link, ok := n.linkTo(leader)
		if !ok {
			return nil, fmt.Errorf("no link to the leader %s", n.nameOf(leader))
		}
		return link, nil
	}
	seats := n.seatLinks()
	if len(seats) == 0 {
		return nil, errNoSeatLinked
	}
	// Different seats at different tries: one may have lost its leader.
	return seats[int(n.now().UnixNano()/int64(submitRetry))%len(seats)], nil
}

func (n *Node) forward(ctx context.Context, link mesh.Link, raw []byte) (Applied, error) {
	ctx, cancel := context.WithTimeout(ctx, forwardWithin)
	defer cancel()
	s, err := n.open(ctx, link, n.protocols.submit)
	if err != nil {
		return Applied{}, err
	}
	defer s.Close()
	var reply submitReply
	if err := writeFrame(s, raw); err != nil {
		return Applied{}, err
	}
	if err := readMessage(s, &reply); err != nil {
		return Applied{}, err
	}
	switch {
	case reply.Reason != nil:
		return reply.Applied, &RefusedError{attest.NewReason(reply.Reason.Code, reply.Reason.Claim, reply.Reason.Got, reply.Reason.Want)}
	case reply.Error != "":
		return Applied{}, fmt.Errorf("%s: %s", n.nameOf(link.Peer()), reply.Error)
	}
	return reply.Applied, nil
}

// handleSubmitted orders a peer's command. A seat that does not lead passes it on once.
func (n *Node) handleSubmitted(link mesh.Link, s mesh.Stream) {
	defer s.Close()
	ctx, cancel := context.WithTimeout(n.ctx, forwardWithin)
	defer cancel()
	_ = s.SetDeadline(n.now().Add(forwardWithin))
	raw, err := readFrame(s, maxCommand)
	if err != nil {
		return
	}
	var reply submitReply
	fromSeat, org := slices.Contains(link.Session().Roles, RoleSeat), link.Session().Node.Org
	if why := n.refusals.over(org, fromSeat, n.now()); why != nil {
		reply.Reason = why
	} else if why := n.machine.overQuota(raw); why != nil { // before any signature is checked
		n.refusals.note(org, fromSeat, len(raw), n.now())
		reply.Reason = why
	} else if err := n.machine.Check(raw); err != nil {
		n.refusals.note(org, fromSeat, len(raw), n.now())
		reply.Error = err.Error()
	} else {
		// From a holder of a seat it comes because that believes we lead; no further hop.
		out, err := n.order(ctx, raw, !n.holdsSeat(link.Peer()), false)
		reply.Applied = out
		var refused *RefusedError
		if errors.As(err, &refused) {
			n.refusals.note(org, fromSeat, len(raw), n.now())
			reply.Reason = &refused.Reason
		} else if err != nil {
			reply.Error = err.Error()
		}
	}
	_ = writeMessage(s, reply)
}

// open opens a stream whose every read and write ends with ctx.
func (n *Node) open(ctx context.Context, link mesh.Link, p mesh.Protocol) (mesh.Stream, error) {
	s, err := link.Open(ctx, p)
	if err != nil {
		return nil, err
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = n.now().Add(forwardWithin)
	}
	_ = s.SetDeadline(deadline)
	return s, nil
}

// seatLinks returns the live links to nodes that hold a seat now, in a fixed order.
func (n *Node) seatLinks() []mesh.Link {
	var out []mesh.Link
	for _, l := range n.links() {
		if n.holdsSeat(l.Peer()) {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b mesh.Link) int { return compare(a.Peer(), b.Peer()) })
	return out
}

func compare(a, b identity.PeerID) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
