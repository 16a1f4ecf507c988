package consensus

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// refusing makes a finding that refuses, as verifiers do whose policy demands more of hardware
// than the subject has.
func refusing(r *AttestationResult) {
	r.Verdict, r.Reference, r.Codes = attest.VerdictContraindicated, "", []attest.Code{attest.CodeTCBBelowFloor}
	r.At = r.At.Add(time.Millisecond)
}

// noted makes an affirming finding with the note that a floor is ahead.
func noted(r *AttestationResult) {
	r.Codes, r.At = []attest.Code{attest.CodeFloorAhead}, r.At.Add(time.Millisecond)
}

func later1(d time.Duration) func(*AttestationResult) {
	return func(r *AttestationResult) { r.At = r.At.Add(d) }
}

// find orders one finding about subject by each verifier.
func (m *mesh) find(subject string, change func(*AttestationResult), verifiers ...string) Outcome {
	m.t.Helper()
	var batch [][]byte
	for _, v := range verifiers {
		batch = append(batch, m.result(v, subject, "new", change))
	}
	return m.ok(m.command(KindResults, batch...))
}

// A seat that a quorum of other organisations refuses leaves, with a leaf right after the
// finding that decided; fewer decide nothing, and its own organisation has no say.
func TestContradictedSeatLeaves(t *testing.T) {
	m := hardware(t, 5)
	m.attestAll(allNew)
	m.ok(m.command(KindCredential, m.credential("beta/n2", 1)))
	if out := m.find("beta/n1", refusing, "alpha/n1", "delta/n1", "beta/n2"); len(out.Leaves) != 3 || len(m.s.Seats()) != 5 || len(out.Evicted) != 0 {
		t.Fatalf("two organisations and its own: %+v", out)
	}
	out := m.find("beta/n1", refusing, "epsilon/n1", "gamma/n1")
	if len(out.Leaves) != 3 || !out.SeatsChanged || len(out.Evicted) != 1 || out.Evicted[0] != peerOf("beta/n1", 1) {
		t.Fatalf("three organisations: %+v", out)
	}
	leaf := must(ParseMembership(out.Leaves[1]))
	if leaf.Node.String() != "beta/n1" || leaf.Code != attest.CodeTCBBelowFloor || leaf.Cause != "result "+sha256Hex(out.Leaves[0]) {
		t.Errorf("leaf %+v", leaf)
	}
	if names(m.s.Seats()) != "alpha/n1 delta/n1 epsilon/n1 gamma/n1" || m.s.IsEligible(peerOf("beta/n1", 1), m.at) {
		t.Errorf("seats %s", names(m.s.Seats()))
	}
	n, _ := m.s.Node(peerOf("beta/n1", 1))
	if n.Standing != StandingEvicted || n.Code != attest.CodeTCBBelowFloor || n.Seat {
		t.Errorf("node %+v", n)
	}
	m.tick(2 * time.Second) // which judges measurements, and forgets nothing
	if n, _ := m.s.Node(peerOf("beta/n1", 1)); n.Standing != StandingEvicted {
		t.Errorf("after a tick: %+v", n)
	}
	for _, e := range m.s.Affirming(peerOf("alpha/n1", 1), m.at) {
		if e.Verifier.Node.Org == "beta" {
			t.Error("what it found of others still counts")
		}
	}
	if m.s.N() != 5 {
		t.Error("its organisation lost its vote")
	}
}

// An organisation whose nodes disagree refuses nobody, and who is refused can come back as a
// member when it shows better hardware.
func TestContradictedMember(t *testing.T) {
	m := hardware(t, 3)
	m.attestAll(allNew)
	for _, n := range []string{"alpha/n2", "beta/n2", "alpha/n3"} {
		m.ok(m.command(KindCredential, m.credential(n, 1)))
	}
	m.find("alpha/n2", later1(0), "beta/n1", "gamma/n1")
	m.ok(m.command(KindResults, m.result("gamma/n1", "beta/n2", "new"), m.result("alpha/n1", "beta/n2", "new")))
	m.find("alpha/n2", refusing, "gamma/n1")
	m.find("alpha/n2", later1(0), "beta/n2")
	if out := m.find("alpha/n2", refusing, "beta/n1"); len(out.Evicted) != 0 {
		t.Fatalf("beta's nodes disagree, and yet: %+v", out)
	}
	if out := m.find("alpha/n2", refusing, "beta/n2"); len(out.Evicted) != 1 || len(out.Leaves) != 1 {
		t.Fatalf("both of beta's nodes and gamma: %+v", out)
	}
	m.tick(2 * time.Second)
	if n, _ := m.s.Node(peerOf("alpha/n2", 1)); n.Standing != StandingEvicted || n.Code != attest.CodeTCBBelowFloor {
		t.Errorf("node %+v", n)
	}
	m.find("alpha/n2", later1(time.Second), "beta/n1", "gamma/n1")
	m.tick(2 * time.Second)
	if n, _ := m.s.Node(peerOf("alpha/n2", 1)); n.Standing != StandingMeasured {
		t.Errorf("after better findings: %+v", n)
	}
	// In a mesh of an older version findings evict nobody.
	old := started(t, 3)
	old.attestAll(allNew)
	if out := old.find("alpha/n1", refusing, "beta/n1", "gamma/n1"); len(out.Evicted) != 0 || len(old.s.Seats()) != 3 {
		t.Errorf("fsm_version 1: %+v", out)
	}
}

