package exchange

import (
	"bytes"
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

// fastHeads are the CBOR heads of the three parts: an array of three, and byte strings of 32.
// A FAST has one length and one shape, so it is read and written without a CBOR library.
var fastHeads = [3][]byte{{0x83, 0x58, 32}, {0x58, 32}, {0x58, 32}}

// Encode returns the body of the frame.
func (f Fast) Encode() []byte {
	out := make([]byte, 0, MaxFast)
	for i, part := range [3][]byte{f.Transcript[:], f.MAC[:], f.RuntimeHead[:]} {
		out = append(append(out, fastHeads[i]...), part...)
	}
	return out
}

// DecodeFast reads the body of a FAST frame.
func DecodeFast(body []byte) (Fast, error) {
	if len(body) != MaxFast {
		return Fast{}, fmt.Errorf("fast: %d bytes, want %d", len(body), MaxFast)
	}
	var f Fast
	for i, part := range [3]*[32]byte{&f.Transcript, &f.MAC, &f.RuntimeHead} {
		rest, ok := bytes.CutPrefix(body, fastHeads[i])
		if !ok {
			return Fast{}, fmt.Errorf("fast: part %d is no byte string of 32", i)
		}
		body = rest[copy(part[:], rest):]
	}
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
	return x.send(kind, Fast{x.transcript(), k.key.MAC(x.binder(true), k.head), k.head}.Encode())
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
	if why := x.overtaken(v); why != nil {
		return nil, []attest.Reason{*why}
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

// overtaken says why a verdict counts no more that counted when it was asked about: its
// window is over, or it was dropped because its peer was refused elsewhere meanwhile.
func (x *exchange) overtaken(v *verdict) *attest.Reason {
	got := ""
	switch {
	case !time.Now().Before(v.notAfter):
		got = "older than " + x.Pairs.Window().String()
	case x.Pairs.verdictAbout(x.Peer, x.scope()) == nil:
		got = "dropped meanwhile"
	default:
		return nil
	}
	why := attest.NewReason(attest.CodeStale, "verdict", got, "fresh evidence")
	return &why
}
