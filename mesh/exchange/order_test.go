package exchange_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/exchange"
	"github.com/attestmesh/meshnode/mesh/internal/mempipe"
	"github.com/attestmesh/meshnode/mesh/meshtest"
)

// raw plays bytes at an honest responder and expects it to give up; it returns its error.
func raw(t *testing.T, victimInitiates bool, script func(*mempipe.Pipe)) (took time.Duration, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		root := meshtest.NewRoot()
		victim, thief := root.NewNode(meshID, "alpha/n1"), root.NewNode(meshID, "beta/n1")
		defer victim.Close()
		defer thief.Close()
		a, b := mempipe.New()
		begun := time.Now()
		out := honest(a, victim, thief.Peer, victimInitiates, "one")
		script(b)
		o := <-out
		took = time.Since(begun)
		_ = b.Close()
		if o.session != nil || o.err == nil {
			t.Fatal("the victim accepted")
		}
		if victim.Attester.Quotes.Load() != 0 {
			t.Error("the victim made a quote")
		}
		err = o.err
	})
	return took, err
}

func TestFramesOutOfOrderAndSize(t *testing.T) {
	hello := func(n *mempipe.Pipe, kind exchange.FrameType) {
		_ = exchange.WriteFrame(n, kind, []byte{0x80})
	}
	header := func(kind exchange.FrameType, size uint32) []byte {
		return binary.BigEndian.AppendUint32([]byte{byte(kind)}, size)
	}
	for name, c := range map[string]struct {
		initiates bool
		script    func(*mempipe.Pipe)
		code      attest.Code // "": a lost connection
	}{
		"ATT before HELLO":     {false, func(p *mempipe.Pipe) { hello(p, exchange.FrameAttI) }, attest.CodeProtocol},
		"ACK before HELLO":     {false, func(p *mempipe.Pipe) { hello(p, exchange.FrameAck) }, attest.CodeProtocol},
		"HELLO of our role":    {true, func(p *mempipe.Pipe) { hello(p, exchange.FrameHelloI) }, attest.CodeProtocol},
		"HELLO_R to responder": {false, func(p *mempipe.Pipe) { hello(p, exchange.FrameHelloR) }, attest.CodeProtocol},
		"an empty HELLO":       {false, func(p *mempipe.Pipe) { _ = exchange.WriteFrame(p, exchange.FrameHelloI, nil) }, attest.CodeMalformed},
		"type 0":               {false, func(p *mempipe.Pipe) { hello(p, 0) }, attest.CodeProtocol},
		"type 255":             {false, func(p *mempipe.Pipe) { hello(p, 255) }, attest.CodeProtocol},
		"oversize by one":      {false, func(p *mempipe.Pipe) { _, _ = p.Write(header(exchange.FrameHelloI, exchange.MaxHello+1)) }, attest.CodeProtocol},
		"oversize":             {false, func(p *mempipe.Pipe) { _, _ = p.Write(header(exchange.FrameHelloI, 1<<32-1)) }, attest.CodeProtocol},
		"oversize REFUSAL":     {true, func(p *mempipe.Pipe) { _, _ = p.Write(header(exchange.FrameRefusal, 1<<32-1)) }, attest.CodeProtocol},
		"yamux":                {false, func(p *mempipe.Pipe) { _, _ = p.Write(make([]byte, 12)) }, attest.CodeProtocol},
		"multistream":          {false, func(p *mempipe.Pipe) { _, _ = p.Write([]byte("\x13/multistream/1.0.0\n")) }, attest.CodeProtocol},
		"truncated header":     {false, func(p *mempipe.Pipe) { _, _ = p.Write([]byte{1, 0}); _ = p.Close() }, ""},
		"truncated body": {false, func(p *mempipe.Pipe) {
			_, _ = p.Write(append(header(exchange.FrameHelloI, 100), 1, 2, 3))
			_ = p.Close()
		}, ""},
		"hung up": {true, func(p *mempipe.Pipe) { _ = p.Close() }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := raw(t, c.initiates, c.script)
			var r *exchange.Refusal
			if errors.As(err, &r) != (c.code != "") || r != nil && (r.Remote || r.Code() != c.code) {
				t.Errorf("got %v, want code %q", err, c.code)
			}
		})
	}
}

