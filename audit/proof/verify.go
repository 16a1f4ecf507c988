package proof

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// Codes of Refused, besides those of package attest: they are package audit's.
const (
	codeGenesisMismatch   attest.Code = audit.CodeGenesisMismatch
	codeCheckpointInvalid attest.Code = audit.CodeCheckpointInvalid
	codeUnpublished       attest.Code = audit.CodeUnpublished
)

// Refused is the error of a proof that does not hold, or, with code stale, that is too old.
type Refused struct {
	Code    attest.Code
	Index   uint64 // of the leaf concerned, or the size of the tree
	Message string
}

// Error names code, leaf and cause.
func (r *Refused) Error() string { return fmt.Sprintf("entry %d: %s: %s", r.Index, r.Code, r.Message) }

// Malformed is the error of bytes that are no proof file.
type Malformed struct{ Err error }

// Error says what is wrong with the bytes.
func (m *Malformed) Error() string { return "no proof file: " + m.Err.Error() }

// Unwrap returns the cause.
func (m *Malformed) Unwrap() error { return m.Err }

// Options of Verify. Genesis and At are required: there is no way to leave out a check.
type Options struct {
	Genesis *consensus.Genesis
	// At is the verifier's time: cosignatures that lie ahead of it do not count.
	At time.Time
	// MaxAge is how old the quorum's cosignatures may be; zero does not judge age.
	MaxAge time.Duration
}

// Verify decides offline whether a proof file holds. The error is a *Malformed, ErrBare, a
// *Refused or a mistake in opts.
func Verify(data []byte, opts Options) (*Report, error) {
	if opts.Genesis == nil || opts.At.IsZero() {
		return nil, errors.New("proof: no genesis or no time given")
	}
	f, err := Parse(data)
	if errors.Is(err, ErrBare) {
		return nil, err
	}
	if err != nil {
		return nil, &Malformed{err}
	}
	head, err := transparency.ParseCheckpoint(f.Checkpoint)
	if err != nil {
		return nil, &Malformed{err}
	}
	leaves, err := f.included(head)
	if err != nil {
		return nil, err
	}
	v := &verification{replay: newReplay(opts.Genesis, false), report: &Report{Kind: short(kindOf(f.Subject.Data)), Index: f.Subject.Index, Origin: head.Origin,
		Size: head.Size, Root: head.Root, Leaf: transparency.LeafHash(f.Subject.Data), MeshID: opts.Genesis.MeshID(), Leaves: len(leaves), Simulated: opts.Genesis.AllowSim}}
	if err := v.genesis(leaves[0], opts.Genesis); err != nil {
		return nil, err
	}
	for _, l := range leaves {
		if err := v.leaf(l, l.Index == f.Subject.Index); err != nil {
			return nil, err
		}
	}
	if v.opening != nil || v.policy == nil {
		return nil, refuse(v.openAt, attest.CodePolicyIncomplete, "genesis, or a Recovery, is not followed by its Bootstrap")
	}
	if err := v.checkpoint(f.Checkpoint, head, opts); err != nil {
		return nil, err
	}
	return v.report, nil
}

// included checks every path, hashes alone, and returns all leaves by rising index.
func (f *File) included(head transparency.Checkpoint) ([]Leaf, error) {
	out := append(slices.Clone(f.Links), f.Subject)
	slices.SortFunc(out, func(a, b Leaf) int { return cmp.Compare(a.Index, b.Index) })
	for _, l := range out {
		if err := transparency.VerifyInclusion(l.Data, l.Index, l.Path, head.Size, head.Root); err != nil {
			return nil, refuse(l.Index, attest.CodeNotIncluded, "%v", err)
		}
	}
	return out, nil
}

// verification judges one file.
type verification struct {
	*replay
	report *Report
}

// genesis demands that the first leaf is the given genesis; its signatures may differ from those of
// the file that the verifier holds, what they sign may not.
func (v *verification) genesis(first Leaf, want *consensus.Genesis) error {
	if first.Index != 0 {
		return refuse(0, attest.CodeNotShown, "genesis, entry 0, is not in the file")
	}
	g, err := consensus.ParseGenesis(first.Data)
	if err != nil {
		return refuse(0, attest.CodeMalformed, "genesis: %v", err)
	}
	if g.MeshID() != want.MeshID() {
		return refuse(0, codeGenesisMismatch, "the proof is of mesh %s, the given genesis of %s", g.MeshID(), want.MeshID())
	}
	return nil
}

// leaf replays a leaf, and judges the subject by what stands before it.
func (v *verification) leaf(l Leaf, subject bool) error {
	kind, before := kindOf(l.Data), v.policy
	if err := v.replay.leaf(l.Index, kind, l.Data, subject); err != nil || !subject {
		return err
	}
	if v.policy != nil {
		v.report.Epoch, v.report.PolicyLeaf = v.policy.Epoch(), v.stepAt
	}
	switch {
	case kind == envelope.TypeAttestationResult:
		return v.subjectResult(l)
	case kind == envelope.TypeRound:
		return v.subjectRound(l)
	case v.policy != before:
		v.report.Policy = &PolicyFacts{v.step}
	}
	return nil
}

