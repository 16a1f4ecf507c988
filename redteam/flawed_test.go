package redteam

import (
	"bytes"
	"context"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	mss "github.com/multiformats/go-multistream"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

// flawed is a responder of the channel, made of package exchange's building blocks like the
// real one, that leaves out what its flaws name. Without flaws it is sound: TestFlawless
// says so. No production code has a switch for any of this.
type flawed struct {
	w      *world
	flaws  []string
	weaken func(*attest.Binder) // what every node of this mesh forgets when it binds
	ctx    context.Context
	turn   sync.Mutex // held by the connection being served, with the flaw "one at a time"
}

func (f *flawed) has(flaw string) bool { return slices.Contains(f.flaws, flaw) }

func (f *flawed) sum(b attest.Binder) [32]byte {
	if f.weaken != nil {
		f.weaken(&b)
	}
	return b.Sum()
}

// serve starts the responder and returns the target that it is.
func (f *flawed) serve(t *testing.T) Target {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.ctx = ctx
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
				defer stop()
				f.one(conn)
			})
		}
	})
	t.Cleanup(func() { cancel(); l.Close(); wg.Wait() })
	_, p, _ := net.SplitHostPort(l.Addr().String())
	return f.w.target("/ip4/127.0.0.1/tcp/" + p)
}

// linger is what a node without deadlines does.
func (f *flawed) linger(conn net.Conn) {
	if f.has("no deadlines") {
		_ = conn.SetDeadline(time.Time{})
		_, _ = io.Copy(io.Discard, conn)
		<-f.ctx.Done()
	}
}

// one serves one connection from the first byte to the last.
func (f *flawed) one(conn net.Conn) {
	defer f.linger(conn)
	if f.has("one at a time") {
		f.turn.Lock()
		defer f.turn.Unlock()
	}
	if !f.has("no deadlines") && !f.has("one at a time") {
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	}
	mux := mss.NewMultistreamMuxer[string]()
	mux.AddHandler(string(mesh.SecurityID), nil)
	if _, _, err := mux.Negotiate(conn); err != nil {
		return
	}
	secured, remote, err := f.tls(conn)
	if err != nil {
		return
	}
	if f.has("muxer first") {
		f.streams(secured)
		return
	}
	e := &flawedExchange{flawed: f, conn: secured, remote: remote}
	if err := e.run(); err != nil {
		var r *attest.Error
		if errors.As(err, &r) {
			told := []attest.Reason{r.Reason}
			if !e.verified && !f.has("talks to strangers") {
				told = nil
			}
			_ = exchange.WriteFrame(secured, exchange.FrameRefusal, exchange.EncodeReasons(told))
			_ = secured.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
			_, _ = io.Copy(io.Discard, secured)
		}
		return
	}
	f.streams(secured)
}

func (f *flawed) tls(conn net.Conn) (*tls.Conn, identity.PeerID, error) {
	key, err := ic.UnmarshalEd25519PrivateKey(f.w.victim.Key)
	if err != nil {
		return nil, "", err
	}
	id, err := libp2ptls.NewIdentity(key)
	if err != nil {
		return nil, "", err
	}
	config, keys := id.ConfigForPeer("")
	config.NextProtos = append([]string{yamux.ID}, config.NextProtos...)
	if f.has("TLS 1.2") {
		config.MinVersion = tls.VersionTLS12
	}
	if f.has("session tickets") {
		config = ticketConfig(config)
	}
	if f.has("no client certificate") {
		config.ClientAuth, config.VerifyPeerCertificate = tls.RequestClientCert, nil
	}
	c := tls.Server(conn, config)
	if err := c.HandshakeContext(f.ctx); err != nil {
		return nil, "", err
	}
	select {
	case k := <-keys:
		if k == nil {
			return c, "", nil
		}
		p, err := peer.IDFromPublicKey(k)
		return c, identity.PeerID(p), err
	default: // a resumed handshake, or a client without a certificate
		return c, "", nil
	}
}

// ticketKey stands for a server's long-lived one.
var ticketKey = [32]byte{1}

func ticketConfig(c *tls.Config) *tls.Config {
	c.SessionTicketsDisabled = false
	c.SetSessionTicketKeys([][32]byte{ticketKey})
	c.ClientAuth, c.VerifyPeerCertificate = tls.RequestClientCert, nil
	return c
}

// streams serves every stream: a protocol of seats only to nobody, unless that is the flaw.
func (f *flawed) streams(secured *tls.Conn) {
	_ = secured.SetDeadline(time.Time{})
	var conn net.Conn = secured
	if f.has("no ACK") {
		head := make([]byte, 1)
		if _, err := io.ReadFull(secured, head); err != nil {
			return
		}
		if exchange.FrameType(head[0]) == exchange.FrameAck {
			head = nil
			if _, err := io.CopyN(io.Discard, secured, 4+32); err != nil {
				return
			}
		}
		conn = prefixed{secured, io.MultiReader(bytes.NewReader(head), secured)}
	}
	mux, err := yamux.DefaultTransport.NewConn(conn, true, nil)
	if err != nil {
		return
	}
	defer mux.Close()
	for {
		s, err := mux.AcceptStream()
		if err != nil {
			return
		}
		f.stream(s)
	}
}

