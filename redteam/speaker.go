package redteam

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

// lies are what a speaker says differently from an honest node; a nil one is the truth.
type lies struct {
	hello   func(*exchange.Hello)
	rawHI   func([]byte) []byte // HELLO_I as sent
	binder  func(*attest.Binder)
	maker   *Identity // makes the evidence in place of id
	proof   func(*attest.Proof)
	att     func(*exchange.Attestation)
	instead func(*speaker) (exchange.FrameType, []byte) // in place of ATT_I
}

// speaker speaks the initiator's half of the exchange by hand.
type speaker struct {
	conn   exchange.Conn
	export exchange.Exporter
	id     *Identity
	target *Target
	lies   lies

	helloI, helloR, ekm []byte
	bodies              [][]byte
	heard               exchange.FrameType // the target's last frame
	attR                []byte
}

// answer is how far an attempt came.
type answer struct {
	*speaker
	channel *channel // open if keep was asked for and all went well
	refused bool
	codes   []attest.Code
	err     error
	took    time.Duration
}

// errNoConnection marks an attempt that ended before anything was tried.
var errNoConnection = errors.New("no connection")

// attempt dials addr and speaks as id. On success, which is ATT_R, the connection stays open.
func (c *Campaign) attempt(ctx context.Context, addr string, id *Identity, l lies) answer {
	for {
		a := c.attemptOnce(ctx, addr, id, l)
		// busy says nothing about the attempt: the node asks for patience, so have some.
		if !a.refused || len(a.codes) == 0 || a.codes[0] != attest.CodeBusy || !pause(ctx, 3*time.Second) {
			return a
		}
	}
}

func (c *Campaign) attemptOnce(ctx context.Context, addr string, id *Identity, l lies) answer {
	begun := time.Now()
	if id == c.arsenal.Self {
		c.spent++
	}
	s := &speaker{id: id, target: &c.target, lies: l}
	conn, err := dialTLS(ctx, addr, c.target.Peer, id.Key)
	if err != nil {
		return answer{speaker: s, err: fmt.Errorf("%w: %w", errNoConnection, err), took: time.Since(begun)}
	}
	s.conn, s.export = conn, conn.export
	_ = conn.SetDeadline(time.Now().Add(answerTimeout))
	err = s.play(ctx)
	a := answer{speaker: s, err: err, took: time.Since(begun)}
	var refused *exchange.RefusedError
	if errors.As(err, &refused) {
		a.refused = true
		for _, r := range refused.Reasons {
			a.codes = append(a.codes, attest.Code(printable(string(r.Code))))
		}
	}
	if err != nil {
		_ = conn.Close()
		return a
	}
	a.channel = conn
	return a
}

// close ends the attempt's connection, if it is still open.
func (a answer) close() {
	if a.channel != nil {
		_ = a.channel.Close()
	}
}

func (s *speaker) say(kind exchange.FrameType, body []byte) error {
	if err := exchange.WriteFrame(s.conn, kind, body); err != nil {
		return fmt.Errorf("send %s: %w", kind, err)
	}
	s.bodies = append(s.bodies, body)
	return nil
}

func (s *speaker) listen(kind exchange.FrameType) ([]byte, error) {
	body, err := exchange.ReadFrame(s.conn, kind, exchange.MaxAttestation)
	if err != nil {
		return nil, err
	}
	s.heard = kind
	s.bodies = append(s.bodies, body)
	return body, nil
}

// play goes as far as ATT_R; acknowledge would accept it.
func (s *speaker) play(ctx context.Context) error {
	if err := s.hellos(); err != nil {
		return err
	}
	return s.attest(ctx)
}

func (s *speaker) hellos() (err error) {
	if s.helloI, err = s.ownHello(); err != nil {
		return err
	}
	if err = s.say(exchange.FrameHelloI, s.helloI); err != nil {
		return err
	}
	if s.helloR, err = s.listen(exchange.FrameHelloR); err != nil {
		return err
	}
	s.ekm, err = exchange.EKM(s.export, s.helloI, s.helloR)
	return err
}

func (s *speaker) attest(ctx context.Context) error {
	kind, body := exchange.FrameAttI, []byte(nil)
	var err error
	if s.lies.instead != nil {
		kind, body = s.lies.instead(s)
	} else if body, err = s.attestation(ctx); err != nil {
		return err
	}
	if err := s.say(kind, body); err != nil {
		// The target may have refused before it read us.
		_, refused := exchange.ReadFrame(s.conn, exchange.FrameRefusal, exchange.MaxRefusal)
		return errors.Join(err, refused)
	}
	s.attR, err = s.listen(exchange.FrameAttR)
	return err
}

func (s *speaker) acknowledge() error {
	t := exchange.Transcript(s.ekm, s.bodies...)
	return s.say(exchange.FrameAck, t[:])
}

