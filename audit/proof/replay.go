package proof

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// replay follows the leaves that it is shown, which may be some of a log's, by rising index: the
// policy with all its rules, and of members as much as these leaves say.
type replay struct {
	genesis *consensus.Genesis
	// audited says that the leaves were audited: the signatures of results are not checked again.
	audited bool

	policy  *consensus.PolicyState // nil before Bootstrap
	step    consensus.Step         // that led to policy
	stepAt  uint64                 // where it stands; the second leaf of two
	opening []byte                 // genesis or a Recovery that waits for its Bootstrap
	openAt  uint64
	// entries says where each entry of the allowed set was last added.
	entries map[string]uint64
	// complete is the size below which no change of the policy was left out: the leaves up to it are
	// all here, or one of them says at which epoch it was ordered.
	complete uint64
	exact    uint64 // index of the newest leaf that said so, or of Bootstrap

	nodes map[identity.NodeRef]*node
	edges map[identity.PeerID]map[identity.PeerID]edge // by subject and verifier
	gone  map[identity.NodeRef]string                  // why a node counts no more
	// newest is the newest time that a result so far was made.
	newest time.Time
}

// node is the newest boot of a node.
type node struct {
	cred   *consensus.Credential
	credAt uint64
	seat   bool
	seatAt uint64
	// run is what others found it to run, last; nil before.
	run *consensus.AttestationResult
	// runAt is where that stands, and runBy where the Credential of its verifier does.
	runAt, runBy uint64
}

// edge is the newest result of one boot on another.
type edge struct {
	result *consensus.AttestationResult
	at     uint64
}

func newReplay(g *consensus.Genesis, audited bool) *replay {
	return &replay{genesis: g, audited: audited, entries: map[string]uint64{}, nodes: map[identity.NodeRef]*node{},
		edges: map[identity.PeerID]map[identity.PeerID]edge{}, gone: map[identity.NodeRef]string{}}
}

// refuse is the error of a leaf.
func refuse(index uint64, code attest.Code, format string, args ...any) error {
	return &Refused{Code: code, Index: index, Message: fmt.Sprintf(format, args...)}
}

// refuseErr is refuse for a refusal by a rule of governance.
func refuseErr(index uint64, err error) error {
	r := consensus.ReasonOf(err)
	return &Refused{Code: r.Code, Index: index, Message: r.String()}
}

// kindOf returns the predicate type of a leaf, "" if it is no statement.
func kindOf(leaf []byte) string {
	env, err := envelope.Parse(leaf)
	if err != nil {
		return ""
	}
	kind, err := envelope.PredicateType(env.Payload)
	if err != nil {
		return ""
	}
	return kind
}

// changesPolicy reports whether a leaf of a kind is part of the policy chain.
func changesPolicy(kind string) bool {
	switch kind {
	case envelope.TypeGenesis, envelope.TypeBootstrap, envelope.TypeRecovery, envelope.TypeProposal:
		return true
	}
	return false
}

// leaf replays a leaf. What a proof is of has to hold by what is shown before it.
func (r *replay) leaf(index uint64, kind string, leaf []byte, subject bool) error {
	if r.opening != nil && (kind != envelope.TypeBootstrap || index != r.openAt+1) || r.policy == nil && (index > 1 || !changesPolicy(kind)) {
		return refuse(index, attest.CodePolicyIncomplete, "genesis, or a Recovery, is not followed by its Bootstrap")
	}
	if changesPolicy(kind) {
		if err := r.change(index, kind, leaf); err != nil {
			return err
		}
	} else if err := r.other(index, kind, leaf, subject); err != nil {
		return err
	}
	if index == r.complete {
		r.complete++
	}
	return nil
}

// change replays a step of the policy chain.
func (r *replay) change(index uint64, kind string, leaf []byte) error {
	switch {
	case kind == envelope.TypeGenesis && index == 0, kind == envelope.TypeRecovery && r.policy != nil:
		r.opening, r.openAt = leaf, index
		return nil
	case kind == envelope.TypeBootstrap && r.opening != nil:
		before := r.policy
		if before == nil {
			before = consensus.NewPolicyState(r.genesis)
		}
		step, next, err := before.Next(r.opening, leaf)
		if err != nil {
			return refuseErr(index, err)
		}
		if at := next.Continues(); r.policy != nil && at.Size != r.openAt {
			return refuse(r.openAt, attest.CodePolicyIncomplete, "the Recovery goes on from size %d, and stands at %d", at.Size, r.openAt)
		}
		r.opening = nil
		r.enact(index, step, next)
		r.found()
		if x := next.Recovery(); x == nil || !x.Planned {
			// It names the whole policy that it goes on from, or begins with it.
			r.exact, r.complete = index, index
		}
		return nil
	case kind == envelope.TypeProposal && r.policy != nil:
		step, next, err := r.policy.Next(leaf)
		if err != nil {
			return refuseErr(index, err)
		}
		r.enact(index, step, next)
		return nil
	}
	return refuse(index, attest.CodeMalformed, "a leaf of kind %s does not stand here", short(kind))
}

