package exchange_test

import (
	"context"
	"crypto/sha256"
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

var meshID = identity.MeshID{1, 2, 3}

// exporter stands for TLS: both ends of one connection share secret, nobody else does.
func exporter(secret string) exchange.Exporter {
	return func(label string, context []byte, n int) ([]byte, error) {
		sum := sha256.Sum256([]byte(secret + "|" + label + "|" + string(context)))
		return sum[:n], nil
	}
}

// outcome is what Run returned.
type outcome struct {
	session *exchange.Session
	err     error
}

// honest runs the exchange for n and closes its end if it failed, as a caller must.
func honest(conn *mempipe.Pipe, n *meshtest.Node, peer identity.PeerID, initiator bool, secret string) <-chan outcome {
	out := make(chan outcome, 1)
	go func() {
		s, err := exchange.Run(context.Background(), conn, exchange.Params{Self: n.Peer, Peer: peer, Initiator: initiator,
			MeshID: meshID, Epoch: 4, Credential: n.Credential, Prover: n.Quoter, Judge: n.Judge, Export: exporter(secret)})
		if err != nil {
			_ = conn.Close()
		}
		out <- outcome{s, err}
	}()
	return out
}

// puppet is an attacker that holds a genuine node's key and Credential and speaks the
// protocol by hand. Its hooks change what it says; a nil hook says the truth.
type puppet struct {
	t         *testing.T
	conn      *mempipe.Pipe
	node      *meshtest.Node
	peer      identity.PeerID
	initiator bool
	export    exchange.Exporter

	hello  func(*exchange.Hello)
	binder func(*attest.Binder)
	proof  func(*attest.Proof)
	att    func(*exchange.Attestation)
	ack    func([]byte) []byte

	helloI, helloR, ekm []byte
	bodies              [][]byte
}

func (p *puppet) say(kind exchange.FrameType, body []byte) {
	_ = exchange.WriteFrame(p.conn, kind, body) // the victim may have hung up
	p.bodies = append(p.bodies, body)
}

func (p *puppet) listen(kind exchange.FrameType) ([]byte, error) {
	body, err := exchange.ReadFrame(p.conn, kind, exchange.MaxAttestation)
	p.bodies = append(p.bodies, body)
	return body, err
}

func (p *puppet) ownHello() []byte {
	h := exchange.Hello{Version: exchange.Version, MeshID: meshID, Epoch: 4, Nonce: [32]byte{9}, Kinds: attest.KindSim, Credential: p.node.Credential}
	if p.hello != nil {
		p.hello(&h)
	}
	body, err := h.Encode()
	if err != nil {
		p.t.Error(err)
	}
	return body
}

func (p *puppet) hellos() (err error) {
	if p.initiator {
		p.helloI = p.ownHello()
		p.say(exchange.FrameHelloI, p.helloI)
		p.helloR, err = p.listen(exchange.FrameHelloR)
	} else {
		if p.helloI, err = p.listen(exchange.FrameHelloI); err != nil {
			return err
		}
		p.helloR = p.ownHello()
		p.say(exchange.FrameHelloR, p.helloR)
	}
	if err == nil {
		p.ekm, err = exchange.EKM(p.export, p.helloI, p.helloR)
	}
	return err
}

func (p *puppet) ownBinder() attest.Binder {
	b := attest.Binder{Purpose: attest.PurposeChannel, Role: attest.RoleServer, MeshID: meshID, Attester: string(p.node.Peer),
		Verifier: string(p.peer), HelloI: p.helloI, HelloR: p.helloR, EKM: p.ekm}
	if p.initiator {
		b.Role = attest.RoleClient
	}
	if p.binder != nil {
		p.binder(&b)
	}
	return b
}

func (p *puppet) ownAttestation() []byte {
	proof, err := p.node.Quoter.Prove(context.Background(), p.ownBinder().Sum())
	if err != nil {
		p.t.Error(err)
	}
	if p.proof != nil {
		p.proof(&proof)
	}
	raw, err := proof.Evidence.Encode()
	if err != nil {
		p.t.Error(err)
	}
	a := exchange.Attestation{Transcript: exchange.Transcript(p.ekm, p.bodies...), Evidence: raw, RuntimeHead: proof.RuntimeHead, Inclusion: proof.Inclusion}
	if p.att != nil {
		p.att(&a)
	}
	body, err := a.Encode()
	if err != nil {
		p.t.Error(err)
	}
	return body
}

// play speaks the whole protocol and returns the error of the first frame it did not get.
func (p *puppet) play() error {
	if err := p.hellos(); err != nil {
		return err
	}
	if p.initiator {
		p.say(exchange.FrameAttI, p.ownAttestation())
		if _, err := p.listen(exchange.FrameAttR); err != nil {
			return err
		}
		t := exchange.Transcript(p.ekm, p.bodies...)
		ack := t[:]
		if p.ack != nil {
			ack = p.ack(ack)
		}
		p.say(exchange.FrameAck, ack)
		return p.hungUp()
	}
	if _, err := p.listen(exchange.FrameAttI); err != nil {
		return err
	}
	p.say(exchange.FrameAttR, p.ownAttestation())
	_, err := p.listen(exchange.FrameAck)
	return err
}

// hungUp returns the refusal after the last frame, or nil if the victim stays.
func (p *puppet) hungUp() error {
	_ = p.conn.SetDeadline(time.Now().Add(time.Minute))
	_, err := exchange.ReadFrame(p.conn, exchange.FrameAccept, 0)
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		return nil
	}
	return err
}

