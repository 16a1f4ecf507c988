package audit

import (
	"bytes"
	"crypto"
	"fmt"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/transparency"
)

// replayer rebuilds the state of governance from leaves.
type replayer struct {
	given   *consensus.Genesis // the mesh that the auditor means, or nil
	at      time.Time          // the auditor's
	genesis []byte
	state   *consensus.State
	broken  bool   // there is no state: genesis, a Bootstrap or a Recovery do not hold
	policy  uint64 // the leaf that the policy was last changed by
	// place returns the size and root of the leaves before the present one.
	place      func() (consensus.CheckpointSeen, error)
	recoveries []Recovered
	parts      []part
	derived    [][]byte // leaves that must come next
	results    int
	rounds     int
	// suspensions counts suspensions and lifts.
	suspensions int
	suspects    []suspect
	jobs        map[federated.JobID]*job
	volume      volume
	// governors are all govern keys that were in force so far.
	governors []envelope.Key
	// earliest is a time that the members' clock had passed: the newest result so far
	// would not have been ordered any earlier than ClockSkew before it was made.
	earliest time.Time
	// latest is how new a result can be under the present checkpoint, for this auditor.
	latest time.Time
}

func newReplayer(given *consensus.Genesis, place func() (consensus.CheckpointSeen, error)) *replayer {
	return &replayer{given: given, place: place, jobs: map[federated.JobID]*job{}}
}

// started reports whether genesis and Bootstrap were read and hold.
func (r *replayer) started() bool { return r.state != nil && !r.broken && r.state.Started() }

// entry is a leaf that was read once, and its signature verified where that hangs on nothing but
// the leaf; on any goroutine, before its turn.
type entry struct {
	*consensus.Leaf
	round    federated.Round // of a round that its aggregator has signed
	roundErr error
}

func readEntry(raw []byte) *entry {
	e := &entry{Leaf: consensus.ParseLeaf(raw)}
	if e.Kind() == envelope.TypeRound {
		e.round, e.roundErr = federated.ParseRound(raw)
	}
	return e
}

// leaf replays one leaf and returns what is wrong with it.
func (r *replayer) leaf(index uint64, e *entry) []transparency.Finding {
	leaf := e.Raw()
	switch {
	case index == 0:
		return r.first(leaf)
	case r.broken:
		return nil
	case index == 1:
		return r.second(leaf)
	}
	var out []transparency.Finding
	if len(r.derived) > 0 {
		if bytes.Equal(r.derived[0], leaf) {
			r.derived = r.derived[1:]
			return nil
		}
		if !r.expiry(e) {
			out = append(out, finding(index, CodeDerivedMissing, "want the leaf that follows from those before: "+describe(r.derived[0])))
			r.derived = nil
		}
	}
	return append(out, r.dispatch(index, e)...)
}

func finding(index uint64, code, message string) transparency.Finding {
	return transparency.Finding{Index: index, Code: code, Message: message}
}

func (r *replayer) first(leaf []byte) []transparency.Finding {
	r.broken = true
	g, err := consensus.ParseGenesis(leaf)
	if err != nil {
		return []transparency.Finding{finding(0, CodeGenesisInvalid, err.Error())}
	}
	if want := r.given; want != nil && !sameGenesis(g, want) {
		return []transparency.Finding{finding(0, CodeGenesisMismatch, fmt.Sprintf("the log is of mesh %s, the given genesis of %s", g.MeshID(), want.MeshID()))}
	}
	r.genesis, r.state, r.broken = leaf, consensus.NewState(g), false
	r.governors = r.state.GovernKeys()
	return nil
}

func (r *replayer) second(leaf []byte) []transparency.Finding {
	c, err := consensus.NewCommand(consensus.KindBootstrap, r.genesis, leaf)
	if err != nil {
		r.broken = true
		return []transparency.Finding{finding(1, CodeBootstrapInvalid, err.Error())}
	}
	if out := r.state.Apply(c); out.Reason != nil {
		r.broken = true
		return []transparency.Finding{finding(1, CodeBootstrapInvalid, out.Reason.String())}
	}
	r.policy = 1
	return nil
}

