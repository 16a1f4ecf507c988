package tdx

import (
	"context"
	"encoding/hex"
	"strings"
	"testing"
)

func TestMasked(t *testing.T) {
	value := []byte{0x15, 0xf0}
	for _, tc := range []struct {
		mask, want string
		ok         bool
	}{
		{"ffff", "15f0", true}, {"FBFF", "11F0", true}, {"0000", "0000", true}, {"fbff", "15f0", false}, {"ffff", "15f1", false},
		{"ff", "15f0", false}, {"ffffff", "15f0", false}, {"ffff", "15", false}, {"ffff", "15f000", false}, {"zzff", "15f0", false},
		{"ffff", "zzf0", false}, {"ffffzz", "15f0", false}, {"ffff", "15f0zz", false}, {"", "", false}, {"fff", "15f0", false},
	} {
		if got := masked(value, tc.mask, tc.want); got != tc.ok {
			t.Errorf("%x under %s against %s: %v", value, tc.mask, tc.want, got)
		}
	}
	if masked(nil, "", "") != true {
		t.Error("nothing is not nothing")
	}
}

// TestIdentities: module and quoting enclave against identities that differ in one field.
func TestIdentities(t *testing.T) {
	q, err := parseQuote(rawQuote())
	if err != nil {
		t.Fatal(err)
	}
	qe := qeIdentity{MRSigner: strings.ToUpper(qeMRSigner), ProdID: qeProdID, MiscSelect: "00000000", MiscSelectMask: "FFFFFFFF",
		Attributes: "11000000000000000000000000000000", AttributesMask: "FBFFFFFFFFFFFFFF0000000000000000"}
	if m := qe.describes(q); m != nil {
		t.Fatal(m)
	}
	for claim, edit := range map[string]func(*qeIdentity){
		"qe_report.mrsigner":   func(id *qeIdentity) { id.MRSigner = strings.Repeat("ab", 32) },
		"qe_report.isvprodid":  func(id *qeIdentity) { id.ProdID = 1 },
		"qe_report.miscselect": func(id *qeIdentity) { id.MiscSelect = "01000000" },
		"qe_report.attributes": func(id *qeIdentity) { id.Attributes = "13000000000000000000000000000000" },
	} {
		other := qe
		edit(&other)
		if m := other.describes(q); m == nil || m.claim != claim {
			t.Errorf("%s: got %v", claim, m)
		}
	}
	module := moduleIdentity{MRSigner: strings.Repeat("0", 96), Attributes: "0000000000000000", AttributesMask: "FFFFFFFFFFFFFFFF"}
	edited := func(at int, b byte) quote {
		raw := rawQuote()
		raw[headerSize+at] = b
		out, err := parseQuote(raw)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for name, tc := range map[string]struct {
		q     quote
		edit  func(*moduleIdentity)
		claim string
	}{
		"as it is":                  {q, func(*moduleIdentity) {}, ""},
		"another signer":            {q, func(m *moduleIdentity) { m.MRSigner = strings.Repeat("1", 96) }, "tdx.mrsignerseam"},
		"attributes wanted":         {q, func(m *moduleIdentity) { m.Attributes = "0100000000000000" }, "tdx.seam_attributes"},
		"attributes outside a mask": {edited(112, 1), func(m *moduleIdentity) { m.AttributesMask = "FEFFFFFFFFFFFFFF" }, "tdx.seam_attributes"},
		"no mask":                   {q, func(m *moduleIdentity) { m.AttributesMask = "" }, "tdx.seam_attributes"},
		"a module of its own":       {edited(1, 2), func(m *moduleIdentity) { m.MRSigner = "" }, ""},
		"another, of its own":       {edited(1, 3), func(*moduleIdentity) {}, "tdx.mrsignerseam"},
		"a module nobody lists":     {edited(1, 9), func(m *moduleIdentity) { m.MRSigner = "" }, ""},
	} {
		own, foreign := module, module
		own.ID, foreign.ID, foreign.MRSigner = "TDX_02", "tdx_03", strings.Repeat("f", 96)
		info := tcbInfo{TDXModule: module, Identities: []moduleIdentity{own, foreign}}
		tc.edit(&info.TDXModule)
		if m := info.module(tc.q); (m == nil) != (tc.claim == "") || m != nil && m.claim != tc.claim {
			t.Errorf("%s: got %v, want %q", name, m, tc.claim)
		}
	}
	if hex.EncodeToString(q.mrSignerSeam()) != module.MRSigner {
		t.Error("the sample has another module")
	}
}

// TestForecastSample: a genuine platform without collateral, by what Intel said later of its
// family.
func TestForecastSample(t *testing.T) {
	dir, samples := loadSamples(t)
	by := map[string]sample{}
	for _, s := range samples {
		by[s.Name] = s
	}
	from, of := by["tdx-v4-azure-collateral-202602"], by["tdx-v4-nocollateral"]
	levels := from.load(t, dir).Items[1:4]
	got, err := scheme(t).Forecast(context.Background(), of.load(t, dir), levels, of.At)
	if err != nil {
		t.Fatal(err)
	}
	if got.Evaluation != 18 || got.Since.Format("2006-01-02") != "2024-11-13" || got.Status == "" || (got.Status == upToDate) != (len(got.Shortfalls) == 0) {
		t.Errorf("got %+v", got)
	}
	t.Logf("%s since %s, short of %v", got.Status, got.Since, got.Shortfalls)
}
