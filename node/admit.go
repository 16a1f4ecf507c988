package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// This file is the first of the three flows: evidence → appraisal → result → log.
//
//	peer's HELLO ──► Credential    whose node is it? one signature, before anything is parsed
//	peer's ATT   ──► Appraise      authentic and bound? (Scheme)  good enough? (policy in force)
//	                     │
//	     refusal ◄───────┤ the peer reads code, got, want; remedies it looks up itself
//	                     ▼
//	              edges.record     "verifier X found subject Y …", signed by X's peer key
//	                     ▼
//	     outbox ──► submit ──► Raft ──► leaf          (outbox.go, submit.go)
//	                     ▼
//	        Permit for each stream   (what may this session speak now?)
//
// The judge holds no verdict: a verdict belongs to the connection (mesh.Session), and
// evict.go judges its stored claims again whenever the policy changes.

// judge is the node's opinion of peers; it implements mesh.Judge.
type judge struct{ n *Node }

// Credential decides whose node a peer is.
func (j judge) Credential(peer identity.PeerID, raw []byte) (mesh.Subject, *attest.Reason) {
	n := j.n
	var c *consensus.Credential
	var err error
	started, now := false, n.time()
	n.machine.Agreed(func(s *consensus.State) {
		c, err = s.VerifyCredential(raw, now)
		started = s.Started()
	})
	if err != nil {
		return mesh.Subject{}, consensus.ReasonOf(err)
	}
	if c.Peer != peer {
		return mesh.Subject{}, reason(attest.CodeWrongPeer, "credential peer", c.Peer.String(), peer.String())
	}
	if !started && !c.HasRole(RoleSeat) && n.isSeat() {
		return mesh.Subject{}, reason(attest.CodeNotStarted, "mesh", "founding seats only", "an ordered Bootstrap")
	}
	if why := n.notStrongCredential(raw, c); why != nil {
		return mesh.Subject{}, why
	}
	n.peers.meet(peer, c.Ref())
	return mesh.Subject{Peer: peer, Node: c.Ref(), BootSeq: c.BootSeq, Roles: c.Roles, Credential: raw}, nil
}

// Appraise decides about evidence and records the outcome as this node's edge.
func (j judge) Appraise(ctx context.Context, s mesh.Subject, ev attest.Evidence, data attest.ReportData) (attest.Claims, attest.Result) {
	claims, result := j.n.appraise(ctx, s, ev, data)
	raw, err := ev.Encode()
	if err != nil {
		raw = nil // it came from the wire and was decoded from these bytes: cannot fail
	}
	if len(result.Reasons) == 0 || result.Reasons[0].Code != attest.CodeNotStrong { // which is about the log, not about the subject
		j.n.edges.record(s, raw, result)
	}
	return claims, result
}

// Rejudge judges claims that were found affirming before under the policy in force now, and
// refuses a boot that a newer one has replaced or whose Credential is void.
func (j judge) Rejudge(s mesh.Subject, c attest.Claims) attest.Result {
	n := j.n
	if why := n.dismissed(s.Peer, s.Credential); why != nil {
		return attest.Refuse(n.time(), *why)
	}
	return n.acceptable(s, c, n.time())
}

// acceptable decides about claims by the policy in force, and by the one before where that is not strong.
func (n *Node) acceptable(s mesh.Subject, c attest.Claims, now time.Time) attest.Result {
	r := attest.Appraise(c, n.policyFor(s), now)
	if r.Affirming() {
		if why := n.notStrong(s, c); why != nil {
			return attest.Refuse(now, *why)
		}
	}
	return r
}

// appraise opens the second and the third door: a Scheme for authenticity, with the word of
// the subject's enroller for its attestation key, and the policy in force for acceptance.
func (n *Node) appraise(ctx context.Context, s mesh.Subject, ev attest.Evidence, data attest.ReportData) (attest.Claims, attest.Result) {
	now := n.time()
	scheme, ok := n.schemes[ev.Kind]
	if !ok {
		return attest.Claims{}, attest.Refuse(now, attest.NewReason(attest.CodeKindNotAllowed, "kind", ev.Kind, fmt.Sprint(n.kinds())))
	}
	claims, err := attest.Verify(ctx, scheme, ev, &data, now)
	if err != nil {
		var refusal *attest.Error
		if errors.As(err, &refusal) {
			return attest.Claims{}, attest.Refuse(now, refusal.Reason)
		}
		return attest.Claims{}, attest.Refuse(now, attest.NewReason(attest.CodeNotGenuine, "evidence", err.Error(), "authentic evidence"))
	}
	claims, why := n.vouched(s.Credential, claims)
	if why != nil {
		return attest.Claims{}, attest.Refuse(now, *why)
	}
	return claims, n.acceptable(s, claims, now)
}

// vouched adds to claims what the subject's Credential says about its attestation key. It was
// verified when the subject was named; that it is a while ago changes nothing of what it says.
func (n *Node) vouched(credential []byte, claims attest.Claims) (attest.Claims, *attest.Reason) {
	c, err := consensus.ParseCredential(credential)
	if err != nil {
		return attest.Claims{}, consensus.ReasonOf(err)
	}
	return c.Vouch(claims)
}

// policyFor returns the policy that decides about a subject's link: what this node acts on,
// and of a seat what was agreed (heard.go).
func (n *Node) policyFor(s mesh.Subject) (p attest.Policy) {
	if n.holdsSeat(s.Peer) {
		n.machine.Agreed(func(st *consensus.State) { p = st.AttestPolicy(s.Node, s.Roles...) })
		return p
	}
	n.machine.Present(func(st *consensus.State) { p = st.AttestPolicy(s.Node, s.Roles...) })
	return p
}

// epoch is the newest epoch this node judges under.
func (n *Node) epoch() (e identity.Epoch) {
	n.machine.Agreed(func(s *consensus.State) { e = s.Epoch() })
	return e
}

func reason(code attest.Code, claim, got, want string) *attest.Reason {
	r := attest.NewReason(code, claim, got, want)
	return &r
}
