package consensus

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
)

const platformDraft = `
mesh_id: MESH
incarnation: 0
base: 0
nonce: "NONCE"
created: 2026-03-01T13:00:00Z
expires: 2026-03-02T13:00:00Z
actions:
  - add_entry:
      kind: sevsnp
      measurement: MM
      roles: [trainer]
      supersedes: [OLD]
      supersede_at: 2026-04-01T00:00:00Z
      provenance: PP
      builder: https://builder.example/release
      rebuilds: [{organisation: gamma, statement: PP}, {organisation: beta, statement: PP}]
      minimum_tcb: {Turin: {fmc: 1, boot_loader: 1, tee: 0, snp: 2, microcode: 71}, Milan: {boot_loader: 4, tee: 0, snp: 24, microcode: 219}}
  - add_entry: {kind: tdx, measurement: MM, roles: [member], tdx: {tcb_statuses: [UpToDate, SWHardeningNeeded], minimum_tcb_evaluation_data_number: 18, minimum_tcb_date: 2025-05-14T00:00:00Z, rejected_advisory_ids: [INTEL-SA-01036]}}
  - raise_floor: {product: Milan, sevsnp: {boot_loader: 4, tee: 0, snp: 24, microcode: 219}, from: 2026-04-01T00:00:00Z}
  - raise_floor: {tdx: {minimum_tcb_evaluation_data_number: 18}}
  - deny_product: {cpuid: {family: 25, model: 1, stepping: 1}}
  - deny_product: {fmspc: 00806f050000}
  - limit_hardware: {organisation: alpha, chips: [CB, CA]}
  - remove_hardware: {entry: OLD, chips: [CA]}
`

func (m *mesh) platformDraft() string {
	return strings.NewReplacer("MESH", m.g.MeshID().String(), "NONCE", strings.Repeat("0", 32), "MM", measurement("x"), "OLD", hardEntry(m.t, attest.KindSEVSNP, "snp").ID,
		"PP", sha256Hex([]byte("statement")), "CA", chip("a"), "CB", chip("b")).Replace(platformDraft)
}

// platformActions are the actions of platformDraft.
func platformActions(t testing.TB, m *mesh) func(*Proposal) {
	t.Helper()
	payload, err := ParseDraft("d.yaml", []byte(m.platformDraft()))
	if err != nil {
		t.Fatal(err)
	}
	return func(p *Proposal) { p.Actions = must(DecodeProposal(payload)).Actions }
}

