package enroll

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// What keys sign and evidence covers is fixed, for other implementations.
func TestGoldenLayouts(t *testing.T) {
	s := scope{mesh: identity.MeshID{0: 0xaa, 31: 0xbb}, incarnation: 7, keyID: strings.Repeat("c", 64)}
	peer := identity.PeerIDFromKey(keyOf("golden peer").Public().(ed25519.PublicKey))
	cosigner := keyOf("golden cosigner").Public().(ed25519.PublicKey)
	b := s.enrolment(peer, cosigner, bytes.Repeat([]byte{1}, nonceSize))
	b.EKM = bytes.Repeat([]byte{2}, ekmSize)
	bind := b.Sum()
	for name, tc := range map[string]struct {
		got  []byte
		want string
	}{
		"binder":     {bind[:], "011ba2dd0117ef5df7bab1d6ef41e477449c948c1bab938b4e393dfeb4b60e74"},
		"possession": {possession("l", [32]byte{9}), "00000001" + "6c" + "00000020" + "09" + strings.Repeat("00", 31)},
		"request": {s.request("l", []byte("w")), "00000001" + "6c" + "00000020" + "aa" + strings.Repeat("00", 30) + "bb" +
			"00000008" + "0000000000000007" + "00000040" + strings.Repeat("63", 64) + "00000001" + "77"},
		"attempt": {attemptBytes(258), "0000000000000102"},
	} {
		if hex.EncodeToString(tc.got) != tc.want {
			t.Errorf("%s\n got %x\nwant %s", name, tc.got, tc.want)
		}
	}
}

// enrolment is one hand-made request: an attacker may send anything on any connection.
type enrolment struct {
	t    *testing.T
	w    *world
	node *node
	conn *connection
	req  credentialRequest
	// close closes the connection and those that were opened to attack it.
	close func()
}

// another returns a second request of n, on a connection of its own.
func (e *enrolment) another(n *node) *enrolment {
	other, own := handmade(e.t, e.w, n), e.close
	e.close = func() { other.close(); own() }
	return other
}

