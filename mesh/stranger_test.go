package mesh

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/mesh/meshtest"
)

// stranger speaks the channel as docs/PROTOCOL.md has it and with nothing but the standard
// library: no libp2p, no exchange, no binder of ours. If this test fails the page and the
// code have parted. Numbers in comments are its sections.
type stranger struct {
	*meshtest.Node
	meshID [32]byte
	pair   []byte // the key by which it convinces the other, of its last full exchange
	theirs []byte // the key by which the other convinces it
	curves []tls.CurveID
}

// call is one exchange of a stranger, on a connection or on a stream of one (11).
type call struct {
	*stranger
	io.ReadWriter
	tls            *tls.Conn
	purpose        byte
	peer           []byte
	helloI, helloR []byte
	ekm            []byte
	fast, askedFor bool // it showed a MAC, it got one
	bodies         [][]byte
}

func lenPrefixed(parts ...[]byte) (out []byte) {
	for _, p := range parts {
		out = append(binary.BigEndian.AppendUint32(out, uint32(len(p))), p...)
	}
	return out
}

func digest(parts ...[]byte) []byte { s := sha256.Sum256(lenPrefixed(parts...)); return s[:] }

// cborHead writes what every CBOR item starts with (1).
func cborHead(major byte, n int) []byte {
	switch {
	case n < 24:
		return []byte{major<<5 | byte(n)}
	case n < 1<<8:
		return []byte{major<<5 | 24, byte(n)}
	default:
		return binary.BigEndian.AppendUint16([]byte{major<<5 | 25}, uint16(n))
	}
}

func bstr(b []byte) []byte { return append(cborHead(2, len(b)), b...) }
func tstr(s string) []byte { return append(cborHead(3, len(s)), s...) }
func array(items ...[]byte) []byte {
	return append(cborHead(4, len(items)), bytes.Join(items, nil)...)
}

// take cuts the next item with a string of bytes or text off b.
func take(b []byte) (value, rest []byte, err error) {
	if len(b) < 3 {
		return nil, nil, io.ErrUnexpectedEOF
	}
	n, at := int(b[0]&31), 1
	switch n {
	case 24:
		n, at = int(b[1]), 2
	case 25:
		n, at = int(binary.BigEndian.Uint16(b[1:])), 3
	}
	if len(b) < at+n {
		return nil, nil, io.ErrUnexpectedEOF
	}
	return b[at : at+n], b[at+n:], nil
}

// selectProtocol is multistream-select 1.0 by whoever opens.
func selectProtocol(c io.ReadWriter, name string) error {
	for _, line := range []string{"/multistream/1.0.0", name} {
		if _, err := c.Write(append(binary.AppendUvarint(nil, uint64(len(line)+1)), line+"\n"...)); err != nil {
			return err
		}
		back := make([]byte, len(line)+2) // all shorter than 127: one byte of length
		if _, err := io.ReadFull(c, back); err != nil {
			return err
		}
		if string(back[1:]) != line+"\n" {
			return errors.New("got " + string(back[1:]))
		}
	}
	return nil
}

// certificate is libp2p's (2): self-signed, with the identity key's signature over its key.
func (s *stranger) certificate() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return tls.Certificate{}, err
	}
	identityKey := append([]byte{8, 1, 18, 32}, s.Key.Public().(ed25519.PublicKey)...)
	signed, err := asn1.Marshal([][]byte{identityKey, ed25519.Sign(s.Key, append([]byte("libp2p-tls-handshake:"), spki...))})
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 53594, 1, 1}, Value: signed}}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// dial does everything of sections 2 to 7 as the initiator.
func (s *stranger) dial(ctx context.Context, addr, peer, muxer string) (*call, error) {
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	_ = raw.SetDeadline(deadline)
	c := &call{stranger: s, purpose: 1, peer: []byte(peer)}
	if err = c.secure(raw, muxer); err == nil {
		err = c.exchange()
	}
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	return c, nil
}

func (c *call) secure(raw net.Conn, muxer string) error {
	if err := selectProtocol(raw, "/meshnode-atls/1.0.0"); err != nil {
		return err
	}
	cert, err := c.certificate()
	if err != nil {
		return err
	}
	c.tls = tls.Client(raw, &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{muxer, "libp2p"}, Certificates: []tls.Certificate{cert},
		InsecureSkipVerify: true, VerifyConnection: c.identity, CurvePreferences: c.curves})
	if err := c.tls.Handshake(); err != nil {
		return err
	}
	c.ReadWriter = c.tls
	if got := c.tls.ConnectionState(); got.NegotiatedProtocol != muxer || got.DidResume || c.curves == nil && got.CurveID != tls.X25519MLKEM768 {
		return errors.New("ALPN agreed on " + got.NegotiatedProtocol + " over " + got.CurveID.String())
	}
	return nil
}

