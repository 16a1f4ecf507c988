package consensus

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"regexp"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Party is one end of an edge.
type Party struct {
	Node identity.NodeRef `json:"node"`
	Peer identity.PeerID  `json:"peer"`
}

// AttestationResult is an edge: what one node found out about another on their own
// connection. It is public: it holds no hardware id, no value of a claim and no free text.
type AttestationResult struct {
	Verifier    Party                `json:"verifier"`
	Subject     Party                `json:"subject"`
	MeshID      identity.MeshID      `json:"mesh_id"`
	Incarnation identity.Incarnation `json:"incarnation"`
	Epoch       identity.Epoch       `json:"epoch"`
	Kind        string               `json:"kind"`
	Measurement string               `json:"measurement"`
	Verdict     attest.Verdict       `json:"verdict"`
	Codes       []attest.Code        `json:"codes"`
	Vector      attest.Vector        `json:"vector"`
	// Reference is the id of the entry that matched; empty unless affirming.
	Reference string `json:"reference,omitempty"`
	// Evidence is a salted commitment: see EvidenceCommitment.
	Evidence string    `json:"evidence"`
	At       time.Time `json:"at"`
	Expires  time.Time `json:"expires"`

	digest [32]byte
	raw    []byte
	packed *packedEdge // of raw, once it was needed
}

const evidenceLabel = "meshnode-evidence/v1"

// EvidenceCommitment returns the hex SHA-256 of lp(label) lp(salt) lp(encoded evidence).
// Without the salt, which members keep in private, nobody can test a guess of it.
func EvidenceCommitment(salt [32]byte, evidence []byte) string {
	buf := attest.LengthPrefixed(nil, []byte(evidenceLabel))
	buf = attest.LengthPrefixed(buf, salt[:])
	return sha256Hex(attest.LengthPrefixed(buf, evidence))
}

// ResultOf returns the edge of an appraisal, without the fields that say who and where.
// It keeps the codes of the reasons and drops their values.
func ResultOf(r attest.Result, evidence string) AttestationResult {
	out := AttestationResult{Epoch: identity.Epoch(r.Epoch), Kind: r.Kind, Measurement: r.Measurement, Verdict: r.Verdict,
		Codes: []attest.Code{}, Vector: r.Vector, Evidence: evidence, At: canonicalTime(r.At), Expires: canonicalTime(r.At.Add(MaxResultLifetime))}
	if r.Affirming() {
		out.Reference = r.Reference
	}
	for _, reason := range r.Reasons {
		if len(out.Codes) < MaxCodes {
			out.Codes = append(out.Codes, reason.Code)
		}
	}
	return out
}

// Digest is the SHA-256 of the payload: what certificates name an edge by.
func (r *AttestationResult) Digest() [32]byte { return r.digest }

// Raw returns the envelope that was parsed.
func (r *AttestationResult) Raw() []byte { return r.raw }

// SignResult signs r with the verifier's peer key and returns the envelope.
func SignResult(key ed25519.PrivateKey, r AttestationResult) ([]byte, error) {
	if r.Codes == nil {
		r.Codes = []attest.Code{}
	}
	r.At, r.Expires = canonicalTime(r.At), canonicalTime(r.Expires)
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("attestation result: %w", err)
	}
	raw, err := signPeer(key, r.Verifier.Peer, envelope.TypeAttestationResult, nodeSubject(r.Subject.Node, r.Subject.Peer), r)
	if err != nil {
		return nil, fmt.Errorf("attestation result: %w", err)
	}
	return raw, nil
}

// signPeer signs a statement with a peer key, which must be that of the peer it names.
func signPeer[P any](key ed25519.PrivateKey, peer identity.PeerID, predicateType string, subject envelope.Subject, predicate P) ([]byte, error) {
	pub, ok := key.Public().(ed25519.PublicKey)
	if !ok || identity.PeerIDFromKey(pub) != peer {
		return nil, fmt.Errorf("the key is not that of peer %s", peer.Short())
	}
	s, err := envelope.NewSigner(key)
	if err != nil {
		return nil, err
	}
	env, err := envelope.SignStatement(s, predicateType, subject, predicate)
	if err != nil {
		return nil, err
	}
	return env.Marshal(), nil
}

// ParseResult decodes an edge without judging its signature.
func ParseResult(raw []byte) (*AttestationResult, error) {
	r, _, err := decodeResult(raw)
	return r, err
}

// VerifyResult decodes an edge and checks that its verifier signed it.
func VerifyResult(raw []byte) (*AttestationResult, error) {
	r, env, err := decodeResult(raw)
	if err != nil {
		return nil, refuseErr(attest.CodeMalformed, "attestation result", err)
	}
	if err := env.VerifyPeer(r.Verifier.Peer); err != nil {
		return nil, refuseErr(attest.CodeWrongSigner, "attestation result", err)
	}
	return r, nil
}

func decodeResult(raw []byte) (*AttestationResult, *envelope.Envelope, error) {
	if len(raw) > MaxResult {
		return nil, nil, fmt.Errorf("attestation result: %d bytes, the limit is %d", len(raw), MaxResult)
	}
	env, err := envelope.Parse(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("attestation result: %w", err)
	}
	scanned, _ := scanResult(env.Payload)
	r, err := resultIn(env, raw, scanned)
	if err != nil {
		return nil, nil, fmt.Errorf("attestation result: %w", err)
	}
	return r, env, nil
}

