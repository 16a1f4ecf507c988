// Package meshtest has what tests of attested connections need and no binary may link: a
// root whose attesters sign report data with Ed25519, Credentials under one organisation
// key, and a Judge that believes both. It knows no libp2p and no testing package.
package meshtest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

// Root signs evidence and Credentials of one pretended world.
type Root struct {
	platform ed25519.PrivateKey
	org      ed25519.PrivateKey
}

// NewRoot returns a fresh world; no other root's evidence or Credentials are valid in it.
func NewRoot() *Root { return &Root{platform: newKey(), org: newKey()} }

// RootFromSeed returns the same world in every process that knows seed.
func RootFromSeed(seed string) *Root {
	key := func(use string) ed25519.PrivateKey {
		digest := sha256.Sum256([]byte(use + " of " + seed))
		return ed25519.NewKeyFromSeed(digest[:])
	}
	return &Root{platform: key("platform"), org: key("organisation")}
}

func newKey() ed25519.PrivateKey {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}

// Credential signs that peer is node "org/name" in mesh.
func (r *Root) Credential(mesh identity.MeshID, peer identity.PeerID, node string) []byte {
	body := append(append(append([]byte{}, mesh[:]...), peer...), node...)
	return append(ed25519.Sign(r.org, body), body...)
}

// Attester signs report data. Its fields may be set before its first use.
type Attester struct {
	root   *Root
	Quotes atomic.Int64  // quotes made
	Delay  time.Duration // of each quote, as a slow device
}

// NewAttester returns an attester under r.
func (r *Root) NewAttester() *Attester { return &Attester{root: r} }

// Kind implements attest.Attester.
func (a *Attester) Kind() string { return attest.KindSim }

// Attest implements attest.Attester.
func (a *Attester) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	if a.Delay > 0 {
		timer := time.NewTimer(a.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return attest.Evidence{}, ctx.Err()
		}
	}
	a.Quotes.Add(1)
	report := append(ed25519.Sign(a.root.platform, data[:]), data[:]...)
	return attest.Evidence{Kind: attest.KindSim, Items: []attest.Item{{Type: attest.TypeSimReport, Data: report}}}, nil
}

// Judge believes one root. PermitFunc, KeepFunc and AppraiseFunc, if set before use, come
// after the checks and may refuse what passed them: AppraiseFunc stands for a policy, so
// Rejudge asks it too.
type Judge struct {
	Root   *Root
	MeshID identity.MeshID

	PermitFunc   func(*exchange.Session, exchange.Protocol) *attest.Reason
	KeepFunc     func(*exchange.Session, exchange.Protocol) *attest.Reason
	AppraiseFunc func(exchange.Subject) *attest.Reason

	Credentials atomic.Int64 // Credentials judged
	Appraisals  atomic.Int64 // evidence judged
	Rejudgings  atomic.Int64 // claims judged again
}

// Credential implements exchange.Judge.
func (j *Judge) Credential(peer identity.PeerID, raw []byte) (exchange.Subject, *attest.Reason) {
	j.Credentials.Add(1)
	refuse := func(got string) (exchange.Subject, *attest.Reason) {
		r := attest.NewReason(attest.CodeNoCredential, "credential", got, "one of this mesh for this peer")
		return exchange.Subject{}, &r
	}
	head := ed25519.SignatureSize
	prefix := append(append([]byte{}, j.MeshID[:]...), peer...)
	if len(raw) <= head || !bytes.HasPrefix(raw[head:], prefix) {
		return refuse("none")
	}
	if !ed25519.Verify(j.Root.org.Public().(ed25519.PublicKey), raw[head:], raw[:head]) {
		return refuse("a foreign signature")
	}
	org, name, _ := strings.Cut(string(raw[head+len(prefix):]), "/")
	return exchange.Subject{Peer: peer, Node: identity.NodeRef{Org: identity.OrgID(org), Name: identity.NodeName(name)},
		BootSeq: 1, Roles: []string{"member"}, Credential: raw}, nil
}

