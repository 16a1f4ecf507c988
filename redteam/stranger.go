package redteam

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/attestmesh/meshnode/mesh/exchange"
)

// strangerAttacks need nothing but the address.
func strangerAttacks() []Attack {
	return []Attack{
		{Name: "quote-oracle", Tries: fmt.Sprintf("be %d strangers without a Credential and ask for evidence", strangers),
			Flaw: "make quotes for anybody, or tell strangers what it wants to see", run: quoteOracle},
		{Name: "public-credential", Tries: "present the target's own Credential, which is public, under another key",
			Flaw: "believe a Credential without comparing it with the connection's peer", run: publicCredential},
		{Name: "reflect-hello", Tries: "send the target's own HELLO_R back as HELLO_I", Flaw: "take its own words for a peer's",
			Needs: NeedSelf | NeedAccepted, run: reflectHello},
		{Name: "early-muxer", Tries: "start the muxer and open a stream right after TLS, without the exchange",
			Flaw: "serve streams before attestation", run: earlyMuxer},
		{Name: "garbage", Tries: "send what is no frame: HTTP, multistream, random bytes, zeros, at every stage",
			Flaw: "crash, or wait for ever", run: garbage},
		{Name: "oversize", Tries: "announce frames of up to 4 GiB", Flaw: "allocate what a stranger announces, or read on",
			run: oversize},
		{Name: "out-of-order", Tries: "send ATT, ACK, REFUSAL, HELLO_R or an unknown frame in place of HELLO_I", Flaw: "skip a step that was not done", run: outOfOrder},
	}
}

// quoteOracle: whoever has no Credential must get an empty REFUSAL and nothing else.
func quoteOracle(ctx context.Context, c *Campaign) Outcome {
	for i := range strangers {
		id := stranger()
		if i%2 == 1 {
			id.Credential = []byte(strings.Repeat("x", 600))
		}
		a := c.attempt(ctx, c.addrs[0], id, lies{})
		a.close()
		switch {
		case a.err == nil:
			return broken("stranger %d got the target's evidence", i+1)
		case a.heard != 0:
			return broken("stranger %d got %s", i+1, a.heard)
		case len(a.codes) > 0:
			o := broken("stranger %d was told %q", i+1, a.codes)
			o.Codes = a.codes
			return o
		case errors.Is(a.err, errNoConnection):
			return skipped("could not be tried: %v", a.err)
		}
	}
	return held("%d strangers: no evidence, no HELLO_R, no reason", strangers)
}

func publicCredential(ctx context.Context, c *Campaign) Outcome {
	if len(c.target.Credential) == 0 {
		return skipped("the target announces no Credential")
	}
	id := stranger()
	id.Credential = c.target.Credential
	a := c.attempt(ctx, c.addrs[0], id, lies{})
	if a.heard == exchange.FrameHelloR {
		a.close()
		return broken("the target answered HELLO_R to a thief of its own Credential")
	}
	return a.outcome("")
}

func reflectHello(ctx context.Context, c *Campaign) Outcome {
	first := c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{})
	first.close()
	if len(first.helloR) == 0 {
		return skipped("no HELLO_R to reflect: %v", first.err)
	}
	a := c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{rawHI: func([]byte) []byte { return first.helloR }})
	if a.heard == exchange.FrameHelloR {
		a.close()
		return broken("the target answered HELLO_R to its own HELLO")
	}
	return a.outcome("")
}

func earlyMuxer(ctx context.Context, c *Campaign) Outcome {
	conn, err := dialTLS(ctx, c.addrs[0], c.target.Peer, newKey())
	if err != nil {
		return skipped("could not be tried: %v", err)
	}
	defer conn.Close()
	speaks, err := speaksMuxer(ctx, conn)
	if speaks {
		return broken("a stream was answered before any attestation")
	}
	return held("no stream before the exchange: %v", err)
}

