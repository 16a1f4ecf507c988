// Package exchange is the mutual attestation handshake: what two peers say to each other on
// a freshly secured connection before it may carry anything else. It needs an ordered byte
// stream, the peer id that the stream authenticated and the stream's keying-material
// exporter; it knows no libp2p, opens nothing and starts no goroutine of its own.
//
// # Frames
//
//	frame = type u8 | length u32 big-endian | body
//
//	1 HELLO_I   2 HELLO_R   ≤ 4 KiB                      in order; the initiator
//	3 ATT_I     4 ATT_R     ≤ attest.MaxEvidence + 8 KiB  (the TLS client) proves
//	5 ACK                   32 bytes                      itself first
//	6 REFUSAL               ≤ 16 KiB, instead of any frame, then the connection ends
//
// Bodies are deterministic CBOR (RFC 8949 §4.2); a decoder re-encodes what it read and
// refuses what is not byte for byte the same, so trailing bytes, other widths and other
// orders do not exist. A length above the limit is refused before anything is allocated.
// Frames are read exactly: the byte after ACK belongs to whatever follows.
//
//	HELLO   = [version uint, mesh id bstr32, incarnation uint, epoch uint, nonce bstr32,
//	           kinds tstr, want bstr, credential bstr]
//	ATT     = [transcript bstr32, evidence bstr, runtime head bstr32, [index, size, [*bstr32]]]
//	ACK     = transcript, raw
//	REFUSAL = [*[code tstr, claim tstr, got tstr, want tstr]], at most 16
//
// version is exactly 1: there is no negotiation, so there is nothing to downgrade. want is
// empty and asks for the full exchange. epoch never refuses: each side judges under its own
// newest policy.
//
// # Binding
//
//	hellos     = SHA-256( lp(HELLO_I) lp(HELLO_R) )
//	EKM        = exporter("EXPORTER-meshnode-attest-v1", hellos, 32)
//	transcript = SHA-256( lp("meshnode-attest/v1 transcript") lp(EKM) lp(body)… ) over the
//	             bodies of all frames before this one, both directions, in order
//
// lp(x) is u32 big-endian length, then x. The binder over these is attest.Binder with
// purpose 1, and evidence carries the report data of attest.Proof. The transcript is no
// evidence: it tells an honest peer that its last frame was received and judged as sent, so
// that ATT_R is R's acceptance of I, and ACK is I's acceptance of R, sent by nobody in
// advance. The initiator returns after sending ACK, the responder after receiving it; so no
// side has a usable connection before both have accepted.
//
// # Refusals
//
// A peer's Credential is judged, by one signature check, before its evidence is even read
// and before a quote is made for it. Whoever has no valid Credential (another mesh,
// another incarnation, another version: nothing of theirs can be verified) gets a REFUSAL
// with an empty list. Afterwards a refusal names its reasons. The remedy is not on the
// wire: the reader looks it up by code, so no peer can put words into an operator's
// mouth.
//
// Errors: *Refusal if either side refused, else what the connection or the context said.
// The caller closes the connection on any error. HELLO must arrive within 2 s, everything
// within 10 s; a refusal lingers up to 500 ms so that it is read before the reset.
package exchange

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Conn is what the exchange runs over. SetDeadline is demanded because without it no
// timeout could be kept; a past deadline must end a blocked Read or Write at once.
type Conn interface {
	io.ReadWriter
	SetDeadline(time.Time) error
}

// Exporter derives n bytes of keying material of the secured connection, as RFC 8446 §7.5.
type Exporter func(label string, context []byte, n int) ([]byte, error)

// Prover makes proofs of this node; *attest.Quoter is one.
type Prover interface {
	Kind() string
	Prove(ctx context.Context, bind [32]byte) (attest.Proof, error)
}

// Params is what one exchange needs to know. Every field but Rand is required, Epoch and
// Incarnation may be 0.
type Params struct {
	Self        identity.PeerID
	Peer        identity.PeerID // as authenticated by the connection
	Initiator   bool            // this side is the TLS client
	MeshID      identity.MeshID
	Incarnation identity.Incarnation
	Epoch       identity.Epoch
	Credential  []byte
	Prover      Prover
	Judge       Judge
	Export      Exporter
	Rand        io.Reader // nil: crypto/rand
}