// enact makes next the policy.
func (r *replay) enact(index uint64, step consensus.Step, next *consensus.PolicyState) {
	had := map[string]bool{}
	if r.policy != nil {
		for _, e := range r.policy.Entries() {
			had[e.ID] = true
		}
	}
	now := map[string]bool{}
	for _, e := range next.Entries() {
		if now[e.ID] = true; !had[e.ID] {
			r.entries[e.ID] = index
		}
	}
	if r.policy == nil {
		for id := range r.entries {
			r.entries[id] = 0 // they are those of genesis
		}
	}
	r.policy, r.step, r.stepAt = next, step, index
	for ref := range r.nodes {
		if _, in := next.Organisation(ref.Org); !in {
			r.drop(ref, "its organisation was removed")
		}
	}
}

// found makes the seats of Bootstrap the nodes: those of a lower incarnation are void.
func (r *replay) found() {
	clear(r.nodes)
	clear(r.edges)
	clear(r.gone)
	for _, c := range r.policy.Bootstrap().Seats() {
		r.nodes[c.Ref()] = &node{cred: c, credAt: r.stepAt, seat: true, seatAt: r.stepAt}
	}
}

// drop forgets a node, with the edges it gave and got.
func (r *replay) drop(ref identity.NodeRef, why string) {
	n := r.nodes[ref]
	if n == nil {
		return
	}
	delete(r.nodes, ref)
	delete(r.edges, n.cred.Peer)
	for _, verifiers := range r.edges {
		delete(verifiers, n.cred.Peer)
	}
	r.gone[ref] = why
}

// other replays a leaf that is no step of the policy chain.
func (r *replay) other(index uint64, kind string, leaf []byte, subject bool) error {
	switch kind {
	case envelope.TypeCredential:
		return r.credential(index, leaf)
	case envelope.TypeAttestationResult:
		return r.result(index, leaf, subject)
	case envelope.TypeMembership:
		return r.membership(index, leaf)
	case envelope.TypeState:
		l, err := consensus.ParseLoggedState(leaf)
		if err != nil {
			return refuse(index, attest.CodeMalformed, "%v", err)
		}
		digest := r.policy.PolicyDigest()
		if l.MeshID != r.policy.MeshID() || l.Incarnation != r.policy.Incarnation() || l.Epoch != r.policy.Epoch() || l.Policy != hex.EncodeToString(digest[:]) {
			return refuse(index, attest.CodePolicyIncomplete, "the policy there was that of epoch %d, %.16s; the leaves shown lead to epoch %d, %x: changes of the policy are left out", l.Epoch, l.Policy, r.policy.Epoch(), digest[:8])
		}
		r.complete, r.exact = index, index
	case envelope.TypeRetirement:
		x, _, err := consensus.ParseRetirement(leaf)
		if err != nil {
			return refuse(index, attest.CodeMalformed, "%v", err)
		}
		if n := r.nodes[x.Node]; n != nil && n.cred.Peer == x.Peer {
			r.drop(x.Node, "its organisation retired it")
		}
	case envelope.TypeDrain:
		x, _, err := consensus.ParseDrain(leaf)
		if err != nil {
			return refuse(index, attest.CodeMalformed, "%v", err)
		}
		if n := r.nodes[x.Node]; n != nil && n.cred.Peer == x.Peer {
			n.seat, r.gone[x.Node] = false, "it was drained"
		}
	case envelope.TypeRound:
		round, err := federated.ParseRound(leaf)
		if err != nil {
			return refuse(index, attest.CodeBadSignature, "%v", err)
		}
		return r.epoch(index, round.MeshID, round.Epoch)
	case envelope.TypeReady, envelope.TypeSuspension, envelope.TypeSuspensionLift, envelope.TypeWithdrawal:
		// They say nothing about the policy, nor about who is a member. A withdrawal takes signatures
		// away from a proposal that has not been ordered.
	default:
		return refuse(index, attest.CodeMalformed, "a leaf of kind %s, which this release does not know", short(kind))
	}
	return nil
}

