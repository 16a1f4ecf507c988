package consensus

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

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
