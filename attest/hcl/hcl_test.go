package hcl_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/collect"
	"github.com/attestmesh/meshnode/attest/hcl"
	"github.com/attestmesh/meshnode/attest/schemes"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/attest/vtpm"
)

var now = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

// sample is a genuine machine; the test is skipped where there is none.
func sample(t testing.TB, name string) (attest.Scheme, attest.Evidence) {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
	}
	path := filepath.Join(filepath.Dir(dir), "shared", "data", "evidence", "tpm", name)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("no samples at ../shared/data/evidence beside the repository: %v", err)
	}
	in, err := collect.Path(path)
	if err != nil || len(in) != 1 {
		t.Fatalf("%s: %d inputs, %v", name, len(in), err)
	}
	all, err := schemes.Under(schemes.Roots{})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(s attest.Scheme) bool { return s.Kind() == in[0].Kind })
	if i < 0 {
		t.Fatalf("%s: kind %s", name, in[0].Kind)
	}
	return all[i], in[0].Evidence
}

func code(t testing.TB, s attest.Scheme, ev attest.Evidence, data *attest.ReportData) attest.Code {
	t.Helper()
	c, err := s.Verify(context.Background(), ev, data, now)
	var refusal *attest.Error
	switch {
	case err == nil && c.Genuine:
		return ""
	case errors.As(err, &refusal) && !c.Genuine:
		return refusal.Reason.Code
	}
	t.Fatalf("got %+v %v", c, err)
	return ""
}

func TestGenuineMachines(t *testing.T) {
	for name, measurement := range map[string]string{
		"azure-snp-milan-v2-vtpm": "9ac48fcac8a2d88aeeff8d427ad4f2be0e3917c748a18bdf52cc317e7fe20308b459d5ef1a12e0c22944eb386d17c315",
		"azure-snp-milan-v3-vtpm": "6a063be9dd79f6371c842e480f8dc3b5c725961344e57130e88c5adf49e8f7f6c79b75a5eb77fc769959f4aeb2f9401e",
		"azure-tdx-vtpm":          "024a32b070383331181619fa387cb4d55d1e38879f989933055ccad5bc2db795d1737b66205949d15469dc8c1ba7ab7b",
	} {
		t.Run(name, func(t *testing.T) {
			s, ev := sample(t, name)
			c, err := s.Verify(context.Background(), ev, nil, now)
			if err != nil {
				t.Fatal(err)
			}
			if c.Measurement != measurement || c.VTPM.AKTrust != attest.AKTrustReport || len(c.VTPM.PCRs) != 24 || c.Registers["pcr0"] == "" ||
				c.VTPM.Paravisor == nil || c.VTPM.SecureBoot == nil || !*c.VTPM.SecureBoot || c.HardwareID == "" || c.Bound {
				t.Errorf("got %+v %+v", c, c.VTPM)
			}
			if r := attest.Appraise(c, attest.StrictPolicy(), now); c.SEVSNP != nil && (r.Verdict != attest.VerdictWarning || r.Code() != attest.CodeNoReferenceValues) {
				t.Errorf("got %s %v", r.Verdict, r.Reasons)
			}
			if got := code(t, s, ev, &attest.ReportData{}); got != attest.CodeNotBound {
				t.Errorf("bound to report data that it does not carry: %q", got)
			}
		})
	}
}

