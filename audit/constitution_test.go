package audit

import (
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
)

// An auditor follows keys that change and organisations that come and go.
func TestConstitutionIsAudited(t *testing.T) {
	m := started(t)
	delta := consensus.Organisation{ID: "delta", Roles: []string{consensus.OrgMember}, Keys: []consensus.Key{
		{Role: consensus.KeyGovern, Public: audittest.Public("delta govern")}, {Role: consensus.KeyEnroll, Public: audittest.Public("delta enroll")}}}
	m.Amend(consensus.Action{AddOrganisation: &consensus.AddOrganisation{Organisation: delta}}, "alpha govern", "beta govern", "delta govern")
	m.Command(consensus.KindCredential, m.Credential("delta/n1"))
	m.Command(consensus.KindResults, m.Result("alpha/n1", "delta/n1", "new"), m.Result("delta/n1", "alpha/n1", "new"))
	m.Amend(audittest.Rotation("alpha", consensus.KeyGovern, "alpha govern 2"), "alpha govern", "beta govern", "gamma govern", "alpha govern 2")
	m.Amend(audittest.Rotation("beta", consensus.KeyEnroll, "beta enroll 2"), "alpha govern 2", "beta govern", "gamma govern")
	m.Amend(consensus.Action{RemoveOrganisation: &consensus.RemoveOrganisation{ID: "gamma"}}, "alpha govern 2", "beta govern", "delta govern")
	if m.State.N() != 3 || len(m.State.Seats()) != 2 {
		t.Fatalf("N %d, seats %v", m.State.N(), m.State.Seats())
	}
	r := m.audit(m.publish("alpha/n1", "beta/n1"))
	if !r.OK || len(r.GovernKeys) != 5 {
		t.Errorf("findings %s, %d govern keys", codes(r), len(r.GovernKeys))
	}
	// Who has left does not cosign any more.
	honest := m.Leaves
	if r := m.audit(m.publish("alpha/n1")); codes(r) == "" {
		t.Error("one of three cosigners is enough")
	}
	// What a lying majority of seats could write, and the members would have refused.
	for name, tc := range map[string]struct {
		leaf func() []byte
		code string
	}{
		"a key that was rotated out": {func() []byte { return m.Proposal(m.Add("x"), "alpha", "beta") }, "wrong_signer"},
		"an organisation that left":  {func() []byte { return m.Proposal(m.Add("x"), "beta", "delta", "gamma") }, "wrong_signer"},
		"its Credential":             {func() []byte { return m.Credential("gamma/n2") }, "organisation_removed"},
		"a void Credential":          {func() []byte { return m.Credential("beta/n2") }, "no_credential"},
		"its result":                 {func() []byte { return m.Result("gamma/n1", "alpha/n1", "new") }, "no_credential"},
		"too few for a constitution": {func() []byte {
			env, err := envelope.Parse(m.Proposal(consensus.Action{SetLimits: &consensus.SetLimits{Limits: consensus.Limits{Nodes: 9}}}, "beta"))
			m.check(err)
			return audittest.Sign(env.Payload, "beta govern")
		}, "threshold"},
	} {
		m.Leaves = append(honest[:len(honest):len(honest)], tc.leaf())
		if r := m.audit(m.publish("alpha/n1", "beta/n1")); !strings.HasSuffix(codes(r), ":"+tc.code) {
			t.Errorf("%s: got %q, want %s", name, codes(r), tc.code)
		}
	}
	// The removal of gamma's seat follows from the proposal and may not be left out.
	m.Leaves = honest[:len(honest)-1]
	m.Leaves = append(m.Leaves[:len(m.Leaves):len(m.Leaves)], m.Credential("delta/n2"))
	if r := m.audit(m.publish("alpha/n1", "beta/n1")); !strings.Contains(codes(r), CodeDerivedMissing) {
		t.Errorf("got %q", codes(r))
	}
}
