package consensus

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Whatever is ordered in whatever order: an organisation has one seat at most, a boot that has
// left one never holds one again, who is retired stays so, one seat is always held, a replica
// that is given the same commands has the same digest, and an auditor who replays the leaves
// finds the same seats.
func TestOneSeatForEachOrganisation(t *testing.T) {
	taken := 0
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 11))
		m := seating(t, 2+int(seed%6))
		var leaves [][]byte
		left, held := map[identity.PeerID]bool{}, map[identity.PeerID]bool{}
		for i := range 160 {
			before := m.s.Seats()
			out := randomSeatCommand(m, rng, i)
			leaves = append(leaves, out.Leaves...)
			now := map[identity.OrgID]int{}
			present := map[identity.PeerID]bool{}
			for _, s := range m.s.Seats() {
				now[s.Ref.Org]++
				present[s.Peer] = true
				if now[s.Ref.Org] > 1 || left[s.Peer] || m.s.Retired(s.Peer) || s.Drained {
					t.Fatalf("seed %d step %d: %s holds a seat (%d of its organisation; left %v)", seed, i, s.Ref, now[s.Ref.Org], left[s.Peer])
				}
				if !held[s.Peer] && i > 0 {
					taken++
				}
				held[s.Peer] = true
			}
			if changed := fmt.Sprint(peersOf(before)) != fmt.Sprint(peersOf(m.s.Seats())); changed != out.SeatsChanged {
				t.Fatalf("seed %d step %d: seats changed %v, the outcome says %v", seed, i, changed, out.SeatsChanged)
			}
			for _, s := range before {
				if !present[s.Peer] {
					left[s.Peer] = true
				}
			}
			for _, c := range m.s.Candidates() {
				if _, vacant := m.s.Holder(c.Ref.Org); vacant || left[c.Peer] {
					t.Fatalf("seed %d step %d: %s is a candidate", seed, i, c.Ref)
				}
			}
		}
		twin := NewState(must(ParseGenesis(m.g.Raw())))
		for _, c := range m.log {
			twin.Apply(c)
		}
		if twin.Digest() != m.s.Digest() {
			t.Fatalf("seed %d: the same commands lead to another digest", seed)
		}
		auditor := NewState(must(ParseGenesis(m.g.Raw())))
		for _, c := range m.log[:2] { // Bootstrap and a tick
			auditor.Apply(c)
		}
		auditor.now = NewState(m.g).now // who replays leaves knows no time
		replayAll(t, auditor, m, leaves)
		if a, b := fmt.Sprint(peersOf(auditor.Seats())), fmt.Sprint(peersOf(m.s.Seats())); a != b {
			t.Fatalf("seed %d: an auditor finds the seats %s, want %s", seed, a, b)
		}
	}
	if taken < 25 {
		t.Errorf("only %d seats were taken", taken)
	}
}

func peersOf(nodes []Node) (out []string) {
	for _, n := range nodes {
		out = append(out, n.Peer.Short())
	}
	return out
}

// replayAll replays the edges of seating and then leaves.
func replayAll(t *testing.T, s *State, m *mesh, leaves [][]byte) {
	t.Helper()
	first, err := m.log[2].envelopes(1, MaxResults)
	if err != nil {
		t.Fatal(err)
	}
	var derived [][]byte
	for i, leaf := range append(first, leaves...) {
		if len(derived) > 0 {
			if !bytes.Equal(leaf, derived[0]) {
				t.Fatalf("leaf %d is another than the one that follows", i)
			}
			derived = derived[1:]
			continue
		}
		out, err := s.Replay(leaf)
		if err != nil {
			t.Fatalf("leaf %d: %v", i, err)
		}
		derived = out.Leaves[1:]
	}
}

func randomSeatCommand(m *mesh, rng *rand.Rand, i int) Outcome {
	orgs := m.orgs()
	node := fmt.Sprintf("%s/n%d", orgs[rng.IntN(len(orgs))], 1+rng.IntN(2))
	ref := must(identity.ParseNodeRef(node))
	n := 0 // its newest boot
	if v, ok := m.s.NodeByRef(ref); ok {
		n = int(v.BootSeq) - 1000
	}
	at := func(r *AttestationResult) {
		r.At = r.At.Add(1e6 * 1000)
		r.Expires = r.Expires.Add(1e6 * 1000)
	}
	switch rng.IntN(9) {
	case 0:
		if n < 8 {
			return m.command(KindCredential, m.credential(node, n+1))
		}
		return m.command(KindTick)
	case 1, 2, 3:
		seats := m.s.Seats()
		seat := seats[rng.IntN(len(seats))]
		if n == 0 || seat.Ref.Org == ref.Org {
			return m.command(KindTick)
		}
		m.at = m.at.Add(1e6)
		r := m.resultOf(seat.Ref.String(), node, []string{"new", "new", "new", "old"}[rng.IntN(4)], at)
		r.Verifier.Peer = seat.Peer
		raw, err := SignResult(boot(seat.Ref.String(), int(seat.BootSeq)-1000), r)
		if err != nil {
			m.t.Fatal(err)
		}
		return m.command(KindResults, raw)
	case 4, 5, 6:
		if n == 0 {
			return m.command(KindTick)
		}
		var by []string
		for _, s := range m.s.Seats() {
			if s.Ref.Org != ref.Org && rng.IntN(20) > 0 {
				by = append(by, fmt.Sprintf("%s %d", s.Ref, int(s.BootSeq)-1000))
			}
		}
		return m.command(KindReady, m.ready(m.readyOf(node, n), boot(node, n), by...))
	case 7:
		if n == 0 || rng.IntN(2) > 0 {
			return m.command(KindTick)
		}
		return m.command(KindDrain, m.drain(node, n))
	default:
		if n == 0 || rng.IntN(3) > 0 {
			return m.command(KindTick)
		}
		out := m.command(KindRetirement, m.retirement(node, n, string(ref.Org)+" govern"))
		if out.Reason != nil && out.Reason.Code != attest.CodeQuorumLoss {
			m.t.Fatalf("step %d: %v", i, out.Reason)
		}
		return out
	}
}
