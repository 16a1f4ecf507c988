package consensus

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/sigstore/sigstore/pkg/signature"
)

// Suspension is one organisation's word that the data of a node, or of all nodes that run
// under an entry, is to be withheld for a while.
type Suspension struct {
	MeshID       identity.MeshID      `json:"mesh_id"`
	Incarnation  identity.Incarnation `json:"incarnation"`
	Organisation identity.OrgID       `json:"organisation"`
	Nonce        string               `json:"nonce"` // 16 bytes in hex
	// Exactly one of Entry, the id of an allowed entry, and Node is set.
	Entry string            `json:"entry,omitempty"`
	Node  *identity.NodeRef `json:"node,omitempty"`
	Cause Cause             `json:"cause"`
	// Issued is by the clock of whoever signed it. It ends at Until, and MaxSuspension of
	// ordered time after it was ordered at the latest.
	Issued time.Time `json:"issued"`
	Until  time.Time `json:"until"`

	id SuspensionID
}

// Cause says why something is suspended. It is one of a list and never free text: the log
// is public.
type Cause string

// The causes.
const (
	CausePrecaution  Cause = "precaution"
	CauseVulnerable  Cause = "vulnerable"
	CauseCompromised Cause = "compromised"
	CauseMisbehaving Cause = "misbehaving"
)

// Causes returns all causes.
func Causes() []Cause {
	return []Cause{CausePrecaution, CauseVulnerable, CauseCompromised, CauseMisbehaving}
}

// SuspensionID is the SHA-256 of a suspension's payload.
type SuspensionID [32]byte

