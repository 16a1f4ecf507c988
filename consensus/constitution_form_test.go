package consensus

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/internal/envelope"
)

func TestConstitutionDescribed(t *testing.T) {
	m := governing(t, 3)
	p := m.propose(amendments...)
	all := strings.Join(p.Describe(), "\n")
	for _, want := range []string{"class constitution (computed)", "! alpha: enroll key " + keyIDOf("alpha enroll 2") + " comes in place of key " + keyIDOf("alpha enroll"), "are void",
		"! beta: one more key, emergency key " + keyIDOf("beta emergency 2"), "! alpha: the govern key " + keyIDOf("alpha govern 2") + " goes",
		"! organisation eta comes in as member, with govern key " + keyIDOf("eta govern"), "! organisation beta goes", "7 nodes; between two ticks 9 results, 64 credentials", "! outside witnesses: " + witness} {
		if !strings.Contains(all, want) {
			t.Errorf("the description lacks %q:\n%s", want, all)
		}
	}
}

const amendText = `
mesh_id: MESH
incarnation: 0
base: 0
nonce: "00000000000000000000000000000000"
created: 2026-03-01T13:00:00Z
expires: 2026-03-02T13:00:00Z
actions:
  - rotate_key: {organisation: alpha, role: enroll, old: OLDKEY, public: NEWKEY, not_after: 2027-01-01T00:00:00Z}
  - add_key: {organisation: beta, role: emergency, public: SPARE}
  - remove_key: {organisation: alpha, role: govern, id: GONE}
  - add_organisation:
      id: eta
      keys:
        - {role: govern, public: ETAGOVERN}
        - {role: enroll, public: ETAENROLL}
  - remove_organisation: {id: gamma}
  - set_limits: {nodes: 9, results: 100}
  - set_witnesses: {witnesses: [WITNESS]}
`

func publicText(label string) string { return string(must(public(label).MarshalText())) }

// What a person writes is what gets signed, and takes effect as one.
func TestConstitutionDraft(t *testing.T) {
	m := governing(t, 4)
	text := strings.NewReplacer("MESH", m.g.MeshID().String(), "OLDKEY", keyIDOf("alpha enroll"), "NEWKEY", publicText("alpha enroll 2"), "SPARE", publicText("beta emergency 2"),
		"GONE", keyIDOf("alpha govern 2"), "ETAGOVERN", publicText("eta govern"), "ETAENROLL", publicText("eta enroll"), "WITNESS", witness).Replace(amendText)
	payload, err := ParseDraft("d.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if p := must(DecodeProposal(payload)); p.Class() != ClassConstitution || !strings.Contains(strings.Join(p.Describe(), "\n"), "until 2027-01-01T00:00:00Z comes in place of key "+keyIDOf("alpha enroll")) {
		t.Errorf("got %s", p.Describe())
	}
	m.ok(m.command(KindProposal, m.sign(payload, by("alpha", "beta", "delta", "eta")...)))
	if m.s.N() != 4 || m.s.Limits() != (Limits{Nodes: 9, Results: 100}) || !slices.Equal(m.s.Witnesses(), []string{witness}) || len(m.s.FormerKeys()) != 6 {
		t.Errorf("N %d, limits %+v, witnesses %v, %d former keys", m.s.N(), m.s.Limits(), m.s.Witnesses(), len(m.s.FormerKeys()))
	}
	if eta, ok := m.s.Organisation("eta"); !ok || !eta.IsMember() || len(m.s.OrgKeys("eta", KeyEnroll)) != 1 {
		t.Errorf("eta: %+v", eta)
	}
	for from, to := range map[string]string{"role: enroll, old": "role: king, old", "old: ": "older: ", "id: eta": "id: ETA", "nodes: 9": "nodes: 0", "results: 100": "results: -1",
		"{id: gamma}": "{}", "not_after: 2027-01-01T00:00:00Z": "not_after: soon", publicText("eta govern"): "QUJD", keyIDOf("alpha govern 2"): "12", witness: "nobody"} {
		if _, err := ParseDraft("d.yaml", []byte(strings.Replace(text, from, to, 1))); err == nil || !strings.HasPrefix(err.Error(), "d.yaml") {
			t.Errorf("%s: got %v", to, err)
		}
	}
}

