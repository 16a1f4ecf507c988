// Package client is for programs of people outside a mesh, who use what one of its nodes
// serves and do not believe whoever runs it. It speaks HTTPS, has genesis and a policy of its
// own, and lets no byte of a request out before the node has proved, on that very
// connection, what it runs:
//
//	t, err := client.New(client.Config{Genesis: genesis, Policy: policy})
//	resp, err := (&http.Client{Transport: t}).Get("https://node.example.org:8443/services/inference/")
//
// # What is verified, and in which order
//
// A new connection is TLS 1.3 without resumption, HTTP/1.1 or HTTP/2, and its first request is
// the challenge of package ratls with a fresh nonce. Of the answer
//
//   - the policy chain replays from genesis, and goes on from the one this client saw before;
//   - the Credential is by an enroll key of the organisation that it names, and that is one
//     that the Policy here names;
//   - seats of ⌊n/2⌋+1 organisations, n being the seats of Bootstrap, have signed this nonce
//     together with the digest of this chain: neither is an old one;
//   - the newest checkpoint is cosigned by as many, not long ago, and no head contradicts it;
//   - the evidence is genuine, carries the exporter of this connection, and passes the mesh's
//     policy for every role that the Credential grants, and this Policy's measurements;
//   - the runtime log replays to the head in the evidence, and the services that this Policy
//     names run programs that it names.
//
// Each refusal is a *Refusal with reasons of package attest. After Policy.Reattest the same
// connection is challenged again before another request, or another byte of a request's
// body, goes out on it. What is on its way back may arrive.
//
// Where the evidence is genuine but made for another connection, somebody ends TLS between the
// node and this client; the refusal names both keys (middlebox.go).
//
// # What this cannot know
//
// Seats count as those of Bootstrap: one that was voted out later still signs for its
// organisation here, so this client wants more heads than the mesh itself would, never
// fewer. Which boot of a node is the newest only the mesh knows: an older one gets no heads.
package client

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/runtimelog"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// Config is what a Transport needs. Genesis is required, and a Policy with at least the
// zero value's meaning: any organisation of the mesh.
type Config struct {
	// Genesis is the signed genesis file of the mesh, from a source that is trusted.
	Genesis []byte
	Policy  Policy
	// Schemes verify evidence; nil: those for which genesis and the vendors have roots.
	Schemes []attest.Scheme
	// Dial opens TCP connections; nil: net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Now is the wall clock; nil: time.Now.
	Now func() time.Time
	// OnSession, if set, is called after each success, also of a challenge on a connection
	// that was verified before. It must not block.
	OnSession func(Session)
}

// Session is what one connection has proved, and until when that is believed.
type Session struct {
	Address     string
	Protocol    string // "h2" or "http/1.1"
	MeshID      identity.MeshID
	Incarnation identity.Incarnation
	Epoch       identity.Epoch
	Node        identity.NodeRef
	Peer        identity.PeerID
	Roles       []string
	Claims      attest.Claims
	Policy      attest.Policy // the mesh's, for Roles, with what this client demands beyond
	Result      attest.Result
	RuntimeHead [32]byte
	Events      []runtimelog.Event
	// Heads are the organisations whose seats vouch that policy and nonce are new.
	Heads      []identity.OrgID
	Checkpoint transparency.Verified
	Credential *consensus.Credential
	// Again is set where the connection had been verified before.
	Again      bool
	AttestedAt time.Time
	NotAfter   time.Time
	// Sighting is what all this was judged by, for those who were not there.
	Sighting Sighting
}

// Simulated reports whether the evidence protects nothing from the machine's owner.
func (s *Session) Simulated() bool { return s.Claims.Sim != nil }

// Refusal is why a connection may not be used. Nothing of a request was sent on it.
type Refusal struct {
	Address string
	Reasons []attest.Reason // at least one
	// Node reports that the node itself said so, as one that does not hear its mesh does.
	Node bool
	Err  error // the cause, where there is one
}

// Error names the address, every reason and the cause.
func (r *Refusal) Error() string {
	parts := make([]string, len(r.Reasons))
	for i, reason := range r.Reasons {
		parts[i] = reason.String()
	}
	s := "refused: "
	if r.Node {
		s = "the node refuses: "
	}
	if r.Address != "" {
		s = r.Address + ": " + s
	}
	s += strings.Join(parts, "; ")
	if r.Err != nil {
		s += ": " + r.Err.Error()
	}
	return s
}

// Unwrap returns the first reason as an *attest.Error.
func (r *Refusal) Unwrap() error { return &attest.Error{Reason: r.Reasons[0], Err: r.Err} }

// Code is that of the first reason.
func (r *Refusal) Code() attest.Code { return r.Reasons[0].Code }

func refuse(code attest.Code, claim, got, want string) *Refusal {
	return &Refusal{Reasons: []attest.Reason{attest.NewReason(code, claim, got, want)}}
}

// forClients puts the remedies of somebody outside the mesh in the place of those that its
// operators have.
func (r *Refusal) forClients() *Refusal {
	for i, why := range r.Reasons {
		if other := clientRemedy(why.Code); other != "" && why.Remedy == attest.NewReason(why.Code, "", "", "").Remedy {
			r.Reasons[i].Remedy = other
		}
	}
	return r
}

// clientRemedy is what a client can do, or nothing where everybody can do the same.
func clientRemedy(code attest.Code) string {
	switch code {
	case attest.CodeWrongMesh:
		return "this node is of another mesh than your genesis file: compare the file with whoever gave it to you, or use another node"
	case attest.CodeMeasurementNotAllowed, attest.CodeRevoked, attest.CodeExpired, attest.CodeKindNotAllowed:
		return "use another node; this one runs what the mesh, or your policy, does not allow"
	case attest.CodeBehind:
		return "use another node; this one is cut off from its mesh, or lies"
	case attest.CodeStale:
		return "wait, or use another node; nobody vouches that what this one shows is new"
	case attest.CodeNoCredential, attest.CodeCredentialExpired:
		return "use another node; this one's organisation does not vouch for it now"
	}
	return ""
}

// refuseErr turns an error of another room, which mostly carries a reason, into a refusal.
func refuseErr(code attest.Code, claim string, err error) *Refusal {
	var e *attest.Error
	if asError(err, &e) {
		return &Refusal{Reasons: []attest.Reason{e.Reason}, Err: e.Err}
	}
	return refuse(code, claim, err.Error(), "")
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