func (p *Params) validate() error {
	switch {
	case p.Self.Validate() != nil || p.Peer.Validate() != nil:
		return errors.New("exchange: both ends need the peer id of an Ed25519 key")
	case p.MeshID.IsZero():
		return errors.New("exchange: no mesh id")
	case p.Prover == nil || p.Judge == nil || p.Export == nil:
		return errors.New("exchange: prover, judge and exporter are required")
	}
	if p.Rand == nil {
		p.Rand = rand.Reader
	}
	return nil
}

// exchange is one run; it is owned by the goroutine that called Run.
type exchange struct {
	Params
	conn   Conn
	ctx    context.Context
	nonce  [NonceSize]byte
	helloI []byte
	helloR []byte
	ekm    []byte
	bodies [][]byte // all frame bodies so far, in order

	peer     Hello
	subject  Subject
	verified bool // the peer's Credential is valid: reasons may be told
}

// Run performs the exchange on conn. On success conn has no deadline and its next byte
// belongs to the caller; on any error the caller must close conn.
func Run(ctx context.Context, conn Conn, p Params) (s *Session, err error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, TotalTimeout)
	defer cancel()
	x := &exchange{Params: p, conn: conn, ctx: ctx}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	defer func() {
		// A parser that panics on a peer's bytes costs that peer its connection, not us the node.
		if r := recover(); r != nil {
			s, err = nil, x.refuse(attest.NewReason(attest.CodeMalformed, "exchange", fmt.Sprintf("panic: %.128v", r), "messages that parse"))
		}
	}()
	if s, err = x.run(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("exchange with %s: %w (%w)", p.Peer, ctx.Err(), err)
		}
		return nil, err
	}
	if !stop() {
		return nil, fmt.Errorf("exchange with %s: %w", p.Peer, ctx.Err())
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("exchange with %s: clear the deadline: %w", p.Peer, err)
	}
	return s, nil
}

// run is the list of steps of both sides.
func (x *exchange) run() (*Session, error) {
	if x.Peer == x.Self {
		return nil, x.refuse(attest.NewReason(attest.CodeReflection, "peer", "our own peer id", "another peer"))
	}
	if err := x.hellos(); err != nil {
		return nil, err
	}
	var err error
	if x.ekm, err = EKM(x.Export, x.helloI, x.helloR); err != nil {
		return nil, fmt.Errorf("exchange with %s: %w", x.Peer, err)
	}
	if err := x.deadline(TotalTimeout); err != nil {
		return nil, err
	}
	var claims attest.Claims
	var result attest.Result
	if x.Initiator {
		if err := x.sendProof(FrameAttI); err != nil {
			return nil, err
		}
		if claims, result, err = x.receiveProof(FrameAttR); err != nil {
			return nil, err
		}
		t := x.transcript()
		err = x.send(FrameAck, t[:])
	} else {
		if claims, result, err = x.receiveProof(FrameAttI); err != nil {
			return nil, err
		}
		if err := x.sendProof(FrameAttR); err != nil {
			return nil, err
		}
		err = x.receiveAck()
	}
	if err != nil {
		return nil, err
	}
	return &Session{Subject: x.subject, Claims: claims, Result: result, PeerEpoch: identity.Epoch(x.peer.Epoch),
		Initiator: x.Initiator, Established: time.Now()}, nil
}

// deadline bounds the next steps, and the whole by the context.
func (x *exchange) deadline(d time.Duration) error {
	at := time.Now().Add(d)
	if end, ok := x.ctx.Deadline(); ok && end.Before(at) {
		at = end
	}
	if err := x.conn.SetDeadline(at); err != nil {
		return fmt.Errorf("exchange with %s: set a deadline: %w", x.Peer, err)
	}
	// A cancellation that came first set a past deadline, which the line above undid.
	return x.ctx.Err()
}