// A candidate that is contradicted is out like any other node: it catches up for nothing, and takes
// no seat even where some confirm it.
func TestContradictedTakesNoSeat(t *testing.T) {
	m := hardware(t, 3)
	m.attestAll(allNew)
	m.reboots("beta/n1", 2)
	ready := m.ready(m.readyOf("beta/n1", 2), boot("beta/n1", 2), "alpha/n1 1", "gamma/n1 1")
	m.find("beta/n1", refusing, "alpha/n1", "gamma/n1")
	if got := m.s.Candidates(); len(got) != 0 || m.s.IsCandidate(peerOf("beta/n1", 2)) {
		t.Errorf("candidates %s", names(got))
	}
	m.refused(m.command(KindReady, ready), attest.CodeTCBBelowFloor)
	m.find("beta/n1", later1(time.Second), "alpha/n1", "gamma/n1")
	m.ok(m.command(KindReady, ready))
}

// Seats that have left make the quorum smaller, and not what it takes to put out another one: two
// of five organisations, whose own seats are gone, put out nobody.
func TestContradictionTakesAMajority(t *testing.T) {
	m := hardware(t, 5)
	m.attestAll(allNew)
	for _, n := range []string{"alpha/n2", "beta/n2"} {
		m.ok(m.command(KindCredential, m.credential(n, 1)))
	}
	m.find("alpha/n1", refusing, "delta/n1", "epsilon/n1", "gamma/n1")
	m.find("beta/n1", refusing, "delta/n1", "epsilon/n1", "gamma/n1")
	if names(m.s.Seats()) != "delta/n1 epsilon/n1 gamma/n1" || m.s.Quorum() != 2 {
		t.Fatalf("seats %s, quorum %d", names(m.s.Seats()), m.s.Quorum())
	}
	m.find("gamma/n1", refusing, "alpha/n1", "beta/n1", "alpha/n2", "beta/n2")
	if names(m.s.Seats()) != "delta/n1 epsilon/n1 gamma/n1" {
		t.Errorf("seats %s", names(m.s.Seats()))
	}
	m.find("gamma/n1", refusing, "delta/n1")
	if names(m.s.Seats()) != "delta/n1 epsilon/n1" {
		t.Errorf("three of five: seats %s", names(m.s.Seats()))
	}
}

// A seat that had to stay is judged anew when there is room for it to leave: who refused it may have
// rebooted since.
func TestContradictionEndsWithItsFindings(t *testing.T) {
	m := hardware(t, 5)
	m.attestAll(allNew)
	for _, n := range []string{"beta/n1", "delta/n1", "epsilon/n1"} {
		m.reboots(n, 2)
	}
	if names(m.s.Seats()) != "alpha/n1 gamma/n1" {
		t.Fatalf("seats %s", names(m.s.Seats()))
	}
	m.find("gamma/n1", refusing, "alpha/n1", "beta/n1", "delta/n1")
	if names(m.s.Seats()) != "alpha/n1 gamma/n1" {
		t.Fatalf("seats %s", names(m.s.Seats()))
	}
	m.reboots("beta/n1", 3)
	m.reboots("delta/n1", 3)
	m.ok(m.command(KindReady, m.ready(m.readyOf("epsilon/n1", 2), boot("epsilon/n1", 2), "alpha/n1 1", "gamma/n1 1")))
	m.find("alpha/n1", later1(time.Minute), "epsilon/n1")
	if names(m.s.Seats()) != "alpha/n1 epsilon/n1 gamma/n1" {
		t.Errorf("seats %s: one organisation refuses gamma", names(m.s.Seats()))
	}
	m.find("gamma/n1", func(r *AttestationResult) { refusing(r); r.At = r.At.Add(time.Minute) }, "beta/n1", "delta/n1")
	if names(m.s.Seats()) != "alpha/n1 epsilon/n1" {
		t.Errorf("seats %s: three refuse gamma", names(m.s.Seats()))
	}
}

