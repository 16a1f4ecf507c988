package consensus

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// hardwareGenesis allows, beside the simulated "old" and "new", one release on SEV-SNP and one
// on TDX, for everything.
func hardwareGenesis(t testing.TB, n int) *Genesis {
	t.Helper()
	g := genesisOf(t, n)
	g.FSMVersion = fsmGovernance
	kinds := []string{attest.KindSEVSNP, attest.KindSim, attest.KindTDX}
	g.Kinds = Kinds{kinds, kinds, kinds}
	g.Policy.Entries = append(g.Policy.Entries, hardEntry(t, attest.KindSEVSNP, "snp"), hardEntry(t, attest.KindTDX, "td"))
	sortEntries(g.Policy.Entries)
	return g
}

func hardEntry(t testing.TB, kind, name string, change ...func(*Entry)) Entry {
	t.Helper()
	e := Entry{Kind: kind, Measurement: measurement(name), Roles: allRoles}
	for _, f := range change {
		f(&e)
	}
	return must(NewEntry(e))
}

func hardware(t testing.TB, n int) *mesh {
	t.Helper()
	m := newMeshOf(t, hardwareGenesis(t, n))
	m.start()
	return m
}

func milan(bootLoader, microcode uint8, from ...time.Time) Action {
	f := attest.Floor{Product: "Milan", SEVSNP: &attest.TCB{BootLoader: bootLoader, Microcode: microcode}}
	if len(from) > 0 {
		f.From = from[0]
	}
	return Action{RaiseFloor: &RaiseFloor{f}}
}

func deny(p attest.Product) Action  { return Action{DenyProduct: &DenyProduct{p}} }
func allow(p attest.Product) Action { return Action{AllowProduct: &AllowProduct{p}} }

// chip returns the commitment to a chip under a salt of its own.
func chip(name string) string {
	c, err := attest.HardwareCommitment([32]byte(sum([]byte("salt of "+name))), attest.KindSEVSNP, chipID(name))
	if err != nil {
		panic(err)
	}
	return c
}

func chipID(name string) string { return strings.Repeat(sha256Hex([]byte("chip "+name)), 2) }

func chips(names ...string) []string {
	var out []string
	for _, n := range names {
		out = append(out, chip(n))
	}
	slices.Sort(out)
	return out
}

var alphas = HardwareScope{Organisation: "alpha"}

func limit(s HardwareScope, names ...string) Action {
	return Action{LimitHardware: &LimitHardware{s, chips(names...)}}
}

func addChips(s HardwareScope, names ...string) Action {
	return Action{AddHardware: &AddHardware{s, chips(names...), false}}
}

func removeChips(s HardwareScope, names ...string) Action {
	return Action{RemoveHardware: &RemoveHardware{s, chips(names...)}}
}

// snpClaims are genuine claims of a node of release "snp" on a Milan part.
func snpClaims(change ...func(*attest.Claims)) attest.Claims {
	tcb := attest.TCB{BootLoader: 3, SNP: 8, Microcode: 100}
	c := attest.Claims{Kind: attest.KindSEVSNP, Genuine: true, Bound: true, Measurement: measurement("snp"), HardwareID: chipID("a"), Hardware: chip("a"),
		SEVSNP: &attest.SEVSNPClaims{Version: 3, Product: "Milan", CPUID: &attest.CPUID{Family: 0x19, Model: 1, Stepping: 1}, Policy: 1<<17 | 1<<16, SMT: true,
			SigningKey: "VCEK", ChipID: chipID("a"), CurrentTCB: tcb, ReportedTCB: tcb, CommittedTCB: tcb, LaunchTCB: tcb}}
	for _, f := range change {
		f(&c)
	}
	return c
}