// hellos exchanges and checks the HELLO frames; on success the peer's Credential is valid.
func (x *exchange) hellos() error {
	if err := x.deadline(HelloTimeout); err != nil {
		return err
	}
	if _, err := io.ReadFull(x.Rand, x.nonce[:]); err != nil {
		return fmt.Errorf("exchange with %s: nonce: %w", x.Peer, err)
	}
	own, err := Hello{Version: Version, MeshID: x.MeshID, Incarnation: uint64(x.Incarnation), Epoch: uint64(x.Epoch),
		Nonce: x.nonce, Kinds: x.Prover.Kind(), Credential: x.Credential}.Encode()
	if err != nil {
		return fmt.Errorf("exchange with %s: %w", x.Peer, err)
	}
	if x.Initiator {
		x.helloI = own
		if err := x.send(FrameHelloI, own); err != nil {
			return err
		}
		x.helloR, err = x.receiveHello(FrameHelloR)
		return err
	}
	x.helloR = own
	if x.helloI, err = x.receiveHello(FrameHelloI); err != nil {
		return err
	}
	return x.send(FrameHelloR, own)
}

func (x *exchange) receiveHello(want FrameType) ([]byte, error) {
	body, err := x.receive(want, MaxHello)
	if err != nil {
		return nil, err
	}
	hello, reason := DecodeHello(body)
	if reason == nil {
		reason = x.checkHello(hello)
	}
	if reason != nil {
		return nil, x.refuse(*reason)
	}
	x.peer = hello
	subject, reason := x.Judge.Credential(x.Peer, hello.Credential)
	if reason != nil {
		return nil, x.refuse(*reason)
	}
	if subject.Peer != x.Peer {
		return nil, x.refuse(attest.NewReason(attest.CodeWrongPeer, "credential", subject.Peer.String(), x.Peer.String()))
	}
	x.subject, x.verified = subject, true
	return body, nil
}

// checkHello compares what needs no signature.
func (x *exchange) checkHello(h Hello) *attest.Reason {
	refuse := func(code attest.Code, claim, got, want string) *attest.Reason {
		r := attest.NewReason(code, claim, got, want)
		return &r
	}
	switch {
	case h.MeshID != x.MeshID:
		return refuse(attest.CodeWrongMesh, "mesh_id", h.MeshID.String(), x.MeshID.String())
	case h.Incarnation != uint64(x.Incarnation):
		return refuse(attest.CodeWrongIncarnation, "incarnation", fmt.Sprint(h.Incarnation), fmt.Sprint(uint64(x.Incarnation)))
	case subtle.ConstantTimeCompare(h.Nonce[:], x.nonce[:]) == 1:
		return refuse(attest.CodeReflection, "nonce", "our own nonce", "a fresh nonce")
	}
	return nil
}

// binder returns the binder of one side's evidence.
func (x *exchange) binder(own bool) [32]byte {
	b := attest.Binder{Purpose: attest.PurposeChannel, Role: attest.RoleServer, MeshID: x.MeshID,
		Incarnation: uint64(x.Incarnation), Attester: string(x.Peer), Verifier: string(x.Self),
		HelloI: x.helloI, HelloR: x.helloR, EKM: x.ekm}
	if own == x.Initiator {
		b.Role = attest.RoleClient
	}
	if own {
		b.Attester, b.Verifier = b.Verifier, b.Attester
	}
	return b.Sum()
}

func (x *exchange) sendProof(kind FrameType) error {
	proof, err := x.Prover.Prove(x.ctx, x.binder(true))
	if err != nil {
		// Not the peer's fault; it is told so, and we are told why.
		_ = x.refuse(attest.NewReason(attest.CodeUnavailable, "attester", "no quote in time", "fresh evidence"))
		return fmt.Errorf("exchange with %s: quote: %w", x.Peer, err)
	}
	body, err := NewAttestation(x.transcript(), proof)
	if err != nil {
		return fmt.Errorf("exchange with %s: %w", x.Peer, err)
	}
	return x.send(kind, body)
}

func (x *exchange) receiveProof(want FrameType) (attest.Claims, attest.Result, error) {
	transcript := x.transcript()
	body, err := x.receive(want, MaxAttestation)
	if err != nil {
		return attest.Claims{}, attest.Result{}, err
	}
	claims, result, reasons := x.judge(transcript, body)
	if len(reasons) > 0 {
		return attest.Claims{}, attest.Result{}, x.refuse(reasons...)
	}
	return claims, result, nil
}

