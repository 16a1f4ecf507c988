package envelope

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/sigstore/sigstore/pkg/signature"
)

// Key is a public key that speaks for one organisation.
type Key struct {
	Org    identity.OrgID
	Public crypto.PublicKey
}

// KeyID returns the lower-case hex SHA-256 of the SubjectPublicKeyInfo DER of an Ed25519
// or ECDSA P-256 key; other keys are refused.
func KeyID(pub crypto.PublicKey) (string, error) {
	der, err := MarshalPublic(pub)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}

// ed25519KeyID is KeyID of an Ed25519 key, whose SubjectPublicKeyInfo is a constant and the key
// (RFC 8410 §4).
func ed25519KeyID(pub ed25519.PublicKey) string {
	der := append([]byte{0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00}, pub...)
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

// MarshalPublic returns the SubjectPublicKeyInfo DER of an Ed25519 or P-256 key.
func MarshalPublic(pub crypto.PublicKey) ([]byte, error) {
	switch k := pub.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return nil, fmt.Errorf("key: curve %s, want P-256", k.Curve.Params().Name)
		}
	default:
		return nil, fmt.Errorf("key: %T is neither Ed25519 nor ECDSA P-256", pub)
	}
	return x509.MarshalPKIXPublicKey(pub)
}

// ParsePublic decodes a SubjectPublicKeyInfo DER of an Ed25519 or P-256 key and requires
// that it encodes back to the same bytes.
func ParsePublic(der []byte) (crypto.PublicKey, error) {
	pub, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	back, err := MarshalPublic(pub)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(back, der) {
		return nil, fmt.Errorf("key: not in canonical DER form")
	}
	return pub, nil
}

// Sign adds a signature of a sigstore signer (a file key, or a KMS through sigstore's
// plug-in) to e. Signing twice with one key is refused.
func (e *Envelope) Sign(s signature.Signer) error {
	pub, err := s.PublicKey()
	if err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	id, err := KeyID(pub)
	if err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	for _, old := range e.Signatures {
		if old.KeyID == id {
			return fmt.Errorf("sign: key %s has signed already", id[:16])
		}
	}
	sig, err := s.SignMessage(bytes.NewReader(pae(e.Payload)))
	if err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	e.Signatures = append(e.Signatures, Signature{id, sig})
	return nil
}

// NewSigner returns sigstore's signer for an Ed25519 or P-256 private key.
func NewSigner(key crypto.PrivateKey) (signature.Signer, error) {
	switch key.(type) {
	case ed25519.PrivateKey, *ecdsa.PrivateKey:
	default:
		return nil, fmt.Errorf("sign: %T is neither Ed25519 nor ECDSA P-256", key)
	}
	return signature.LoadSigner(key, crypto.SHA256)
}

// SignStatement makes, signs and returns an envelope over one statement.
func SignStatement[P any](s signature.Signer, predicateType string, subject Subject, predicate P) (*Envelope, error) {
	payload, err := NewPayload(predicateType, subject, predicate)
	if err != nil {
		return nil, err
	}
	e := &Envelope{Payload: payload}
	return e, e.Sign(s)
}