// Appraise implements exchange.Judge.
func (j *Judge) Appraise(_ context.Context, s exchange.Subject, ev attest.Evidence, data attest.ReportData) (attest.Claims, attest.Result) {
	j.Appraisals.Add(1)
	refuse := func(code attest.Code, claim, got, want string) (attest.Claims, attest.Result) {
		return attest.Claims{}, attest.Refuse(time.Now(), attest.NewReason(code, claim, got, want))
	}
	reports := ev.Find(attest.TypeSimReport)
	if len(reports) != 1 || len(reports[0]) != ed25519.SignatureSize+len(data) {
		return refuse(attest.CodeMalformed, "report", "another shape", "one signed report")
	}
	signature, got := reports[0][:ed25519.SignatureSize], reports[0][ed25519.SignatureSize:]
	if !ed25519.Verify(j.Root.platform.Public().(ed25519.PublicKey), got, signature) {
		return refuse(attest.CodeNotGenuine, "signature", "a foreign root", "this root")
	}
	if !bytes.Equal(got, data[:]) {
		return refuse(attest.CodeNotBound, "report_data", "another binding", "this connection")
	}
	claims := attest.Claims{Kind: ev.Kind, Genuine: true, Bound: true, Measurement: "00"}
	return claims, j.judge(s, claims)
}

// Rejudge implements exchange.Judge.
func (j *Judge) Rejudge(s exchange.Subject, c attest.Claims) attest.Result {
	j.Rejudgings.Add(1)
	return j.judge(s, c)
}

func (j *Judge) judge(s exchange.Subject, c attest.Claims) attest.Result {
	if j.AppraiseFunc != nil {
		if r := j.AppraiseFunc(s); r != nil {
			return attest.Refuse(time.Now(), *r)
		}
	}
	return attest.Result{Verdict: attest.VerdictAffirming, Kind: c.Kind, Measurement: c.Measurement}
}

// Permit implements exchange.Judge.
func (j *Judge) Permit(s *exchange.Session, p exchange.Protocol) *attest.Reason {
	if j.PermitFunc == nil {
		return nil
	}
	return j.PermitFunc(s, p)
}

// Keep implements exchange.Judge.
func (j *Judge) Keep(s *exchange.Session, p exchange.Protocol) *attest.Reason {
	if j.KeepFunc == nil {
		return nil
	}
	return j.KeepFunc(s, p)
}

// Node is one pretended node: a key, a running quoter, a Credential and a Judge.
type Node struct {
	Key        ed25519.PrivateKey
	Peer       identity.PeerID
	MeshID     identity.MeshID
	Attester   *Attester
	Quoter     *attest.Quoter
	Judge      *Judge
	Credential []byte
	Head       atomic.Pointer[[32]byte] // of the runtime event log; nil: it is empty

	cancel context.CancelFunc
	done   sync.WaitGroup
}

// NewNode returns the node "org/name" of mesh and starts its quoter. Close stops it.
func (r *Root) NewNode(mesh identity.MeshID, node string) *Node {
	key := newKey()
	peer := identity.PeerIDFromKey(key.Public().(ed25519.PublicKey))
	n := &Node{Key: key, Peer: peer, MeshID: mesh, Attester: r.NewAttester(), Credential: r.Credential(mesh, peer, node),
		Judge: &Judge{Root: r, MeshID: mesh}}
	n.Quoter = attest.NewQuoter(n.Attester, mesh, string(peer), func() [32]byte {
		if head := n.Head.Load(); head != nil {
			return *head
		}
		return [32]byte{}
	})
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	n.done.Go(func() { n.Quoter.Run(ctx) })
	return n
}

// Close stops the quoter.
func (n *Node) Close() {
	n.cancel()
	n.done.Wait()
}

// NewPeer returns the id of a peer that nobody is.
func (r *Root) NewPeer() identity.PeerID {
	return identity.PeerIDFromKey(newKey().Public().(ed25519.PublicKey))
}
