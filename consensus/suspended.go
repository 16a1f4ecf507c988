package consensus

import (
	"fmt"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// suspended is a suspension that was ordered. It is remembered while it is in force, while
// it could be ordered again and while it counts for the day's quota.
type suspended struct {
	*Suspension
	raw     []byte    // as ordered
	entry   Entry     // what Suspension.Entry allowed when it was ordered
	ordered time.Time // the ordered time; of a replay, which has none, the earliest possible
	ends    time.Time
	lifted  bool
}

// InForce is a suspension that is in force.
type InForce struct {
	*Suspension
	// Ends is when ordered time ends it, at Until or before.
	Ends time.Time
}

// String says what is suspended by whom until when and why.
func (x InForce) String() string {
	return fmt.Sprintf("%s suspended by %s until %s (%s), id %s", x.Target(), x.Organisation, x.Ends.Format(time.RFC3339), x.Cause, x.id)
}

func (x *suspended) inForce(at time.Time) bool { return !x.lifted && at.Before(x.ends) }

// forgettable reports whether x decides nothing any more at now.
func (x *suspended) forgettable(now time.Time) bool {
	return !now.Before(x.Until) && !now.Before(x.ordered.Add(suspensionDay))
}

// hits reports whether x suspends what was found to run. Where only the registers of an
// entry tell, and those of what runs are not known, it does.
func (x *suspended) hits(s *PolicyState, m measured) bool {
	if x.Entry == "" || x.entry.Kind != m.Kind || x.entry.Measurement != m.Measurement {
		return false
	}
	matched, ok := s.entries[m.Reference]
	if !ok {
		matched = s.revoked[m.Reference]
	}
	for name, v := range x.entry.Registers {
		if other, known := matched.Registers[name]; known && other != v {
			return false
		}
	}
	return true
}

// orderSuspension decides about a suspension whether or not the time is known; without,
// nothing counts as expired, and of the quota only what had been used up for certain.
func (s *State) orderSuspension(raw []byte) (Outcome, error) {
	next, err := s.judgeSuspension(raw)
	if err != nil {
		return Outcome{}, err
	}
	if err := s.checkQuota(quotaSuspensions, next.Organisation); err != nil {
		return Outcome{}, err
	}
	s.spend(quotaSuspensions, next.Organisation)
	s.suspensions[next.id] = next
	return Outcome{Leaves: [][]byte{raw}, SuspensionsChanged: true}, nil
}

// judgeSuspension decides about a suspension and changes nothing.
func (s *State) judgeSuspension(raw []byte) (*suspended, error) {
	x, env, err := ParseSuspension(raw)
	if err != nil {
		return nil, refuseErr(attest.CodeMalformed, "suspension", err)
	}
	if err := s.checkStatement("suspension", x.MeshID, x.Incarnation, fsmSuspensions); err != nil {
		return nil, err
	}
	if _, err := s.verify(env, s.emergencyKeys(x.Organisation, x.Until), "suspension by "+string(x.Organisation), x.Until); err != nil {
		return nil, err
	}
	if _, ok := s.suspensions[x.id]; ok {
		return nil, refuse(attest.CodeReplayed, "suspension "+x.id.String(), "ordered before", "a new suspension")
	}
	next := &suspended{Suspension: x, raw: slices.Clone(raw), ordered: s.now, ends: x.Until}
	if s.now.IsZero() {
		next.ordered = x.Issued.Add(-ClockSkew)
	} else if err := next.judgeTime(s.now); err != nil {
		return nil, err
	}
	if err := s.findTarget(next); err != nil {
		return nil, err
	}
	return next, s.checkSuspensionQuota(next)
}

// judgeTime settles when x ends.
func (x *suspended) judgeTime(now time.Time) error {
	latest := now.Add(MaxSuspension)
	switch {
	case !now.Before(x.Until):
		return refuse(attest.CodeSuspensionEnded, "suspension until", x.Until.Format(time.RFC3339), "later than "+now.Format(time.RFC3339))
	case x.Until.After(latest.Add(ClockSkew)):
		return refuse(attest.CodeLimit, "suspension until", x.Until.Format(time.RFC3339), fmt.Sprintf("at most %s after %s", MaxSuspension, now.Format(time.RFC3339)))
	case x.Until.After(latest):
		x.ends = latest
	}
	return nil
}

// findTarget demands that there is something to suspend.
func (s *State) findTarget(x *suspended) error {
	if x.Node != nil {
		if _, ok := s.nodes[*x.Node]; !ok {
			return refuse(attest.CodeUnknownNode, "suspension", x.Node.String()+" has no Credential in the log", "a node of this mesh")
		}
		return nil
	}
	e, ok := s.entries[x.Entry]
	if !ok {
		return refuse(attest.CodeUnknownEntry, "suspension", x.Entry, "an entry that is allowed")
	}
	x.entry = e
	return nil
}

// checkSuspensionQuota bounds what one organisation can withhold by itself.
func (s *State) checkSuspensionQuota(next *suspended) error {
	at := s.now
	if at.IsZero() {
		at = next.Until.Add(-time.Millisecond) // the clock had not reached its end
	}
	live, today := 0, 0
	for _, x := range s.suspensions {
		if x.Organisation != next.Organisation {
			continue
		}
		if x.inForce(at) {
			live++
		}
		if at.Before(x.ordered.Add(suspensionDay)) {
			today++
		}
	}
	switch {
	case live >= MaxSuspensionsLive:
		return refuse(attest.CodeLimit, "suspensions by "+string(next.Organisation), fmt.Sprintf("%d in force", live), fmt.Sprintf("at most %d", MaxSuspensionsLive))
	case today >= MaxSuspensionsDaily:
		return refuse(attest.CodeLimit, "suspensions by "+string(next.Organisation), fmt.Sprintf("%d within %s", today, suspensionDay), fmt.Sprintf("at most %d", MaxSuspensionsDaily))
	}
	return nil
}

// orderLift decides about a lift whether or not the time is known.
func (s *State) orderLift(raw []byte) (Outcome, error) {
	x, _, err := s.judgeLift(raw)
	if err != nil {
		return Outcome{}, err
	}
	x.lifted = true
	return Outcome{Leaves: [][]byte{raw}, SuspensionsChanged: true}, nil
}

// judgeLift decides about a lift, changes nothing, and returns what it lifts and who signed.
func (s *State) judgeLift(raw []byte) (*suspended, []identity.OrgID, error) {
	l, env, err := ParseSuspensionLift(raw)
	if err != nil {
		return nil, nil, refuseErr(attest.CodeMalformed, "suspension lift", err)
	}
	if err := s.checkStatement("suspension lift", l.MeshID, l.Incarnation, fsmSuspensions); err != nil {
		return nil, nil, err
	}
	x, ok := s.suspensions[l.Suspension]
	var end time.Time
	if ok {
		end = x.Until
	}
	orgs, err := s.verify(env, s.orgs.keys(KeyGovern, true, end), "suspension lift", end)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case !ok:
		return nil, nil, refuse(attest.CodeUnknownSuspension, "suspension lift", l.Suspension.String(), "a suspension that is in force")
	case x.lifted:
		return nil, nil, refuse(attest.CodeReplayed, "suspension lift", l.Suspension.String()+" was lifted before", "a suspension that is in force")
	case !s.now.Before(x.ends) && !s.now.IsZero():
		return nil, nil, refuse(attest.CodeSuspensionEnded, "suspension lift", "ended "+x.ends.Format(time.RFC3339), "in force at "+s.now.Format(time.RFC3339))
	}
	own, others := false, 0
	for _, org := range orgs {
		if org == x.Organisation {
			own = true
		} else {
			others++
		}
	}
	if want := LiftThreshold(s.N()); !own && others < want {
		return nil, nil, refuse(attest.CodeThreshold, "suspension lift", fmt.Sprintf("%d organisations %s", others, orgs),
			fmt.Sprintf("%s itself, or %d of the %d others", x.Organisation, want, s.N()-1))
	}
	return x, orgs, nil
}

// LiftThreshold is the number of distinct organisations, of n, that may lift a suspension
// of another one.
func LiftThreshold(n int) int { return min(floorHalf(n), n-1) }

// emergencyKeys returns the keys by which an organisation suspends; none of a neutral seat,
// which has no part in what the mesh allows.
func (s *PolicyState) emergencyKeys(org identity.OrgID, end time.Time) []envelope.Key {
	if o, ok := s.orgs.find(org); !ok || !o.IsMember() {
		return nil
	}
	return s.orgs.orgKeys(org, KeyEmergency, end)
}

// expireSuspensions forgets what decides nothing any more, and reports whether one ended
// between then and now.
func (s *State) expireSuspensions(then time.Time) (ended bool) {
	for id, x := range s.suspensions {
		ended = ended || x.inForce(then) && !x.inForce(s.now)
		if x.forgettable(s.now) {
			delete(s.suspensions, id)
		}
	}
	return ended
}
