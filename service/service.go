// Package service is what owners and nodes sign about services: programs with a model that
// an organisation's node runs for somebody who is no member. The owner signs a Manifest; the
// node that ran it signs a Receipt for every answer. Both are pure values; package
// service/run holds and runs what a manifest names.
//
// # Manifest
//
// A DSSE envelope (internal/envelope) over one in-toto Statement of predicate type
// service-manifest/v1 with exactly one signature, by the owner's Ed25519 key. Subject: the
// service's name with the program's SHA-256. Predicate:
//
//	{"mesh_id","service","version","program":{"sha256","size"},"model":{"sha256","size"},"args":[…]}
//
// version rises: a node takes no manifest whose version is not above the one it has. What
// runs is the program's bytes, started as one static ELF executable with args; it reads the
// model from file descriptor 4 and serves HTTP/1.1 on the listening unix socket that is file
// descriptor 3 (package service/run).
//
// # Runtime event
//
// Before a node starts what a manifest names it appends Event: type "service", name the
// service's, digests "manifest" (SHA-256 of the Statement, which covers args and version),
// "model" and "program". The head of that log is in every quote from then on.
//
// # Deployment
//
// PUT /.well-known/meshnode/services/NAME, Content-Type ContentType; the body is
//
//	u32 big-endian length of the manifest envelope, envelope, program bytes, model bytes
//
// and ends there. Whoever sends it has appraised the node on this very connection.
//
// # Receipt
//
// A DSSE envelope over one Statement of predicate type service-receipt/v1 with exactly one
// signature, by the peer key of the node, which its Credential names. Subject: the service's
// name with the SHA-256 of the response's body. Predicate:
//
//	{"mesh_id","incarnation","node","peer","service","version","manifest","program","model",
//	 "runtime_head","request":{"method","path","sha256"},"response":{"status","sha256"},"nonce","time"}
//
// path is the request target below /services/NAME, query included; the digests are over the
// bodies, an absent one being empty; nonce is what the client sent in Meshnode-Nonce, 64 hex
// characters, or empty. Headers other than that are not covered. A receipt says which
// program answered; who runs it honestly is what the quote of the same peer with the same
// runtime head says.
//
// The receipt comes base64 (standard, padded) in the trailer Meshnode-Receipt, and in the
// header of the same name where the answer is short and its length is known beforehand.
package service

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/attestmesh/meshnode/attest/runtimelog"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/sigstore/sigstore/pkg/signature"
)

// KeyRole is the role of an owner's key, for meshnode keygen. Genesis does not list it.
const KeyRole = "service"

// HTTP names.
const (
	// PathDeploy and PathServices are the prefixes of the two paths; a service's name follows.
	PathDeploy   = "/.well-known/meshnode/services/"
	PathServices = "/services/"
	// ContentType is that of a deployment's body.
	ContentType = "application/vnd.meshnode.service"
	// HeaderNonce is sent by a client and comes back within the receipt.
	HeaderNonce = "Meshnode-Nonce"
	// HeaderRuntimeHead is sent by a client that wants no answer from anything but what it
	// has appraised: the hex head of the runtime log that the quote covered. A node whose log
	// has grown since hands the request to no program and answers 412.
	HeaderRuntimeHead = "Meshnode-Runtime-Head"
	// HeaderReceipt is the header, and the trailer, that holds the receipt.
	HeaderReceipt = "Meshnode-Receipt"
)

// The runtime event.
const (
	EventType    = "service"
	RoleManifest = "manifest"
	RoleModel    = "model"
	RoleProgram  = "program"
)

// Digest is a SHA-256; lower-case hex in text.
type Digest [32]byte

// String returns lower-case hex.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText encodes d as lower-case hex.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText decodes 64 lower-case hex characters.
func (d *Digest) UnmarshalText(text []byte) error {
	raw, err := hex.DecodeString(string(text))
	if err != nil || len(raw) != len(d) || hex.EncodeToString(raw) != string(text) {
		return fmt.Errorf("%.70q is no SHA-256: want 64 characters of lower-case hex", text)
	}
	copy(d[:], raw)
	return nil
}

