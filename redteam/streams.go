package redteam

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	mss "github.com/multiformats/go-multistream"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

// unknownStream is a protocol that no mesh has.
const unknownStream = "/meshnode/redteam/unknown/1"

// streamAttacks open streams that the session must not have.
func streamAttacks() []Attack {
	return []Attack{
		{Name: "seat-streams", Tries: "be accepted as an ordinary member, then open the streams of seats: Raft, founding, cosigning, clock",
			Flaw: "let any attested peer send Raft messages, which own its log", Needs: NeedSelf | NeedAccepted | NeedSeat, run: seatAttack},
		{Name: "unknown-stream", Tries: "be accepted, then open a stream of a protocol that no mesh has",
			Flaw: "hand it to some handler", Needs: NeedSelf | NeedAccepted, run: func(ctx context.Context, c *Campaign) Outcome {
				return c.openAll(ctx, []string{unknownStream}, attest.CodeProtocol)
			}},
	}
}

func seatAttack(ctx context.Context, c *Campaign) Outcome {
	return c.openAll(ctx, c.arsenal.SeatProtocols, attest.CodeNotSeat)
}

// openAll opens streams after an honest exchange; each must be refused with the code.
func (c *Campaign) openAll(ctx context.Context, protocols []string, want attest.Code) Outcome {
	a := c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{})
	defer a.close()
	if a.err != nil {
		return skipped("the honest attempt failed: %v", a.err)
	}
	if err := a.acknowledge(); err != nil {
		return skipped("the honest attempt failed: %v", err)
	}
	mux, err := yamux.DefaultTransport.NewConn(a.channel, false, nil)
	if err != nil {
		return skipped("muxer: %v", err)
	}
	defer mux.Close()
	tries := map[string]Outcome{}
	for _, p := range protocols {
		tries[p] = openOne(ctx, mux, p, want)
	}
	return worst(tries)
}

func openOne(ctx context.Context, mux network.MuxedConn, p string, want attest.Code) Outcome {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	s, err := mux.OpenStream(ctx)
	if err != nil {
		return held("no stream: %v", err)
	}
	defer s.Reset()
	deadline, _ := ctx.Deadline()
	_ = s.SetDeadline(deadline)
	if err := mss.SelectProtoOrFail(p, muxedStream{s}); err != nil {
		return held("not spoken: %v", err)
	}
	_, err = exchange.ReadFrame(s, exchange.FrameAccept, 0)
	var refused *exchange.RefusedError
	switch {
	case err == nil:
		return broken("admitted")
	case errors.As(err, &refused) && len(refused.Reasons) > 0:
		code := refused.Reasons[0].Code
		o := held("refused with %s", code)
		if code != want {
			o = skipped("refused with %s, which says nothing about this attack", code)
		}
		o.Codes = []attest.Code{code}
		return o
	}
	return held("reset: %v", err)
}

// muxedStream is a muxed stream as multistream-select wants one.
type muxedStream struct{ network.MuxedStream }

// streamSpeaks opens a protocol that every libp2p host has; nil if anything was answered.
func streamSpeaks(ctx context.Context, s network.Stream) error {
	deadline, _ := ctx.Deadline()
	_ = s.SetDeadline(deadline)
	err := mss.SelectProtoOrFail(anyProtocol, s)
	if err == nil || strings.Contains(err.Error(), "not supported") {
		return nil // it speaks, whether or not it knows this protocol
	}
	return fmt.Errorf("a stream that does not speak: %w", err)
}

// speaksMuxer starts a muxer on rw at once and reports whether the target answers a stream
// on it within a moment.
func speaksMuxer(ctx context.Context, ch *channel) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	_ = ch.SetDeadline(deadline)
	mux, err := yamux.DefaultTransport.NewConn(ch, false, nil)
	if err != nil {
		return false, err
	}
	defer mux.Close()
	s, err := mux.OpenStream(ctx)
	if err != nil {
		return false, err
	}
	defer s.Reset()
	_ = s.SetDeadline(deadline)
	err = mss.SelectProtoOrFail(anyProtocol, muxedStream{s})
	if err == nil || strings.Contains(err.Error(), "not supported") {
		return true, nil
	}
	return false, err
}

// drained reads what is left until the peer hangs up, and reports whether it did in time.
func drained(ch exchange.Conn, within time.Duration) (got []byte, hungUp bool) {
	_ = ch.SetDeadline(time.Now().Add(within))
	got, err := io.ReadAll(io.LimitReader(ch, maxAnswer))
	var timeout interface{ Timeout() bool }
	return got, !errors.As(err, &timeout) || !timeout.Timeout()
}