// handmade returns a good request for a fresh connection, not sent yet.
func handmade(t *testing.T, w *world, n *node) *enrolment {
	t.Helper()
	conn, err := n.connect(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	e := &enrolment{t: t, w: w, node: n, conn: conn, close: conn.close}
	e.prove(n, conn)
	e.sign(n.PeerKey, n.CosignerKey)
	return e
}

// bind is the binder of conn for the node's keys.
func (e *enrolment) bind(n *node, conn *connection) [32]byte {
	e.t.Helper()
	bind, err := conn.scope.binder(&conn.state, n.peer(), n.CosignerKey.Public().(ed25519.PublicKey), conn.nonce)
	if err != nil {
		e.t.Fatal(err)
	}
	return bind
}

// prove fills in what n would send on conn.
func (e *enrolment) prove(n *node, conn *connection) {
	e.t.Helper()
	proof, err := n.prover.Prove(context.Background(), e.bind(n, conn))
	if err != nil {
		e.t.Fatal(err)
	}
	raw, err := proof.Evidence.Encode()
	if err != nil {
		e.t.Fatal(err)
	}
	e.req = credentialRequest{Node: n.Node.Name, Peer: n.peer(), Cosigner: public(n.CosignerKey), MeshID: n.MeshID, Nonce: e.conn.nonce,
		Evidence: raw, RuntimeHead: proof.RuntimeHead[:], Index: proof.Inclusion.Index, Size: proof.Inclusion.Size, Path: proof.Inclusion.Path}
}

// sign makes both proofs of possession for this connection.
func (e *enrolment) sign(peer, cosigner ed25519.PrivateKey) {
	e.t.Helper()
	bind := e.bind(e.node, e.conn)
	e.req.PeerProof = ed25519.Sign(peer, possession(peerLabel, bind))
	e.req.CosignerProof = ed25519.Sign(cosigner, possession(cosignerLabel, bind))
}

func (e *enrolment) send() error {
	e.w.clock.advance(time.Second)
	return e.conn.post(context.Background(), pathCredential, e.req, &credentialAnswer{})
}

// Everything in a request is bound to the connection and to each other: change one thing
// and it is refused, for that reason.
func TestRequestsAreBound(t *testing.T) {
	w := newWorld(t)
	n := w.boot("n1", "first")
	stranger := w.boot("n1", "stranger")
	for name, tc := range map[string]struct {
		change func(*enrolment)
		code   attest.Code
	}{
		"nothing":                      {func(*enrolment) {}, ""},
		"nonce used twice":             {func(e *enrolment) { _ = e.send() }, attest.CodeNotBound},
		"no nonce":                     {func(e *enrolment) { e.req.Nonce = nil }, attest.CodeNotBound},
		"nonce of another connection":  {func(e *enrolment) { e.req.Nonce = e.another(n).req.Nonce }, attest.CodeNotBound},
		"relayed request":              {func(e *enrolment) { e.relay(n) }, attest.CodeWrongSigner},
		"relayed evidence, own proofs": {func(e *enrolment) { e.relay(n); e.sign(n.PeerKey, n.CosignerKey) }, attest.CodeNotBound},
		"evidence of another peer":     {func(e *enrolment) { e.borrow(stranger) }, attest.CodeNotBound},
		"peer key not held":            {func(e *enrolment) { e.sign(stranger.PeerKey, n.CosignerKey) }, attest.CodeWrongSigner},
		"cosigner key not held":        {func(e *enrolment) { e.sign(n.PeerKey, stranger.CosignerKey) }, attest.CodeWrongSigner},
		"proofs swapped":               {func(e *enrolment) { e.req.PeerProof, e.req.CosignerProof = e.req.CosignerProof, e.req.PeerProof }, attest.CodeWrongSigner},
		"another runtime head":         {func(e *enrolment) { e.req.RuntimeHead = bytes.Repeat([]byte{1}, 32) }, attest.CodeNotBound},
		"short runtime head":           {func(e *enrolment) { e.req.RuntimeHead = nil }, attest.CodeMalformed},
		"another leaf":                 {func(e *enrolment) { e.req.Size = 2; e.req.Path = [][]byte{make([]byte, 32)} }, attest.CodeNotBound},
		"impossible path":              {func(e *enrolment) { e.req.Path = [][]byte{make([]byte, 31)} }, attest.CodeMalformed},
		"no evidence":                  {func(e *enrolment) { e.req.Evidence = nil }, attest.CodeMalformed},
		"other kind": {func(e *enrolment) {
			e.req.Evidence, _ = attest.Evidence{Kind: attest.KindTDX, Items: []attest.Item{{Type: attest.TypeTDXQuote, Data: []byte{1}}}}.Encode()
		}, attest.CodeKindNotAllowed},
		"no cosigner":  {func(e *enrolment) { e.req.Cosigner = p256Key(t) }, attest.CodeMalformed},
		"no peer":      {func(e *enrolment) { e.req.Peer = "" }, attest.CodeMalformed},
		"no node name": {func(e *enrolment) { e.req.Node = "" }, attest.CodeMalformed},
		"zero mesh":    {func(e *enrolment) { e.req.MeshID = identity.MeshID{} }, attest.CodeWrongMesh},
	} {
		w.clock.advance(time.Minute)
		e := handmade(t, w, n)
		tc.change(e)
		err := e.send()
		if tc.code != "" {
			wantCode(t, name, err, tc.code)
		} else if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		e.close()
	}
}

// p256Key is a public key of a type that signs no checkpoints.
func p256Key(t *testing.T) envelope.PublicKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return envelope.PublicKey{PublicKey: key.Public()}
}

// relay takes what the node sent on another connection of its own to the enroller.
func (e *enrolment) relay(n *node) {
	other := e.another(n)
	nonce := e.req.Nonce
	e.req = other.req
	e.req.Nonce = nonce
}

