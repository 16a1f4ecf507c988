package attest

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var judged = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

func yes() *bool { b := true; return &b }

// goodClaims are claims of each kind that goodPolicy admits.
func goodClaims() map[string]Claims {
	base := func(kind string) Claims {
		return Claims{Kind: kind, Genuine: true, Bound: true, Measurement: kind + "-measurement", At: judged,
			Registers: map[string]string{"r": kind}}
	}
	snp, td, tpm, sim := base(KindSEVSNP), base(KindTDX), base(KindVTPM), base(KindSim)
	snp.SEVSNP = goodSEVSNP()
	td.TDX, td.HardwareID = goodTDX(), "ppid"
	tpm.VTPM = &VTPMClaims{AKTrust: "certificate", Bank: "sha256", PCRs: []int{0, 4, 7}, LogReplayed: true, SecureBoot: yes(), Boot: goodBoot(), IMA: goodIMA()}
	sim.Sim = &SimClaims{Platform: "root"}
	return map[string]Claims{KindSEVSNP: snp, KindTDX: td, KindVTPM: tpm, KindSim: sim}
}

func goodPolicy() Policy {
	p := Policy{Epoch: 7, Kinds: []string{KindSEVSNP, KindTDX, KindVTPM, KindSim},
		SEVSNP: goodSEVSNPPolicy(),
		TDX:    goodTDXPolicy(),
		VTPM:   &VTPMPolicy{AKTrust: []string{AKTrustCertificate}, RequiredPCRs: []int{0, 7}, Banks: []string{"sha256"}, Boot: goodBootPolicy(), IMA: goodIMAPolicy()},
		Sim:    &SimPolicy{},
	}
	for _, k := range p.Kinds {
		p.References = append(p.References, Reference{ID: "ref-" + k, Kind: k, Measurement: k + "-measurement",
			Registers: map[string]string{"r": k}, NotBefore: judged.Add(-time.Hour), NotAfter: judged.Add(time.Hour)})
	}
	return p
}

func codes(r Result) []Code {
	var out []Code
	for _, x := range r.Reasons {
		out = append(out, x.Code)
	}
	return out
}

func TestAffirming(t *testing.T) {
	for kind, c := range goodClaims() {
		r := Appraise(c, goodPolicy(), judged)
		if !r.Affirming() || r.Reference != "ref-"+kind || r.Epoch != 7 || r.Measurement != c.Measurement || !r.At.Equal(judged) {
			t.Errorf("%s: got %+v", kind, r)
		}
		if kind == KindSim {
			if r.Vector.Hardware != 0 || r.Vector.RuntimeOpaque != 0 || r.Code() != CodeSimulated {
				t.Errorf("simulated evidence claims hardware or hides what it is: %+v", r)
			}
		} else if len(r.Reasons) != 0 {
			t.Errorf("%s: got %v", kind, r.Reasons)
		}
		if memory := kind == KindSEVSNP || kind == KindTDX; (r.Vector.Hardware == vectorAffirming) != memory {
			t.Errorf("%s: hardware %d", kind, r.Vector.Hardware)
		}
	}
}

func TestZeroValuesRefuse(t *testing.T) {
	for kind, c := range goodClaims() {
		if r := Appraise(c, Policy{}, judged); r.Verdict != VerdictContraindicated {
			t.Errorf("%s under the zero policy: %s", kind, r.Verdict)
		}
	}
	if r := Appraise(Claims{}, goodPolicy(), judged); r.Verdict != VerdictContraindicated || r.Code() != CodeNotGenuine {
		t.Errorf("zero claims: %+v", r)
	}
	if (Result{}).Affirming() {
		t.Error("the zero result admits")
	}
}

