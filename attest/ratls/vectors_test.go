package ratls_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/ratls"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

var update = flag.Bool("update", false, "write testdata/vectors.json anew")

// vectors is testdata/vectors.json: bytes in hex, for implementations in other languages.
// Everything but the certificate, whose key and signature are random, follows from what
// stands before it.
type vectors struct {
	MeshID      string `json:"mesh_id"`
	Incarnation uint64 `json:"incarnation"`
	Peer        string `json:"peer"`     // base58
	Attester    string `json:"attester"` // the same, binary

	Certificate struct {
		DER            string    `json:"der"`
		URI            string    `json:"uri"`
		NotBefore      time.Time `json:"not_before"`
		NotAfter       time.Time `json:"not_after"`
		SPKI           string    `json:"spki"`
		SPKIHash       string    `json:"spki_hash"`
		ExtensionOID   string    `json:"extension_oid"`
		ExtensionValue string    `json:"extension_value"`
		Proof          proof     `json:"proof"`
	} `json:"purpose_3"`

	Challenge struct {
		Request         string `json:"request"` // JSON text
		Nonce           string `json:"nonce"`
		ExporterLabel   string `json:"exporter_label"`
		ExporterContext string `json:"exporter_context"`
		EKM             string `json:"ekm"` // chosen: stands for what TLS gives
		Proof           proof  `json:"proof"`
		HeadLeaf        string `json:"head_leaf"`
		HeadRoot        string `json:"head_root"` // of the batch [head_leaf, SHA-256("other")]
		Answer          string `json:"answer"`    // JSON text
	} `json:"purpose_4"`

	// Sim is what the evidence of both proofs was signed with.
	Sim struct {
		Root        string `json:"root"` // SubjectPublicKeyInfo
		Measurement string `json:"measurement"`
	} `json:"sim"`
}

type proof struct {
	Binder      string   `json:"binder"`
	Kind        string   `json:"kind"`
	RuntimeHead string   `json:"runtime_head"`
	Index       uint64   `json:"index"`
	Size        uint64   `json:"size"`
	Path        []string `json:"path"`
	Root        string   `json:"root"`
	ReportData  string   `json:"report_data"`
	Encoded     string   `json:"encoded"`
}

func h32(b [32]byte) string { return hex.EncodeToString(b[:]) }

func (v *proof) of(t *testing.T, c ratls.Claimant, bind [32]byte, p attest.Proof) {
	t.Helper()
	root, err := p.Inclusion.Root(bind)
	if err != nil {
		t.Fatal(err)
	}
	data, err := p.ReportData(bind, c.MeshID, string(c.Peer))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := ratls.EncodeProof(p)
	if err != nil {
		t.Fatal(err)
	}
	*v = proof{Binder: h32(bind), Kind: p.Evidence.Kind, RuntimeHead: h32(p.RuntimeHead), Index: p.Inclusion.Index, Size: p.Inclusion.Size,
		Path: []string{}, Root: h32(root), ReportData: hex.EncodeToString(data[:]), Encoded: hex.EncodeToString(raw)}
	for _, s := range p.Inclusion.Path {
		v.Path = append(v.Path, hex.EncodeToString(s))
	}
}

// build makes the vectors around one certificate.
func build(t *testing.T, cert *x509.Certificate) vectors {
	t.Helper()
	var v vectors
	c := claimant("a")
	v.MeshID, v.Incarnation, v.Peer, v.Attester = c.MeshID.String(), uint64(c.Incarnation), c.Peer.String(), hex.EncodeToString([]byte(c.Peer))

	x := &v.Certificate
	x.DER, x.URI, x.SPKI = hex.EncodeToString(cert.Raw), cert.URIs[0].String(), hex.EncodeToString(cert.RawSubjectPublicKeyInfo)
	x.NotBefore, x.NotAfter = cert.NotBefore, cert.NotAfter
	spki := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	x.SPKIHash, x.ExtensionOID = h32(spki), ratls.OIDConceptualMessage().String()
	for _, e := range cert.Extensions {
		if e.Id.Equal(ratls.OIDConceptualMessage()) {
			x.ExtensionValue = hex.EncodeToString(e.Value)
		}
	}
	x.Proof.of(t, c, c.CertificateBinder(spki), prove(t, c, c.CertificateBinder(spki)))

	y := &v.Challenge
	nonce, ekm := [32]byte(sum("nonce")), [32]byte(sum("ekm"))
	bind := c.ChallengeBinder(nonce, ekm)
	p := prove(t, c, bind)
	y.Request, y.Nonce = string(ratls.Request{Nonce: nonce}.Encode()), h32(nonce)
	y.ExporterLabel, y.ExporterContext, y.EKM = ratls.ExporterLabel, h32(ratls.ExporterContext(nonce)), h32(ekm)
	y.Proof.of(t, c, bind, p)
	leaf := ratls.HeadLeaf(nonce)
	root, inclusions, err := attest.BatchRoot([][32]byte{leaf, [32]byte(sum("other"))})
	if err != nil {
		t.Fatal(err)
	}
	y.HeadLeaf, y.HeadRoot = h32(leaf), h32(root)
	encoded, err := ratls.EncodeProof(p)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := ratls.Answer{Peer: c.Peer, Credential: []byte("a Credential's envelope"), Proof: encoded, RuntimeLog: []byte{0x80},
		Policy: [][]byte{[]byte("genesis"), []byte("Bootstrap")}, Heads: ratls.Heads{Inclusion: inclusions[0], Statements: [][]byte{[]byte("a Head's envelope")}},
		Checkpoint: []byte("a signed note"), Certificate: cert.Raw}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	y.Answer = string(raw)

	der, err := envelope.MarshalPublic(forger().Roots()[0])
	if err != nil {
		t.Fatal(err)
	}
	v.Sim.Root, v.Sim.Measurement = hex.EncodeToString(der), releaseMeasurement
	return v
}

// TestVectors holds this package to bytes that others implement from PROTOCOL.md.
func TestVectors(t *testing.T) {
	path := filepath.Join("testdata", "vectors.json")
	if *update {
		cert, _ := certificate(t, nil)
		raw, err := json.MarshalIndent(build(t, cert.Leaf), "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(raw, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	der, err := hex.DecodeString(v.Certificate.DER)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(build(t, cert), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(append(got, '\n'), raw) {
		t.Errorf("this release makes other bytes than testdata/vectors.json:\n%s", got)
	}
	parsed, err := ratls.ParseCertificate(cert, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(parsed); err != nil {
		t.Error(err)
	}
	if _, err := ratls.DecodeAnswer([]byte(v.Challenge.Answer)); err != nil {
		t.Error(err)
	}
	// The record's bytes are spelled out once, so that the encoding is not only what the
	// library says.
	proof, value := v.Certificate.Proof.Encoded, v.Certificate.ExtensionValue
	size := len(proof) / 2
	record := "83" + "7823" + hex.EncodeToString([]byte(ratls.ProofType)) + "59" + hex.EncodeToString([]byte{byte(size >> 8), byte(size)}) + proof + "04"
	if want := "0482" + hex.EncodeToString([]byte{byte(len(record) / 2 >> 8), byte(len(record) / 2)}) + record; value != want {
		t.Errorf("the extension is %s, want %s", value, want)
	}
	if _, err := identity.ParsePeerID(v.Peer); err != nil {
		t.Error(err)
	}
}
