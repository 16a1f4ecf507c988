package audit

import (
	"testing"
	"time"

	"github.com/attestmesh/meshnode/consensus"
)

// withdraw is the withdrawal of an organisation from the proposal in an envelope.
func (m *mesh) withdraw(proposal []byte, org string, label string) []byte {
	m.t.Helper()
	p, _, err := consensus.ParseProposal(proposal)
	m.check(err)
	w := consensus.WithdrawalOf(p, m.ref(org+"/n1").Org, m.at)
	raw, err := consensus.SignWithdrawal(m.signer(label), w)
	m.check(err)
	return raw
}

// An auditor counts as the seats had to: without the organisations that have withdrawn.
func TestWithdrawals(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(m *mesh)
		want string
	}{
		{"enough others", func(m *mesh) {
			p := m.proposal(m.add("next"), "alpha", "beta", "gamma")
			m.command(consensus.KindWithdrawal, m.withdraw(p, "beta", "beta govern"))
			m.command(consensus.KindProposal, p)
		}, ""},
		{"too few others", func(m *mesh) {
			p := m.proposal(m.add("next"), "alpha", "beta")
			m.command(consensus.KindWithdrawal, m.withdraw(p, "beta", "beta govern"))
			m.force(p)
		}, "9:threshold"},
		{"by a key that may not", func(m *mesh) {
			m.force(m.withdraw(m.proposal(m.add("next"), "alpha"), "beta", "beta emergency"))
		}, "8:wrong_signer"},
		{"after the proposal had expired", func(m *mesh) {
			w := m.withdraw(m.proposal(m.add("next"), "alpha"), "beta", "beta govern")
			m.tick(3 * time.Hour)
			m.attestAll("new")
			m.force(w)
		}, "14:proposal_expired"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := started(t)
			c.do(m)
			r := m.audit(m.publish(seats...), func(o *Options) { o.At = o.At.Add(4 * time.Hour) })
			if got := codes(r); got != c.want {
				t.Errorf("got %q, want %q\n%+v", got, c.want, r.Findings)
			}
		})
	}
}