func TestSlowAndSilent(t *testing.T) {
	took, err := raw(t, false, func(*mempipe.Pipe) {})
	if took != exchange.HelloTimeout || err == nil {
		t.Errorf("a silent peer held us for %s: %v", took, err)
	}
	took, _ = raw(t, true, func(p *mempipe.Pipe) {
		for i := 0; i < 100; i++ { // a byte each 100 ms never finishes a HELLO in time
			if _, err := p.Write([]byte{2, 0, 0, 1, 0, 9, 9, 9}[min(i, 7) : min(i, 7)+1]); err != nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
	if took > exchange.HelloTimeout+time.Second {
		t.Errorf("a slow peer held us for %s", took)
	}
	// A verified peer that proves nothing is dropped after the total.
	synctest.Test(t, func(t *testing.T) {
		root := meshtest.NewRoot()
		victim, thief := root.NewNode(meshID, "alpha/n1"), root.NewNode(meshID, "beta/n1")
		defer victim.Close()
		defer thief.Close()
		a, b := mempipe.New()
		begun := time.Now()
		out := honest(a, victim, thief.Peer, false, "one")
		p := &puppet{t: t, conn: b, node: thief, peer: victim.Peer, initiator: true, export: exporter("one")}
		if err := p.hellos(); err != nil {
			t.Fatal(err)
		}
		if o := <-out; !errors.Is(o.err, os.ErrDeadlineExceeded) || time.Since(begun) != exchange.TotalTimeout {
			t.Errorf("%v after %s", o.err, time.Since(begun))
		}
		_ = b.Close()
	})
}

func TestContextEndsTheExchange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := meshtest.NewRoot()
		n := root.NewNode(meshID, "alpha/n1")
		defer n.Close()
		a, b := mempipe.New()
		defer b.Close()
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(time.Second, cancel)
		begun := time.Now()
		_, err := exchange.Run(ctx, a, exchange.Params{Purpose: attest.PurposeChannel, Self: n.Peer, Peer: root.NewPeer(), Initiator: true, MeshID: meshID,
			Credential: n.Credential, Prover: n.Quoter, Judge: n.Judge, Export: exporter("one")})
		if !errors.Is(err, context.Canceled) || time.Since(begun) != time.Second {
			t.Errorf("%v after %s", err, time.Since(begun))
		}
	})
}

// ACK must answer this conversation: one sent in advance, or another, is no acceptance.
func TestAcknowledgement(t *testing.T) {
	duel(t, true, func(p *puppet) {
		p.ack = func(b []byte) []byte { return make([]byte, len(b)) }
	}, wantRefused(attest.CodeNotBound, true))
	duel(t, true, func(p *puppet) { p.ack = func(b []byte) []byte { return b[:31] } },
		func(t *testing.T, _ *meshtest.Node, o outcome, _ error) {
			if o.session != nil || o.err == nil {
				t.Error("a short ACK was accepted")
			}
		})
	duel(t, true, func(p *puppet) { p.ack = func(b []byte) []byte { return append(b, 0) } }, wantRefused(attest.CodeProtocol, true))
}

// Whoever skips its half gets nothing.
func TestSkippedHalf(t *testing.T) {
	for name, c := range map[string]struct {
		initiates bool
		kind      exchange.FrameType
	}{"initiator sends ACK for ATT_I": {true, exchange.FrameAck}, "initiator repeats HELLO_I": {true, exchange.FrameHelloI},
		"initiator sends ATT_R": {true, exchange.FrameAttR}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				root := meshtest.NewRoot()
				victim, thief := root.NewNode(meshID, "alpha/n1"), root.NewNode(meshID, "beta/n1")
				defer victim.Close()
				defer thief.Close()
				a, b := mempipe.New()
				out := honest(a, victim, thief.Peer, !c.initiates, "one")
				p := &puppet{t: t, conn: b, node: thief, peer: victim.Peer, initiator: c.initiates, export: exporter("one")}
				if err := p.hellos(); err != nil {
					t.Fatal(err)
				}
				p.say(c.kind, make([]byte, 32))
				err := p.hungUp()
				_ = b.Close()
				wantRefused(attest.CodeProtocol, true)(t, victim, <-out, err)
			})
		})
	}
	// The responder takes the initiator's proof and says ACK instead of proving itself.
	synctest.Test(t, func(t *testing.T) {
		root := meshtest.NewRoot()
		victim, thief := root.NewNode(meshID, "alpha/n1"), root.NewNode(meshID, "beta/n1")
		defer victim.Close()
		defer thief.Close()
		a, b := mempipe.New()
		out := honest(a, victim, thief.Peer, true, "one")
		p := &puppet{t: t, conn: b, node: thief, peer: victim.Peer, export: exporter("one")}
		if err := p.hellos(); err != nil {
			t.Fatal(err)
		}
		if _, err := p.listen(exchange.FrameAttI); err != nil {
			t.Fatal(err)
		}
		p.say(exchange.FrameAck, make([]byte, 32))
		err := p.hungUp()
		_ = b.Close()
		wantRefused(attest.CodeProtocol, true)(t, victim, <-out, err)
	})
}

