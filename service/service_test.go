package service

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest/runtimelog"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/sigstore/sigstore/pkg/signature"
)

var update = flag.Bool("update", false, "write the golden files")

func signer(t testing.TB, seed byte) (signature.Signer, ed25519.PublicKey) {
	t.Helper()
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
	s, err := envelope.NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s, key.Public().(ed25519.PublicKey)
}

var mesh = identity.MeshID{1, 2, 3}

func digest(s string) Digest { return sha256.Sum256([]byte(s)) }

func manifest() Manifest {
	return Manifest{MeshID: mesh, Service: "inference", Version: 3, Program: Blob{digest("program"), 7},
		Model: Blob{digest("model"), 5}, Args: []string{"-v", "<&>"}}
}

func receipt(peer identity.PeerID) Receipt {
	return Receipt{MeshID: mesh, Incarnation: 1, Node: identity.NodeRef{Org: "bob", Name: "n1"}, Peer: peer, Service: "inference",
		Version: 3, Manifest: digest("manifest"), Program: digest("program"), Model: digest("model"), RuntimeHead: digest("head"),
		Request:  Request{"POST", "/classify?top=1", digest("ask")},
		Response: Response{200, digest("answer")}, Nonce: strings.Repeat("0a", NonceSize),
		Time: time.Date(2026, 11, 27, 8, 0, 0, 0, time.UTC)}
}

