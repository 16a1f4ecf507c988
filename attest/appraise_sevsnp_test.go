package attest

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// goodSEVSNP are claims with every field that a policy can ask for set.
func goodSEVSNP() *SEVSNPClaims {
	tcb := TCB{0, 3, 0, 8, 100}
	return &SEVSNPClaims{Version: 5, Product: "Milan", Policy: 1<<17 | 1<<20 | 1<<22 | 1<<23 | 1<<24 | 1<<25 | 0x0133,
		ABI: FirmwareVersion{Major: 1, Minor: 51}, SingleSocket: true, MemAES256XTS: true, RAPLDis: true, CiphertextHidingDRAM: true,
		PageSwapDisable: true, PlatformInfo: 1 << 5, PlatformInfoBits: []string{"alias_check_complete"},
		GuestSVN: 3, FamilyID: "f0", ImageID: "f1", VMPL: 1, HostData: "f2", IDKeyDigest: "f3", AuthorKey: "f4", ChipID: "aa",
		SigningKey: "VCEK", CurrentTCB: tcb, ReportedTCB: tcb, CommittedTCB: tcb, LaunchTCB: tcb,
		CurrentVersion: FirmwareVersion{1, 55, 21}, CommittedVersion: FirmwareVersion{1, 55, 21},
		LaunchMitVector: 0b11, CurrentMitVector: 0b111, CRL: CRLGood}
}

// goodSEVSNPPolicy makes every demand, and goodSEVSNP meets each just so.
func goodSEVSNPPolicy() *SEVSNPPolicy {
	floor := map[string]TCB{"Milan": {0, 3, 0, 8, 100}}
	return &SEVSNPPolicy{RequireSingleSocket: true, RequireMemAES256XTS: true, RequireRAPLDis: true, RequireCiphertextHiding: true,
		RequirePageSwapDisable: true, MinimumABI: FirmwareVersion{Major: 1, Minor: 51},
		PlatformInfoRequired: []string{"alias_check_complete"}, PlatformInfoAllowed: []string{"alias_check_complete"},
		CSPIDs: []string{"cloud"}, ChipIDs: []string{"ab", "aa"}, VMPL: []uint32{1}, HostData: []string{"f2"}, FamilyIDs: []string{"f0"}, ImageIDs: []string{"f1"},
		IDKeyDigests: []string{"f3"}, AuthorKeyDigests: []string{"f4"}, MinimumGuestSVN: 3,
		MinimumTCB: floor, MinimumLaunchTCB: floor, MinimumFirmware: map[string]FirmwareVersion{"Milan": {1, 55, 21}},
		LaunchMitVector: 0b11, CurrentMitVector: 0b101, RequireCRL: true}
}

