package monitor

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// entry is a leaf that an audit has replayed.
type entry struct {
	index    uint64
	kind     string // predicate type, empty of what is no envelope
	leaf     []byte
	findings []transparency.Finding // of the replay, at this leaf
	state    *consensus.State       // after it; nil where there is none, as before a genesis that holds
}

// leafJudge makes alerts of leaves. It is a function of the leaves and of what is set below: two
// monitors with the same rules say the same.
type leafJudge struct {
	mesh   identity.MeshID
	rules  []matcher
	start  uint64
	end    uint64        // first index that is not told; what is wrong is told of every leaf
	before time.Time     // when a quorum cosigned the size that the judged leaves come after; zero if none did
	skew   time.Duration // that clocks may differ by
	origin string        // of the leaf before
	ahead  map[identity.NodeRef]aheadResult
}

// aheadResult is the result of a verifier that was made last, by its own clock.
type aheadResult struct {
	at    time.Time
	alert Alert
}

// judge returns the alerts of one leaf, what is wrong first.
func (j *leafJudge) judge(e entry) []Alert {
	f := factsOf(e.kind, e.leaf)
	base := Alert{Index: &e.index, Kind: f.kind, Subject: f.name, Leaf: leafHash(e.leaf)}
	if e.state != nil {
		j.origin = e.state.Origin()
	}
	base.Origin = j.origin
	var out []Alert
	count := map[string]int{}
	for _, x := range e.findings {
		a := base
		a.Severity, a.Code, a.Message = Error, x.Code, x.Message
		if f.result != nil && unknownVerifier(e.state, f.result) {
			a.Code, a.Subject = CodeUnknownVerifier, f.result.Verifier.Node.String()
			a.Message = fmt.Sprintf("%s result by %s (peer %s), who was no member there: %s", f.result.Verdict, f.result.Verifier.Node, f.result.Verifier.Peer.Short(), x.Message)
		}
		a.ID = alertID(j.mesh, a.Code, decimal(e.index), decimal(uint64(count[a.Code])))
		count[a.Code]++
		out = append(out, a)
	}
	if e.index < j.start || e.index >= j.end {
		return out
	}
	told := func(severity Severity, code, rule, format string, args ...any) {
		a := base
		a.Severity, a.Code, a.Rule, a.Message = severity, code, rule, fmt.Sprintf(format, args...)
		a.ID = alertID(j.mesh, code, decimal(e.index), rule)
		out = append(out, a)
	}
	if len(e.findings) == 0 {
		j.ordinary(e, f, told)
	}
	for _, r := range j.rules {
		if r.matches(f) {
			told(r.Severity, CodeMatch, r.Name, "%s", f.describe())
		}
	}
	return out
}

// ordinary tells what leaves say that are as they should be.
func (j *leafJudge) ordinary(e entry, f facts, told func(Severity, string, string, string, ...any)) {
	switch typePrefix + f.kind + typeSuffix {
	case envelope.TypeProposal, envelope.TypeSuspension, envelope.TypeSuspensionLift:
		if e.state != nil {
			told(Notice, CodePolicyChanged, "", "epoch %d: %s", e.state.Epoch(), strings.Join(f.changes, "; "))
		}
	case envelope.TypeRecovery:
		x, _, err := consensus.ParseRecovery(e.leaf)
		if err != nil {
			return // a finding then
		}
		told(Warning, CodeRecovered, "", "incarnation %d begins here, of organisations %v; what was ordered after entry %d of the one before is given up", x.Incarnation, x.Organisations, e.index)
	case envelope.TypeAttestationResult:
		r := f.result
		if r.Verdict == attest.VerdictContraindicated {
			told(Warning, CodeContraindicated, "", "%s", f.describe())
		}
		j.times(e, r, told)
	}
}

// times holds a result against the cosignatures around it: what is logged between two checkpoints
// was made before the later one and had not expired at the earlier one.
func (j *leafJudge) times(e entry, r *consensus.AttestationResult, told func(Severity, string, string, string, ...any)) {
	if !j.before.IsZero() && r.Expires.Before(j.before.Add(-j.skew)) {
		told(Warning, CodeClockSkew, "", "a result by %s expired at %s, and was not in the log yet when a quorum cosigned it at %s", r.Verifier.Node, r.Expires.Format(time.RFC3339), j.before.Format(time.RFC3339))
		return
	}
	if last, ok := j.ahead[r.Verifier.Node]; ok && !r.At.After(last.at) {
		return
	}
	if j.ahead == nil {
		j.ahead = map[identity.NodeRef]aheadResult{}
	}
	a := Alert{ID: alertID(j.mesh, CodeClockSkew, decimal(e.index), ""), Severity: Warning, Code: CodeClockSkew, Origin: j.origin,
		Index: &e.index, Leaf: leafHash(e.leaf), Kind: "attestation-result", Subject: r.Verifier.Node.String()}
	j.ahead[r.Verifier.Node] = aheadResult{r.At, a}
}

// late returns the alerts of results that were made after a quorum had cosigned them, by the
// clock of their verifier.
func (j *leafJudge) late(cosigned time.Time) []Alert {
	var out []Alert
	for node, x := range j.ahead {
		if x.at.After(cosigned.Add(j.skew)) {
			x.alert.Message = fmt.Sprintf("%s made a result at %s by its clock, which a quorum had cosigned by %s", node, x.at.Format(time.RFC3339), cosigned.Format(time.RFC3339))
			out = append(out, x.alert)
		}
	}
	slices.SortFunc(out, func(a, b Alert) int { return cmp.Compare(*a.Index, *b.Index) })
	return out
}

// unknownVerifier reports whether the verifier of a result was no member.
func unknownVerifier(s *consensus.State, r *consensus.AttestationResult) bool {
	if s == nil {
		return true
	}
	n, ok := s.NodeByRef(r.Verifier.Node)
	return !ok || n.Peer != r.Verifier.Peer
}

// describe is one line about a leaf, of its own words.
func (f *facts) describe() string {
	if r := f.result; r != nil {
		codes := ""
		for _, c := range r.Codes {
			codes += " " + string(c)
		}
		return fmt.Sprintf("%s found %s %s with measurement %s:%s", r.Verifier.Node, r.Subject.Node, r.Verdict, orNone(r.Measurement), orNone(codes))
	}
	if len(f.changes) > 0 {
		return f.kind + ": " + strings.Join(f.changes, "; ")
	}
	return f.kind + " about " + orNone(f.name)
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func leafHash(leaf []byte) string {
	h := transparency.LeafHash(leaf)
	return hex.EncodeToString(h[:])
}