// identity checks that the other end is the peer that was dialled.
func (c *call) identity(state tls.ConnectionState) error {
	cert := state.PeerCertificates[0]
	for _, e := range cert.Extensions {
		if !e.Id.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 53594, 1, 1}) {
			continue
		}
		var signed struct{ Key, Signature []byte }
		if _, err := asn1.Unmarshal(e.Value, &signed); err != nil {
			return err
		}
		want := append([]byte{0, 0x24}, signed.Key...) // a peer id is its key in a multihash (1)
		if bytes.Equal(want, c.peer) && ed25519.Verify(signed.Key[4:], append([]byte("libp2p-tls-handshake:"), cert.RawSubjectPublicKeyInfo...), signed.Signature) {
			return nil
		}
	}
	return errors.New("another peer than was dialled")
}

func (c *call) say(kind byte, body []byte) error {
	c.bodies = append(c.bodies, body)
	_, err := c.Write(append(append([]byte{kind}, lenPrefixed(body)[:4]...), body...))
	return err
}

// hear returns the next frame, which must be of one of the kinds.
func (c *call) hear(kinds ...byte) (byte, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return 0, nil, err
	}
	body := make([]byte, binary.BigEndian.Uint32(head[1:])&0xffff)
	if _, err := io.ReadFull(c, body); err != nil {
		return 0, nil, err
	}
	if !bytes.Contains(kinds, head[:1]) {
		return 0, nil, fmt.Errorf("frame %d: %q", head[0], body)
	}
	c.bodies = append(c.bodies, body)
	return head[0], body, nil
}

// exported is the connection's exporter (2).
func (c *call) exported(label string, context []byte) []byte {
	state := c.tls.ConnectionState()
	out, err := state.ExportKeyingMaterial(label, context, 32)
	if err != nil {
		panic(err)
	}
	return out
}

func (c *call) exchange() error {
	var want []byte
	if c.theirs != nil && c.purpose == 1 {
		want = digest([]byte("meshnode-attest/v1 pair id"), c.theirs)
	}
	nonce := make([]byte, 32)
	_, _ = rand.Read(nonce)
	// 4: version, mesh id, incarnation, epoch, nonce, kinds, want, credential
	c.helloI = array([]byte{1}, bstr(c.meshID[:]), []byte{0}, []byte{3}, bstr(nonce), tstr("sim"), bstr(want), bstr(c.Credential))
	if err := c.say(1, c.helloI); err != nil {
		return err
	}
	_, helloR, err := c.hear(2)
	if err != nil {
		return err
	}
	c.helloR = helloR
	hellos := digest(c.helloI, c.helloR) // 5
	c.ekm = c.exported("EXPORTER-meshnode-attest-v1", hellos)
	wanted, err := wantOf(helloR)
	if err != nil {
		return err
	}
	if err := c.prove(wanted); err != nil {
		return err
	}
	kind, proof, err := c.hear(4, 10)
	if err != nil {
		return err
	}
	if err := c.judge(kind, proof); err != nil {
		return err
	}
	if !c.fast { // 7: keys of the directions in which there was evidence
		c.pair = c.exported("EXPORTER-meshnode-pair-v1", digest([]byte{1}, hellos))
	}
	if !c.askedFor {
		c.theirs = c.exported("EXPORTER-meshnode-pair-v1", digest([]byte{2}, hellos))
	}
	return c.say(5, c.transcript())
}

// wantOf is the seventh element of a HELLO in which version, incarnation and epoch are small.
func wantOf(hello []byte) ([]byte, error) {
	rest := hello[2:]
	for i := range 5 {
		if i == 1 {
			rest = rest[2:] // incarnation, epoch
		}
		value, after, err := take(rest)
		if err != nil || i == 3 {
			return value, err // mesh id, nonce, kinds, want
		}
		rest = after
	}
	return nil, io.ErrUnexpectedEOF
}

func (c *call) transcript() []byte {
	return digest(append([][]byte{[]byte("meshnode-attest/v1 transcript"), c.ekm}, c.bodies...)...)
}