// prefixed is a connection of which something was read already.
type prefixed struct {
	net.Conn
	r io.Reader
}

func (p prefixed) Read(b []byte) (int, error) { return p.r.Read(b) }

func (f *flawed) stream(s network.MuxedStream) {
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(2 * time.Second))
	mux := mss.NewMultistreamMuxer[string]()
	mux.AddHandlerWithFunc("any", func(string) bool { return true }, nil)
	p, _, err := mux.Negotiate(muxedStream{s})
	if err != nil {
		return
	}
	code := attest.CodeProtocol
	if p == seatProtocol {
		code = attest.CodeNotSeat
	}
	if f.has("admits every stream") {
		_ = exchange.WriteFrame(s, exchange.FrameAccept, nil)
	} else {
		_ = exchange.WriteFrame(s, exchange.FrameRefusal, exchange.EncodeReasons([]attest.Reason{attest.NewReason(code, "", "", "")}))
	}
	_, _ = s.Read(make([]byte, 1))
}

// flawedExchange is the responder's half of the exchange.
type flawedExchange struct {
	*flawed
	conn           *tls.Conn
	remote         identity.PeerID // as TLS says
	verified       bool
	hello          exchange.Hello
	subject        exchange.Subject
	helloI, helloR []byte
	ekm            []byte
	bodies         [][]byte
}

func refusal(code attest.Code) error {
	return &attest.Error{Reason: attest.NewReason(code, "test", "a lie", "the truth")}
}

func (e *flawedExchange) run() error {
	if err := e.hellos(); err != nil {
		return err
	}
	state := e.conn.ConnectionState()
	var err error
	if e.ekm, err = exchange.EKM(state.ExportKeyingMaterial, e.helloI, e.helloR); err != nil {
		return err
	}
	if !e.has("quotes for anybody") {
		if err := e.judge(); err != nil {
			return err
		}
	}
	if err := e.prove(); err != nil {
		return err
	}
	return e.ack()
}

func (e *flawedExchange) read(want exchange.FrameType, limit int) ([]byte, error) {
	var body []byte
	var err error
	switch {
	case e.has("no frame limit"):
		body, err = exchange.ReadFrame(e.conn, want, 1<<32-1)
	case e.has("any frame will do"):
		head := make([]byte, 5)
		if _, err = io.ReadFull(e.conn, head); err == nil {
			body = make([]byte, int(head[3])<<8|int(head[4]))
			_, err = io.ReadFull(e.conn, body)
		}
	default:
		body, err = exchange.ReadFrame(e.conn, want, limit)
	}
	var bad *exchange.FrameError
	if errors.As(err, &bad) {
		return nil, refusal(attest.CodeProtocol)
	}
	e.bodies = append(e.bodies, body)
	return body, err
}

func (e *flawedExchange) say(kind exchange.FrameType, body []byte) error {
	e.bodies = append(e.bodies, body)
	return exchange.WriteFrame(e.conn, kind, body)
}

func (e *flawedExchange) hellos() error {
	var err error
	if e.helloI, err = e.read(exchange.FrameHelloI, exchange.MaxHello); err != nil {
		return err
	}
	if err := e.judgeHello(); err != nil {
		return err
	}
	h := exchange.Hello{Version: exchange.Version, MeshID: testMesh, Nonce: freshNonce(), Kinds: attest.KindSim, Credential: e.w.victim.Credential}
	if e.has("constant nonce") {
		h.Nonce = [32]byte{1}
	}
	if e.helloR, err = h.Encode(); err != nil {
		return err
	}
	return e.say(exchange.FrameHelloR, e.helloR)
}

func (e *flawedExchange) judgeHello() error {
	var reason *attest.Reason
	if e.has("lenient HELLO") {
		e.hello = lenientHello(e.helloI)
	} else if e.hello, reason = exchange.DecodeHello(e.helloI); reason != nil {
		return &attest.Error{Reason: *reason}
	}
	switch {
	case e.hello.MeshID != testMesh && !e.has("any mesh"):
		return refusal(attest.CodeWrongMesh)
	case e.hello.Incarnation != 0 && !e.has("any incarnation"):
		return refusal(attest.CodeWrongIncarnation)
	}
	who := e.remote
	if e.has("Credential's peer is believed") {
		who = peerOf(e.hello.Credential)
	}
	judge := soundJudge{e.w.victim.Judge, e.w}
	switch {
	case e.has("any Credential"):
		e.subject = exchange.Subject{Peer: who}
	case e.has("no retired boots"):
		e.subject, reason = judge.Judge.Credential(who, e.hello.Credential)
	default:
		e.subject, reason = judge.Credential(who, e.hello.Credential)
	}
	if reason != nil {
		return &attest.Error{Reason: *reason}
	}
	e.verified = true
	return nil
}