// judge decides about the peer's evidence; no reasons means accepted.
func (x *exchange) judge(transcript [32]byte, body []byte) (attest.Claims, attest.Result, []attest.Reason) {
	refuse := func(code attest.Code, claim, got, want string) (attest.Claims, attest.Result, []attest.Reason) {
		return attest.Claims{}, attest.Result{}, []attest.Reason{attest.NewReason(code, claim, got, want)}
	}
	att, err := DecodeAttestation(body)
	if err != nil {
		return refuse(attest.CodeMalformed, "attestation", err.Error(), "a canonical attestation")
	}
	if subtle.ConstantTimeCompare(att.Transcript[:], transcript[:]) != 1 {
		return refuse(attest.CodeNotBound, "transcript", "another conversation", "this conversation")
	}
	proof, err := att.Proof()
	if err != nil {
		return refuse(attest.CodeMalformed, "evidence", err.Error(), "canonical evidence")
	}
	if proof.Evidence.Kind != x.peer.Kinds {
		return refuse(attest.CodeProtocol, "kind", proof.Evidence.Kind, x.peer.Kinds)
	}
	data, err := proof.ReportData(x.binder(false), x.MeshID, string(x.Peer))
	if err != nil {
		return refuse(attest.CodeNotBound, "inclusion", err.Error(), "a proof of this connection's binder")
	}
	claims, result := x.Judge.Appraise(x.ctx, x.subject, proof.Evidence, data)
	switch {
	case !result.Affirming() && len(result.Reasons) > 0:
		return claims, result, result.Reasons
	case !result.Affirming():
		return refuse(attest.CodeUnavailable, "verdict", string(result.Verdict), string(attest.VerdictAffirming))
	case !claims.Genuine:
		return refuse(attest.CodeNotGenuine, "genuine", "false", "true")
	case !claims.Bound:
		return refuse(attest.CodeNotBound, "report_data", "not compared", "this connection's report data")
	}
	return claims, result, nil
}

func (x *exchange) receiveAck() error {
	t := x.transcript()
	body, err := x.receive(FrameAck, len(t))
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(body, t[:]) != 1 {
		return x.refuse(attest.NewReason(attest.CodeNotBound, "acknowledgement", "another conversation", "this conversation"))
	}
	return nil
}

func (x *exchange) transcript() [32]byte { return Transcript(x.ekm, x.bodies...) }

func (x *exchange) send(kind FrameType, body []byte) error {
	if err := WriteFrame(x.conn, kind, body); err != nil {
		// The peer may have refused and closed before it read us: its reasons matter more
		// than our broken pipe.
		if refusal := x.pendingRefusal(); refusal != nil {
			return refusal
		}
		return fmt.Errorf("exchange with %s: send %s: %w", x.Peer, kind, err)
	}
	x.bodies = append(x.bodies, body)
	return nil
}

func (x *exchange) pendingRefusal() error {
	_, err := ReadFrame(x.conn, FrameRefusal, MaxRefusal)
	var refused *RefusedError
	if errors.As(err, &refused) {
		return &Refusal{Peer: x.Peer, Remote: true, Reasons: refused.Reasons}
	}
	return nil
}

func (x *exchange) receive(want FrameType, limit int) ([]byte, error) {
	body, err := ReadFrame(x.conn, want, limit)
	var refused *RefusedError
	var bad *FrameError
	switch {
	case errors.As(err, &refused):
		return nil, &Refusal{Peer: x.Peer, Remote: true, Reasons: refused.Reasons}
	case errors.As(err, &bad):
		return nil, x.refuse(attest.NewReason(attest.CodeProtocol, "frame", bad.Got, bad.Want))
	case err != nil:
		return nil, fmt.Errorf("exchange with %s: receive %s: %w", x.Peer, want, err)
	}
	x.bodies = append(x.bodies, body)
	return body, nil
}

// refuse tells the peer, with reasons only if its Credential is valid, and returns the
// refusal with all of them. It waits a moment for the peer to hang up: closing a TCP
// connection with unread bytes resets it and would destroy the frame on its way.
func (x *exchange) refuse(reasons ...attest.Reason) error {
	refusal := &Refusal{Peer: x.Peer, Reasons: reasons}
	if x.ctx.Err() != nil || x.conn.SetDeadline(time.Now().Add(RefusalLinger)) != nil {
		return refusal
	}
	told := reasons
	if !x.verified {
		told = nil
	}
	if WriteFrame(x.conn, FrameRefusal, EncodeReasons(told)) == nil {
		_, _ = io.CopyN(io.Discard, x.conn, refusalDrain)
	}
	return refusal
}