// Verify checks every signature of e against keys and returns the distinct organisations
// that signed, sorted. Any signature that is by no listed key, does not verify, repeats a
// key id or carries none is an error: an envelope with a bad signature is not what
// anybody signed. No keys, or an envelope without signatures, is an error too.
func (e *Envelope) Verify(keys []Key) ([]identity.OrgID, error) {
	if len(e.Signatures) == 0 {
		return nil, fmt.Errorf("verify: no signature")
	}
	byID := make(map[string]Key, len(keys))
	for _, k := range keys {
		id, err := KeyID(k.Public)
		if err != nil {
			return nil, fmt.Errorf("verify: %w", err)
		}
		if other, ok := byID[id]; ok {
			return nil, fmt.Errorf("verify: key %s is listed for %s and for %s", id[:16], other.Org, k.Org)
		}
		byID[id] = k
	}
	message, seen := pae(e.Payload), map[string]bool{}
	var orgs []identity.OrgID
	for i, s := range e.Signatures {
		k, ok := byID[s.KeyID]
		switch {
		case s.KeyID == "":
			return nil, fmt.Errorf("verify: signature %d has no key id", i)
		case seen[s.KeyID]:
			return nil, fmt.Errorf("verify: key %.16s signs twice", s.KeyID)
		case !ok:
			return nil, fmt.Errorf("verify: signature %d is by key %.16q, which is not one of the %d expected", i, s.KeyID, len(keys))
		}
		seen[s.KeyID] = true
		v, err := signature.LoadVerifier(k.Public, crypto.SHA256)
		if err != nil {
			return nil, fmt.Errorf("verify: %w", err)
		}
		if err := v.VerifySignature(bytes.NewReader(s.Sig), bytes.NewReader(message)); err != nil {
			return nil, fmt.Errorf("verify: signature %d by %s (key %.16s): %w", i, k.Org, s.KeyID, err)
		}
		if !slices.Contains(orgs, k.Org) {
			orgs = append(orgs, k.Org)
		}
	}
	slices.Sort(orgs)
	return orgs, nil
}

// VerifyPeer checks that e carries exactly one signature and that it is peer's.
func (e *Envelope) VerifyPeer(peer identity.PeerID) error {
	pub, err := peer.PublicKey()
	if err != nil {
		return err
	}
	if len(e.Signatures) != 1 {
		return fmt.Errorf("verify: %d signatures, want exactly that of peer %s", len(e.Signatures), peer.Short())
	}
	if e.verifyKey(pub, ed25519KeyID(pub)) {
		return nil
	}
	// It says why not.
	_, err = e.Verify([]Key{{Public: pub}})
	return err
}

// VerifyKey is VerifyPeer of a peer with a known key, whose KeyID is known too.
func (e *Envelope) VerifyKey(pub ed25519.PublicKey, keyID string) error {
	if len(e.Signatures) == 1 && e.verifyKey(pub, keyID) {
		return nil
	}
	return e.VerifyPeer(identity.PeerIDFromKey(pub))
}

// verifyKey reports whether the first signature names keyID and is pub's.
func (e *Envelope) verifyKey(pub ed25519.PublicKey, keyID string) bool {
	s := &e.Signatures[0]
	if s.KeyID != keyID || len(pub) != ed25519.PublicKeySize {
		return false
	}
	message := messages.Get().(*[]byte)
	defer messages.Put(message)
	*message = appendPAE((*message)[:0], e.Payload)
	return ed25519.Verify(pub, *message, s.Sig)
}

// messages spares an audit a copy of every leaf.
var messages = sync.Pool{New: func() any { return new([]byte) }}

// PublicKey is a crypto.PublicKey that is written as base64 SubjectPublicKeyInfo DER.
type PublicKey struct{ crypto.PublicKey }

// MarshalText implements encoding.TextMarshaler.
func (p PublicKey) MarshalText() ([]byte, error) {
	der, err := MarshalPublic(p.PublicKey)
	if err != nil {
		return nil, err
	}
	return []byte(base64.StdEncoding.EncodeToString(der)), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *PublicKey) UnmarshalText(text []byte) error {
	der, err := b64.DecodeString(string(text))
	if err != nil {
		return fmt.Errorf("key: %w", err)
	}
	pub, err := ParsePublic(der)
	if err != nil {
		return err
	}
	p.PublicKey = pub
	return nil
}

func decodeLoose(payload []byte) (Statement[json.RawMessage], error) {
	var st Statement[json.RawMessage]
	if err := json.Unmarshal(payload, &st); err != nil {
		return st, fmt.Errorf("statement: %w", err)
	}
	return st, nil
}
