package exchange

import (
	"context"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Protocol names what a stream speaks, as "/meshnode/raft/1".
type Protocol string

// Subject is who a peer is, as its organisation's Credential says.
type Subject struct {
	Peer       identity.PeerID
	Node       identity.NodeRef
	BootSeq    identity.BootSeq
	Roles      []string
	Credential []byte // as received
}

// Session is the verdict about the peer of one connection. It is immutable and belongs to
// that connection: another connection of the same peer has another Session, and so has the
// same connection once it was attested again.
type Session struct {
	Subject
	Claims      attest.Claims  // of the evidence, if Fast of the evidence then
	Result      attest.Result  // under the policy in force at Established
	OwnEpoch    identity.Epoch // what our HELLO said
	PeerEpoch   identity.Epoch // what the peer's HELLO said
	Initiator   bool           // this side dialled
	Fast        bool           // the peer proved that it holds the key of an earlier full exchange
	Established time.Time
	// AttestedAt is when the nonce under the evidence was drawn: the evidence is younger.
	AttestedAt time.Time
	// NotAfter ends the window that began at AttestedAt; a fast exchange never moves it. Both
	// times carry the monotonic clock, by which Expired decides.
	NotAfter time.Time
	// RuntimeHead is the head of the peer's runtime event log, as in its report data.
	RuntimeHead [32]byte
}

// Expired reports whether the verdict has outlived its window. The zero Session has.
func (s *Session) Expired(now time.Time) bool { return !now.Before(s.NotAfter) }

// Judge is the Relying Party's opinion of peers. All methods are called concurrently.
type Judge interface {
	// Credential decides by one signature check who peer is, from the Credential it sent.
	// A nil reason accepts. It is called before any evidence of the peer is looked at.
	Credential(peer identity.PeerID, raw []byte) (Subject, *attest.Reason)
	// Appraise decides about evidence that must carry data. Only an affirming Result over
	// genuine and bound Claims admits.
	Appraise(ctx context.Context, s Subject, ev attest.Evidence, data attest.ReportData) (attest.Claims, attest.Result)
	// Rejudge decides about claims that this Judge found affirming before, under the policy
	// in force now; it also refuses a boot that a newer one has replaced. It is a pure
	// function of its arguments and that policy, makes no quote and must not block.
	Rejudge(s Subject, c attest.Claims) attest.Result
	// Permit decides about each stream opened or accepted; nil permits. It must not block.
	Permit(s *Session, p Protocol) *attest.Reason
	// Keep decides about each open stream when the mesh is asked to recheck; nil keeps it
	// open. It must not block.
	Keep(s *Session, p Protocol) *attest.Reason
}

// Refusal is the error of an attested connection or stream that one side refused.
type Refusal struct {
	Peer    identity.PeerID
	Remote  bool            // the peer refused us
	Reasons []attest.Reason // never empty in a Refusal that Normalize returned
}

// Normalize gives a refusal without reasons the only meaning it can have: the peer did not
// recognise our Credential, so it owed us no explanation.
func (r Refusal) Normalize() Refusal {
	if len(r.Reasons) == 0 {
		r.Reasons = []attest.Reason{attest.NewReason(attest.CodeNoCredential, "credential", "a refusal without reasons",
			"a Credential of this mesh and incarnation that the peer recognises")}
	}
	return r
}

// Error implements error.
func (r *Refusal) Error() string {
	reasons := joinReasons(r.Normalize().Reasons)
	if r.Remote {
		return "peer " + r.Peer.String() + " refused us: " + reasons
	}
	return "refused peer " + r.Peer.String() + ": " + reasons
}

// Code returns the first reason's code.
func (r *Refusal) Code() attest.Code { return r.Normalize().Reasons[0].Code }
