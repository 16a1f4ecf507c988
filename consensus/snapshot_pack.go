package consensus

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/canonical"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// What is signed is a kilobyte of base64 that follows from a hundred bytes. An image holds those
// where the envelope can be made from them again, byte for byte, and the envelope itself
// (field Raw) where it cannot: a field that this file does not know costs space, not truth.

// wireEnvelope is any envelope.
type wireEnvelope struct {
	_       struct{} `cbor:",toarray"`
	Payload []byte
	KeyIDs  [][]byte // SHA-256 of the keys
	Sigs    [][]byte
	Raw     []byte // in place of all others
}

func packEnvelope(raw []byte) wireEnvelope {
	env, err := envelope.Parse(raw)
	if err != nil {
		return wireEnvelope{Raw: raw}
	}
	w := wireEnvelope{Payload: env.Payload}
	for _, sig := range env.Signatures {
		id, err := hex.DecodeString(sig.KeyID)
		if err != nil {
			return wireEnvelope{Raw: raw}
		}
		w.KeyIDs, w.Sigs = append(w.KeyIDs, id), append(w.Sigs, sig.Sig)
	}
	if again, err := w.unpack(); err != nil || !bytes.Equal(again, raw) {
		return wireEnvelope{Raw: raw}
	}
	return w
}

func (w *wireEnvelope) unpack() ([]byte, error) {
	if len(w.Raw) > 0 {
		return w.Raw, nil
	}
	if len(w.KeyIDs) != len(w.Sigs) || len(w.Sigs) > envelope.MaxSignatures {
		return nil, fmt.Errorf("%d keys and %d signatures, want as many and at most %d", len(w.KeyIDs), len(w.Sigs), envelope.MaxSignatures)
	}
	env := envelope.Envelope{Payload: w.Payload}
	for i, id := range w.KeyIDs {
		env.Signatures = append(env.Signatures, envelope.Signature{KeyID: hex.EncodeToString(id), Sig: w.Sigs[i]})
	}
	return env.Marshal(), nil
}

// wireCredential is a Credential. Numbers without a unit are places in the table of strings.
type wireCredential struct {
	_            struct{} `cbor:",toarray"`
	Organisation uint64
	Node         string
	Peer         []byte
	Cosigner     []byte
	Roles        uint64 // joined by ','
	BootSeq      uint64
	Size         uint64
	Root         []byte
	Issued       int64 // Unix ms
	Life         int64 // ms
	AK           []byte
	KeyID        uint64
	Sig          []byte
	Raw          []byte // in place of all others
}

// packedCredential is a wireCredential before its strings have numbers.
type packedCredential struct {
	wire wireCredential
	strs credentialStrings
}

func packCredential(c *Credential, table *interner) wireCredential {
	if c.packed == nil {
		c.packed = pressCredential(c)
	}
	w, strs := c.packed.wire, c.packed.strs
	if len(w.Raw) == 0 {
		w.Organisation, w.Roles, w.KeyID = table.of(strs.org), table.of(strs.roles), table.of(strs.keyID)
	}
	return w
}

func pressCredential(c *Credential) *packedCredential {
	whole := &packedCredential{wire: wireCredential{Raw: c.raw}}
	env, err := envelope.Parse(c.raw)
	if err != nil || len(env.Signatures) != 1 {
		return whole
	}
	root, err1 := hex.DecodeString(c.Checkpoint.Root)
	ak, err2 := hex.DecodeString(c.AK)
	if err1 != nil || err2 != nil {
		return whole
	}
	p := &packedCredential{wireCredential{Node: string(c.Node), Peer: []byte(c.Peer), Cosigner: c.CosignerKey(), BootSeq: uint64(c.BootSeq),
		Size: c.Checkpoint.Size, Root: root, Issued: c.Issued.UnixMilli(), Life: c.Expires.Sub(c.Issued).Milliseconds(), AK: ak, Sig: env.Signatures[0].Sig},
		credentialStrings{string(c.Organisation), strings.Join(c.Roles, ","), env.Signatures[0].KeyID}}
	if made, _, err := p.make(c.MeshID, c.Incarnation); err != nil || !bytes.Equal(made.raw, c.raw) {
		return whole
	}
	return p
}

type credentialStrings struct{ org, roles, keyID string }

