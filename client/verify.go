package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/ratls"
	"github.com/attestmesh/meshnode/attest/runtimelog"
	"github.com/attestmesh/meshnode/attest/schemes"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/service"
	"github.com/attestmesh/meshnode/transparency"
)

// Sighting is what was seen of one connection: the material of a verdict. Nothing of it has
// been believed yet.
type Sighting struct {
	Address  string
	Protocol string
	// Leaf is the certificate under which TLS was made.
	Leaf   *x509.Certificate
	Nonce  [ratls.NonceSize]byte
	EKM    [ratls.EKMSize]byte // this side's exporter value for Nonce
	Answer ratls.Answer
	At     time.Time
}

// Verifier judges sightings. It remembers the newest policy that a majority of
// organisations vouched for, and accepts no older one again.
type Verifier struct {
	genesis *consensus.Genesis
	policy  Policy
	schemes map[string]attest.Scheme

	mu     sync.Mutex
	newest *consensus.PolicyState // guarded by mu; immutable once here
}

// NewVerifier reads genesis and makes the schemes for which there are roots, unless some are
// given.
func NewVerifier(genesis []byte, policy Policy, given ...attest.Scheme) (*Verifier, error) {
	g, err := consensus.ParseGenesis(bytes.TrimSuffix(genesis, []byte("\n")))
	if err != nil {
		return nil, err
	}
	if err := policy.Validate(); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	for _, o := range policy.Organisations {
		if _, ok := g.Organisation(o); !ok && !g.Amendable() {
			return nil, fmt.Errorf("policy: organisations: %s is none of mesh %s", o, g.MeshID().Short())
		}
	}
	if len(given) == 0 {
		if given, err = schemes.Under(schemes.Roots{Sim: g.SimRoots(), VTPMKeys: g.VTPMRoots()}); err != nil {
			return nil, err
		}
	}
	v := &Verifier{genesis: g, policy: policy, schemes: map[string]attest.Scheme{}}
	for _, s := range given {
		v.schemes[s.Kind()] = s
	}
	return v, nil
}

// MeshID is that of the mesh whose nodes are accepted.
func (v *Verifier) MeshID() identity.MeshID { return v.genesis.MeshID() }

// Judge decides about a sighting; errors are *Refusal.
func (v *Verifier) Judge(ctx context.Context, s Sighting) (Session, error) {
	session, refusal := v.judge(ctx, s)
	if refusal != nil {
		refusal.Address = s.Address
		return Session{}, refusal.forClients()
	}
	return session, nil
}

func (v *Verifier) judge(ctx context.Context, s Sighting) (Session, *Refusal) {
	a := s.Answer
	state, refusal := v.replay(a.Policy)
	if refusal != nil {
		return Session{}, refusal
	}
	for _, o := range v.policy.Organisations { // genesis alone cannot tell who has come in since
		if _, in := state.Organisation(o); !in {
			return Session{}, refuse(attest.CodeUnknownOrganisation, "policy: organisations", string(o), "organisations of mesh "+v.genesis.MeshID().Short())
		}
	}
	credential, refusal := v.whose(state, a, s.At)
	if refusal != nil {
		return Session{}, refusal
	}
	out := Session{Address: s.Address, Protocol: s.Protocol, MeshID: v.genesis.MeshID(), Incarnation: state.Incarnation(), Epoch: state.Epoch(),
		Node: credential.Ref(), Peer: a.Peer, Roles: credential.Roles, Credential: credential,
		AttestedAt: s.At, NotAfter: s.At.Add(v.policy.reattest()), Sighting: s}
	seats := seatsShown(state, a.Seats, s.At)
	heads, refusal := v.heads(state, s, seats)
	if refusal != nil {
		return Session{}, refusal
	}
	for _, h := range heads {
		out.Heads = append(out.Heads, h.org)
	}
	if out.Checkpoint, refusal = v.checkpoint(state, a.Checkpoint, heads, seats, s.At); refusal != nil {
		return Session{}, refusal
	}
	if refusal := v.evidence(ctx, state, s, &out); refusal != nil {
		return Session{}, refusal
	}
	if refusal := v.runtime(a.RuntimeLog, &out); refusal != nil {
		return Session{}, refusal
	}
	v.remember(state)
	return out, nil
}