// resultIn decodes the payload of env, whose bytes are raw. r is what scanResult has made of
// it, or nil.
func resultIn(env *envelope.Envelope, raw []byte, r *AttestationResult) (*AttestationResult, error) {
	if len(raw) > MaxResult {
		return nil, fmt.Errorf("%d bytes, the limit is %d", len(raw), MaxResult)
	}
	if r == nil {
		var err error
		if r, err = unmarshalResult(env.Payload); err != nil {
			return nil, err
		}
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	r.digest, r.raw = sha256.Sum256(env.Payload), raw
	return r, nil
}

// unmarshalResult decodes a payload by way of encoding/json.
func unmarshalResult(payload []byte) (*AttestationResult, error) {
	st, err := envelope.Decode[AttestationResult](payload, envelope.TypeAttestationResult)
	if err != nil {
		return nil, err
	}
	r := &st.Predicate
	return r, checkSubject(st.Subject, nodeSubject(r.Subject.Node, r.Subject.Peer))
}

// The list of codes may grow between releases, so that its membership must not decide
// what Apply does: only the form is judged.
var codePattern = regexp.MustCompile(`^[a-z][a-z0-9_]{0,39}$`)

func (r *AttestationResult) check() error {
	for _, p := range []Party{r.Verifier, r.Subject} {
		if err := p.Node.Validate(); err != nil {
			return err
		}
		if err := p.Peer.Validate(); err != nil {
			return err
		}
	}
	if r.Verifier.Peer == r.Subject.Peer || r.Verifier.Node == r.Subject.Node {
		return fmt.Errorf("%s judges itself", r.Subject.Node)
	}
	if r.MeshID.IsZero() {
		return fmt.Errorf("mesh_id is zero")
	}
	if r.Kind != "" {
		if _, err := attest.ParseKinds(r.Kind); err != nil {
			return err
		}
	}
	if n := len(r.Measurement); n > 2*64 || n%2 != 0 || !lowerHex(r.Measurement) {
		return fmt.Errorf("measurement: got %.24q, want at most 64 bytes in hex", r.Measurement)
	}
	if r.Codes == nil || len(r.Codes) > MaxCodes {
		return fmt.Errorf("codes: %d, want a list of at most %d", len(r.Codes), MaxCodes)
	}
	for _, c := range r.Codes {
		if !codePattern.MatchString(string(c)) {
			return fmt.Errorf("codes: %.40q is no code", c)
		}
	}
	if err := checkHex("evidence", r.Evidence, 32); err != nil {
		return err
	}
	if err := r.checkVerdict(); err != nil {
		return err
	}
	if err := checkTime("at", r.At); err != nil {
		return err
	}
	if err := checkTime("expires", r.Expires); err != nil {
		return err
	}
	if life := r.Expires.Sub(r.At); life <= 0 || life > MaxResultLifetime {
		return fmt.Errorf("valid for %s, want more than nothing and at most %s", life, MaxResultLifetime)
	}
	return nil
}

func (r *AttestationResult) checkVerdict() error {
	switch r.Verdict {
	case attest.VerdictAffirming:
		if r.Kind == "" || r.Measurement == "" {
			return fmt.Errorf("an affirming result names kind and measurement")
		}
		return checkHex("reference", r.Reference, 8)
	case attest.VerdictWarning, attest.VerdictNone, attest.VerdictContraindicated:
		if r.Reference != "" {
			return fmt.Errorf("reference: only an affirming result matched an entry")
		}
		return nil
	}
	return fmt.Errorf("verdict: got %.20q", r.Verdict)
}

// sameFinding reports whether b says nothing that a did not.
func sameFinding(a, b *AttestationResult) bool {
	if a.Verdict != b.Verdict || a.Kind != b.Kind || a.Measurement != b.Measurement || a.Reference != b.Reference || a.Vector != b.Vector || len(a.Codes) != len(b.Codes) {
		return false
	}
	for i := range a.Codes {
		if a.Codes[i] != b.Codes[i] {
			return false
		}
	}
	return true
}

// CheckResults verifies the signatures of a results command: the part of its judgement
// that needs no state. A follower calls it before it stores an entry, a submitter before
// it offers one. Other kinds pass: Apply checks their signatures itself.
func CheckResults(c Command) error {
	if c.Kind != KindResults {
		return nil
	}
	_, err := VerifyResults(c)
	return err
}

// Results are those of one results command, with valid signatures. They serve one State once.
type Results struct{ list []*AttestationResult }

// VerifyResults is CheckResults of a results command, for who will apply it: decoding it once more
// costs Apply more than all else.
func VerifyResults(c Command) (*Results, error) {
	if c.V != CommandVersion || c.Kind != KindResults {
		return nil, refuse(attest.CodeWrongVersion, "command", fmt.Sprintf("version %d kind %.20q", c.V, c.Kind), string(KindResults))
	}
	raws, err := c.envelopes(1, MaxResults)
	if err != nil {
		return nil, refuseErr(attest.CodeMalformed, "results", err)
	}
	out := &Results{make([]*AttestationResult, len(raws))}
	for i, raw := range raws {
		if out.list[i], err = VerifyResult(raw); err != nil {
			return nil, fmt.Errorf("results: %d: %w", i, err)
		}
	}
	return out, nil
}
