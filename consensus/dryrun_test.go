package consensus

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Apply writes to what clone copies. A field that is new here must be copied as deep as it is
// written to, and then be listed.
func TestCloneKnowsEveryField(t *testing.T) {
	for _, c := range []struct {
		of   any
		want string
	}{
		{State{}, "PolicyState now tickSeq nodes peers retired edges spared suspensions used logged voided withdrawals"},
		{PolicyState{}, "genesis incarnation epoch base entries revoked platforms seen bootstrap recovery continues chain chainBytes links orgs limits witnesses former enrollers"},
		{node{}, "cred run evicted contradicted seat removed drained"},
		{suspended{}, "Suspension raw entry ordered ends lifted"},
	} {
		var got []string
		for i := range reflect.TypeOf(c.of).NumField() {
			got = append(got, reflect.TypeOf(c.of).Field(i).Name)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%T has fields %s,\nclone was written for %s", c.of, strings.Join(got, " "), c.want)
		}
	}
}

// drawn is a source of random meshes and changes.
type drawn struct {
	*rand.Rand
	t     *testing.T
	count int
}

func (r *drawn) one(of ...string) string { return of[r.IntN(len(of))] }

// names of measurements that entries are drawn from.
var drawnNames = []string{"old", "new", "m0", "m1", "m2", "m3"}

func (r *drawn) entry(at time.Time) Entry {
	r.t.Helper()
	e := Entry{Kind: attest.KindSim, Measurement: measurement(r.one(drawnNames...)), Roles: allRoles}
	if r.IntN(4) == 0 {
		e.Roles = []string{RoleMember, RoleTrainer}
	}
	if r.IntN(3) == 0 {
		e.NotAfter = at.Add(time.Duration(1+r.IntN(40)) * time.Minute)
	}
	if r.IntN(6) == 0 {
		e.NotBefore = at.Add(time.Duration(r.IntN(20)-10) * time.Minute)
		if !e.NotAfter.IsZero() {
			e.NotAfter = e.NotBefore.Add(time.Duration(1+r.IntN(40)) * time.Minute)
		}
	}
	if r.IntN(4) == 0 {
		e.Registers = map[string]string{"r0": strings.Repeat(r.one("aa", "bb"), 32)}
	}
	return must(NewEntry(e))
}

// mesh returns a started mesh of random size and entries whose nodes run random ones of them.
func (r *drawn) mesh() *mesh {
	g := genesisOf(r.t, []int{2, 3, 4, 5, 7}[r.IntN(5)])
	g.FSMVersion = FSMVersion
	for range 2 + r.IntN(5) {
		e := r.entry(start.Add(2 * time.Hour))
		if !slices.ContainsFunc(g.Policy.Entries, func(o Entry) bool { return o.ID == e.ID }) {
			g.Policy.Entries = append(g.Policy.Entries, e)
		}
	}
	sortEntries(g.Policy.Entries)
	m := newMeshOf(r.t, g)
	m.start()
	m.tick(time.Hour)
	for _, org := range m.orgs() {
		for range r.IntN(2) {
			m.ok(m.command(KindCredential, m.credential(string(org)+"/n2", 1, func(c *Credential) {
				if r.IntN(2) == 0 {
					c.Roles = []string{RoleMember, RoleTrainer}
				}
			})))
		}
	}
	r.attest(m)
	return m
}

// attest has every node found to run something that is allowed to it, if there is anything.
func (r *drawn) attest(m *mesh) {
	var batch [][]byte
	for _, n := range m.s.Nodes() {
		entries := m.s.Entries()
		e := entries[r.IntN(len(entries))]
		for _, v := range m.s.Seats() {
			if v.Ref.Org != n.Ref.Org {
				batch = append(batch, m.result(v.Ref.String(), n.Ref.String(), "old", func(a *AttestationResult) { a.Measurement, a.Reference = e.Measurement, e.ID }))
			}
		}
	}
	m.command(KindResults, batch...) // some or all are skipped: not allowed for the node's roles
}

// actions are the kinds of random changes.
var actions = []func(r *drawn, m *mesh) Action{
	func(r *drawn, m *mesh) Action {
		return Action{AddEntry: &AddEntry{Entry: r.entry(m.s.Now()), Readmit: r.IntN(2) == 0}}
	},
	func(r *drawn, m *mesh) Action { // one that takes over at some time
		e, all := r.entry(m.s.Now()), m.s.Entries()
		e.ID, e.Supersedes = "", []string{all[r.IntN(len(all))].ID}
		e.SupersedeAt = canonicalTime(m.s.Now().Add(time.Duration(r.IntN(40)-2) * time.Minute))
		e, err := NewEntry(e)
		if err != nil {
			return Action{AddEntry: &AddEntry{Entry: r.entry(m.s.Now())}} // its end may be too early
		}
		return Action{AddEntry: &AddEntry{Entry: e, Readmit: r.IntN(2) == 0}}
	},
	func(r *drawn, m *mesh) Action {
		all := append(m.s.Entries(), m.s.Revoked()...)
		return Action{RemoveEntry: &RemoveEntry{ID: all[r.IntN(len(all))].ID}}
	},
	func(r *drawn, _ *mesh) Action {
		return Action{RemoveEntry: &RemoveEntry{Measurement: measurement(r.one(slices.Concat(drawnNames, drawnNames, []string{"unknown"})...))}}
	},
}

