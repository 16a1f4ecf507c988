package attest

import (
	"slices"
	"strings"
	"testing"
)

// goodTDX are claims that goodTDXPolicy admits.
func goodTDX() *TDXClaims {
	return &TDXClaims{QuoteVersion: 5, BodyType: 3, TDAttributes: "0000005000000000", SEPTVEDisable: true, XFAM: "e700060000000000",
		MRSEAM: "a0", MRServiceTD: "a1", MRConfigID: "a2", MROwner: "a3", MROwnerConfig: "a4", FMSPC: "a5",
		TCBStatus: "UpToDate", TCBDate: "2024-11-13T00:00:00Z", TCBEvaluation: 18, QEEvaluation: 19, Advisories: []string{"INTEL-SA-00001"}, Boot: goodBoot()}
}

func goodTDXPolicy() *TDXPolicy {
	one := func(v string) []string { return []string{"00", v} }
	return &TDXPolicy{TDAttributesAllowed: tdAttrPKS, XFAMAllowed: 0x6DBE7, TCBStatuses: []string{"UpToDate"},
		RejectedAdvisoryIDs: []string{"INTEL-SA-00002"}, MinimumTCBEvaluation: 18, MinimumTCBDate: "2024-11-13T00:00:00Z",
		MRSEAM: one("a0"), MRServiceTD: one("a1"), MRConfigID: one("a2"), MROwner: one("a3"), MROwnerConfig: one("a4"), FMSPC: one("a5"), PPID: one("ppid"), Boot: goodBootPolicy()}
}

// TestOneThingWrongInTDX spoils one claim at a time: each is refused by its own code, and
// by nothing else.
func TestOneThingWrongInTDX(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*TDXClaims)
		want  Code
	}{
		"debug":           {func(c *TDXClaims) { c.Debug = true }, CodeDebug},
		"debug bit":       {func(c *TDXClaims) { c.TDAttributes = "0100001000000000" }, CodeDebug},
		"profiling bit":   {func(c *TDXClaims) { c.TDAttributes = "2000001000000000" }, CodeDebug},
		"migratable":      {func(c *TDXClaims) { c.TDAttributes = "0000003000000000" }, CodeMigratable},
		"other attribute": {func(c *TDXClaims) { c.TDAttributes = "0000009000000000" }, CodeTDAttributes},
		"high attribute":  {func(c *TDXClaims) { c.TDAttributes = "0000001000000080" }, CodeTDAttributes},
		"no attributes":   {func(c *TDXClaims) { c.TDAttributes = "" }, CodeMalformed},
		"no XFAM":         {func(c *TDXClaims) { c.XFAM = "e7" }, CodeMalformed},
		"sept":            {func(c *TDXClaims) { c.SEPTVEDisable = false }, CodeSEPTVEDisable},
		"sept bit":        {func(c *TDXClaims) { c.TDAttributes = "0000000000000000" }, CodeSEPTVEDisable},
		"xfam":            {func(c *TDXClaims) { c.XFAM = "e7001e0000000000" }, CodeXFAM},
		"out of date":     {func(c *TDXClaims) { c.TCBStatus = "OutOfDate" }, CodeTCBStatus},
		"configuration":   {func(c *TDXClaims) { c.TCBStatus = "ConfigurationNeeded" }, CodeTCBStatus},
		"hardening":       {func(c *TDXClaims) { c.TCBStatus = "SWHardeningNeeded" }, CodeTCBStatus},
		"relaunch":        {func(c *TDXClaims) { c.TCBStatus = "TDRelaunchAdvised" }, CodeTCBStatus},
		"advisory":        {func(c *TDXClaims) { c.Advisories = append(c.Advisories, "intel-sa-00002") }, CodeAdvisory},
		"TCB evaluation":  {func(c *TDXClaims) { c.TCBEvaluation = 17 }, CodeTCBEvaluation},
		"QE evaluation":   {func(c *TDXClaims) { c.QEEvaluation = 17 }, CodeTCBEvaluation},
		"TCB date":        {func(c *TDXClaims) { c.TCBDate = "2024-11-12T23:59:59Z" }, CodeTCBBelowFloor},
		"no TCB date":     {func(c *TDXClaims) { c.TCBDate = "" }, CodeTCBBelowFloor},
		"MRSEAM":          {func(c *TDXClaims) { c.MRSEAM = "ff" }, CodeSEAM},
		"service TD":      {func(c *TDXClaims) { c.MRServiceTD = "ff" }, CodeServiceTD},
		"no service TD":   {func(c *TDXClaims) { c.MRServiceTD = "" }, CodeServiceTD},
		"MRCONFIGID":      {func(c *TDXClaims) { c.MRConfigID = "ff" }, CodeTDConfiguration},
		"MROWNER":         {func(c *TDXClaims) { c.MROwner = "ff" }, CodeTDConfiguration},
		"MROWNERCONFIG":   {func(c *TDXClaims) { c.MROwnerConfig = "ff" }, CodeTDConfiguration},
		"FMSPC":           {func(c *TDXClaims) { c.FMSPC = "ff" }, CodePlatformNotAllowed},
		"no collateral":   {func(c *TDXClaims) { c.TCBStatus = "" }, CodeCollateralMissing},
		"stale":           {func(c *TDXClaims) { c.TCBStatus, c.CollateralStale = "", true }, CodeCollateralStale},
	} {
		c := goodClaims()[KindTDX]
		tc.spoil(c.TDX)
		want := VerdictContraindicated
		if c.TDX.TCBStatus == "" {
			want = VerdictNone
		}
		if r := Appraise(c, goodPolicy(), judged); r.Verdict != want || !slices.Equal(codes(r), []Code{tc.want}) {
			t.Errorf("%s: %s %v, want %s %s alone", name, r.Verdict, r.Reasons, want, tc.want)
		}
	}
	c := goodClaims()[KindTDX]
	c.HardwareID = "another"
	if r := Appraise(c, goodPolicy(), judged); !slices.Equal(codes(r), []Code{CodePlatformNotAllowed}) {
		t.Errorf("PPID: %v", r.Reasons)
	}
}