// TestSEVSNPOneThingWrong spoils one claim at a time: each check is the only one that sees
// it, so that a check which is removed is missed here.
func TestSEVSNPOneThingWrong(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*SEVSNPClaims)
		claim string
		code  Code
	}{
		"debug":             {func(c *SEVSNPClaims) { c.Debug = true }, "debug", CodeDebug},
		"migration":         {func(c *SEVSNPClaims) { c.MigrateMA = true }, "migrate_ma", CodeMigratable},
		"smt":               {func(c *SEVSNPClaims) { c.SMT = true }, "smt", CodeSMT},
		"cxl":               {func(c *SEVSNPClaims) { c.CXLAllow = true }, "cxl_allow", CodeGuestPolicy},
		"sockets":           {func(c *SEVSNPClaims) { c.SingleSocket = false }, "single_socket", CodeGuestPolicy},
		"aes":               {func(c *SEVSNPClaims) { c.MemAES256XTS = false }, "mem_aes_256_xts", CodeGuestPolicy},
		"rapl":              {func(c *SEVSNPClaims) { c.RAPLDis = false }, "rapl_dis", CodeGuestPolicy},
		"ciphertext hiding": {func(c *SEVSNPClaims) { c.CiphertextHidingDRAM = false }, "ciphertext_hiding_dram", CodeGuestPolicy},
		"page swap":         {func(c *SEVSNPClaims) { c.PageSwapDisable = false }, "page_swap_disable", CodeGuestPolicy},
		"unknown bit":       {func(c *SEVSNPClaims) { c.Policy |= 1 << 26 }, "policy", CodeGuestPolicy},
		"bit 17":            {func(c *SEVSNPClaims) { c.Policy &^= 1 << 17 }, "policy", CodeGuestPolicy},
		"abi minor":         {func(c *SEVSNPClaims) { c.ABI.Minor-- }, "abi", CodeGuestPolicy},
		"abi major":         {func(c *SEVSNPClaims) { c.ABI = FirmwareVersion{Minor: 99} }, "abi", CodeGuestPolicy},
		"alias check":       {func(c *SEVSNPClaims) { c.PlatformInfoBits = nil }, "platform_info.alias_check_complete", CodePlatformInfo},
		"tio":               {func(c *SEVSNPClaims) { c.PlatformInfoBits = append(c.PlatformInfoBits, "tio_en") }, "platform_info.tio_en", CodePlatformInfo},
		"unknown platform":  {func(c *SEVSNPClaims) { c.PlatformInfoBits = append(c.PlatformInfoBits, "bit9") }, "platform_info.bit9", CodePlatformInfo},
		"vlek":              {func(c *SEVSNPClaims) { c.SigningKey, c.CSPID = "VLEK", "cloud" }, "signing_key", CodeSigningKey},
		"no key":            {func(c *SEVSNPClaims) { c.SigningKey = "" }, "signing_key", CodeSigningKey},
		"masked":            {func(c *SEVSNPClaims) { c.ChipID = "0000" }, "chip_id", CodeMaskedChipID},
		"chip":              {func(c *SEVSNPClaims) { c.ChipID = "ac" }, "chip_id", CodeChipNotAllowed},
		"vmpl":              {func(c *SEVSNPClaims) { c.VMPL = 0 }, "vmpl", CodeVMPL},
		"host data":         {func(c *SEVSNPClaims) { c.HostData = "f3" }, "host_data", CodeHostData},
		"family":            {func(c *SEVSNPClaims) { c.FamilyID = "ff" }, "family_id", CodeIDBlock},
		"image":             {func(c *SEVSNPClaims) { c.ImageID = "ff" }, "image_id", CodeIDBlock},
		"id key":            {func(c *SEVSNPClaims) { c.IDKeyDigest = "ff" }, "id_key_digest", CodeIDBlock},
		"author key":        {func(c *SEVSNPClaims) { c.AuthorKey = "ff" }, "author_key_digest", CodeIDBlock},
		"svn":               {func(c *SEVSNPClaims) { c.GuestSVN-- }, "guest_svn", CodeIDBlock},
		"product":           {func(c *SEVSNPClaims) { c.Product = "Genoa" }, "product", CodeProduct},
		"reported bl":       {func(c *SEVSNPClaims) { c.ReportedTCB.BootLoader-- }, "reported_tcb", CodeTCBBelowFloor},
		"reported ucode":    {func(c *SEVSNPClaims) { c.ReportedTCB.Microcode-- }, "reported_tcb", CodeTCBBelowFloor},
		"committed snp":     {func(c *SEVSNPClaims) { c.CommittedTCB.SNP-- }, "committed_tcb", CodeTCBBelowFloor},
		"launch":            {func(c *SEVSNPClaims) { c.LaunchTCB.SNP-- }, "launch_tcb", CodeTCBBelowFloor},
		"firmware build": {func(c *SEVSNPClaims) {
			c.CommittedVersion.Build--
			c.CurrentVersion = c.CommittedVersion
		}, "committed_version", CodeTCBBelowFloor},
		"firmware minor": {func(c *SEVSNPClaims) {
			c.CommittedVersion = FirmwareVersion{1, 54, 99}
			c.CurrentVersion = c.CommittedVersion
		}, "committed_version", CodeTCBBelowFloor},
		"provisional":        {func(c *SEVSNPClaims) { c.CurrentVersion.Build++ }, "current_version", CodeProvisional},
		"launch mitigation":  {func(c *SEVSNPClaims) { c.LaunchMitVector = 0b10 }, "launch_mit_vector", CodeMitigation},
		"current mitigation": {func(c *SEVSNPClaims) { c.CurrentMitVector = 0b110 }, "current_mit_vector", CodeMitigation},
		"no list":            {func(c *SEVSNPClaims) { c.CRL = "" }, "crl", CodeCollateralMissing},
		"stale list":         {func(c *SEVSNPClaims) { c.CRL = CRLStale }, "crl", CodeCollateralStale},
		"a list's nonsense":  {func(c *SEVSNPClaims) { c.CRL = "fine" }, "crl", CodeCollateralMissing},
	} {
		c := goodClaims()[KindSEVSNP]
		tc.spoil(c.SEVSNP)
		r := Appraise(c, goodPolicy(), judged)
		want := VerdictContraindicated
		if tc.claim == "crl" {
			want = VerdictNone
		}
		if r.Verdict != want || len(r.Reasons) != 1 || r.Code() != tc.code || r.Reasons[0].Claim != "sevsnp."+tc.claim || r.Reasons[0].Remedy == "" {
			t.Errorf("%s: got %s %v, want %s of sevsnp.%s", name, r.Verdict, r.Reasons, tc.code, tc.claim)
		}
		if !r.Vector.bears(r.Verdict) || r.Vector.Hardware == vectorContraindicated && r.Vector.RuntimeOpaque == vectorContraindicated {
			t.Errorf("%s: verdict %s over %+v", name, r.Verdict, r.Vector)
		}
	}
}