// duel runs a puppet, prepared by change, against an honest node inside a bubble.
func duel(t *testing.T, puppetInitiates bool, change func(*puppet), check func(*testing.T, *meshtest.Node, outcome, error)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		root := meshtest.NewRoot()
		victim, thief := root.NewNode(meshID, "alpha/n1"), root.NewNode(meshID, "beta/n1")
		defer victim.Close()
		defer thief.Close()
		a, b := mempipe.New()
		p := &puppet{t: t, conn: b, node: thief, peer: victim.Peer, initiator: puppetInitiates, export: exporter("one")}
		if change != nil {
			change(p)
		}
		out := honest(a, victim, thief.Peer, !puppetInitiates, "one")
		err := p.play()
		_ = b.Close()
		check(t, victim, <-out, err)
	})
}

// wantRefused checks that the victim refused with code and told it only to a verified peer.
func wantRefused(code attest.Code, told bool) func(*testing.T, *meshtest.Node, outcome, error) {
	return func(t *testing.T, _ *meshtest.Node, o outcome, err error) {
		t.Helper()
		var r *exchange.Refusal
		if o.session != nil || !errors.As(o.err, &r) || r.Remote || r.Code() != code {
			t.Fatalf("victim: session %v, error %v; want its refusal with code %s", o.session, o.err, code)
		}
		var refused *exchange.RefusedError
		if !errors.As(err, &refused) {
			t.Fatalf("attacker: %v, want a REFUSAL", err)
		}
		if told != (len(refused.Reasons) > 0) {
			t.Errorf("attacker was told %v", refused.Reasons)
		}
		if told && refused.Reasons[0].Code != code {
			t.Errorf("attacker was told %v, want code %s", refused.Reasons, code)
		}
	}
}

// The puppet that says the truth is accepted in both roles: the attacks below fail for
// their lie, not for clumsiness.
func TestPuppetIsAcceptedWhenHonest(t *testing.T) {
	for _, initiates := range []bool{true, false} {
		duel(t, initiates, nil, func(t *testing.T, _ *meshtest.Node, o outcome, err error) {
			if o.err != nil || o.session == nil || err != nil {
				t.Fatalf("initiates %v: victim %v, puppet %v", initiates, o.err, err)
			}
			if s := o.session; s.Node.String() != "beta/n1" || s.Initiator == initiates || s.PeerEpoch != 4 || !s.Result.Affirming() {
				t.Errorf("session %+v", s)
			}
		})
	}
}

