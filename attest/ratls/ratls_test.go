package ratls_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/ratls"
	"github.com/attestmesh/meshnode/internal/identity"
)

var now = time.Date(2026, 11, 27, 9, 0, 0, 0, time.UTC)

func forger() *attesttest.Forger { return attesttest.New("ratls") }

var releaseMeasurement = attesttest.Measurement("release")

func claimant(seed string) ratls.Claimant {
	key := ed25519.NewKeyFromSeed(sum("peer " + seed))
	return ratls.Claimant{MeshID: sha256.Sum256([]byte("mesh " + seed)), Incarnation: 3, Peer: identity.PeerIDFromKey(key.Public().(ed25519.PublicKey))}
}

func sum(s string) []byte {
	h := sha256.Sum256([]byte(s))
	return h[:]
}

// prove makes a proof of bind in a batch with two others.
func prove(t *testing.T, c ratls.Claimant, bind [32]byte) attest.Proof {
	t.Helper()
	root, inclusions, err := attest.BatchRoot([][32]byte{[32]byte(sum("first")), bind, [32]byte(sum("third"))})
	if err != nil {
		t.Fatal(err)
	}
	head := [32]byte(sum("runtime head"))
	ev, err := forger().Attester(releaseMeasurement).Attest(context.Background(),
		attest.NewReportData(attest.KindSim, c.MeshID, string(c.Peer), head, root))
	if err != nil {
		t.Fatal(err)
	}
	return attest.Proof{Evidence: ev, RuntimeHead: head, Inclusion: inclusions[1]}
}

