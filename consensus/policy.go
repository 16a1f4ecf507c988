package consensus

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// PolicyState is the part of the state that genesis, Bootstrap and the ordered proposals
// determine by themselves. Seats have it as part of State; every other node rebuilds it
// with ReplayPolicy and needs to believe nobody. It is not safe for concurrent use.
type PolicyState struct {
	genesis     *Genesis
	incarnation identity.Incarnation
	epoch       identity.Epoch
	base        uint64
	entries     map[string]Entry // by id
	revoked     map[string]Entry // by id; entries that were allowed once
	platforms   platforms
	seen        map[ProposalID]struct{}
	bootstrap   *Bootstrap
	recovery    *Recovery      // that the incarnation began with; nil in incarnation 0
	continues   CheckpointSeen // where the log goes on from in this incarnation
	chain       [][]byte       // what PolicyChain says
	chainBytes  int
	links       [][32]byte // ChainDigest of each beginning of chain
	// The constitution in force: see constitution.go.
	orgs      organisations
	limits    Limits
	witnesses []string
	former    []FormerKey               // sorted by id
	enrollers map[string]identity.OrgID // by id of enroll key; follows from orgs
}

func newPolicyState(g *Genesis) *PolicyState {
	s := &PolicyState{genesis: g, entries: map[string]Entry{}, revoked: map[string]Entry{}, seen: map[ProposalID]struct{}{},
		limits: g.Limits, witnesses: g.Witnesses}
	s.setOrganisations(g.Organisations)
	for _, e := range g.Policy.Entries {
		s.entries[e.ID] = e
	}
	s.platforms = g.Policy.platforms()
	return s
}

// Genesis returns what the mesh began with.
func (s *PolicyState) Genesis() *Genesis { return s.genesis }

// MeshID returns the mesh id.
func (s *PolicyState) MeshID() identity.MeshID { return s.genesis.meshID }

// Incarnation returns the present incarnation.
func (s *PolicyState) Incarnation() identity.Incarnation { return s.incarnation }

// Epoch counts the ordered policy changes.
func (s *PolicyState) Epoch() identity.Epoch { return s.epoch }

// Base counts the changes that do more than narrow: what proposals bind.
func (s *PolicyState) Base() uint64 { return s.base }

// Started reports whether Bootstrap was ordered.
func (s *PolicyState) Started() bool { return s.bootstrap != nil }

// Bootstrap returns the Bootstrap that was ordered, or nil.
func (s *PolicyState) Bootstrap() *Bootstrap { return s.bootstrap }

// LogKey returns the log's public key, nil before the start.
func (s *PolicyState) LogKey() ed25519.PublicKey {
	if s.bootstrap == nil {
		return nil
	}
	return s.bootstrap.LogPublic()
}

// Entries returns the allowed set, sorted by id.
func (s *PolicyState) Entries() []Entry { return sortedEntries(s.entries) }

// Revoked returns the entries that were allowed once, sorted by id.
func (s *PolicyState) Revoked() []Entry { return sortedEntries(s.revoked) }

func sortedEntries(m map[string]Entry) []Entry {
	out := slices.AppendSeq(make([]Entry, 0, len(m)), maps.Values(m))
	sortEntries(out)
	return out
}

// Origin returns the log origin of the present incarnation.
func (s *PolicyState) Origin() string { return s.genesis.Origin(s.incarnation) }

// CosignerName returns the note key name of one boot of a node.
func (s *PolicyState) CosignerName(ref identity.NodeRef, boot identity.BootSeq) string {
	return s.genesis.CosignerName(s.incarnation, ref, boot)
}

// AttestPolicy returns the appraisal policy for a node that presents all of roles: the
// kinds admitted for every one of them, the entries that allow all of them, and what is
// demanded of the hardware. "member" is always among the roles.
func (s *PolicyState) AttestPolicy(of identity.NodeRef, roles ...string) attest.Policy {
	roles = NormaliseRoles(roles)
	strict := attest.StrictPolicy()
	p := attest.Policy{Epoch: uint64(s.epoch)}
	for _, k := range s.genesis.Kinds.Member {
		if !slices.ContainsFunc(roles, func(r string) bool { return !slices.Contains(s.genesis.Kinds.kindsFor(r), k) }) {
			p.Kinds = append(p.Kinds, k)
		}
	}
	for _, kind := range p.Kinds {
		parts, err := attest.ParseKinds(kind)
		if err != nil {
			continue // genesis is validated
		}
		for _, part := range parts {
			switch part {
			case attest.KindSEVSNP:
				p.SEVSNP = strict.SEVSNP
			case attest.KindTDX:
				p.TDX = strict.TDX
			case attest.KindVTPM:
				p.VTPM = strict.VTPM
			case attest.KindSim:
				if s.genesis.AllowSim && len(s.genesis.Roots.Sim) > 0 {
					p.Sim = &attest.SimPolicy{}
				}
			}
		}
	}
	for _, e := range s.Entries() {
		if covers(e.Roles, roles) {
			p.References = append(p.References, s.reference(&e))
		}
	}
	s.demand(&p, of.Org)
	for _, e := range s.Revoked() {
		p.Revoked = append(p.Revoked, e.reference())
	}
	return p
}