// Every field of the binder matters: evidence bound to anything else is refused.
func TestBinderFields(t *testing.T) {
	other := string(meshtest.NewRoot().NewPeer())
	for name, change := range map[string]func(*attest.Binder){
		"purpose re-attest":       func(b *attest.Binder) { b.Purpose = attest.PurposeReattest },
		"purpose enrolment":       func(b *attest.Binder) { b.Purpose = attest.PurposeEnrolment },
		"role swapped":            func(b *attest.Binder) { b.Role = 3 - b.Role },
		"role dropped":            func(b *attest.Binder) { b.Role = 0 },
		"another mesh":            func(b *attest.Binder) { b.MeshID[0] ^= 1 },
		"another incarnation":     func(b *attest.Binder) { b.Incarnation++ },
		"another attester":        func(b *attest.Binder) { b.Attester = other },
		"attester dropped":        func(b *attest.Binder) { b.Attester = "" },
		"another verifier":        func(b *attest.Binder) { b.Verifier = other },
		"verifier dropped":        func(b *attest.Binder) { b.Verifier = "" },
		"ids swapped":             func(b *attest.Binder) { b.Attester, b.Verifier = b.Verifier, b.Attester },
		"another HELLO_I":         func(b *attest.Binder) { b.HelloI = append([]byte{0}, b.HelloI...) },
		"HELLO_I dropped":         func(b *attest.Binder) { b.HelloI = nil },
		"HELLO_R dropped":         func(b *attest.Binder) { b.HelloR = nil },
		"HELLOs swapped":          func(b *attest.Binder) { b.HelloI, b.HelloR = b.HelloR, b.HelloI },
		"exporter dropped":        func(b *attest.Binder) { b.EKM = nil },
		"another exporter":        func(b *attest.Binder) { b.EKM = make([]byte, 32) },
		"a certificate's binding": func(b *attest.Binder) { b.SPKIHash = make([]byte, 32) },
	} {
		t.Run(name, func(t *testing.T) {
			for _, initiates := range []bool{true, false} {
				duel(t, initiates, func(p *puppet) { p.binder = change }, wantRefused(attest.CodeNotBound, true))
			}
		})
	}
}

func TestEvidenceLies(t *testing.T) {
	foreign := func(p *attest.Proof) {
		ev, err := meshtest.NewRoot().NewAttester().Attest(context.Background(), attest.ReportData{})
		if err != nil {
			panic(err)
		}
		p.Evidence = ev
	}
	for name, c := range map[string]struct {
		change func(*puppet)
		code   attest.Code
	}{
		"foreign root":       {func(p *puppet) { p.proof = foreign }, attest.CodeNotGenuine},
		"another head":       {func(p *puppet) { p.att = func(a *exchange.Attestation) { a.RuntimeHead[5]++ } }, attest.CodeNotBound},
		"another transcript": {func(p *puppet) { p.att = func(a *exchange.Attestation) { a.Transcript[5]++ } }, attest.CodeNotBound},
		"another leaf": {func(p *puppet) {
			p.att = func(a *exchange.Attestation) {
				a.Inclusion = attest.Inclusion{Index: 1, Size: 2, Path: [][]byte{make([]byte, 32)}}
			}
		}, attest.CodeNotBound},
		"an empty tree": {func(p *puppet) { p.att = func(a *exchange.Attestation) { a.Inclusion = attest.Inclusion{} } }, attest.CodeNotBound},
		"a long path": {func(p *puppet) {
			p.att = func(a *exchange.Attestation) {
				for range 16 {
					a.Inclusion.Path = append(a.Inclusion.Path, make([]byte, 32))
				}
			}
		}, attest.CodeNotBound},
		"another kind": {func(p *puppet) { p.hello = func(h *exchange.Hello) { h.Kinds = attest.KindSEVSNP } }, attest.CodeProtocol},
		"garbage":      {func(p *puppet) { p.att = func(a *exchange.Attestation) { a.Evidence = []byte{0xff} } }, attest.CodeMalformed},
		"trailing byte": {func(p *puppet) {
			p.att = func(a *exchange.Attestation) { a.Evidence = append(a.Evidence, 0) }
		}, attest.CodeMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			for _, initiates := range []bool{true, false} {
				duel(t, initiates, c.change, func(t *testing.T, victim *meshtest.Node, o outcome, err error) {
					wantRefused(c.code, true)(t, victim, o, err)
					if initiates && victim.Attester.Quotes.Load() != 0 {
						t.Error("the responder quoted for an initiator that had not proved itself")
					}
				})
			}
		})
	}
}