// epoch demands that a leaf is of this mesh and names no epoch that the changes shown do not reach.
func (r *replay) epoch(index uint64, mesh identity.MeshID, epoch identity.Epoch) error {
	if mesh != r.policy.MeshID() {
		return refuse(index, attest.CodeWrongMesh, "of mesh %s, want %s", mesh.Short(), r.policy.MeshID().Short())
	}
	if epoch > r.policy.Epoch() {
		return refuse(index, attest.CodePolicyIncomplete, "it names epoch %d, and the changes of the policy that are shown before it reach %d: some are left out", epoch, r.policy.Epoch())
	}
	return nil
}

// credential replays a new boot of a node, or a renewal.
func (r *replay) credential(index uint64, leaf []byte) error {
	c, err := r.policy.VerifyCredential(leaf, time.Time{})
	if err != nil {
		return refuseErr(index, err)
	}
	ref := c.Ref()
	old := r.nodes[ref]
	if old != nil && old.cred.Peer == c.Peer {
		if c.BootSeq != old.cred.BootSeq || !c.CosignerKey().Equal(old.cred.CosignerKey()) {
			return refuse(index, attest.CodeRetired, "a Credential of the same peer %s with another boot_seq or cosigner key", c.Peer.Short())
		}
		old.cred, old.credAt = c, index
		return nil
	}
	if old != nil {
		r.drop(ref, "a newer boot of it was registered")
	}
	r.nodes[ref] = &node{cred: c, credAt: index}
	return nil
}

// membership replays what became of a seat.
func (r *replay) membership(index uint64, leaf []byte) error {
	m, err := consensus.ParseMembership(leaf)
	if err != nil {
		return refuse(index, attest.CodeMalformed, "%v", err)
	}
	if m.MeshID != r.policy.MeshID() || m.Incarnation != r.policy.Incarnation() || m.Epoch != r.policy.Epoch() {
		return refuse(index, attest.CodePolicyIncomplete, "it was derived in epoch %d, and the changes of the policy that are shown before it reach %d", m.Epoch, r.policy.Epoch())
	}
	r.complete, r.exact = index, index
	n := r.nodes[m.Node]
	if n == nil || n.cred.Peer != m.Peer {
		return nil // of somebody who is not shown
	}
	n.seat, n.seatAt = m.Change == consensus.ChangeSeatTaken, index
	if !n.seat {
		r.gone[m.Node] = "its seat was taken away (" + string(m.Code) + ")"
	}
	return nil
}

// result replays an edge. One between nodes that are not shown counts for nothing; if it is the
// subject of a proof that is an error.
func (r *replay) result(index uint64, leaf []byte, subject bool) error {
	x, err := consensus.ParseResult(leaf)
	if err != nil {
		return refuse(index, attest.CodeMalformed, "%v", err)
	}
	if err := r.epoch(index, x.MeshID, x.Epoch); err != nil {
		return err
	}
	verifier, of := r.nodes[x.Verifier.Node], r.nodes[x.Subject.Node]
	for _, p := range []struct {
		n    *node
		is   consensus.Party
		role string
	}{{verifier, x.Verifier, "verifier"}, {of, x.Subject, "subject"}} {
		if p.n == nil || p.n.cred.Peer != p.is.Peer {
			if !subject {
				return nil
			}
			return refuse(index, attest.CodeNotShown, "no leaf shows that its %s %s (peer %s) was a member then", p.role, p.is.Node, p.is.Peer.Short())
		}
	}
	if !r.audited {
		if _, err := consensus.VerifyResult(leaf); err != nil {
			return refuseErr(index, err)
		}
	}
	if x.At.After(r.newest) {
		r.newest = x.At
	}
	switch heard, allowed := r.stands(verifier), r.allowed(x, of); {
	case !heard && subject:
		return refuse(index, attest.CodeNoCredential, "the Credential of its verifier %s was by a key that had been removed", x.Verifier.Node)
	case x.Verdict == attest.VerdictAffirming && allowed != "" && subject:
		return refuse(index, allowed, "it affirms %s, which the policy of epoch %d did not allow for %v", x.Measurement, r.policy.Epoch(), of.cred.Roles)
	case x.Verdict == attest.VerdictAffirming && (!heard || allowed != ""):
		return nil
	}
	verifiers := r.edges[x.Subject.Peer]
	if verifiers == nil {
		verifiers = map[identity.PeerID]edge{}
		r.edges[x.Subject.Peer] = verifiers
	}
	verifiers[x.Verifier.Peer] = edge{x, index}
	if x.Verdict == attest.VerdictAffirming && x.Verifier.Node.Org != x.Subject.Node.Org {
		of.run, of.runAt, of.runBy = x, index, verifier.credAt
	}
	return nil
}