// subjectResult says what an attestation result was, which the replay has judged.
func (v *verification) subjectResult(l Leaf) error {
	x, err := consensus.ParseResult(l.Data)
	if err != nil {
		return refuse(l.Index, attest.CodeMalformed, "%v", err)
	}
	by, of := v.nodes[x.Verifier.Node], v.nodes[x.Subject.Node]
	facts := &ResultFacts{Verifier: x.Verifier.Node, Subject: x.Subject.Node, VerifierPeer: x.Verifier.Peer, SubjectPeer: x.Subject.Peer, Verdict: x.Verdict, Codes: x.Codes,
		Kind: x.Kind, Measurement: x.Measurement, Entry: x.Reference, Epoch: x.Epoch, At: x.At, Expires: x.Expires, Evidence: x.Evidence,
		Roles: of.cred.Roles, VerifierCredential: by.credAt, SubjectCredential: of.credAt}
	if at, ok := v.entries[x.Reference]; ok && x.Verdict == attest.VerdictAffirming {
		facts.EntryLeaf = &at
	}
	if v.measured(by) == "" {
		facts.VerifierAffirmedBy = &Affirmed{by.run.Verifier.Node, by.runAt}
	}
	v.report.Result = facts
	return nil
}

// subjectRound judges a committed round at its index, as far as leaves are shown.
func (v *verification) subjectRound(l Leaf) error {
	round, err := federated.ParseRound(l.Data)
	if err != nil {
		return refuse(l.Index, attest.CodeBadSignature, "%v", err)
	}
	facts := &RoundFacts{Job: string(round.Job), Round: round.Round, Attempt: round.Attempt, Rule: round.Rule, Base: round.BaseRoot.String(), Result: round.ResultRoot.String(),
		Needed: min(2, len(v.policy.Organisations())-1), Rejected: len(round.Rejected)}
	if facts.Aggregator, err = v.part(l.Index, round.Aggregator, round.Peer, consensus.RoleAggregator); err != nil {
		return err
	}
	for _, a := range round.Accepted {
		p, err := v.part(l.Index, a.Node, a.Peer, consensus.RoleTrainer)
		if err != nil {
			return err
		}
		facts.Participants = append(facts.Participants, p)
	}
	v.report.Round = facts
	return nil
}

// part says what is shown of somebody's standing in a round.
func (v *verification) part(index uint64, ref identity.NodeRef, peer identity.PeerID, role string) (Part, error) {
	n := v.nodes[ref]
	if n == nil || n.cred.Peer != peer {
		return Part{}, refuse(index, attest.CodeNotShown, "no leaf shows that %s (peer %s) was a member then", ref, peer.Short())
	}
	if !n.cred.HasRole(role) {
		return Part{}, refuse(index, attest.CodeNotEligible, "%s took part as %s, and its Credential does not grant that role", ref, role)
	}
	out := Part{Node: ref, Peer: peer, Role: role, AffirmedBy: []Affirmed{}}
	if n.run != nil {
		out.Measurement = n.run.Measurement
	}
	if v.stands(n) && v.measured(n) == "" {
		for _, e := range v.affirming(n, v.clock()) {
			out.AffirmedBy = append(out.AffirmedBy, Affirmed{e.result.Verifier.Node, e.at})
		}
	}
	return out, nil
}

// clock is a time that the members' clock had passed, as far as the results shown say.
func (r *replay) clock() time.Time { return r.newest.Add(-consensus.ClockSkew) }

// checkpoint holds the checkpoint against the members that are shown.
func (v *verification) checkpoint(signed []byte, head transparency.Checkpoint, opts Options) error {
	p, not := v.checkpointPolicy(opts.At)
	c, err := transparency.VerifyExact(signed, p)
	if err != nil && c.Checkpoint != head {
		return refuse(head.Size, codeCheckpointInvalid, "%v", err)
	}
	if c.Level < transparency.Published {
		why := ""
		for _, x := range c.Problems {
			not = append(not, x.Name+": "+x.Message)
		}
		if len(not) > 0 {
			why = "; these do not count: " + strings.Join(not, ", ")
		}
		return refuse(head.Size, codeUnpublished, "cosigned by %d organisations whose seats are shown to count %v, want %d of %d%s", len(c.Orgs), c.Orgs, p.Quorum.Published, len(v.policy.Organisations()), why)
	}
	if err != nil {
		return refuse(head.Size, codeCheckpointInvalid, "%v", err)
	}
	r := v.report
	r.Level, r.Cosigners, r.Fresh, r.Outside, r.Witnesses = c.Level, c.Orgs, c.Fresh, c.Outside, len(v.policy.Witnesses())
	r.Organisations, r.CompleteTo, r.Incarnation, r.LastEpoch = len(v.policy.Organisations()), v.complete, v.policy.Incarnation(), v.policy.Epoch()
	if age := opts.At.Sub(c.Fresh); opts.MaxAge > 0 && age > opts.MaxAge {
		return refuse(head.Size, attest.CodeStale, "the quorum cosigned at %s, %s ago; the limit is %s", c.Fresh.Format(time.RFC3339), age.Round(time.Second), opts.MaxAge)
	}
	return nil
}