// Seats go only while the rest is a quorum: the last ones stay, whoever refuses them.
func TestContradictedQuorumStays(t *testing.T) {
	m := hardware(t, 3)
	m.attestAll(allNew)
	m.find("alpha/n1", refusing, "beta/n1", "gamma/n1")
	if names(m.s.Seats()) != "beta/n1 gamma/n1" {
		t.Fatalf("seats %s", names(m.s.Seats()))
	}
	m.find("beta/n1", refusing, "alpha/n1", "gamma/n1")
	m.find("gamma/n1", refusing, "alpha/n1", "beta/n1")
	if names(m.s.Seats()) != "beta/n1 gamma/n1" {
		t.Errorf("seats %s: nothing can be ordered any more", names(m.s.Seats()))
	}
	m.tick(2 * time.Second)
	m.ok(m.order(m.propose(remove("old")), 2))
}

// G10: a floor with grace. Before its time who is below gets a note, in the log; at its time
// verifiers refuse it, and it leaves. Where all seats that are below would leave too few,
// they are spared by verifiers and keep their vote, and nothing else of theirs counts.
func TestFloorWithGrace(t *testing.T) {
	low := snpClaims(func(c *attest.Claims) { c.SEVSNP.LaunchTCB.BootLoader = 2 })
	for _, tc := range []struct {
		below  []string
		spared string
	}{
		{[]string{"beta/n1"}, ""},
		{[]string{"beta/n1", "delta/n1"}, ""},
		{[]string{"alpha/n1", "beta/n1", "delta/n1"}, "alpha/n1 beta/n1 delta/n1"},
	} {
		t.Run(strings.Join(tc.below, " "), func(t *testing.T) {
			m := hardware(t, 5)
			m.attestAll(allNew)
			from := m.at.Add(10 * time.Second)
			m.ok(m.order(m.propose(act(milan(3, 0, from))), 3))
			m.finds("alpha", low, attest.CodeFloorAhead)
			for _, subject := range tc.below {
				var others []string
				for _, o := range m.orgs() {
					if !strings.HasPrefix(subject, string(o)) {
						others = append(others, string(o)+"/n1")
					}
				}
				m.find(subject, noted, others...)
			}
			if out := m.tick(9999 * time.Millisecond); out.DemandsChanged || len(m.s.Spared()) != 0 {
				t.Fatalf("before the time: %+v", out)
			}
			for _, subject := range tc.below {
				if ref := must(identity.ParseNodeRef(subject)); m.verdictOn(ref, low).Code() != attest.CodeFloorAhead {
					t.Errorf("%s before the time: %v", subject, m.verdictOn(ref, low).Reasons)
				}
			}
			// By a verifier's own clock the time has come; which seats are spared is not settled yet.
			if r := attest.Appraise(low, m.s.AttestPolicy(alphaNode, allRoles...), from.Add(TickInterval)); r.Code() != attest.CodeFloorAhead {
				t.Errorf("before the tick: %v", r.Reasons)
			}
			if r := attest.Appraise(low, m.s.AttestPolicy(alphaNode, allRoles...), from.Add(dueWithin)); r.Code() != attest.CodeTCBBelowFloor {
				t.Errorf("no tick comes: %v", r.Reasons)
			}
			if out := m.tick(time.Millisecond); !out.DemandsChanged || len(out.Leaves) != 0 {
				t.Fatalf("at the time: %+v", out)
			}
			if got := fmt.Sprint(m.s.Spared()); got != "["+tc.spared+"]" {
				t.Fatalf("spared %s, want %s", got, tc.spared)
			}
			for _, o := range m.orgs() {
				ref := identity.NodeRef{Org: o, Name: "n1"}
				want := attest.CodeTCBBelowFloor
				if strings.Contains(tc.spared, ref.String()) {
					want = attest.CodeFloorAhead
				}
				if got := m.verdictOn(ref, low).Code(); got != want {
					t.Errorf("verifiers find %q on %s, want %q", got, ref, want)
				}
			}
			for _, ref := range m.s.Spared() {
				if n, _ := m.s.NodeByRef(ref); !n.Seat || m.s.IsEligible(n.Peer, m.at) {
					t.Errorf("%s is a seat: %t, and eligible", ref, n.Seat)
				}
			}
			if tc.spared != "" {
				// Who replays the chain spares nobody: a client trusts no seat that is below.
				s := must(ReplayPolicy(m.g, m.s.PolicyChain()))
				if r := attest.Appraise(low, s.AttestPolicy(alphaNode, allRoles...), m.at); r.Code() != attest.CodeTCBBelowFloor {
					t.Errorf("a client finds %v", r.Reasons)
				}
				if out := m.tick(2 * time.Second); out.DemandsChanged {
					t.Error("nothing came due, nobody else is spared")
				}
				m.ok(m.order(m.propose(remove("old")), 3))
				return
			}
			for _, subject := range tc.below { // verifiers say what they find now
				var others []string
				for _, seat := range m.s.Seats() {
					if seat.Ref.String() != subject {
						others = append(others, seat.Ref.String())
					}
				}
				m.find(subject, func(r *AttestationResult) { refusing(r); r.At = r.At.Add(time.Second) }, others...)
			}
			for _, seat := range m.s.Seats() {
				if slices.Contains(tc.below, seat.Ref.String()) {
					t.Errorf("%s is still a seat", seat.Ref)
				}
			}
			m.tick(2 * time.Second)
			m.ok(m.order(m.propose(remove("old")), 3))
		})
	}
}