// proposal returns a random proposal, mostly well-formed, signed by a random number of
// organisations.
func (r *drawn) proposal(m *mesh) (payload []byte, signed []string) {
	r.count++
	p := m.propose(func(p *Proposal) {
		p.Nonce = fmt.Sprintf("%032x", r.count)
		for range 1 + r.IntN(3) {
			p.Actions = append(p.Actions, actions[r.IntN(len(actions))](r, m))
		}
		p.ConfirmQuorumLoss = r.IntN(4) == 0
		switch r.IntN(80) {
		case 0:
			p.Base++
		case 1:
			p.Created, p.Expires = start, start.Add(time.Minute)
		case 2:
			p.Incarnation = 1
		case 3, 5, 6:
			if p.Base > 0 {
				p.Base--
			}
		case 4:
			p.MeshID[0] ^= 1
		}
	})
	signed = m.governors(r.IntN(len(m.orgs()) + 1))
	if r.IntN(20) == 0 {
		signed = append(signed, "mallory")
	}
	return m.payload(p), signed
}

// A prediction equals what then happens: refusal, class, epoch, evictions and seats at once,
// and at every tick that comes later, over 1,000 random changes on random states.
func TestDryRunPredicts(t *testing.T) {
	r := &drawn{Rand: rand.New(rand.NewPCG(5, 6)), t: t}
	seen := map[string]int{}
	var m *mesh
	for i := range few(1000) {
		if m == nil || i%8 == 0 || len(m.s.Seats()) < m.s.Quorum() || len(m.s.Entries()) == 0 {
			m = r.mesh()
		}
		payload, signed := r.proposal(m)
		raw := (&envelope.Envelope{Payload: payload}).Marshal()
		if len(signed) > 0 {
			raw = m.sign(payload, signed...)
		}
		if r.IntN(6) == 0 { // somebody takes back what it signed, or might have
			org := m.orgs()[r.IntN(len(m.orgs()))]
			w := WithdrawalOf(must(DecodeProposal(payload)), org, m.at)
			if out := m.command(KindWithdrawal, must(SignWithdrawal(signer(t, string(org)+" govern"), w))); out.Reason == nil {
				seen["withdrawn"]++
			}
		}
		before := m.s.Digest()
		p := m.s.DryRun(raw)
		if m.s.Digest() != before {
			t.Fatalf("change %d: the dry run changed the state", i)
		}
		seats := m.s.Seats()
		out := m.command(KindProposal, raw)
		if got, want := codeOf(out.Reason), codeOf(p.AsIs); got != want {
			t.Fatalf("change %d: refused with %q, predicted %q", i, got, want)
		}
		seen[string(codeOf(out.Reason))]++
		if out.Reason != nil {
			// What lacks signatures alone is ordered with them, or refused as predicted.
			if out.Reason.Code != attest.CodeThreshold && len(signed) > 0 {
				continue
			}
			if p.Signatures.Missing == 0 && len(signed) > 0 {
				t.Fatalf("change %d: %v, predicted none missing", i, out.Reason)
			}
			raw = m.sign(payload, m.completed(payload, p)...)
			out = m.command(KindProposal, raw)
			if got, want := codeOf(out.Reason), codeOf(p.Refused); got != want {
				t.Fatalf("change %d: with all signatures refused with %q, predicted %q", i, got, want)
			}
			seen["signed "+string(codeOf(out.Reason))]++
			if out.Reason != nil {
				continue
			}
		}
		r.compare(i, m, p, out, seats)
		seen["ordered "+string(out.Proposal.Class)]++
		if later := r.later(i, m, p, seen); later {
			m = nil
		}
	}
	t.Log(seen)
	for _, want := range []string{"", "threshold", "quorum_loss", "unknown_entry", "revoked", "stale_base", "behind", "wrong_mesh", "wrong_incarnation",
		"proposal_expired", "wrong_signer", "signed quorum_loss", "ordered widen", "ordered narrow", "evicted at once", "evicted later", "seat lost later", "held", "returns", "anyway", "withdrawn"} {
		if seen[want] == 0 && !underRace {
			t.Errorf("no change was %q: the draw is too narrow to test it", want)
		}
	}
}

