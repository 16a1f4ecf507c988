package audit

import (
	"testing"
	"time"

	"github.com/attestmesh/meshnode/consensus"
)

// An auditor counts as the seats had to: without the organisations that have withdrawn.
func TestWithdrawals(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(m *mesh)
		want string
	}{
		{"enough others", func(m *mesh) {
			p := m.Proposal(m.Add("next"), "alpha", "beta", "gamma")
			m.Command(consensus.KindWithdrawal, m.Withdrawal(p, "beta", "beta govern"))
			m.Command(consensus.KindProposal, p)
		}, ""},
		{"too few others", func(m *mesh) {
			p := m.Proposal(m.Add("next"), "alpha", "beta")
			m.Command(consensus.KindWithdrawal, m.Withdrawal(p, "beta", "beta govern"))
			m.Force(p)
		}, "9:threshold"},
		{"by a key that may not", func(m *mesh) {
			m.Force(m.Withdrawal(m.Proposal(m.Add("next"), "alpha"), "beta", "beta emergency"))
		}, "8:wrong_signer"},
		{"after the proposal had expired", func(m *mesh) {
			w := m.Withdrawal(m.Proposal(m.Add("next"), "alpha"), "beta", "beta govern")
			m.Tick(3 * time.Hour)
			m.AttestAll("new")
			m.Force(w)
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
