package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/mesh"
)

// maxStaleness is how long a node serves data without hearing a tick of the mesh. A node
// that is cut off cannot hear a revocation either; when it hears ticks again it has to prove
// anew that it is fresh (fresh.go).
const maxStaleness = 15 * time.Second

// sampleWithin bounds the leader's wait for a seat's clock.
const sampleWithin = time.Second

type sampleRequest struct {
	Seq uint64 `json:"seq"`
}

type sampleReply struct {
	Sample []byte `json:"sample"`
}

// runClock makes the leader order a tick of signed time samples every TickInterval.
func (n *Node) runClock(ctx context.Context) {
	tick := time.NewTicker(consensus.TickInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if n.leads() {
			n.orderTick(ctx)
		}
	}
}

func (n *Node) orderTick(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, consensus.TickInterval)
	defer cancel()
	seq := n.tickSeq() + 1
	own, err := n.sampleTime(seq)
	if err != nil {
		n.log.Error("no time sample", "error", err)
		return
	}
	samples := gather(ctx, n.seatLinks(), sampleWithin, func(ctx context.Context, l mesh.Link) ([]byte, error) {
		return n.askSample(ctx, l, seq)
	})
	samples = append(samples, own)
	command, err := consensus.NewCommand(consensus.KindTick, samples...)
	if err != nil {
		n.log.Error("tick", "error", err)
		return
	}
	if _, err := n.submit(ctx, command); err != nil {
		n.log.Warn("tick not ordered", "seq", seq, "error", err)
	}
}

func (n *Node) tickSeq() (seq uint64) {
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { seq = s.TickSeq() })
	return seq
}

func (n *Node) sampleTime(seq uint64) ([]byte, error) {
	return consensus.SignTimeSample(n.key, consensus.TimeSample{
		MeshID: n.genesis.MeshID(), Incarnation: n.incarnation(), Peer: n.self, Seq: seq, Time: n.wall()})
}

func (n *Node) askSample(ctx context.Context, l mesh.Link, seq uint64) ([]byte, error) {
	s, err := n.open(ctx, l, n.protocols.clock)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if err := writeMessage(s, sampleRequest{seq}); err != nil {
		return nil, err
	}
	var reply sampleReply
	if err := readMessage(s, &reply); err != nil {
		return nil, err
	}
	sample, err := consensus.ParseTimeSample(reply.Sample)
	if err != nil {
		return nil, err
	}
	if sample.Peer != l.Peer() || sample.Seq != seq {
		return nil, fmt.Errorf("a sample of %s for tick %d, want %s and %d", sample.Peer.Short(), sample.Seq, l.Peer().Short(), seq)
	}
	return reply.Sample, nil
}

// handleClock signs this seat's time for the next tick, or the one after where this seat
// has not applied the last yet; never for one further ahead, which could be hoarded.
func (n *Node) handleClock(_ mesh.Link, s mesh.Stream) {
	defer s.Close()
	_ = s.SetDeadline(n.now().Add(sampleWithin))
	var req sampleRequest
	if readMessage(s, &req) != nil {
		return
	}
	if next := n.tickSeq() + 1; req.Seq < next || req.Seq > next+1 {
		return
	}
	if sample, err := n.sampleTime(req.Seq); err == nil {
		_ = writeMessage(s, sampleReply{sample})
	}
}

// gather asks every link at the same time and returns the good answers; it waits at most
// within.
func gather[T any](ctx context.Context, links []mesh.Link, within time.Duration, ask func(context.Context, mesh.Link) (T, error)) []T {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var mu sync.Mutex
	var out []T
	var wg sync.WaitGroup
	for _, l := range links {
		wg.Go(func() {
			answer, err := ask(ctx, l)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, answer)
		})
	}
	wg.Wait()
	return out
}