// binder is 6.1 of the initiator (1) or the responder (2).
func (c *call) binder(role byte) []byte {
	attester, verifier := []byte(c.Peer), c.peer
	if role == 2 {
		attester, verifier = verifier, attester
	}
	return digest([]byte("meshnode-attest/v1 binder"), []byte{c.purpose}, []byte{role}, c.meshID[:], make([]byte, 8), attester, verifier,
		c.helloI, c.helloR, nil, c.ekm)
}

func (c *call) mac(key, bind, head []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(lenPrefixed([]byte("meshnode-attest/v1 fast"), bind, head))
	return h.Sum(nil)
}

// reportData is 6.3 over a batch of one (6.2) with an empty runtime log.
func (c *call) reportData(attester, bind, head []byte) []byte {
	root := sha256.Sum256(append([]byte{0}, bind...))
	s := sha512.Sum512(lenPrefixed([]byte("meshnode-attest/v1 report"), []byte("sim"), c.meshID[:], attester, head, root[:]))
	return s[:]
}

func (c *call) prove(wanted []byte) error {
	head := make([]byte, 32)
	if c.pair != nil && bytes.Equal(wanted, digest([]byte("meshnode-attest/v1 pair id"), c.pair)) {
		c.fast = true
		return c.say(9, array(bstr(c.transcript()), bstr(c.mac(c.pair, c.binder(1), head)), bstr(head)))
	}
	ev, err := c.Attester.Attest(context.Background(), attest.ReportData(c.reportData([]byte(c.Peer), c.binder(1), head)))
	if err != nil {
		return err
	}
	evidence := array(tstr("sim"), array(array(tstr(ev.Items[0].Type), bstr(ev.Items[0].Data))))
	return c.say(3, array(bstr(c.transcript()), bstr(evidence), bstr(head), array([]byte{0}, []byte{1}, array())))
}

// judge looks for the values that it computes itself. The pretended platform's signature is
// another's to check.
func (c *call) judge(kind byte, proof []byte) error {
	before := *c
	before.bodies = c.bodies[:len(c.bodies)-1]
	transcript, rest, err := take(proof[1:])
	if err != nil || !bytes.Equal(transcript, before.transcript()) {
		return errors.New("another transcript")
	}
	second, rest, err := take(rest)
	if err != nil {
		return err
	}
	head, _, err := take(rest)
	if err != nil {
		return err
	}
	if kind == 10 {
		c.askedFor = true
		if !hmac.Equal(second, c.mac(c.theirs, c.binder(2), head)) {
			return errors.New("another MAC")
		}
		return nil
	}
	if !bytes.Contains(second, c.reportData(c.peer, c.binder(2), head)) {
		return errors.New("other report data")
	}
	return nil
}

// muxedStream is one stream, the first that a client opens, of a connection muxed by yamux.
type muxedStream struct {
	*tls.Conn
	flags   uint16 // of the next frame: SYN, then none
	pending []byte
	ended   bool
}

const (
	yamuxData, yamuxPing         = 0, 2
	yamuxSYN, yamuxACK, yamuxFIN = 1, 2, 4
)

// frame is version 0, kind, flags, stream, length.
func (y *muxedStream) frame(kind byte, flags uint16, stream, length uint32, data []byte) error {
	head := binary.BigEndian.AppendUint16([]byte{0, kind}, flags)
	head = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(head, stream), length)
	_, err := y.Conn.Write(append(head, data...))
	return err
}

func (y *muxedStream) Write(b []byte) (int, error) {
	flags := y.flags
	y.flags = 0
	return len(b), y.frame(yamuxData, flags, 1, uint32(len(b)), b)
}

func (y *muxedStream) CloseWrite() error { return y.frame(yamuxData, yamuxFIN, 1, 0, nil) }

func (y *muxedStream) Read(b []byte) (int, error) {
	for len(y.pending) == 0 {
		if y.ended {
			return 0, io.EOF
		}
		var head [12]byte
		if _, err := io.ReadFull(y.Conn, head[:]); err != nil {
			return 0, err
		}
		flags, stream, length := binary.BigEndian.Uint16(head[2:]), binary.BigEndian.Uint32(head[4:]), binary.BigEndian.Uint32(head[8:])
		switch {
		case head[1] == yamuxPing && flags&yamuxSYN != 0:
			if err := y.frame(yamuxPing, yamuxACK, 0, length, nil); err != nil {
				return 0, err
			}
		case head[1] == yamuxData:
			data := make([]byte, length)
			if _, err := io.ReadFull(y.Conn, data); err != nil {
				return 0, err
			}
			if stream == 1 { // others are the node's own and of no interest
				y.pending = data
			}
		}
		y.ended = y.ended || stream == 1 && flags&yamuxFIN != 0
	}
	n := copy(b, y.pending)
	y.pending = y.pending[n:]
	return n, nil
}