// Blob names bytes by digest and size.
type Blob struct {
	SHA256 Digest `json:"sha256"`
	Size   int64  `json:"size"`
}

// Manifest is what an owner signs: which program may answer under a service's name. Its zero
// value is refused.
type Manifest struct {
	MeshID  identity.MeshID `json:"mesh_id"`
	Service string          `json:"service"`
	Version uint64          `json:"version"`
	Program Blob            `json:"program"`
	Model   Blob            `json:"model"`
	Args    []string        `json:"args"`

	digest Digest
}

// Digest is the SHA-256 of the Statement that was parsed; zero for one that was not.
func (m *Manifest) Digest() Digest { return m.digest }

// Event is what a node appends to its runtime log before it starts m.
func (m *Manifest) Event() runtimelog.Event {
	return runtimelog.Event{Type: EventType, Name: m.Service, Digests: []runtimelog.Digest{
		{Role: RoleManifest, SHA256: m.digest}, {Role: RoleModel, SHA256: m.Model.SHA256}, {Role: RoleProgram, SHA256: m.Program.SHA256}}}
}

func (m *Manifest) check() error {
	switch {
	case m.MeshID.IsZero():
		return errors.New("no mesh id")
	case CheckName(m.Service) != nil:
		return CheckName(m.Service)
	case m.Version == 0:
		return errors.New("version 0, want 1 or more")
	case m.Program.Size < 1 || m.Program.Size > MaxProgram:
		return fmt.Errorf("a program of %d bytes, want 1 to %d", m.Program.Size, MaxProgram)
	case m.Model.Size < 1 || m.Model.Size > MaxModel:
		return fmt.Errorf("a model of %d bytes, want 1 to %d", m.Model.Size, MaxModel)
	case m.Args == nil || len(m.Args) > MaxArgs:
		return fmt.Errorf("%d arguments, want a list of at most %d", len(m.Args), MaxArgs)
	}
	for i, a := range m.Args {
		if len(a) > MaxArg || !utf8.ValidString(a) || strings.ContainsRune(a, 0) {
			return fmt.Errorf("argument %d: %d bytes, want at most %d of UTF-8 without a zero", i+1, len(a), MaxArg)
		}
	}
	return nil
}

// CheckName refuses what cannot name a service.
func CheckName(name string) error {
	if (identity.NodeName)(name).Validate() != nil {
		return fmt.Errorf("service %.40q: want 1 to 32 of a-z, 0-9 and '-'", name)
	}
	return nil
}

func (m *Manifest) subject() envelope.Subject { return subject(m.Service, m.Program.SHA256) }

func subject(name string, d Digest) envelope.Subject {
	return envelope.Subject{Name: name, Digest: map[string]string{"sha256": d.String()}}
}

