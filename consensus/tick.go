package consensus

import (
	"crypto/ed25519"
	"fmt"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// TimeSample is a seat's clock, read for one tick.
type TimeSample struct {
	MeshID      identity.MeshID      `json:"mesh_id"`
	Incarnation identity.Incarnation `json:"incarnation"`
	Peer        identity.PeerID      `json:"peer"`
	// Seq is the number of the tick it is for: State.TickSeq() + 1.
	Seq  uint64    `json:"seq"`
	Time time.Time `json:"time"`
}

// SignTimeSample signs t with the seat's peer key and returns the envelope.
func SignTimeSample(key ed25519.PrivateKey, t TimeSample) ([]byte, error) {
	t.Time = canonicalTime(t.Time)
	if err := t.check(); err != nil {
		return nil, fmt.Errorf("time sample: %w", err)
	}
	raw, err := signPeer(key, t.Peer, envelope.TypeTimeSample, meshSubject(t.MeshID), t)
	if err != nil {
		return nil, fmt.Errorf("time sample: %w", err)
	}
	return raw, nil
}

// ParseTimeSample decodes a sample and checks that the peer it names signed it.
func ParseTimeSample(raw []byte) (*TimeSample, error) {
	if len(raw) > MaxTimeSample {
		return nil, fmt.Errorf("time sample: %d bytes, the limit is %d", len(raw), MaxTimeSample)
	}
	env, err := envelope.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("time sample: %w", err)
	}
	st, err := envelope.Decode[TimeSample](env.Payload, envelope.TypeTimeSample)
	if err != nil {
		return nil, fmt.Errorf("time sample: %w", err)
	}
	t := &st.Predicate
	if err := t.check(); err != nil {
		return nil, fmt.Errorf("time sample: %w", err)
	}
	if err := checkSubject(st.Subject, meshSubject(t.MeshID)); err != nil {
		return nil, fmt.Errorf("time sample: %w", err)
	}
	if err := env.VerifyPeer(t.Peer); err != nil {
		return nil, fmt.Errorf("time sample: %w", err)
	}
	return t, nil
}

func (t *TimeSample) check() error {
	if t.MeshID.IsZero() || t.Seq == 0 {
		return fmt.Errorf("mesh_id or seq is zero")
	}
	if err := t.Peer.Validate(); err != nil {
		return err
	}
	return checkTime("time", t.Time)
}

// sampledTime verifies the samples of one tick command and returns the time they lead to.
func (s *State) sampledTime(raws [][]byte) (time.Time, error) {
	byOrg := map[identity.OrgID]time.Time{}
	for i, raw := range raws {
		t, err := ParseTimeSample(raw)
		if err != nil {
			return time.Time{}, refuseErr(attest.CodeMalformed, fmt.Sprintf("tick sample %d", i), err)
		}
		switch {
		case t.MeshID != s.genesis.meshID:
			return time.Time{}, refuse(attest.CodeWrongMesh, "tick sample", t.MeshID.Short(), s.genesis.meshID.Short())
		case t.Incarnation != s.incarnation:
			return time.Time{}, refuse(attest.CodeWrongIncarnation, "tick sample", fmt.Sprint(t.Incarnation), fmt.Sprint(s.incarnation))
		case t.Seq != s.tickSeq+1:
			return time.Time{}, refuse(attest.CodeStale, "tick sample seq", fmt.Sprint(t.Seq), fmt.Sprint(s.tickSeq+1))
		}
		org, ok := s.seatOf(t.Peer)
		if !ok {
			return time.Time{}, refuse(attest.CodeNotSeat, "tick sample by "+t.Peer.Short(), "no seat", "a seat")
		}
		if _, ok := byOrg[org]; ok {
			return time.Time{}, refuse(attest.CodeDuplicate, "tick sample of "+string(org), "two", "one")
		}
		byOrg[org] = t.Time
	}
	next, ok := stepTime(s.now, sortedTimes(byOrg), s.consensusN())
	if !ok {
		return time.Time{}, refuse(attest.CodeStale, "tick samples", fmt.Sprint(len(byOrg)), fmt.Sprintf("%d for the first tick", s.StrongQuorum()))
	}
	return next, nil
}

func sortedTimes(m map[identity.OrgID]time.Time) []time.Time {
	var out []time.Time
	for _, t := range m {
		out = append(out, t)
	}
	slices.SortFunc(out, time.Time.Compare)
	return out
}

// stepTime returns the time after now, given the sorted samples of distinct seats out of
// n; false if there is no time yet and too few samples to begin with. With a quorum it is
// the lower median; without, every missing seat counts as having sampled now, and the
// step is at most one TickInterval.
func stepTime(now time.Time, samples []time.Time, n int) (time.Time, bool) {
	if len(samples) >= strong(n) {
		return later(now, samples[(len(samples)-1)/2]), true
	}
	if now.IsZero() {
		return now, false
	}
	for len(samples) < n {
		samples = append(samples, now)
	}
	slices.SortFunc(samples, time.Time.Compare)
	next := later(now, samples[(len(samples)-1)/2])
	if limit := now.Add(TickInterval); next.After(limit) {
		next = limit
	}
	return next, true
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// strong is ⌊2n/3⌋+1.
func strong(n int) int { return 2*n/3 + 1 }
