package federated

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/federated/aggregate"
	"github.com/attestmesh/meshnode/federated/chunk"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/sigstore/sigstore/pkg/signature"
)

// TrainerBuiltIn names the trainer that is part of the measured program (package mlp).
const TrainerBuiltIn = "built-in mlp v1"

// Digest is a SHA-256, or 32 random bytes of a salt; lower-case hex in text.
type Digest [32]byte

// String returns lower-case hex.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText encodes d as lower-case hex.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText decodes 64 lower-case hex characters.
func (d *Digest) UnmarshalText(text []byte) error { return (*chunk.Root)(d).UnmarshalText(text) }

// Opening is what opens a commitment. It is private to the members.
type Opening struct {
	Examples uint64
	Salt     Digest
}

// Commit returns the public commitment to a participant's number of examples.
func (o Opening) Commit(job JobID, round uint32, node identity.NodeRef) Digest {
	return hashParts("meshnode/v1 examples", []byte(job), u64(uint64(round)), []byte(node.Org), []byte(node.Name),
		o.Salt[:], u64(o.Examples))
}

func u64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func hashParts(label string, parts ...[]byte) Digest {
	buf := attest.LengthPrefixed(nil, []byte(label))
	for _, p := range parts {
		buf = attest.LengthPrefixed(buf, p)
	}
	return sha256.Sum256(buf)
}

// Turn is the attempt at a round that a statement speaks about.
type Turn struct {
	MeshID   identity.MeshID `json:"mesh_id"`
	Job      JobID           `json:"job"`
	Round    uint32          `json:"round"`
	Attempt  uint32          `json:"attempt"`
	BaseRoot chunk.Root      `json:"base_root"`
}

func (t Turn) check() error {
	if err := t.Job.Validate(); err != nil {
		return err
	}
	if t.Round > MaxRounds || t.Attempt < 1 || t.Attempt > MaxAttempts {
		return fmt.Errorf("round %d attempt %d: want a round up to %d and an attempt from 1 to %d", t.Round, t.Attempt, MaxRounds, MaxAttempts)
	}
	if t.MeshID.IsZero() || t.BaseRoot.IsZero() != (t.Round == 0) {
		return fmt.Errorf("round %d: base root %s; only round 0 has none", t.Round, t.BaseRoot)
	}
	return nil
}

func (t Turn) name() string {
	return fmt.Sprintf("job/%s/round/%d/attempt/%d", t.Job, t.Round, t.Attempt)
}

// Update is what a participant says of its contribution. It holds no number of examples.
type Update struct {
	Turn
	Node       identity.NodeRef `json:"node"`
	Peer       identity.PeerID  `json:"peer"`
	UpdateRoot chunk.Root       `json:"update_root"`
	Examples   Digest           `json:"examples_commitment"`
	// Trainer names the code that made it, Measurement the machine state it ran in.
	Trainer     string `json:"trainer"`
	Measurement string `json:"measurement"`
}

// Accepted is one update in a close or round Statement.
type Accepted struct {
	Node       identity.NodeRef `json:"node"`
	Peer       identity.PeerID  `json:"peer"`
	UpdateRoot chunk.Root       `json:"update_root"`
	Examples   Digest           `json:"examples_commitment"`
	// Statement is the SHA-256 of the Update statement's payload.
	Statement Digest `json:"statement"`
}

// Rejected is a participant whose update is not in the result, and the code of why.
type Rejected struct {
	Node identity.NodeRef `json:"node"`
	Peer identity.PeerID  `json:"peer"`
	Code attest.Code      `json:"code"`
}

// Close is the aggregator's list of what it will add up.
type Close struct {
	Turn
	Aggregator identity.NodeRef `json:"aggregator"`
	Peer       identity.PeerID  `json:"peer"`
	Accepted   []Accepted       `json:"accepted"`
	Rejected   []Rejected       `json:"rejected"`
}

// Round is the leaf of a committed round.
type Round struct {
	Turn
	Epoch      identity.Epoch   `json:"epoch"`
	Rule       string           `json:"rule"`
	Arithmetic string           `json:"arithmetic"`
	ResultRoot chunk.Root       `json:"result_root"`
	Aggregator identity.NodeRef `json:"aggregator"`
	Peer       identity.PeerID  `json:"peer"`
	Accepted   []Accepted       `json:"accepted"`
	Rejected   []Rejected       `json:"rejected"`
}

// SignUpdate signs u with the participant's peer key.
func SignUpdate(s signature.Signer, u Update) (*envelope.Envelope, error) {
	return envelope.SignStatement(s, envelope.TypeUpdate, rootSubject(u.name(), u.UpdateRoot), u)
}

// SignClose signs c with the aggregator's peer key.
func SignClose(s signature.Signer, c Close) (*envelope.Envelope, error) {
	c.Accepted, c.Rejected = notNil(c.Accepted), notNil(c.Rejected)
	return envelope.SignStatement(s, envelope.TypeRoundClose, rootSubject(c.name(), c.BaseRoot), c)
}

// SignRound signs r with the aggregator's peer key.
func SignRound(s signature.Signer, r Round) (*envelope.Envelope, error) {
	r.Accepted, r.Rejected = notNil(r.Accepted), notNil(r.Rejected)
	return envelope.SignStatement(s, envelope.TypeRound, rootSubject(r.name(), r.ResultRoot), r)
}

// notNil keeps one JSON spelling of the empty list.
func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func rootSubject(name string, root chunk.Root) envelope.Subject {
	return envelope.Subject{Name: name, Digest: map[string]string{"sha256": root.String()}}
}