// SignManifest signs m with an owner's key and returns the envelope.
func SignManifest(s signature.Signer, m Manifest) ([]byte, error) {
	if m.Args == nil {
		m.Args = []string{}
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	env, err := envelope.SignStatement(s, envelope.TypeServiceManifest, m.subject(), m)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return env.Marshal(), nil
}

// ParseManifest decodes a manifest that owner has signed for mesh.
func ParseManifest(raw []byte, owner ed25519.PublicKey, mesh identity.MeshID) (*Manifest, error) {
	env, err := envelope.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if len(env.Signatures) != 1 {
		return nil, fmt.Errorf("manifest: %d signatures, want exactly the owner's", len(env.Signatures))
	}
	if _, err := env.Verify([]envelope.Key{{Public: owner}}); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	st, err := envelope.Decode[Manifest](env.Payload, envelope.TypeServiceManifest)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	m := st.Predicate
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if !sameSubject(st.Subject, m.subject()) {
		return nil, fmt.Errorf("manifest: the subject is not %s with its program", m.Service)
	}
	if m.MeshID != mesh {
		return nil, fmt.Errorf("manifest: for mesh %s, want %s", m.MeshID, mesh)
	}
	m.digest = sha256.Sum256(env.Payload)
	return &m, nil
}

// sameSubject wants exactly the digest that the predicate gives and no other.
func sameSubject(got []envelope.Subject, want envelope.Subject) bool {
	return len(got) == 1 && got[0].Name == want.Name && len(got[0].Digest) == 1 && got[0].Digest["sha256"] == want.Digest["sha256"]
}

// Request is what a receipt says of a request.
type Request struct {
	Method string `json:"method"`
	Path   string `json:"path"`
	SHA256 Digest `json:"sha256"`
}

// Response is what a receipt says of an answer.
type Response struct {
	Status int    `json:"status"`
	SHA256 Digest `json:"sha256"`
}

// Receipt is what a node signs about one answer. Its zero value is refused.
type Receipt struct {
	MeshID      identity.MeshID      `json:"mesh_id"`
	Incarnation identity.Incarnation `json:"incarnation"`
	Node        identity.NodeRef     `json:"node"`
	Peer        identity.PeerID      `json:"peer"`
	Service     string               `json:"service"`
	Version     uint64               `json:"version"`
	Manifest    Digest               `json:"manifest"`
	Program     Digest               `json:"program"`
	Model       Digest               `json:"model"`
	RuntimeHead Digest               `json:"runtime_head"`
	Request     Request              `json:"request"`
	Response    Response             `json:"response"`
	Nonce       string               `json:"nonce"`
	Time        time.Time            `json:"time"`
}

// methods are those that a service is asked with.
var methods = [...]string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

// Method reports whether a service may be asked with m.
func Method(m string) bool { return slices.Contains(methods[:], m) }

func (r *Receipt) check() error {
	if err := r.Node.Validate(); err != nil {
		return err
	}
	if err := r.Peer.Validate(); err != nil {
		return err
	}
	if err := CheckName(r.Service); err != nil {
		return err
	}
	zero := Digest{}
	switch {
	case r.MeshID.IsZero():
		return errors.New("no mesh id")
	case r.Version == 0:
		return errors.New("version 0, want 1 or more")
	case r.Manifest == zero || r.Program == zero || r.Model == zero || r.RuntimeHead == zero:
		return errors.New("a digest of manifest, program, model or runtime log is missing")
	case !Method(r.Request.Method):
		return fmt.Errorf("method %.20q, want one of %v", r.Request.Method, methods)
	case !strings.HasPrefix(r.Request.Path, "/") || len(r.Request.Path) > MaxTarget || !utf8.ValidString(r.Request.Path):
		return fmt.Errorf("path %.40q, want one of at most %d bytes that begins with a slash", r.Request.Path, MaxTarget)
	case r.Response.Status < 200 || r.Response.Status > 599:
		return fmt.Errorf("status %d, want 200 to 599", r.Response.Status)
	case r.Request.SHA256 == zero || r.Response.SHA256 == zero:
		return errors.New("a digest of request or response is missing")
	case r.Time.IsZero() || !r.Time.Equal(r.Time.UTC().Truncate(time.Second)) || r.Time.Location() != time.UTC:
		return fmt.Errorf("time %v, want whole seconds of UTC", r.Time)
	}
	return CheckNonce(r.Nonce)
}

// CheckNonce refuses what is neither empty nor a nonce in lower-case hex.
func CheckNonce(nonce string) error {
	raw, err := hex.DecodeString(nonce)
	if nonce != "" && (err != nil || len(raw) != NonceSize || hex.EncodeToString(raw) != nonce) {
		return fmt.Errorf("nonce %.70q, want %d characters of lower-case hex", nonce, 2*NonceSize)
	}
	return nil
}

// SignReceipt signs r with the node's peer key and returns the envelope; it cuts Time to
// whole seconds of UTC.
func SignReceipt(s signature.Signer, r Receipt) ([]byte, error) {
	r.Time = r.Time.UTC().Truncate(time.Second)
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("receipt: %w", err)
	}
	env, err := envelope.SignStatement(s, envelope.TypeServiceReceipt, subject(r.Service, r.Response.SHA256), r)
	if err != nil {
		return nil, fmt.Errorf("receipt: %w", err)
	}
	return env.Marshal(), nil
}

