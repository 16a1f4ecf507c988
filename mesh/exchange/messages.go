package exchange

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Hello is the content of HELLO_I and HELLO_R.
type Hello struct {
	Version     uint64
	MeshID      identity.MeshID
	Incarnation uint64
	Epoch       uint64
	Nonce       [NonceSize]byte
	Kinds       string // the kind of the evidence that follows
	Want        []byte // empty: evidence; else the id of a pair key, 32 bytes
	Credential  []byte
}

type wireHello struct {
	_           struct{} `cbor:",toarray"`
	Version     uint64
	MeshID      []byte
	Incarnation uint64
	Epoch       uint64
	Nonce       []byte
	Kinds       string
	Want        []byte
	Credential  []byte
}

// Encode returns the body of the frame, or an error if no peer could accept it.
func (h Hello) Encode() ([]byte, error) {
	body, err := codec.Encode(wireHello{Version: h.Version, MeshID: h.MeshID[:], Incarnation: h.Incarnation,
		Epoch: h.Epoch, Nonce: h.Nonce[:], Kinds: h.Kinds, Want: h.Want, Credential: h.Credential})
	if err != nil {
		return nil, fmt.Errorf("hello: %w", err)
	}
	if len(body) > MaxHello {
		return nil, fmt.Errorf("hello: %d bytes with a credential of %d, the limit is %d", len(body), len(h.Credential), MaxHello)
	}
	return body, nil
}

// DecodeHello reads the body of a HELLO. Of what is not one, the version is looked at first:
// another version may change the shape of the rest.
func DecodeHello(body []byte) (Hello, *attest.Reason) {
	refuse := func(code attest.Code, claim, got, want string) (Hello, *attest.Reason) {
		r := attest.NewReason(code, claim, got, want)
		return Hello{}, &r
	}
	if len(body) > MaxHello {
		return refuse(attest.CodeProtocol, "hello", fmt.Sprintf("%d bytes", len(body)), fmt.Sprintf("at most %d", MaxHello))
	}
	var w wireHello
	if err := codec.Decode(body, &w); err != nil || w.Version != Version {
		var parts []cbor.RawMessage
		var version uint64
		if err := codec.Peek(body, &parts); err != nil || len(parts) == 0 || codec.Peek(parts[0], &version) != nil {
			return refuse(attest.CodeMalformed, "hello", "no version", "an array that starts with the version")
		}
		if version != Version {
			return refuse(attest.CodeWrongVersion, "version", fmt.Sprint(version), fmt.Sprint(Version))
		}
		return refuse(attest.CodeMalformed, "hello", err.Error(), "a canonical HELLO")
	}
	h := Hello{Version: w.Version, Incarnation: w.Incarnation, Epoch: w.Epoch, Kinds: w.Kinds, Want: w.Want, Credential: w.Credential}
	if copy(h.MeshID[:], w.MeshID) != len(w.MeshID) || len(w.MeshID) != len(h.MeshID) {
		return refuse(attest.CodeMalformed, "mesh_id", fmt.Sprintf("%d bytes", len(w.MeshID)), "32 bytes")
	}
	if copy(h.Nonce[:], w.Nonce) != len(w.Nonce) || len(w.Nonce) != NonceSize {
		return refuse(attest.CodeMalformed, "nonce", fmt.Sprintf("%d bytes", len(w.Nonce)), "32 bytes")
	}
	if h.Nonce == [NonceSize]byte{} {
		return refuse(attest.CodeProtocol, "nonce", "all zero", "32 random bytes")
	}
	if _, err := attest.ParseKinds(h.Kinds); err != nil {
		return refuse(attest.CodeKindNotAllowed, "kinds", err.Error(), "known kinds in order")
	}
	if len(w.Want) != 0 && len(w.Want) != len(PairID{}) {
		return refuse(attest.CodeProtocol, "want", fmt.Sprintf("%d bytes", len(w.Want)), "nothing or the id of a pair key")
	}
	return h, nil
}

// Attestation is the content of ATT_I and ATT_R. Evidence is still encoded: it is opened
// only after the cheaper checks.
type Attestation struct {
	Transcript  [32]byte
	Evidence    []byte
	RuntimeHead [32]byte
	Inclusion   attest.Inclusion
}

type wireAttestation struct {
	_           struct{} `cbor:",toarray"`
	Transcript  []byte
	Evidence    []byte
	RuntimeHead []byte
	Inclusion   attest.Inclusion
}