// statement is a parsed envelope with its predicate; its signature may not be checked yet.
type statement[P any] struct {
	predicate P
	env       *envelope.Envelope
}

func parseStatement[P any](raw []byte, kind string) (statement[P], envelope.Subject, error) {
	env, err := envelope.Parse(raw)
	if err != nil {
		return statement[P]{}, envelope.Subject{}, err
	}
	st, err := envelope.Decode[P](env.Payload, kind)
	if err != nil {
		return statement[P]{}, envelope.Subject{}, err
	}
	return statement[P]{st.Predicate, env}, st.Subject[0], nil
}

func (s statement[P]) digest() Digest { return sha256.Sum256(s.env.Payload) }

func parseUpdate(raw []byte) (statement[Update], error) {
	st, subject, err := parseStatement[Update](raw, envelope.TypeUpdate)
	u := st.predicate
	switch {
	case err != nil:
	case u.check() != nil:
		err = u.check()
	case u.Node.Validate() != nil:
		err = u.Node.Validate()
	case u.Peer.Validate() != nil:
		err = u.Peer.Validate()
	case u.UpdateRoot.IsZero() || len(u.Trainer) > 128 || len(u.Measurement) > 128:
		err = fmt.Errorf("want an update root, and trainer and measurement of at most 128 characters")
	case !sameSubject(subject, rootSubject(u.name(), u.UpdateRoot)):
		err = fmt.Errorf("the subject is not the update root")
	}
	if err != nil {
		return statement[Update]{}, fmt.Errorf("update statement: %w", err)
	}
	return st, nil
}

// ParseUpdate decodes an Update statement and verifies that the peer it names signed it.
func ParseUpdate(raw []byte) (Update, error) {
	st, err := parseUpdate(raw)
	if err != nil {
		return Update{}, err
	}
	return st.predicate, st.env.VerifyPeer(st.predicate.Peer)
}

func parseClose(raw []byte) (statement[Close], error) {
	st, subject, err := parseStatement[Close](raw, envelope.TypeRoundClose)
	c := st.predicate
	switch {
	case err != nil:
	case c.check() != nil:
		err = c.check()
	case !sameSubject(subject, rootSubject(c.name(), c.BaseRoot)):
		err = fmt.Errorf("the subject is not the base root")
	default:
		err = checkLists(c.Aggregator, c.Peer, c.Accepted, c.Rejected)
	}
	if err != nil {
		return statement[Close]{}, fmt.Errorf("close statement: %w", err)
	}
	return st, nil
}

func parseRound(raw []byte) (statement[Round], error) {
	st, subject, err := parseStatement[Round](raw, envelope.TypeRound)
	r := st.predicate
	switch {
	case err != nil:
	case r.check() != nil:
		err = r.check()
	case r.ResultRoot.IsZero():
		err = fmt.Errorf("no result root")
	case !sameSubject(subject, rootSubject(r.name(), r.ResultRoot)):
		err = fmt.Errorf("the subject is not the result root")
	default:
		err = checkLists(r.Aggregator, r.Peer, r.Accepted, r.Rejected)
	}
	if err != nil {
		return statement[Round]{}, fmt.Errorf("round statement: %w", err)
	}
	return st, nil
}

// ParseRound decodes a round leaf and verifies that the peer it names signed it. Whether
// that peer was the aggregator is for the ledger, or the auditor, to say.
func ParseRound(raw []byte) (Round, error) {
	st, err := parseRound(raw)
	if err != nil {
		return Round{}, err
	}
	return st.predicate, st.env.VerifyPeer(st.predicate.Peer)
}

// checkLists enforces node order without repetition in both lists and between them.
func checkLists(aggregator identity.NodeRef, peer identity.PeerID, accepted []Accepted, rejected []Rejected) error {
	if err := aggregator.Validate(); err != nil {
		return err
	}
	if err := peer.Validate(); err != nil {
		return err
	}
	if len(accepted)+len(rejected) > MaxParticipants {
		return fmt.Errorf("%d accepted and %d rejected, the limit is %d", len(accepted), len(rejected), MaxParticipants)
	}
	seen := map[identity.NodeRef]bool{}
	for i, a := range accepted {
		if i > 0 && aggregate.CompareNodes(accepted[i-1].Node, a.Node) >= 0 {
			return fmt.Errorf("accepted %s comes after %s, want node order", a.Node, accepted[i-1].Node)
		}
		if err := checkEntry(a.Node, a.Peer); err != nil {
			return err
		}
		seen[a.Node] = true
	}
	for i, r := range rejected {
		if i > 0 && aggregate.CompareNodes(rejected[i-1].Node, r.Node) >= 0 || seen[r.Node] {
			return fmt.Errorf("rejected %s: want node order and nobody who is accepted", r.Node)
		}
		if err := checkEntry(r.Node, r.Peer); err != nil {
			return err
		}
		if !validCode(r.Code) {
			return fmt.Errorf("rejected %s: code %.40q", r.Node, r.Code)
		}
	}
	return nil
}

func checkEntry(node identity.NodeRef, peer identity.PeerID) error {
	if err := node.Validate(); err != nil {
		return err
	}
	return peer.Validate()
}

// validCode accepts snake_case: a newer node may know codes that this one does not.
func validCode(c attest.Code) bool {
	return len(c) >= 1 && len(c) <= 64 && len(bytes.Trim([]byte(c), "abcdefghijklmnopqrstuvwxyz0123456789_")) == 0
}