// TestSEVSNPOneThingAllowed: what the policy accepts is accepted, by the field for it.
func TestSEVSNPOneThingAllowed(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*SEVSNPClaims)
		allow func(*SEVSNPPolicy)
	}{
		"debug":         {func(c *SEVSNPClaims) { c.Debug = true }, func(p *SEVSNPPolicy) { p.AllowDebug = true }},
		"migration":     {func(c *SEVSNPClaims) { c.MigrateMA = true }, func(p *SEVSNPPolicy) { p.AllowMigrateMA = true }},
		"smt":           {func(c *SEVSNPClaims) { c.SMT = true }, func(p *SEVSNPPolicy) { p.AllowSMT = true }},
		"cxl":           {func(c *SEVSNPClaims) { c.CXLAllow = true }, func(p *SEVSNPPolicy) { p.AllowCXL = true }},
		"vlek":          {func(c *SEVSNPClaims) { c.SigningKey, c.CSPID = "VLEK", "cloud" }, func(p *SEVSNPPolicy) { p.AllowVLEK = true }},
		"masked":        {func(c *SEVSNPClaims) { c.ChipID = "00" }, func(p *SEVSNPPolicy) { p.AllowMaskedID, p.ChipIDs = true, nil }},
		"platform":      {func(c *SEVSNPClaims) { c.PlatformInfoBits = append(c.PlatformInfoBits, "bit6") }, func(p *SEVSNPPolicy) { p.PlatformInfoAllowed = []string{Any} }},
		"any host data": {func(c *SEVSNPClaims) { c.HostData = "" }, func(p *SEVSNPPolicy) { p.HostData = []string{Any} }},
		"provisional":   {func(c *SEVSNPClaims) { c.CurrentVersion.Build++ }, func(p *SEVSNPPolicy) { p.AllowProvisionalFirmware = true }},
		"no list":       {func(c *SEVSNPClaims) { c.CRL = "" }, func(p *SEVSNPPolicy) { p.RequireCRL = false }},
	} {
		c, p := goodClaims()[KindSEVSNP], goodPolicy()
		tc.spoil(c.SEVSNP)
		tc.allow(p.SEVSNP)
		if r := Appraise(c, p, judged); !r.Affirming() {
			t.Errorf("%s: got %s %v", name, r.Verdict, r.Reasons)
		}
	}
}

// TestSEVSNPForeignVLEK: a provider that is not listed is refused, and "any" is a wildcard
// alone only.
func TestSEVSNPForeignVLEK(t *testing.T) {
	c, p := goodClaims()[KindSEVSNP], goodPolicy()
	c.SEVSNP.SigningKey, c.SEVSNP.CSPID, p.SEVSNP.AllowVLEK = "VLEK", "another", true
	for _, list := range [][]string{{"cloud"}, {}, {Any, "cloud"}, {""}} {
		p.SEVSNP.CSPIDs = list
		if r := Appraise(c, p, judged); r.Code() != CodeSigningKey || r.Reasons[0].Claim != "sevsnp.csp_id" {
			t.Errorf("%q: got %v", list, r.Reasons)
		}
	}
}

// TestSEVSNPStrict: the default demands what can be demanded of every guest, and no more:
// bits of PLATFORM_INFO without a name are seen on genuine machines.
func TestSEVSNPStrict(t *testing.T) {
	c, p := goodClaims()[KindSEVSNP], StrictPolicy()
	c.SEVSNP.Product = "Turin"
	c.SEVSNP.PlatformInfoBits = SEVSNPPlatformInfo(0x67) // a genuine one of Turin's, with a bit that has no name
	if r := Appraise(c, p, judged); r.Verdict != VerdictWarning || r.Code() != CodeNoReferenceValues {
		t.Errorf("got %s %v", r.Verdict, r.Reasons)
	}
	for name, spoil := range map[string]func(*SEVSNPClaims){
		"debug": func(c *SEVSNPClaims) { c.Debug = true }, "migration": func(c *SEVSNPClaims) { c.MigrateMA = true },
		"cxl": func(c *SEVSNPClaims) { c.CXLAllow = true }, "unknown bit": func(c *SEVSNPClaims) { c.Policy |= 1 << 40 },
		"product": func(c *SEVSNPClaims) { c.Product = "Naples" },
	} {
		c := goodClaims()[KindSEVSNP]
		spoil(c.SEVSNP)
		if r := Appraise(c, p, judged); r.Verdict != VerdictContraindicated {
			t.Errorf("%s: got %s %v", name, r.Verdict, r.Reasons)
		}
	}
}