// badJudge is a Relying Party gone wrong; none of its slips may admit.
type badJudge struct {
	*meshtest.Judge
	credential func(exchange.Subject) exchange.Subject
	appraise   func(attest.Claims, attest.Result) (attest.Claims, attest.Result)
}

func (j badJudge) Credential(p identity.PeerID, raw []byte) (exchange.Subject, *attest.Reason) {
	s, r := j.Judge.Credential(p, raw)
	if j.credential != nil {
		s = j.credential(s)
	}
	return s, r
}

func (j badJudge) Appraise(ctx context.Context, s exchange.Subject, ev attest.Evidence, d attest.ReportData) (attest.Claims, attest.Result) {
	c, r := j.Judge.Appraise(ctx, s, ev, d)
	if j.appraise != nil {
		c, r = j.appraise(c, r)
	}
	return c, r
}

func TestJudgeFailsClosed(t *testing.T) {
	for name, c := range map[string]struct {
		judge badJudge
		code  attest.Code
	}{
		"zero result": {badJudge{appraise: func(c attest.Claims, _ attest.Result) (attest.Claims, attest.Result) {
			return c, attest.Result{}
		}}, attest.CodeUnavailable},
		"warning": {badJudge{appraise: func(c attest.Claims, r attest.Result) (attest.Claims, attest.Result) {
			r.Verdict = attest.VerdictWarning
			return c, r
		}}, attest.CodeUnavailable},
		"not genuine": {badJudge{appraise: func(c attest.Claims, r attest.Result) (attest.Claims, attest.Result) {
			return attest.Claims{Bound: true}, r
		}}, attest.CodeNotGenuine},
		"not bound": {badJudge{appraise: func(c attest.Claims, r attest.Result) (attest.Claims, attest.Result) {
			return attest.Claims{Genuine: true}, r
		}}, attest.CodeNotBound},
		"panic": {badJudge{appraise: func(attest.Claims, attest.Result) (attest.Claims, attest.Result) {
			panic(strings.Repeat("parser\x1b[2J", 100))
		}}, attest.CodeMalformed},
		"another's credential": {badJudge{credential: func(s exchange.Subject) exchange.Subject {
			s.Peer = "another"
			return s
		}}, attest.CodeWrongPeer},
		"zero subject": {badJudge{credential: func(exchange.Subject) exchange.Subject { return exchange.Subject{} }}, attest.CodeWrongPeer},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				root := meshtest.NewRoot()
				victim, other := root.NewNode(meshID, "alpha/n1"), root.NewNode(meshID, "beta/n1")
				defer victim.Close()
				defer other.Close()
				c.judge.Judge = victim.Judge
				a, b := mempipe.New()
				out := honest(b, other, victim.Peer, true, "one")
				_, err := exchange.Run(context.Background(), a, exchange.Params{Purpose: attest.PurposeChannel, Self: victim.Peer, Peer: other.Peer, MeshID: meshID,
					Epoch: 4, Credential: victim.Credential, Prover: victim.Quoter, Judge: c.judge, Export: exporter("one")})
				_ = a.Close()
				var r *exchange.Refusal
				if !errors.As(err, &r) || r.Remote || r.Code() != c.code {
					t.Errorf("got %v, want code %s", err, c.code)
				}
				if o := <-out; o.session != nil {
					t.Error("the other side got a session")
				}
			})
		})
	}
}

func TestParamsRefuseGaps(t *testing.T) {
	root := meshtest.NewRoot()
	n := root.NewNode(meshID, "alpha/n1")
	defer n.Close()
	full := exchange.Params{Purpose: attest.PurposeChannel, Self: n.Peer, Peer: root.NewPeer(), MeshID: meshID, Prover: n.Quoter, Judge: n.Judge, Export: exporter("one")}
	a, b := mempipe.New()
	_ = b.Close()
	for name, gap := range map[string]func(*exchange.Params){
		"self": func(p *exchange.Params) { p.Self = "" }, "peer": func(p *exchange.Params) { p.Peer = "x" },
		"mesh": func(p *exchange.Params) { p.MeshID = identity.MeshID{} }, "prover": func(p *exchange.Params) { p.Prover = nil },
		"judge": func(p *exchange.Params) { p.Judge = nil }, "exporter": func(p *exchange.Params) { p.Export = nil },
		"randomness": func(p *exchange.Params) { p.Rand = strings.NewReader("short") },
		"exporter's size": func(p *exchange.Params) {
			p.Export = func(string, []byte, int) ([]byte, error) { return nil, nil }
		},
	} {
		p := full
		gap(&p)
		if s, err := exchange.Run(context.Background(), a, p); err == nil || s != nil {
			t.Errorf("without %s: ran", name)
		}
	}
	_, _ = io.Copy(io.Discard, b)
}