// What old nodes and owners have signed stays readable: the bytes are fixed.
func TestGolden(t *testing.T) {
	s, pub := signer(t, 7)
	m, err := SignManifest(s, manifest())
	if err != nil {
		t.Fatal(err)
	}
	r, err := SignReceipt(s, receipt(identity.PeerIDFromKey(pub)))
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{"manifest.json": m, "receipt.json": r} {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, raw, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(raw, want) {
			t.Errorf("%s: %v\n got %s\nwant %s", name, err, raw, want)
		}
	}
	parsed, err := ParseManifest(m, pub, mesh)
	if err != nil {
		t.Fatal(err)
	}
	if parsed.Digest() == (Digest{}) || parsed.Version != 3 || parsed.Args[1] != "<&>" {
		t.Errorf("got %+v", parsed)
	}
	if got, err := ParseReceipt(r); err != nil || got.Service != "inference" || got.Request.Path != "/classify?top=1" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestManifestRefused(t *testing.T) {
	s, pub := signer(t, 1)
	other, otherPub := signer(t, 2)
	good, err := SignManifest(s, manifest())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseManifest(good, otherPub, mesh); err == nil {
		t.Error("a manifest of another owner was taken")
	}
	if _, err := ParseManifest(good, pub, identity.MeshID{9}); err == nil {
		t.Error("a manifest for another mesh was taken")
	}
	if _, err := ParseManifest(good, nil, mesh); err == nil {
		t.Error("a manifest of nobody was taken")
	}
	for name, change := range map[string]func(*Manifest){
		"the zero value":  func(m *Manifest) { *m = Manifest{} },
		"no mesh":         func(m *Manifest) { m.MeshID = identity.MeshID{} },
		"a path as name":  func(m *Manifest) { m.Service = "../x" },
		"version 0":       func(m *Manifest) { m.Version = 0 },
		"empty program":   func(m *Manifest) { m.Program.Size = 0 },
		"huge program":    func(m *Manifest) { m.Program.Size = MaxProgram + 1 },
		"negative model":  func(m *Manifest) { m.Model.Size = -1 },
		"huge model":      func(m *Manifest) { m.Model.Size = MaxModel + 1 },
		"many arguments":  func(m *Manifest) { m.Args = make([]string, MaxArgs+1) },
		"long argument":   func(m *Manifest) { m.Args = []string{strings.Repeat("a", MaxArg+1)} },
		"zero in it":      func(m *Manifest) { m.Args = []string{"a\x00b"} },
		"not UTF-8 in it": func(m *Manifest) { m.Args = []string{"\xff"} },
	} {
		m := manifest()
		change(&m)
		if _, err := SignManifest(s, m); err == nil {
			t.Errorf("%s was signed", name)
		}
		raw, err := envelope.SignStatement(s, envelope.TypeServiceManifest, m.subject(), m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseManifest(raw.Marshal(), pub, mesh); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	m := manifest()
	foreign, err := envelope.SignStatement(s, envelope.TypeServiceManifest, subject(m.Service, digest("x")), m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseManifest(foreign.Marshal(), pub, mesh); err == nil {
		t.Error("a subject of another program was taken")
	}
	two, _ := envelope.Parse(good)
	if err := two.Sign(other); err != nil {
		t.Fatal(err)
	}
	if _, err := ParseManifest(two.Marshal(), pub, mesh); err == nil {
		t.Error("two signatures were taken")
	}
	asReceipt, err := envelope.SignStatement(s, envelope.TypeServiceReceipt, m.subject(), m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseManifest(asReceipt.Marshal(), pub, mesh); err == nil {
		t.Error("a statement of another type was taken")
	}
}

func TestReceiptRefused(t *testing.T) {
	s, pub := signer(t, 1)
	peer := identity.PeerIDFromKey(pub)
	_, otherPub := signer(t, 2)
	for name, change := range map[string]func(*Receipt){
		"the zero value":    func(r *Receipt) { *r = Receipt{} },
		"another peer":      func(r *Receipt) { r.Peer = identity.PeerIDFromKey(otherPub) },
		"no peer":           func(r *Receipt) { r.Peer = "" },
		"no node":           func(r *Receipt) { r.Node = identity.NodeRef{} },
		"no mesh":           func(r *Receipt) { r.MeshID = identity.MeshID{} },
		"no program":        func(r *Receipt) { r.Program = Digest{} },
		"no model":          func(r *Receipt) { r.Model = Digest{} },
		"no manifest":       func(r *Receipt) { r.Manifest = Digest{} },
		"empty log":         func(r *Receipt) { r.RuntimeHead = Digest{} },
		"odd method":        func(r *Receipt) { r.Request.Method = "CONNECT" },
		"relative path":     func(r *Receipt) { r.Request.Path = "x" },
		"informational":     func(r *Receipt) { r.Response.Status = 101 },
		"short nonce":       func(r *Receipt) { r.Nonce = "0a" },
		"nonce in capitals": func(r *Receipt) { r.Nonce = strings.Repeat("0A", NonceSize) },
		"no time":           func(r *Receipt) { r.Time = time.Time{} },
		"a fraction":        func(r *Receipt) { r.Time = r.Time.Add(time.Millisecond) },
		"local time":        func(r *Receipt) { r.Time = r.Time.In(time.FixedZone("", 3600)) },
	} {
		r := receipt(peer)
		change(&r)
		raw, err := envelope.SignStatement(s, envelope.TypeServiceReceipt, subject(r.Service, r.Response.SHA256), r)
		if err != nil {
			continue // cannot even be written
		}
		if _, err := ParseReceipt(raw.Marshal()); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	r := receipt(peer)
	raw, err := envelope.SignStatement(s, envelope.TypeServiceReceipt, subject(r.Service, digest("x")), r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseReceipt(raw.Marshal()); err == nil {
		t.Error("a subject of another response was taken")
	}
	good, err := SignReceipt(s, receipt(peer))
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := ParseReceipt(bad); err == nil {
			t.Fatalf("byte %d flipped and taken", i)
		}
	}
}

// Each thing that a client saw is compared.
func TestMatches(t *testing.T) {
	_, pub := signer(t, 1)
	r := receipt(identity.PeerIDFromKey(pub))
	saw := Answered{mesh, r.Peer, r.RuntimeHead, "inference", "POST", "/classify?top=1", digest("ask"), 200, digest("answer"), r.Nonce}
	if err := r.Matches(saw); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Answered){
		"mesh":    func(a *Answered) { a.MeshID[0]++ },
		"peer":    func(a *Answered) { a.Peer = "x" },
		"head":    func(a *Answered) { a.RuntimeHead[0]++ },
		"service": func(a *Answered) { a.Service = "x" },
		"method":  func(a *Answered) { a.Method = "GET" },
		"path":    func(a *Answered) { a.Path = "/classify" },
		"request": func(a *Answered) { a.RequestBody[0]++ },
		"status":  func(a *Answered) { a.Status = 500 },
		"body":    func(a *Answered) { a.Body[0]++ },
		"nonce":   func(a *Answered) { a.Nonce = "" },
	} {
		a := saw
		change(&a)
		if r.Matches(a) == nil {
			t.Errorf("another %s matches", name)
		}
	}
}

func TestRuns(t *testing.T) {
	s, pub := signer(t, 1)
	raw, err := SignManifest(s, manifest())
	if err != nil {
		t.Fatal(err)
	}
	m, err := ParseManifest(raw, pub, mesh)
	if err != nil {
		t.Fatal(err)
	}
	var l runtimelog.Log
	if _, err := l.Append(m.Event()); err != nil {
		t.Fatal(err)
	}
	r := receipt(identity.PeerIDFromKey(pub))
	r.Manifest = m.Digest()
	events := []runtimelog.Event{m.Event()}
	if err := r.Runs(events); err != nil {
		t.Fatal(err)
	}
	newer := m.Event()
	newer.Digests = append([]runtimelog.Digest(nil), newer.Digests...)
	newer.Digests[2].SHA256[0]++
	for name, events := range map[string][]runtimelog.Event{"nothing": nil, "a newer program": append(events, newer)} {
		if r.Runs(events) == nil {
			t.Errorf("%s: passes", name)
		}
	}
}

func TestHeader(t *testing.T) {
	if raw, err := DecodeHeader(EncodeHeader([]byte("abc"))); err != nil || string(raw) != "abc" {
		t.Errorf("%q, %v", raw, err)
	}
	for _, bad := range []string{"a", "YWJj\n", "YQ=", strings.Repeat("A", base64.StdEncoding.EncodedLen(envelope.MaxSize)+4)} {
		if _, err := DecodeHeader(bad); err == nil {
			t.Errorf("%.20q was taken", bad)
		}
	}
}

func FuzzParseManifest(f *testing.F) {
	s, pub := signer(f, 1)
	good, err := SignManifest(s, manifest())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if m, err := ParseManifest(raw, pub, mesh); err == nil && !bytes.Equal(raw, good) {
			t.Fatalf("nobody signed %+v", m)
		}
		// What is signed by somebody else is decoded too.
		if env, err := envelope.Parse(raw); err == nil {
			if st, err := envelope.Decode[Manifest](env.Payload, envelope.TypeServiceManifest); err == nil {
				_ = st.Predicate.check()
			}
		}
	})
}

func FuzzParseReceipt(f *testing.F) {
	s, pub := signer(f, 1)
	good, err := SignReceipt(s, receipt(identity.PeerIDFromKey(pub)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if r, err := ParseReceipt(raw); err == nil && r.check() != nil {
			t.Fatalf("took %+v", r)
		}
	})
}
