package consensus

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/attestmesh/meshnode/internal/envelope"
)

// signedProposal is one that everybody has signed.
type signedProposal struct {
	raw    []byte
	narrow bool
	base   int // it was made on
}

// history makes a random history on a mesh of seven: widenings, changes of the constitution and
// narrowings, all signed by everybody in force when they were made.
func history(t *testing.T, rng *rand.Rand) (*Genesis, []signedProposal) {
	t.Helper()
	unsigned := genesisOf(t, 7)
	unsigned.FSMVersion = fsmGovernance
	var entries []Entry
	for i := range 6 {
		entries = append(entries, entry(t, fmt.Sprintf("e%d", i)))
	}
	unsigned.Policy.Entries = entries
	sortEntries(unsigned.Policy.Entries)
	m := newMeshOf(t, unsigned)
	m.start()
	govern := map[string]string{} // organisation to label
	for _, o := range m.orgs() {
		govern[string(o)] = string(o) + " govern"
	}
	var out []signedProposal
	gone, rotated := 0, 0
	for i := range 14 {
		org := string(m.s.orgs[rng.IntN(len(m.s.orgs))].ID)
		var change func(*Proposal)
		more := []string{}
		narrow := false
		switch kind := rng.IntN(7); {
		case kind < 3:
			narrow = true
			e := entries[rng.IntN(len(entries))]
			cut := RemoveEntry{ID: e.ID}
			if rng.IntN(2) == 0 {
				cut = RemoveEntry{Measurement: e.Measurement}
			}
			change = act(Action{RemoveEntry: &cut})
		case kind == 3:
			change = add(entry(t, fmt.Sprintf("new%d", i)))
		case kind == 4 && rotated+gone < 3:
			rotated++
			to := fmt.Sprintf("%s govern %d", org, i+10)
			change, more = rotate(govern[org], to), []string{to}
			govern[org+" next"] = to
		case kind == 5 && rotated+gone < 3 && len(m.s.orgs) > 5:
			gone++
			change = removeOrg(org)
		default:
			change = setLimits(Limits{Nodes: i + 4})
		}
		p := m.propose(change, func(p *Proposal) { p.Nonce, p.ConfirmQuorumLoss = fmt.Sprintf("%032x", i), true })
		labels := more
		for _, o := range m.s.orgs {
			labels = append(labels, govern[string(o.ID)])
		}
		raw := m.sign(m.payload(p), labels...)
		m.ok(m.command(KindProposal, raw))
		if next, ok := govern[org+" next"]; ok {
			govern[org] = next
			delete(govern, org+" next")
		}
		out = append(out, signedProposal{raw, narrow, int(p.Base)})
	}
	return m.g, out
}

// shuffled moves every narrowing to a random place where the base that it was made on has been
// reached, and keeps the order of the others, which bind theirs.
func shuffled(rng *rand.Rand, in []signedProposal) []signedProposal {
	var narrow, out []signedProposal
	for _, p := range in {
		if p.narrow {
			narrow = append(narrow, p)
		} else {
			out = append(out, p)
		}
	}
	for _, p := range narrow {
		first, seen := 0, 0
		for first < len(out) && seen < p.base {
			if !out[first].narrow {
				seen++
			}
			first++
		}
		at := first + rng.IntN(len(out)-first+1)
		out = append(out[:at:at], append([]signedProposal{p}, out[at:]...)...)
	}
	return out
}

// Narrowings commute with each other and with everything: whenever they are ordered, the same
// is allowed, and the same organisations, keys and limits are in force.
func TestNarrowingsCommuteWithEverything(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for round := range few(12) {
		g, proposals := history(t, rng)
		var want *State
		for try := range 4 {
			order := proposals
			if try > 0 {
				order = shuffled(rng, proposals)
			}
			m := &mesh{t: t, g: g, s: NewState(g), at: start.Add(3600e9)}
			m.start()
			for i, p := range order {
				if out := m.command(KindProposal, p.raw); out.Reason != nil {
					t.Fatalf("round %d try %d, proposal %d of %d: %v", round, try, i, len(order), out.Reason)
				}
			}
			if want == nil {
				want = m.s
			}
			if !reflect.DeepEqual(m.s.Entries(), want.Entries()) || !reflect.DeepEqual(m.s.Revoked(), want.Revoked()) || m.s.Epoch() != want.Epoch() || m.s.Base() != want.Base() ||
				!reflect.DeepEqual(m.s.Organisations(), want.Organisations()) || m.s.Limits() != want.Limits() || !reflect.DeepEqual(m.s.FormerKeys(), want.FormerKeys()) {
				t.Fatalf("round %d try %d: another order leads to another policy", round, try)
			}
		}
	}
}

// Whoever replays gets the same state: a replica all commands, a member the policy chain, an
// auditor the leaves.
func TestConstitutionReplays(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for range 6 {
		g, proposals := history(t, rng)
		m := &mesh{t: t, g: g, s: NewState(g), at: start.Add(3600e9)}
		m.start()
		m.attestAll(func(string) string { return "e0" })
		leaves := [][]byte{}
		for _, p := range proposals {
			leaves = append(leaves, m.ok(m.command(KindProposal, p.raw)).Leaves...)
			m.tick(2e9)
		}
		replica := NewState(g)
		for _, c := range m.log {
			replica.Apply(c)
		}
		if replica.Digest() != m.s.Digest() {
			t.Fatal("a replica has another digest")
		}
		member, err := ReplayPolicy(g, m.s.PolicyChain())
		if err != nil || member.PolicyDigest() != m.s.PolicyDigest() {
			t.Fatalf("a member has another policy: %v", err)
		}
		auditor := NewState(g)
		auditor.Apply(m.log[0])
		for _, c := range m.log[2:] { // the edges
			if c.Kind == KindResults {
				auditor.Apply(c)
			}
		}
		for i, leaf := range leaves {
			if must(envelope.PredicateType(must(envelope.Parse(leaf)).Payload)) == envelope.TypeMembership {
				continue // follows from the proposal
			}
			if _, err := auditor.Replay(leaf); err != nil {
				t.Fatalf("leaf %d: %v", i, err)
			}
		}
		if auditor.PolicyDigest() != m.s.PolicyDigest() || names(auditor.Seats()) != names(m.s.Seats()) {
			t.Fatalf("an auditor has another policy or seats: %s, want %s", names(auditor.Seats()), names(m.s.Seats()))
		}
	}
}