// What people approve is told in full, from the signed bytes, and lists need no order in a draft.
func TestPlatformDraft(t *testing.T) {
	m := hardware(t, 3)
	payload, err := ParseDraft("d.yaml", []byte(m.platformDraft()))
	if err != nil {
		t.Fatal(err)
	}
	p := must(DecodeProposal(payload))
	all := strings.Join(p.Describe(), "\n")
	listed := chips("a", "b")
	for _, want := range []string{"class widen (computed)",
		"as member, trainer in place of " + hardEntry(t, attest.KindSEVSNP, "snp").ID + ", which ends 2026-04-01T00:00:00Z on Milan of at least bl=4 tee=0 snp=24 ucode=219 on Turin of at least fmc=1 bl=1 tee=0 snp=2 ucode=71 provenance " + sha256Hex([]byte("statement")) + " by https://builder.example/release, rebuilt by beta, gamma",
		"as member on TDX platforms that are SWHardeningNeeded or UpToDate without INTEL-SA-01036 by collateral of evaluation number 18 or more with a TCB level of 2025-05-14T00:00:00Z or later UNPROVENANCED",
		"- demand of every Milan platform a TCB of at least bl=4 tee=0 snp=24 ucode=219, from 2026-04-01T00:00:00Z",
		"- demand of every TDX platform to be one by collateral of evaluation number 18 or more, at once",
		"- refuse SEV-SNP part 25-1-1 of Milan", "- refuse TDX platforms with FMSPC 00806f050000",
		"- let organisation alpha use no chips but these: " + listed[0] + ", " + listed[1],
		"- let entry " + hardEntry(t, attest.KindSEVSNP, "snp").ID + " use these chips no longer: " + chip("a")} {
		if !strings.Contains(all, want) {
			t.Errorf("the description lacks %q:\n%s", want, all)
		}
	}
	m.ok(m.command(KindProposal, m.sign(payload, m.governors(2)...)))
	for from, to := range map[string]string{"raise_floor: {product: Milan": "raise_floor: {product: Rome", "from: 2026": "from: tomorrow 2026",
		"minimum_tcb_date: 2025-05-14T00:00:00Z": "minimum_tcb_date: soon", "deny_product: {cpuid": "deny_product: {serial: 1, cpuid", "{boot_loader: 4": "{bootloader: 4",
		"limit_hardware: {organisation: alpha, chips: ": "limit_hardware: {organisation: alpha, readmit: true, chips: ", "remove_hardware: {entry": "unlimit_hardware: {entry",
		"supersede_at: 2026-04-01T00:00:00Z": "supersede_at: later", "tcb_statuses: [UpToDate": "tcb_statuses: [Revoked", "boot_loader: 1": "boot_loader: 256"} {
		if text := strings.Replace(m.platformDraft(), from, to, 1); text == m.platformDraft() {
			t.Errorf("%s is not in the draft", from)
		} else if _, err := ParseDraft("d.yaml", []byte(text)); err == nil || !strings.HasPrefix(err.Error(), "d.yaml") {
			t.Errorf("%s: got %v", to, err)
		}
	}
	// The widening ones, and what they say.
	widen := strings.Split(m.platformDraft(), "actions:")[0] + "actions:\n  - allow_product: {product: Genoa}\n  - add_hardware: {organisation: alpha, chips: [" + chip("c") + "], readmit: true}\n  - unlimit_hardware: {organisation: alpha}\n"
	if payload, err = ParseDraft("w.yaml", []byte(widen)); err != nil {
		t.Fatal(err)
	}
	all = strings.Join(must(DecodeProposal(payload)).Describe(), "\n")
	for _, want := range []string{"+ refuse no longer SEV-SNP product Genoa", "+ let again, though removed, organisation alpha use these chips too: " + chip("c"), "+ let organisation alpha use any chip that was not removed"} {
		if !strings.Contains(all, want) {
			t.Errorf("the description lacks %q:\n%s", want, all)
		}
	}
}

// Genesis can carry the first floors and denials, in whatever order they are written.
func TestGenesisPlatforms(t *testing.T) {
	text := func(label string) string {
		return string(must(envelope.PublicKey{PublicKey: key(label).Public()}.MarshalText()))
	}
	spec := strings.NewReplacer("AG", text("alpha govern"), "AE", text("alpha enroll"), "BG", text("beta govern"), "BE", text("beta enroll"), "SR", text("sim root"), "MM", measurement("new")).Replace(specText)
	more := spec + "floors:\n  - {tdx: {minimum_tcb_evaluation_data_number: 18}}\n  - {product: Milan, sevsnp: {boot_loader: 4}}\n  - {product: Genoa, sevsnp: {boot_loader: 4}, from: 2027-01-01T00:00:00Z}\n" +
		"denied:\n  - {product: Turin}\n  - {fmspc: 00806f050000}\n"
	g, err := NewGenesis("g.yaml", []byte(more), make([]byte, 32), start)
	if err != nil {
		t.Fatal(err)
	}
	s := newPolicyState(g)
	if len(s.Floors()) != 3 || len(s.Denied()) != 2 {
		t.Fatalf("%+v %+v", s.Floors(), s.Denied())
	}
	if p := s.AttestPolicy(alphaNode); !reflect.DeepEqual(p.Platforms.Floors, s.Floors()) || !reflect.DeepEqual(p.Platforms.Denied, s.Denied()) {
		t.Errorf("verifiers demand %+v", p.Platforms)
	}
	for name, extra := range map[string]string{
		"twice":   "floors: [{product: Milan, sevsnp: {boot_loader: 4}}, {product: Milan, sevsnp: {boot_loader: 4}}]\n",
		"covered": "floors: [{product: Milan, sevsnp: {boot_loader: 4}}, {product: Milan, sevsnp: {boot_loader: 3}}]\n",
		"zero":    "floors: [{product: Milan, sevsnp: {}}]\n",
		"denied":  "denied: [{product: Turin}, {product: Turin}]\n",
		"class":   "denied: [{product: Rome}]\n",
	} {
		if _, err := NewGenesis("g.yaml", []byte(spec+extra), make([]byte, 32), start); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	old := genesisOf(t, 2)
	old.Policy.Denied = []attest.Product{{Line: "Turin"}}
	if _, err := old.Payload(); err == nil || !strings.Contains(err.Error(), "wrong_version") {
		t.Errorf("in a mesh of version 1: %v", err)
	}
}

// jsonNames lists the JSON names below a type that a proposal carries.
func jsonNames(typ reflect.Type, seen map[reflect.Type]bool) (out []string) {
	for slices.Contains([]reflect.Kind{reflect.Pointer, reflect.Slice, reflect.Map}, typ.Kind()) {
		typ = typ.Elem()
	}
	if typ.Kind() != reflect.Struct || seen[typ] || typ == reflect.TypeFor[time.Time]() {
		return nil
	}
	seen[typ] = true
	for i := range typ.NumField() {
		f := typ.Field(i)
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
			out = append(out, name)
		}
		out = append(out, jsonNames(f.Type, seen)...)
	}
	return out
}

