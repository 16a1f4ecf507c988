package audittest

import (
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/envelope"
)

// CompleteAt is the first instant of Complete; its last is less than a day later.
var CompleteAt = time.Date(2020, 3, 1, 12, 0, 0, 0, time.UTC)

// Complete returns a mesh whose log has every kind of leaf that there is, each as it should be:
// results of every verdict, proposals of every action, seats that are evicted, drained, retired
// and taken again, suspensions and their lifts, rounds, and a Recovery into a second incarnation,
// in which all of it goes on. It is the same in each run.
func Complete() *Mesh {
	m := New(Options{At: CompleteAt}).Start()
	m.members()
	m.constitution()
	m.platforms()
	m.suspensions()
	m.seats()
	m.Tick(time.Minute)
	m.attest("new", []string{"alpha/n1", "beta/n1 again"})
	m.Recover(1, "reborn", len(m.Leaves), len(m.Leaves))
	m.Tick(time.Minute)
	reborn := Again("reborn")
	m.Force(m.Round(0, func(r *federated.Round) {
		r.Job, r.Aggregator, r.Peer = "8899aabbccddeeff", Ref(reborn[2]), PeerOf(reborn[2])
		r.Accepted = []federated.Accepted{Accepted(reborn[0]), Accepted(reborn[1])}
	}))
	m.Command(consensus.KindProposal, m.Proposal(m.Add("last"), "alpha", "beta", "gamma"))
	for _, release := range []string{"last", "new"} {
		m.Tick(time.Second)
		m.Command(consensus.KindResults, m.Result(reborn[1], reborn[0], release))
	}
	return m
}

// members is a release that comes and goes with the node that runs it, and two rounds.
func (m *Mesh) members() {
	m.Command(consensus.KindCredential, m.Credential("beta/n2"))
	m.Command(consensus.KindProposal, m.Proposal(m.Add("next"), "alpha", "beta"))
	m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n2", "next"), m.Result("gamma/n1", "beta/n2", "next"))
	m.Force(m.Round(0))
	m.Command(consensus.KindResults, m.Result("beta/n2", "alpha/n1", "new", Refusing(attest.VerdictContraindicated, attest.CodeDebug)),
		m.Result("beta/n2", "gamma/n1", "new", Refusing(attest.VerdictNone, attest.CodeUnavailable)),
		m.Result("beta/n2", "beta/n1", "new", Refusing(attest.VerdictWarning, attest.CodeTCBBelowFloor)))
	p := m.Proposal(m.Add("spare"), "alpha", "beta", "gamma")
	m.Command(consensus.KindWithdrawal, m.Withdrawal(p, "beta", "beta govern"))
	m.Command(consensus.KindProposal, p)
	m.Command(consensus.KindProposal, m.Proposal(Remove("next"), "beta", "gamma")) // evicts beta/n2, which has no seat
	m.Force(m.Round(1))
}

// constitution is every change of who decides.
func (m *Mesh) constitution() {
	delta := consensus.Organisation{ID: "delta", Roles: []string{consensus.OrgMember}, Keys: []consensus.Key{
		{Role: consensus.KeyGovern, Public: Public("delta govern")}, {Role: consensus.KeyEnroll, Public: Public("delta enroll")}}}
	all := []string{"alpha govern", "beta govern", "gamma govern"}
	m.Amend(consensus.Action{AddOrganisation: &consensus.AddOrganisation{Organisation: delta}}, append(all, "delta govern")...)
	all = append(all, "delta govern")
	m.Command(consensus.KindCredential, m.Credential("delta/n1"))
	m.Command(consensus.KindResults, m.Result("alpha/n1", "delta/n1", "new"), m.Result("delta/n1", "alpha/n1", "new"))
	m.Amend(Rotation("delta", consensus.KeyEnroll, "delta enroll 2"), all...)
	second := consensus.Key{Role: consensus.KeyEmergency, Public: Public("delta emergency")}
	m.Amend(consensus.Action{AddKey: &consensus.AddKey{Organisation: "delta", Key: second}}, all...)
	m.Amend(consensus.Action{RemoveKey: &consensus.RemoveKey{Organisation: "delta", Role: consensus.KeyEmergency, ID: KeyID("delta emergency")}}, all...)
	m.Amend(consensus.Action{SetLimits: &consensus.SetLimits{Limits: consensus.Limits{Nodes: 9}}}, all...)
	m.Amend(consensus.Action{SetWitnesses: &consensus.SetWitnesses{Witnesses: []string{WitnessKey()}}}, all...)
}