func TestHelloLies(t *testing.T) {
	for name, c := range map[string]struct {
		hello func(*exchange.Hello)
		code  attest.Code
	}{
		"another version":      {func(h *exchange.Hello) { h.Version = 2 }, attest.CodeWrongVersion},
		"version zero":         {func(h *exchange.Hello) { h.Version = 0 }, attest.CodeWrongVersion},
		"another mesh":         {func(h *exchange.Hello) { h.MeshID[0]++ }, attest.CodeWrongMesh},
		"another incarnation":  {func(h *exchange.Hello) { h.Incarnation = 1 }, attest.CodeWrongIncarnation},
		"zero nonce":           {func(h *exchange.Hello) { h.Nonce = [32]byte{} }, attest.CodeProtocol},
		"no kind":              {func(h *exchange.Hello) { h.Kinds = "" }, attest.CodeKindNotAllowed},
		"unsorted kinds":       {func(h *exchange.Hello) { h.Kinds = "vtpm,sevsnp" }, attest.CodeKindNotAllowed},
		"no credential":        {func(h *exchange.Hello) { h.Credential = nil }, attest.CodeNoCredential},
		"a flipped credential": {func(h *exchange.Hello) { h.Credential = append([]byte{1}, h.Credential[1:]...) }, attest.CodeNoCredential},
	} {
		t.Run(name, func(t *testing.T) {
			for _, initiates := range []bool{true, false} {
				duel(t, initiates, func(p *puppet) { p.hello = c.hello }, func(t *testing.T, victim *meshtest.Node, o outcome, err error) {
					wantRefused(c.code, false)(t, victim, o, err)
					if victim.Attester.Quotes.Load() != 0 || victim.Judge.Appraisals.Load() != 0 {
						t.Error("a quote or an appraisal was spent on a peer without a valid Credential")
					}
				})
			}
		})
	}
}

func TestReflection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := meshtest.NewRoot()
		victim, thief := root.NewNode(meshID, "alpha/n1"), root.NewNode(meshID, "beta/n1")
		defer victim.Close()
		defer thief.Close()
		// Its HELLO comes back as HELLO_R, with the thief's Credential in it.
		a, b := mempipe.New()
		out := honest(a, victim, thief.Peer, true, "one")
		body, err := exchange.ReadFrame(b, exchange.FrameHelloI, exchange.MaxHello)
		if err != nil {
			t.Fatal(err)
		}
		h, reason := exchange.DecodeHello(body)
		if reason != nil {
			t.Fatal(reason)
		}
		h.Credential = thief.Credential
		back, err := h.Encode()
		if err != nil {
			t.Fatal(err)
		}
		_ = exchange.WriteFrame(b, exchange.FrameHelloR, back)
		_, err = exchange.ReadFrame(b, exchange.FrameAttI, exchange.MaxAttestation)
		_ = b.Close()
		wantRefused(attest.CodeReflection, false)(t, victim, <-out, err)

		// Its evidence comes back as ATT_R, with the transcript made right.
		a, b = mempipe.New()
		p := &puppet{t: t, conn: b, node: thief, peer: victim.Peer, export: exporter("one")}
		out = honest(a, victim, thief.Peer, true, "one")
		if err := p.hellos(); err != nil {
			t.Fatal(err)
		}
		body, err = p.listen(exchange.FrameAttI)
		if err != nil {
			t.Fatal(err)
		}
		att, err := exchange.DecodeAttestation(body)
		if err != nil {
			t.Fatal(err)
		}
		att.Transcript = exchange.Transcript(p.ekm, p.bodies...)
		back, err = att.Encode()
		if err != nil {
			t.Fatal(err)
		}
		p.say(exchange.FrameAttR, back)
		_, err = p.listen(exchange.FrameAck)
		_ = b.Close()
		wantRefused(attest.CodeNotBound, true)(t, victim, <-out, err)

		// A connection to itself is no peer at all.
		a, b = mempipe.New()
		out = honest(a, victim, victim.Peer, true, "one")
		_, err = exchange.ReadFrame(b, exchange.FrameHelloI, exchange.MaxHello)
		_ = b.Close()
		wantRefused(attest.CodeReflection, false)(t, victim, <-out, err)
	})
}

