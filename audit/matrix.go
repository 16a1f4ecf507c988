package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// A matrix is who had verified whom, at one place of a log: the newest edges between the newest
// boots, what each is worth, and who could take part in rounds.
//
// # Place
//
// No leaf says when it was ordered. A place is named by the index of its last leaf, or by a time T. Genesis,
// results and Credentials say when they were made, the latter two by clocks that the seats let run ahead of
// theirs by consensus.ClockSkew at most; the place of T is before the first of them that was made after T. So
// a leaf of any kind counts as ordered by T if everything that says when it was made, up to and with it, was
// made by then. That errs by the time between two leaves that say so (under an hour while a mesh lives), and
// by clocks that are wrong.
//
// Whether an edge, a Credential or a suspension had ended is judged by T; for an index by the newest
// time that was named up to it; and at the end of a log by when the quorum cosigned it.

// Place is where in a log a Matrix is of. The zero value is the log's end.
type Place struct {
	Index *uint64   // of the last leaf that counts
	Time  time.Time // or the last moment
}

// Matrix is who had verified whom.
type Matrix struct {
	// Index is the last leaf that counts, At the time by which is judged what had ended.
	Index uint64    `json:"index"`
	At    time.Time `json:"at"`
	// Epoch is that of the policy in force, PolicyLeaf the leaf that it came with.
	Epoch      identity.Epoch `json:"epoch"`
	PolicyLeaf uint64         `json:"policy_leaf"`
	// Needed is how many other organisations must affirm a node that takes part in rounds.
	Needed int          `json:"needed"`
	Nodes  []MatrixNode `json:"nodes"` // by name
	Edges  []MatrixEdge `json:"edges"` // by subject, then verifier
}

// MatrixNode is the newest boot of a node.
type MatrixNode struct {
	Node        identity.NodeRef `json:"node"`
	Peer        identity.PeerID  `json:"peer"`
	Roles       []string         `json:"roles"`
	Seat        bool             `json:"seat"`
	Kind        string           `json:"kind,omitempty"`
	Measurement string           `json:"measurement,omitempty"`
	// AffirmedBy are the other organisations whose edges count.
	AffirmedBy []identity.OrgID `json:"affirmed_by"`
	// Eligible says that it could take part in rounds; Code says why not.
	Eligible bool        `json:"eligible"`
	Code     attest.Code `json:"code,omitempty"`
	// Suspended is until when its data was withheld; zero if it was not.
	Suspended time.Time `json:"suspended,omitzero"`
}

// MatrixEdge is the newest result of one boot on another.
type MatrixEdge struct {
	Verifier identity.NodeRef `json:"verifier"`
	Subject  identity.NodeRef `json:"subject"`
	Verdict  attest.Verdict   `json:"verdict"`
	Codes    []attest.Code    `json:"codes"`
	Leaf     uint64           `json:"leaf"`
	// Epoch is that of the policy by which the verifier judged, PolicyLeaf where that is in the log.
	Epoch      identity.Epoch `json:"epoch"`
	PolicyLeaf uint64         `json:"policy_leaf"`
	Made       time.Time      `json:"made"`
	Expires    time.Time      `json:"expires"`
	// Counts says that it made its subject eligible; Code says why not, or is empty where the verdict
	// does.
	Counts bool        `json:"counts"`
	Code   attest.Code `json:"code,omitempty"`
}

// Age is how old an edge was.
func (m *Matrix) Age(e MatrixEdge) time.Duration { return max(0, m.At.Sub(e.Made)) }

// ErrNoPlace is wrapped by the error of MatrixOf if a log has no such place.
var ErrNoPlace = errors.New("the log has no such place")

// MatrixOf audits a log as Log does and returns the matrix of one place. Where the log is found not to be as
// it should be the matrix may be wrong, or nil.
func MatrixOf(ctx context.Context, r *transparency.Reader, place Place, opts Options) (Report, *Matrix, error) {
	m := &matrixMaker{place: place, epochs: map[identity.Epoch]uint64{}, edges: map[pair]uint64{}}
	a := newOnce(opts)
	a.opts.Before, a.watch = m.before, m.after
	report, err := a.audit(ctx, r)
	if err != nil {
		return report, nil, err
	}
	if m.out == nil && report.State != nil && (place.Index == nil && (place.Time.IsZero() || !m.newest.After(place.Time))) {
		at := report.Fresh
		switch {
		case !place.Time.IsZero():
			at = place.Time
		case at.IsZero():
			at = m.newest
		}
		m.out = m.make(report.State, m.last, m.policy, at)
	}
	if m.out == nil && report.OK {
		return report, nil, fmt.Errorf("%w: it has %d entries, a state from entry 1 on, and results and Credentials that name times up to %s", ErrNoPlace, report.Entries, m.newest.Format(time.RFC3339))
	}
	return report, m.out, nil
}

// pair is an edge's ends.
type pair struct{ verifier, subject identity.PeerID }

// matrixMaker follows an audit up to a place.
type matrixMaker struct {
	place  Place
	epochs map[identity.Epoch]uint64 // the leaf that made it
	edges  map[pair]uint64           // the newest leaf
	last   uint64
	policy uint64
	newest time.Time // of those that leaves have named
	out    *Matrix
	passed bool
}

// made returns when a leaf says that it was made; zero if it does not.
func made(s Seen) (time.Time, *consensus.AttestationResult) {
	switch s.Kind {
	case envelope.TypeGenesis:
		if g, err := consensus.ParseGenesis(s.Leaf); err == nil {
			return g.CreatedAt, nil
		}
	case envelope.TypeAttestationResult:
		if r, err := s.read.Result(); err == nil {
			return r.At, r
		}
	case envelope.TypeCredential:
		if c, err := consensus.ParseCredential(s.Leaf); err == nil {
			return c.Issued, nil
		}
	}
	return time.Time{}, nil
}