// replay verifies the policy chain; it must contain the newest one that was seen.
func (v *Verifier) replay(chain [][]byte) (*consensus.PolicyState, *Refusal) {
	v.mu.Lock()
	newest := v.newest
	v.mu.Unlock()
	if len(chain) == 0 {
		return nil, refuse(attest.CodeNotStarted, "policy chain", "empty", "genesis and Bootstrap")
	}
	if newest != nil {
		have := newest.PolicyChain()
		if len(chain) < len(have) {
			return nil, refuse(attest.CodeBehind, "policy chain", plural(len(chain), "step"), fmt.Sprintf("at least %d, as seen before", len(have)))
		}
		for i, step := range have {
			if !bytes.Equal(step, chain[i]) {
				return nil, refuse(attest.CodeBehind, fmt.Sprintf("policy chain step %d", i), digestOf(chain[i]), digestOf(step)+", as seen before")
			}
		}
		if len(chain) == len(have) {
			return newest, nil
		}
	}
	state, err := consensus.ReplayPolicy(v.genesis, chain)
	if err != nil {
		return nil, refuseErr(attest.CodeMalformed, "policy chain", err)
	}
	return state, nil
}

// remember keeps a policy that heads vouched for, if nobody has kept a newer one meanwhile.
func (v *Verifier) remember(state *consensus.PolicyState) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.newest == nil || len(state.PolicyChain()) > len(v.newest.PolicyChain()) {
		v.newest = state
	}
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// whose decides whose node answers, by its Credential.
func (v *Verifier) whose(state *consensus.PolicyState, a ratls.Answer, at time.Time) (*consensus.Credential, *Refusal) {
	c, err := state.VerifyCredential(a.Credential, at)
	if err != nil {
		return nil, refuseErr(attest.CodeNoCredential, "credential", err)
	}
	if c.Peer != a.Peer {
		return nil, refuse(attest.CodeWrongPeer, "credential peer", c.Peer.String(), a.Peer.String())
	}
	if !v.policy.admits(c.Ref()) {
		return nil, refuse(attest.CodeWrongOrganisation, "node", c.Ref().String(), v.policy.wanted())
	}
	return c, nil
}

type countedHead struct {
	consensus.Head
	org identity.OrgID
}

// seatsShown returns the Credentials of seats that the policy does not name, as far as they are
// in force: each is its organisation's word that this node may have its seat.
func seatsShown(state *consensus.PolicyState, raws [][]byte, at time.Time) []*consensus.Credential {
	known := map[identity.PeerID]bool{}
	for _, c := range state.Bootstrap().Seats() {
		known[c.Peer] = true
	}
	var out []*consensus.Credential
	for _, raw := range raws {
		c, err := state.VerifyCredential(raw, at)
		if err == nil && c.HasRole(consensus.RoleSeat) && !known[c.Peer] {
			known[c.Peer] = true
			out = append(out, c)
		}
	}
	return out
}