// measured is what a node was found to run: evidence kind, measurement, and the entry
// that the verifier matched.
type measured struct {
	Kind        string
	Measurement string
	Reference   string
}

// allows returns an empty code if m may hold all of roles at now, else why not.
func (s *PolicyState) allows(m measured, roles []string, now time.Time) attest.Code {
	code := attest.CodeMeasurementNotAllowed
	for _, e := range s.entries {
		if e.Kind != m.Kind || e.Measurement != m.Measurement || !covers(e.Roles, roles) || !s.registersKnown(&e, m.Reference) {
			continue
		}
		if s.inForce(&e, now) {
			return ""
		}
		code = attest.CodeExpired
	}
	if code == attest.CodeExpired {
		return code
	}
	for _, r := range s.revoked {
		if r.Kind == m.Kind && r.Measurement == m.Measurement {
			return attest.CodeRevoked
		}
	}
	return code
}

// registersKnown reports whether a node that matched the entry called reference also has
// the registers and the hardware that e demands, and no file that e does not list.
func (s *PolicyState) registersKnown(e *Entry, reference string) bool {
	if e.ID == reference {
		return true
	}
	matched, ok := s.entries[reference]
	if !ok {
		matched, ok = s.revoked[reference]
	}
	if !ok || matched.Kind != e.Kind || matched.Measurement != e.Measurement {
		return len(e.Registers) == 0 && len(e.IMA) == 0 && !s.demandsPlatform(e)
	}
	for name, v := range e.Registers {
		if matched.Registers[name] != v {
			return false
		}
	}
	return e.listsAll(&matched) && s.platformKnown(e, &matched)
}

// change is a proposal that was accepted, before it takes effect.
type change struct {
	proposal *Proposal
	class    Class
	orgs     []identity.OrgID
	next     *PolicyState // what the actions lead to; commit moves epoch, base and chain
}

// judge decides whether a proposal may take effect on s at now; a zero now, of replay,
// does not judge expiry. The error carries a Reason; where only the signatures fall short the
// change comes with it, for DryRun.
func (s *PolicyState) judge(raw []byte, now time.Time) (*change, error) {
	p, env, err := ParseProposal(raw)
	if err != nil {
		return nil, refuseErr(attest.CodeMalformed, "proposal", err)
	}
	if p.MeshID != s.genesis.meshID {
		return nil, refuse(attest.CodeWrongMesh, "proposal mesh_id", p.MeshID.Short(), s.genesis.meshID.Short())
	}
	if p.Incarnation != s.incarnation {
		return nil, refuse(attest.CodeWrongIncarnation, "proposal incarnation", fmt.Sprint(p.Incarnation), fmt.Sprint(s.incarnation))
	}
	if _, ok := s.seen[p.id]; ok {
		return nil, refuse(attest.CodeReplayed, "proposal "+p.id.String(), "ordered before", "a new proposal")
	}
	if len(s.chain) >= MaxChain || s.chainBytes+len(raw) > MaxChainBytes {
		return nil, refuse(attest.CodeLimit, "policy chain", fmt.Sprintf("%d changes in %d bytes", len(s.chain), s.chainBytes), fmt.Sprintf("at most %d in %d", MaxChain, MaxChainBytes))
	}
	if !now.IsZero() {
		if !now.Before(p.Expires) {
			return nil, refuse(attest.CodeProposalExpired, "proposal expires", p.Expires.Format(time.RFC3339), "later than "+now.Format(time.RFC3339))
		}
		if p.Expires.After(now.Add(MaxProposalLifetime)) {
			return nil, refuse(attest.CodeProposalExpired, "proposal expires", p.Expires.Format(time.RFC3339), "at most 14 days after "+now.Format(time.RFC3339))
		}
	}
	if p.Base > s.base {
		return nil, refuse(attest.CodeBehind, "proposal base", fmt.Sprint(p.Base), fmt.Sprintf("at most %d", s.base))
	}
	c := &change{proposal: p, class: p.Class()}
	if err := s.checkBase(c); err != nil { // before what the actions meet: it says more
		return nil, err
	}
	if c.next, err = s.after(p); err != nil {
		return nil, err
	}
	c.class = widest(c.class, classify(s, c.next))
	if err := s.checkBase(c); err != nil {
		return nil, err
	}
	c.orgs, err = s.count(env, c)
	return c, err
}

