package consensus

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// withdraw returns the withdrawal of an organisation from p, signed by a key.
func (m *mesh) withdraw(p *Proposal, org identity.OrgID, label string, change ...func(*Withdrawal)) []byte {
	m.t.Helper()
	w := WithdrawalOf(must(DecodeProposal(m.payload(p))), org, m.at)
	for _, f := range change {
		f(&w)
	}
	raw, err := SignWithdrawal(signer(m.t, label), w)
	if err != nil {
		m.t.Fatal(err)
	}
	return raw
}

// What an organisation has withdrawn does not count, whoever submits it; enough others do.
func TestWithdrawal(t *testing.T) {
	m := governing(t, 3)
	p := m.propose(add(entry(t, "x")))
	out := m.ok(m.command(KindWithdrawal, m.withdraw(p, "beta", "beta govern 2")))
	if len(out.Leaves) != 1 || out.EpochChanged {
		t.Errorf("got %+v", out)
	}
	refusal := m.order(p, 2) // alpha and beta
	m.refused(refusal, attest.CodeThreshold)
	if !strings.Contains(refusal.Reason.Got, "1 organisations [alpha], without [beta], which have withdrawn") || refusal.Reason.Want != "2 of 3 to widen" {
		t.Errorf("got %s", refusal.Reason)
	}
	m.refused(m.command(KindProposal, m.sign(m.payload(p), "beta govern", "beta govern 2")), attest.CodeThreshold)
	if d := m.s.DryRun(m.sign(m.payload(p), "alpha govern", "beta govern")); d.Refused != nil || d.AsIs.Code != attest.CodeThreshold || d.Signatures.Missing != 1 || len(d.Signatures.Organisations) != 1 ||
		fmt.Sprint(d.Withdrawn) != "[beta]" || len(m.s.Withdrawals()) != 1 {
		t.Errorf("dry run: %+v", d)
	}
	raw := m.sign(m.payload(p), "alpha govern", "beta govern", "gamma govern")
	out = m.ok(m.command(KindProposal, raw))
	if got := fmt.Sprint(out.Proposal.Organisations); got != "[alpha gamma]" || string(out.Leaves[0]) != string(raw) {
		t.Errorf("counted %s", got)
	}
	// Members replay the chain, and other proposals are not concerned.
	if s, err := ReplayPolicy(m.g, m.s.PolicyChain()); err != nil || s.PolicyDigest() != m.s.PolicyDigest() {
		t.Errorf("a member's policy differs: %v", err)
	}
	m.ok(m.order(m.propose(remove("old")), 2))
}

// What is not counted is verified all the same: members, who replay the chain without withdrawals,
// would refuse it for ever.
func TestWithdrawnSignaturesAreVerified(t *testing.T) {
	m := governing(t, 3)
	p := m.propose(add(entry(t, "x")))
	m.ok(m.command(KindWithdrawal, m.withdraw(p, "gamma", "gamma govern")))
	raw := m.sign(m.payload(p), "alpha govern", "beta govern", "gamma govern")
	env := must(envelope.Parse(raw))
	for i, sig := range env.Signatures {
		if sig.KeyID == keyIDOf("gamma govern") {
			env.Signatures[i].Sig[0] ^= 1
		}
	}
	m.refused(m.command(KindProposal, env.Marshal()), attest.CodeWrongSigner)
	m.ok(m.command(KindProposal, raw))
	if s, err := ReplayPolicy(m.g, m.s.PolicyChain()); err != nil || s.PolicyDigest() != m.s.PolicyDigest() {
		t.Errorf("a member's policy differs: %v", err)
	}
}

// The key that a proposal brings in for an organisation is its key on that proposal: who has
// withdrawn is not counted after the change either.
func TestWithdrawalCoversNewKeys(t *testing.T) {
	m := governing(t, 3)
	p := m.propose(addKey("beta govern 9"), removeOrg("gamma"))
	m.ok(m.command(KindWithdrawal, m.withdraw(p, "beta", "beta govern")))
	m.refused(m.vote(p, append(by("alpha", "beta", "gamma"), "beta govern 9")...), attest.CodeThreshold)
}