func codeOf(r *attest.Reason) attest.Code {
	if r == nil {
		return ""
	}
	return r.Code
}

// completed are as many signers as a prediction says that a proposal needs, of those who have
// not withdrawn.
func (m *mesh) completed(payload []byte, p Prediction) []string {
	var out []string
	for _, org := range m.orgs() {
		_, gone := m.s.withdrawals[withdrawn{must(DecodeProposal(payload)).id, org}]
		if !gone && (p.Signatures.Want == 0 || len(out) < p.Signatures.Want) {
			out = append(out, string(org)+" govern")
		}
	}
	return out
}

// compare holds a prediction against an ordered proposal.
func (r *drawn) compare(i int, m *mesh, p Prediction, out Outcome, seats []Node) {
	r.t.Helper()
	a := out.Proposal
	if a.ID != p.ID || a.Class != p.Class || a.Epoch != p.Epoch || a.Base != p.Base {
		r.t.Fatalf("change %d: ordered as %+v, predicted %+v", i, a, p)
	}
	var want []identity.PeerID
	for _, d := range p.Departures {
		if d.At.IsZero() {
			want = append(want, d.Peer)
			n, known := m.s.Node(d.Peer)
			if known && (n.Code != d.Code || n.Reference != d.Entry) || !known && d.Code != attest.CodeOrganisationRemoved {
				r.t.Fatalf("change %d: %s went with %s, predicted %s", i, d.Node, n.Code, d.Code)
			}
		}
	}
	if !slices.Equal(slices.Sorted(slices.Values(out.Evicted)), slices.Sorted(slices.Values(want))) {
		r.t.Fatalf("change %d: evicted %v, predicted %v", i, out.Evicted, want)
	}
	after := m.s.Seats()
	lost := slices.DeleteFunc(slices.Clone(seats), func(n Node) bool {
		return slices.ContainsFunc(after, func(o Node) bool { return o.Peer == n.Peer })
	})
	predicted := []string{}
	for _, ref := range p.Seats.Lost {
		predicted = append(predicted, ref.String())
	}
	if names(lost) != strings.Join(predicted, " ") || p.Seats.Before != len(seats) || p.Seats.After != len(after) {
		r.t.Fatalf("change %d: lost the seats %s of %d, predicted %s", i, names(lost), len(seats), predicted)
	}
	if d := p.After().Digest(); p.AsIs == nil && d != m.s.Digest() {
		r.t.Fatalf("change %d: another state than the predicted one", i)
	}
}

// later lets time pass over everything that is predicted, with ticks before, at and after
// each moment, and reports whether it did.
func (r *drawn) later(i int, m *mesh, p Prediction, seen map[string]int) bool {
	r.t.Helper()
	var moments []time.Time
	for _, d := range p.Departures {
		switch {
		case d.At.IsZero():
			seen["evicted at once"]++
			continue
		case d.Held:
			seen["held"]++
		case d.Seat:
			seen["seat lost later"]++
		default:
			seen["evicted later"]++
		}
		if d.Anyway {
			seen["anyway"]++
		}
		moments = append(moments, d.At)
	}
	seen["returns"] += len(p.Returns)
	// With fewer seats than that ordered time creeps, a TickInterval a tick.
	if len(moments) == 0 || len(m.s.Seats()) < m.s.StrongQuorum() || r.IntN(3) > 0 {
		return false
	}
	slices.SortFunc(moments, time.Time.Compare)
	for _, at := range slices.CompactFunc(moments, time.Time.Equal) {
		if early := at.Add(-time.Second); early.After(m.s.Now()) {
			if out := m.tick(early.Sub(m.at)); len(out.Evicted) > 0 {
				r.t.Fatalf("change %d: evicted %v a second before %s", i, out.Evicted, at)
			}
		}
		out := m.tick(at.Sub(m.at))
		var want []identity.PeerID
		for _, d := range p.Departures {
			if d.At.Equal(at) && !d.Held {
				want = append(want, d.Peer)
			}
			n, _ := m.s.Node(d.Peer)
			if d.At.Equal(at) && (d.Held && !n.Seat || d.Seat && !d.Held && n.Seat) {
				r.t.Fatalf("change %d: %s has a seat: %v, predicted %+v", i, d.Node, n.Seat, d)
			}
		}
		if !slices.Equal(out.Evicted, want) {
			r.t.Fatalf("change %d at %s: evicted %v, predicted %v", i, at, out.Evicted, want)
		}
	}
	if out := m.tick(24 * time.Hour); len(out.Evicted) > 0 {
		r.t.Fatalf("change %d: evicted %v after all that was predicted", i, out.Evicted)
	}
	return true
}

