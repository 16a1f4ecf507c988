package client

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/runtimelog"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/service"
)

// signed is a node that answers service requests, honestly or after change.
type signedNode struct {
	t      *testing.T
	key    ed25519.PrivateKey
	stream bool
	change func(*http.Response, *service.Receipt)
	body   string
	twice  bool // reads the request's body twice, as a second connection does
}

func (n *signedNode) peer() identity.PeerID {
	return identity.PeerIDFromKey(n.key.Public().(ed25519.PublicKey))
}

// RoundTrip implements http.RoundTripper.
func (n *signedNode) RoundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.Body != nil {
		if n.twice {
			_, _ = io.CopyN(io.Discard, req.Body, 2)
			again, err := req.GetBody()
			if err != nil {
				n.t.Fatal(err)
			}
			req.Body = again
		}
		body, _ = io.ReadAll(req.Body)
	}
	if req.GetBody != nil {
		if _, err := req.GetBody(); err != nil { // made and not used
			n.t.Fatal(err)
		}
	}
	r := service.Receipt{MeshID: identity.MeshID{1}, Node: identity.NodeRef{Org: "bob", Name: "n1"}, Peer: n.peer(), Service: "triage", Version: 1,
		Manifest: service.Digest{1}, Program: service.Digest{2}, Model: service.Digest{3}, RuntimeHead: service.Digest{4},
		Request:  service.Request{Method: req.Method, Path: "/classify?x=1", SHA256: sha256.Sum256(body)},
		Response: service.Response{Status: 200, SHA256: sha256.Sum256([]byte(n.body))}, Nonce: req.Header.Get(service.HeaderNonce), Time: time.Unix(1000, 0)}
	resp := &http.Response{StatusCode: 200, Header: http.Header{}, Trailer: http.Header{}, ContentLength: int64(len(n.body)), Request: req,
		Body: io.NopCloser(strings.NewReader(n.body))}
	if n.change != nil {
		n.change(resp, &r)
	}
	s, err := envelope.NewSigner(n.key)
	if err != nil {
		n.t.Fatal(err)
	}
	raw, err := service.SignReceipt(s, r)
	if err != nil {
		n.t.Fatal(err)
	}
	if n.stream {
		resp.ContentLength = -1
		resp.Trailer.Set(service.HeaderReceipt, service.EncodeHeader(raw))
	} else if resp.Header.Get("No-Receipt") == "" {
		resp.Header.Set(service.HeaderReceipt, service.EncodeHeader(raw))
	}
	return resp, nil
}

// session is what the node has proved.
func (n *signedNode) session() Session {
	return Session{Peer: n.peer(), RuntimeHead: service.Digest{4}, Events: []runtimelog.Event{{Type: service.EventType, Name: "triage",
		Digests: []runtimelog.Digest{{Role: service.RoleManifest, SHA256: [32]byte{1}}, {Role: service.RoleModel, SHA256: [32]byte{3}}, {Role: service.RoleProgram, SHA256: [32]byte{2}}}}}}
}

// ask sends one request through Receipts and reads the whole answer.
func (n *signedNode) ask(k *Receipts) (string, error) {
	req, err := http.NewRequestWithContext(context.Background(), "POST", "https://h/services/triage/classify?x=1", bytes.NewReader([]byte("question")))
	if err != nil {
		return "", err
	}
	resp, err := k.Over(n).RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return string(raw), err
}

