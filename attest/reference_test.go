package attest

import "testing"

// A reference value names software by all that it lists, and by no less.
func TestReferenceMatches(t *testing.T) {
	c := Claims{Kind: KindTDX, Measurement: "aa", Registers: map[string]string{"rtmr0": "01", "rtmr1": "02"}}
	for name, test := range map[string]struct {
		r    Reference
		want bool
	}{
		"measurement":       {Reference{Kind: KindTDX, Measurement: "aa"}, true},
		"and registers":     {Reference{Kind: KindTDX, Measurement: "aa", Registers: map[string]string{"rtmr0": "01", "rtmr1": "02"}}, true},
		"other measurement": {Reference{Kind: KindTDX, Measurement: "ab"}, false},
		"other kind":        {Reference{Kind: KindSEVSNP, Measurement: "aa"}, false},
		"other register":    {Reference{Kind: KindTDX, Measurement: "aa", Registers: map[string]string{"rtmr0": "01", "rtmr1": "03"}}, false},
		"no such register":  {Reference{Kind: KindTDX, Measurement: "aa", Registers: map[string]string{"rtmr2": ""}}, false},
		"none":              {Reference{Kind: KindTDX}, false},
	} {
		if got := test.r.matches(c); got != test.want {
			t.Errorf("%s: got %v, want %v", name, got, test.want)
		}
	}
	if (Reference{Kind: KindTDX}).matches(Claims{Kind: KindTDX}) {
		t.Error("a reference without a measurement names claims without one")
	}
}

// TestRegisterNamed (A21): software that was measured as a reference value says, started
// otherwise, is refused by the name of the register that shows it.
func TestRegisterNamed(t *testing.T) {
	registers := func(r2, r3 string) map[string]string {
		return map[string]string{"rtmr1": "kernel", "rtmr2": r2, "rtmr3": r3}
	}
	p := goodPolicy()
	reference := func(r map[string]string) Reference {
		return Reference{ID: "image", Kind: KindTDX, Measurement: KindTDX + "-measurement", Registers: r}
	}
	p.References = []Reference{reference(map[string]string{"rtmr1": "other kernel", "rtmr2": "quiet", "rtmr3": "00"}), reference(registers("quiet", "00")),
		{ID: "another", Kind: KindTDX, Measurement: "another"}}
	c := goodClaims()[KindTDX]
	c.Registers = registers("quiet", "00")
	if r := Appraise(c, p, judged); !r.Affirming() || r.Reference != "image" {
		t.Fatalf("%s %v", r.Verdict, r.Reasons)
	}
	c.Registers = registers("quiet init=/bin/sh", "00")
	r := Appraise(c, p, judged)
	want := NewReason(CodeMeasurementNotAllowed, "rtmr2", "quiet init=/bin/sh", "quiet")
	if len(r.Reasons) != 1 || r.Reasons[0] != want || r.Vector.Executables != vectorContraindicated {
		t.Errorf("got %v, want %v", r.Reasons, want)
	}
	c.Registers = registers("quiet init=/bin/sh", "01")
	if r := Appraise(c, p, judged); len(r.Reasons) != 2 || r.Reasons[0].Claim != "rtmr2" || r.Reasons[1].Claim != "rtmr3" {
		t.Errorf("got %v", r.Reasons)
	}
	c.Registers = nil
	if r := Appraise(c, p, judged); len(r.Reasons) != 3 {
		t.Errorf("without registers: %v", r.Reasons)
	}
}

// TestReferenceFiles: what a reference value lists takes the place of the policy's own list, for
// the software that it names and no other.
func TestReferenceFiles(t *testing.T) {
	const sh, node, other = "sha256:f1", "sha256:f2", "sha256:f3"
	ran := func(files ...string) *IMAFacts {
		m := goodIMA()
		m.Files = nil
		for _, f := range files {
			m.Files = append(m.Files, IMAFile{Digest: f, Path: "/" + f})
		}
		return m
	}
	reference := func(id string, files ...string) Reference {
		return Reference{ID: id, Kind: KindVTPM, Measurement: goodClaims()[KindVTPM].Measurement, IMA: files}
	}
	older, newer, whatever := reference("older", sh, node), reference("newer", sh, other), reference("whatever")
	ended := newer
	ended.NotAfter = judged.Add(-1)
	for name, tc := range map[string]struct {
		references []Reference
		policy     IMAPolicy
		ran        *IMAFacts
		want       string // reference, or code
	}{
		"all listed":                      {[]Reference{older}, IMAPolicy{}, ran(sh, node), "older"},
		"fewer":                           {[]Reference{older}, IMAPolicy{}, ran(sh), "older"},
		"one more":                        {[]Reference{older}, IMAPolicy{}, ran(sh, node, other), "ima_unlisted"},
		"the policy's list does not help": {[]Reference{older}, IMAPolicy{Allowed: []string{Any}, AllowNoList: true}, ran(other), "ima_unlisted"},
		"no list":                         {[]Reference{older}, IMAPolicy{Allowed: []string{Any}, AllowNoList: true}, nil, "ima_list_missing"},
		"two releases, the second's":      {[]Reference{older, newer}, IMAPolicy{}, ran(sh, other), "newer"},
		"two releases, the first's":       {[]Reference{older, newer}, IMAPolicy{}, ran(sh, node), "older"},
		"two releases, something of both": {[]Reference{older, newer}, IMAPolicy{}, ran(node, other), "ima_unlisted"},
		"the one that lists it has ended": {[]Reference{older, ended}, IMAPolicy{}, ran(sh, other), "ima_unlisted"},
		"one that lists nothing":          {[]Reference{older, whatever}, IMAPolicy{Allowed: []string{other}}, ran(other), "whatever"},
		"and the policy's list then":      {[]Reference{older, whatever}, IMAPolicy{Allowed: []string{sh}}, ran(other), "ima_unlisted"},
	} {
		c, p := goodClaims()[KindVTPM], goodPolicy()
		c.VTPM.IMA, p.VTPM.IMA, p.References = tc.ran, tc.policy, tc.references
		r := Appraise(c, p, judged)
		if got := string(r.Code()); !r.Affirming() && got != tc.want || r.Affirming() && r.Reference != tc.want {
			t.Errorf("%s: %s by %q, %v, want %s", name, r.Verdict, r.Reference, r.Reasons, tc.want)
		}
	}
}

// A reference value that lists files does not name a machine that shows no list.
func TestReferenceListsNeedsAList(t *testing.T) {
	r := Reference{IMA: []string{"sha256:aa"}}
	for name, c := range map[string]Claims{"no TPM": {}, "no list": {VTPM: &VTPMClaims{}}} {
		if r.lists(c) {
			t.Errorf("%s: the files are listed", name)
		}
	}
	if !r.lists(Claims{VTPM: &VTPMClaims{IMA: &IMAFacts{Files: []IMAFile{{Digest: "sha256:aa"}}}}}) {
		t.Error("a listed file is not listed")
	}
}