// checkBase demands that what does more than narrow was made on the present base.
func (s *PolicyState) checkBase(c *change) error {
	if c.class != ClassNarrow && c.proposal.Base != s.base {
		return refuse(attest.CodeStaleBase, "proposal base", fmt.Sprint(c.proposal.Base), fmt.Sprint(s.base))
	}
	return nil
}

// commit makes s the state after c, which was judged on s.
func (s *PolicyState) commit(c *change) {
	*s = *c.next
	s.epoch++
	if c.class != ClassNarrow {
		s.base++
	}
	s.seen[c.proposal.id] = struct{}{}
	s.extend(c.proposal.raw)
}

func (s *PolicyState) extend(raw []byte) {
	s.chain = append(s.chain, slices.Clone(raw))
	s.chainBytes += len(raw)
	s.link(raw)
}

// start verifies genesis and Bootstrap as ordered. The genesis envelope is ordered too
// because its signatures, unlike its payload, may differ between two files.
func (s *PolicyState) start(genesisRaw, bootstrapRaw []byte) error {
	if s.bootstrap != nil {
		return refuse(attest.CodeReplayed, "bootstrap", "a second Bootstrap", "one per incarnation")
	}
	if s.recovery != nil {
		return refuse(attest.CodeWrongIncarnation, "bootstrap", "genesis", "the Recovery of incarnation "+fmt.Sprint(s.incarnation))
	}
	g, err := ParseGenesis(genesisRaw)
	if err != nil {
		return refuseErr(attest.CodeMalformed, "bootstrap genesis", err)
	}
	if g.meshID != s.genesis.meshID {
		return refuse(attest.CodeWrongMesh, "bootstrap genesis", g.meshID.Short(), s.genesis.meshID.Short())
	}
	b, err := s.ParseBootstrap(bootstrapRaw, time.Time{})
	if err != nil {
		return err
	}
	s.bootstrap = b
	s.extend(genesisRaw)
	s.extend(bootstrapRaw)
	return nil
}

// NewPolicyState returns the policy before the start of incarnation 0.
func NewPolicyState(g *Genesis) *PolicyState { return newPolicyState(g) }

// PolicyChain returns what ReplayPolicy needs: the envelopes of genesis, Bootstrap and
// every proposal, as ordered; after those of each incarnation the Recovery and the Bootstrap
// of the next. Empty before the start.
func (s *PolicyState) PolicyChain() [][]byte { return slices.Clone(s.chain) }

// ReplayPolicy verifies a policy chain from genesis on and returns the policy it leads to,
// equal to that of the seats except for time: what expired is refused by seats when it is
// ordered. An empty chain is the policy before the start.
func ReplayPolicy(g *Genesis, chain [][]byte) (*PolicyState, error) {
	s := newPolicyState(g)
	return s, s.Extend(chain)
}

// Extend verifies a chain that may be longer than what s has. Its beginning must be what s
// has already: a chain that is shorter or another is refused and s stays as it is.
func (s *PolicyState) Extend(chain [][]byte) error {
	if len(chain) > MaxChain {
		return refuse(attest.CodeLimit, "policy chain", fmt.Sprint(len(chain)), fmt.Sprintf("at most %d", MaxChain))
	}
	if len(chain) < len(s.chain) {
		return refuse(attest.CodeBehind, "policy chain", fmt.Sprintf("%d steps", len(chain)), fmt.Sprintf("at least %d", len(s.chain)))
	}
	for i, raw := range s.chain {
		if sha256.Sum256(raw) != sha256.Sum256(chain[i]) {
			return refuse(attest.CodeBehind, fmt.Sprintf("policy chain step %d", i), sha256Hex(chain[i])[:16], sha256Hex(raw)[:16])
		}
	}
	if len(chain) == len(s.chain) {
		return nil
	}
	next, err := s.Append(chain[len(s.chain):])
	if err != nil {
		return err
	}
	*s = *next
	return nil
}

func (s *PolicyState) clone() *PolicyState {
	next := *s
	next.entries, next.revoked = maps.Clone(s.entries), maps.Clone(s.revoked)
	next.seen, next.chain, next.links = maps.Clone(s.seen), slices.Clone(s.chain), slices.Clone(s.links)
	return &next
}