// dispatch replays a leaf through the rules of its kind.
func (r *replayer) dispatch(index uint64, e *entry) []transparency.Finding {
	kind, leaf := e.Kind(), e.Raw()
	if kind == envelope.TypeRecovery || r.state.Recovering() {
		return r.recovery(index, kind, leaf)
	}
	switch kind {
	case envelope.TypeCredential, envelope.TypeAttestationResult, envelope.TypeProposal, envelope.TypeMembership,
		envelope.TypeSuspension, envelope.TypeSuspensionLift, envelope.TypeWithdrawal, envelope.TypeState, envelope.TypeReady, envelope.TypeDrain, envelope.TypeRetirement:
	case envelope.TypeRound:
		return r.round(index, e)
	case "":
		return []transparency.Finding{finding(index, string(attest.CodeMalformed), "no DSSE envelope over an in-toto Statement in canonical form")}
	default:
		return []transparency.Finding{finding(index, CodeUnknownLeaf, fmt.Sprintf("predicate type %.100q", kind))}
	}
	var out []transparency.Finding
	if f := r.times(index, e); f != nil {
		out = append(out, *f)
	}
	o, err := r.state.ReplayLeaf(e.Leaf)
	if err != nil {
		code := string(consensus.ReasonOf(err).Code)
		if kind == envelope.TypeMembership || kind == envelope.TypeState {
			code = CodeNotDerived
		}
		return append(out, finding(index, code, consensus.ReasonOf(err).String()))
	}
	switch kind {
	case envelope.TypeAttestationResult:
		r.results++
		r.heard(e)
	case envelope.TypeProposal:
		r.policy = index
		r.meet(r.state.GovernKeys())
	case envelope.TypeSuspension, envelope.TypeSuspensionLift:
		r.suspensions++
	}
	out = append(out, r.volume.leaf(index, e, r.state)...)
	if t := latest(e); !t.IsZero() {
		out = append(out, r.clockBefore(t)...)
	}
	if len(o.Leaves) > 1 { // a removal by expiry has none and may stand between derived leaves
		r.derived = append(r.derived, o.Leaves[1:]...)
	}
	return out
}

// meet notes govern keys that are in force now.
func (r *replayer) meet(keys []envelope.Key) {
	for _, k := range keys {
		same, ok := k.Public.(interface{ Equal(crypto.PublicKey) bool })
		if ok && !slices.ContainsFunc(r.governors, func(have envelope.Key) bool { return same.Equal(have.Public) }) {
			r.governors = append(r.governors, k)
		}
	}
}

// times finds leaves that were ordered after the members' clock had passed their expiry.
func (r *replayer) times(index uint64, e *entry) *transparency.Finding {
	kind, leaf := e.Kind(), e.Raw()
	var code attest.Code
	var what string
	switch kind {
	case envelope.TypeProposal:
		if p, _, err := consensus.ParseProposal(leaf); err == nil && !r.earliest.Before(p.Expires) {
			code, what = attest.CodeProposalExpired, "the proposal expired at "+p.Expires.Format(time.RFC3339)
		}
	case envelope.TypeWithdrawal:
		if w, _, err := consensus.ParseWithdrawal(leaf); err == nil && !r.earliest.Before(w.Expires) {
			code, what = attest.CodeProposalExpired, "the proposal that it is from expired at "+w.Expires.Format(time.RFC3339)
		}
	case envelope.TypeAttestationResult:
		res, err := e.Result()
		if err != nil {
			return nil // Replay says why
		}
		if res.At.After(r.latest) {
			f := finding(index, CodeAhead, fmt.Sprintf("made at %s, when nobody can have ordered it: the checkpoint was cosigned before %s", res.At.Format(time.RFC3339), r.latest.Format(time.RFC3339)))
			return &f
		}
		passed := r.earliest // by the result itself, too
		if at := res.At.Add(-consensus.ClockSkew); at.After(passed) {
			passed = at
		}
		if !passed.Before(res.Expires) {
			code, what = attest.CodeStale, "the result expired at "+res.Expires.Format(time.RFC3339)
		} else if end := r.state.LastEnd(res.Kind, res.Measurement); res.Verdict == attest.VerdictAffirming && !end.IsZero() && !passed.Before(end) {
			code, what = attest.CodeExpired, "the measurement was allowed until "+end.Format(time.RFC3339)
		}
	case envelope.TypeSuspension, envelope.TypeSuspensionLift:
		if what = r.lateSuspension(kind, leaf); what != "" {
			code = attest.CodeSuspensionEnded
		}
	case envelope.TypeMembership:
		m, err := consensus.ParseMembership(leaf)
		if err != nil {
			return nil
		}
		n, _ := r.state.Node(m.Peer)
		if end := r.state.LastEnd(n.Kind, n.Measurement); end.After(r.at.Add(consensus.ClockSkew)) {
			f := finding(index, CodeNotDerived, fmt.Sprintf("the seat %s was removed as expired, but its measurement is allowed until %s", m.Node, end.Format(time.RFC3339)))
			return &f
		}
	}
	if code == "" {
		return nil
	}
	f := finding(index, string(code), fmt.Sprintf("%s, but results up to here were made later than %s", what, r.earliest.Format(time.RFC3339)))
	return &f
}

// expiry reports whether leaf is a removal by expiry, which can come between the leaves
// that are derived from one proposal.
func (r *replayer) expiry(e *entry) bool {
	if e.Kind() != envelope.TypeMembership {
		return false
	}
	m, err := consensus.ParseMembership(e.Raw())
	return err == nil && m.Code == attest.CodeExpired
}

func describe(leaf []byte) string {
	m, err := consensus.ParseMembership(leaf)
	if err != nil {
		return "a leaf of kind " + consensus.ParseLeaf(leaf).Kind()
	}
	return fmt.Sprintf("%s %s of %s (%s)", m.Change, m.Code, m.Node, m.Cause)
}