// constitutional are kinds of random changes of organisations, keys and limits.
var constitutional = []func(r *drawn, m *mesh) func(*Proposal){
	func(r *drawn, m *mesh) func(*Proposal) {
		return addKey(r.org(m) + " " + r.one("govern", "enroll", "emergency") + " 3")
	},
	func(r *drawn, m *mesh) func(*Proposal) {
		return removeKey(r.org(m) + " " + r.one("govern", "govern 2", "enroll", "emergency", "govern 3"))
	},
	func(r *drawn, m *mesh) func(*Proposal) {
		org, role := r.org(m), r.one("govern", "enroll", "emergency")
		return rotate(org+" "+role, org+" "+role+" 4")
	},
	func(r *drawn, _ *mesh) func(*Proposal) { return addOrg(r.one("new-a", "new-b", "alpha")) },
	func(r *drawn, m *mesh) func(*Proposal) { return removeOrg(r.org(m)) },
	func(r *drawn, m *mesh) func(*Proposal) { return removeOrg(r.org(m)) },
	func(r *drawn, _ *mesh) func(*Proposal) {
		return setLimits(Limits{Nodes: 1 + r.IntN(4), Proposals: r.IntN(3)})
	},
	func(r *drawn, m *mesh) func(*Proposal) { return act(actions[r.IntN(len(actions))](r, m)) },
}

// org is an organisation of m, or seldom one that is none.
func (r *drawn) org(m *mesh) string {
	orgs := m.s.Organisations()
	if r.IntN(12) == 0 {
		return "nobody"
	}
	return string(orgs[r.IntN(len(orgs))].ID)
}

// governs are the labels of the govern keys in force and of those that p adds.
func (m *mesh) governs(p *Proposal) []string {
	labels := map[string]string{}
	for _, org := range append(slices.Clone(orgNames), "new-a", "new-b", "nobody") {
		for _, n := range []string{"", " 2", " 3", " 4"} {
			labels[keyIDOf(string(org)+" govern"+n)] = string(org) + " govern" + n
		}
	}
	var out []string
	take := func(k Key) {
		if k.Role == KeyGovern && !slices.Contains(out, labels[k.ID()]) {
			out = append(out, labels[k.ID()])
		}
	}
	for _, o := range m.s.Organisations() {
		for _, k := range o.Keys {
			take(k)
		}
	}
	for _, a := range p.Actions {
		switch {
		case a.AddKey != nil:
			take(a.AddKey.Key)
		case a.RotateKey != nil:
			take(a.RotateKey.key())
		case a.AddOrganisation != nil:
			for _, k := range a.AddOrganisation.Keys {
				take(k)
			}
		}
	}
	return out
}

// The same for changes of the constitution, which drop organisations with their nodes and
// seats, and for what a quota holds back until the next tick.
func TestDryRunPredictsConstitution(t *testing.T) {
	r := &drawn{Rand: rand.New(rand.NewPCG(7, 8)), t: t}
	seen := map[string]int{}
	var m *mesh
	for i := range few(400) {
		if i%6 == 0 || len(m.s.Seats()) < m.s.Quorum() || len(m.s.Entries()) == 0 {
			m = r.mesh()
		}
		p := m.propose(func(p *Proposal) {
			p.Nonce, p.ConfirmQuorumLoss = fmt.Sprintf("%032x", i), r.IntN(4) == 0
			for range 1 + r.IntN(2) {
				constitutional[r.IntN(len(constitutional))](r, m)(p)
			}
		})
		labels := m.governs(p)
		if r.IntN(3) == 0 {
			labels = labels[:1+r.IntN(len(labels))]
		}
		raw := m.sign(m.payload(p), labels...)
		before, seats := m.s.Digest(), m.s.Seats()
		want := m.s.DryRun(raw)
		if m.s.Digest() != before {
			t.Fatalf("change %d: the dry run changed the state", i)
		}
		out := m.command(KindProposal, raw)
		seen[string(codeOf(out.Reason))]++
		if got := codeOf(out.Reason); got != codeOf(want.AsIs) {
			t.Fatalf("change %d: refused with %q, predicted %q", i, got, codeOf(want.AsIs))
		}
		if out.Reason == nil {
			r.compare(i, m, want, out, seats)
			seen["ordered "+string(out.Proposal.Class)]++
			for _, d := range want.Departures {
				seen["went "+string(d.Code)]++
			}
		}
	}
	t.Log(seen)
	for _, want := range []string{"", "threshold", "quorum_loss", "quota", "ordered constitution", "ordered narrow", "went organisation_removed", "went revoked"} {
		if seen[want] == 0 && !underRace {
			t.Errorf("no change was %q: the draw is too narrow to test it", want)
		}
	}
}