func tdxClaims(change ...func(*attest.TDXClaims)) attest.Claims {
	d := &attest.TDXClaims{QuoteVersion: 4, TDAttributes: "0000001000000000", SEPTVEDisable: true, XFAM: "e700060000000000", FMSPC: "00806f050000",
		TCBStatus: "UpToDate", TCBDate: "2025-05-14T00:00:00Z", TCBEvaluation: 18, QEEvaluation: 18}
	for _, f := range change {
		f(d)
	}
	return attest.Claims{Kind: attest.KindTDX, Genuine: true, Bound: true, Measurement: measurement("td"), TDX: d}
}

var alphaNode = identity.NodeRef{Org: "alpha", Name: "n1"}

// verdict is what verifiers find about claims of a node of org under the present policy.
func (m *mesh) verdict(org identity.OrgID, c attest.Claims) attest.Result {
	return attest.Appraise(c, m.s.AttestPolicy(identity.NodeRef{Org: org, Name: "n1"}, allRoles...), m.at)
}

func (m *mesh) finds(org identity.OrgID, c attest.Claims, want attest.Code) {
	m.t.Helper()
	r := m.verdict(org, c)
	if r.Code() != want || r.Affirming() != (want == "" || want == attest.CodeFloorAhead) {
		m.t.Errorf("got %s %v, want %q", r.Verdict, r.Reasons, want)
	}
}

// Each action has exactly the threshold of its class, and older meshes know none of them.
func TestPlatformActionClasses(t *testing.T) {
	m := hardware(t, 5)
	old := started(t, 5)
	deniedMilan := attest.Product{Line: "Milan"}
	for _, step := range []struct {
		name   string
		action Action
		class  Class
	}{
		{"raise a floor", milan(4, 0), ClassNarrow},
		{"deny a product", deny(deniedMilan), ClassNarrow},
		{"limit chips", limit(alphas, "a", "b"), ClassNarrow},
		{"remove a chip", removeChips(alphas, "b"), ClassNarrow},
		{"add a chip", addChips(alphas, "c"), ClassWiden},
		{"any chip", Action{UnlimitHardware: &UnlimitHardware{alphas}}, ClassWiden},
		{"allow a product", allow(deniedMilan), ClassWiden},
		{"an entry with demands", Action{AddEntry: &AddEntry{Entry: hardEntry(t, attest.KindSEVSNP, "snp", func(e *Entry) { e.MinimumTCB = map[string]attest.TCB{"Milan": {SNP: 9}} })}}, ClassWiden},
	} {
		k := map[Class]int{ClassNarrow: 3, ClassWiden: 4}[step.class]
		p := m.propose(act(step.action))
		if p.Class() != step.class {
			t.Errorf("%s: class %s by the bytes", step.name, p.Class())
		}
		m.refused(m.order(p, k-1), attest.CodeThreshold)
		if out := m.ok(m.order(p, k)); out.Proposal.Class != step.class {
			t.Errorf("%s: class %s", step.name, out.Proposal.Class)
		}
		if want := attest.CodeWrongVersion; step.action.AddEntry == nil {
			old.refused(old.order(old.propose(act(step.action)), 5), want)
		}
	}
	demanding := Action{AddEntry: &AddEntry{Entry: must(NewEntry(Entry{Kind: "sim", Measurement: measurement("x"), Roles: allRoles, Provenance: sha256Hex(nil), Builder: "b"}))}}
	old.refused(old.order(old.propose(act(demanding)), 5), attest.CodeWrongVersion)
}