// TestRemovingAnyPolicyFieldDenies zeroes each field of the policy and of its sections in
// turn. Exempt are fields whose zero value is the strict one (Allow…, Revoked), those whose
// presence adds a demand (Require…, scalar minima, bits), and those that count only for
// other claims.
func TestRemovingAnyPolicyFieldDenies(t *testing.T) {
	exempt := []string{"Epoch", "Revoked", "MinimumABI", "MinimumGuestSVN", "PlatformInfoRequired", "LaunchMitVector",
		"CurrentMitVector", "CSPIDs", "RejectedAdvisoryIDs", "MinimumTCBEvaluation", "MinimumTCBDate", "Platforms"}
	for _, section := range []reflect.Type{reflect.TypeFor[Policy](), reflect.TypeFor[SEVSNPPolicy](), reflect.TypeFor[TDXPolicy](), reflect.TypeFor[VTPMPolicy]()} {
		for i := range section.NumField() {
			if name := section.Field(i).Name; strings.HasPrefix(name, "Allow") || strings.HasPrefix(name, "Require") && section.Field(i).Type.Kind() == reflect.Bool {
				exempt = append(exempt, name)
			}
		}
	}
	section := map[string]string{"SEVSNP": KindSEVSNP, "TDX": KindTDX, "VTPM": KindVTPM, "Sim": KindSim}
	removed := 0
	check := func(name string, kinds []string, p Policy) {
		t.Helper()
		removed++
		for _, kind := range kinds {
			if r := Appraise(goodClaims()[kind], p, judged); r.Affirming() || r.Verdict == VerdictWarning {
				t.Errorf("without %s, %s is still %s", name, kind, r.Verdict)
			}
		}
	}
	all := []string{KindSEVSNP, KindTDX, KindVTPM, KindSim}
	shape := reflect.TypeFor[Policy]()
	for i := range shape.NumField() {
		name := shape.Field(i).Name
		if slices.Contains(exempt, name) {
			continue
		}
		p := goodPolicy()
		reflect.ValueOf(&p).Elem().Field(i).SetZero()
		kinds := all
		if k, ok := section[name]; ok {
			kinds = []string{k}
		}
		check(name, kinds, p)
		if section[name] == "" {
			continue
		}
		inner := shape.Field(i).Type.Elem()
		for j := range inner.NumField() {
			if slices.Contains(exempt, inner.Field(j).Name) {
				continue
			}
			p := goodPolicy()
			reflect.ValueOf(&p).Elem().Field(i).Elem().Field(j).SetZero()
			check(name+"."+inner.Field(j).Name, kinds, p)
		}
	}
	if removed < 12 {
		t.Errorf("only %d fields were removed", removed)
	}
}

// TestOneThingWrong spoils one claim at a time.
func TestOneThingWrong(t *testing.T) {
	off := false
	for name, tc := range map[string]struct {
		kind    string
		spoil   func(*Claims)
		code    Code
		verdict Verdict
	}{
		"not genuine":      {KindSEVSNP, func(c *Claims) { c.Genuine = false }, CodeNotGenuine, VerdictContraindicated},
		"unbound":          {KindSEVSNP, func(c *Claims) { c.Bound = false }, CodeNotBound, VerdictContraindicated},
		"measurement":      {KindSEVSNP, func(c *Claims) { c.Measurement = "other" }, CodeMeasurementNotAllowed, VerdictContraindicated},
		"no measurement":   {KindSEVSNP, func(c *Claims) { c.Measurement = "" }, CodeMeasurementNotAllowed, VerdictContraindicated},
		"register":         {KindTDX, func(c *Claims) { c.Registers = nil }, CodeMeasurementNotAllowed, VerdictContraindicated},
		"kind":             {KindSEVSNP, func(c *Claims) { c.Kind = "toaster" }, CodeMalformed, VerdictContraindicated},
		"snp section":      {KindSEVSNP, func(c *Claims) { c.SEVSNP = nil }, CodeMalformed, VerdictContraindicated},
		"tdx section":      {KindTDX, func(c *Claims) { c.TDX = nil }, CodeMalformed, VerdictContraindicated},
		"tpm section":      {KindVTPM, func(c *Claims) { c.VTPM = nil }, CodeMalformed, VerdictContraindicated},
		"tpm key":          {KindVTPM, func(c *Claims) { c.VTPM.AKTrust = "" }, CodeNoEndorsement, VerdictNone},
		"tpm bank":         {KindVTPM, func(c *Claims) { c.VTPM.Bank = "sha1" }, CodePCRSelection, VerdictContraindicated},
		"tpm registers":    {KindVTPM, func(c *Claims) { c.VTPM.PCRs = []int{0} }, CodePCRSelection, VerdictContraindicated},
		"tpm no log":       {KindVTPM, func(c *Claims) { c.VTPM.Boot = nil }, CodeCollateralMissing, VerdictNone},
		"tpm boot unknown": {KindVTPM, func(c *Claims) { c.VTPM.Boot.SecureBoot = nil }, CodeSecureBootOff, VerdictContraindicated},
		"tpm boot off":     {KindVTPM, func(c *Claims) { c.VTPM.Boot.SecureBoot = &off }, CodeSecureBootOff, VerdictContraindicated},
		"sim section":      {KindSim, func(c *Claims) { c.Sim = nil }, CodeMalformed, VerdictContraindicated},
		"tpm other trust":  {KindVTPM, func(c *Claims) { c.VTPM.AKTrust = AKTrustReport }, CodeNoEndorsement, VerdictContraindicated},
		"tpm restarts":     {KindVTPM, func(c *Claims) { c.VTPM.RestartCount = 1 }, CodeRestarted, VerdictContraindicated},
	} {
		c := goodClaims()[tc.kind]
		tc.spoil(&c)
		r := Appraise(c, goodPolicy(), judged)
		if r.Verdict != tc.verdict || r.Code() != tc.code {
			t.Errorf("%s: got %s %v, want %s %s", name, r.Verdict, r.Reasons, tc.verdict, tc.code)
		}
		for _, reason := range r.Reasons {
			if reason.Remedy == "" || reason.Claim == "" {
				t.Errorf("%s: reason %+v says not what or what to do", name, reason)
			}
		}
		if !r.Vector.bears(r.Verdict) {
			t.Errorf("%s: verdict %s over %+v", name, r.Verdict, r.Vector)
		}
	}
}