// ParseReceipt decodes a receipt and verifies that the peer it names has signed it. Who that
// peer is, is for the caller: the one it has appraised, or one with a Credential.
func ParseReceipt(raw []byte) (*Receipt, error) {
	env, err := envelope.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("receipt: %w", err)
	}
	st, err := envelope.Decode[Receipt](env.Payload, envelope.TypeServiceReceipt)
	if err != nil {
		return nil, fmt.Errorf("receipt: %w", err)
	}
	r := st.Predicate
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("receipt: %w", err)
	}
	if !sameSubject(st.Subject, subject(r.Service, r.Response.SHA256)) {
		return nil, fmt.Errorf("receipt: the subject is not %s with its response", r.Service)
	}
	if err := env.VerifyPeer(r.Peer); err != nil {
		return nil, fmt.Errorf("receipt: %w", err)
	}
	return &r, nil
}

// EncodeHeader returns a receipt's envelope as the header and the trailer carry it.
func EncodeHeader(raw []byte) string { return base64.StdEncoding.EncodeToString(raw) }

// DecodeHeader is the inverse of EncodeHeader.
func DecodeHeader(s string) ([]byte, error) {
	if len(s) > base64.StdEncoding.EncodedLen(envelope.MaxSize) {
		return nil, fmt.Errorf("receipt: a header of %d bytes, the limit is %d", len(s), base64.StdEncoding.EncodedLen(envelope.MaxSize))
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("receipt: header: %w", err)
	}
	if EncodeHeader(raw) != s { // the decoder skips line ends
		return nil, errors.New("receipt: header: not in canonical form")
	}
	return raw, nil
}

// Answered is what a client knows of an exchange it has had.
type Answered struct {
	MeshID      identity.MeshID
	Peer        identity.PeerID // the one it appraised on this connection
	RuntimeHead Digest          // the head that the quote covered
	Service     string
	Method      string
	Path        string // below /services/NAME
	RequestBody Digest
	Status      int
	Body        Digest
	Nonce       string
}

// Matches compares a receipt with what the client saw. The node signs what it says; only the
// client knows whether that is what it asked and got.
func (r *Receipt) Matches(a Answered) error {
	for _, c := range []struct{ what, got, want string }{
		{"mesh", r.MeshID.String(), a.MeshID.String()},
		{"peer", r.Peer.String(), a.Peer.String()},
		{"runtime head", r.RuntimeHead.String(), a.RuntimeHead.String()},
		{"service", r.Service, a.Service},
		{"method", r.Request.Method, a.Method},
		{"path", r.Request.Path, a.Path},
		{"request body", r.Request.SHA256.String(), a.RequestBody.String()},
		{"status", fmt.Sprint(r.Response.Status), fmt.Sprint(a.Status)},
		{"response body", r.Response.SHA256.String(), a.Body.String()},
		{"nonce", r.Nonce, a.Nonce},
	} {
		if c.got != c.want {
			return fmt.Errorf("receipt: %s: got %s, want %s", c.what, c.got, c.want)
		}
	}
	return nil
}

// Runs checks that the events of a node's runtime log, replayed to the receipt's head, name
// what the receipt names as the newest of that service.
func (r *Receipt) Runs(events []runtimelog.Event) error {
	e, ok := runtimelog.Newest(events, EventType, r.Service)
	if !ok {
		return fmt.Errorf("receipt: no service %s in the runtime log", r.Service)
	}
	for role, want := range map[string]Digest{RoleManifest: r.Manifest, RoleModel: r.Model, RoleProgram: r.Program} {
		if got, ok := e.Find(role); !ok || !bytes.Equal(got[:], want[:]) {
			return fmt.Errorf("receipt: %s %s, the runtime log has %x", role, want, got)
		}
	}
	return nil
}