func TestWithdrawalAttacks(t *testing.T) {
	for name, tc := range map[string]struct {
		code attest.Code
		make func(m *mesh, p *Proposal) []byte
	}{
		"another organisation's key": {attest.CodeWrongSigner, func(m *mesh, p *Proposal) []byte { return m.withdraw(p, "beta", "alpha govern") }},
		"emergency key":              {attest.CodeWrongSigner, func(m *mesh, p *Proposal) []byte { return m.withdraw(p, "beta", "beta emergency") }},
		"enroll key":                 {attest.CodeWrongSigner, func(m *mesh, p *Proposal) []byte { return m.withdraw(p, "beta", "beta enroll") }},
		"stranger":                   {attest.CodeWrongSigner, func(m *mesh, p *Proposal) []byte { return m.withdraw(p, "mallory", "mallory") }},
		"other mesh": {attest.CodeWrongMesh, func(m *mesh, p *Proposal) []byte {
			return m.withdraw(p, "beta", "beta govern", func(w *Withdrawal) { w.MeshID[0] ^= 1 })
		}},
		"other incarnation": {attest.CodeWrongIncarnation, func(m *mesh, p *Proposal) []byte {
			return m.withdraw(p, "beta", "beta govern", func(w *Withdrawal) { w.Incarnation = 1 })
		}},
		"expired": {attest.CodeProposalExpired, func(m *mesh, p *Proposal) []byte {
			return m.withdraw(p, "beta", "beta govern", func(w *Withdrawal) { w.Expires = m.s.Now() })
		}},
		"for ever": {attest.CodeProposalExpired, func(m *mesh, p *Proposal) []byte {
			return m.withdraw(p, "beta", "beta govern", func(w *Withdrawal) { w.Expires = m.s.Now().Add(MaxProposalLifetime + time.Second) })
		}},
		"a statement of another kind": {attest.CodeMalformed, func(m *mesh, p *Proposal) []byte { return m.sign(m.payload(p), "beta govern") }},
		"re-encoded": {attest.CodeMalformed, func(m *mesh, p *Proposal) []byte {
			return []byte(strings.Replace(string(m.withdraw(p, "beta", "beta govern")), `,"signatures"`, `, "signatures"`, 1))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			m := governing(t, 3)
			p := m.propose(add(entry(t, "x")))
			m.refused(m.command(KindWithdrawal, tc.make(m, p)), tc.code)
			m.ok(m.order(p, 2)) // and it has taken nothing back
		})
	}
	m := governing(t, 3)
	p := m.propose(add(entry(t, "x")))
	raw := m.withdraw(p, "beta", "beta govern")
	m.ok(m.command(KindWithdrawal, raw))
	m.refused(m.command(KindWithdrawal, raw), attest.CodeReplayed)
	m.ok(m.command(KindProposal, m.sign(m.payload(p), "alpha govern", "gamma govern")))
	m.refused(m.command(KindWithdrawal, m.withdraw(p, "alpha", "alpha govern")), attest.CodeReplayed)
	// A mesh of an older version does not know them.
	old := started(t, 3)
	old.refused(old.command(KindWithdrawal, old.withdraw(old.propose(remove("old")), "beta", "beta govern")), attest.CodeWrongVersion)
	// A neutral seat has no signature to take back.
	g := genesisOf(t, 3)
	g.FSMVersion, g.Organisations[1].Roles = FSMVersion, []string{OrgSeat}
	neutral := newMeshOf(t, g)
	neutral.start()
	neutral.refused(neutral.command(KindWithdrawal, neutral.withdraw(neutral.propose(remove("old")), "beta", "beta govern")), attest.CodeWrongSigner)
}

// A withdrawal is remembered until the proposal has expired, and no longer; a wrong expiry
// makes it one from nothing; there is a quota.
func TestWithdrawalExpires(t *testing.T) {
	m := governing(t, 3)
	p := m.propose(add(entry(t, "x")))
	empty := m.s.Digest()
	m.ok(m.command(KindWithdrawal, m.withdraw(p, "beta", "beta govern", func(w *Withdrawal) { w.Expires = w.Expires.Add(-time.Minute) })))
	if m.s.Digest() == empty {
		t.Error("the digest does not show it")
	}
	if d := m.s.DryRun(m.sign(m.payload(p), "alpha govern", "beta govern")); d.AsIs != nil {
		t.Errorf("another expiry than the proposal's: %s", d.AsIs)
	}
	for i := range MaxWithdrawals - 1 {
		other := m.propose(add(entry(t, "y")), func(p *Proposal) { p.Nonce = fmt.Sprintf("%032x", i) })
		m.ok(m.command(KindWithdrawal, m.withdraw(other, "beta", "beta govern")))
	}
	m.refused(m.command(KindWithdrawal, m.withdraw(p, "beta", "beta govern")), attest.CodeLimit)
	m.ok(m.command(KindWithdrawal, m.withdraw(p, "alpha", "alpha govern"))) // a quota of its own
	if len(m.s.withdrawals) != MaxWithdrawals+1 {
		t.Errorf("%d are remembered", len(m.s.withdrawals))
	}
	m.tick(time.Hour + time.Minute)
	if len(m.s.withdrawals) != 0 {
		t.Errorf("%d are remembered after they have expired", len(m.s.withdrawals))
	}
}

// An auditor, who has the leaves and no clock, counts as the seats did.
func TestWithdrawalReplayed(t *testing.T) {
	m := governing(t, 3)
	replayed := m.rerun()
	p := m.propose(add(entry(t, "x")))
	w := m.withdraw(p, "beta", "beta govern")
	if _, err := replayed.Replay(w); err != nil {
		t.Fatal(err)
	}
	if _, err := replayed.Replay(m.sign(m.payload(p), "alpha govern", "beta govern")); err == nil || ReasonOf(err).Code != attest.CodeThreshold {
		t.Errorf("a proposal that lacks what was withdrawn: %v", err)
	}
	if _, err := replayed.Replay(m.sign(m.payload(p), "alpha govern", "beta govern", "gamma govern")); err != nil {
		t.Error(err)
	}
}

// rerun is the state that an auditor has after Bootstrap.
func (m *mesh) rerun() *State {
	m.t.Helper()
	s := NewState(m.g)
	if out := s.Apply(m.log[0]); out.Reason != nil {
		m.t.Fatal(out.Reason)
	}
	return s
}

func FuzzWithdrawal(f *testing.F) {
	m := governing(f, 3)
	p := m.propose(add(entry(f, "x")))
	f.Add(m.withdraw(p, "beta", "beta govern"))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		w, env, err := ParseWithdrawal(raw)
		if err != nil {
			return
		}
		if string(env.Marshal()) != string(raw) || w.check() != nil {
			t.Errorf("accepted in another form: %q", raw)
		}
		again, err := envelope.NewPayload(envelope.TypeWithdrawal, meshSubject(w.MeshID), *w)
		if err != nil || string(again) != string(env.Payload) {
			t.Errorf("encodes as %s, %v", again, err)
		}
	})
}
