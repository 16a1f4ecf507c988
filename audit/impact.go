package audit

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/federated/chunk"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// What an impact asks about.
const (
	TargetEntry       = "entry"       // id of an entry that verifiers matched
	TargetMeasurement = "measurement" // what was found to run
	TargetAdvisory    = "advisory"    // a code of results, or a vendor's advisory that evidence is under
	TargetChip        = "chip"        // hardware id; never public
	TargetProduct     = "product"     // kind of evidence, AMD's product line or Intel's FMSPC
)

// Query names what is, or is assumed to be, broken.
type Query struct {
	Target string `json:"target"`
	Value  string `json:"value"`
	// Since is when it broke; zero is from the beginning. An admission that ended before it is
	// not touched.
	Since time.Time `json:"since,omitzero"`
}

// Disclosed is what is known of the evidence behind a result.
type Disclosed struct {
	// Given says that there is evidence of that commitment. Err is why it says nothing, be it
	// that it is not genuine.
	Given  bool
	Claims attest.Claims
	Err    error
}

// Admission is one affirming result that relied on the target.
type Admission struct {
	Leaf        uint64           `json:"leaf"`
	Node        identity.NodeRef `json:"node"`
	Peer        identity.PeerID  `json:"peer"`
	Verifier    identity.NodeRef `json:"verifier"`
	Entry       string           `json:"entry"`
	Measurement string           `json:"measurement"`
	At          time.Time        `json:"at"`
	Expires     time.Time        `json:"expires"`
	// Evidence is its commitment: what the verifier keeps the evidence under.
	Evidence string `json:"evidence"`
}

// How a round relied on the target.
const (
	// HowTookPart: a participant or the aggregator was admitted under it.
	HowTookPart = "took_part"
	// HowVouched: one was admitted only with the word of a verifier that was.
	HowVouched = "vouched"
	// HowInherits: it goes on from a model that relied on it.
	HowInherits = "inherits"
)

// TouchedRound is one committed round whose result relied on the target.
type TouchedRound struct {
	Leaf  uint64             `json:"leaf"`
	Job   federated.JobID    `json:"job"`
	Round uint32             `json:"round"`
	Model chunk.Root         `json:"model"` // the result's root
	How   string             `json:"how"`   // the first that holds
	Nodes []identity.NodeRef `json:"nodes"` // by whom; none if it only inherits
}

// CleanModel is the newest model of a job that did not rely on the target.
type CleanModel struct {
	Job   federated.JobID `json:"job"`
	Round uint32          `json:"round"`
	Model chunk.Root      `json:"model"`
	Leaf  uint64          `json:"leaf"`
}

// CleanLog is where the log stood before the first admission that relied on the target: every
// checkpoint of at most that size is of before.
type CleanLog struct {
	Size uint64            `json:"size"`
	Root transparency.Hash `json:"root"`
}

// Impact is what relied on something in the past of a mesh.
type Impact struct {
	Query      Query              `json:"query"`
	Admissions []Admission        `json:"admissions"`
	Nodes      []identity.NodeRef `json:"nodes"` // distinct, that were admitted
	Rounds     []TouchedRound     `json:"rounds"`
	// Clean is the whole log where nothing relied on it.
	Clean  CleanLog     `json:"clean"`
	Models []CleanModel `json:"clean_models"` // of jobs with rounds, those that have a clean one
	// Refusals are results of other verdicts that name the target.
	Refusals int `json:"refusals"`
	// Undecided are affirming results of which the leaves do not say whether they relied on it and whose
	// evidence was not disclosed, or says nothing.
	Undecided int `json:"undecided"`
	// Unread are the reasons why disclosed evidence said nothing, the first few.
	Unread []string `json:"unread"`
}

// ImpactOf audits a log as Log does and finds what relied on a target. disclose returns the
// evidence behind a result, as far as the auditor was given it; it may be nil.
func ImpactOf(ctx context.Context, r *transparency.Reader, opts Options, q Query, disclose func(*consensus.Genesis, *consensus.AttestationResult) Disclosed) (Report, Impact, error) {
	a := newOnce(opts)
	t := &tracer{a: a, q: q, disclose: disclose, tree: transparency.NewAccumulator(), touched: map[[32]byte]bool{}, jobs: map[federated.JobID]*traced{},
		out: Impact{Query: q, Admissions: []Admission{}, Nodes: []identity.NodeRef{}, Rounds: []TouchedRound{}, Models: []CleanModel{}, Unread: []string{}}}
	a.watch = t.leaf
	report, err := a.audit(ctx, r)
	if t.err != nil {
		err = t.err
	}
	return report, t.finish(), err
}

// tracer finds what relied on a target while a log is replayed.
type tracer struct {
	a        *Auditor
	q        Query
	disclose func(*consensus.Genesis, *consensus.AttestationResult) Disclosed
	tree     *transparency.Accumulator
	size     uint64
	touched  map[[32]byte]bool // results that relied on it, by digest
	jobs     map[federated.JobID]*traced
	out      Impact
	err      error
}

// traced is one job.
type traced struct {
	touched bool
	clean   *CleanModel
}

// leaf is called after each leaf was replayed; what is wrong with it is in the report.
func (t *tracer) leaf(s Seen) {
	if len(s.Findings) == 0 && s.State != nil {
		switch s.Kind {
		case envelope.TypeAttestationResult:
			t.result(s.Index, s.Result())
		case envelope.TypeRound:
			t.round(s.Index, s.Round())
		}
	}
	if len(t.out.Admissions) > 0 || t.err != nil {
		return // the clean part has ended
	}
	t.err = t.tree.AppendHash(s.Hash)
	t.size = s.Index + 1
}

