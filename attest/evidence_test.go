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

// TestInclusionRefusals: each check on a proof and on a batch refuses by itself.
func TestInclusionRefusals(t *testing.T) {
	binders := [][32]byte{{1}, {2}, {3}, {4}, {5}}
	_, proofs, err := BatchRoot(binders)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		spoil func(*Inclusion)
		want  string
	}{
		"no tree":        {func(p *Inclusion) { p.Index, p.Size = 0, 0 }, "index 0 of 0"},
		"a large tree":   {func(p *Inclusion) { p.Size = 1<<MaxPath + 1 }, "of 65537"},
		"beyond it":      {func(p *Inclusion) { p.Index = p.Size }, "index 5 of 5"},
		"a long path":    {func(p *Inclusion) { p.Path = slices.Repeat(p.Path[:1], MaxPath+1) }, "a path of 17"},
		"above the root": {func(p *Inclusion) { p.Path = append(p.Path, p.Path[0]) }, "longer than the tree"},
		"33 bytes":       {func(p *Inclusion) { p.Path[1] = append(slices.Clone(p.Path[1]), 0) }, "of 33 bytes"},
	} {
		p := proofs[2]
		p.Path = slices.Clone(p.Path)
		tc.spoil(&p)
		if _, err := p.Root(binders[2]); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
	for _, n := range []int{0, 1<<MaxPath + 1} {
		if _, _, err := BatchRoot(make([][32]byte, n)); err == nil || !strings.Contains(err.Error(), "binders, want 1 to") {
			t.Errorf("%d binders: %v", n, err)
		}
	}
}

// TestSameEncoding: what encodes as something else, as less, or not at all is not the same.
func TestSameEncoding(t *testing.T) {
	for name, tc := range map[string]struct {
		v    any
		raw  []byte
		same bool
	}{
		"same": {uint8(1), []byte{1}, true}, "other": {uint8(2), []byte{1}, false},
		"less": {uint8(1), []byte{1, 0}, false}, "more": {"a", []byte{0x61}, false}, "none": {make(chan int), nil, false},
	} {
		if err := sameEncoding(cborEncode, tc.v, tc.raw); (err == nil) != tc.same {
			t.Errorf("%s: %v", name, err)
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

// FuzzDecodeEvidence: what is decoded keeps the limits and encodes as the same bytes.
func FuzzDecodeEvidence(f *testing.F) {
	for _, e := range []Evidence{
		{Kind: KindTDX, Items: []Item{{Type: TypeTDXQuote, Data: []byte{1, 2, 3}}}},
		{Kind: "sevsnp,vtpm", Items: []Item{{Type: TypeSEVSNPReport, Data: []byte{1}}, {Type: TypeTPMQuote, Data: []byte{2}}}},
	} {
		raw, err := e.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := DecodeEvidence(raw)
		if err != nil {
			return
		}
		if err := e.Check(); err != nil {
			t.Errorf("decoded, and refused: %v", err)
		}
		if back, err := e.Encode(); err != nil || !bytes.Equal(back, raw) {
			t.Errorf("%x encodes as %x, %v", raw, back, err)
		}
	})
}