// TestTwoMachines lays the quote of one genuine machine beside the report of another.
func TestTwoMachines(t *testing.T) {
	s, one := sample(t, "azure-snp-milan-v2-vtpm")
	_, other := sample(t, "azure-snp-milan-v3-vtpm")
	mixed := attest.Evidence{Kind: one.Kind}
	for _, it := range one.Items {
		if slices.Contains([]string{attest.TypeTPMAttest, attest.TypeTPMSignature, attest.TypeTPMPCRs}, it.Type) {
			it.Data = other.Find(it.Type)[0]
		}
		mixed.Items = append(mixed.Items, it)
	}
	if got := code(t, s, mixed, nil); got != attest.CodeNotGenuine {
		t.Errorf("the quote of another machine: got %q", got)
	}
	// Its own runtime data do not make it the machine's.
	for i, it := range mixed.Items {
		if it.Type == attest.TypeHCLReport {
			mixed.Items[i].Data = slices.Concat(it.Data[:1216], other.Find(it.Type)[0][1216:])
		}
	}
	if got := code(t, s, mixed, nil); got != attest.CodeAKBinding {
		t.Errorf("runtime data of another machine: got %q", got)
	}
}

// TestEqualBindingIsNotOneMachine: two machines can put the same report data into a report
// and into a quote.
func TestEqualBindingIsNotOneMachine(t *testing.T) {
	amd := attesttest.NewSEVSNP(sevsnp.Milan, 3)
	f := attesttest.NewHCL(amd, false)
	m := attesttest.Measurement("m")
	data := attest.ReportData{7}
	attestOn := func(a *attesttest.Attester) attest.Evidence {
		ev, err := a.Attest(context.Background(), data)
		if err != nil {
			t.Fatal(err)
		}
		return ev
	}
	s, first, second := f.Scheme(), attestOn(f.Attester(m)), attestOn(f.Attester(m))
	for name, ev := range map[string]attest.Evidence{"one": first, "two": second} {
		if got := code(t, s, ev, &data); got != "" {
			t.Fatalf("machine %s: %q", name, got)
		}
	}
	mixed := attest.Evidence{Kind: first.Kind}
	for i, it := range first.Items {
		if it.Type == attest.TypeHCLReport || it.Type == attest.TypeCertificate {
			it = second.Items[i]
		}
		mixed.Items = append(mixed.Items, it)
	}
	if got := code(t, s, mixed, &data); got != attest.CodeNotGenuine {
		t.Errorf("the quote of one beside the report of the other: got %q", got)
	}
	// A plain report over the very same report data names no key.
	plain := attestOn(amd.Attester(m))
	beside := attest.Evidence{Kind: first.Kind, Items: plain.Items}
	for _, it := range first.Items {
		if it.Type != attest.TypeHCLReport && it.Type != attest.TypeCertificate {
			beside.Items = append(beside.Items, it)
		}
	}
	if got := code(t, s, beside, &data); got != attest.CodeAKBinding {
		t.Errorf("a report and a quote over the same report data: got %q", got)
	}
}

// TestKeyGivenIsTheNamedOne: a key in the evidence must be the one that the report names.
func TestKeyGivenIsTheNamedOne(t *testing.T) {
	f := attesttest.NewHCL(attesttest.NewSEVSNP(sevsnp.Milan, 3), false)
	ev, err := f.Attester(attesttest.Measurement("m")).Attest(context.Background(), attest.ReportData{})
	if err != nil {
		t.Fatal(err)
	}
	other, err := attesttest.NewVTPM("other", false).Attester(attesttest.Measurement("m")).Attest(context.Background(), attest.ReportData{})
	if err != nil {
		t.Fatal(err)
	}
	ev.Items = append(ev.Items, attest.Item{Type: attest.TypeTPMPublic, Data: other.Find(attest.TypeTPMPublic)[0]})
	if got := code(t, f.Scheme(), ev, nil); got != attest.CodeAKBinding {
		t.Errorf("got %q", got)
	}
}

