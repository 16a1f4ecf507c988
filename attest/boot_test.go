package attest

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

func goodBoot() *BootFacts {
	return &BootFacts{Format: "tcg", Bank: "sha256", SecureBoot: yes(), SBAT: map[string]uint64{"shim": 4},
		DBX:          &SignatureDatabase{Hashes: []string{"h1", "h2"}, Certificates: []CertificateFact{{Digest: "c1"}}},
		Components:   []BootComponent{{Register: "pcr4", Digest: "shim"}, {Register: "pcr4", Digest: "kernel"}},
		CommandLines: []CommandLine{{Source: "grub", Text: "root=/dev/ram0 rw", Digest: "of the text"}},
		// The second is SHA-256 of the command line in UTF-16 with a final zero, as the
		// kernel's EFI stub extends it.
		Files: []BootFile{{Register: "pcr9", Digest: "i1"}, {Register: "pcr9", Digest: stubLine}},
		MOK:   []string{"m1"}}
}

const stubLine = "b3500e45224ad1c3886e41b2bc02bb6ae741732d05eb16b269ebf685512435a0"

func goodBootPolicy() BootPolicy {
	return BootPolicy{MinimumDBX: []string{"h1", "c1"}, MinimumSBAT: map[string]uint64{"shim": 4},
		Components: []string{"shim", "kernel"}, CommandLines: []string{"root=/dev/ram0 rw"}, Files: []string{"i1"}, MOK: []string{"m1"}}
}

func goodIMA() *IMAFacts {
	return &IMAFacts{Bank: "sha256", Entries: 2, BootAggregate: "matches", Files: []IMAFile{{Digest: "sha256:f1", Path: "/bin/sh"}}}
}

func goodIMAPolicy() IMAPolicy { return IMAPolicy{Allowed: []string{"sha256:f1"}} }

// judge appraises boot facts and a list under policies that else admit everything.
func judge(b *BootFacts, p BootPolicy, m *IMAFacts, q IMAPolicy) Result {
	c, policy := goodClaims()[KindVTPM], goodPolicy()
	c.VTPM.Boot, c.VTPM.IMA = b, m
	policy.VTPM.Boot, policy.VTPM.IMA = p, q
	return Appraise(c, policy, judged)
}

