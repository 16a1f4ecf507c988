package attest

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// TestDecodeEvidence: one encoding, and limits before anything is parsed.
func TestDecodeEvidence(t *testing.T) {
	good, err := Evidence{Kind: KindTDX, Items: []Item{{Type: TypeTDXQuote, Data: []byte{1, 2, 3}}}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if e, err := DecodeEvidence(good); err != nil || e.Kind != KindTDX || len(e.Items) != 1 {
		t.Fatalf("got %+v, %v", e, err)
	}
	// The quote's bytes with a length of two bytes where one is enough.
	i := bytes.Index(good, []byte{0x43, 1, 2, 3})
	longer := append(append(bytes.Clone(good[:i]), 0x58, 3), good[i+1:]...)
	for name, tc := range map[string]struct {
		raw  []byte
		want string
	}{
		"empty":         {nil, "EOF"},
		"no CBOR":       {[]byte{0xff}, "cbor"},
		"cut short":     {good[:len(good)-1], "EOF"},
		"trailing":      {append(bytes.Clone(good), 0), "extraneous"},
		"another form":  {longer, "not in canonical form"},
		"over limit":    {make([]byte, MaxEvidence+1), "the limit is"},
		"unknown kind":  {mustEncode(t, Evidence{Kind: "toaster", Items: []Item{{Type: TypeTDXQuote, Data: []byte{1}}}}), "unknown kind"},
		"no items":      {mustEncode(t, Evidence{Kind: KindTDX, Items: []Item{}}), "0 items"},
		"empty item":    {mustEncode(t, Evidence{Kind: KindTDX, Items: []Item{{Type: TypeTDXQuote, Data: []byte{}}}}), "0 bytes"},
		"a large quote": {mustEncode(t, Evidence{Kind: KindTDX, Items: []Item{{Type: TypeTDXQuote, Data: make([]byte, MaxQuote+1)}}}), "want 1 to"},
		"many certificates": {mustEncode(t, Evidence{Kind: KindTDX, Items: slices.Repeat([]Item{{Type: TypeCertificate, Data: []byte{1}}}, MaxCertificates+1)}),
			"33 certificates"},
		"many items":  {mustEncode(t, Evidence{Kind: KindTDX, Items: slices.Repeat([]Item{{Type: TypeCRL, Data: []byte{1}}}, MaxItems+1)}), ""},
		"a large log": {mustEncode(t, Evidence{Kind: KindTDX, Items: []Item{{Type: TypeEventLog, Data: make([]byte, MaxLog+1)}}}), "want 1 to"},
	} {
		if _, err := DecodeEvidence(tc.raw); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}

func mustEncode(t *testing.T, e Evidence) []byte {
	t.Helper()
	raw, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestCheckCountsItems: what never was encoded has the same limits.
func TestCheckCountsItems(t *testing.T) {
	many := Evidence{Kind: KindTDX, Items: slices.Repeat([]Item{{Type: TypeCRL, Data: []byte{1}}}, MaxItems+1)}
	if err := many.Check(); err == nil || !strings.Contains(err.Error(), "items") {
		t.Errorf("got %v", err)
	}
}

// TestInclusionEndsBelowTheRoot: a path that is too short proves nothing.
func TestInclusionEndsBelowTheRoot(t *testing.T) {
	binders := [][32]byte{{1}, {2}, {3}, {4}, {5}}
	root, proofs, err := BatchRoot(binders)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range proofs {
		if got, err := p.Root(binders[i]); err != nil || got != root {
			t.Fatalf("%d: %v", i, err)
		}
		p.Path = p.Path[:len(p.Path)-1]
		if _, err := p.Root(binders[i]); err == nil {
			t.Errorf("%d: a path without its end is a proof", i)
		}
	}
}

// TestEARTooLong: the limit comes before the decoder.
func TestEARTooLong(t *testing.T) {
	raw, err := json.Marshal(Refuse(judged, NewReason(CodeDebug, "claim", strings.Repeat("x", MaxEAR), "")).EAR("test"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := ParseEAR(raw); err == nil || !strings.Contains(err.Error(), "the limit is") {
		t.Errorf("got %v", err)
	}
}

// TestParseKinds: a composite has one name.
func TestParseKinds(t *testing.T) {
	if parts, err := ParseKinds("sevsnp,vtpm"); err != nil || len(parts) != 2 {
		t.Errorf("got %v, %v", parts, err)
	}
	for _, kind := range []string{"vtpm,sevsnp", "tdx,tdx", "", "tdx,", "TDX"} {
		if parts, err := ParseKinds(kind); err == nil {
			t.Errorf("%q: got %v", kind, parts)
		}
	}
}
