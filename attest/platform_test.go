package attest

import (
	"encoding/hex"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestPlatformDemands: each demand refuses what it is about, with its code, and nothing else;
// claims that meet it stay affirming.
func TestPlatformDemands(t *testing.T) {
	salt := [SaltSize]byte{1}
	chip, err := HardwareCommitment(salt, KindSEVSNP, strings.Repeat("ab", 64))
	if err != nil {
		t.Fatal(err)
	}
	listed := HardwareList{Of: "alpha", Listed: map[string]struct{}{chip: {}}}
	snp := func(change func(*Claims)) Claims {
		c := goodClaims()[KindSEVSNP]
		c.Hardware = chip
		s := *c.SEVSNP
		c.SEVSNP = &s
		change(&c)
		return c
	}
	tdx := func(change func(*TDXClaims)) Claims {
		c := goodClaims()[KindTDX]
		d := *c.TDX
		d.FMSPC, d.TCBStatus, d.TCBEvaluation, d.QEEvaluation, d.TCBDate = "00806f050000", "UpToDate", 17, 18, "2025-06-01T00:00:00Z"
		change(&d)
		c.TDX = &d
		return c
	}
	same, sameTD := func(*Claims) {}, func(*TDXClaims) {}
	high := goodClaims()[KindSEVSNP].SEVSNP.ReportedTCB
	above := high
	above.Microcode++
	line := goodClaims()[KindSEVSNP].SEVSNP.Product
	part := CPUID{Family: 0x19, Model: 1, Stepping: 1}
	for name, tc := range map[string]struct {
		claims    Claims
		platforms Platforms
		own       ReferencePlatform
		want      []Code
	}{
		"floor that is met":                {snp(same), Platforms{Floors: []Floor{{Product: line, SEVSNP: &high}}}, ReferencePlatform{}, nil},
		"floor above":                      {snp(same), Platforms{Floors: []Floor{{Product: line, SEVSNP: &above}}}, ReferencePlatform{}, []Code{CodeTCBBelowFloor, CodeTCBBelowFloor, CodeTCBBelowFloor}},
		"the same floor twice":             {snp(same), Platforms{Floors: []Floor{{Product: line, SEVSNP: &above}, {Product: line, SEVSNP: &above, From: judged.Add(-time.Hour)}}}, ReferencePlatform{}, []Code{CodeTCBBelowFloor, CodeTCBBelowFloor, CodeTCBBelowFloor}},
		"launched before the update":       {snp(func(c *Claims) { c.SEVSNP.LaunchTCB.Microcode-- }), Platforms{Floors: []Floor{{Product: line, SEVSNP: &high}}}, ReferencePlatform{}, []Code{CodeTCBBelowFloor}},
		"floor of another line":            {snp(same), Platforms{Floors: []Floor{{Product: "Turin", SEVSNP: &TCB{Microcode: 255}}}}, ReferencePlatform{}, nil},
		"floor from now on":                {snp(same), Platforms{Floors: []Floor{{Product: line, SEVSNP: &above, From: judged}}}, ReferencePlatform{}, []Code{CodeTCBBelowFloor, CodeTCBBelowFloor, CodeTCBBelowFloor}},
		"denied line":                      {snp(same), Platforms{Denied: []Product{{Line: line}}}, ReferencePlatform{}, []Code{CodePlatformDenied}},
		"denied other line":                {snp(same), Platforms{Denied: []Product{{Line: "Turin"}}}, ReferencePlatform{}, nil},
		"denied part":                      {snp(func(c *Claims) { c.SEVSNP.CPUID = &part }), Platforms{Denied: []Product{{CPUID: &part}}}, ReferencePlatform{}, []Code{CodePlatformDenied}},
		"denied other stepping":            {snp(func(c *Claims) { c.SEVSNP.CPUID = &part }), Platforms{Denied: []Product{{CPUID: &CPUID{0x19, 1, 2}}}}, ReferencePlatform{}, nil},
		"part not told, of the line":       {snp(func(c *Claims) { c.SEVSNP.CPUID, c.SEVSNP.Product = nil, "Milan" }), Platforms{Denied: []Product{{CPUID: &part}}}, ReferencePlatform{}, []Code{CodePlatformDenied}},
		"part not told, other line":        {snp(func(c *Claims) { c.SEVSNP.CPUID, c.SEVSNP.Product = nil, "Genoa" }), Platforms{Denied: []Product{{CPUID: &part}}}, ReferencePlatform{}, nil},
		"denied FMSPC":                     {tdx(sameTD), Platforms{Denied: []Product{{FMSPC: "00806f050000"}}}, ReferencePlatform{}, []Code{CodePlatformDenied}},
		"FMSPC not told":                   {tdx(func(c *TDXClaims) { c.FMSPC = "" }), Platforms{Denied: []Product{{FMSPC: "00806f050000"}}}, ReferencePlatform{}, []Code{CodePlatformDenied}},
		"denied other FMSPC":               {tdx(sameTD), Platforms{Denied: []Product{{FMSPC: "00806f050001"}}}, ReferencePlatform{}, nil},
		"evaluation number":                {tdx(sameTD), Platforms{Floors: []Floor{{TDX: &TDXDemand{MinimumTCBEvaluation: 18}}}}, ReferencePlatform{}, []Code{CodeTCBEvaluation}},
		"evaluation number met":            {tdx(sameTD), Platforms{Floors: []Floor{{TDX: &TDXDemand{MinimumTCBEvaluation: 17}}}}, ReferencePlatform{}, nil},
		"date":                             {tdx(sameTD), Platforms{Floors: []Floor{{TDX: &TDXDemand{MinimumTCBDate: judged}}}}, ReferencePlatform{}, []Code{CodeTCBBelowFloor}},
		"date not told":                    {tdx(func(c *TDXClaims) { c.TCBDate = "" }), Platforms{Floors: []Floor{{TDX: &TDXDemand{MinimumTCBDate: judged.AddDate(-10, 0, 0)}}}}, ReferencePlatform{}, []Code{CodeTCBBelowFloor}},
		"advisory":                         {tdx(func(c *TDXClaims) { c.Advisories = []string{"INTEL-SA-00001"} }), Platforms{Floors: []Floor{{TDX: &TDXDemand{RejectedAdvisoryIDs: []string{"INTEL-SA-00001"}}}}}, ReferencePlatform{}, []Code{CodeAdvisory}},
		"entry's floor":                    {snp(same), Platforms{}, ReferencePlatform{MinimumTCB: map[string]TCB{line: above}}, []Code{CodeTCBBelowFloor, CodeTCBBelowFloor, CodeTCBBelowFloor}},
		"entry without this line":          {snp(same), Platforms{}, ReferencePlatform{MinimumTCB: map[string]TCB{"Turin": {}}}, []Code{CodeProduct}},
		"entry's statuses":                 {tdx(func(c *TDXClaims) { c.TCBStatus = "SWHardeningNeeded" }), Platforms{}, ReferencePlatform{TDX: TDXDemand{TCBStatuses: []string{"SWHardeningNeeded"}}}, nil},
		"entry's statuses, and floor":      {tdx(func(c *TDXClaims) { c.TCBStatus = "SWHardeningNeeded" }), Platforms{Floors: []Floor{{TDX: &TDXDemand{TCBStatuses: []string{"UpToDate"}}}}}, ReferencePlatform{TDX: TDXDemand{TCBStatuses: []string{"SWHardeningNeeded"}}}, []Code{CodeTCBStatus}},
		"revoked, though an entry says it": {tdx(func(c *TDXClaims) { c.TCBStatus = "Revoked" }), Platforms{}, ReferencePlatform{TDX: TDXDemand{TCBStatuses: []string{"Revoked"}}}, []Code{CodeTCBStatus}},
		"listed chip":                      {snp(same), Platforms{Hardware: []HardwareList{listed}}, ReferencePlatform{Hardware: &listed}, nil},
		"no salt":                          {snp(func(c *Claims) { c.Hardware = "" }), Platforms{Hardware: []HardwareList{listed}}, ReferencePlatform{}, []Code{CodeChipNotAllowed}},
		"unlisted chip":                    {snp(func(c *Claims) { c.Hardware = "00" }), Platforms{Hardware: []HardwareList{listed}}, ReferencePlatform{}, []Code{CodeChipNotAllowed}},
		"entry's list":                     {snp(func(c *Claims) { c.Hardware = "00" }), Platforms{}, ReferencePlatform{Hardware: &listed}, []Code{CodeChipNotAllowed}},
		"removed chip":                     {snp(same), Platforms{Hardware: []HardwareList{{Of: "alpha", Any: true, Removed: map[string]struct{}{chip: {}}}}}, ReferencePlatform{}, []Code{CodeChipNotAllowed}},
		"a list of any, and no salt":       {snp(func(c *Claims) { c.Hardware = "" }), Platforms{Hardware: []HardwareList{{Of: "alpha", Any: true}}}, ReferencePlatform{}, []Code{CodeChipNotAllowed}},
	} {
		p := goodPolicy()
		p.Platforms = tc.platforms
		p.SEVSNP.ChipIDs, p.TDX.TCBStatuses = []string{Any}, []string{"UpToDate"}
		for i := range p.References {
			p.References[i].Platform = tc.own
		}
		for _, l := range SEVSNPProducts() { // the floors of the section are none of this test's
			p.SEVSNP.MinimumTCB[l], p.SEVSNP.MinimumLaunchTCB[l], p.SEVSNP.MinimumFirmware[l] = TCB{}, TCB{}, FirmwareVersion{}
		}
		p.TDX.FMSPC, p.TDX.MinimumTCBEvaluation, p.TDX.MinimumTCBDate = []string{Any}, 0, ""
		r := Appraise(tc.claims, p, judged)
		if !slices.Equal(codes(r), tc.want) || r.Affirming() != (tc.want == nil) {
			t.Errorf("%s: %s %v, want %v", name, r.Verdict, r.Reasons, tc.want)
		}
		if tc.want != nil && r.Vector.Hardware != vectorContraindicated {
			t.Errorf("%s: hardware %d", name, r.Vector.Hardware)
		}
		for _, why := range r.Reasons {
			if why.Remedy == "" {
				t.Errorf("%s: %v has no remedy", name, why)
			}
		}
	}
}

// TestFloorAhead: a floor is a note until the very moment of its time, and a refusal from then.
func TestFloorAhead(t *testing.T) {
	c, p := goodClaims()[KindSEVSNP], goodPolicy()
	above := c.SEVSNP.ReportedTCB
	above.SNP++
	from := judged.Add(time.Minute)
	p.Platforms.Floors = []Floor{{Product: c.SEVSNP.Product, SEVSNP: &above, From: from}}
	r := Appraise(c, p, from.Add(-time.Millisecond))
	if !r.Affirming() || r.Code() != CodeFloorAhead || r.Vector.Hardware != vectorAffirming || !strings.Contains(r.Reasons[0].Want, from.Format(time.RFC3339)) {
		t.Errorf("before: %+v", r)
	}
	if r := Appraise(c, p, from); r.Affirming() || r.Code() != CodeTCBBelowFloor {
		t.Errorf("at the time: %+v", r)
	}
}

// TestTwoEntriesOneMeasurement: hardware that one entry objects to may suit another one.
func TestTwoEntriesOneMeasurement(t *testing.T) {
	c, p := goodClaims()[KindSEVSNP], goodPolicy()
	above := c.SEVSNP.ReportedTCB
	above.SNP++
	strict := p.References[0]
	strict.ID, strict.Platform.MinimumTCB = "strict", map[string]TCB{c.SEVSNP.Product: above}
	for _, refs := range [][]Reference{{strict, p.References[0]}, {p.References[0], strict}} {
		p.References = refs
		if r := Appraise(c, p, judged); !r.Affirming() || r.Reference != "ref-"+KindSEVSNP {
			t.Errorf("%s: got %+v", refs[0].ID, r)
		}
	}
	p.References = []Reference{strict}
	if r := Appraise(c, p, judged); r.Affirming() || r.Reference != "strict" {
		t.Errorf("the strict one alone: %+v", r)
	}
}

// TestRaise: floors come to the same in whatever order they are raised, none covers another,
// and what was demanded stays demanded.
func TestRaise(t *testing.T) {
	tcb := func(bl, snp uint8) *TCB { return &TCB{BootLoader: bl, SNP: snp} }
	floors := []Floor{{Product: "Milan", SEVSNP: tcb(3, 8)}, {Product: "Milan", SEVSNP: tcb(4, 7)}, {Product: "Milan", SEVSNP: tcb(4, 8), From: judged},
		{Product: "Milan", SEVSNP: tcb(3, 7), From: judged}, {Product: "Genoa", SEVSNP: tcb(9, 9)}, {TDX: &TDXDemand{MinimumTCBEvaluation: 17}},
		{TDX: &TDXDemand{MinimumTCBEvaluation: 18, TCBStatuses: []string{"UpToDate"}}}, {TDX: &TDXDemand{TCBStatuses: []string{"SWHardeningNeeded", "UpToDate"}}},
		{TDX: &TDXDemand{MinimumTCBDate: judged}}, {TDX: &TDXDemand{RejectedAdvisoryIDs: []string{"a"}}}}
	want := map[int]bool{0: true, 1: true, 2: true, 4: true, 6: true, 8: true, 9: true}
	for shift := range floors {
		var got []Floor
		for i := range floors {
			got, _ = Raise(got, floors[(i+shift)%len(floors)])
		}
		if len(got) != len(want) {
			t.Errorf("from %d: %d floors remain, want %d: %+v", shift, len(got), len(want), got)
		}
		for i, f := range floors {
			if !Covered(got, f) {
				t.Errorf("from %d: %+v is demanded no more", shift, f)
			}
			if again, raised := Raise(got, f); raised || len(again) != len(got) {
				t.Errorf("from %d: floor %d raised again", shift, i)
			}
		}
	}
}

// TestHardwareCommitment: the bytes are fixed, and every input decides.
func TestHardwareCommitment(t *testing.T) {
	var salt [SaltSize]byte
	for i := range salt {
		salt[i] = byte(i)
	}
	id := strings.Repeat("c0ffee", 4)
	got, err := HardwareCommitment(salt, KindTDX, id)
	if err != nil {
		t.Fatal(err)
	}
	const want = "919155466898ad067373d0695f15b5ee4514cd8cd458741f1daf5759554c28d6"
	if got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	seen := map[string]bool{got: true}
	other := salt
	other[31] ^= 1
	for _, c := range []struct {
		salt     [SaltSize]byte
		kind, id string
	}{{other, KindTDX, id}, {salt, KindSEVSNP, id}, {salt, KindTDX, id + "00"}} {
		sum, err := HardwareCommitment(c.salt, c.kind, c.id)
		if raw, bad := hex.DecodeString(sum); err != nil || bad != nil || len(raw) != 32 || seen[sum] {
			t.Errorf("%+v: %q %v", c, sum, err)
		}
		seen[sum] = true
	}
	for _, id := range []string{"", "zz", "abc"} {
		if _, err := HardwareCommitment(salt, KindTDX, id); err == nil {
			t.Errorf("%q was committed to", id)
		}
	}
}