// platforms is every change of what hardware may be used, and the end of delta.
func (m *Mesh) platforms() {
	m.Tick(time.Minute) // another window of quotas
	scope := consensus.HardwareScope{Organisation: "delta"}
	chips := []string{Measurement("chip")[:64]}
	for _, a := range []consensus.Action{
		{RaiseFloor: &consensus.RaiseFloor{Floor: attest.Floor{Product: "Milan", SEVSNP: &attest.TCB{SNP: 8}}}},
		{DenyProduct: &consensus.DenyProduct{Product: attest.Product{Line: "Milan"}}},
		{AllowProduct: &consensus.AllowProduct{Product: attest.Product{Line: "Milan"}}},
		{LimitHardware: &consensus.LimitHardware{HardwareScope: scope, Chips: chips}},
		{RemoveHardware: &consensus.RemoveHardware{HardwareScope: scope, Chips: chips}},
		{AddHardware: &consensus.AddHardware{HardwareScope: scope, Chips: chips, Readmit: true}},
		{UnlimitHardware: &consensus.UnlimitHardware{HardwareScope: scope}},
	} {
		m.Command(consensus.KindProposal, m.Proposal(a, "alpha", "beta", "delta"))
	}
	m.Amend(consensus.Action{RemoveOrganisation: &consensus.RemoveOrganisation{ID: "delta"}}, "alpha govern", "beta govern", "gamma govern")
}

// suspensions are one of a node and one of an entry, both lifted.
func (m *Mesh) suspensions() {
	m.Tick(time.Minute)
	x := m.Suspension("beta/n1", time.Hour, "alpha emergency")
	m.Command(consensus.KindSuspension, x)
	m.Command(consensus.KindLift, m.Lift(x, "beta", "gamma"))
	x = m.Suspension("beta/n1", time.Hour, "alpha emergency", func(x *consensus.Suspension) { x.Node, x.Entry = nil, m.Entry("spare").ID })
	m.Command(consensus.KindSuspension, x)
	m.Command(consensus.KindLift, m.Lift(x, "alpha"))
	m.LogState(consensus.DigestEvery)
}

// seats is a seat that is drained and taken by a later boot, one that is evicted, and a node that
// is retired.
func (m *Mesh) seats() {
	again := "beta/n1 again"
	m.Command(consensus.KindDrain, m.Drain("beta/n1"))
	m.Command(consensus.KindCredential, m.Credential(again))
	m.Command(consensus.KindResults, m.Result("alpha/n1", again, "new"), m.Result("gamma/n1", again, "new"))
	m.Command(consensus.KindReady, m.Ready(again, "alpha/n1", "gamma/n1"))
	m.Command(consensus.KindRetirement, m.Retirement("beta/n2", "beta enroll"))
	old := func(r *consensus.AttestationResult) { r.At = r.At.Add(time.Second) }
	m.Command(consensus.KindResults, m.Result("alpha/n1", "gamma/n1", "old", old), m.Result(again, "gamma/n1", "old", old))
	m.Command(consensus.KindProposal, m.Proposal(Remove("old"), "alpha", "gamma"))
}

// Find returns the indices of the leaves of a predicate type.
func (m *Mesh) Find(predicate string) []uint64 {
	var out []uint64
	for i, leaf := range m.Leaves {
		env, err := envelope.Parse(leaf)
		if err != nil {
			continue
		}
		if got, err := envelope.PredicateType(env.Payload); err == nil && got == predicate {
			out = append(out, uint64(i))
		}
	}
	return out
}

// Cosigners returns the boots that hold a seat now and are affirmed: whose cosignatures count.
func (m *Mesh) Cosigners() []string {
	var out []string
	for _, n := range m.State.Seats() {
		if n.Standing == consensus.StandingMeasured {
			out = append(out, m.boot(n.Peer))
		}
	}
	return out
}

// Grow appends results until there are n leaves: Results from the first on.
func (m *Mesh) Grow(n int) {
	next := m.Results()
	for i := 0; len(m.Leaves) < n; i++ {
		m.At = m.At.Add(time.Second)
		m.Force(next(i))
	}
}

// Results returns the results that can follow what Complete has come to, by number, without end. In
// each a seat says of another something that it did not say before, a second later than the last.
// The function may be called on several goroutines and in any order.
func (m *Mesh) Results() func(i int) []byte {
	boots, begin := m.Cosigners(), m.At
	releases := []string{"last", "new"}
	return func(i int) []byte {
		verifier := i % len(boots)
		subject := (verifier + 1 + i/len(boots)%(len(boots)-1)) % len(boots)
		return m.Result(boots[verifier], boots[subject], releases[i/len(boots)/(len(boots)-1)%2], func(r *consensus.AttestationResult) {
			r.At = begin.Add(time.Duration(i+1) * time.Second)
			r.Expires = r.At.Add(time.Hour)
		})
	}
}
