package exchange

import (
	"crypto/subtle"
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// Fast is the content of FAST_I and FAST_R.
type Fast struct {
	Transcript  [32]byte
	MAC         [32]byte
	RuntimeHead [32]byte
}

type wireFast struct {
	_           struct{} `cbor:",toarray"`
	Transcript  []byte
	MAC         []byte
	RuntimeHead []byte
}

// Encode returns the body of the frame.
func (f Fast) Encode() ([]byte, error) {
	body, err := cborEncode.Marshal(wireFast{Transcript: f.Transcript[:], MAC: f.MAC[:], RuntimeHead: f.RuntimeHead[:]})
	if err != nil {
		return nil, fmt.Errorf("fast: %w", err)
	}
	return body, nil
}

// DecodeFast reads the body of a FAST frame.
func DecodeFast(body []byte) (Fast, error) {
	if len(body) > MaxFast {
		return Fast{}, fmt.Errorf("fast: %d bytes, the limit is %d", len(body), MaxFast)
	}
	var w wireFast
	if err := decodeCanonical(body, &w); err != nil {
		return Fast{}, fmt.Errorf("fast: %w", err)
	}
	var f Fast
	if len(w.Transcript) != 32 || len(w.MAC) != 32 || len(w.RuntimeHead) != 32 {
		return Fast{}, fmt.Errorf("fast: transcript of %d, MAC of %d and runtime head of %d bytes, want 32", len(w.Transcript), len(w.MAC), len(w.RuntimeHead))
	}
	copy(f.Transcript[:], w.Transcript)
	copy(f.MAC[:], w.MAC)
	copy(f.RuntimeHead[:], w.RuntimeHead)
	return f, nil
}

func (x *exchange) scope() scope { return scope{x.MeshID, x.Incarnation} }

// ask decides, for this side as verifier, whether a MAC is enough, and returns what HELLO
// says in want. The responder has judged the peer's Credential by then, the initiator goes
// by the one that it knows and judges again when the MAC is there.
func (x *exchange) ask() []byte {
	if x.Pairs == nil || x.Purpose != attest.PurposeChannel {
		return nil
	}
	v := x.Pairs.verdictAbout(x.Peer, x.scope())
	if v == nil {
		return nil
	}
	subject := v.subject
	if x.verified {
		subject = x.subject
		if x.peer.Kinds != v.claims.Kind {
			return nil
		}
	}
	if !x.Judge.Rejudge(subject, v.claims).Affirming() {
		x.Pairs.dropVerdict(x.Peer)
		return nil
	}
	x.asked = v
	id := v.key.ID()
	return id[:]
}

// answer returns the key that the peer asked to be convinced by, or nil if it must be
// shown evidence.
func (x *exchange) answer() *ownKey {
	if x.Pairs == nil || x.Purpose != attest.PurposeChannel || len(x.peer.Want) != len(PairID{}) {
		return nil
	}
	return x.Pairs.keyNamed(x.Peer, PairID(x.peer.Want), x.Prover.Head(), x.scope())
}

func (x *exchange) sendFast(kind FrameType, k *ownKey) error {
	body, err := Fast{x.transcript(), k.key.MAC(x.binder(true), k.head), k.head}.Encode()
	if err != nil {
		return fmt.Errorf("exchange with %s: %w", x.Peer, err)
	}
	return x.send(kind, body)
}

// judgeFast decides about the peer's MAC; no reasons means accepted. The verdict that was
// asked about is used as it is: nothing here makes it last longer.
func (x *exchange) judgeFast(transcript [32]byte, body []byte) (*finding, []attest.Reason) {
	refuse := func(code attest.Code, claim, got, want string) (*finding, []attest.Reason) {
		return nil, []attest.Reason{attest.NewReason(code, claim, got, want)}
	}
	f, err := DecodeFast(body)
	if err != nil {
		return refuse(attest.CodeMalformed, "fast", err.Error(), "a canonical FAST")
	}
	if subtle.ConstantTimeCompare(f.Transcript[:], transcript[:]) != 1 {
		return refuse(attest.CodeNotBound, "transcript", "another conversation", "this conversation")
	}
	v := x.asked
	mac := v.key.MAC(x.binder(false), f.RuntimeHead)
	if subtle.ConstantTimeCompare(f.MAC[:], mac[:]) != 1 {
		return refuse(attest.CodeNotBound, "mac", "not made with the pair key for this connection", "the MAC of the peer that was attested")
	}
	if f.RuntimeHead != v.head {
		x.Pairs.dropVerdict(x.Peer)
		return refuse(attest.CodeStale, "runtime_head", fmt.Sprintf("%x", f.RuntimeHead[:]), fmt.Sprintf("%x", v.head[:]))
	}
	if x.peer.Kinds != v.claims.Kind {
		return refuse(attest.CodeProtocol, "kind", x.peer.Kinds, v.claims.Kind)
	}
	if !time.Now().Before(v.notAfter) {
		return refuse(attest.CodeStale, "verdict", "older than "+x.Pairs.Window().String(), "fresh evidence")
	}
	result := x.Judge.Rejudge(x.subject, v.claims)
	if !result.Affirming() {
		x.Pairs.dropVerdict(x.Peer)
		if len(result.Reasons) > 0 {
			return nil, result.Reasons
		}
		return refuse(attest.CodeUnavailable, "verdict", string(result.Verdict), string(attest.VerdictAffirming))
	}
	return &finding{claims: v.claims, result: result, head: v.head, fast: true, attestedAt: v.attestedAt, notAfter: v.notAfter}, nil
}
