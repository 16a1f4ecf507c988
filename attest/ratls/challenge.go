package ratls

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/canonical"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Request is a client's challenge.
type Request struct {
	Nonce [NonceSize]byte
}

type wireRequest struct {
	Nonce string `json:"nonce"`
}

// Encode returns the canonical bytes of r.
func (r Request) Encode() []byte {
	raw, err := canonical.JSON(wireRequest{hex.EncodeToString(r.Nonce[:])})
	if err != nil {
		panic(err) // a string always encodes
	}
	return raw
}

// DecodeRequest reads a challenge strictly.
func DecodeRequest(raw []byte) (Request, error) {
	if len(raw) > MaxRequest {
		return Request{}, fmt.Errorf("challenge: %d bytes, the limit is %d", len(raw), MaxRequest)
	}
	var w wireRequest
	if err := canonical.DecodeJSON(raw, &w); err != nil {
		return Request{}, fmt.Errorf("challenge: %w", err)
	}
	nonce, err := hexOf32(w.Nonce)
	if err != nil {
		return Request{}, fmt.Errorf("challenge: nonce: %w", err)
	}
	if nonce == [32]byte{} {
		return Request{}, errors.New("challenge: nonce: all zero, want 32 random bytes")
	}
	return Request{nonce}, nil
}

// Heads are seats' statements over the root of a batch of clients' leaves.
type Heads struct {
	Inclusion  attest.Inclusion // of HeadLeaf(nonce)
	Statements [][]byte         // envelopes
}

// Answer is a node's answer to a challenge. Nothing of it is believed as it stands: the
// proof is evidence, the rest verifies itself from genesis, or against what the proof binds.
type Answer struct {
	Peer       identity.PeerID
	Credential []byte   // envelope
	Proof      []byte   // see EncodeProof, for the binder of purpose 4
	RuntimeLog []byte   // replays to the proof's runtime head
	Policy     [][]byte // policy chain: genesis, Bootstrap, proposals
	Heads      Heads
	// Seats are the Credentials of seats that Policy does not name: their nodes were started anew
	// or their organisations came in since Bootstrap. Left out where there are none.
	Seats      [][]byte
	Checkpoint []byte // newest published checkpoint, a signed note
	// Certificate is the DER certificate that the node shows on this connection, so that a
	// client who sees another one can tell who stands between them.
	Certificate []byte
}

type wireInclusion struct {
	Index uint64   `json:"index"`
	Size  uint64   `json:"size"`
	Path  []string `json:"path"`
}

type wireHeads struct {
	Inclusion  wireInclusion `json:"inclusion"`
	Statements [][]byte      `json:"statements"`
}

type wireAnswer struct {
	Peer        identity.PeerID `json:"peer"`
	Credential  []byte          `json:"credential"`
	Proof       []byte          `json:"proof"`
	RuntimeLog  []byte          `json:"runtime_log"`
	Policy      [][]byte        `json:"policy"`
	Heads       wireHeads       `json:"heads"`
	Seats       [][]byte        `json:"seats,omitempty"`
	Checkpoint  []byte          `json:"checkpoint"`
	Certificate []byte          `json:"certificate"`
}

// Encode returns the canonical bytes of a.
func (a Answer) Encode() ([]byte, error) {
	if err := a.check(); err != nil {
		return nil, err
	}
	w := wireAnswer{Peer: a.Peer, Credential: notNil(a.Credential), Proof: notNil(a.Proof), RuntimeLog: notNil(a.RuntimeLog), Policy: noneNil(a.Policy),
		Heads: wireHeads{Statements: noneNil(a.Heads.Statements), Inclusion: wireInclusion{a.Heads.Inclusion.Index, a.Heads.Inclusion.Size, []string{}}},
		Seats: noneNil(a.Seats), Checkpoint: notNil(a.Checkpoint), Certificate: notNil(a.Certificate)}
	for _, h := range a.Heads.Inclusion.Path {
		w.Heads.Inclusion.Path = append(w.Heads.Inclusion.Path, hex.EncodeToString(h))
	}
	raw, err := canonical.JSON(w)
	if err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	if len(raw) > MaxAnswer {
		return nil, fmt.Errorf("answer: %d bytes, the limit is %d", len(raw), MaxAnswer)
	}
	return raw, nil
}