// G11: floors never fall. A lower one is refused if that is all that was asked, and says
// nothing where a proposal does something besides.
func TestFloorsNeverFall(t *testing.T) {
	m := hardware(t, 3)
	m.ok(m.order(m.propose(act(milan(3, 100))), 2))
	m.finds("alpha", snpClaims(), "")
	m.ok(m.order(m.propose(act(milan(0, 101))), 2))
	m.finds("alpha", snpClaims(), attest.CodeTCBBelowFloor)
	for _, lower := range []Action{milan(3, 100), milan(0, 1), milan(2, 0)} {
		m.refused(m.order(m.propose(act(lower)), 3), attest.CodeFloorNotRaised)
	}
	m.refused(m.order(m.propose(act(milan(3, 99)), act(milan(1, 0, m.at.Add(time.Hour)))), 3), attest.CodeFloorNotRaised)
	// A narrowing that does something else is not held up by a floor that was raised meanwhile.
	m.ok(m.order(m.propose(act(milan(1, 0)), remove("old")), 2))
	m.finds("alpha", snpClaims(), attest.CodeTCBBelowFloor)
	if got := m.s.Floors(); len(got) != 2 {
		t.Errorf("floors %+v", got)
	}
	m.finds("alpha", tdxClaims(), "")
	m.ok(m.order(m.propose(act(Action{RaiseFloor: &RaiseFloor{attest.Floor{TDX: &attest.TDXDemand{MinimumTCBEvaluation: 19}}}})), 2))
	m.finds("alpha", tdxClaims(), attest.CodeTCBEvaluation)
	m.refused(m.order(m.propose(act(Action{RaiseFloor: &RaiseFloor{attest.Floor{TDX: &attest.TDXDemand{MinimumTCBEvaluation: 18}}}})), 3), attest.CodeFloorNotRaised)
}

func TestDenyProduct(t *testing.T) {
	m := hardware(t, 3)
	part := attest.Product{CPUID: &attest.CPUID{Family: 0x19, Model: 1, Stepping: 1}}
	family := attest.Product{FMSPC: "00806f050000"}
	m.ok(m.order(m.propose(act(deny(part)), act(deny(family))), 2))
	m.ok(m.order(m.propose(act(deny(part))), 2)) // again: narrowings never go stale
	m.finds("alpha", snpClaims(), attest.CodePlatformDenied)
	m.finds("beta", tdxClaims(), attest.CodePlatformDenied)
	m.refused(m.order(m.propose(act(allow(attest.Product{Line: "Milan"}))), 3), attest.CodeReplayed)
	m.ok(m.order(m.propose(act(allow(part))), 2))
	m.finds("alpha", snpClaims(), "")
	m.finds("beta", tdxClaims(), attest.CodePlatformDenied)
}

func TestHardwareLists(t *testing.T) {
	m := hardware(t, 3)
	snp := HardwareScope{Entry: hardEntry(t, attest.KindSEVSNP, "snp").ID}
	chipB := func(c *attest.Claims) { c.Hardware = chip("b") }
	m.ok(m.order(m.propose(act(limit(alphas, "a", "b"))), 2))
	m.finds("alpha", snpClaims(), "")
	m.finds("alpha", snpClaims(func(c *attest.Claims) { c.Hardware = chip("c") }), attest.CodeChipNotAllowed)
	m.finds("alpha", snpClaims(func(c *attest.Claims) { c.Hardware = "" }), attest.CodeChipNotAllowed)
	m.finds("beta", snpClaims(func(c *attest.Claims) { c.Hardware = "" }), "") // beta has no list
	m.ok(m.order(m.propose(act(limit(alphas, "b", "c"))), 2))                  // both lists
	m.finds("alpha", snpClaims(), attest.CodeChipNotAllowed)
	m.finds("alpha", snpClaims(chipB), "")
	m.finds("alpha", snpClaims(func(c *attest.Claims) { c.Hardware = chip("c") }), attest.CodeChipNotAllowed)
	m.ok(m.order(m.propose(act(removeChips(alphas, "b"))), 2))
	m.finds("alpha", snpClaims(chipB), attest.CodeChipNotAllowed)
	m.refused(m.order(m.propose(act(addChips(alphas, "b"))), 3), attest.CodeRevoked) // removed meanwhile
	again := addChips(alphas, "b")
	again.AddHardware.Readmit = true
	m.ok(m.order(m.propose(act(again)), 2))
	m.finds("alpha", snpClaims(chipB), "")
	m.refused(m.order(m.propose(act(again)), 3), attest.CodeReplayed)
	m.ok(m.order(m.propose(act(limit(snp, "a"))), 2)) // of an entry: everybody's
	m.finds("alpha", snpClaims(chipB), attest.CodeChipNotAllowed)
	m.finds("beta", snpClaims(), "")
	m.ok(m.order(m.propose(act(Action{UnlimitHardware: &UnlimitHardware{snp}})), 2))
	m.finds("alpha", snpClaims(chipB), "")
	m.refused(m.order(m.propose(act(Action{UnlimitHardware: &UnlimitHardware{snp}})), 3), attest.CodeReplayed)
	m.refused(m.order(m.propose(act(limit(HardwareScope{Organisation: "omega"}, "a"))), 3), attest.CodeWrongOrganisation)
	m.refused(m.order(m.propose(act(limit(HardwareScope{Entry: strings.Repeat("0", 16)}, "a"))), 3), attest.CodeUnknownEntry)
	// What outsiders read names no chip.
	for _, raw := range m.s.PolicyChain() {
		for _, name := range []string{"a", "b", "c"} {
			if strings.Contains(string(raw), chipID(name)) || strings.Contains(fmt.Sprintf("%x", raw), chipID(name)) {
				t.Fatal("a chip id is in the log")
			}
		}
	}
}