// borrow shows the evidence that another node made for this connection.
func (e *enrolment) borrow(other *node) {
	mine := e.req
	e.prove(other, e.conn)
	e.req.Peer, e.req.Cosigner = mine.Peer, mine.Cosigner
	e.req.PeerProof, e.req.CosignerProof = mine.PeerProof, mine.CosignerProof
}

// Somebody who stole the enroller's TLS key sits between a node and its enroller and hands
// every request on unchanged. Nonce, keys and evidence are all genuine; only the exporter
// tells that there are two connections. Nothing that passes him may enrol.
func TestRelayWithStolenTLSKey(t *testing.T) {
	w := newWorld(t)
	upstream := rawClient(t, w, nil)
	upstream.Transport.(*http.Transport).MaxConnsPerHost = 1
	relayed := 0
	relay := httptest.NewUnstartedServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		resp, err := upstream.Post(w.url+r.URL.Path, "application/json", r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		relayed++
		out.WriteHeader(resp.StatusCode)
		io.Copy(out, resp.Body)
	}))
	relay.TLS = serverTLS(w.server.cert)
	relay.StartTLS()
	defer relay.Close()
	n := w.boot("n1", "first")
	n.URL = relay.URL
	_, err := n.enrol()
	wantCode(t, "relayed", err, attest.CodeWrongSigner)
	if relayed != 2 {
		t.Errorf("%d requests relayed, want both", relayed)
	}
}

// rawClient speaks HTTP to the enroller without being a Client.
func rawClient(t *testing.T, w *world, change func(*tls.Config)) *http.Client {
	t.Helper()
	config, err := clientTLS(w.server.SPKI())
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(config)
	}
	tr := &http.Transport{TLSClientConfig: config}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

func TestBadRequests(t *testing.T) {
	w := newWorld(t)
	c := rawClient(t, w, nil)
	for name, tc := range map[string]struct {
		method, path, body string
		status             int
	}{
		"unknown path":        {"POST", "/v2/nonce", "{}", 400},
		"get":                 {"GET", pathNonce, "", 400},
		"no JSON":             {"POST", pathNonce, "hello", 400},
		"unknown field":       {"POST", pathNonce, `{"a":1}`, 400},
		"trailing":            {"POST", pathNonce, `{}{}`, 400},
		"empty":               {"POST", pathCredential, "", 400},
		"cosigner of no type": {"POST", pathCredential, `{"cosigner":"AAAA"}`, 400},
		"deep":                {"POST", pathBootstrap, strings.Repeat("[", 20000), 400},
		"too large":           {"POST", pathBootstrap, `{"payload":"` + strings.Repeat("A", maxRequest) + `"}`, 400},
		"evidence too large":  {"POST", pathCredential, `{"evidence":"` + strings.Repeat("A", maxCredentialRequest) + `"}`, 400},
		"other mesh":          {"POST", pathCredential, `{}`, 403},
		"no bootstrap":        {"POST", pathBootstrap, `{"payload":"e30="}`, 400},
		"nobody started":      {"POST", pathStarted, `{"attempt":1}`, 400},
	} {
		w.clock.advance(time.Minute)
		req, err := http.NewRequest(tc.method, w.url+tc.path, strings.NewReader(tc.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		raw, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		var answer refusalAnswer
		if err != nil || resp.StatusCode != tc.status || json.Unmarshal(raw, &answer) != nil || answer.Reason.Code == "" || answer.Reason.Remedy == "" {
			t.Errorf("%s: got %d %.200s, %v; want %d with a reason", name, resp.StatusCode, raw, err, tc.status)
		}
	}
}

// A stock client that could do with less gets the hybrid key exchange, and one that knows no
// such thing gets nothing.
func TestKeyExchange(t *testing.T) {
	w := newWorld(t)
	resp, err := rawClient(t, w, nil).Post(w.url+pathNonce, "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.TLS.CurveID != tls.X25519MLKEM768 || resp.TLS.DidResume {
		t.Errorf("key exchange %s, resumed %v", resp.TLS.CurveID, resp.TLS.DidResume)
	}
	if resp, err := rawClient(t, w, func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.X25519} }).Post(w.url+pathNonce, "application/json", strings.NewReader("{}")); err == nil {
		resp.Body.Close()
		t.Error("X25519 alone was accepted")
	}
}