// String returns lower-case hex.
func (id SuspensionID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText encodes id as lower-case hex.
func (id SuspensionID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText decodes 64 lower-case hex characters.
func (id *SuspensionID) UnmarshalText(text []byte) error {
	raw, err := hex.DecodeString(string(text))
	if err != nil || len(raw) != len(id) || hex.EncodeToString(raw) != string(text) {
		return fmt.Errorf("suspension id %.70q: want 64 characters of lower-case hex", text)
	}
	copy(id[:], raw)
	return nil
}

// SuspensionLift ends a suspension before its time. Its bytes follow from what it lifts, so
// that organisations that agree sign the same without having met.
type SuspensionLift struct {
	MeshID      identity.MeshID      `json:"mesh_id"`
	Incarnation identity.Incarnation `json:"incarnation"`
	Suspension  SuspensionID         `json:"suspension"`
}

// ID returns the SHA-256 of the payload that was decoded.
func (x *Suspension) ID() SuspensionID { return x.id }

// Target names what is suspended, for people.
func (x *Suspension) Target() string {
	if x.Node != nil {
		return "node " + x.Node.String()
	}
	return "entry " + x.Entry
}

// Describe returns what x does, for people, one line each, made from the decoded payload
// and nothing else.
func (x *Suspension) Describe() []string {
	return []string{
		"suspension " + x.id.String(),
		fmt.Sprintf("mesh %s incarnation %d", x.MeshID, x.Incarnation),
		fmt.Sprintf("by %s, issued %s, until %s, cause %s", x.Organisation, x.Issued.Format(time.RFC3339), x.Until.Format(time.RFC3339), x.Cause),
		"! no data for " + x.Target(),
	}
}

// SignSuspension signs x with an emergency key and returns the envelope.
func SignSuspension(s signature.Signer, x Suspension) ([]byte, error) {
	x.Issued, x.Until = canonicalTime(x.Issued), canonicalTime(x.Until)
	if err := x.check(); err != nil {
		return nil, fmt.Errorf("suspension: %w", err)
	}
	env, err := envelope.SignStatement(s, envelope.TypeSuspension, meshSubject(x.MeshID), x)
	if err != nil {
		return nil, fmt.Errorf("suspension: %w", err)
	}
	return env.Marshal(), nil
}

// ParseSuspension decodes an envelope of a suspension. Its signature is judged by Apply.
func ParseSuspension(raw []byte) (*Suspension, *envelope.Envelope, error) {
	st, env, err := parseStatement[Suspension](raw, envelope.TypeSuspension)
	x := &st.Predicate
	if err == nil {
		err = x.check()
	}
	if err == nil {
		err = checkSubject(st.Subject, meshSubject(x.MeshID))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("suspension: %w", err)
	}
	x.id = sha256.Sum256(env.Payload)
	return x, env, nil
}

func (x *Suspension) check() error {
	if x.MeshID.IsZero() {
		return fmt.Errorf("mesh_id is zero")
	}
	if err := x.Organisation.Validate(); err != nil {
		return err
	}
	if err := checkHex("nonce", x.Nonce, 16); err != nil {
		return err
	}
	switch {
	case (x.Entry == "") == (x.Node == nil):
		return fmt.Errorf("want exactly one of entry and node")
	case x.Node != nil:
		if err := x.Node.Validate(); err != nil {
			return err
		}
	default:
		if err := checkHex("entry", x.Entry, 8); err != nil {
			return err
		}
	}
	switch x.Cause {
	case CausePrecaution, CauseVulnerable, CauseCompromised, CauseMisbehaving:
	default:
		return fmt.Errorf("cause: got %.40q, want one of %s", x.Cause, Causes())
	}
	if err := checkTime("issued", x.Issued); err != nil {
		return err
	}
	if err := checkTime("until", x.Until); err != nil {
		return err
	}
	if life := x.Until.Sub(x.Issued); life <= 0 || life > MaxSuspension {
		return fmt.Errorf("in force for %s, want more than nothing and at most %s", life, MaxSuspension)
	}
	return nil
}

// Payload returns the bytes that organisations sign to lift a suspension.
func (l SuspensionLift) Payload() ([]byte, error) {
	if err := l.check(); err != nil {
		return nil, fmt.Errorf("suspension lift: %w", err)
	}
	return envelope.NewPayload(envelope.TypeSuspensionLift, meshSubject(l.MeshID), l)
}

// ParseSuspensionLift decodes an envelope of a lift. Its signatures are judged by Apply.
func ParseSuspensionLift(raw []byte) (*SuspensionLift, *envelope.Envelope, error) {
	st, env, err := parseStatement[SuspensionLift](raw, envelope.TypeSuspensionLift)
	l := &st.Predicate
	if err == nil {
		err = l.check()
	}
	if err == nil {
		err = checkSubject(st.Subject, meshSubject(l.MeshID))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("suspension lift: %w", err)
	}
	return l, env, nil
}

func (l *SuspensionLift) check() error {
	if l.MeshID.IsZero() || l.Suspension == (SuspensionID{}) {
		return fmt.Errorf("mesh_id or suspension is zero")
	}
	return nil
}

// parseStatement decodes an envelope of at most MaxSuspensionSize bytes.
func parseStatement[P any](raw []byte, predicateType string) (st envelope.Statement[P], env *envelope.Envelope, err error) {
	if len(raw) > MaxSuspensionSize {
		return st, nil, fmt.Errorf("%d bytes, the limit is %d", len(raw), MaxSuspensionSize)
	}
	if env, err = envelope.Parse(raw); err != nil {
		return st, nil, err
	}
	st, err = envelope.Decode[P](env.Payload, predicateType)
	return st, env, err
}

// suspended is a suspension that was ordered. It is remembered while it is in force, while
// it could be ordered again and while it counts for the day's quota.
type suspended struct {
	*Suspension
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
	x, env, err := ParseSuspension(raw)
	if err != nil {
		return Outcome{}, refuseErr(attest.CodeMalformed, "suspension", err)
	}
	if err := s.checkStatement("suspension", x.MeshID, x.Incarnation); err != nil {
		return Outcome{}, err
	}
	if _, err := env.Verify(s.genesis.emergencyKeys(x.Organisation)); err != nil {
		return Outcome{}, refuseErr(attest.CodeWrongSigner, "suspension by "+string(x.Organisation), err)
	}
	if _, ok := s.suspensions[x.id]; ok {
		return Outcome{}, refuse(attest.CodeReplayed, "suspension "+x.id.String(), "ordered before", "a new suspension")
	}
	next := &suspended{Suspension: x, ordered: s.now, ends: x.Until}
	if s.now.IsZero() {
		next.ordered = x.Issued.Add(-ClockSkew)
	} else if err := next.judgeTime(s.now); err != nil {
		return Outcome{}, err
	}
	if err := s.findTarget(next); err != nil {
		return Outcome{}, err
	}
	if err := s.checkSuspensionQuota(next); err != nil {
		return Outcome{}, err
	}
	s.suspensions[x.id] = next
	return Outcome{Leaves: [][]byte{raw}, SuspensionsChanged: true}, nil
}

// checkStatement demands a statement of this mesh and incarnation, and of a genesis that
// knows suspensions: an older release halts on them.
func (s *State) checkStatement(what string, mesh identity.MeshID, inc identity.Incarnation) error {
	switch {
	case mesh != s.genesis.meshID:
		return refuse(attest.CodeWrongMesh, what+" mesh_id", mesh.Short(), s.genesis.meshID.Short())
	case inc != s.incarnation:
		return refuse(attest.CodeWrongIncarnation, what+" incarnation", fmt.Sprint(inc), fmt.Sprint(s.incarnation))
	case s.genesis.FSMVersion < fsmSuspensions:
		return refuse(attest.CodeWrongVersion, what, fmt.Sprintf("fsm_version %d in genesis", s.genesis.FSMVersion), fmt.Sprintf("%d or more", fsmSuspensions))
	}
	return nil
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
	l, env, err := ParseSuspensionLift(raw)
	if err != nil {
		return Outcome{}, refuseErr(attest.CodeMalformed, "suspension lift", err)
	}
	if err := s.checkStatement("suspension lift", l.MeshID, l.Incarnation); err != nil {
		return Outcome{}, err
	}
	orgs, err := env.Verify(s.genesis.keys(KeyGovern, true))
	if err != nil {
		return Outcome{}, refuseErr(attest.CodeWrongSigner, "suspension lift", err)
	}
	x, ok := s.suspensions[l.Suspension]
	switch {
	case !ok:
		return Outcome{}, refuse(attest.CodeUnknownSuspension, "suspension lift", l.Suspension.String(), "a suspension that is in force")
	case x.lifted:
		return Outcome{}, refuse(attest.CodeReplayed, "suspension lift", l.Suspension.String()+" was lifted before", "a suspension that is in force")
	case !s.now.Before(x.ends) && !s.now.IsZero():
		return Outcome{}, refuse(attest.CodeSuspensionEnded, "suspension lift", "ended "+x.ends.Format(time.RFC3339), "in force at "+s.now.Format(time.RFC3339))
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
		return Outcome{}, refuse(attest.CodeThreshold, "suspension lift", fmt.Sprintf("%d organisations %s", others, orgs),
			fmt.Sprintf("%s itself, or %d of the %d others", x.Organisation, want, s.N()-1))
	}
	x.lifted = true
	return Outcome{Leaves: [][]byte{raw}, SuspensionsChanged: true}, nil
}

// LiftThreshold is the number of distinct organisations, of n, that may lift a suspension
// of another one.
func LiftThreshold(n int) int { return min(floorHalf(n), n-1) }

// emergencyKeys returns the keys by which an organisation suspends; none of a neutral seat,
// which has no part in what the mesh allows.
func (g *Genesis) emergencyKeys(org identity.OrgID) []envelope.Key {
	if o, ok := g.Organisation(org); !ok || !o.IsMember() {
		return nil
	}
	return g.OrgKeys(org, KeyEmergency)
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