// make builds the Credential and its envelope.
func (p *packedCredential) make(mesh identity.MeshID, inc identity.Incarnation) (*Credential, *envelope.Envelope, error) {
	w, strs := &p.wire, p.strs
	if len(w.Cosigner) != ed25519.PublicKeySize {
		return nil, nil, fmt.Errorf("cosigner: %d bytes", len(w.Cosigner))
	}
	c := &Credential{MeshID: mesh, Incarnation: inc, Organisation: identity.OrgID(strs.org), Node: identity.NodeName(w.Node), Peer: identity.PeerID(w.Peer),
		Cosigner: envelope.PublicKey{PublicKey: ed25519.PublicKey(w.Cosigner)}, Roles: strings.Split(strs.roles, ","), BootSeq: identity.BootSeq(w.BootSeq),
		Checkpoint: CheckpointSeen{w.Size, hex.EncodeToString(w.Root)}, Issued: timeOf(w.Issued), Expires: timeOf(w.Issued + w.Life), AK: hex.EncodeToString(w.AK), key: strs.keyID}
	if err := c.check(); err != nil {
		return nil, nil, err
	}
	payload, err := envelope.NewPayload(envelope.TypeCredential, nodeSubject(c.Ref(), c.Peer), c)
	if err != nil {
		return nil, nil, err
	}
	env := &envelope.Envelope{Payload: payload, Signatures: []envelope.Signature{{KeyID: strs.keyID, Sig: w.Sig}}}
	if c.raw = env.Marshal(); len(c.raw) > MaxCredential {
		return nil, nil, fmt.Errorf("credential: %d bytes, the limit is %d", len(c.raw), MaxCredential)
	}
	return c, env, nil
}

// unpackCredential returns a Credential whose signature holds.
func (s *State) unpackCredential(w wireCredential, table *interner) (*Credential, error) {
	if len(w.Raw) > 0 {
		c, env, err := decodeCredential(w.Raw)
		if err != nil {
			return nil, refuseErr(attest.CodeNoCredential, "credential", err)
		}
		return c, s.checkOrdered(c, env)
	}
	var strs credentialStrings
	var err error
	for _, f := range []struct {
		to *string
		i  uint64
	}{{&strs.org, w.Organisation}, {&strs.roles, w.Roles}, {&strs.keyID, w.KeyID}} {
		if *f.to, err = table.at("credential", f.i); err != nil {
			return nil, err
		}
	}
	w.Organisation, w.Roles, w.KeyID = 0, 0, 0
	p := &packedCredential{w, strs}
	c, env, err := p.make(s.MeshID(), s.incarnation)
	if err != nil {
		return nil, err
	}
	c.packed = p
	return c, s.checkOrdered(c, env)
}

// wireEdge is an attestation result on a node.
type wireEdge struct {
	_         struct{} `cbor:",toarray"`
	Verifier  uint64   // place of the node
	Epoch     uint64
	Finding   uint64 // JSON of edgeFindings
	Evidence  []byte
	At        int64 // Unix ms
	Life      int64 // ms
	Signature []byte
	Raw       []byte // in place of all but Verifier
}

// edgeFindings is what many edges have in common.
type edgeFindings struct {
	Kind        string         `json:"kind"`
	Measurement string         `json:"measurement"`
	Verdict     attest.Verdict `json:"verdict"`
	Codes       []attest.Code  `json:"codes"`
	Vector      attest.Vector  `json:"vector"`
	Reference   string         `json:"reference"`
}

// decodedFindings are edgeFindings and their one encoding.
type decodedFindings struct {
	edgeFindings
	text string
}

// findings decodes string i, once.
func (t *interner) findings(i uint64) (decodedFindings, error) {
	if f, ok := t.decoded[i]; ok {
		return f, nil
	}
	text, err := t.at("finding", i)
	if err != nil {
		return decodedFindings{}, err
	}
	f := decodedFindings{text: text}
	if err := canonical.DecodeJSON([]byte(text), &f.edgeFindings); err != nil {
		return f, fmt.Errorf("finding: %w", err)
	}
	if t.decoded == nil {
		t.decoded = map[uint64]decodedFindings{}
	}
	t.decoded[i] = f
	return f, nil
}

// packedEdge is a wireEdge before verifier and findings have numbers.
type packedEdge struct {
	wire   wireEdge
	common string
}