// reattest is 11: the exchange on a stream of the connection, in its roles.
func (c *call) reattest() (*call, error) {
	stream := &muxedStream{Conn: c.tls, flags: yamuxSYN}
	again := &call{stranger: c.stranger, ReadWriter: stream, tls: c.tls, purpose: 2, peer: c.peer}
	if err := selectProtocol(stream, "/meshnode/reattest/1"); err != nil {
		return nil, err
	}
	if _, _, err := again.hear(7); err != nil {
		return nil, err
	}
	again.bodies = nil
	if err := again.exchange(); err != nil {
		return nil, err
	}
	if err := stream.CloseWrite(); err != nil {
		return nil, err
	}
	_, err := io.ReadAll(stream)
	return again, err
}

// A program that was written from the page gets a link, attests itself again on it and
// gets a bulk stream beside it.
func TestStrangerFromThePage(t *testing.T) {
	w := newLibp2pWorld(t)
	n := w.node("alpha/n1", nil)
	s := &stranger{Node: w.root.NewNode(w.meshID, "beta/n1"), meshID: w.meshID}
	defer s.Node.Close()
	parts := strings.Split(n.Addrs()[0], "/") // /ip4/127.0.0.1/tcp/PORT
	addr := net.JoinHostPort(parts[2], parts[4])

	link, err := s.dial(testContext(t), addr, string(n.Self()), "/yamux/1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	defer link.tls.Close()
	var l Link
	eventually(t, "the link of a stranger", func() (ok bool) { l, ok = n.Link(s.Peer); return ok })

	first, pair := l.Session(), s.pair
	again, err := link.reattest()
	if err != nil {
		t.Fatal(err)
	}
	if again.fast || again.askedFor || bytes.Equal(s.pair, pair) {
		t.Error("a live connection was renewed without evidence, or without a new key")
	}
	eventually(t, "the verdict of the re-attestation", func() bool { return l.Session().AttestedAt.After(first.AttestedAt) })

	bulk, err := s.dial(testContext(t), addr, string(n.Self()), "/meshnode-bulk/1.0.0")
	if err != nil {
		t.Fatal(err)
	}
	defer bulk.tls.Close()
	if !bulk.fast || !bulk.askedFor {
		t.Errorf("after a full exchange: showed a MAC %v, got one %v", bulk.fast, bulk.askedFor)
	}
	if err := selectProtocol(bulk, string(echo)); err != nil { // 10
		t.Fatal(err)
	}
	if _, body, err := bulk.hear(7); err != nil || len(body) != 0 {
		t.Fatalf("ACCEPT: %x, %v", body, err)
	}
	message := []byte("from the page")
	if _, err := bulk.Write(message); err != nil {
		t.Fatal(err)
	}
	if err := bulk.tls.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(bulk); err != nil || !bytes.Equal(got, message) {
		t.Fatalf("echo %q, %v", got, err)
	}
}

// The stranger's lies are refused: the test above passes for what it says, not for nothing.
func TestStrangerWithALie(t *testing.T) {
	w := newLibp2pWorld(t)
	n := w.node("alpha/n1", nil)
	parts := strings.Split(n.Addrs()[0], "/")
	for name, lie := range map[string]func(*stranger){
		"another mesh":  func(s *stranger) { s.meshID[0] ^= 1 },
		"no credential": func(s *stranger) { s.Credential = []byte("none") },
		"old curve":     func(s *stranger) { s.curves = []tls.CurveID{tls.X25519} },
		"another root":  func(s *stranger) { s.Attester = meshtest.NewRoot().NewAttester() },
	} {
		s := &stranger{Node: w.root.NewNode(w.meshID, "beta/n1"), meshID: w.meshID}
		lie(s)
		if c, err := s.dial(testContext(t), net.JoinHostPort(parts[2], parts[4]), string(n.Self()), "/yamux/1.0.0"); err == nil {
			t.Errorf("%s: accepted", name)
			_ = c.tls.Close()
		}
		s.Node.Close()
	}
	n.wantNoLink(t)
}
