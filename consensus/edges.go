package consensus

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// ApplyResults is Apply of the command that r was verified from.
func (s *State) ApplyResults(r *Results) Outcome {
	out, err := Outcome{}, refuse(attest.CodeNotStarted, string(KindResults), "before Bootstrap", "after Bootstrap")
	if s.Started() {
		out, err = s.takeResults(r.list)
	}
	if err != nil {
		return Outcome{Reason: ReasonOf(err)}
	}
	return out
}

func (s *State) applyResults(envelopes [][]byte) (Outcome, error) {
	results := make([]*AttestationResult, len(envelopes))
	for i, raw := range envelopes {
		r, err := ParseResult(raw)
		if err != nil {
			return Outcome{}, refuseErr(attest.CodeMalformed, fmt.Sprintf("results: %d", i), err)
		}
		results[i] = r
	}
	return s.takeResults(results)
}

// takeResults takes every edge of the batch that holds against the present membership and
// policy, and skips the others: a batch is one node's collection, and part of it may have
// been overtaken.
func (s *State) takeResults(results []*AttestationResult) (Outcome, error) {
	var out Outcome
	for i, r := range results {
		if err := s.admitEdge(r); err != nil {
			out.Skipped = append(out.Skipped, Skip{i, *ReasonOf(err)})
			continue
		}
		s.spend(quotaResults, r.Verifier.Node.Org)
		verifiers := s.edges[r.Subject.Peer]
		if verifiers == nil {
			verifiers = map[identity.PeerID]*AttestationResult{}
			s.edges[r.Subject.Peer] = verifiers
		}
		verifiers[r.Verifier.Peer] = r
		s.remeasure(s.nodes[r.Subject.Node], verifiers)
		out.Leaves = append(out.Leaves, r.raw)
		if err := s.contradict(&out, r); err != nil {
			return Outcome{}, err
		}
	}
	if len(out.Leaves) == 0 {
		reason := out.Skipped[0].Reason
		return Outcome{Reason: &reason, Skipped: out.Skipped}, nil
	}
	return out, nil
}

// admitEdge decides whether an edge becomes part of the state.
func (s *State) admitEdge(r *AttestationResult) error {
	if r.MeshID != s.genesis.meshID {
		return refuse(attest.CodeWrongMesh, "result mesh_id", r.MeshID.Short(), s.genesis.meshID.Short())
	}
	if r.Incarnation != s.incarnation {
		return refuse(attest.CodeWrongIncarnation, "result incarnation", fmt.Sprint(r.Incarnation), fmt.Sprint(s.incarnation))
	}
	if r.Epoch > s.epoch {
		return refuse(attest.CodeBehind, "result epoch", fmt.Sprint(r.Epoch), fmt.Sprintf("at most %d", s.epoch))
	}
	for _, p := range []Party{r.Verifier, r.Subject} {
		if n, ok := s.nodes[p.Node]; !ok {
			return refuse(attest.CodeNoCredential, "result on "+p.Node.String(), "no Credential in the log", "one")
		} else if n.cred.Peer != p.Peer {
			return refuse(attest.CodeRetired, "result on "+p.Node.String(), p.Peer.Short(), n.cred.Peer.Short())
		}
	}
	if !s.now.IsZero() && (!s.now.Before(r.Expires) || r.At.After(s.now.Add(ClockSkew))) {
		return refuse(attest.CodeStale, "result on "+r.Subject.Node.String(), "made "+r.At.Format(time.RFC3339)+", expires "+r.Expires.Format(time.RFC3339), "in force at "+s.now.Format(time.RFC3339))
	}
	if !s.heard(r) {
		return refuse(attest.CodeNoCredential, "result by "+r.Verifier.Node.String(), "a Credential by a key that was removed", "one by a key in force; enrol anew")
	}
	subject := s.nodes[r.Subject.Node]
	if r.Verdict == attest.VerdictAffirming {
		if code := s.allows(edgeFinding(r), subject.cred.Roles, s.now); code != "" {
			return refuse(code, "result on "+r.Subject.Node.String(), r.Measurement, "an allowed measurement for "+strings.Join(subject.cred.Roles, ", "))
		}
	}
	verifiers := s.edges[r.Subject.Peer]
	if old := verifiers[r.Verifier.Peer]; old != nil {
		if !r.At.After(old.At) {
			return refuse(attest.CodeReplayed, "result on "+r.Subject.Node.String(), r.At.Format(time.RFC3339), "later than "+old.At.Format(time.RFC3339))
		}
		if sameFinding(old, r) && r.At.Sub(old.At) < HeartbeatAfter {
			return refuse(attest.CodeDuplicate, "result on "+r.Subject.Node.String(), "nothing new", "a change, or a heartbeat after "+HeartbeatAfter.String())
		}
		return s.checkQuota(quotaResults, r.Verifier.Node.Org)
	}
	same := 0
	for _, e := range verifiers {
		if e.Verifier.Node.Org == r.Verifier.Node.Org {
			same++
		}
	}
	if same >= MaxVerifiers {
		return refuse(attest.CodeLimit, fmt.Sprintf("verifiers of %s on %s", r.Verifier.Node.Org, r.Subject.Node), fmt.Sprint(same), fmt.Sprintf("at most %d", MaxVerifiers))
	}
	return s.checkQuota(quotaResults, r.Verifier.Node.Org)
}

// heard reports whether the Credential of an edge's verifier is by a key that is still in force.
func (s *State) heard(e *AttestationResult) bool { return s.stands(s.nodes[e.Verifier.Node].cred) }

func edgeFinding(r *AttestationResult) measured {
	return measured{r.Kind, r.Measurement, r.Reference}
}

// remeasure settles what a node runs: what most distinct other organisations found, a tie
// keeping what is known. Edges whose finding is not in force any more count only for what
// is known already. With no affirming edge left, it stays as it is.
func (s *State) remeasure(n *node, verifiers map[identity.PeerID]*AttestationResult) {
	if s.unanimous(n, verifiers) {
		n.evicted = s.allows(*n.run, n.cred.Roles, s.now)
		return
	}
	orgs := map[measured]map[identity.OrgID]bool{}
	for _, e := range verifiers {
		m := edgeFinding(e)
		if e.Verdict != attest.VerdictAffirming || e.Verifier.Node.Org == n.cred.Organisation || !s.heard(e) {
			continue
		}
		if (n.run == nil || m != *n.run) && s.allows(m, n.cred.Roles, s.now) != "" {
			continue
		}
		if orgs[m] == nil {
			orgs[m] = map[identity.OrgID]bool{}
		}
		orgs[m][e.Verifier.Node.Org] = true
	}
	best, most := n.run, 0
	if best != nil {
		most = len(orgs[*best])
	}
	for _, m := range slices.SortedFunc(maps.Keys(orgs), compareFindings) {
		if len(orgs[m]) > most {
			best, most = &m, len(orgs[m])
		}
	}
	if best != nil {
		n.run, n.evicted = best, s.allows(*best, n.cred.Roles, s.now)
	}
}

// unanimous reports whether nobody who counts has found n to run anything but what is known.
func (s *State) unanimous(n *node, verifiers map[identity.PeerID]*AttestationResult) bool {
	if n.run == nil {
		return false
	}
	for _, e := range verifiers {
		if e.Verdict == attest.VerdictAffirming && edgeFinding(e) != *n.run {
			return false
		}
	}
	return true
}

func compareFindings(a, b measured) int {
	return slices.Compare([]string{a.Kind, a.Measurement, a.Reference}, []string{b.Kind, b.Measurement, b.Reference})
}