func packEdge(r *AttestationResult, verifier uint64, table *interner) wireEdge {
	if r.packed == nil {
		r.packed = pressEdge(r)
	}
	w := r.packed.wire
	if w.Verifier = verifier; len(w.Raw) == 0 {
		w.Finding = table.of(r.packed.common)
	}
	return w
}

func pressEdge(r *AttestationResult) *packedEdge {
	whole := &packedEdge{wire: wireEdge{Raw: r.raw}}
	env, err := envelope.Parse(r.raw)
	if err != nil || len(env.Signatures) != 1 {
		return whole
	}
	evidence, err1 := hex.DecodeString(r.Evidence)
	findings := edgeFindings{r.Kind, r.Measurement, r.Verdict, r.Codes, r.Vector, r.Reference}
	common, err2 := canonical.JSON(findings)
	if err1 != nil || err2 != nil {
		return whole
	}
	p := &packedEdge{wireEdge{Epoch: uint64(r.Epoch), Evidence: evidence, At: r.At.UnixMilli(), Life: r.Expires.Sub(r.At).Milliseconds(), Signature: env.Signatures[0].Sig}, string(common)}
	if made, err := p.make(findings, r.Verifier, r.Subject, r.MeshID, r.Incarnation, peerKeyID); err != nil || !bytes.Equal(made.raw, r.raw) {
		return whole
	}
	return p
}

func (p *packedEdge) make(f edgeFindings, verifier, subject Party, mesh identity.MeshID, inc identity.Incarnation, keyIDOf func(identity.PeerID) (string, error)) (*AttestationResult, error) {
	w := &p.wire
	r := &AttestationResult{Verifier: verifier, Subject: subject, MeshID: mesh, Incarnation: inc, Epoch: identity.Epoch(w.Epoch),
		Kind: f.Kind, Measurement: f.Measurement, Verdict: f.Verdict, Codes: f.Codes, Vector: f.Vector, Reference: f.Reference,
		Evidence: hex.EncodeToString(w.Evidence), At: timeOf(w.At), Expires: timeOf(w.At + w.Life)}
	if err := r.check(); err != nil {
		return nil, err
	}
	payload, err := envelope.NewPayload(envelope.TypeAttestationResult, nodeSubject(subject.Node, subject.Peer), r)
	if err != nil {
		return nil, err
	}
	keyID, err := keyIDOf(verifier.Peer)
	if err != nil {
		return nil, err
	}
	env := envelope.Envelope{Payload: payload, Signatures: []envelope.Signature{{KeyID: keyID, Sig: w.Signature}}}
	if r.raw = env.Marshal(); len(r.raw) > MaxResult {
		return nil, fmt.Errorf("attestation result: %d bytes, the limit is %d", len(r.raw), MaxResult)
	}
	r.digest = sha256.Sum256(payload)
	return r, nil
}

func peerKeyID(peer identity.PeerID) (string, error) {
	pub, err := peer.PublicKey()
	if err != nil {
		return "", err
	}
	return envelope.KeyID(pub)
}

// keyID is peerKeyID, computed once for each peer.
func (t *interner) keyID(peer identity.PeerID) (string, error) {
	if id, ok := t.keys[peer]; ok {
		return id, nil
	}
	id, err := peerKeyID(peer)
	if t.keys == nil {
		t.keys = map[identity.PeerID]string{}
	}
	t.keys[peer] = id
	return id, err
}

// unpackEdge returns an edge. Its signature was judged when it was ordered and is covered, as
// all of an image is, by the logged digest.
func (s *State) unpackEdge(w wireEdge, verifier, subject Party, table *interner) (*AttestationResult, error) {
	if len(w.Raw) == 0 {
		findings, err := table.findings(w.Finding)
		if err != nil {
			return nil, err
		}
		w.Verifier, w.Finding = 0, 0
		p := &packedEdge{w, findings.text}
		r, err := p.make(findings.edgeFindings, verifier, subject, s.MeshID(), s.incarnation, table.keyID)
		if err == nil {
			r.packed = p
		}
		return r, err
	}
	r, err := ParseResult(w.Raw)
	if err != nil {
		return nil, err
	}
	if r.Verifier != verifier || r.Subject != subject || r.MeshID != s.MeshID() || r.Incarnation != s.incarnation {
		return nil, fmt.Errorf("an edge of %s on %s in mesh %s", r.Verifier.Node, r.Subject.Node, r.MeshID.Short())
	}
	return r, nil
}
