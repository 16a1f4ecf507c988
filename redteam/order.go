package redteam

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

// orderAttacks skip their own half of the exchange, with a Credential that is accepted.
func orderAttacks() []Attack {
	const needs = NeedSelf | NeedAccepted
	return []Attack{
		{Name: "skip-evidence", Tries: "send ACK, HELLO_I, ATT_R, an empty ATT_I or nothing that is a frame in place of ATT_I",
			Flaw: "prove itself to somebody who proved nothing", Needs: needs, run: skipEvidence},
		{Name: "skip-ack", Tries: "start the muxer after ATT_R without ACK", Flaw: "serve streams before the peer has accepted it", Needs: needs, run: skipAck},
		{Name: "wrong-ack", Tries: "send an ACK of zeros, or of another conversation, and start the muxer", Flaw: "not compare what is acknowledged", Needs: needs, run: wrongAck},
		{Name: "oversize-evidence", Tries: "announce evidence above the limit", Flaw: "allocate it, or read on", Needs: needs, run: oversizeEvidence},
	}
}

func skipEvidence(ctx context.Context, c *Campaign) Outcome {
	tries := map[string]Outcome{}
	for name, say := range map[string]func(*speaker) (exchange.FrameType, []byte){
		"ACK":         func(*speaker) (exchange.FrameType, []byte) { return exchange.FrameAck, make([]byte, 32) },
		"HELLO_I":     func(s *speaker) (exchange.FrameType, []byte) { return exchange.FrameHelloI, s.helloI },
		"ATT_R":       func(*speaker) (exchange.FrameType, []byte) { return exchange.FrameAttR, make([]byte, 32) },
		"empty ATT_I": func(*speaker) (exchange.FrameType, []byte) { return exchange.FrameAttI, nil },
		"unknown":     func(*speaker) (exchange.FrameType, []byte) { return 200, make([]byte, 32) },
	} {
		tries[name] = c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{instead: say}).outcome(attest.CodeProtocol, attest.CodeMalformed)
	}
	return worst(tries)
}

// oversizeEvidence: the header alone must be refused; whoever reads on waits for 4 GiB.
func oversizeEvidence(ctx context.Context, c *Campaign) Outcome {
	a := c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{instead: func(s *speaker) (exchange.FrameType, []byte) {
		_, _ = s.conn.Write([]byte{byte(exchange.FrameAttI), 0xff, 0xff, 0xff, 0xff})
		return exchange.FrameAttI, nil
	}})
	if a.err != nil && !a.refused && a.took > promptly && a.heard == exchange.FrameHelloR {
		return broken("read on for %s", a.took.Round(time.Second))
	}
	return a.outcome(attest.CodeProtocol)
}

// skipAck: the target has proved itself and waits for ACK. A muxer that answers before it
// would serve a peer that never accepted the target.
func skipAck(ctx context.Context, c *Campaign) Outcome { return c.muxAfter(ctx, nil) }

func wrongAck(ctx context.Context, c *Campaign) Outcome {
	return worst(map[string]Outcome{
		"zeros":                c.muxAfter(ctx, func(*speaker) []byte { return make([]byte, 32) }),
		"another conversation": c.muxAfter(ctx, func(s *speaker) []byte { t := exchange.Transcript(s.ekm, s.bodies[:2]...); return t[:] }),
	})
}

// muxAfter is an honest attempt up to ATT_R that then sends ack, if any, and muxer frames.
func (c *Campaign) muxAfter(ctx context.Context, ack func(*speaker) []byte) Outcome {
	a := c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{})
	defer a.close()
	if a.err != nil {
		return skipped("the honest attempt failed: %v", a.err)
	}
	if ack != nil {
		if err := a.say(exchange.FrameAck, ack(a.speaker)); err != nil {
			return held("closed: %v", err)
		}
	}
	speaks, err := speaksMuxer(ctx, a.channel)
	if speaks {
		return broken("a stream was answered without a valid ACK")
	}
	return held("no stream: %v", err)
}

// fastAttacks claim the fast mode without a verdict behind it.
func fastAttacks() []Attack {
	return []Attack{
		{Name: "fast-unasked", Tries: "send the fast frame in place of evidence, which the target did not ask for",
			Flaw: "take a MAC under a key that it does not hold", Needs: NeedSelf | NeedAccepted, run: fastUnasked},
	}
}

func fastUnasked(ctx context.Context, c *Campaign) Outcome {
	tries := map[string]Outcome{}
	for _, n := range []int{0, 16, 32} {
		// A fresh connection of a peer that asks for the full exchange: the target's HELLO_R
		// may still name a key it holds about us, and then the MAC must be right.
		a := c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{instead: func(s *speaker) (exchange.FrameType, []byte) {
			t := exchange.Transcript(s.ekm, s.bodies...)
			return exchange.FrameFastI, fastBody(t, make([]byte, n))
		}})
		if a.err != nil && errors.Is(a.err, errNoConnection) {
			return skipped("could not be tried: %v", a.err)
		}
		tries[fmt.Sprintf("MAC of %d bytes", n)] = a.outcome(attest.CodeProtocol, attest.CodeMalformed, attest.CodeNotBound)
	}
	return worst(tries)
}

// fastBody is the body of a fast frame: transcript, MAC, runtime head.
func fastBody(transcript [32]byte, mac []byte) []byte {
	body, err := cbor.Marshal([][]byte{transcript[:], mac, make([]byte, 32)})
	if err != nil {
		return nil
	}
	return body
}