// Recorded evidence, with the transcript of the new connection put in, is worth nothing.
func TestReplay(t *testing.T) {
	var recorded exchange.Attestation
	duel(t, true, func(p *puppet) {
		p.att = func(a *exchange.Attestation) { recorded = *a }
	}, func(t *testing.T, _ *meshtest.Node, o outcome, _ error) {
		if o.err != nil {
			t.Fatal(o.err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		root := meshtest.NewRoot()
		victim, thief := root.NewNode(meshID, "alpha/n1"), root.NewNode(meshID, "beta/n1")
		defer victim.Close()
		defer thief.Close()
		var first exchange.Attestation
		for i, code := range []attest.Code{"", attest.CodeNotBound} {
			a, b := mempipe.New()
			out := honest(a, victim, thief.Peer, false, "connection "+string(rune('a'+i)))
			p := &puppet{t: t, conn: b, node: thief, peer: victim.Peer, initiator: true, export: exporter("connection " + string(rune('a'+i)))}
			p.att = func(a *exchange.Attestation) {
				if code == "" {
					first = *a
					return
				}
				a.Evidence, a.Inclusion = first.Evidence, first.Inclusion
			}
			err := p.play()
			_ = b.Close()
			if code == "" {
				if o := <-out; o.err != nil {
					t.Fatal(o.err)
				}
				continue
			}
			wantRefused(code, true)(t, victim, <-out, err)
		}
	})
	if recorded.Evidence == nil {
		t.Fatal("nothing was recorded")
	}
}

// A relay ends the secure channel on both sides with stolen identities and forwards the
// frames of two genuine nodes; it even makes the transcripts right. The exporters differ.
func TestRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := meshtest.NewRoot()
		client, server := root.NewNode(meshID, "alpha/n1"), root.NewNode(meshID, "beta/n1")
		defer client.Close()
		defer server.Close()
		toClient, atClient := mempipe.New()
		toServer, atServer := mempipe.New()
		clientOut := honest(atClient, client, server.Peer, true, "left")
		serverOut := honest(atServer, server, client.Peer, false, "right")

		forward := func(from, to *mempipe.Pipe, kind exchange.FrameType) []byte {
			body, err := exchange.ReadFrame(from, kind, exchange.MaxAttestation)
			if err != nil {
				t.Fatalf("%s: %v", kind, err)
			}
			if kind != exchange.FrameAttI {
				_ = exchange.WriteFrame(to, kind, body)
			}
			return body
		}
		helloI := forward(toClient, toServer, exchange.FrameHelloI)
		helloR := forward(toServer, toClient, exchange.FrameHelloR)
		att, err := exchange.DecodeAttestation(forward(toClient, toServer, exchange.FrameAttI))
		if err != nil {
			t.Fatal(err)
		}
		ekm, err := exchange.EKM(exporter("right"), helloI, helloR)
		if err != nil {
			t.Fatal(err)
		}
		att.Transcript = exchange.Transcript(ekm, helloI, helloR)
		body, err := att.Encode()
		if err != nil {
			t.Fatal(err)
		}
		_ = exchange.WriteFrame(toServer, exchange.FrameAttI, body)
		_, err = exchange.ReadFrame(toServer, exchange.FrameAttR, exchange.MaxAttestation)
		_ = toServer.Close()
		wantRefused(attest.CodeNotBound, true)(t, server, <-serverOut, err)
		_ = toClient.Close()
		if o := <-clientOut; o.session != nil || o.err == nil {
			t.Errorf("the client got %v", o.session)
		}
		if server.Attester.Quotes.Load() != 0 {
			t.Error("the server made evidence for the relay")
		}
	})
}

// raw plays bytes at an honest responder and expects it to give up; it returns its error.
func raw(t *testing.T, victimInitiates bool, script func(*mempipe.Pipe)) (err error, took time.Duration) {
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
	return err, took
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
			err, _ := raw(t, c.initiates, c.script)
			var r *exchange.Refusal
			if errors.As(err, &r) != (c.code != "") || r != nil && (r.Remote || r.Code() != c.code) {
				t.Errorf("got %v, want code %q", err, c.code)
			}
		})
	}
}

func TestSlowAndSilent(t *testing.T) {
	err, took := raw(t, false, func(*mempipe.Pipe) {})
	if took != exchange.HelloTimeout || err == nil {
		t.Errorf("a silent peer held us for %s: %v", took, err)
	}
	_, took = raw(t, true, func(p *mempipe.Pipe) {
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
		_, err := exchange.Run(ctx, a, exchange.Params{Self: n.Peer, Peer: root.NewPeer(), Initiator: true, MeshID: meshID,
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
				_, err := exchange.Run(context.Background(), a, exchange.Params{Self: victim.Peer, Peer: other.Peer, MeshID: meshID,
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
	full := exchange.Params{Self: n.Peer, Peer: root.NewPeer(), MeshID: meshID, Prover: n.Quoter, Judge: n.Judge, Export: exporter("one")}
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