// NewAttestation returns the body of an ATT frame for proof.
func NewAttestation(transcript [32]byte, proof attest.Proof) ([]byte, error) {
	if err := proof.Evidence.Check(); err != nil {
		return nil, err
	}
	raw, err := proof.Evidence.Encode()
	if err != nil {
		return nil, fmt.Errorf("attestation: %w", err)
	}
	return Attestation{transcript, raw, proof.RuntimeHead, proof.Inclusion}.Encode()
}

// Encode returns the body of the frame.
func (a Attestation) Encode() ([]byte, error) {
	body, err := codec.Encode(wireAttestation{Transcript: a.Transcript[:], Evidence: a.Evidence,
		RuntimeHead: a.RuntimeHead[:], Inclusion: a.Inclusion})
	if err != nil {
		return nil, fmt.Errorf("attestation: %w", err)
	}
	if len(body) > MaxAttestation {
		return nil, fmt.Errorf("attestation: %d bytes, the limit is %d", len(body), MaxAttestation)
	}
	return body, nil
}

// DecodeAttestation reads the body of an ATT frame without opening the evidence.
func DecodeAttestation(body []byte) (Attestation, error) {
	if len(body) > MaxAttestation {
		return Attestation{}, fmt.Errorf("attestation: %d bytes, the limit is %d", len(body), MaxAttestation)
	}
	var w wireAttestation
	if err := codec.Decode(body, &w); err != nil {
		return Attestation{}, fmt.Errorf("attestation: %w", err)
	}
	a := Attestation{Evidence: w.Evidence, Inclusion: w.Inclusion}
	if copy(a.Transcript[:], w.Transcript) != len(w.Transcript) || len(w.Transcript) != 32 ||
		copy(a.RuntimeHead[:], w.RuntimeHead) != len(w.RuntimeHead) || len(w.RuntimeHead) != 32 {
		return Attestation{}, fmt.Errorf("attestation: transcript of %d and runtime head of %d bytes, want 32", len(w.Transcript), len(w.RuntimeHead))
	}
	if len(a.Evidence) == 0 || len(a.Inclusion.Path) > attest.MaxPath {
		return Attestation{}, fmt.Errorf("attestation: %d bytes of evidence and a path of %d", len(a.Evidence), len(a.Inclusion.Path))
	}
	return a, nil
}

// Proof opens the evidence.
func (a Attestation) Proof() (attest.Proof, error) {
	ev, err := attest.DecodeEvidence(a.Evidence)
	if err != nil {
		return attest.Proof{}, err
	}
	return attest.Proof{Evidence: ev, RuntimeHead: a.RuntimeHead, Inclusion: a.Inclusion}, nil
}

// EKM returns the exporter value that binds evidence to the connection and both HELLOs.
func EKM(export Exporter, helloI, helloR []byte) ([]byte, error) {
	hellos := helloDigest(helloI, helloR)
	return exported(export, ExporterLabel, hellos[:], ekmSize)
}

func helloDigest(helloI, helloR []byte) [32]byte {
	h := sha256.New()
	say(h, helloI)
	say(h, helloR)
	return [32]byte(h.Sum(nil))
}

func exported(export Exporter, label string, context []byte, size int) ([]byte, error) {
	out, err := export(label, context, size)
	if err != nil {
		return nil, fmt.Errorf("exporter: %w", err)
	}
	if len(out) != size {
		return nil, fmt.Errorf("exporter: got %d bytes, want %d", len(out), size)
	}
	return out, nil
}

// Transcript returns the digest of a conversation so far.
func Transcript(ekm []byte, bodies ...[]byte) [32]byte {
	return [32]byte(conversation(ekm, bodies...).Sum(nil))
}

// conversation is a transcript that goes on.
func conversation(ekm []byte, bodies ...[]byte) hash.Hash {
	h := sha256.New()
	say(h, []byte(transcriptLabel))
	say(h, ekm)
	for _, b := range bodies {
		say(h, b)
	}
	return h
}

// say adds lp(x) to a transcript without copying x: evidence is long.
func say(h hash.Hash, x []byte) {
	var size [4]byte
	binary.BigEndian.PutUint32(size[:], uint32(len(x)))
	h.Write(size[:])
	h.Write(x)
}

func joinReasons(reasons []attest.Reason) string {
	if len(reasons) == 0 {
		return "without a reason"
	}
	parts := make([]string, len(reasons))
	for i, r := range reasons {
		parts[i] = r.String()
	}
	return strings.Join(parts, "; ")
}