// TestBootOneThingWrong spoils one fact at a time, or one demand.
func TestBootOneThingWrong(t *testing.T) {
	off := false
	for name, tc := range map[string]struct {
		spoil   func(*BootFacts, *BootPolicy, *IMAFacts, *IMAPolicy)
		code    Code
		verdict Verdict
	}{
		"secure boot off":      {func(b *BootFacts, _ *BootPolicy, _ *IMAFacts, _ *IMAPolicy) { b.SecureBoot = &off }, CodeSecureBootOff, VerdictContraindicated},
		"dma":                  {func(b *BootFacts, _ *BootPolicy, _ *IMAFacts, _ *IMAPolicy) { b.DMAUnprotected = true }, CodeFirmwareDebug, VerdictContraindicated},
		"secure boot unsaid":   {func(b *BootFacts, _ *BootPolicy, _ *IMAFacts, _ *IMAPolicy) { b.SecureBoot = nil }, CodeSecureBootOff, VerdictContraindicated},
		"debugger":             {func(b *BootFacts, _ *BootPolicy, _ *IMAFacts, _ *IMAPolicy) { b.FirmwareDebug = true }, CodeFirmwareDebug, VerdictContraindicated},
		"contradiction":        {func(b *BootFacts, _ *BootPolicy, _ *IMAFacts, _ *IMAPolicy) { b.Contradictions = []string{"two"} }, CodeBootLog, VerdictContraindicated},
		"dbx without a hash":   {func(b *BootFacts, _ *BootPolicy, _ *IMAFacts, _ *IMAPolicy) { b.DBX.Hashes = b.DBX.Hashes[1:] }, CodeDBXTooOld, VerdictContraindicated},
		"dbx without its cert": {func(b *BootFacts, _ *BootPolicy, _ *IMAFacts, _ *IMAPolicy) { b.DBX.Certificates = nil }, CodeDBXTooOld, VerdictContraindicated},
		"no dbx":               {func(b *BootFacts, _ *BootPolicy, _ *IMAFacts, _ *IMAPolicy) { b.DBX = nil }, CodeDBXTooOld, VerdictContraindicated},
		"old shim level":       {func(b *BootFacts, _ *BootPolicy, _ *IMAFacts, _ *IMAPolicy) { b.SBAT["shim"] = 3 }, CodeSBATTooOld, VerdictContraindicated},
		"no sbat":              {func(b *BootFacts, _ *BootPolicy, _ *IMAFacts, _ *IMAPolicy) { b.SBAT = nil }, CodeSBATTooOld, VerdictContraindicated},
		"sbat of others":       {func(_ *BootFacts, p *BootPolicy, _ *IMAFacts, _ *IMAPolicy) { p.MinimumSBAT["grub"] = 1 }, CodeSBATTooOld, VerdictContraindicated},
		"sbat at 0":            {func(_ *BootFacts, p *BootPolicy, _ *IMAFacts, _ *IMAPolicy) { p.MinimumSBAT["grub"] = 0 }, CodeSBATTooOld, VerdictContraindicated},
		"component":            {func(b *BootFacts, _ *BootPolicy, _ *IMAFacts, _ *IMAPolicy) { b.Components[1].Digest = "other" }, CodeBootComponent, VerdictContraindicated},
		"no components":        {func(b *BootFacts, _ *BootPolicy, _ *IMAFacts, _ *IMAPolicy) { b.Components = nil }, CodeBootComponent, VerdictContraindicated},
		"command line": {func(b *BootFacts, _ *BootPolicy, _ *IMAFacts, _ *IMAPolicy) {
			b.CommandLines[0].Text += " init=/bin/sh"
		}, CodeCommandLine, VerdictContraindicated},
		"command line digest": {func(b *BootFacts, _ *BootPolicy, _ *IMAFacts, _ *IMAPolicy) {
			b.CommandLines[0] = CommandLine{Source: "unread", Digest: "00"}
		}, CodeCommandLine, VerdictContraindicated},
		"unknown bank": {func(b *BootFacts, _ *BootPolicy, _ *IMAFacts, _ *IMAPolicy) { b.Bank = "sm3_256" }, CodeBootFile, VerdictContraindicated},
		"no command line": {func(b *BootFacts, _ *BootPolicy, _ *IMAFacts, _ *IMAPolicy) {
			b.CommandLines, b.Files = nil, b.Files[:1]
		}, CodeCommandLine, VerdictContraindicated},
		"mok": {func(b *BootFacts, _ *BootPolicy, _ *IMAFacts, _ *IMAPolicy) { b.MOK[0] = "m2" }, CodeMOK, VerdictContraindicated},
		"mok left out": {func(b *BootFacts, _ *BootPolicy, _ *IMAFacts, _ *IMAPolicy) {
			b.MOK, b.Unexplained = nil, []string{"pcr14"}
		}, CodeMOK, VerdictContraindicated},
		"images left out": {func(b *BootFacts, _ *BootPolicy, _ *IMAFacts, _ *IMAPolicy) { b.Unexplained = []string{"pcr2"} }, CodeBootComponent, VerdictContraindicated},
		"files left out":  {func(b *BootFacts, _ *BootPolicy, _ *IMAFacts, _ *IMAPolicy) { b.Unexplained = []string{"pcr9"} }, CodeBootFile, VerdictContraindicated},
		"lines left out": {func(b *BootFacts, p *BootPolicy, _ *IMAFacts, _ *IMAPolicy) {
			p.Files, b.Unexplained = []string{Any}, []string{"pcr12"}
		}, CodeCommandLine, VerdictContraindicated},
		"file":           {func(_ *BootFacts, _ *BootPolicy, m *IMAFacts, _ *IMAPolicy) { m.Files[0].Digest = "sha256:f2" }, CodeIMAUnlisted, VerdictContraindicated},
		"no files named": {func(_ *BootFacts, _ *BootPolicy, m *IMAFacts, q *IMAPolicy) { q.Allowed, m.Files = nil, nil }, CodeIMAUnlisted, VerdictContraindicated},
		"violation":      {func(_ *BootFacts, _ *BootPolicy, m *IMAFacts, _ *IMAPolicy) { m.Violations = 1 }, CodeIMAViolation, VerdictContraindicated},
		"unverified":     {func(_ *BootFacts, _ *BootPolicy, m *IMAFacts, _ *IMAPolicy) { m.Unverified = 1 }, CodeIMAUnverified, VerdictContraindicated},
		"unverified, any file": {func(_ *BootFacts, _ *BootPolicy, m *IMAFacts, q *IMAPolicy) {
			m.Unverified, q.Allowed = 1, []string{Any}
		}, CodeIMAUnverified, VerdictContraindicated},
		"boot aggregate": {func(_ *BootFacts, _ *BootPolicy, m *IMAFacts, _ *IMAPolicy) { m.BootAggregate = "differs" }, CodeIMAAggregate, VerdictContraindicated},
		"no entries":     {func(_ *BootFacts, _ *BootPolicy, m *IMAFacts, _ *IMAPolicy) { m.Entries, m.Files = 0, nil }, CodeIMAListMissing, VerdictContraindicated},
	} {
		b, p, m, q := goodBoot(), goodBootPolicy(), goodIMA(), goodIMAPolicy()
		if r := judge(b, p, m, q); !r.Affirming() {
			t.Fatalf("the good boot is refused: %v", r.Reasons)
		}
		tc.spoil(b, &p, m, &q)
		if r := judge(b, p, m, q); r.Verdict != tc.verdict || r.Code() != tc.code || len(r.Reasons) != 1 || r.Reasons[0].Remedy == "" {
			t.Errorf("%s: got %s %v, want %s %s", name, r.Verdict, r.Reasons, tc.verdict, tc.code)
		}
	}
}