// TestReportTampered flips every bit of a report, cuts it and appends to it: it is refused,
// or says the same.
func TestReportTampered(t *testing.T) {
	f := attesttest.NewHCL(attesttest.NewSEVSNP(sevsnp.Milan, 3), false)
	ev, err := f.Attester(attesttest.Measurement("m")).Attest(context.Background(), attest.ReportData{})
	if err != nil {
		t.Fatal(err)
	}
	s := f.Scheme()
	i := slices.IndexFunc(ev.Items, func(it attest.Item) bool { return it.Type == attest.TypeHCLReport })
	raw := ev.Items[i].Data
	want, err := s.Verify(context.Background(), ev, nil, now)
	if err != nil {
		t.Fatal(err)
	}
	judge := func(what string, at int, raw []byte, same bool) {
		ev.Items[i].Data = raw
		if c, err := s.Verify(context.Background(), ev, nil, now); err == nil && (!same || !reflect.DeepEqual(c, want)) {
			t.Errorf("%s %d: accepted", what, at)
		}
	}
	step := flipStep
	if testing.Short() {
		step = 97
	}
	for bit := 0; bit < 8*len(raw); bit += step {
		spoiled := slices.Clone(raw)
		spoiled[bit/8] ^= 1 << (bit % 8)
		// Size, request type and status of the header are nobody's word.
		judge("bit", bit, spoiled, bit/8 < 20)
	}
	end := bytes.LastIndexByte(raw, '}') + 1
	for n := 0; n < len(raw); n += 1 + step/8 {
		if n != end { // without its padding it is the same report
			judge("length", n, raw[:n], false)
		}
	}
	judge("one byte behind", 1, append(slices.Clone(raw), 0), false)
}

