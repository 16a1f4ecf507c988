package consensus

import (
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
)

func TestEntryID(t *testing.T) {
	base := Entry{Kind: attest.KindTDX, Measurement: measurement("x"), Roles: []string{RoleSeat}}
	e := must(NewEntry(base))
	if strings.Join(e.Roles, " ") != "member seat" {
		t.Errorf("roles %v", e.Roles)
	}
	if stated := must(NewEntry(e)); stated.ID != e.ID {
		t.Errorf("a stated id is not accepted: %s", stated.ID)
	}
	seen := map[string]string{e.ID: "base"}
	for name, change := range map[string]func(*Entry){
		"kind":        func(e *Entry) { e.Kind = attest.KindSEVSNP },
		"measurement": func(e *Entry) { e.Measurement = measurement("y") },
		"registers":   func(e *Entry) { e.Registers = map[string]string{"rtmr0": measurement("r")} },
		"roles":       func(e *Entry) { e.Roles = nil },
		"not_before":  func(e *Entry) { e.NotBefore = start },
		"not_after":   func(e *Entry) { e.NotAfter = start },
		"supersedes":  func(e *Entry) { e.Supersedes = []string{strings.Repeat("0", 16)} },
		"provenance":  func(e *Entry) { e.Provenance = strings.Repeat("0", 64) },
	} {
		c := base
		change(&c)
		got := must(NewEntry(c)).ID
		if other, ok := seen[got]; ok {
			t.Errorf("%s and %s have one id", name, other)
		}
		seen[got] = name
	}
}

func TestEntryRefuses(t *testing.T) {
	for name, change := range map[string]func(*Entry){
		"no kind":             func(e *Entry) { e.Kind = "" },
		"unsorted composite":  func(e *Entry) { e.Kind = "vtpm,sevsnp" },
		"short measurement":   func(e *Entry) { e.Measurement = "abcd" },
		"upper-case":          func(e *Entry) { e.Measurement = strings.ToUpper(e.Measurement) },
		"no measurement":      func(e *Entry) { e.Measurement = "" },
		"unknown role":        func(e *Entry) { e.Roles = []string{"king"} },
		"register name":       func(e *Entry) { e.Registers = map[string]string{"RTMR 0": measurement("r")} },
		"register value":      func(e *Entry) { e.Registers = map[string]string{"rtmr0": "00"} },
		"empty registers":     func(e *Entry) { e.Registers = map[string]string{} },
		"ends before it is":   func(e *Entry) { e.NotBefore, e.NotAfter = start, start },
		"year":                func(e *Entry) { e.NotAfter = time.Date(10001, 1, 1, 0, 0, 0, 0, time.UTC) },
		"supersedes twice":    func(e *Entry) { e.Supersedes = []string{strings.Repeat("0", 16), strings.Repeat("0", 16)} },
		"supersedes no id":    func(e *Entry) { e.Supersedes = []string{"x"} },
		"supersedes too many": func(e *Entry) { e.Supersedes = make([]string, MaxSupersedes+1) },
		"provenance":          func(e *Entry) { e.Provenance = "00" },
		"stated id":           func(e *Entry) { e.ID = strings.Repeat("0", 16) },
	} {
		e := Entry{Kind: attest.KindTDX, Measurement: measurement("x"), Roles: []string{RoleSeat}}
		change(&e)
		if got, err := NewEntry(e); err == nil {
			t.Errorf("%s: accepted as %+v", name, got)
		}
	}
}

func TestEntryValidity(t *testing.T) {
	m := started(t, 3)
	e := must(NewEntry(Entry{Kind: "sim", Measurement: measurement("x"), Roles: allRoles, NotBefore: m.at.Add(time.Hour), NotAfter: m.at.Add(2 * time.Hour),
		Supersedes: []string{entry(t, "old").ID}}))
	m.ok(m.order(m.propose(add(e)), 3))
	for d, want := range map[time.Duration]attest.Code{0: attest.CodeExpired, time.Hour: "", 2*time.Hour - time.Millisecond: "", 2 * time.Hour: attest.CodeExpired} {
		if got := m.s.allows(measured{"sim", e.Measurement, e.ID}, allRoles, m.at.Add(d)); got != want {
			t.Errorf("after %s: %q, want %q", d, got, want)
		}
	}
	unknown := must(NewEntry(Entry{Kind: "sim", Measurement: measurement("y"), Roles: allRoles, Supersedes: []string{strings.Repeat("0", 16)}}))
	m.refused(m.order(m.propose(add(unknown)), 3), attest.CodeUnknownEntry)
}

// Who holds which key, and who has signed so far, can be asked before all have signed.
func TestSignedBy(t *testing.T) {
	unsigned := genesisOf(t, 3)
	env := &envelope.Envelope{Payload: must(unsigned.Payload())}
	g := must(DecodeGenesis(env.Payload))
	if signed, missing, err := g.SignedBy(env); err != nil || len(signed) != 0 || len(missing) != 3 {
		t.Errorf("%v %v %v", signed, missing, err)
	}
	if err := env.Sign(signer(t, "beta govern")); err != nil {
		t.Fatal(err)
	}
	if signed, missing, err := g.SignedBy(env); err != nil || len(signed) != 1 || signed[0] != "beta" || len(missing) != 2 {
		t.Errorf("%v %v %v", signed, missing, err)
	}
	env.Signatures[0].Sig[0] ^= 1
	if _, _, err := g.SignedBy(env); err == nil {
		t.Error("a bad signature counts")
	}
	if org, role, ok := g.KeyOwner(key("beta enroll").Public()); !ok || org != "beta" || role != KeyEnroll {
		t.Errorf("%s %s %t", org, role, ok)
	}
	if _, _, ok := g.KeyOwner(key("mallory").Public()); ok {
		t.Error("a stranger's key has an owner")
	}
	if len(g.SimRoots()) != 1 || len(g.VTPMRoots()) != 0 {
		t.Errorf("roots %v %v", g.SimRoots(), g.VTPMRoots())
	}
}

func TestMerge(t *testing.T) {
	m := newMesh(t, 3)
	payload := m.bootstrapPayload(1)
	a, b := m.sign(payload, "alpha enroll"), m.sign(payload, "beta enroll")
	ab, ba := must(Merge(a, b)), must(Merge(b, a, b))
	if string(ab) != string(ba) {
		t.Error("the order of parts shows in the result")
	}
	if _, err := Merge(a, m.sign(m.bootstrapPayload(2), "beta enroll")); err == nil || !strings.Contains(err.Error(), "another payload") {
		t.Errorf("two payloads merged: %v", err)
	}
	if _, err := Merge(); err == nil {
		t.Error("nothing merged")
	}
	if _, err := Merge(a, []byte("x")); err == nil {
		t.Error("a part that is no envelope")
	}
}

// BenchmarkProposal is Apply of a 3-of-5 narrowing, signatures included.
func BenchmarkProposal(b *testing.B) {
	m := started(b, 5)
	raw := m.sign(m.payload(m.propose(remove("old"))), m.governors(3)...)
	b.ReportAllocs()
	for b.Loop() {
		c, err := m.s.judge(raw, m.at)
		if err != nil {
			b.Fatal(err)
		}
		m.s.PolicyState.clone().commit(c)
	}
}