func TestOnlyTLS13(t *testing.T) {
	w := newWorld(t)
	c := rawClient(t, w, func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 })
	resp, err := c.Post(w.url+pathNonce, "application/json", strings.NewReader("{}"))
	if err == nil {
		resp.Body.Close()
		t.Error("TLS 1.2 was accepted")
	}
}

func TestFloodIsBusy(t *testing.T) {
	w := newWorld(t)
	c := rawClient(t, w, nil)
	statuses := map[int]int{}
	for range int(requestBurst) + 5 {
		resp, err := c.Post(w.url+pathNonce, "application/json", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		statuses[resp.StatusCode]++
	}
	if statuses[200] != int(requestBurst) || statuses[429] != 5 {
		t.Errorf("statuses %v, want %v granted and the rest busy", statuses, requestBurst)
	}
	w.clock.advance(time.Second)
	w.mustEnrol(w.boot("n1", "first"))
}

// A client believes only what it asked for, whatever the enroller answers.
func TestClientChecksCredential(t *testing.T) {
	w := newWorld(t)
	n := w.boot("n1", "first")
	n.Roles = []string{"seat"}
	raw, err := n.enrol()
	if err != nil {
		t.Fatal(err)
	}
	peer, cosigner := n.peer(), n.CosignerKey.Public().(ed25519.PublicKey)
	if err := n.checkCredential(raw, peer, cosigner); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(c *Client){
		"other node":   func(c *Client) { c.Node.Name = "n2" },
		"other org":    func(c *Client) { c.Node.Org = "beta" },
		"other mesh":   func(c *Client) { c.MeshID[0] ^= 1 },
		"incarnation":  func(c *Client) { c.Incarnation = 1 },
		"fewer roles":  func(c *Client) { c.Roles = nil },
		"other signer": func(c *Client) { c.EnrollKeys[0] = enrollKey("beta").Public() },
	} {
		other := *n.Client
		other.EnrollKeys = append(other.EnrollKeys[:0:0], other.EnrollKeys...)
		change(&other)
		if err := other.checkCredential(raw, peer, cosigner); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := n.checkCredential(raw, "", cosigner); err == nil {
		t.Error("another peer: accepted")
	}
	if err := n.checkCredential(raw, peer, keyOf("x").Public().(ed25519.PublicKey)); err == nil {
		t.Error("another cosigner: accepted")
	}
}

// A slow attester costs the caller no more than his context.
func TestCredentialGivesUp(t *testing.T) {
	w := newWorld(t)
	n := w.boot("n1", "first")
	release := n.attester.Hold()
	defer release()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	_, err := n.Credential(ctx, n.prover)
	wantCode(t, "held attester", err, attest.CodeUnavailable)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), w.url) {
		t.Errorf("got %v, want a deadline that names the enroller", err)
	}
}

func FuzzCredentialRequest(f *testing.F) {
	f.Add([]byte(`{"node":"n1","peer":"12D3KooWA1bwkGdHqZGzSMsn3NF6sJzkzdUQJzvTL6ioQsJTzQsK","roles":["seat"],"nonce":"AA=="}`))
	f.Add([]byte(`{"cosigner":""}`))
	f.Add([]byte(`{"path":[null],"index":18446744073709551615}`))
	s := &Server{scope: scope{mesh: identity.MeshID{1}}}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var req credentialRequest
		if decodeJSON(raw, &req) != nil {
			return
		}
		req.MeshID = s.scope.mesh
		if s.checkScope(&req) != nil {
			return
		}
		if _, ok := req.Cosigner.PublicKey.(ed25519.PublicKey); !ok || req.Peer.Validate() != nil || len(req.RuntimeHead) != 32 {
			t.Fatalf("passed: %+v", req)
		}
	})
}