func TestReferences(t *testing.T) {
	c := goodClaims()[KindSEVSNP]
	ref := goodPolicy().References[0]
	revoked := func(p *Policy) { p.Revoked = []Reference{{Kind: c.Kind, Measurement: c.Measurement}} }
	for name, tc := range map[string]struct {
		change func(*Policy)
		want   []Code
	}{
		"allowed and revoked":              {revoked, nil},
		"revoked":                          {func(p *Policy) { p.References = p.References[1:]; revoked(p) }, []Code{CodeRevoked}},
		"revoked, no references asked for": {func(p *Policy) { p.References = nil; p.AllowNoReferences = true; revoked(p) }, []Code{CodeRevoked}},
		"revoked for another kind": {func(p *Policy) {
			p.References = p.References[1:]
			p.Revoked = []Reference{{Kind: KindTDX, Measurement: c.Measurement}}
		}, []Code{CodeMeasurementNotAllowed}},
		"expired": {func(p *Policy) { p.References[0].NotAfter = judged.Add(-time.Second) }, []Code{CodeExpired}},
		"not yet": {func(p *Policy) { p.References[0].NotBefore = judged.Add(time.Second) }, []Code{CodeExpired}},
		"expired, renewed": {func(p *Policy) {
			old := ref
			old.NotAfter = judged.Add(-time.Second)
			p.References = append([]Reference{old}, p.References...)
		}, nil},
		"none":           {func(p *Policy) { p.References = nil }, []Code{CodeMeasurementNotAllowed}},
		"none asked for": {func(p *Policy) { p.References, p.AllowNoReferences = nil, true }, []Code{CodeNoReferenceValues}},
	} {
		p := goodPolicy()
		tc.change(&p)
		if got := codes(Appraise(c, p, judged)); !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %v, want %v", name, got, tc.want)
		}
	}
}

// TestAllReasons: nothing is hidden behind the first refusal.
func TestAllReasons(t *testing.T) {
	c := goodClaims()[KindTDX]
	c.Bound, c.Measurement, c.TDX.Debug, c.TDX.SEPTVEDisable, c.TDX.TCBStatus = false, "other", true, false, ""
	r := Appraise(c, goodPolicy(), judged)
	want := []Code{CodeNotBound, CodeMeasurementNotAllowed, CodeDebug, CodeSEPTVEDisable, CodeCollateralMissing}
	if !slices.Equal(codes(r), want) || r.Verdict != VerdictContraindicated {
		t.Errorf("got %v, want %v", codes(r), want)
	}
	if again := Appraise(c, goodPolicy(), judged); !reflect.DeepEqual(r, again) {
		t.Error("the same input gives another result")
	}
}

func TestStrictPolicy(t *testing.T) {
	for kind, c := range goodClaims() {
		c.Bound = false
		if c.SEVSNP != nil {
			c.SEVSNP.VMPL = 0
		}
		if c.VTPM != nil {
			c.VTPM.PCRs = []int{0, 1, 2, 3, 4, 5, 6, 7}
		}
		want := VerdictWarning
		if kind == KindSim {
			want = VerdictContraindicated
		}
		if r := Appraise(c, StrictPolicy(), judged); r.Verdict != want {
			t.Errorf("%s: got %s %v, want %s", kind, r.Verdict, r.Reasons, want)
		}
	}
}

