package consensus

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

func TestThresholds(t *testing.T) {
	for n, want := range map[int][2]int{1: {1, 1}, 2: {2, 2}, 3: {2, 2}, 4: {3, 3}, 5: {3, 4}, 6: {4, 4}, 7: {4, 5}} {
		if got := [2]int{NarrowThreshold(n), WidenThreshold(n)}; got != want {
			t.Errorf("%d organisations: narrow and widen at %v, want %v", n, got, want)
		}
	}
}

// Exactly the threshold of distinct organisations is needed, for every size of mesh.
func TestThresholdIsEnforced(t *testing.T) {
	for _, n := range []int{2, 3, 4, 5, 7} {
		for _, tc := range []struct {
			name   string
			change func(*Proposal)
			k      int
			class  Class
		}{
			{"widen", add(entry(t, "x")), WidenThreshold(n), ClassWiden},
			{"narrow", remove("old"), NarrowThreshold(n), ClassNarrow},
		} {
			t.Run(fmt.Sprintf("%s of %d", tc.name, n), func(t *testing.T) {
				m := started(t, n)
				m.refused(m.order(m.propose(tc.change), tc.k-1), attest.CodeThreshold)
				out := m.ok(m.order(m.propose(tc.change), tc.k))
				if out.Proposal.Class != tc.class || len(out.Proposal.Organisations) != tc.k || !out.EpochChanged || m.s.Epoch() != 1 {
					t.Errorf("got %+v", out.Proposal)
				}
				if want := map[Class]uint64{ClassWiden: 1, ClassNarrow: 0}[tc.class]; m.s.Base() != want {
					t.Errorf("base %d, want %d", m.s.Base(), want)
				}
			})
		}
	}
}

func TestProposalAttacks(t *testing.T) {
	other := genesisOf(t, 5)
	other.Nonce = strings.Repeat("cd", 32)
	otherMesh := newMeshOf(t, other)
	x := entry(t, "x")
	widen := func(m *mesh, labels ...string) []byte { return m.sign(m.payload(m.propose(add(x))), labels...) }
	four := []string{"alpha govern", "beta govern", "gamma govern", "delta govern"}
	for name, tc := range map[string]struct {
		code attest.Code
		make func(m *mesh) []byte
	}{
		"k-1 organisations": {attest.CodeThreshold, func(m *mesh) []byte { return widen(m, four[:3]...) }},
		"k signatures, k-1 organisations": {attest.CodeThreshold, func(m *mesh) []byte {
			return widen(m, "alpha govern", "alpha govern 2", "beta govern", "gamma govern")
		}},
		"enroll key": {attest.CodeWrongSigner, func(m *mesh) []byte { return widen(m, append(four[:3:3], "delta enroll")...) }},
		"emergency":  {attest.CodeWrongSigner, func(m *mesh) []byte { return widen(m, append(four[:3:3], "delta emergency")...) }},
		"stranger":   {attest.CodeWrongSigner, func(m *mesh) []byte { return widen(m, append(four[:4:4], "mallory")...) }},
		"signature repeated": {attest.CodeWrongSigner, func(m *mesh) []byte {
			env := must(envelope.Parse(widen(m, four[:3]...)))
			env.Signatures = append(env.Signatures, env.Signatures[0])
			return env.Marshal()
		}},
		"one key under two names": {attest.CodeWrongSigner, func(m *mesh) []byte {
			env := must(envelope.Parse(widen(m, four[:3]...)))
			env.Signatures = append(env.Signatures, envelope.Signature{KeyID: must(envelope.KeyID(key("delta govern").Public())), Sig: env.Signatures[0].Sig})
			return env.Marshal()
		}},
		"empty key id": {attest.CodeWrongSigner, func(m *mesh) []byte {
			env := must(envelope.Parse(widen(m, four...)))
			env.Signatures[0].KeyID = ""
			return env.Marshal()
		}},
		"unsigned": {attest.CodeWrongSigner, func(m *mesh) []byte {
			return (&envelope.Envelope{Payload: m.payload(m.propose(add(x)))}).Marshal()
		}},
		"content swapped after approval": {attest.CodeWrongSigner, func(m *mesh) []byte {
			env := must(envelope.Parse(widen(m, four...)))
			env.Payload = m.payload(m.propose(add(entry(t, "y"))))
			return env.Marshal()
		}},
		"payload re-encoded": {attest.CodeMalformed, func(m *mesh) []byte {
			return m.sign([]byte(strings.Replace(string(m.payload(m.propose(add(x)))), `"base":0`, `"base": 0`, 1)), four...)
		}},
		"envelope re-encoded": {attest.CodeMalformed, func(m *mesh) []byte {
			return []byte(strings.Replace(string(widen(m, four...)), `,"signatures"`, `, "signatures"`, 1))
		}},
		"unknown action": {attest.CodeMalformed, func(m *mesh) []byte {
			return m.sign([]byte(strings.Replace(string(m.payload(m.propose(add(x)))), `"add_entry"`, `"add_organisation"`, 1)), four...)
		}},
		"declared class": {attest.CodeMalformed, func(m *mesh) []byte {
			return m.sign([]byte(strings.Replace(string(m.payload(m.propose(add(x)))), `"actions"`, `"class":"narrow","actions"`, 1)), four[:3]...)
		}},
		"another statement": {attest.CodeMalformed, func(m *mesh) []byte { return m.credential("alpha/n1", 1) }},
		"other mesh": {attest.CodeWrongMesh, func(*mesh) []byte {
			return otherMesh.sign(otherMesh.payload(otherMesh.propose(add(x))), four...)
		}},
		"other incarnation": {attest.CodeWrongIncarnation, func(m *mesh) []byte {
			return m.sign(m.payload(m.propose(add(x), func(p *Proposal) { p.Incarnation = 1 })), four...)
		}},
		"future base": {attest.CodeBehind, func(m *mesh) []byte {
			return m.sign(m.payload(m.propose(remove("old"), func(p *Proposal) { p.Base = 1 })), four...)
		}},
		"expired": {attest.CodeProposalExpired, func(m *mesh) []byte {
			return m.sign(m.payload(m.propose(add(x), func(p *Proposal) { p.Created, p.Expires = start, m.s.Now() })), four...)
		}},
		"expired narrowing": {attest.CodeProposalExpired, func(m *mesh) []byte {
			return m.sign(m.payload(m.propose(remove("old"), func(p *Proposal) { p.Created, p.Expires = start, m.s.Now() })), four...)
		}},
		"from the future": {attest.CodeProposalExpired, func(m *mesh) []byte {
			return m.sign(m.payload(m.propose(add(x), func(p *Proposal) { p.Created = m.at.Add(24 * time.Hour); p.Expires = m.at.Add(15 * 24 * time.Hour) })), four...)
		}},
		"known entry":    {attest.CodeReplayed, func(m *mesh) []byte { return m.sign(m.payload(m.propose(add(entry(t, "old")))), four...) }},
		"unknown target": {attest.CodeUnknownEntry, func(m *mesh) []byte { return m.sign(m.payload(m.propose(remove("x"))), four...) }},
		"half of it":     {attest.CodeUnknownEntry, func(m *mesh) []byte { return m.sign(m.payload(m.propose(remove("old"), remove("x"))), four...) }},
		"kind not admitted": {attest.CodeKindNotAllowed, func(m *mesh) []byte {
			e := must(NewEntry(Entry{Kind: "sevsnp", Measurement: measurement("x"), Roles: []string{RoleSeat}}))
			return m.sign(m.payload(m.propose(add(e))), four...)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			m := started(t, 5)
			m.refused(m.command(KindProposal, tc.make(m)), tc.code)
		})
	}
}