// DecodeAnswer reads an answer strictly.
func DecodeAnswer(raw []byte) (Answer, error) {
	if len(raw) > MaxAnswer {
		return Answer{}, fmt.Errorf("answer: %d bytes, the limit is %d", len(raw), MaxAnswer)
	}
	var w wireAnswer
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&w); err != nil {
		return Answer{}, fmt.Errorf("answer: %w", err)
	}
	a := Answer{Peer: w.Peer, Credential: w.Credential, Proof: w.Proof, RuntimeLog: w.RuntimeLog, Policy: w.Policy,
		Seats: w.Seats, Checkpoint: w.Checkpoint, Certificate: w.Certificate,
		Heads: Heads{Inclusion: attest.Inclusion{Index: w.Heads.Inclusion.Index, Size: w.Heads.Inclusion.Size}, Statements: w.Heads.Statements}}
	if len(w.Heads.Inclusion.Path) > attest.MaxPath {
		return Answer{}, fmt.Errorf("answer: a path of %d, want at most %d", len(w.Heads.Inclusion.Path), attest.MaxPath)
	}
	for _, s := range w.Heads.Inclusion.Path {
		h, err := hexOf32(s)
		if err != nil {
			return Answer{}, fmt.Errorf("answer: path: %w", err)
		}
		a.Heads.Inclusion.Path = append(a.Heads.Inclusion.Path, h[:])
	}
	back, err := a.Encode()
	if err != nil {
		return Answer{}, err
	}
	if !bytes.Equal(back, raw) {
		return Answer{}, fmt.Errorf("answer: not in canonical form (re-encoded to %d bytes, got %d)", len(back), len(raw))
	}
	return a, nil
}

// check enforces the limits on either side.
func (a Answer) check() error {
	if err := a.Peer.Validate(); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	for _, part := range []struct {
		name  string
		data  []byte
		limit int
	}{
		{"credential", a.Credential, MaxStatement}, {"proof", a.Proof, MaxProof}, {"runtime_log", a.RuntimeLog, attest.MaxLog},
		{"checkpoint", a.Checkpoint, MaxStatement}, {"certificate", a.Certificate, 2 * MaxCertificateProof},
	} {
		if len(part.data) > part.limit {
			return fmt.Errorf("answer: %s of %d bytes, the limit is %d", part.name, len(part.data), part.limit)
		}
	}
	if len(a.Heads.Statements) > MaxHeads || len(a.Seats) > MaxHeads || len(a.Policy) > MaxChain {
		return fmt.Errorf("answer: %d heads, %d seats and %d steps of policy, the limits are %d, %d and %d", len(a.Heads.Statements), len(a.Seats), len(a.Policy), MaxHeads, MaxHeads, MaxChain)
	}
	for _, list := range [][][]byte{a.Heads.Statements, a.Seats} {
		for _, s := range list {
			if len(s) > MaxStatement {
				return fmt.Errorf("answer: a head or a seat's Credential of %d bytes, the limit is %d", len(s), MaxStatement)
			}
		}
	}
	total := 0
	for _, s := range a.Policy {
		total += len(s)
	}
	if total > MaxChainBytes {
		return fmt.Errorf("answer: a policy of %d bytes, the limit is %d", total, MaxChainBytes)
	}
	return nil
}

// Refusal is the body of an answer that is none: {"error":{"code","claim","got","want","remedy"}}.
type Refusal struct {
	Error attest.Reason `json:"error"`
}

// DecodeRefusal reads a refusal leniently: it decides nothing and is only shown. The remedy
// comes from the code, never from the other side.
func DecodeRefusal(raw []byte) (attest.Reason, bool) {
	var r Refusal
	if len(raw) > MaxRefusal || json.Unmarshal(raw, &r) != nil || attest.NewReason(r.Error.Code, "", "", "").Remedy == "" {
		return attest.Reason{}, false
	}
	short := func(s string) string { return s[:min(len(s), maxReasonText)] }
	return attest.NewReason(r.Error.Code, short(r.Error.Claim), short(r.Error.Got), short(r.Error.Want)), true
}

func hexOf32(s string) ([32]byte, error) {
	raw, _ := hex.DecodeString(s) // what is no hex is not the same again
	if len(raw) != 32 || hex.EncodeToString(raw) != s {
		return [32]byte{}, fmt.Errorf("%.80q is not 64 characters of lower-case hex", s)
	}
	return [32]byte(raw), nil
}

func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// noneNil keeps null out of lists of byte strings.
func noneNil(s [][]byte) [][]byte {
	out := make([][]byte, len(s))
	for i, b := range s {
		out[i] = notNil(b)
	}
	return out
}