// TestBootAllowances: what a policy says it accepts is accepted, and only that.
func TestBootAllowances(t *testing.T) {
	off := false
	good := judge(goodBoot(), goodBootPolicy(), goodIMA(), goodIMAPolicy())
	for name, r := range map[string]Result{
		"secure boot off": judge(func() *BootFacts { b := goodBoot(); b.SecureBoot = &off; return b }(),
			func() BootPolicy { p := goodBootPolicy(); p.AllowSecureBootOff = true; return p }(), goodIMA(), goodIMAPolicy()),
		"debugger": judge(func() *BootFacts { b := goodBoot(); b.FirmwareDebug = true; return b }(),
			func() BootPolicy { p := goodBootPolicy(); p.AllowFirmwareDebug = true; return p }(), goodIMA(), goodIMAPolicy()),
		"dma": judge(func() *BootFacts { b := goodBoot(); b.DMAUnprotected = true; return b }(),
			func() BootPolicy { p := goodBootPolicy(); p.AllowDMAUnprotected = true; return p }(), goodIMA(), goodIMAPolicy()),
		"no log":                                judge(nil, BootPolicy{AllowNoLog: true}, goodIMA(), goodIMAPolicy()),
		"no list":                               judge(goodBoot(), goodBootPolicy(), nil, IMAPolicy{AllowNoList: true}),
		"strict":                                judge(goodBoot(), StrictBoot(), goodIMA(), StrictIMA()),
		"stub's line":                           judge(func() *BootFacts { b := goodBoot(); b.CommandLines = nil; return b }(), goodBootPolicy(), goodIMA(), goodIMAPolicy()),
		"registers that nothing is demanded of": judge(func() *BootFacts { b := goodBoot(); b.Unexplained = []string{"pcr8", "pcr14"}; return b }(), StrictBoot(), goodIMA(), goodIMAPolicy()),
		"no mok":                                judge(func() *BootFacts { b := goodBoot(); b.MOK = nil; return b }(), goodBootPolicy(), goodIMA(), goodIMAPolicy()),
		"violations":                            judge(goodBoot(), goodBootPolicy(), func() *IMAFacts { m := goodIMA(); m.Violations = 2; return m }(), IMAPolicy{Allowed: []string{"sha256:f1"}, MaxViolations: 2}),
	} {
		if !r.Affirming() || r.Vector != good.Vector {
			t.Errorf("%s: %s %v", name, r.Verdict, r.Reasons)
		}
	}
	for name, r := range map[string]Result{
		"no log": judge(nil, goodBootPolicy(), goodIMA(), goodIMAPolicy()), "no list": judge(goodBoot(), goodBootPolicy(), nil, goodIMAPolicy()),
		"no list, any file": judge(goodBoot(), goodBootPolicy(), nil, IMAPolicy{Allowed: []string{Any}}),
	} {
		if r.Verdict != VerdictNone {
			t.Errorf("%s: %s %v, want none: nothing is known to be bad", name, r.Verdict, r.Reasons)
		}
	}
}