func TestProposalMalformed(t *testing.T) {
	m := started(t, 2)
	for name, change := range map[string]func(*Proposal){
		"no action":    func(p *Proposal) { p.Actions = []Action{} },
		"empty action": func(p *Proposal) { p.Actions = []Action{{}} },
		"two in one": func(p *Proposal) {
			p.Actions = []Action{{AddEntry: &AddEntry{Entry: entry(t, "x")}, RemoveEntry: &RemoveEntry{ID: strings.Repeat("0", 16)}}}
		},
		"two targets": func(p *Proposal) {
			p.Actions = []Action{{RemoveEntry: &RemoveEntry{ID: strings.Repeat("0", 16), Measurement: measurement("old")}}}
		},
		"no target":       func(p *Proposal) { p.Actions = []Action{{RemoveEntry: &RemoveEntry{}}} },
		"forged entry id": func(p *Proposal) { p.Actions[0].AddEntry.Measurement = measurement("y") },
		"nonce":           func(p *Proposal) { p.Nonce = "" },
		"too long":        func(p *Proposal) { p.Expires = p.Created.Add(MaxProposalLifetime + time.Second) },
		"backwards":       func(p *Proposal) { p.Expires = p.Created },
		"no mesh":         func(p *Proposal) { p.MeshID[0]++; p.MeshID = [32]byte{} },
		"too many": func(p *Proposal) {
			for range MaxActions {
				remove("old")(p)
			}
		},
	} {
		if _, err := m.propose(add(entry(t, "x")), change).Payload(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestProposalReplayed(t *testing.T) {
	m := started(t, 3)
	raw := m.sign(m.payload(m.propose(remove("old"))), m.governors(2)...)
	m.ok(m.command(KindProposal, raw))
	m.refused(m.command(KindProposal, raw), attest.CodeReplayed)
	// Other signatures over the same payload are the same proposal.
	env := must(envelope.Parse(raw))
	m.refused(m.command(KindProposal, m.sign(env.Payload, m.governors(3)...)), attest.CodeReplayed)
}

func TestStaleBase(t *testing.T) {
	m := started(t, 3)
	first, second, cut := m.propose(add(entry(t, "x"))), m.propose(add(entry(t, "y"))), m.propose(remove("old"))
	second.Nonce, cut.Nonce = strings.Repeat("1", 32), strings.Repeat("2", 32)
	m.ok(m.order(first, 3))
	m.refused(m.order(second, 3), attest.CodeStaleBase)
	m.ok(m.order(cut, 2)) // a narrowing never goes stale
	if m.s.Epoch() != 2 || m.s.Base() != 1 {
		t.Errorf("epoch %d base %d", m.s.Epoch(), m.s.Base())
	}
	// Nor does a widening go stale by a narrowing.
	late := m.propose(add(entry(t, "y")))
	m.ok(m.order(m.propose(remove("new"), func(p *Proposal) { p.ConfirmQuorumLoss = true }), 2))
	m.ok(m.order(late, 3))
}

// A widening that was signed before a removal must not undo it.
func TestReadmitIsExplicit(t *testing.T) {
	m := started(t, 3)
	wider := must(NewEntry(Entry{Kind: "sim", Measurement: measurement("old"), Roles: []string{RoleTrainer}}))
	late := m.propose(add(wider))
	m.ok(m.order(m.propose(remove("old")), 2))
	m.refused(m.order(late, 3), attest.CodeRevoked)
	m.refused(m.order(m.propose(add(entry(t, "old"))), 3), attest.CodeRevoked)
	if code := m.s.allows(measured{"sim", measurement("old"), entry(t, "old").ID}, allRoles, m.at); code != attest.CodeRevoked {
		t.Errorf("code %q", code)
	}
	m.refused(m.order(m.propose(readmit(entry(t, "old"))), 1), attest.CodeThreshold)
	m.ok(m.order(m.propose(readmit(entry(t, "old"))), 2))
	if len(m.s.Revoked()) != 0 || len(m.s.Entries()) != 2 {
		t.Errorf("%v %v", m.s.Entries(), m.s.Revoked())
	}
}

// An addition that another entry covers still widens, so that narrowings commute.
func TestCoveredAdditionWidens(t *testing.T) {
	m := started(t, 5)
	less := must(NewEntry(Entry{Kind: "sim", Measurement: measurement("old"), Roles: []string{RoleMember}}))
	m.refused(m.order(m.propose(add(less)), 3), attest.CodeThreshold)
	m.refused(m.order(m.propose(removeID(entry(t, "old").ID), readmit(less)), 3), attest.CodeThreshold)
	m.ok(m.order(m.propose(removeID(entry(t, "old").ID), readmit(less)), 4))
}

func TestRegistersDecide(t *testing.T) {
	m := started(t, 3)
	narrow := must(NewEntry(Entry{Kind: "sim", Measurement: measurement("x"), Roles: allRoles, Registers: map[string]string{"rtmr0": strings.Repeat("aa", 48)}}))
	other := must(NewEntry(Entry{Kind: "sim", Measurement: measurement("x"), Roles: allRoles, Registers: map[string]string{"rtmr0": strings.Repeat("bb", 48)}}))
	m.ok(m.order(m.propose(add(narrow)), 3))
	m.ok(m.order(m.propose(add(other)), 3))
	m.ok(m.order(m.propose(removeID(narrow.ID)), 2))
	if code := m.s.allows(measured{"sim", measurement("x"), narrow.ID}, allRoles, m.at); code != attest.CodeRevoked {
		t.Errorf("a node that matched the removed registers: %q, want revoked", code)
	}
	if code := m.s.allows(measured{"sim", measurement("x"), other.ID}, allRoles, m.at); code != "" {
		t.Errorf("a node that matched the others: %q", code)
	}
}

// Narrowings commute: in whatever order they are ordered, the same is allowed, revoked,
// and the epoch and base are the same.
func TestNarrowingsCommute(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var entries []Entry
	for i := range 6 {
		entries = append(entries, entry(t, fmt.Sprintf("e%d", i)))
	}
	for round := range 8 {
		g := genesisOf(t, 3)
		g.Policy.Entries = append([]Entry{}, entries...)
		g.Policy.Entries = append(g.Policy.Entries, must(NewEntry(Entry{Kind: "sim", Measurement: measurement("e0"), Roles: []string{RoleTrainer}})))
		sortEntries(g.Policy.Entries)
		a, b := newMeshOf(t, g), newMeshOf(t, g)
		a.start()
		b.start()
		var cuts []*Proposal
		for i := range 5 {
			e := g.Policy.Entries[rng.IntN(len(g.Policy.Entries))]
			cut := RemoveEntry{ID: e.ID}
			if rng.IntN(2) == 0 {
				cut = RemoveEntry{Measurement: e.Measurement}
			}
			p := a.propose()
			p.Nonce, p.Actions = fmt.Sprintf("%032x", i), []Action{{RemoveEntry: &cut}}
			cuts = append(cuts, p)
		}
		for _, p := range cuts {
			a.ok(a.order(p, 2))
		}
		for _, i := range rng.Perm(len(cuts)) {
			b.ok(b.order(cuts[i], 2))
		}
		if !reflect.DeepEqual(a.s.Entries(), b.s.Entries()) || !reflect.DeepEqual(a.s.Revoked(), b.s.Revoked()) || a.s.Epoch() != b.s.Epoch() || a.s.Base() != b.s.Base() {
			t.Fatalf("round %d: two orders of the same narrowings differ", round)
		}
	}
}

const draftText = `
mesh_id: MESH
incarnation: 0
base: 0
nonce: "NONCE"
created: 2026-03-01T13:00:00Z
expires: 2026-03-02T13:00:00Z
actions:
  - add_entry: {kind: sim, measurement: MM, roles: [trainer], not_after: 2027-01-01T00:00:00Z}
  - remove_entry: {measurement: OLD}
`

func TestDraft(t *testing.T) {
	m := started(t, 3)
	text := strings.NewReplacer("MESH", m.g.MeshID().String(), "NONCE", strings.Repeat("0", 32), "MM", measurement("x"), "OLD", measurement("old")).Replace(draftText)
	payload, err := ParseDraft("d.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	p, err := DecodeProposal(payload)
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(p.Describe(), "\n")
	for _, want := range []string{"+ allow ", measurement("x"), "as member, trainer until 2027-01-01T00:00:00Z UNPROVENANCED", "- revoke every entry with measurement " + measurement("old"), "class widen"} {
		if !strings.Contains(all, want) {
			t.Errorf("the description lacks %q:\n%s", want, all)
		}
	}
	m.ok(m.command(KindProposal, m.sign(payload, m.governors(2)...)))
	for from, to := range map[string]string{"base: 0": "base: -1", "incarnation: 0": "bogus: 0", "trainer": "king", "2027-01-01": "2020",
		`"0000`: `"zz00`, "measurement: " + measurement("old"): "what: x", "mesh_id: ": "mesh_id: AB", "actions:": "actions: []\nacts:"} {
		if _, err := ParseDraft("d.yaml", []byte(strings.Replace(text, from, to, 1))); err == nil || !strings.HasPrefix(err.Error(), "d.yaml") {
			t.Errorf("%s: got %v", to, err)
		}
	}
	// The frame that a node hands out is a draft once it has an action.
	frame := strings.Replace(string(m.s.NewDraft([16]byte{1}, m.at)), "actions: []", "actions: [{remove_entry: {measurement: "+measurement("new")+"}}]", 1)
	if payload, err = ParseDraft("f.yaml", []byte(frame)); err != nil {
		t.Fatal(err)
	}
	if p := must(DecodeProposal(payload)); p.Base != m.s.Base() || p.MeshID != m.g.MeshID() {
		t.Errorf("got %+v", p)
	}
}

// A neutral seat has a vote in Raft, none on proposals.
func TestNeutralSeat(t *testing.T) {
	g := genesisOf(t, 3)
	g.Organisations[1].Roles = []string{OrgSeat} // beta
	m := newMeshOf(t, g)
	m.start()
	if m.s.N() != 2 || len(m.s.Seats()) != 3 || m.s.Quorum() != 2 {
		t.Fatalf("N %d, seats %d, quorum %d", m.s.N(), len(m.s.Seats()), m.s.Quorum())
	}
	p := m.payload(m.propose(remove("old")))
	m.refused(m.command(KindProposal, m.sign(p, "alpha govern", "beta govern")), attest.CodeWrongSigner)
	m.ok(m.command(KindProposal, m.sign(p, "alpha govern", "gamma govern")))
}

func TestAcceptedSurvivesJSON(t *testing.T) {
	want := Accepted{ID: ProposalID{1, 2, 31: 3}, Class: ClassWiden, Epoch: 4, Base: 2, Organisations: []identity.OrgID{"alpha", "beta"}}
	raw, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got Accepted
	if err := json.Unmarshal(raw, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %+v, %v, want %+v", raw, got, err, want)
	}
	for _, bad := range []string{"", "01", strings.Repeat("AB", 32), strings.Repeat("g", 64), strings.Repeat("0", 66)} {
		if err := new(ProposalID).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q was taken for a proposal id", bad)
		}
	}
}
