package audit

import (
	"fmt"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// A suspension ends by the members' clock, which leaves no leaf. That somebody took part in a
// round although suspended is found only where the clock cannot have passed the end: because
// a later leaf was ordered that had expired by then, or the end is still ahead of the auditor.

// suspect is somebody's part in a round that was wrong if the clock had not reached ends.
type suspect struct {
	ends    time.Time
	finding transparency.Finding
}

// suspect notes that node took part in the round at index, if it was suspended for all that
// the leaves before say.
func (r *replayer) suspect(index uint64, node identity.NodeRef, round string) []transparency.Finding {
	x, ok := r.state.SuspendedNode(node, r.earliest)
	if !ok {
		return nil
	}
	f := finding(index, string(attest.CodeSuspended), fmt.Sprintf("%s: %s took part, but %s", round, node, x))
	// It ended a ClockSkew before its Until if that was as far ahead as could be.
	r.suspects = append(r.suspects, suspect{x.Ends.Add(-consensus.ClockSkew), f})
	return r.clockBefore(r.at.Add(consensus.ClockSkew))
}

// clockBefore says that the members' clock had not reached t yet, and returns what that
// decides.
func (r *replayer) clockBefore(t time.Time) []transparency.Finding {
	var out []transparency.Finding
	r.suspects = slices.DeleteFunc(r.suspects, func(s suspect) bool {
		certain := !s.ends.Before(t)
		if certain {
			out = append(out, s.finding)
		}
		return certain
	})
	return out
}

// latest returns what the members' clock had not reached when a leaf was ordered that they
// accepted; zero if the leaf does not say.
func latest(e *entry) time.Time {
	leaf := e.Raw()
	switch e.Kind() {
	case envelope.TypeAttestationResult:
		if res, err := e.Result(); err == nil {
			return res.Expires
		}
	case envelope.TypeProposal:
		if p, _, err := consensus.ParseProposal(leaf); err == nil {
			return p.Expires
		}
	case envelope.TypeSuspension:
		if x, _, err := consensus.ParseSuspension(leaf); err == nil {
			return x.Until
		}
	case envelope.TypeWithdrawal:
		if w, _, err := consensus.ParseWithdrawal(leaf); err == nil {
			return w.Expires
		}
	}
	return time.Time{}
}

// lateSuspension says that a suspension, or the lift of one, was ordered after its end, or "".
func (r *replayer) lateSuspension(kind string, leaf []byte) string {
	var until time.Time
	if kind == envelope.TypeSuspension {
		x, _, err := consensus.ParseSuspension(leaf)
		if err != nil {
			return ""
		}
		until = x.Until
	} else {
		l, _, err := consensus.ParseSuspensionLift(leaf)
		if err != nil {
			return ""
		}
		for _, x := range r.state.Suspensions(time.Time{}) {
			if x.ID() == l.Suspension {
				until = x.Ends
			}
		}
	}
	if until.IsZero() || r.earliest.Before(until) {
		return ""
	}
	return "the suspension ended at " + until.Format(time.RFC3339)
}
