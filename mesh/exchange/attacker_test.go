package exchange_test

import (
	"context"
	"crypto/sha256"
	"errors"
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

// honest runs the exchange for n and closes its end if it failed, as a caller must. with
// may change what it is given.
func honest(conn *mempipe.Pipe, n *meshtest.Node, peer identity.PeerID, initiator bool, secret string, with ...func(*exchange.Params)) <-chan outcome {
	out := make(chan outcome, 1)
	p := exchange.Params{Purpose: attest.PurposeChannel, Self: n.Peer, Peer: peer, Initiator: initiator,
		MeshID: meshID, Epoch: 4, Credential: n.Credential, Prover: n.Quoter, Judge: n.Judge, Export: exporter(secret)}
	for _, change := range with {
		change(&p)
	}
	go func() {
		s, err := exchange.Run(context.Background(), conn, p)
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
	fast   func(*puppet) []byte // the body of a FAST frame in place of ATT; nil: ATT

	asked               []byte // the victim's want
	helloI, helloR, ekm []byte
	bodies              [][]byte
}

func (p *puppet) say(kind exchange.FrameType, body []byte) {
	_ = exchange.WriteFrame(p.conn, kind, body) // the victim may have hung up
	p.bodies = append(p.bodies, body)
}

func (p *puppet) listen(kinds ...exchange.FrameType) ([]byte, error) {
	var expected []exchange.Expected
	for _, k := range kinds {
		expected = append(expected, exchange.Expected{Type: k, Limit: exchange.MaxAttestation})
	}
	_, body, err := exchange.ReadFrameOf(p.conn, expected...)
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
	if err != nil {
		return err
	}
	theirs := p.helloI
	if p.initiator {
		theirs = p.helloR
	}
	if h, reason := exchange.DecodeHello(theirs); reason == nil {
		p.asked = h.Want
	}
	p.ekm, err = exchange.EKM(p.export, p.helloI, p.helloR)
	return err
}

// prove sends the puppet's half.
func (p *puppet) prove(att, fast exchange.FrameType) {
	if p.fast == nil {
		p.say(att, p.ownAttestation())
		return
	}
	p.say(fast, p.fast(p))
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
		p.prove(exchange.FrameAttI, exchange.FrameFastI)
		if _, err := p.listen(exchange.FrameAttR, exchange.FrameFastR); err != nil {
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
	if _, err := p.listen(exchange.FrameAttI, exchange.FrameFastI); err != nil {
		return err
	}
	p.prove(exchange.FrameAttR, exchange.FrameFastR)
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
		"a flipped credential": {func(h *exchange.Hello) { h.Credential = append([]byte{h.Credential[0] ^ 1}, h.Credential[1:]...) }, attest.CodeNoCredential},
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
