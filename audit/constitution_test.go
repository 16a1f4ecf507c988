package audit

import (
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
)

func (m *mesh) rotation(org, role, to string) consensus.Action {
	m.t.Helper()
	return consensus.Action{RotateKey: &consensus.RotateKey{Organisation: m.ref(org + "/n1").Org, Role: role, Old: m.keyID(org + " " + role), Public: public(to)}}
}

func (m *mesh) keyID(label string) string {
	m.t.Helper()
	id, err := envelope.KeyID(key(label).Public())
	m.check(err)
	return id
}

// amend orders a change of the constitution, signed by govern keys and keys that come in.
func (m *mesh) amend(action consensus.Action, labels ...string) {
	m.t.Helper()
	env, err := envelope.Parse(m.proposal(action, "alpha"))
	m.check(err)
	m.command(consensus.KindProposal, m.sign(env.Payload, labels...))
}

// An auditor follows keys that change and organisations that come and go.
func TestConstitutionIsAudited(t *testing.T) {
	m := started(t)
	delta := consensus.Organisation{ID: "delta", Roles: []string{consensus.OrgMember}, Keys: []consensus.Key{
		{Role: consensus.KeyGovern, Public: public("delta govern")}, {Role: consensus.KeyEnroll, Public: public("delta enroll")}}}
	m.amend(consensus.Action{AddOrganisation: &consensus.AddOrganisation{Organisation: delta}}, "alpha govern", "beta govern", "delta govern")
	m.command(consensus.KindCredential, m.credential("delta/n1"))
	m.command(consensus.KindResults, m.result("alpha/n1", "delta/n1", "new"), m.result("delta/n1", "alpha/n1", "new"))
	m.amend(m.rotation("alpha", consensus.KeyGovern, "alpha govern 2"), "alpha govern", "beta govern", "gamma govern", "alpha govern 2")
	m.amend(m.rotation("beta", consensus.KeyEnroll, "beta enroll 2"), "alpha govern 2", "beta govern", "gamma govern")
	m.amend(consensus.Action{RemoveOrganisation: &consensus.RemoveOrganisation{ID: "gamma"}}, "alpha govern 2", "beta govern", "delta govern")
	if m.s.N() != 3 || len(m.s.Seats()) != 2 {
		t.Fatalf("N %d, seats %v", m.s.N(), m.s.Seats())
	}
	r := m.audit(m.publish("alpha/n1", "beta/n1"))
	if !r.OK || len(r.GovernKeys) != 5 {
		t.Errorf("findings %s, %d govern keys", codes(r), len(r.GovernKeys))
	}
	// Who has left does not cosign any more.
	honest := m.leaves
	if r := m.audit(m.publish("alpha/n1")); codes(r) == "" {
		t.Error("one of three cosigners is enough")
	}
	// What a lying majority of seats could write, and the members would have refused.
	for name, tc := range map[string]struct {
		leaf func() []byte
		code string
	}{
		"a key that was rotated out": {func() []byte { return m.proposal(m.add("x"), "alpha", "beta") }, "wrong_signer"},
		"an organisation that left":  {func() []byte { return m.proposal(m.add("x"), "beta", "delta", "gamma") }, "wrong_signer"},
		"its Credential":             {func() []byte { return m.credential("gamma/n2") }, "organisation_removed"},
		"a void Credential":          {func() []byte { return m.credential("beta/n2") }, "no_credential"},
		"its result":                 {func() []byte { return m.result("gamma/n1", "alpha/n1", "new") }, "no_credential"},
		"too few for a constitution": {func() []byte {
			env, err := envelope.Parse(m.proposal(consensus.Action{SetLimits: &consensus.SetLimits{Limits: consensus.Limits{Nodes: 9}}}, "beta"))
			m.check(err)
			return m.sign(env.Payload, "beta govern")
		}, "threshold"},
	} {
		m.leaves = append(honest[:len(honest):len(honest)], tc.leaf())
		if r := m.audit(m.publish("alpha/n1", "beta/n1")); !strings.HasSuffix(codes(r), ":"+tc.code) {
			t.Errorf("%s: got %q, want %s", name, codes(r), tc.code)
		}
	}
	// The removal of gamma's seat follows from the proposal and may not be left out.
	m.leaves = honest[:len(honest)-1]
	m.leaves = append(m.leaves[:len(m.leaves):len(m.leaves)], m.credential("delta/n2"))
	if r := m.audit(m.publish("alpha/n1", "beta/n1")); !strings.Contains(codes(r), CodeDerivedMissing) {
		t.Errorf("got %q", codes(r))
	}
}