func TestRuntimeData(t *testing.T) {
	f := attesttest.NewHCL(attesttest.NewSEVSNP(sevsnp.Milan, 3), true)
	ev, err := f.Attester(attesttest.Measurement("m")).Attest(context.Background(), attest.ReportData{})
	if err != nil {
		t.Fatal(err)
	}
	raw := ev.Find(attest.TypeHCLReport)[0]
	r, err := hcl.Parse(raw)
	if err != nil || r.AK == nil || r.TEE != attest.KindSEVSNP {
		t.Fatalf("got %+v %v", r, err)
	}
	var data map[string]any
	if err := json.Unmarshal(raw[1236:bytes.LastIndexByte(raw, '}')+1], &data); err != nil {
		t.Fatal(err)
	}
	key := data["keys"].([]any)[0].(map[string]any)
	for what, edit := range map[string]func(){
		"two keys":       func() { data["keys"] = []any{key, key} },
		"no key":         func() { data["keys"] = []any{} },
		"another's name": func() { key["kid"] = "HCLEkPub" },
		"no type":        func() { key["kty"] = "oct" },
		"exponent 1":     func() { key["kty"], key["e"] = "RSA", "AQ" },
		"large exponent": func() { key["kty"], key["e"] = "RSA", "gAAAAQ" },       // 2^31+1
		"2^64 too large": func() { key["kty"], key["e"] = "RSA", "AQAAAAAAAQAB" }, // 65537 in its last 8 bytes
		"no modulus":     func() { key["kty"], key["n"] = "RSA", "" },
		"other curve":    func() { key["kty"], key["crv"], key["x"], key["y"] = "EC", "P-521", "AQ", "AQ" },
		"a number":       func() { data["user-data"] = 5 },
		"key and many":   func() { data["keys"] = append(slices.Repeat([]any{map[string]any{"kid": "x"}}, 16), key) },
		"even exponent":  func() { key["kty"], key["e"] = "RSA", "AQAA" },
		"a curve":        func() { key["kty"], key["crv"], key["x"], key["y"] = "EC", "P-256", "AQ", "AQ" },
		"many keys":      func() { data["keys"] = slices.Repeat([]any{map[string]any{"kid": "x"}}, 17) },
	} {
		if err := json.Unmarshal(raw[1236:bytes.LastIndexByte(raw, '}')+1], &data); err != nil {
			t.Fatal(err)
		}
		key = data["keys"].([]any)[0].(map[string]any)
		edit()
		text, err := json.Marshal(data)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := hcl.Parse(remade(raw, text)); err == nil || what == "other curve" && !strings.Contains(err.Error(), `curve "P-521"`) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !hcl.LooksLike(raw) || hcl.KindOf(raw) != "sevsnp,vtpm" || hcl.LooksLike(raw[:100]) {
		t.Error("a report is not recognised")
	}
}

// TestParseRefusals: each field of the binary parts that could mislead.
func TestParseRefusals(t *testing.T) {
	f := attesttest.NewHCL(attesttest.NewSEVSNP(sevsnp.Milan, 3), false)
	ev, err := f.Attester(attesttest.Measurement("m")).Attest(context.Background(), attest.ReportData{})
	if err != nil {
		t.Fatal(err)
	}
	raw := ev.Find(attest.TypeHCLReport)[0]
	for name, tc := range map[string]struct {
		lie  func([]byte)
		want string
	}{
		"name":             {func(b []byte) { b[0] = 'X' }, "header"},
		"version 0":        {func(b []byte) { b[4] = 0 }, "header"},
		"version 3":        {func(b []byte) { b[4] = 3 }, "header"},
		"reserved":         {func(b []byte) { b[31] = 1 }, "header"},
		"no runtime data":  {func(b []byte) { b[1216], b[1217], b[1232], b[1233] = 20, 0, 0, 0 }, "runtime data of 0 bytes"},
		"beyond the end":   {func(b []byte) { b[1218], b[1234] = 1, 1 }, "runtime data of"},
		"section":          {func(b []byte) { b[1216]++ }, "in a section of"},
		"section's format": {func(b []byte) { b[1220] = 2 }, "of version 2"},
		"padding":          {func(b []byte) { b[len(b)-1] = 1 }, "behind the runtime data"},
		"hash 0":           {func(b []byte) { b[1228] = 0 }, "hash 0, want"},
		"hash 4":           {func(b []byte) { b[1228] = 4 }, "hash 4, want"},
		"type 3":           {func(b []byte) { b[1224] = 3 }, "hardware report of type 3"},
		"behind a TD's":    {func(b []byte) { b[1224], b[1215] = 4, 1 }, "behind the TD's report"},
	} {
		b := slices.Clone(raw)
		tc.lie(b)
		if _, err := hcl.Parse(b); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
	long := append(slices.Clone(raw), make([]byte, hcl.MaxReport)...)
	if _, err := hcl.Parse(long); err == nil || !strings.Contains(err.Error(), "want 1237 to") || hcl.LooksLike(long) {
		t.Errorf("%d bytes: %v", len(long), err)
	}
}

// remade returns a report with other runtime data, and no padding.
func remade(raw, runtime []byte) []byte {
	out := append(slices.Clone(raw[:1236]), runtime...)
	for at, v := range map[int]int{1216: len(runtime) + 20, 1232: len(runtime)} {
		out[at], out[at+1], out[at+2], out[at+3] = byte(v), byte(v>>8), byte(v>>16), 0
	}
	return out
}

func TestNew(t *testing.T) {
	snp := attesttest.NewSEVSNP(sevsnp.Milan, 3).Scheme()
	if _, err := hcl.New(vtpm.New(nil), vtpm.New(nil)); err == nil {
		t.Error("a TPM as TEE")
	}
	if _, err := hcl.New(nil, vtpm.New(nil)); err == nil {
		t.Error("no TEE")
	}
	if _, err := hcl.New(snp, nil); err == nil {
		t.Error("no TPM")
	}
}

func FuzzParse(f *testing.F) {
	ev, err := attesttest.NewHCL(attesttest.NewSEVSNP(sevsnp.Milan, 3), false).Attester(attesttest.Measurement("m")).Attest(context.Background(), attest.ReportData{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ev.Find(attest.TypeHCLReport)[0])
	f.Add([]byte("HCLA\x02"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		hcl.LooksLike(raw)
		hcl.KindOf(raw)
		if r, err := hcl.Parse(raw); err == nil && (r.AK == nil || r.TEE == "" || len(r.Digest) == 0) {
			t.Errorf("accepted as %+v", r)
		}
	})
}