// TestNamingNeedsTheLog: a policy that allows evidence without log or list, and names what is
// in them, is not satisfied by leaving them out.
func TestNamingNeedsTheLog(t *testing.T) {
	for name, demand := range map[string]func(*BootPolicy, *IMAPolicy){
		"":              func(*BootPolicy, *IMAPolicy) {},
		"dbx":           func(p *BootPolicy, _ *IMAPolicy) { p.MinimumDBX = []string{"h1"} },
		"sbat":          func(p *BootPolicy, _ *IMAPolicy) { p.MinimumSBAT = map[string]uint64{"shim": 4} },
		"components":    func(p *BootPolicy, _ *IMAPolicy) { p.Components = []string{"shim"} },
		"command lines": func(p *BootPolicy, _ *IMAPolicy) { p.CommandLines = []string{"quiet"} },
		"files":         func(p *BootPolicy, _ *IMAPolicy) { p.Files = []string{"i1"} },
		"mok":           func(p *BootPolicy, _ *IMAPolicy) { p.MOK = []string{"m1"} },
		"ima":           func(_ *BootPolicy, q *IMAPolicy) { q.Allowed = []string{"sha256:f1"} },
	} {
		p, q := StrictBoot(), StrictIMA()
		p.AllowNoLog = true
		demand(&p, &q)
		if r := judge(nil, p, nil, q); r.Affirming() != (name == "") || name != "" && r.Verdict != VerdictNone {
			t.Errorf("%q is named, log and list are left out: %s %v", name, r.Verdict, r.Reasons)
		}
	}
}

// TestParavisorsWordIsNoLog: beside a paravisor that says Secure Boot is on, each other demand
// on a boot still needs the log.
func TestParavisorsWordIsNoLog(t *testing.T) {
	c, policy := goodClaims()[KindVTPM], goodPolicy()
	c.VTPM.Boot, c.VTPM.Paravisor = nil, &ParavisorClaims{SecureBoot: yes()}
	for name, demand := range map[string]func(*BootPolicy){
		"":              func(*BootPolicy) {},
		"dbx":           func(p *BootPolicy) { p.MinimumDBX = []string{"h1"} },
		"sbat":          func(p *BootPolicy) { p.MinimumSBAT = map[string]uint64{"shim": 4} },
		"components":    func(p *BootPolicy) { p.Components = []string{"shim"} },
		"command lines": func(p *BootPolicy) { p.CommandLines = nil },
		"files":         func(p *BootPolicy) { p.Files = nil },
		"mok":           func(p *BootPolicy) { p.MOK = nil },
		"dma":           func(p *BootPolicy) { p.AllowDMAUnprotected = false },
	} {
		policy.VTPM.Boot, policy.VTPM.IMA = StrictBoot(), StrictIMA()
		demand(&policy.VTPM.Boot)
		if r := Appraise(c, policy, judged); r.Affirming() != (name == "") {
			t.Errorf("without a log, demands on %q: %s %v", name, r.Verdict, r.Reasons)
		}
	}
}