// heads counts the organisations that vouch, over this nonce, for this policy.
func (v *Verifier) heads(state *consensus.PolicyState, s Sighting, seats []*consensus.Credential) ([]countedHead, *Refusal) {
	root, err := s.Answer.Heads.Inclusion.Root(ratls.HeadLeaf(s.Nonce))
	if err != nil {
		return nil, refuse(attest.CodeStale, "heads", err.Error(), "a batch with our nonce")
	}
	digest := fmt.Sprintf("%x", state.PolicyDigest())
	var out []countedHead
	var behind, other *Refusal
	for _, raw := range s.Answer.Heads.Statements {
		h, seat, err := state.VerifyHead(raw, hex.EncodeToString(root[:]), seats...)
		switch {
		case err != nil:
			other = refuseErr(attest.CodeStale, "head", err)
		case h.Policy != digest:
			behind = refuse(attest.CodeBehind, "policy", fmt.Sprintf("epoch %d, %.16s", state.Epoch(), digest),
				fmt.Sprintf("epoch %d, %.16s, which %s has", h.Epoch, h.Policy, seat.Ref()))
		case slices.ContainsFunc(out, func(o countedHead) bool { return o.org == seat.Organisation }):
		default:
			out = append(out, countedHead{h, seat.Organisation})
		}
	}
	n := len(state.Organisations())
	if quorum := transparency.QuorumOf(n).Published; len(out) < quorum {
		switch {
		case behind != nil:
			return nil, behind
		case other != nil:
			return nil, other
		}
		return nil, refuse(attest.CodeStale, "heads", "signed by "+plural(len(out), "organisation"), fmt.Sprintf("by %d of %d", quorum, n))
	}
	slices.SortFunc(out, func(a, b countedHead) int { return bytes.Compare([]byte(a.org), []byte(b.org)) })
	roots := map[uint64]countedHead{}
	for _, h := range out {
		if o, ok := roots[h.Size]; ok && o.Root != h.Root {
			return nil, refuse(attest.CodeRootMismatch, fmt.Sprintf("log of %d leaves", h.Size), fmt.Sprintf("%.16s of %s, %.16s of %s", o.Root, o.org, h.Root, h.org), "one history")
		}
		roots[h.Size] = h
	}
	return out, nil
}

// checkpoint demands that the log was published not long ago, and is the heads' log.
func (v *Verifier) checkpoint(state *consensus.PolicyState, note []byte, heads []countedHead, seats []*consensus.Credential, at time.Time) (transparency.Verified, *Refusal) {
	n := len(state.Organisations())
	p := transparency.Policy{Origin: state.Origin(), LogKey: state.LogKey(), Quorum: transparency.QuorumOf(n), At: at}
	for _, c := range slices.Concat(state.Bootstrap().Seats(), seats) {
		if _, in := state.Organisation(c.Organisation); !in {
			continue
		}
		p.Cosigners = append(p.Cosigners, transparency.Cosigner{Name: state.CosignerName(c.Ref(), c.BootSeq), Org: c.Organisation, Key: c.CosignerKey()})
	}
	c, err := transparency.Verify(note, p)
	if err != nil {
		return c, refuse(attest.CodeBadSignature, "checkpoint", err.Error(), "signed by the log key")
	}
	if c.Level < transparency.Published {
		return c, refuse(attest.CodeStale, "checkpoint", "cosigned by "+plural(len(c.Orgs), "organisation"), fmt.Sprintf("by %d of %d", p.Quorum.Published, n))
	}
	if age := at.Sub(c.Fresh); age > v.policy.maxAge() {
		return c, refuse(attest.CodeStale, "checkpoint", "cosigned "+age.Round(time.Second).String()+" ago", "at most "+v.policy.maxAge().String())
	}
	for _, h := range heads {
		if h.Size == c.Size && h.Root != c.Root.String() {
			return c, refuse(attest.CodeRootMismatch, fmt.Sprintf("log of %d leaves", c.Size), fmt.Sprintf("%.16s of %s", h.Root, h.org), fmt.Sprintf("%.16s of the checkpoint", c.Root))
		}
	}
	return c, nil
}