// garbage is sent to the socket, after the security protocol was agreed, and inside TLS.
func garbage(ctx context.Context, c *Campaign) Outcome {
	junk := map[string][]byte{
		"http":        []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"multistream": []byte("\x13/multistream/1.0.0\n\x07/tls/1.0.0\n"),
		"zeros":       make([]byte, 512),
		"ones":        []byte(strings.Repeat("\xff", 512)),
	}
	all := map[string]shot{}
	for name, data := range junk {
		for _, stage := range []string{"socket", "selected", "tls"} {
			all[stage+" "+name] = shot{stage, data}
		}
	}
	return c.shoot(ctx, all)
}

func oversize(ctx context.Context, c *Campaign) Outcome {
	all := map[string]shot{}
	for _, size := range []uint32{exchange.MaxHello + 1, 1 << 20, 1 << 31, 1<<32 - 1} {
		for _, kind := range []exchange.FrameType{exchange.FrameHelloI, exchange.FrameRefusal} {
			frame := append(binary.BigEndian.AppendUint32([]byte{byte(kind)}, size), make([]byte, 4096)...)
			all[fmt.Sprintf("%s of %d bytes", kind, size)] = shot{"tls", frame}
		}
	}
	return c.shoot(ctx, all)
}

func outOfOrder(ctx context.Context, c *Campaign) Outcome {
	all := map[string]shot{}
	for _, kind := range []exchange.FrameType{0, exchange.FrameHelloR, exchange.FrameAttI, exchange.FrameAttR, exchange.FrameAck,
		exchange.FrameAccept, exchange.FrameClose, 9, 10, 11, 255} {
		all[kind.String()] = shot{"tls", append([]byte{byte(kind), 0, 0, 0, 32}, make([]byte, 32)...)}
	}
	return c.shoot(ctx, all)
}

// shot is bytes to send once a stage is reached: the socket, the agreed security protocol,
// or TLS.
type shot struct {
	stage string
	data  []byte
}

// shoot sends all at once, each on a connection of its own.
func (c *Campaign) shoot(ctx context.Context, all map[string]shot) Outcome {
	var mu sync.Mutex
	var wg sync.WaitGroup
	tries := map[string]Outcome{}
	for name, s := range all {
		wg.Go(func() {
			o := c.send(ctx, s)
			mu.Lock()
			defer mu.Unlock()
			tries[name] = o
		})
	}
	wg.Wait()
	return summary(tries)
}

// send demands that the target answers with at most an empty refusal and hangs up in time.
func (c *Campaign) send(ctx context.Context, s shot) Outcome {
	var conn exchange.Conn
	var closer func() error
	switch s.stage {
	case "socket", "selected":
		dial := dialRaw
		if s.stage == "selected" {
			dial = dialSelected
		}
		raw, err := dial(ctx, c.addrs[0])
		if err != nil {
			return skipped("could not be tried: %v", err)
		}
		conn, closer = raw, raw.Close
	default:
		ch, err := dialTLS(ctx, c.addrs[0], c.target.Peer, newKey())
		if err != nil {
			return skipped("could not be tried: %v", err)
		}
		conn, closer = ch, ch.Close
	}
	defer closer()
	if _, err := conn.Write(s.data); err != nil {
		return held("closed at once")
	}
	got, hungUp := drained(conn, c.patience)
	switch {
	case !hungUp:
		return broken("still open after %s", c.patience)
	case s.stage == "tls" && len(got) > 0 && exchange.FrameType(got[0]) != exchange.FrameRefusal:
		return broken("answered with %s", exchange.FrameType(got[0]))
	}
	return held("closed after %d bytes", len(got))
}

// summary is worst with a short text where all held.
func summary(tries map[string]Outcome) Outcome {
	o := worst(tries)
	if o.Status == Held {
		o.Evidence = fmt.Sprintf("%d tries, each closed: %s", len(tries), strings.Join(sortedKeys(tries), ", "))
	}
	return o
}