func TestComposite(t *testing.T) {
	all := goodClaims()
	c := all[KindSEVSNP]
	c.Kind, c.VTPM = "sevsnp,vtpm", all[KindVTPM].VTPM
	p := goodPolicy()
	p.References = []Reference{{ID: "both", Kind: c.Kind, Measurement: c.Measurement}}
	if r := Appraise(c, p, judged); r.Verdict != VerdictContraindicated || r.Code() != CodeKindNotAllowed {
		t.Errorf("parts admitted do not admit the whole: %s %v", r.Verdict, r.Reasons)
	}
	p.Kinds = append(p.Kinds, c.Kind)
	if r := Appraise(c, p, judged); !r.Affirming() {
		t.Errorf("got %s %v", r.Verdict, r.Reasons)
	}
	// The measurement is the paravisor's: what the guest is has to be named too.
	p.VTPM.Boot = StrictBoot()
	c.Registers = map[string]string{"pcr4": "aa", "rtmr0": "bb"}
	for register, want := range map[string]Verdict{"": VerdictWarning, "rtmr0": VerdictWarning, "pcr4": VerdictAffirming} {
		p.References[0].Registers = map[string]string{register: c.Registers[register]}
		if register == "" {
			p.References[0].Registers = nil
		}
		if r := Appraise(c, p, judged); r.Verdict != want {
			t.Errorf("a reference value with register %q: %s %v, want %s", register, r.Verdict, r.Reasons, want)
		}
	}
	c.VTPM = nil
	if r := Appraise(c, p, judged); r.Affirming() {
		t.Error("a composite without the claims of one part is affirming")
	}
}

func TestEveryCodeHasARemedy(t *testing.T) {
	for _, c := range Codes() {
		if NewReason(c, "", "", "").Remedy == "" {
			t.Errorf("%s has none", c)
		}
	}
}

func TestEARRoundTrip(t *testing.T) {
	for kind, c := range goodClaims() {
		for _, spoil := range []func(*Claims){func(*Claims) {}, func(c *Claims) { c.Measurement = "other" }, func(c *Claims) { c.Genuine = false }} {
			spoil(&c)
			r := Appraise(c, goodPolicy(), judged)
			raw, err := json.Marshal(r.EAR("test"))
			if err != nil {
				t.Fatal(err)
			}
			e, back, err := ParseEAR(raw)
			if err != nil {
				t.Errorf("%s: %v", kind, err)
				continue
			}
			if !reflect.DeepEqual(back, r) || e.Verifier.Build != "test" || e.IssuedAt != judged.Unix() {
				t.Errorf("%s: got %+v, want %+v", kind, back, r)
			}
		}
	}
}

func TestEARRefusals(t *testing.T) {
	good, err := json.Marshal(Appraise(goodClaims()[KindTDX], goodPolicy(), judged).EAR("test"))
	if err != nil {
		t.Fatal(err)
	}
	edit := func(f func(*EAR)) []byte {
		var e EAR
		if err := json.Unmarshal(good, &e); err != nil {
			t.Fatal(err)
		}
		f(&e)
		raw, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	appraisal := func(f func(*EARAppraisal)) []byte {
		return edit(func(e *EAR) { a := e.Submods[KindTDX]; f(&a); e.Submods[KindTDX] = a })
	}
	for name, raw := range map[string][]byte{
		"nothing": {}, "null": []byte("null"), "trailing": append(slices.Clone(good), '1'),
		"unknown claim":   append([]byte(`{"x":1,`), good[1:]...),
		"profile":         edit(func(e *EAR) { e.Profile = "x" }),
		"no appraisal":    edit(func(e *EAR) { e.Submods = nil }),
		"two appraisals":  edit(func(e *EAR) { e.Submods["x"] = e.Submods[KindTDX] }),
		"status":          appraisal(func(a *EARAppraisal) { a.Status = "splendid" }),
		"status too good": appraisal(func(a *EARAppraisal) { a.Vector.Hardware = 96 }),
		"vector value":    appraisal(func(a *EARAppraisal) { a.Status, a.Vector.Hardware = VerdictContraindicated, 3 }),
		"policy id":       appraisal(func(a *EARAppraisal) { a.PolicyID = "urn:other" }),
		"policy id, tail": appraisal(func(a *EARAppraisal) { a.PolicyID += "x" }),
		"over the limit":  append(slices.Clone(good), make([]byte, MaxEAR)...),
	} {
		if _, r, err := ParseEAR(raw); err == nil || r.Affirming() {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzParseEAR(f *testing.F) {
	for _, c := range goodClaims() {
		raw, err := json.Marshal(Appraise(c, goodPolicy(), judged).EAR("test"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, r, err := ParseEAR(raw)
		if err != nil {
			return
		}
		again, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if _, r2, err := ParseEAR(again); err != nil || r2.Verdict != r.Verdict || r2.Measurement != r.Measurement {
			t.Errorf("written and read again: %v, %+v, %+v", err, r, r2)
		}
	})
}