// G9: a floor that was announced is known to hit a majority of the seats; to bring it forward
// must be meant. What it hits, when nobody was warned, the state cannot know.
func TestFloorBroughtForward(t *testing.T) {
	for _, below := range []int{1, 3} {
		m := hardware(t, 5)
		m.attestAll(allNew)
		m.ok(m.order(m.propose(act(milan(3, 0, m.at.Add(24*time.Hour)))), 3))
		for _, subject := range m.orgs()[:below] {
			for _, o := range m.orgs() {
				if o != subject {
					m.find(string(subject)+"/n1", noted, string(o)+"/n1")
				}
			}
		}
		m.ok(m.order(m.propose(act(milan(2, 0))), 3)) // lower than what they were warned of
		if below == 1 {
			m.ok(m.order(m.propose(act(milan(3, 0))), 3))
			continue
		}
		m.refused(m.order(m.propose(act(milan(4, 0))), 3), attest.CodeQuorumLoss)
		m.refused(m.order(m.propose(act(milan(3, 0, m.at.Add(-time.Hour)))), 3), attest.CodeQuorumLoss)
		m.ok(m.order(m.propose(act(milan(3, 0, m.at.Add(48*time.Hour))), remove("old")), 3))
		m.ok(m.order(m.propose(act(milan(3, 0)), func(p *Proposal) { p.ConfirmQuorumLoss = true }), 3))
	}
}

// Of two seats each is needed: the word of the other one is enough to spare it.
func TestFloorSparesOneOfTwo(t *testing.T) {
	m := hardware(t, 2)
	m.attestAll(allNew)
	m.ok(m.order(m.propose(act(milan(3, 0, m.at.Add(10*time.Second)))), 2))
	m.find("beta/n1", noted, "alpha/n1")
	m.tick(10 * time.Second)
	if got := fmt.Sprint(m.s.Spared()); got != "[beta/n1]" {
		t.Errorf("spared %s", got)
	}
}

// verdictOn is what verifiers find about claims of one node under the ordered state.
func (m *mesh) verdictOn(ref identity.NodeRef, c attest.Claims) attest.Result {
	return attest.Appraise(c, m.s.AttestPolicy(ref, allRoles...), m.at)
}