// DEBUG allowed through a self-declared narrow: what a proposal can say of software and hardware
// is this list, and no word of it weakens what verifiers demand of every guest. A class is none.
func TestProposalCannotWeakenAppraisal(t *testing.T) {
	var got []string
	for _, action := range []any{AddEntry{}, RemoveEntry{}, RaiseFloor{}, DenyProduct{}, AllowProduct{}, LimitHardware{}, AddHardware{}, RemoveHardware{}, UnlimitHardware{}} {
		got = append(got, jsonNames(reflect.TypeOf(action), map[reflect.Type]bool{})...)
	}
	want := strings.Fields("boot_loader builder chips cpuid entry family fmc fmspc from id ima kind measurement " +
		"microcode minimum_tcb minimum_tcb_date minimum_tcb_evaluation_data_number model not_after not_before organisation product provenance readmit rebuilds registers rejected_advisory_ids " +
		"roles sevsnp snp statement stepping supersede_at supersedes tcb_statuses tdx tee")
	for _, name := range got {
		if !slices.Contains(want, name) {
			t.Errorf("a proposal can say %q: if it weakens nothing, list it here", name)
		}
	}
	// Whatever is ordered, the sections of the policy stay the strict ones.
	m := hardware(t, 3)
	m.ok(m.order(m.propose(platformActions(t, m)), 3))
	strict, p := attest.StrictPolicy(), m.s.AttestPolicy(alphaNode)
	if !reflect.DeepEqual(p.SEVSNP, strict.SEVSNP) || !reflect.DeepEqual(p.TDX, strict.TDX) || p.AllowUnbound || p.AllowNoReferences {
		t.Errorf("got %+v", p)
	}
	for name, c := range map[string]attest.Claims{
		"debug":     snpClaims(func(c *attest.Claims) { c.SEVSNP.Debug = true }),
		"migration": snpClaims(func(c *attest.Claims) { c.SEVSNP.MigrateMA = true }),
		"TD debug":  tdxClaims(func(d *attest.TDXClaims) { d.Debug, d.TDAttributes = true, "0100001000000000" }),
		"unbound":   snpClaims(func(c *attest.Claims) { c.Bound = false }),
	} {
		if r := m.verdictOn(alphaNode, c); r.Affirming() {
			t.Errorf("%s: %s", name, r.Verdict)
		}
	}
	// And no self-declared class reaches the count: two of three cannot widen by calling it narrow.
	payload := string(m.payload(m.propose(act(allow(attest.Product{FMSPC: "00806f050000"})))))
	for _, forged := range []string{strings.Replace(payload, `"actions"`, `"class":"narrow","actions"`, 1), strings.Replace(payload, `{"allow_product":`, `{"class":"narrow","allow_product":`, 1),
		strings.Replace(payload, `"fmspc":`, `"allow_debug":true,"fmspc":`, 1), strings.Replace(payload, `"allow_product"`, `"allow_debug"`, 1)} {
		if forged == payload {
			t.Fatal("nothing was forged")
		}
		m.refused(m.command(KindProposal, m.sign([]byte(forged), m.governors(3)...)), attest.CodeMalformed)
	}
}