// An answer comes through with a receipt that fits it and by who has proved itself; nothing
// else does, however it comes.
func TestReceiptsAreDemanded(t *testing.T) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, stream := range []bool{false, true} {
		kept := 0
		n := &signedNode{t: t, key: key, stream: stream, body: "answer"}
		newKeeper := func() *Receipts {
			k := &Receipts{Mesh: identity.MeshID{1}, Keep: func(Kept) error { kept++; return nil }}
			k.Session(n.session())
			return k
		}
		for _, n.twice = range []bool{false, true} {
			if got, err := n.ask(newKeeper()); err != nil || got != "answer" {
				t.Fatalf("stream %v: %q, %v", stream, got, err)
			}
		}
		if n.twice = false; kept != 2 {
			t.Errorf("stream %v: %d receipts kept", stream, kept)
		}
		for name, change := range map[string]func(*http.Response, *service.Receipt){
			"another body":    func(resp *http.Response, _ *service.Receipt) { resp.Body = io.NopCloser(strings.NewReader("answeR")) },
			"another status":  func(resp *http.Response, _ *service.Receipt) { resp.StatusCode = 201 },
			"another request": func(_ *http.Response, r *service.Receipt) { r.Request.SHA256[0]++ },
			"another path":    func(_ *http.Response, r *service.Receipt) { r.Request.Path = "/" },
			"another nonce":   func(_ *http.Response, r *service.Receipt) { r.Nonce = strings.Repeat("0", 64) },
			"another service": func(_ *http.Response, r *service.Receipt) { r.Service = "other" },
			"another head":    func(_ *http.Response, r *service.Receipt) { r.RuntimeHead[0]++ },
			"another program": func(_ *http.Response, r *service.Receipt) { r.Program[0]++ },
			"another model":   func(_ *http.Response, r *service.Receipt) { r.Model[0]++ },
			"another mesh":    func(_ *http.Response, r *service.Receipt) { r.MeshID[0]++ },
		} {
			n.change = change
			got, err := n.ask(newKeeper())
			if err == nil {
				t.Errorf("stream %v, %s: %q came through", stream, name, got)
			}
			var held *ReceiptError
			if !errors.As(err, &held) {
				t.Errorf("stream %v, %s: %v does not say that it is about a receipt", stream, name, err)
			}
		}
		n.change = nil
		if got, err := n.ask(&Receipts{Mesh: identity.MeshID{1}, Keep: func(Kept) error { return nil }}); err == nil {
			t.Errorf("stream %v: %q of a stranger came through", stream, got)
		}
	}
	n := &signedNode{t: t, key: key, body: "no", change: func(resp *http.Response, _ *service.Receipt) { resp.Header.Set("No-Receipt", "1") }}
	k := &Receipts{Keep: func(Kept) error { t.Error("kept"); return nil }}
	if got, err := n.ask(k); err == nil {
		t.Errorf("%q came through without a receipt", got)
	}
	n.change = func(resp *http.Response, _ *service.Receipt) {
		resp.Header.Set("No-Receipt", "1")
		resp.StatusCode = 503
	}
	if got, err := n.ask(k); err != nil || got != "no" {
		t.Errorf("a node's error: %q, %v", got, err)
	}
}

// HTTP/2 brings the receipt of a short answer twice; a client of the proxy gets it once.
func TestReceiptComesOnce(t *testing.T) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	n := &signedNode{t: t, key: key, body: "answer", change: func(resp *http.Response, _ *service.Receipt) {
		resp.Trailer.Set(service.HeaderReceipt, "again")
	}}
	req, err := http.NewRequestWithContext(t.Context(), "POST", "https://h/services/triage/classify?x=1", strings.NewReader("question"))
	if err != nil {
		t.Fatal(err)
	}
	k := &Receipts{Mesh: identity.MeshID{1}, Keep: func(Kept) error { return nil }}
	k.Session(n.session())
	resp, err := k.Over(n).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.Header.Get(service.HeaderReceipt) == "" || len(resp.Trailer) != 0 {
		t.Errorf("headers %v, trailers %v", resp.Header, resp.Trailer)
	}
}

// An answer whose receipt cannot be kept is held back, and nobody is accused.
func TestReceiptThatIsNotKept(t *testing.T) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	n := &signedNode{t: t, key: key, body: "answer"}
	full := errors.New("no space left")
	k := &Receipts{Mesh: identity.MeshID{1}, Keep: func(Kept) error { return full }}
	k.Session(n.session())
	got, err := n.ask(k)
	var held *ReceiptError
	if !errors.As(err, &held) || !errors.Is(err, full) || held.Reason().Code != attest.CodeUnavailable {
		t.Errorf("%q, %v", got, err)
	}
}

// What no service takes is not sent, and whose limit that is is said.
func TestRequestAboveTheLimit(t *testing.T) {
	n := &signedNode{t: t, change: func(*http.Response, *service.Receipt) { t.Error("sent") }}
	req, err := http.NewRequestWithContext(t.Context(), "POST", "https://h/services/triage/classify", bytes.NewReader(make([]byte, service.MaxRequest+1)))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&Receipts{}).Over(n).RoundTrip(req)
	var r *Refusal
	if err == nil {
		resp.Body.Close()
	}
	if !errors.As(err, &r) || r.Code() != attest.CodeLimit || strings.HasPrefix(err.Error(), ":") {
		t.Errorf("got %v", err)
	}
}

func FuzzDecodeKept(f *testing.F) {
	_, raw := keptFiles(f)
	f.Add(raw)
	f.Add([]byte(`{"receipt":"","nonce":"00","ekm":"00","at":"2026-11-27T08:00:00Z","answer":""}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		k, err := DecodeKept(raw)
		if err != nil {
			return
		}
		if back, err := k.Encode(); err != nil || !bytes.Equal(back, raw) {
			t.Fatalf("accepted bytes that encode differently: %v", err)
		}
	})
}