// Item 15: old and new are both in force until the time that the new entry says, and then the
// old one ends everywhere at once; who has moved in time stays.
func TestSupersede(t *testing.T) {
	for _, tc := range []struct {
		name  string
		moved []string
		seats string
	}{
		{"all have moved", []string{"alpha/n1", "beta/n1", "gamma/n1"}, "alpha/n1 beta/n1 gamma/n1"},
		{"one is late", []string{"alpha/n1", "gamma/n1"}, "alpha/n1 gamma/n1"},
		{"nobody has moved", nil, "alpha/n1 beta/n1 gamma/n1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := hardware(t, 3)
			m.attestAll(func(string) string { return "old" })
			at := m.at.Add(10 * time.Second)
			next := must(NewEntry(Entry{Kind: "sim", Measurement: measurement("next"), Roles: allRoles, Supersedes: []string{entry(t, "old").ID}, SupersedeAt: at}))
			m.ok(m.order(m.propose(add(next)), 3))
			var batch [][]byte
			for _, s := range tc.moved {
				m.ok(m.command(KindCredential, m.credential(s[:len(s)-1]+"2", 1)))
				for _, v := range []string{"alpha/n1", "beta/n1", "gamma/n1"} {
					if v != s {
						batch = append(batch, m.result(v, s, "next", func(r *AttestationResult) { r.Reference, r.At = next.ID, r.At.Add(time.Millisecond) }))
					}
				}
			}
			if batch != nil {
				m.ok(m.command(KindResults, batch...))
			}
			run := measured{"sim", measurement("old"), entry(t, "old").ID}
			for d, want := range map[time.Duration]attest.Code{0: "", 10*time.Second - time.Millisecond: "", 10 * time.Second: attest.CodeExpired, 24 * time.Hour: attest.CodeExpired} {
				if got := m.s.allows(run, allRoles, at.Add(d-10*time.Second)); got != want {
					t.Errorf("after %s: %q, want %q", d, got, want)
				}
			}
			if out := m.tick(9 * time.Second); len(out.Evicted) != 0 || len(out.Leaves) != 0 || out.DemandsChanged {
				t.Fatalf("before its end: %+v", out)
			}
			out := m.tick(time.Second)
			if !out.DemandsChanged || names(m.s.Seats()) != tc.seats {
				t.Fatalf("at its end: %+v, seats %s", out, names(m.s.Seats()))
			}
			for _, raw := range out.Leaves {
				if leaf := must(ParseMembership(raw)); leaf.Code != attest.CodeExpired || leaf.Node.String() != "beta/n1" {
					t.Errorf("leaf %+v", leaf)
				}
			}
			spared := len(m.s.Spared())
			if want := map[bool]int{true: 3, false: 0}[tc.moved == nil]; spared != want {
				t.Errorf("%d seats are spared, want %d", spared, want)
			}
			old := attest.Claims{Kind: attest.KindSim, Genuine: true, Bound: true, Measurement: measurement("old"), Sim: &attest.SimClaims{}}
			refused := !m.verdictOn(alphaNode, old).Affirming()
			if other := m.verdictOn(identity.NodeRef{Org: "beta", Name: "n9"}, old); other.Affirming() || refused != (tc.moved != nil) {
				t.Errorf("a seat is refused: %t; a member: %v", refused, other.Reasons)
			}
			m.tick(2 * time.Second)
			m.ok(m.order(m.propose(remove("new")), 2)) // something can still be ordered
			if tc.moved != nil {
				return
			}
			// Seats that are spared go only by an order that says so, not by the way.
			m.refused(m.order(m.propose(removeID(entry(t, "old").ID)), 3), attest.CodeQuorumLoss)
			m.ok(m.order(m.propose(readmit(entry(t, "old"))), 2))
			if out := m.tick(2 * time.Second); !out.DemandsChanged || len(m.s.Spared()) != 0 || !m.verdictOn(identity.NodeRef{Org: "beta", Name: "n9"}, old).Affirming() {
				t.Errorf("the old release is allowed again: %+v, spared %v", out, m.s.Spared())
			}
		})
	}
}