// evidence opens the second and the third door.
func (v *Verifier) evidence(ctx context.Context, state *consensus.PolicyState, s Sighting, out *Session) *Refusal {
	proof, err := ratls.DecodeProof(s.Answer.Proof)
	if err != nil {
		return refuse(attest.CodeMalformed, "evidence", err.Error(), "a canonical proof")
	}
	claimant := ratls.Claimant{MeshID: out.MeshID, Incarnation: out.Incarnation, Peer: out.Peer}
	data, err := proof.ReportData(claimant.ChallengeBinder(s.Nonce, s.EKM), out.MeshID, string(out.Peer))
	if err != nil {
		return refuse(attest.CodeNotBound, "inclusion", err.Error(), "a proof of this connection's binder")
	}
	scheme, ok := v.schemes[proof.Evidence.Kind]
	if !ok {
		return refuse(attest.CodeKindNotAllowed, "kind", proof.Evidence.Kind, "a kind that this mesh admits")
	}
	claims, err := attest.Verify(ctx, scheme, proof.Evidence, &data, s.At)
	if err != nil {
		r := refuseErr(attest.CodeNotGenuine, "evidence", err)
		if r.Code() == attest.CodeNotBound {
			return nameRelay(ctx, r, scheme, claimant, s)
		}
		return r
	}
	claims, why := out.Credential.Vouch(claims)
	if why != nil {
		return &Refusal{Reasons: []attest.Reason{*why}}
	}
	policy := state.AttestPolicy(out.Node, out.Roles...)
	if len(v.policy.Measurements) > 0 {
		policy.References = slices.DeleteFunc(policy.References, func(r attest.Reference) bool { return !slices.Contains(v.policy.Measurements, r.Measurement) })
	}
	out.Claims, out.Policy, out.RuntimeHead = claims, policy, proof.RuntimeHead
	out.Result = attest.Appraise(claims, policy, s.At)
	switch {
	case !out.Result.Affirming() && len(out.Result.Reasons) > 0:
		return &Refusal{Reasons: out.Result.Reasons}
	case !out.Result.Affirming() || !claims.Genuine || !claims.Bound:
		return refuse(attest.CodeNotBound, "verdict", string(out.Result.Verdict), string(attest.VerdictAffirming))
	}
	return nil
}

// runtime judges what was started since launch.
func (v *Verifier) runtime(log []byte, out *Session) *Refusal {
	events, head, err := runtimelog.Replay(log)
	if err != nil {
		return refuse(attest.CodeMalformed, "runtime log", err.Error(), "a canonical log")
	}
	if head != out.RuntimeHead {
		return refuse(attest.CodeReplayMismatch, "runtime log", hex.EncodeToString(head[:]), hex.EncodeToString(out.RuntimeHead[:])+", which the evidence has")
	}
	if refusal := register(log, out.Claims); refusal != nil {
		return refusal
	}
	out.Events = events
	for name, want := range v.policy.Services {
		e, ok := runtimelog.Newest(events, service.EventType, name)
		if !ok {
			r := refuse(attest.CodeProgramNotAllowed, "service "+name, "not started", "a program that the policy names")
			r.Reasons[0].Remedy = "wait until the owner has deployed it; a restarted node has none until then"
			return r
		}
		if r := want.judge(e); r != nil {
			return r
		}
	}
	if !v.policy.Exclusive {
		return nil
	}
	for _, e := range events {
		want, ok := v.policy.Services[e.Name]
		if !ok || e.Type != service.EventType {
			return refuse(attest.CodeProgramNotAllowed, "runtime log", e.Type+" "+e.Name, "nothing but the services that the policy names")
		}
		if r := want.judge(e); r != nil {
			return r
		}
	}
	return nil
}

// judge compares what runs under a service's name with what may.
func (s Service) judge(e runtimelog.Event) *Refusal {
	for _, part := range []struct {
		role    string
		allowed []service.Digest
	}{{service.RoleProgram, s.Programs}, {service.RoleModel, s.Models}, {service.RoleManifest, s.Manifests}} {
		if len(part.allowed) == 0 && part.role != service.RoleProgram {
			continue
		}
		got, ok := e.Find(part.role)
		if !ok || !slices.Contains(part.allowed, service.Digest(got)) {
			want := fmt.Sprintf("one of %d that the policy names", len(part.allowed))
			if len(part.allowed) == 1 {
				want = part.allowed[0].String()
			}
			return refuse(attest.CodeProgramNotAllowed, part.role+" of service "+e.Name, hex.EncodeToString(got[:]), want)
		}
	}
	return nil
}

func asError(err error, target **attest.Error) bool { return errors.As(err, target) }