func TestConstitutionMalformed(t *testing.T) {
	m := governing(t, 2)
	p256 := envelope.PublicKey{PublicKey: must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)).Public()}
	for name, a := range map[string]Action{
		"two in one":          {RemoveOrganisation: &RemoveOrganisation{"alpha"}, SetLimits: &SetLimits{Limits{Nodes: 4}}},
		"with an entry":       {RemoveOrganisation: &RemoveOrganisation{"alpha"}, RemoveEntry: &RemoveEntry{ID: strings.Repeat("0", 16)}},
		"enroll key of P-256": {AddKey: &AddKey{"alpha", Key{Role: KeyEnroll, Public: p256}}},
		"no key":              {AddKey: &AddKey{"alpha", Key{Role: KeyGovern}}},
		"no role":             {AddKey: &AddKey{"alpha", Key{Public: public("x")}}},
		"no organisation":     {AddKey: &AddKey{"", keyOf("alpha govern 9")}},
		"no old key":          {RotateKey: &RotateKey{Organisation: "alpha", Role: KeyGovern, Public: public("x")}},
		"no name":             {RemoveOrganisation: &RemoveOrganisation{}},
		"no nodes":            {SetLimits: &SetLimits{}},
		"a large quota":       {SetLimits: &SetLimits{Limits{Nodes: 3, Results: MaxQuota + 1}}},
		"no list":             {SetWitnesses: &SetWitnesses{}},
		"witness twice":       {SetWitnesses: &SetWitnesses{[]string{witness, witness}}},
		"two keys, one name":  {SetWitnesses: &SetWitnesses{[]string{witness, strings.Replace(witness, "AA", "BB", 1)}}},
		"no govern key":       {AddOrganisation: &AddOrganisation{Organisation{ID: "eta", Roles: []string{OrgMember}, Keys: []Key{keyOf("eta enroll")}}}},
		"key twice":           {AddOrganisation: &AddOrganisation{Organisation{ID: "eta", Roles: []string{OrgMember}, Keys: []Key{keyOf("eta govern"), keyOf("eta enroll"), keyOf("eta govern")}}}},
		"end not in UTC":      {AddKey: &AddKey{"alpha", Key{Role: KeyGovern, Public: public("x"), NotAfter: start.In(time.FixedZone("", 3600))}}},
	} {
		if _, err := m.propose(act(a)).Payload(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := m.propose(act(Action{AddKey: &AddKey{"alpha", Key{Role: KeyGovern, Public: p256}}})).Payload(); err != nil {
		t.Errorf("a govern key of P-256: %v", err)
	}
}

func TestChainFile(t *testing.T) {
	m := governing(t, 2)
	m.ok(m.vote(m.propose(addKey("alpha govern 9")), append(by("alpha", "beta"), "alpha govern 9")...))
	file := must(json.Marshal(map[string]any{"chain": m.s.PolicyChain()}))
	s, err := ParseChainFile(m.g, append(file, '\n'))
	if err != nil || s.PolicyDigest() != m.s.PolicyDigest() {
		t.Errorf("got %v", err)
	}
	other := newMesh(t, 3)
	for name, bad := range map[string][]byte{
		"empty": []byte(`{"chain":[]}`), "no JSON": []byte("chain"), "two values": append(file, "{}"...), "another field": []byte(`{"chain":[],"x":1}`), "nothing": nil,
		"cut": must(json.Marshal(map[string]any{"chain": m.s.PolicyChain()[:1]})),
	} {
		if _, err := ParseChainFile(m.g, bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := ParseChainFile(other.g, file); err == nil {
		t.Error("the chain of another mesh was accepted")
	}
}