// TestBootReasonsSayWhatIsMissing: that nothing was said is not that something bad was.
func TestBootReasonsSayWhatIsMissing(t *testing.T) {
	silent := goodBoot()
	silent.SecureBoot, silent.SBAT = nil, nil
	r := judge(silent, goodBootPolicy(), goodIMA(), goodIMAPolicy())
	if len(r.Reasons) != 2 || r.Reasons[0].Got != "not in the authenticated log" || r.Reasons[1].Got != "no level" {
		t.Errorf("%v", r.Reasons)
	}
}

// TestParavisorSaysOff is believed, whatever a log says.
func TestParavisorSaysOff(t *testing.T) {
	off := false
	c, policy := goodClaims()[KindVTPM], goodPolicy()
	c.VTPM.Boot, c.VTPM.IMA, c.VTPM.Paravisor = goodBoot(), goodIMA(), &ParavisorClaims{SecureBoot: &off}
	policy.VTPM.Boot, policy.VTPM.IMA = goodBootPolicy(), goodIMAPolicy()
	for range 2 { // with a log that says on, and with none and no demand on one
		if r := Appraise(c, policy, judged); r.Code() != CodeSecureBootOff || len(r.Reasons) != 1 || r.Reasons[0].Claim != "vtpm.paravisor.secure_boot" {
			t.Errorf("%s %v", r.Verdict, r.Reasons)
		}
		c.VTPM.Boot, policy.VTPM.Boot = nil, StrictBoot()
	}
}

// TestZeroBootPoliciesRefuse, and so does leaving out any list of what is allowed.
func TestZeroBootPoliciesRefuse(t *testing.T) {
	if r := judge(goodBoot(), BootPolicy{}, goodIMA(), goodIMAPolicy()); r.Verdict != VerdictContraindicated {
		t.Errorf("zero boot policy: %s", r.Verdict)
	}
	if r := judge(goodBoot(), goodBootPolicy(), goodIMA(), IMAPolicy{}); r.Verdict != VerdictContraindicated {
		t.Errorf("zero IMA policy: %s", r.Verdict)
	}
	removed := 0
	for i := range reflect.TypeFor[BootPolicy]().NumField() {
		field := reflect.TypeFor[BootPolicy]().Field(i)
		if strings.HasPrefix(field.Name, "Minimum") || field.Type.Kind() == reflect.Bool {
			continue // these demand more, or their zero is the strict one
		}
		p := goodBootPolicy()
		reflect.ValueOf(&p).Elem().Field(i).SetZero()
		removed++
		if r := judge(goodBoot(), p, goodIMA(), goodIMAPolicy()); r.Verdict != VerdictContraindicated {
			t.Errorf("without %s: %s", field.Name, r.Verdict)
		}
	}
	if removed != 4 {
		t.Errorf("%d lists were removed", removed)
	}
}

// TestManyUnlistedFiles: a verdict names some files and counts the rest.
func TestManyUnlistedFiles(t *testing.T) {
	m := goodIMA()
	for range 1000 {
		m.Files = append(m.Files, IMAFile{Digest: "sha256:bad", Path: "/tmp/x"})
	}
	r := judge(goodBoot(), goodBootPolicy(), m, goodIMAPolicy())
	if len(r.Reasons) != maxUnlisted+1 || !slices.ContainsFunc(r.Reasons, func(x Reason) bool { return x.Got == "995 more" }) {
		t.Errorf("%d reasons: %v", len(r.Reasons), r.Reasons)
	}
}

// TestBootPolicyFieldsHaveNames: a policy file names every field.
func TestBootPolicyFieldsHaveNames(t *testing.T) {
	for _, shape := range []reflect.Type{reflect.TypeFor[BootPolicy](), reflect.TypeFor[IMAPolicy]()} {
		for i := range shape.NumField() {
			if shape.Field(i).Tag.Get("yaml") == "" {
				t.Errorf("%s.%s has no yaml name", shape.Name(), shape.Field(i).Name)
			}
		}
	}
}