func TestPlatformActionsMalformed(t *testing.T) {
	m := hardware(t, 2)
	tdx := func(d attest.TDXDemand) Action { return Action{RaiseFloor: &RaiseFloor{attest.Floor{TDX: &d}}} }
	for name, a := range map[string]Action{
		"no floor":                {RaiseFloor: &RaiseFloor{}},
		"unknown product":         {RaiseFloor: &RaiseFloor{attest.Floor{Product: "Naples", SEVSNP: &attest.TCB{SNP: 1}}}},
		"no product":              {RaiseFloor: &RaiseFloor{attest.Floor{SEVSNP: &attest.TCB{SNP: 1}}}},
		"fmc of Milan":            {RaiseFloor: &RaiseFloor{attest.Floor{Product: "Milan", SEVSNP: &attest.TCB{FMC: 1}}}},
		"zero floor":              {RaiseFloor: &RaiseFloor{attest.Floor{Product: "Milan", SEVSNP: &attest.TCB{}}}},
		"two floors in one":       {RaiseFloor: &RaiseFloor{attest.Floor{Product: "Milan", SEVSNP: &attest.TCB{SNP: 1}, TDX: &attest.TDXDemand{MinimumTCBEvaluation: 1}}}},
		"product of TDX":          {RaiseFloor: &RaiseFloor{attest.Floor{Product: "Milan", TDX: &attest.TDXDemand{MinimumTCBEvaluation: 1}}}},
		"nothing of TDX":          tdx(attest.TDXDemand{}),
		"status Revoked":          tdx(attest.TDXDemand{TCBStatuses: []string{"Revoked"}}),
		"statuses out of order":   tdx(attest.TDXDemand{TCBStatuses: []string{"UpToDate", "SWHardeningNeeded"}}),
		"advisory":                tdx(attest.TDXDemand{RejectedAdvisoryIDs: []string{"CVE-1"}}),
		"evaluation number":       tdx(attest.TDXDemand{MinimumTCBEvaluation: -1}),
		"date":                    tdx(attest.TDXDemand{MinimumTCBDate: time.Date(10001, 1, 1, 0, 0, 0, 0, time.UTC)}),
		"from":                    milan(1, 1, time.Date(2026, 3, 1, 0, 0, 0, 1, time.UTC)),
		"no class of hardware":    deny(attest.Product{}),
		"two classes":             deny(attest.Product{Line: "Milan", FMSPC: "00806f050000"}),
		"unknown line":            deny(attest.Product{Line: "Rome"}),
		"part without SNP":        deny(attest.Product{CPUID: &attest.CPUID{Family: 0x17}}),
		"FMSPC":                   allow(attest.Product{FMSPC: "00806F050000"}),
		"no scope":                limit(HardwareScope{}, "a"),
		"two scopes":              limit(HardwareScope{"alpha", strings.Repeat("0", 16)}, "a"),
		"no chips":                limit(alphas),
		"a chip id, not a digest": {AddHardware: &AddHardware{alphas, []string{chipID("a")}, false}},
		"chips out of order":      {RemoveHardware: &RemoveHardware{alphas, []string{strings.Repeat("b", 64), strings.Repeat("a", 64)}}},
		"too many chips":          {LimitHardware: &LimitHardware{alphas, make([]string, MaxActionChips+1)}},
		"two actions in one":      {DenyProduct: &DenyProduct{attest.Product{Line: "Milan"}}, AllowProduct: &AllowProduct{attest.Product{Line: "Milan"}}},
	} {
		if _, err := m.propose(act(a)).Payload(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for name, change := range map[string]func(*Entry){
		"minimum_tcb of TDX":     func(e *Entry) { e.MinimumTCB = map[string]attest.TCB{"Milan": {}} },
		"tdx of SEV-SNP":         func(e *Entry) { e.Kind, e.TDX = attest.KindSEVSNP, &attest.TDXDemand{MinimumTCBEvaluation: 1} },
		"no line":                func(e *Entry) { e.Kind, e.MinimumTCB = attest.KindSEVSNP, map[string]attest.TCB{} },
		"unknown line":           func(e *Entry) { e.Kind, e.MinimumTCB = attest.KindSEVSNP, map[string]attest.TCB{"Rome": {}} },
		"tdx of nothing":         func(e *Entry) { e.TDX = &attest.TDXDemand{} },
		"supersede_at alone":     func(e *Entry) { e.SupersedeAt = start },
		"builder alone":          func(e *Entry) { e.Builder = "https://builder.example" },
		"builder with a newline": func(e *Entry) { e.Provenance, e.Builder = sha256Hex(nil), "a\nb" },
		"rebuild by nobody":      func(e *Entry) { e.Provenance, e.Rebuilds = sha256Hex(nil), []Rebuild{{"", sha256Hex(nil)}} },
		"rebuild of nothing":     func(e *Entry) { e.Provenance, e.Rebuilds = sha256Hex(nil), []Rebuild{{"alpha", ""}} },
		"rebuilds twice": func(e *Entry) {
			e.Provenance, e.Rebuilds = sha256Hex(nil), []Rebuild{{"alpha", sha256Hex(nil)}, {"alpha", sha256Hex(nil)}}
		},
		"rebuilds, an empty list": func(e *Entry) { e.Provenance, e.Rebuilds = sha256Hex(nil), []Rebuild{} },
	} {
		e := Entry{Kind: attest.KindTDX, Measurement: measurement("x"), Roles: allRoles}
		change(&e)
		if got, err := NewEntry(e); err == nil {
			t.Errorf("entry: %s: accepted as %+v", name, got)
		}
	}
}

// Limits hold at their number and not one below.
func TestPlatformLimits(t *testing.T) {
	m := hardware(t, 2)
	parts := func(from, to int) func(*Proposal) {
		return func(p *Proposal) {
			for i := from; i < to; i++ {
				p.Actions = append(p.Actions, deny(attest.Product{FMSPC: fmt.Sprintf("%012x", i)}))
			}
		}
	}
	for i := 0; i < MaxDenied; i += MaxActions {
		m.ok(m.order(m.propose(parts(i, i+MaxActions)), 2))
	}
	m.refused(m.order(m.propose(parts(MaxDenied, MaxDenied+1)), 2), attest.CodeLimit)
	for i := range MaxFloors / MaxActions {
		m.ok(m.order(m.propose(func(p *Proposal) {
			for k := range MaxActions {
				n := uint8(i*MaxActions + k)
				p.Actions = append(p.Actions, milan(n, 255-n))
			}
		}), 2))
	}
	m.refused(m.order(m.propose(act(milan(MaxFloors, 255-MaxFloors))), 2), attest.CodeLimit)
	m.ok(m.order(m.propose(act(milan(255, 255))), 2)) // which covers all others
	if len(m.s.Floors()) != 1 || len(m.s.Denied()) != MaxDenied {
		t.Errorf("%d floors, %d denied", len(m.s.Floors()), len(m.s.Denied()))
	}
	big := func(from int) Action {
		var list []string
		for i := range MaxActionChips {
			list = append(list, fmt.Sprintf("%064x", from+i))
		}
		return Action{RemoveHardware: &RemoveHardware{alphas, list}}
	}
	for i := 0; i < MaxChips; i += MaxActionChips {
		m.ok(m.order(m.propose(act(big(i))), 2))
	}
	m.refused(m.order(m.propose(act(big(MaxChips))), 2), attest.CodeLimit)
}

// Who replays the chain demands the same of hardware as the seats do.
func TestPlatformsReplay(t *testing.T) {
	m := hardware(t, 3)
	next := hardEntry(t, attest.KindSEVSNP, "snp 2", func(e *Entry) {
		e.Supersedes, e.SupersedeAt = []string{hardEntry(t, attest.KindSEVSNP, "snp").ID}, m.at.Add(time.Hour)
	})
	for _, a := range []Action{milan(3, 1, m.at.Add(time.Hour)), deny(attest.Product{Line: "Genoa"}), limit(alphas, "a"), removeChips(HardwareScope{Organisation: "beta"}, "b"), {AddEntry: &AddEntry{Entry: next}}} {
		before := m.s.PolicyDigest()
		m.ok(m.order(m.propose(act(a)), 3))
		if m.s.PolicyDigest() == before {
			t.Fatal("the digest does not show the change")
		}
	}
	s, err := ReplayPolicy(m.g, m.s.PolicyChain())
	if err != nil {
		t.Fatal(err)
	}
	if s.PolicyDigest() != m.s.PolicyDigest() || !reflect.DeepEqual(s.AttestPolicy(alphaNode, RoleSeat), m.s.PolicyState.AttestPolicy(alphaNode, RoleSeat)) {
		t.Error("a member demands something else than the seats")
	}
	// The sections tell apart what the chain does not: the same chain with another end of an
	// entry, floor, denial or list has another digest.
	seen := map[[32]byte]bool{s.PolicyDigest(): true}
	for name, change := range map[string]func(p *platforms){
		"ends":     func(p *platforms) { p.ends = nil },
		"floors":   func(p *platforms) { p.floors = nil },
		"denied":   func(p *platforms) { p.denied = nil },
		"hardware": func(p *platforms) { p.hardware = nil },
		"a list":   func(p *platforms) { p.hardware = without(p.hardware, alphas) },
	} {
		c := s.clone()
		change(&c.platforms)
		if seen[c.PolicyDigest()] {
			t.Errorf("%s is not in the digest", name)
		}
		seen[c.PolicyDigest()] = true
	}
}

// The class of a change is that of what it lets in, part by part, whatever action made it.
func TestClassifyPlatforms(t *testing.T) {
	m := hardware(t, 3)
	old := hardEntry(t, attest.KindSEVSNP, "snp")
	set := func(names ...string) map[string]struct{} {
		out := map[string]struct{}{}
		for _, n := range names {
			out[chip(n)] = struct{}{}
		}
		return out
	}
	listOf := func(l attest.HardwareList) func(*PolicyState) {
		return func(s *PolicyState) { s.platforms.hardware = with(s.platforms.hardware, alphas, l) }
	}
	demanding := m.s.PolicyState.clone()
	demanding.endAt(old.ID, start.Add(time.Hour))
	demanding.platforms.floors = []attest.Floor{milan(3, 3, start).RaiseFloor.Floor}
	demanding.platforms.denied = map[string]attest.Product{"a": {Line: "Genoa"}}
	listOf(attest.HardwareList{Listed: set("a", "b"), Removed: set("c")})(demanding)
	for name, tc := range map[string]struct {
		change func(*PolicyState)
		class  Class
	}{
		"nothing":           {func(*PolicyState) {}, ClassNarrow},
		"an end is gone":    {func(s *PolicyState) { s.unend(old.ID) }, ClassWiden},
		"a later end":       {func(s *PolicyState) { s.platforms.ends = with(s.platforms.ends, old.ID, start.Add(2*time.Hour)) }, ClassWiden},
		"an earlier end":    {func(s *PolicyState) { s.endAt(old.ID, start) }, ClassNarrow},
		"the entry is gone": {func(s *PolicyState) { delete(s.entries, old.ID); s.unend(old.ID) }, ClassNarrow},
		"a floor is gone":   {func(s *PolicyState) { s.platforms.floors = nil }, ClassWiden},
		"a lower floor":     {func(s *PolicyState) { s.platforms.floors = []attest.Floor{milan(3, 2, start).RaiseFloor.Floor} }, ClassWiden},
		"a later floor": {func(s *PolicyState) {
			s.platforms.floors = []attest.Floor{milan(9, 9, start.Add(time.Hour)).RaiseFloor.Floor}
		}, ClassWiden},
		"a higher floor":   {func(s *PolicyState) { s.platforms.floors = []attest.Floor{milan(3, 4).RaiseFloor.Floor} }, ClassNarrow},
		"a denial is gone": {func(s *PolicyState) { s.platforms.denied = nil }, ClassWiden},
		"one more denial": {func(s *PolicyState) {
			s.platforms.denied = with(s.platforms.denied, "b", attest.Product{Line: "Milan"})
		}, ClassNarrow},
		"the list is gone":       {func(s *PolicyState) { s.platforms.hardware = nil }, ClassWiden},
		"one more chip":          {listOf(attest.HardwareList{Listed: set("a", "b", "d"), Removed: set("c")}), ClassWiden},
		"a removed chip is back": {listOf(attest.HardwareList{Listed: set("a", "b", "c")}), ClassWiden},
		"listed, and removed":    {listOf(attest.HardwareList{Listed: set("a", "b", "c"), Removed: set("c")}), ClassNarrow},
		"one chip less":          {listOf(attest.HardwareList{Listed: set("a"), Removed: set("b", "c")}), ClassNarrow},
		"any but those removed":  {listOf(attest.HardwareList{Any: true, Removed: set("c")}), ClassWiden},
		"a list where none was": {func(s *PolicyState) {
			s.platforms.hardware = with(s.platforms.hardware, HardwareScope{Organisation: "beta"}, attest.HardwareList{})
		}, ClassNarrow},
	} {
		after := demanding.clone()
		tc.change(after)
		if got := classify(demanding, after); got != tc.class {
			t.Errorf("%s: %s, want %s", name, got, tc.class)
		}
	}
	any, fewer := attest.HardwareList{Any: true, Removed: set("a", "b")}, attest.HardwareList{Any: true, Removed: set("a")}
	if !admitsLess(any, fewer) || admitsLess(fewer, any) || admitsLess(any, attest.HardwareList{Listed: set("c")}) {
		t.Error("lists of any chip but those removed")
	}
}

// When the entry that a node matched is removed, another one of its measurement keeps it in the
// ordered state only if what the first demanded of hardware is known to be enough.
func TestHardwareDecidesBetweenEntries(t *testing.T) {
	line := func(snp uint8, lines ...string) func(*Entry) {
		return func(e *Entry) {
			e.MinimumTCB = map[string]attest.TCB{}
			for _, l := range lines {
				e.MinimumTCB[l] = attest.TCB{SNP: snp}
			}
		}
	}
	statuses := func(s ...string) func(*Entry) {
		return func(e *Entry) { e.TDX = &attest.TDXDemand{TCBStatuses: s} }
	}
	none := func(*Entry) {}
	for name, tc := range map[string]struct {
		kind          string
		matched, kept func(*Entry)
		want          attest.Code
	}{
		"nothing demanded, floor kept":      {attest.KindSEVSNP, none, line(9, "Milan"), attest.CodeRevoked},
		"floor, nothing kept":               {attest.KindSEVSNP, line(9, "Milan"), none, ""},
		"higher floor":                      {attest.KindSEVSNP, line(10, "Milan"), line(9, "Milan"), ""},
		"lower floor":                       {attest.KindSEVSNP, line(8, "Milan"), line(9, "Milan"), attest.CodeRevoked},
		"another line":                      {attest.KindSEVSNP, line(10, "Milan", "Genoa"), line(9, "Milan"), attest.CodeRevoked},
		"one line of two":                   {attest.KindSEVSNP, line(10, "Milan"), line(9, "Milan", "Genoa"), ""},
		"more statuses than the strict one": {attest.KindTDX, statuses("OutOfDate", "UpToDate"), none, attest.CodeRevoked},
		"the strict one":                    {attest.KindTDX, none, statuses("OutOfDate", "UpToDate"), ""},
		"other statuses":                    {attest.KindTDX, statuses("OutOfDate"), statuses("SWHardeningNeeded", "UpToDate"), attest.CodeRevoked},
	} {
		t.Run(name, func(t *testing.T) {
			m := hardware(t, 3)
			matched, kept := hardEntry(t, tc.kind, "y", tc.matched), hardEntry(t, tc.kind, "y", tc.kept)
			m.ok(m.order(m.propose(add(matched), add(kept)), 3))
			run := measured{tc.kind, matched.Measurement, matched.ID}
			if code := m.s.allows(run, allRoles, m.at); code != "" {
				t.Fatalf("before: %q", code)
			}
			m.ok(m.order(m.propose(removeID(matched.ID)), 2))
			if code := m.s.allows(run, allRoles, m.at); code != tc.want {
				t.Errorf("got %q, want %q", code, tc.want)
			}
			run.Reference = kept.ID
			if code := m.s.allows(run, allRoles, m.at); code != "" {
				t.Errorf("who matched the one that is left: %q", code)
			}
			if unknown := m.s.allows(measured{tc.kind, matched.Measurement, strings.Repeat("0", 16)}, allRoles, m.at); (unknown == "") != (kept.MinimumTCB == nil && kept.TDX == nil) {
				t.Errorf("who matched nobody knows what: %q", unknown)
			}
		})
	}
	m := hardware(t, 3)
	a, b := hardEntry(t, attest.KindSEVSNP, "y"), hardEntry(t, attest.KindSEVSNP, "y", func(e *Entry) { e.Provenance = sha256Hex(nil) })
	m.ok(m.order(m.propose(add(a), add(b)), 3))
	run := measured{attest.KindSEVSNP, a.Measurement, a.ID}
	for _, step := range []struct {
		action Action
		want   attest.Code
	}{
		{Action{RemoveEntry: &RemoveEntry{ID: a.ID}}, ""},
		{limit(HardwareScope{Entry: b.ID}, "a", "b"), attest.CodeRevoked}, // which chip it is on is not known
		{limit(HardwareScope{Entry: a.ID}, "a"), attest.CodeRevoked},      // nor does a later list of the other one say it
	} {
		m.ok(m.order(m.propose(act(step.action)), 2))
		if code := m.s.allows(run, allRoles, m.at); code != step.want {
			t.Errorf("%+v: got %q, want %q", step.action, code, step.want)
		}
	}
}
