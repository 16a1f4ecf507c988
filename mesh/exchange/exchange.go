package exchange

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"hash"
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
	// Head is the present head of this node's runtime event log.
	Head() [32]byte
	Prove(ctx context.Context, bind [32]byte) (attest.Proof, error)
}

// ErrNoQuote means that this node could not make evidence of itself in time.
var ErrNoQuote = errors.New("no quote")

// Params is what one exchange needs to know. Every field but Pairs, Rand and Admit is
// required, Epoch and Incarnation may be 0.
type Params struct {
	Purpose     attest.Purpose // PurposeChannel or PurposeReattest
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
	Pairs       *Pairs    // nil: never fast, and nothing is remembered
	Rand        io.Reader // nil: crypto/rand
	// Admit, if set, is asked once about a peer with a valid Credential, before a quote is made
	// or evidence is read for it. full says that either side is going to show evidence. A
	// reason refuses.
	Admit func(s Subject, full bool) *attest.Reason
}

func (p *Params) validate() error {
	switch {
	case p.Purpose != attest.PurposeChannel && p.Purpose != attest.PurposeReattest:
		return fmt.Errorf("exchange: purpose %d, want a channel or its re-attestation", p.Purpose)
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
	begun  time.Time // when our nonce was drawn
	nonce  [NonceSize]byte
	helloI []byte
	helloR []byte
	ekm    []byte
	said   hash.Hash // the transcript so far, from the exporter value on

	peer     Hello
	subject  Subject
	verified bool // the peer's Credential is valid: reasons may be told

	want  []byte   // of our HELLO
	asked *verdict // what want speaks of; nil: we want evidence
	shown *ownKey  // made of our own full proof, remembered if everything succeeds
	found *finding // about the peer
}

// finding is what the peer's ATT or FAST led to.
type finding struct {
	claims               attest.Claims
	result               attest.Result
	head                 [32]byte
	fast                 bool
	attestedAt, notAfter time.Time
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
	if err := x.remember(); err != nil {
		return nil, fmt.Errorf("exchange with %s: %w", p.Peer, err)
	}
	return s, nil
}

// run is the list of steps of both sides.
func (x *exchange) run() (*Session, error) {
	if x.Peer == x.Self {
		return nil, x.refuse(attest.NewReason(attest.CodeReflection, "peer", "our own peer id", "another peer"))
	}
	if err := x.greet(); err != nil {
		return nil, err
	}
	var err error
	if x.ekm, err = EKM(x.Export, x.helloI, x.helloR); err != nil {
		return nil, fmt.Errorf("exchange with %s: %w", x.Peer, err)
	}
	x.said = conversation(x.ekm, x.helloI, x.helloR)
	if err := x.deadline(TotalTimeout); err != nil {
		return nil, err
	}
	if x.Initiator {
		if err := x.sendProof(FrameAttI, FrameFastI); err != nil {
			return nil, err
		}
		if err := x.receiveProof(FrameAttR, FrameFastR); err != nil {
			return nil, err
		}
		t := x.transcript()
		err = x.send(FrameAck, t[:])
	} else {
		if err := x.receiveProof(FrameAttI, FrameFastI); err != nil {
			return nil, err
		}
		if err := x.sendProof(FrameAttR, FrameFastR); err != nil {
			return nil, err
		}
		err = x.receiveAck()
	}
	if err != nil {
		return nil, err
	}
	f := x.found
	if f.fast {
		// Our own quote and the peer's last frame took their time.
		if why := x.overtaken(x.asked); why != nil {
			return nil, &Refusal{Peer: x.Peer, Reasons: []attest.Reason{*why}}
		}
	}
	return &Session{Subject: x.subject, Claims: f.claims, Result: f.result, OwnEpoch: x.Epoch, PeerEpoch: identity.Epoch(x.peer.Epoch),
		Initiator: x.Initiator, Fast: f.fast, Established: time.Now(), AttestedAt: f.attestedAt, NotAfter: f.notAfter,
		RuntimeHead: f.head}, nil
}

// remember keeps the keys and the verdict of those halves that were full, both or none.
// It comes last: an exchange that broke off anywhere leaves nothing behind.
func (x *exchange) remember() error {
	if x.Pairs == nil {
		return nil
	}
	var v *verdict
	if f := x.found; !f.fast {
		key, err := NewPairKey(x.Export, x.role(false), x.helloI, x.helloR)
		if err != nil {
			return err
		}
		v = &verdict{scope: x.scope(), key: key, subject: x.subject, claims: f.claims, head: f.head, attestedAt: f.attestedAt, notAfter: f.notAfter}
	}
	if k := x.shown; k != nil {
		key, err := NewPairKey(x.Export, x.role(true), x.helloI, x.helloR)
		if err != nil {
			return err
		}
		k.key = key
	}
	x.Pairs.store(x.Peer, v, x.shown)
	return nil
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

// greet exchanges and checks the HELLO frames; on success the peer's Credential is valid.
func (x *exchange) greet() error {
	if err := x.deadline(HelloTimeout); err != nil {
		return err
	}
	if _, err := io.ReadFull(x.Rand, x.nonce[:]); err != nil {
		return fmt.Errorf("exchange with %s: nonce: %w", x.Peer, err)
	}
	x.begun = time.Now()
	var err error
	if x.Initiator {
		x.want = x.ask()
		if x.helloI, err = x.sendHello(FrameHelloI); err != nil {
			return err
		}
		x.helloR, err = x.receiveHello(FrameHelloR)
		return err
	}
	if x.helloI, err = x.receiveHello(FrameHelloI); err != nil {
		return err
	}
	x.helloR, err = x.sendHello(FrameHelloR)
	return err
}

func (x *exchange) sendHello(kind FrameType) ([]byte, error) {
	own, err := Hello{Version: Version, MeshID: x.MeshID, Incarnation: uint64(x.Incarnation), Epoch: uint64(x.Epoch),
		Nonce: x.nonce, Kinds: x.Prover.Kind(), Want: x.want, Credential: x.Credential}.Encode()
	if err != nil {
		return nil, fmt.Errorf("exchange with %s: %w", x.Peer, err)
	}
	return own, x.send(kind, own)
}

func (x *exchange) receiveHello(want FrameType) ([]byte, error) {
	_, body, err := x.receive(Expected{want, MaxHello})
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
	if !x.Initiator {
		x.want = x.ask()
	}
	if x.Admit != nil {
		// Their evidence costs a judgement, ours a quote.
		full := x.asked == nil || x.answer() == nil
		if reason := x.Admit(subject, full); reason != nil {
			return nil, x.refuse(*reason)
		}
	}
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
	case x.Purpose == attest.PurposeReattest && len(h.Want) != 0:
		return refuse(attest.CodeProtocol, "want", "the id of a pair key", "fresh evidence, always, on a connection that lives")
	}
	return nil
}

// role is one side's role in the TLS connection.
func (x *exchange) role(own bool) attest.Role {
	if own == x.Initiator {
		return attest.RoleClient
	}
	return attest.RoleServer
}

// binder returns the binder of one side's evidence.
func (x *exchange) binder(own bool) [32]byte {
	b := attest.Binder{Purpose: x.Purpose, Role: x.role(own), MeshID: x.MeshID,
		Incarnation: uint64(x.Incarnation), Attester: string(x.Peer), Verifier: string(x.Self),
		HelloI: x.helloI, HelloR: x.helloR, EKM: x.ekm}
	if own {
		b.Attester, b.Verifier = b.Verifier, b.Attester
	}
	return b.Sum()
}

// sendProof shows evidence, or a MAC if that is what the peer asked for and we can.
func (x *exchange) sendProof(full, fast FrameType) error {
	if k := x.answer(); k != nil {
		return x.sendFast(fast, k)
	}
	ctx, cancel := context.WithDeadline(x.ctx, x.begun.Add(TotalTimeout-quoteMargin))
	defer cancel()
	proof, err := x.Prover.Prove(ctx, x.binder(true))
	if err != nil {
		// Not the peer's fault; it is told so, and we are told why.
		_ = x.refuse(attest.NewReason(attest.CodeUnavailable, "attester", "no quote in time", "fresh evidence"))
		return fmt.Errorf("exchange with %s: %w: %w", x.Peer, ErrNoQuote, err)
	}
	body, err := NewAttestation(x.transcript(), proof)
	if err != nil {
		return fmt.Errorf("exchange with %s: %w", x.Peer, err)
	}
	x.shown = &ownKey{scope: x.scope(), head: proof.RuntimeHead, notAfter: x.begun.Add(x.Pairs.Window())}
	return x.send(full, body)
}

// receiveProof judges what the peer shows. A MAC that we did not ask for is no frame that
// may come.
func (x *exchange) receiveProof(full, fast FrameType) error {
	transcript := x.transcript()
	wants := []Expected{{full, MaxAttestation}}
	if x.asked != nil {
		wants = append(wants, Expected{fast, MaxFast})
	}
	kind, body, err := x.receive(wants...)
	if err != nil {
		return err
	}
	judge := x.judge
	if kind == fast {
		judge = x.judgeFast
	}
	found, reasons := judge(transcript, body)
	if len(reasons) > 0 {
		return x.refuse(reasons...)
	}
	x.found = found
	return nil
}

// judge decides about the peer's evidence; no reasons means accepted.
func (x *exchange) judge(transcript [32]byte, body []byte) (*finding, []attest.Reason) {
	refuse := func(code attest.Code, claim, got, want string) (*finding, []attest.Reason) {
		return nil, []attest.Reason{attest.NewReason(code, claim, got, want)}
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
	if !result.Affirming() && claims.Genuine && claims.Bound {
		// The peer itself has shown what is not wanted: what it showed before counts no more.
		x.Pairs.dropVerdict(x.Peer)
	}
	switch {
	case !result.Affirming() && len(result.Reasons) > 0:
		return nil, result.Reasons
	case !result.Affirming():
		return refuse(attest.CodeUnavailable, "verdict", string(result.Verdict), string(attest.VerdictAffirming))
	case !claims.Genuine:
		return refuse(attest.CodeNotGenuine, "genuine", "false", "true")
	case !claims.Bound:
		return refuse(attest.CodeNotBound, "report_data", "not compared", "this connection's report data")
	}
	return &finding{claims: claims, result: result, head: proof.RuntimeHead, attestedAt: x.begun, notAfter: x.begun.Add(x.Pairs.Window())}, nil
}

func (x *exchange) receiveAck() error {
	t := x.transcript()
	_, body, err := x.receive(Expected{FrameAck, len(t)})
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(body, t[:]) != 1 {
		return x.refuse(attest.NewReason(attest.CodeNotBound, "acknowledgement", "another conversation", "this conversation"))
	}
	return nil
}

func (x *exchange) transcript() [32]byte { return [32]byte(x.said.Sum(nil)) }

// note takes a frame's body into the transcript. The HELLOs, which come before there is an
// exporter value to begin it with, are taken in with that.
func (x *exchange) note(body []byte) {
	if x.said != nil {
		say(x.said, body)
	}
}

func (x *exchange) send(kind FrameType, body []byte) error {
	if err := WriteFrame(x.conn, kind, body); err != nil {
		// The peer may have refused and closed before it read us: its reasons matter more
		// than our broken pipe.
		if refusal := x.pendingRefusal(); refusal != nil {
			return refusal
		}
		return fmt.Errorf("exchange with %s: send %s: %w", x.Peer, kind, err)
	}
	x.note(body)
	return nil
}

func (x *exchange) pendingRefusal() error {
	_, err := ReadFrame(x.conn, FrameRefusal, MaxRefusal)
	var refused *RefusedError
	if errors.As(err, &refused) {
		return x.refused(refused)
	}
	return nil
}

// refused notes that the peer refuses us: what we could convince it with is used up.
func (x *exchange) refused(r *RefusedError) error {
	x.Pairs.dropKey(x.Peer)
	return &Refusal{Peer: x.Peer, Remote: true, Reasons: r.Reasons}
}

func (x *exchange) receive(wants ...Expected) (FrameType, []byte, error) {
	kind, body, err := ReadFrameOf(x.conn, wants...)
	var refused *RefusedError
	var bad *FrameError
	switch {
	case errors.As(err, &refused):
		return kind, nil, x.refused(refused)
	case errors.As(err, &bad):
		return kind, nil, x.refuse(attest.NewReason(attest.CodeProtocol, "frame", bad.Got, bad.Want))
	case err != nil:
		return kind, nil, fmt.Errorf("exchange with %s: receive %s: %w", x.Peer, wants[0].Type, err)
	}
	x.note(body)
	return kind, body, nil
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