// TestTDXPolicyAllows: each demand can be given up alone.
func TestTDXPolicyAllows(t *testing.T) {
	for name, tc := range map[string]struct {
		claims func(*TDXClaims)
		policy func(*TDXPolicy)
	}{
		"debug":      {func(c *TDXClaims) { c.Debug, c.TDAttributes = true, "0100001000000000" }, func(p *TDXPolicy) { p.AllowDebug = true }},
		"migratable": {func(c *TDXClaims) { c.TDAttributes = "0000003000000000" }, func(p *TDXPolicy) { p.AllowMigratable = true }},
		"sept": {func(c *TDXClaims) { c.SEPTVEDisable, c.TDAttributes = false, "0000000000000000" },
			func(p *TDXPolicy) { p.AllowNoSEPTVEDisable = true }},
		"attribute":  {func(c *TDXClaims) { c.TDAttributes = "0000001000000080" }, func(p *TDXPolicy) { p.TDAttributesAllowed |= tdAttrPerfmon }},
		"advisory":   {func(c *TDXClaims) { c.Advisories = []string{"INTEL-SA-00002"} }, func(p *TDXPolicy) { p.RejectedAdvisoryIDs = nil }},
		"evaluation": {func(c *TDXClaims) { c.TCBEvaluation = 0 }, func(p *TDXPolicy) { p.MinimumTCBEvaluation = 0 }},
		"date":       {func(c *TDXClaims) { c.TCBDate = "" }, func(p *TDXPolicy) { p.MinimumTCBDate = "" }},
		"MRSEAM":     {func(c *TDXClaims) { c.MRSEAM = "ff" }, func(p *TDXPolicy) { p.MRSEAM = []string{Any} }},
		"service TD": {func(c *TDXClaims) { c.MRServiceTD = "" }, func(p *TDXPolicy) { p.MRServiceTD = []string{Any} }},
	} {
		c, p := goodClaims()[KindTDX], goodPolicy()
		tc.claims(c.TDX)
		if r := Appraise(c, p, judged); r.Affirming() {
			t.Errorf("%s: admitted without being allowed", name)
		}
		tc.policy(p.TDX)
		if r := Appraise(c, p, judged); !r.Affirming() {
			t.Errorf("%s: refused though allowed: %v", name, r.Reasons)
		}
	}
}

// TestTCBStatusTable: what a policy lists is accepted if it is a status of a platform that
// can be trusted at all; a revoked one, and a word that nobody knows, never is.
func TestTCBStatusTable(t *testing.T) {
	for _, status := range append(slices.Clone(acceptableTCB), "Revoked", "NoMatchingLevel", "UnrecognizedStatus", "Sunny") {
		c, p := goodClaims()[KindTDX], goodPolicy()
		c.TDX.TCBStatus = status
		if r := Appraise(c, p, judged); r.Affirming() != (status == "UpToDate") {
			t.Errorf("%s under UpToDate: %s", status, r.Verdict)
		}
		p.TDX.TCBStatuses = []string{"UpToDate", status}
		if r := Appraise(c, p, judged); r.Affirming() != slices.Contains(acceptableTCB, status) {
			t.Errorf("%s, listed: %s %v", status, r.Verdict, r.Reasons)
		}
	}
	c, p := goodClaims()[KindTDX], goodPolicy()
	p.TDX.MinimumTCBDate = "yesterday"
	if r := Appraise(c, p, judged); r.Affirming() {
		t.Error("a date that cannot be read asks for nothing")
	}
}

// TestTDXTextsThatAreNone: what cannot be read is below every floor.
func TestTDXTextsThatAreNone(t *testing.T) {
	a := &appraisal{}
	a.tdxDate("0001-01-01T00:00:00Z", "not a date")
	if len(a.result.Reasons) != 1 {
		t.Errorf("a date that is none: %v", a.result.Reasons)
	}
	for _, s := range []string{"", "00", "0011223344556677zz", "001122334455667788"} {
		if v, err := littleEndianHex(s); err == nil {
			t.Errorf("%q: %x", s, v)
		}
	}
}

func TestAttributeNames(t *testing.T) {
	for text, want := range map[string]string{"0000001000000000": "sept_ve_disable", "1100003000000080": "debug hgs_plus_prof sept_ve_disable migratable perfmon",
		"0000000000000000": "", "0200000000000000": "bit1", "00": "", "zz": ""} {
		if got := strings.Join((&TDXClaims{TDAttributes: text}).AttributeNames(), " "); got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}