// peerOf reads the peer id out of meshtest's Credential: signature, mesh id, peer id, name.
func peerOf(credential []byte) identity.PeerID {
	if len(credential) < 64+32+38 {
		return ""
	}
	return identity.PeerID(credential[64+32:][:38])
}

// lenientHello takes whatever it can.
func lenientHello(body []byte) exchange.Hello {
	var fields []any
	h := exchange.Hello{MeshID: testMesh, Kinds: attest.KindSim}
	if cbor.Unmarshal(body, &fields) == nil && len(fields) == 8 {
		h.Credential, _ = fields[7].([]byte)
	}
	return h
}

// binder is the peer's, as this responder sees it.
func (e *flawedExchange) binder(own bool) attest.Binder {
	b := attest.Binder{Purpose: attest.PurposeChannel, Role: attest.RoleClient, MeshID: testMesh, Attester: string(e.subject.Peer),
		Verifier: string(e.w.victim.Peer), HelloI: e.helloI, HelloR: e.helloR, EKM: e.ekm}
	if own {
		b.Role, b.Attester, b.Verifier = attest.RoleServer, b.Verifier, b.Attester
	}
	return b
}

func (e *flawedExchange) judge() error {
	transcript := exchange.Transcript(e.ekm, e.bodies...)
	body, err := e.read(exchange.FrameAttI, exchange.MaxAttestation)
	if err != nil {
		return err
	}
	if e.has("evidence is optional") {
		return nil
	}
	att, err := exchange.DecodeAttestation(body)
	if err != nil {
		return refusal(attest.CodeMalformed)
	}
	if subtle.ConstantTimeCompare(att.Transcript[:], transcript[:]) != 1 && !e.has("no transcript") {
		return refusal(attest.CodeNotBound)
	}
	proof, err := att.Proof()
	if err != nil {
		return refusal(attest.CodeMalformed)
	}
	if proof.Evidence.Kind != e.hello.Kinds && !e.has("lenient HELLO") {
		return refusal(attest.CodeProtocol)
	}
	return e.judgeProof(proof)
}

func (e *flawedExchange) judgeProof(proof attest.Proof) error {
	if e.has("evidence unverified") {
		return nil
	}
	if e.has("report data ignored") { // genuine, whatever it says
		return e.appraise(proof.Evidence, attest.ReportData(reported(proof.Evidence)))
	}
	if e.has("inclusion ignored") {
		proof.Inclusion = attest.Inclusion{Size: 1}
	}
	data, err := proof.ReportData(e.sum(e.binder(false)), testMesh, string(e.subject.Peer))
	if err != nil {
		return refusal(attest.CodeNotBound)
	}
	if e.has("any genuine node's evidence") {
		other := e.binder(false)
		other.Attester = string(e.w.other.Peer)
		if data, err := proof.ReportData(e.sum(other), testMesh, other.Attester); err == nil && e.appraise(proof.Evidence, data) == nil {
			return nil
		}
	}
	return e.appraise(proof.Evidence, data)
}

// reported is what meshtest's report says it carries.
func reported(ev attest.Evidence) []byte {
	if r := ev.Find(attest.TypeSimReport); len(r) == 1 && len(r[0]) == 128 {
		return r[0][64:]
	}
	return make([]byte, 64)
}

func (e *flawedExchange) appraise(ev attest.Evidence, data attest.ReportData) error {
	if _, result := e.w.victim.Judge.Appraise(e.ctx, e.subject, ev, data); !result.Affirming() {
		return &attest.Error{Reason: result.Reasons[0]}
	}
	return nil
}

func (e *flawedExchange) prove() error {
	id := &Identity{Key: e.w.victim.Key, Attester: e.w.victim.Attester, Sum: e.sum}
	proof, err := id.prove(e.ctx, testMesh, e.binder(true))
	if err != nil {
		return err
	}
	body, err := exchange.NewAttestation(exchange.Transcript(e.ekm, e.bodies...), proof)
	if err != nil {
		return err
	}
	return e.say(exchange.FrameAttR, body)
}

func (e *flawedExchange) ack() error {
	if e.has("no ACK") {
		return nil // streams skips it, if it comes
	}
	want := exchange.Transcript(e.ekm, e.bodies...)
	got, err := e.read(exchange.FrameAck, 32)
	if err != nil {
		return err
	}
	if string(got) != string(want[:]) && !e.has("any ACK") {
		return refusal(attest.CodeNotBound)
	}
	return nil
}

// The responder without flaws holds: what the controls show is due to the flaw.
func TestFlawless(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := &flawed{w: w}
	c := w.campaign(t, f.serve(t), w.arsenal())
	if !c.accepted {
		t.Fatalf("the honest attempt was refused: %s", c.rejection)
	}
	for _, a := range Attacks() {
		if a.Needs&(NeedHTTP|NeedHTTPS) != 0 || strings.HasPrefix(a.Name, "slow") {
			continue
		}
		if o := a.run(testContext(t), c); o.Status != Held {
			t.Errorf("%s: %s: %s", a.Name, o.Status, o.Evidence)
		}
	}
}
