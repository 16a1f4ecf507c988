package consensus

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// The state is logged after DigestEvery more commands, and at most once in DigestPause of
// ordered time: each digest walks the whole state.
const (
	DigestEvery = 1024
	DigestPause = time.Minute
)

// LoggedState is a statement that a digest command derives and nobody signs: the digest of
// the replicated machine just before that command. Under a published checkpoint it is the
// word of a majority of organisations, each of which computed it, so that a copy of the state
// can be had from anybody.
//
// Who replays the log without its ticks derives everything of it but Digest, which covers the
// ordered time.
type LoggedState struct {
	MeshID      identity.MeshID      `json:"mesh_id"`
	Incarnation identity.Incarnation `json:"incarnation"`
	Epoch       identity.Epoch       `json:"epoch"`
	// Seq counts the commands ordered before.
	Seq uint64 `json:"seq"`
	// Policy is PolicyDigest in hex.
	Policy string `json:"policy"`
	// Digest is that of the whole machine in hex.
	Digest string `json:"digest"`
}

// logged is when the state was last logged.
type logged struct {
	seq uint64
	at  time.Time // zero in a replay, which knows no time
}

type loggedImage struct {
	_   struct{} `cbor:",toarray"`
	Seq uint64
	At  int64 // Unix ms, 0 before the first
}

func (l logged) image() loggedImage {
	im := loggedImage{Seq: l.seq}
	if !l.at.IsZero() {
		im.At = l.at.UnixMilli()
	}
	return im
}

func (l logged) section() section { return section{Name: "logged", Image: l.image()} }

// LogStateDue reports whether a digest command would be accepted as the one after seq others.
func (s *State) LogStateDue(seq uint64) bool { return s.checkLogState(seq) == nil }

func (s *State) checkLogState(seq uint64) error {
	switch {
	case s.genesis.FSMVersion < fsmGovernance:
		return s.genesis.tooEarly("digest", fsmGovernance)
	case s.now.IsZero():
		return refuse(attest.CodeNotStarted, "digest", "before the first tick", "a known time")
	case seq < s.logged.seq+DigestEvery:
		return refuse(attest.CodeLimit, "digest", fmt.Sprintf("after %d commands, the last after %d", seq, s.logged.seq), fmt.Sprintf("%d commands in between", DigestEvery))
	case !s.logged.at.IsZero() && s.now.Before(s.logged.at.Add(DigestPause)):
		return refuse(attest.CodeLimit, "digest", "at "+s.now.Format(time.RFC3339)+", the last at "+s.logged.at.Format(time.RFC3339), DigestPause.String()+" in between")
	}
	return nil
}

// LogState executes a digest command. It is called in place of Apply by the owner of the
// whole machine, which alone knows how many commands came before and what the digest of
// everything is.
func (s *State) LogState(c Command, seq uint64, digest [32]byte) Outcome {
	out, err := s.logState(c, seq, digest)
	if err != nil {
		return Outcome{Reason: ReasonOf(err)}
	}
	return out
}

func (s *State) logState(c Command, seq uint64, digest [32]byte) (Outcome, error) {
	if c.V != CommandVersion || c.Kind != KindDigest {
		return Outcome{}, refuse(attest.CodeWrongVersion, "command", fmt.Sprintf("version %d kind %.20q", c.V, c.Kind), string(KindDigest))
	}
	if _, err := c.envelopes(0, 0); err != nil {
		return Outcome{}, refuseErr(attest.CodeMalformed, string(c.Kind), err)
	}
	if err := s.checkLogState(seq); err != nil {
		return Outcome{}, err
	}
	policy := s.PolicyDigest()
	leaf, err := stateLeaf(LoggedState{MeshID: s.MeshID(), Incarnation: s.incarnation, Epoch: s.epoch, Seq: seq,
		Policy: hex.EncodeToString(policy[:]), Digest: hex.EncodeToString(digest[:])})
	if err != nil {
		return Outcome{}, err
	}
	s.logged = logged{seq, s.now}
	return Outcome{Leaves: [][]byte{leaf}}, nil
}

func stateLeaf(l LoggedState) ([]byte, error) {
	payload, err := envelope.NewPayload(envelope.TypeState, meshSubject(l.MeshID), l)
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	return (&envelope.Envelope{Payload: payload}).Marshal(), nil
}

// ParseLoggedState decodes a state leaf, which carries no signature.
func ParseLoggedState(raw []byte) (*LoggedState, error) {
	env, err := envelope.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	if len(env.Signatures) != 0 {
		return nil, fmt.Errorf("state: %d signatures, want none", len(env.Signatures))
	}
	st, err := envelope.Decode[LoggedState](env.Payload, envelope.TypeState)
	if err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	l := &st.Predicate
	if err := checkSubject(st.Subject, meshSubject(l.MeshID)); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	if err := checkHex("policy", l.Policy, 32); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	if err := checkHex("digest", l.Digest, 32); err != nil {
		return nil, fmt.Errorf("state: %w", err)
	}
	return l, nil
}

// replayState holds a state leaf against what the leaves before it lead to: everything but
// the digest, which nobody derives without the ticks, and the pace, which is ordered time.
func (s *State) replayState(leaf []byte) (Outcome, error) {
	l, err := ParseLoggedState(leaf)
	if err != nil {
		return Outcome{}, refuseErr(attest.CodeMalformed, "state", err)
	}
	if s.genesis.FSMVersion < fsmGovernance {
		return Outcome{}, s.genesis.tooEarly("state", fsmGovernance)
	}
	if l.Seq < s.logged.seq+DigestEvery {
		return Outcome{}, refuse(attest.CodeMalformed, "state seq", fmt.Sprint(l.Seq), fmt.Sprintf("at least %d", s.logged.seq+DigestEvery))
	}
	policy := s.PolicyDigest()
	want, err := stateLeaf(LoggedState{MeshID: s.MeshID(), Incarnation: s.incarnation, Epoch: s.epoch, Seq: l.Seq,
		Policy: hex.EncodeToString(policy[:]), Digest: l.Digest})
	if err != nil {
		return Outcome{}, err
	}
	if !bytes.Equal(leaf, want) {
		return Outcome{}, refuse(attest.CodeMalformed, "state", fmt.Sprintf("epoch %d, policy %.16s", l.Epoch, l.Policy), fmt.Sprintf("epoch %d, policy %x of this mesh", s.epoch, policy[:8]))
	}
	s.logged = logged{seq: l.Seq}
	return Outcome{Leaves: [][]byte{leaf}}, nil
}