// allowed returns why what a result found is not allowed to its subject, or "".
func (r *replay) allowed(x *consensus.AttestationResult, of *node) attest.Code {
	return r.policy.Allows(x.Kind, x.Measurement, x.Reference, of.cred.Roles, time.Time{})
}

// stands reports whether a node's Credential is by a key in force.
func (r *replay) stands(n *node) bool {
	_, err := r.policy.VerifyCredential(n.cred.Raw(), time.Time{})
	return err == nil
}

// measured returns why a node's own measurement is not known or not allowed, or "".
func (r *replay) measured(n *node) string {
	if n.run == nil {
		return "no affirming result by another organisation is shown"
	}
	if code := r.allowed(n.run, n); code != "" {
		return "what it runs is not allowed (" + string(code) + ")"
	}
	return ""
}

// affirming returns the edges on a node that count at now: affirming, unexpired, with an allowed
// finding, by nodes of other organisations that are affirmed themselves; the newest first, and one
// for each organisation.
func (r *replay) affirming(n *node, now time.Time) []edge {
	var out []edge
	for _, e := range r.edges[n.cred.Peer] {
		by := r.nodes[e.result.Verifier.Node]
		if e.result.Verdict != attest.VerdictAffirming || by.cred.Organisation == n.cred.Organisation || !now.Before(e.result.Expires) {
			continue
		}
		if r.stands(by) && r.measured(by) == "" && r.allowed(e.result, n) == "" {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b edge) int { return cmp.Compare(b.at, a.at) })
	orgs := map[identity.OrgID]bool{}
	return slices.DeleteFunc(out, func(e edge) bool {
		org := e.result.Verifier.Node.Org
		had := orgs[org]
		orgs[org] = true
		return had
	})
}

// cosigners returns the seats that are shown to be affirmed, and why the others do not count.
func (r *replay) cosigners() (out []transparency.Cosigner, not []string) {
	for _, ref := range r.refs() {
		n := r.nodes[ref]
		why := ""
		switch {
		case !n.seat && !n.cred.HasRole(consensus.RoleSeat):
			continue
		case !n.seat:
			why = "no leaf shows that it holds a seat"
			if gone := r.gone[ref]; gone != "" {
				why = gone
			}
		case !r.stands(n):
			why = "its Credential is by a key that was removed"
		default:
			why = r.measured(n)
		}
		if why != "" {
			not = append(not, ref.String()+": "+why)
			continue
		}
		out = append(out, transparency.Cosigner{Name: r.policy.CosignerName(ref, n.cred.BootSeq), Org: ref.Org, Key: n.cred.CosignerKey()})
	}
	for _, ref := range sortedRefs(r.gone) {
		if r.nodes[ref] == nil {
			not = append(not, ref.String()+": "+r.gone[ref])
		}
	}
	return out, not
}

// checkpointPolicy is what a checkpoint behind the leaves is held against. The quorum is that of all
// organisations of the policy: how many of them had a seat, some leaves cannot say, and fewer seats
// than organisations never need more.
func (r *replay) checkpointPolicy(at time.Time) (transparency.Policy, []string) {
	cosigners, not := r.cosigners()
	return transparency.Policy{Origin: r.policy.Origin(), LogKey: r.policy.LogKey(), Cosigners: cosigners,
		Quorum: transparency.QuorumOf(len(r.policy.Organisations())), Outside: transparency.OutsideOf(r.policy.Witnesses()), At: at}, not
}

func (r *replay) refs() []identity.NodeRef { return sortedRefs(r.nodes) }

func sortedRefs[V any](m map[identity.NodeRef]V) []identity.NodeRef {
	out := make([]identity.NodeRef, 0, len(m))
	for ref := range m {
		out = append(out, ref)
	}
	slices.SortFunc(out, func(a, b identity.NodeRef) int {
		return cmp.Or(cmp.Compare(a.Org, b.Org), cmp.Compare(a.Name, b.Name))
	})
	return out
}