func (s *speaker) ownHello() ([]byte, error) {
	h := exchange.Hello{Version: exchange.Version, MeshID: s.target.MeshID, Incarnation: uint64(s.target.Incarnation),
		Nonce: freshNonce(), Kinds: s.id.Attester.Kind(), Credential: s.id.Credential}
	if s.lies.hello != nil {
		s.lies.hello(&h)
	}
	body, err := h.Encode()
	if err == nil && s.lies.rawHI != nil {
		body = s.lies.rawHI(body)
	}
	return body, err
}

func (s *speaker) binder() attest.Binder {
	b := attest.Binder{Purpose: attest.PurposeChannel, Role: attest.RoleClient, MeshID: s.target.MeshID,
		Incarnation: uint64(s.target.Incarnation), Attester: string(s.id.Peer()), Verifier: string(s.target.Peer),
		HelloI: s.helloI, HelloR: s.helloR, EKM: s.ekm}
	if s.lies.binder != nil {
		s.lies.binder(&b)
	}
	return b
}

func (s *speaker) attestation(ctx context.Context) ([]byte, error) {
	maker := s.id
	if s.lies.maker != nil {
		maker = s.lies.maker
	}
	proof, err := maker.prove(ctx, s.target.MeshID, s.binder())
	if err != nil {
		return nil, err
	}
	if s.lies.proof != nil {
		s.lies.proof(&proof)
	}
	raw, err := proof.Evidence.Encode()
	if err != nil {
		return nil, err
	}
	a := exchange.Attestation{Transcript: exchange.Transcript(s.ekm, s.bodies...), Evidence: raw, RuntimeHead: proof.RuntimeHead, Inclusion: proof.Inclusion}
	if s.lies.att != nil {
		s.lies.att(&a)
	}
	return a.Encode()
}

// outcome judges an attempt that must have been refused with one of the codes; "" stands
// for a refusal that gives no reason, or a connection closed without a word.
func (a answer) outcome(want ...attest.Code) Outcome {
	defer a.close()
	o := Outcome{Codes: a.codes}
	ms := a.took.Milliseconds()
	silent := contains(want, "")
	switch {
	case errors.Is(a.err, errNoConnection):
		o.Status, o.Evidence = Skipped, "could not be tried: "+a.err.Error()
	case a.err == nil:
		o.Status, o.Evidence = Broken, fmt.Sprintf("accepted after %d ms: the target answered with its own evidence", ms)
	case a.refused && len(a.codes) == 0 && silent:
		o.Status, o.Evidence = Held, fmt.Sprintf("refused without a reason after %d ms", ms)
	case a.refused && len(a.codes) > 0 && contains(want, a.codes[0]):
		o.Status, o.Evidence = Held, fmt.Sprintf("refused with %s after %d ms", a.codes[0], ms)
	case a.refused:
		o.Status, o.Evidence = Skipped, fmt.Sprintf("refused with %q, which says nothing about this attack", a.codes)
	default:
		o.Status, o.Evidence = Held, fmt.Sprintf("closed without a word after %d ms (%v)", ms, a.err)
	}
	return o
}

// honest makes an honest attempt and says why it was refused, or "".
func (c *Campaign) honest(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, AttackTimeout)
	defer cancel()
	a := c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{})
	defer a.close()
	switch {
	case a.err != nil && a.refused && len(a.codes) == 0:
		return "the target did not recognise the Credential"
	case a.err != nil:
		return a.err.Error()
	}
	if err := a.acknowledge(); err != nil {
		return err.Error()
	}
	mux, err := yamux.DefaultTransport.NewConn(a.channel, false, nil)
	if err != nil {
		return err.Error()
	}
	defer mux.Close()
	// An answer on a stream, whatever it is, shows that the node counts us as connected.
	if o := openOne(ctx, mux, unknownStream, attest.CodeProtocol); o.Status == Held && len(o.Codes) == 0 {
		return "accepted, but no stream is served: " + o.Evidence
	}
	return ""
}

// alive reports whether the target answers a stranger's HELLO with any frame at all.
func (c *Campaign) alive(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, aliveTries*answerTimeout)
	defer cancel()
	return connects(ctx, func() error {
		a := c.attemptOnce(ctx, c.addrs[0], stranger(), lies{})
		defer a.close()
		if a.err == nil || a.refused || a.heard != 0 {
			return nil
		}
		return a.err
	})
}

// connects tries again what ended before anything was said: attacker and target may share a
// machine that is busy with the attack itself.
func connects(ctx context.Context, try func() error) (err error) {
	for range aliveTries {
		if err = try(); !errors.Is(err, errNoConnection) || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// stranger returns an identity without a Credential.
func stranger() *Identity { return &Identity{Key: newKey(), Attester: noAttester{attest.KindSim}} }

// noAttester is what a machine without a TEE has.
type noAttester struct{ kind string }

func (n noAttester) Kind() string { return n.kind }

func (n noAttester) Attest(context.Context, attest.ReportData) (attest.Evidence, error) {
	return attest.Evidence{Kind: n.kind, Items: []attest.Item{{Type: attest.TypeSimReport, Data: []byte("made up")}}}, nil
}