// What a later entry said of an older one's end stays when it is voted out itself: a removal
// lets nothing in. To keep the old release the organisations say so.
func TestSupersedeStays(t *testing.T) {
	m := hardware(t, 3)
	old, at := entry(t, "old"), m.at.Add(time.Hour)
	next := must(NewEntry(Entry{Kind: "sim", Measurement: measurement("next"), Roles: allRoles, Supersedes: []string{old.ID}, SupersedeAt: at}))
	later := must(NewEntry(Entry{Kind: "sim", Measurement: measurement("later"), Roles: allRoles, Supersedes: []string{old.ID}, SupersedeAt: at.Add(time.Hour)}))
	m.ok(m.order(m.propose(add(next), add(later)), 3))
	if got := m.s.Ends(old.ID); !got.Equal(at) {
		t.Errorf("ends %s, want the earlier %s", got, at)
	}
	if out := m.ok(m.order(m.propose(removeID(next.ID), removeID(later.ID)), 2)); out.Proposal.Class != ClassNarrow || !m.s.Ends(old.ID).Equal(at) {
		t.Errorf("class %s, ends %s", out.Proposal.Class, m.s.Ends(old.ID))
	}
	m.refused(m.order(m.propose(add(old)), 3), attest.CodeReplayed)
	m.refused(m.order(m.propose(readmit(old)), 1), attest.CodeThreshold)
	if out := m.ok(m.order(m.propose(readmit(old)), 3)); out.Proposal.Class != ClassWiden || !m.s.Ends(old.ID).IsZero() {
		t.Errorf("class %s, ends %s", out.Proposal.Class, m.s.Ends(old.ID))
	}
	m.refused(m.order(m.propose(readmit(old)), 3), attest.CodeReplayed)
	brief := must(NewEntry(Entry{Kind: "sim", Measurement: measurement("brief"), Roles: allRoles, Supersedes: []string{old.ID}, SupersedeAt: at}))
	m.ok(m.order(m.propose(add(brief)), 3))
	m.ok(m.order(m.propose(removeID(old.ID)), 3)) // what is not in force has no end
	if len(m.s.platforms.ends) != 0 {
		t.Errorf("ends %v", m.s.platforms.ends)
	}
	m.ok(m.order(m.propose(readmit(old)), 3))
	// An entry that would end a majority of the seats' release at once is refused.
	m.attestAll(func(string) string { return "old" })
	now := must(NewEntry(Entry{Kind: "sim", Measurement: measurement("now"), Roles: allRoles, Supersedes: []string{old.ID}, SupersedeAt: m.at.Add(-time.Second)}))
	m.refused(m.order(m.propose(add(now)), 3), attest.CodeQuorumLoss)
}

// Auditors, who have the leaves and no ticks, derive the same leaves and the same policy.
func TestPlatformsAudited(t *testing.T) {
	m := hardware(t, 5)
	replayed := NewState(m.g)
	if out := replayed.Apply(m.log[0]); out.Reason != nil {
		t.Fatal(out.Reason)
	}
	var derived [][]byte
	audit := func(out Outcome) {
		t.Helper()
		for _, leaf := range out.Leaves {
			if len(derived) > 0 {
				if !bytes.Equal(derived[0], leaf) {
					t.Fatalf("the log goes on with another leaf than follows:\n%s\n%s", leaf, derived[0])
				}
				derived = derived[1:]
				continue
			}
			got, err := replayed.Replay(leaf)
			if err != nil {
				t.Fatal(err)
			}
			derived = append(derived, got.Leaves[1:]...)
		}
	}
	var all [][]byte
	for _, v := range m.orgs() {
		for _, o := range m.orgs() {
			if v != o {
				all = append(all, m.result(string(v)+"/n1", string(o)+"/n1", map[bool]string{true: "old", false: "new"}[o == "gamma"]))
			}
		}
	}
	audit(m.ok(m.command(KindResults, all...)))
	next := must(NewEntry(Entry{Kind: "sim", Measurement: measurement("next"), Roles: allRoles, Supersedes: []string{entry(t, "old").ID}, SupersedeAt: m.at.Add(10 * time.Second)}))
	audit(m.ok(m.order(m.propose(add(next), act(milan(3, 0)), act(limit(alphas, "a"))), 4)))
	audit(m.find("beta/n1", refusing, "alpha/n1", "delta/n1", "epsilon/n1", "gamma/n1"))
	audit(m.tick(11 * time.Second)) // gamma's release has ended
	if len(derived) != 0 || names(m.s.Seats()) != "alpha/n1 delta/n1 epsilon/n1" {
		t.Fatalf("%d leaves are missing, seats %s", len(derived), names(m.s.Seats()))
	}
	// A floor that has come due is no longer ahead, which an auditor cannot know: what the seats
	// ordered then is no finding.
	audit(m.ok(m.order(m.propose(act(milan(4, 0, m.at.Add(10*time.Second)))), 3)))
	for _, subject := range []string{"alpha/n1", "delta/n1", "epsilon/n1"} {
		for _, v := range []string{"alpha/n1", "delta/n1", "epsilon/n1"} {
			if v != subject {
				audit(m.find(subject, noted, v))
			}
		}
	}
	m.refused(m.order(m.propose(act(milan(5, 0))), 3), attest.CodeQuorumLoss)
	audit(m.tick(10 * time.Second))
	audit(m.ok(m.order(m.propose(act(milan(5, 0))), 3)))
	if replayed.PolicyDigest() != m.s.PolicyDigest() || !reflect.DeepEqual(replayed.contradictedImage().Contradicted, m.s.contradictedImage().Contradicted) || names(replayed.Seats()) != names(m.s.Seats()) {
		t.Error("an auditor comes to another state")
	}
}