func certificate(t *testing.T, change func(*ratls.Template)) (tls.Certificate, ratls.Key) {
	t.Helper()
	key, err := ratls.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	c := claimant("a")
	tmpl := ratls.Template{Claimant: c, Node: identity.NodeRef{Org: "alpha", Name: "n1"}, Names: []string{"127.0.0.1", "node.example.org"},
		Proof: prove(t, c, c.CertificateBinder(key.SPKIHash())), NotBefore: now, Lifetime: ratls.MaxLifetime}
	if change != nil {
		change(&tmpl)
	}
	cert, err := key.Certificate(tmpl)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func verify(c ratls.Certificate) error {
	data, err := c.ReportData()
	if err != nil {
		return err
	}
	_, err = forger().Scheme().Verify(context.Background(), c.Proof.Evidence, &data, now)
	return err
}

func code(err error) attest.Code {
	var e *attest.Error
	if !errors.As(err, &e) {
		return ""
	}
	return e.Reason.Code
}

func TestCertificateProvesItsKey(t *testing.T) {
	cert, key := certificate(t, nil)
	got, err := ratls.ParseCertificate(cert.Leaf, now.Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if got.Claimant != claimant("a") || got.SPKIHash != key.SPKIHash() || got.SPKIHash != sha256.Sum256(cert.Leaf.RawSubjectPublicKeyInfo) {
		t.Errorf("got %+v", got)
	}
	if err := verify(got); err != nil {
		t.Errorf("a genuine certificate: %v", err)
	}
	if cert.Leaf.VerifyHostname("127.0.0.1") != nil || cert.Leaf.VerifyHostname("node.example.org") != nil {
		t.Error("the certificate does not name its host")
	}
	if !ratls.HasProof(cert.Leaf) {
		t.Error("no extension")
	}
	if key.SPKIHash() == (ratls.Key{}).SPKIHash() {
		t.Error("a key without a hash")
	}
}

// Whatever the certificate says of itself is in the evidence.
func TestCertificateFieldsAreBound(t *testing.T) {
	cert, _ := certificate(t, nil)
	for name, change := range map[string]func(*ratls.Certificate){
		"mesh":         func(c *ratls.Certificate) { c.MeshID[0] ^= 1 },
		"incarnation":  func(c *ratls.Certificate) { c.Incarnation++ },
		"peer":         func(c *ratls.Certificate) { c.Peer = claimant("b").Peer },
		"key":          func(c *ratls.Certificate) { c.SPKIHash[31] ^= 1 },
		"runtime head": func(c *ratls.Certificate) { c.Proof.RuntimeHead[0] ^= 1 },
		"leaf":         func(c *ratls.Certificate) { c.Proof.Inclusion.Index = 0 },
	} {
		c, err := ratls.ParseCertificate(cert.Leaf, now)
		if err != nil {
			t.Fatal(err)
		}
		change(&c)
		if err := verify(c); code(err) != attest.CodeNotBound {
			t.Errorf("%s: got %v, want %s", name, err, attest.CodeNotBound)
		}
	}
}

func TestCertificatesRefused(t *testing.T) {
	good, key := certificate(t, nil)
	resign := func(change func(*x509.Certificate)) *x509.Certificate {
		t.Helper()
		template := *good.Leaf
		template.ExtraExtensions = nil
		for _, e := range good.Leaf.Extensions {
			if e.Id.Equal(ratls.OIDConceptualMessage()) {
				template.ExtraExtensions = append(template.ExtraExtensions, e)
			}
		}
		change(&template)
		der, err := x509.CreateCertificate(rand.Reader, &template, &template, good.Leaf.PublicKey, good.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	value := good.Leaf.Extensions[len(good.Leaf.Extensions)-1].Value
	var record []byte
	if _, err := asn1.Unmarshal(value, &record); err != nil {
		t.Fatal(err)
	}
	tampered := *good.Leaf
	tampered.Signature = bytes.Clone(tampered.Signature)
	tampered.Signature[len(tampered.Signature)-1] ^= 1
	wrap := func(b []byte) func(*x509.Certificate) {
		v, err := asn1.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		return func(c *x509.Certificate) { c.ExtraExtensions[0].Value = v }
	}
	for name, tc := range map[string]struct {
		cert *x509.Certificate
		at   time.Time
		want attest.Code
	}{
		"too early":        {good.Leaf, now.Add(-time.Second), attest.CodeStale},
		"too late":         {good.Leaf, now.Add(ratls.MaxLifetime + time.Second), attest.CodeStale},
		"long life":        {resign(func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(time.Second) }), now, attest.CodeStale},
		"tampered":         {&tampered, now, attest.CodeMalformed},
		"no name":          {resign(func(c *x509.Certificate) { c.URIs = nil }), now, attest.CodeMalformed},
		"two names":        {resign(func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }), now, attest.CodeMalformed},
		"no extension":     {resign(func(c *x509.Certificate) { c.ExtraExtensions = nil }), now, attest.CodeMalformed},
		"trailing DER":     {resign(func(c *x509.Certificate) { c.ExtraExtensions[0].Value = append(bytes.Clone(value), 0) }), now, attest.CodeMalformed},
		"trailing CBOR":    {resign(wrap(append(bytes.Clone(record), 0))), now, attest.CodeMalformed},
		"other indicator":  {resign(wrap(append(bytes.Clone(record[:len(record)-1]), 8))), now, attest.CodeMalformed},
		"bare proof":       {resign(wrap(record[len(ratls.ProofType)+5:])), now, attest.CodeMalformed},
		"empty record":     {resign(wrap(nil)), now, attest.CodeMalformed},
		"not a CMW record": {resign(wrap([]byte{0xf6})), now, attest.CodeMalformed},
	} {
		if _, err := ratls.ParseCertificate(tc.cert, tc.at); code(err) != tc.want {
			t.Errorf("%s: got %v, want %s", name, err, tc.want)
		}
	}
	// A stranger's certificate of another key type.
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := *good.Leaf
	template.SignatureAlgorithm, template.PublicKey = x509.PureEd25519, private.Public()
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	other, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ratls.ParseCertificate(other, now); code(err) != attest.CodeMalformed {
		t.Errorf("an Ed25519 certificate: got %v", err)
	}
	// Certificates that are not made.
	for name, tmpl := range map[string]ratls.Template{
		"no life":     {Claimant: claimant("a"), Proof: prove(t, claimant("a"), [32]byte{})},
		"long life":   {Claimant: claimant("a"), Proof: prove(t, claimant("a"), [32]byte{}), Lifetime: ratls.MaxLifetime + 1},
		"no evidence": {Claimant: claimant("a"), Lifetime: time.Minute},
		"big evidence": {Claimant: claimant("a"), Lifetime: time.Minute, Proof: attest.Proof{Evidence: attest.Evidence{Kind: attest.KindVTPM,
			Items: []attest.Item{{Type: attest.TypeEventLog, Data: make([]byte, ratls.MaxCertificateProof)}}}}},
	} {
		if _, err := key.Certificate(tmpl); err == nil {
			t.Errorf("%s: made", name)
		}
	}
	if _, err := (ratls.Key{}).Certificate(ratls.Template{}); err == nil {
		t.Error("a certificate without a key")
	}
}

// Both ends of one TLS connection, and nobody else, have the challenge's exporter value.
func TestExporterIsOneConnections(t *testing.T) {
	cert, _ := certificate(t, nil)
	nonce := [32]byte(sum("nonce"))
	connect := func() (client, server [32]byte) {
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		srv := tls.Server(b, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13})
		cli := tls.Client(a, &tls.Config{InsecureSkipVerify: true})
		done := make(chan error, 1)
		go func() { done <- srv.Handshake() }()
		if err := cli.Handshake(); err != nil {
			t.Fatal(err)
		}
		// The server's Finished waits for nobody: it has been read by now.
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		cs, ss := cli.ConnectionState(), srv.ConnectionState()
		if cs.CurveID != tls.X25519MLKEM768 {
			t.Errorf("key exchange %s", cs.CurveID)
		}
		var err error
		if client, err = ratls.EKM(cs.ExportKeyingMaterial, nonce); err != nil {
			t.Fatal(err)
		}
		if server, err = ratls.EKM(ss.ExportKeyingMaterial, nonce); err != nil {
			t.Fatal(err)
		}
		return client, server
	}
	c1, s1 := connect()
	c2, s2 := connect()
	if c1 != s1 || c2 != s2 || c1 == c2 {
		t.Errorf("exporters %x %x and %x %x", c1, s1, c2, s2)
	}
	if _, err := ratls.EKM(func(string, []byte, int) ([]byte, error) { return nil, nil }, nonce); err == nil {
		t.Error("an exporter of nothing")
	}
}

func TestRequestIsStrict(t *testing.T) {
	want := ratls.Request{Nonce: [32]byte(sum("n"))}
	raw := want.Encode()
	got, err := ratls.DecodeRequest(raw)
	if err != nil || got != want {
		t.Fatalf("got %v, %v", got, err)
	}
	for name, bad := range map[string]string{
		"empty": "", "null": "null", "no nonce": "{}", "zero": `{"nonce":"` + strings.Repeat("0", 64) + `"}`,
		"short": `{"nonce":"` + strings.Repeat("a", 62) + `"}`, "upper": strings.ToUpper(string(raw)),
		"white space": string(raw) + "\n", "twice": string(raw) + string(raw), "unknown": strings.TrimSuffix(string(raw), "}") + `,"x":1}`,
		"other name": strings.Replace(string(raw), "nonce", "Nonce", 1), "long": string(raw) + strings.Repeat(" ", 300),
		"duplicate": strings.TrimSuffix(string(raw), "}") + `,"nonce":"` + strings.Repeat("a", 64) + `"}`,
	} {
		if _, err := ratls.DecodeRequest([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func answer(t *testing.T) ratls.Answer {
	t.Helper()
	cert, _ := certificate(t, nil)
	c := claimant("a")
	proof, err := ratls.EncodeProof(prove(t, c, [32]byte(sum("bind"))))
	if err != nil {
		t.Fatal(err)
	}
	return ratls.Answer{Peer: c.Peer, Credential: []byte("credential"), Proof: proof, RuntimeLog: []byte{0x80}, Policy: [][]byte{[]byte("genesis"), []byte("<&>")},
		Heads:      ratls.Heads{Inclusion: attest.Inclusion{Index: 1, Size: 2, Path: [][]byte{sum("sibling")}}, Statements: [][]byte{[]byte("head")}},
		Checkpoint: []byte("note"), Certificate: cert.Certificate[0]}
}

func TestAnswerIsStrict(t *testing.T) {
	want := answer(t)
	raw, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ratls.DecodeAnswer(raw)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v", got, err)
	}
	if _, err := ratls.DecodeProof(got.Proof); err != nil {
		t.Error(err)
	}
	seated := want
	seated.Seats = [][]byte{[]byte("a Credential")}
	with, err := seated.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ratls.DecodeAnswer(with); err != nil || !reflect.DeepEqual(got, seated) {
		t.Fatalf("with seats: got %+v, %v", got, err)
	}
	s := string(raw)
	for name, bad := range map[string]string{
		"empty": "", "null": "null", "nothing": "{}", "trailing": s + "\n", "unknown": strings.TrimSuffix(s, "}") + `,"x":1}`,
		"null bytes": strings.Replace(s, `"`+base64.StdEncoding.EncodeToString([]byte("note"))+`"`, "null", 1),
		"null step":  strings.Replace(s, `"policy":[`, `"policy":[null,`, 1), "no peer": strings.Replace(s, want.Peer.String(), "", 1),
		"url base64": strings.Replace(s, base64.StdEncoding.EncodeToString([]byte("<&>")), base64.URLEncoding.EncodeToString([]byte("<&>"))+" ", 1),
		"many heads": strings.Replace(s, `"statements":[`, `"statements":[`+strings.Repeat(`"AA==",`, ratls.MaxHeads), 1),
		"long path":  strings.Replace(s, `"path":[`, `"path":[`+strings.Repeat(`"`+strings.Repeat("0", 64)+`",`, attest.MaxPath), 1),
		"short hash": strings.Replace(s, `"path":["`, `"path":["00","`, 1),
		"null seat":  strings.Replace(s, `"checkpoint":`, `"seats":[null],"checkpoint":`, 1),
		"no seats":   strings.Replace(s, `"checkpoint":`, `"seats":[],"checkpoint":`, 1),
		"many seats": strings.Replace(s, `"checkpoint":`, `"seats":[`+strings.Repeat(`"AA==",`, ratls.MaxHeads)+`"AA=="],"checkpoint":`, 1),
	} {
		if bad == s {
			t.Errorf("%s: nothing was changed", name)
		}
		if _, err := ratls.DecodeAnswer([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for name, change := range map[string]func(*ratls.Answer){
		"no peer":     func(a *ratls.Answer) { a.Peer = "" },
		"credential":  func(a *ratls.Answer) { a.Credential = make([]byte, ratls.MaxStatement+1) },
		"proof":       func(a *ratls.Answer) { a.Proof = make([]byte, ratls.MaxProof+1) },
		"runtime log": func(a *ratls.Answer) { a.RuntimeLog = make([]byte, attest.MaxLog+1) },
		"checkpoint":  func(a *ratls.Answer) { a.Checkpoint = make([]byte, ratls.MaxStatement+1) },
		"seat":        func(a *ratls.Answer) { a.Seats = [][]byte{make([]byte, ratls.MaxStatement+1)} },
		"head":        func(a *ratls.Answer) { a.Heads.Statements = [][]byte{make([]byte, ratls.MaxStatement+1)} },
		"chain":       func(a *ratls.Answer) { a.Policy = [][]byte{make([]byte, ratls.MaxChainBytes+1)} },
		"steps":       func(a *ratls.Answer) { a.Policy = make([][]byte, ratls.MaxChain+1) },
	} {
		a := answer(t)
		change(&a)
		if _, err := a.Encode(); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
}

func TestRefusalGivesOurRemedy(t *testing.T) {
	got, ok := ratls.DecodeRefusal([]byte(`{"error":{"code":"stale","claim":"last tick","got":"1m0s ago","want":"less","remedy":"run this"}}`))
	if !ok || got != attest.NewReason(attest.CodeStale, "last tick", "1m0s ago", "less") {
		t.Errorf("got %+v", got)
	}
	for _, bad := range []string{"", "{}", "<html>", `{"error":{"code":"no such code"}}`, `{"error":{"code":""}}`} {
		if _, ok := ratls.DecodeRefusal([]byte(bad)); ok {
			t.Errorf("%q is a refusal", bad)
		}
	}
}

func TestProofIsStrict(t *testing.T) {
	raw, err := ratls.EncodeProof(prove(t, claimant("a"), [32]byte{}))
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		bad := bytes.Clone(raw)
		bad[i] ^= 0x80
		if p, err := ratls.DecodeProof(bad); err == nil {
			if back, err := ratls.EncodeProof(p); err != nil || !bytes.Equal(back, bad) {
				t.Errorf("byte %d: accepted what is not canonical", i)
			}
		}
	}
	for name, bad := range map[string][]byte{"empty": nil, "trailing": append(bytes.Clone(raw), 0), "cut": raw[:len(raw)-1], "long": make([]byte, ratls.MaxProof+1)} {
		if _, err := ratls.DecodeProof(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add(ratls.Request{Nonce: [32]byte{1}}.Encode())
	f.Add([]byte(`{"nonce":""}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if r, err := ratls.DecodeRequest(raw); err == nil && !bytes.Equal(r.Encode(), raw) {
			t.Errorf("%q is not canonical", raw)
		}
	})
}

func FuzzDecodeAnswer(f *testing.F) {
	f.Add([]byte(`{"peer":""}`))
	a := ratls.Answer{Peer: claimant("a").Peer}
	raw, err := a.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, err := ratls.DecodeAnswer(raw)
		if err != nil {
			return
		}
		if back, err := a.Encode(); err != nil || !bytes.Equal(back, raw) {
			t.Errorf("%q is not canonical: %v", raw, err)
		}
	})
}

func FuzzDecodeProof(f *testing.F) {
	raw, err := ratls.EncodeProof(attest.Proof{Evidence: attest.Evidence{Kind: "sim", Items: []attest.Item{{Type: attest.TypeSimReport, Data: []byte{1}}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte{0x83, 0x40, 0x40, 0x80})
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := ratls.DecodeProof(raw)
		if err != nil {
			return
		}
		if back, err := ratls.EncodeProof(p); err != nil || !bytes.Equal(back, raw) {
			t.Errorf("%x is not canonical: %v", raw, err)
		}
	})
}

func FuzzParseCertificate(f *testing.F) {
	key, err := ratls.NewKey()
	if err != nil {
		f.Fatal(err)
	}
	c := claimant("a")
	cert, err := key.Certificate(ratls.Template{Claimant: c, NotBefore: now, Lifetime: time.Minute,
		Proof: attest.Proof{Evidence: attest.Evidence{Kind: "sim", Items: []attest.Item{{Type: attest.TypeSimReport, Data: []byte{1}}}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(cert.Certificate[0])
	f.Fuzz(func(t *testing.T, der []byte) {
		parsed, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		if c, err := ratls.ParseCertificate(parsed, now); err == nil && (c.Peer.Validate() != nil || c.NotAfter.Sub(c.NotBefore) > ratls.MaxLifetime) {
			t.Errorf("accepted %+v", c)
		}
	})
}