func TestSEVSNPPlatformInfo(t *testing.T) {
	got := SEVSNPPlatformInfo(1<<63 | 0xff)
	want := []string{"smt_en", "tsme_en", "ecc_en", "rapl_dis", "ciphertext_hiding_dram_en", "alias_check_complete", "bit6", "tio_en", "bit63"}
	if !slices.Equal(got, want) || len(SEVSNPPlatformInfo(0)) != 0 {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestForecastSEVSNP: it names the components that a raised floor would find short, and
// says just what Appraise would say under that floor.
func TestForecastSEVSNP(t *testing.T) {
	c := goodClaims()[KindSEVSNP]
	c.SEVSNP.LaunchTCB.SNP = 7
	for _, floor := range []TCB{{}, {0, 3, 0, 7, 100}, {0, 3, 0, 8, 100}, {0, 4, 0, 8, 101}, {1, 3, 1, 9, 100}} {
		got := ForecastSEVSNP(c, floor)
		p := goodPolicy()
		p.SEVSNP.MinimumTCB = map[string]TCB{"Milan": floor}
		p.SEVSNP.MinimumLaunchTCB = p.SEVSNP.MinimumTCB
		r := Appraise(c, p, judged)
		if (len(got) == 0) != r.Affirming() || len(r.Reasons) != len(got) {
			t.Errorf("floor %s: forecast %v, appraisal %v", floor, got, r.Reasons)
			continue
		}
		for i, s := range got {
			if r.Reasons[i].Claim != s.Claim || !strings.Contains(r.Reasons[i].String(), s.Component+"=") || s.Got >= s.Want || s.String() == "" {
				t.Errorf("floor %s: forecast %v, appraisal %v", floor, s, r.Reasons[i])
			}
		}
	}
	want := []Shortfall{{"sevsnp.reported_tcb", "ucode", 100, 101}, {"sevsnp.committed_tcb", "ucode", 100, 101},
		{"sevsnp.launch_tcb", "snp", 7, 8}, {"sevsnp.launch_tcb", "ucode", 100, 101}}
	if got := ForecastSEVSNP(c, TCB{0, 3, 0, 8, 101}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := ForecastSEVSNP(goodClaims()[KindTDX], TCB{Microcode: 9}); got != nil {
		t.Errorf("of TDX claims: %v", got)
	}
}

// TestSEVSNPClaimsAreKept: claims that were written and read again are judged as before.
func TestSEVSNPClaimsAreKept(t *testing.T) {
	c := goodClaims()[KindSEVSNP]
	next := time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC)
	c.SEVSNP.CRLNextUpdate, c.SEVSNP.CertificateNotAfter, c.SEVSNP.CPUID = &next, next, &CPUID{0x19, 1, 1}
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var back Claims
	if err := json.Unmarshal(raw, &back); err != nil || !reflect.DeepEqual(back, c) {
		t.Errorf("%v: got %+v, want %+v", err, back.SEVSNP, c.SEVSNP)
	}
}

// TestSEVSNPPolicyTags: the policy file has every field, each under its own name.
func TestSEVSNPPolicyTags(t *testing.T) {
	seen := map[string]bool{}
	shape := reflect.TypeFor[SEVSNPPolicy]()
	for i := range shape.NumField() {
		tag := shape.Field(i).Tag.Get("yaml")
		if tag == "" || seen[tag] || tag != strings.ToLower(tag) {
			t.Errorf("%s has the tag %q", shape.Field(i).Name, tag)
		}
		seen[tag] = true
	}
}

func BenchmarkAppraiseSEVSNP(b *testing.B) {
	c, p := goodClaims()[KindSEVSNP], goodPolicy()
	b.ReportAllocs()
	for b.Loop() {
		if !Appraise(c, p, judged).Affirming() {
			b.Fatal("refused")
		}
	}
}