func (t *tracer) result(index uint64, res *consensus.AttestationResult) {
	if res == nil || !t.q.Since.IsZero() && !res.Expires.After(t.q.Since) {
		return
	}
	relied, decided := t.relied(res)
	switch {
	case res.Verdict != attest.VerdictAffirming:
		if relied {
			t.out.Refusals++
		}
	case relied:
		t.touched[res.Digest()] = true
		t.out.Admissions = append(t.out.Admissions, Admission{index, res.Subject.Node, res.Subject.Peer, res.Verifier.Node, res.Reference,
			res.Measurement, res.At, res.Expires, res.Evidence})
		t.out.Nodes = append(t.out.Nodes, res.Subject.Node)
	case !decided:
		t.out.Undecided++
	}
}

// relied reports whether a result relied on the target, and whether that could be decided.
func (t *tracer) relied(res *consensus.AttestationResult) (relied, decided bool) {
	switch v := t.q.Value; t.q.Target {
	case TargetEntry:
		return res.Reference == v, true
	case TargetMeasurement:
		return res.Measurement == v, true
	case TargetAdvisory:
		if slices.Contains(res.Codes, attest.Code(v)) {
			return true, true
		}
		if !isVendorAdvisory(v) {
			return false, true
		}
		if !slices.Contains(strings.Split(res.Kind, ","), attest.KindTDX) {
			return false, true // Intel's, and in quotes' TCB info alone
		}
	case TargetProduct:
		kinds := strings.Split(res.Kind, ",")
		if isKind(v) {
			return slices.Contains(kinds, v), true
		}
	}
	return t.shown(res)
}

// shown decides by the evidence behind a result.
func (t *tracer) shown(res *consensus.AttestationResult) (relied, decided bool) {
	if t.disclose == nil {
		return false, false
	}
	d := t.disclose(t.a.replay.state.Genesis(), res)
	switch {
	case !d.Given:
		return false, false
	case d.Err != nil:
		if len(t.out.Unread) < maxUnread {
			t.out.Unread = append(t.out.Unread, fmt.Sprintf("%s on %s: %v", res.Verifier.Node, res.Subject.Node, d.Err))
		}
		return false, false
	}
	return t.q.matches(&d.Claims), true
}

const maxUnread = 10

// matches reports whether authentic claims show the target.
func (q Query) matches(c *attest.Claims) bool {
	switch q.Target {
	case TargetChip:
		return c.HardwareID != "" && c.HardwareID == q.Value
	case TargetAdvisory:
		return c.TDX != nil && slices.Contains(c.TDX.Advisories, q.Value)
	case TargetProduct:
		return c.SEVSNP != nil && strings.EqualFold(c.SEVSNP.Product, q.Value) || c.TDX != nil && strings.EqualFold(c.TDX.FMSPC, q.Value)
	}
	return false
}

// round follows a committed round: who made it, and which model it goes on from.
func (t *tracer) round(index uint64, round *federated.Round) {
	if round == nil {
		return
	}
	j := t.jobs[round.Job]
	if j == nil {
		j = &traced{}
		t.jobs[round.Job] = j
	}
	found := TouchedRound{Leaf: index, Job: round.Job, Round: round.Round, Model: round.ResultRoot, Nodes: []identity.NodeRef{}}
	for _, how := range []struct {
		name string
		is   func(identity.PeerID) bool
	}{{HowTookPart, t.tookPart}, {HowVouched, t.vouched}} {
		if how.is(round.Peer) {
			found.Nodes = append(found.Nodes, round.Aggregator)
		}
		for _, p := range round.Accepted {
			if p.Peer != round.Peer && how.is(p.Peer) {
				found.Nodes = append(found.Nodes, p.Node)
			}
		}
		if len(found.Nodes) > 0 {
			found.How = how.name
			break
		}
	}
	if found.How == "" && j.touched {
		found.How = HowInherits
	}
	if found.How == "" {
		j.clean = &CleanModel{round.Job, round.Round, round.ResultRoot, index}
		return
	}
	j.touched = true
	t.out.Rounds = append(t.out.Rounds, found)
}

// tookPart reports whether a result on peer that counts now relied on the target.
func (t *tracer) tookPart(peer identity.PeerID) bool {
	r := t.a.replay
	return slices.ContainsFunc(r.state.Affirming(peer, r.lowerBound()), func(e *consensus.AttestationResult) bool { return t.touched[e.Digest()] })
}

// vouched reports whether peer is admitted only because verifiers count that were admitted
// under the target themselves.
func (t *tracer) vouched(peer identity.PeerID) bool {
	r := t.a.replay
	all, clean := map[identity.OrgID]bool{}, map[identity.OrgID]bool{}
	for _, e := range r.state.Affirming(peer, r.lowerBound()) {
		all[e.Verifier.Node.Org] = true
		if !t.tookPart(e.Verifier.Peer) {
			clean[e.Verifier.Node.Org] = true
		}
	}
	return len(clean) < len(all) && len(clean) < r.state.VerifiersNeeded()
}

func (t *tracer) finish() Impact {
	root, err := t.tree.Root()
	if err == nil {
		t.out.Clean = CleanLog{t.size, root}
	}
	slices.SortFunc(t.out.Nodes, func(a, b identity.NodeRef) int { return strings.Compare(a.String(), b.String()) })
	t.out.Nodes = slices.Compact(t.out.Nodes)
	for _, j := range t.jobs {
		if j.clean != nil {
			t.out.Models = append(t.out.Models, *j.clean)
		}
	}
	slices.SortFunc(t.out.Models, func(a, b CleanModel) int { return strings.Compare(string(a.Job), string(b.Job)) })
	return t.out
}