// before makes the matrix where the place of a time is passed.
func (m *matrixMaker) before(s Seen) {
	if m.place.Time.IsZero() || m.passed {
		return
	}
	if at, _ := made(s); at.After(m.place.Time) {
		m.passed = true
		if s.State != nil {
			m.out = m.make(s.State, m.last, m.policy, m.place.Time)
		}
	}
}

func (m *matrixMaker) after(s Seen) {
	if m.out != nil {
		return
	}
	at, r := made(s)
	if len(s.Findings) == 0 && at.After(m.newest) {
		m.newest = at
	}
	if s.State == nil {
		return
	}
	if r != nil && len(s.Findings) == 0 {
		m.edges[pair{r.Verifier.Peer, r.Subject.Peer}] = s.Index
	}
	if _, ok := m.epochs[s.State.Epoch()]; !ok {
		m.epochs[s.State.Epoch()] = s.Policy
	}
	m.last, m.policy = s.Index, s.Policy
	if m.place.Index != nil && *m.place.Index == s.Index {
		m.out = m.make(s.State, s.Index, s.Policy, m.newest)
	}
}

// make returns the matrix of a state.
func (m *matrixMaker) make(s *consensus.State, index, policy uint64, at time.Time) *Matrix {
	out := &Matrix{Index: index, At: at, Epoch: s.Epoch(), PolicyLeaf: policy, Needed: s.VerifiersNeeded(), Nodes: []MatrixNode{}, Edges: []MatrixEdge{}}
	for _, n := range s.Nodes() {
		counting := map[identity.PeerID]bool{}
		row := MatrixNode{Node: n.Ref, Peer: n.Peer, Roles: n.Roles, Seat: n.Seat, Kind: n.Kind, Measurement: n.Measurement, AffirmedBy: []identity.OrgID{}}
		for _, e := range s.Affirming(n.Peer, at) {
			counting[e.Verifier.Peer] = true
			if !slices.Contains(row.AffirmedBy, e.Verifier.Node.Org) {
				row.AffirmedBy = append(row.AffirmedBy, e.Verifier.Node.Org)
			}
		}
		slices.Sort(row.AffirmedBy)
		if x, ok := s.SuspendedNode(n.Ref, at); ok {
			row.Suspended = x.Ends
		}
		row.Eligible = s.IsEligible(n.Peer, at) && !n.Drained
		if !row.Eligible {
			row.Code = ineligible(s, n, row, at)
		}
		out.Nodes = append(out.Nodes, row)
		for _, e := range s.Edges(n.Peer) {
			edge := MatrixEdge{Verifier: e.Verifier.Node, Subject: n.Ref, Verdict: e.Verdict, Codes: e.Codes, Leaf: m.edges[pair{e.Verifier.Peer, n.Peer}],
				Epoch: e.Epoch, PolicyLeaf: m.epochs[e.Epoch], Made: e.At, Expires: e.Expires, Counts: counting[e.Verifier.Peer]}
			if !edge.Counts {
				edge.Code = uncounted(s, n, e, at)
			}
			out.Edges = append(out.Edges, edge)
		}
	}
	slices.SortStableFunc(out.Edges, func(a, b MatrixEdge) int { return compareRefs(a.Subject, b.Subject) })
	return out
}

func compareRefs(a, b identity.NodeRef) int {
	return cmp.Or(cmp.Compare(a.Org, b.Org), cmp.Compare(a.Name, b.Name))
}

// ineligible says why a node could take part in no round.
func ineligible(s *consensus.State, n consensus.Node, row MatrixNode, at time.Time) attest.Code {
	switch {
	case !s.Stands(n.Peer):
		return attest.CodeNoCredential
	case !at.Before(n.Credential.Expires):
		return attest.CodeCredentialExpired
	case n.Standing == consensus.StandingEvicted:
		return n.Code
	case n.Drained:
		return attest.CodeDrained
	case s.Allows(n.Kind, n.Measurement, n.Reference, n.Roles, at) != "" && n.Standing == consensus.StandingMeasured:
		return s.Allows(n.Kind, n.Measurement, n.Reference, n.Roles, at)
	case len(row.AffirmedBy) < s.VerifiersNeeded():
		return attest.CodeFewVerifiers
	case !row.Suspended.IsZero():
		return attest.CodeSuspended
	}
	return attest.CodeNotEligible
}

// uncounted says why an edge on n makes nobody eligible; "" where its verdict says so.
func uncounted(s *consensus.State, n consensus.Node, e *consensus.AttestationResult, at time.Time) attest.Code {
	by, known := s.Node(e.Verifier.Peer)
	switch {
	case e.Verdict != attest.VerdictAffirming:
		return ""
	case e.Verifier.Node.Org == n.Ref.Org:
		return attest.CodeOwnOrganisation
	case !at.Before(e.Expires):
		return attest.CodeStale
	case !known:
		return attest.CodeRetired
	case !s.Stands(by.Peer):
		return attest.CodeNoCredential
	case by.Standing == consensus.StandingEvicted:
		return by.Code
	case by.Standing == consensus.StandingCredentialed:
		return attest.CodeFewVerifiers // nobody has affirmed the verifier
	}
	if code := s.Allows(e.Kind, e.Measurement, e.Reference, n.Roles, at); code != "" {
		return code
	}
	return s.Allows(by.Kind, by.Measurement, by.Reference, by.Roles, at)
}
