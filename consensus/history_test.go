package consensus

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// told is a mesh with four changes behind it, and the policy after each.
func told(t *testing.T) (m *mesh, policies [][32]byte) {
	t.Helper()
	m = started(t, 3)
	policies = append(policies, m.s.PolicyDigest())
	for _, change := range []func(*Proposal){add(entry(t, "x")), remove("old"), readmit(entry(t, "old")), removeID(entry(t, "x").ID)} {
		m.ok(m.order(m.propose(change), 2))
		policies = append(policies, m.s.PolicyDigest())
	}
	return m, policies
}

func TestHistory(t *testing.T) {
	m, policies := told(t)
	chain := m.s.PolicyChain()
	var visited [][32]byte
	steps, err := History(m.g, chain, func(_ Step, s *PolicyState) { visited = append(visited, s.PolicyDigest()) })
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(visited, policies) {
		t.Error("the policies on the way are not those that were in force")
	}
	for i, want := range []struct {
		class  Class
		base   uint64
		change string
		links  []int
	}{
		{"", 0, "", []int{0, 1}}, {ClassWiden, 1, "+ allow " + entry(t, "x").ID, []int{2}}, {ClassNarrow, 1, "- revoke every entry with measurement " + measurement("old"), []int{3}},
		{ClassWiden, 2, "+ allow again, though revoked: " + entry(t, "old").ID, []int{4}}, {ClassNarrow, 2, "- revoke entry " + entry(t, "x").ID, []int{5}},
	} {
		s := steps[i]
		if s.Epoch != identity.Epoch(i) || s.Base != want.base || s.Class != want.class || !strings.HasPrefix(strings.Join(s.Changes, "\n"), want.change) || !reflect.DeepEqual(s.Links, want.links) {
			t.Errorf("step %d: %+v", i, s)
		}
		if orgs := map[bool]int{true: 3, false: 2}[i == 0]; len(s.Organisations) != orgs || s.Created.IsZero() != (i == 0) {
			t.Errorf("step %d: signed by %v, created %s", i, s.Organisations, s.Created)
		}
		at, err := PolicyAt(m.g, chain, identity.Epoch(i))
		if err != nil || at.PolicyDigest() != policies[i] {
			t.Errorf("epoch %d: %v", i, err)
		}
	}
	if len(steps) != 5 {
		t.Errorf("%d steps", len(steps))
	}
	if _, err := PolicyAt(m.g, chain, 5); err == nil || ReasonOf(err).Code != attest.CodeBehind || !strings.Contains(err.Error(), "at most 4") {
		t.Errorf("an epoch to come: %v", err)
	}
	if before, err := PolicyAt(m.g, nil, 0); err != nil || before.Started() || len(before.Entries()) != 2 {
		t.Errorf("before the start: %v", err)
	}
	// A history that somebody has tampered with is none.
	for name, spoil := range map[string]func([][]byte) [][]byte{
		"a step left out":   func(c [][]byte) [][]byte { return append(c[:2:2], c[3:]...) },
		"a step twice":      func(c [][]byte) [][]byte { return append(c, c[5]) },
		"no genesis":        func(c [][]byte) [][]byte { return c[1:] },
		"genesis alone":     func(c [][]byte) [][]byte { return c[:1] },
		"another statement": func(c [][]byte) [][]byte { return append(c, m.credential("alpha/n1", 1)) },
		"signatures left out": func(c [][]byte) [][]byte {
			env := must(envelope.Parse(c[4]))
			env.Signatures = env.Signatures[:1]
			c[4] = env.Marshal()
			return c
		},
	} {
		if steps, err := History(m.g, spoil(m.s.PolicyChain()), nil); err == nil {
			t.Errorf("%s: %d steps", name, len(steps))
		}
	}
}

// A review is made from the signed bytes and the policy alone.
func TestReview(t *testing.T) {
	m, _ := told(t)
	draft := func(change ...func(*Proposal)) []byte {
		return (&envelope.Envelope{Payload: m.payload(m.propose(change...))}).Marshal()
	}
	old := entry(t, "old")
	wide := must(NewEntry(Entry{Kind: "sim", Measurement: measurement("old"), Roles: []string{RoleTrainer}}))
	m.ok(m.order(m.propose(add(wide)), 2))
	before := m.s.PolicyDigest()
	r := m.s.Review(draft(remove("old"), add(entry(t, "y"))))
	if r.Refused != nil || r.Class != ClassWiden || r.Epoch != 5 || r.Signatures.Want != 2 || r.Signatures.Missing != 2 || len(r.Changes) != 2 {
		t.Errorf("got %+v", r)
	}
	// Both entries of the measurement are named, though the action names none.
	if len(r.Removed) != 2 || len(r.Added) != 1 || r.Added[0].ID != entry(t, "y").ID || r.Removed[0].Measurement != old.Measurement {
		t.Errorf("added %v, removed %v", r.Added, r.Removed)
	}
	if m.s.PolicyDigest() != before {
		t.Error("a review changed the policy")
	}
	signed := m.sign(m.payload(m.propose(remove("old"))), "alpha govern")
	if r := m.s.Review(signed); r.Refused != nil || len(r.Signatures.Organisations) != 1 || r.Signatures.Missing != 1 {
		t.Errorf("one signature: %+v", r)
	}
	// Swapped after somebody has approved it: the signature does not hold any more.
	swapped := must(envelope.Parse(signed))
	swapped.Payload = m.payload(m.propose(add(entry(t, "z"))))
	for name, tc := range map[string]struct {
		raw  []byte
		code attest.Code
	}{
		"swapped":                         {swapped.Marshal(), attest.CodeWrongSigner},
		"signed by one whom nobody knows": {m.sign(m.payload(m.propose(remove("old"))), "mallory"), attest.CodeWrongSigner},
		"unknown entry":                   {draft(remove("never")), attest.CodeUnknownEntry},
		"stale":                           {draft(add(entry(t, "y")), func(p *Proposal) { p.Base = 0 }), attest.CodeStaleBase},
		"of a newer base":                 {draft(add(entry(t, "y")), func(p *Proposal) { p.Base = 99 }), attest.CodeBehind},
		"junk":                            {[]byte("{}"), attest.CodeMalformed},
	} {
		if r := m.s.Review(tc.raw); r.Refused == nil || r.Refused.Code != tc.code {
			t.Errorf("%s: %v, want %s", name, r.Refused, tc.code)
		}
	}
}

// A stale proposal is made anew with the same actions, and nobody's signature.
func TestRebase(t *testing.T) {
	m := started(t, 3)
	late := m.propose(add(entry(t, "y")), func(p *Proposal) { p.ConfirmQuorumLoss = true })
	m.ok(m.order(m.propose(add(entry(t, "x"))), 2))
	m.refused(m.order(late, 3), attest.CodeStaleBase)
	nonce := strings.Repeat("7", 32)
	payload, err := m.s.Rebase(late, nonce, m.at, m.at.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	p := must(DecodeProposal(payload))
	if p.Base != 1 || p.Nonce != nonce || !p.ConfirmQuorumLoss || !reflect.DeepEqual(p.Actions, late.Actions) || bytes.Equal(payload, m.payload(late)) {
		t.Errorf("got %+v", p)
	}
	m.ok(m.command(KindProposal, m.sign(payload, m.governors(2)...)))
}
