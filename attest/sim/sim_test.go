package sim

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// goldenReport is Sign(seed 00…1f, SHA-384("meshnode"), 00…3f).
const goldenReport = "" +
	"85015830f6aefbd848797eafdb57909ee4d5621f4d75817166953aed2e493747d9b78afb9ed669394e68d5a3eac64316" +
	"1ab672395840000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223242526272829" +
	"2a2b2c2d2e2f303132333435363738393a3b3c3d3e3f5820a050837d85070582ccf7394b0988847cc312cb88259b8948" +
	"99f6f239cf1791a55840dec48da21f00e4937c495c757c2e5627b428105460b35b8c5e2cbbd31b7e84b1c49f00b05973" +
	"afb0887abba1a008ae92b49406eac3b04e5c6d91d84762848801"

func goldenInput() (ed25519.PrivateKey, [MeasurementSize]byte, attest.ReportData) {
	seed := make([]byte, ed25519.SeedSize)
	var data attest.ReportData
	for i := range data {
		data[i] = byte(i)
	}
	copy(seed, data[:])
	return ed25519.NewKeyFromSeed(seed), sha512.Sum384([]byte("meshnode")), data
}

// The report's bytes are fixed: spelled out here by hand from the package comment, and
// as hex for other implementations.
func TestReportGolden(t *testing.T) {
	key, m, data := goldenInput()
	got, err := Sign(key, m, data)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	id := sha256.Sum256(der)
	signed := []byte("\x00\x00\x00\x16meshnode-sim/v1 report\x00\x00\x00\x01\x01\x00\x00\x00\x30")
	signed = append(append(append(signed, m[:]...), "\x00\x00\x00\x40"...), data[:]...)
	signed = append(append(signed, "\x00\x00\x00\x20"...), id[:]...)
	want := slices.Concat([]byte{0x85, 0x01, 0x58, 48}, m[:], []byte{0x58, 64}, data[:], []byte{0x58, 32}, id[:],
		[]byte{0x58, 64}, ed25519.Sign(key, signed))
	if !bytes.Equal(got, want) {
		t.Errorf("report\n got %x\nwant %x", got, want)
	}
	if hex.EncodeToString(got) != goldenReport {
		t.Errorf("golden\n got %x\nwant %s", got, goldenReport)
	}
}

func TestVerify(t *testing.T) {
	key, m, data := goldenInput()
	raw, err := Sign(key, m, data)
	if err != nil {
		t.Fatal(err)
	}
	scheme, err := NewScheme(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	c, err := scheme.Verify(context.Background(), Evidence(raw), &data, at)
	if err != nil {
		t.Fatal(err)
	}
	if !c.Genuine || !c.Bound || c.Kind != attest.KindSim || c.Measurement != hex.EncodeToString(m[:]) || c.Sim == nil || !c.At.Equal(at) {
		t.Errorf("claims %+v", c)
	}
	if c, err = scheme.Verify(context.Background(), Evidence(raw), nil, at); err != nil || c.Bound {
		t.Errorf("without report data: bound %v, %v", c.Bound, err)
	}
}

func TestVerifyRefuses(t *testing.T) {
	key, m, data := goldenInput()
	raw, err := Sign(key, m, data)
	if err != nil {
		t.Fatal(err)
	}
	_, otherKey, _ := ed25519.GenerateKey(rand.Reader)
	scheme, _ := NewScheme(key.Public())
	other, _ := NewScheme(otherKey.Public())
	wrong := data
	wrong[63] ^= 1
	twice := Evidence(raw)
	twice.Items = append(twice.Items, twice.Items[0])
	otherType := Evidence(raw)
	otherType.Items[0].Type = attest.TypeSEVSNPReport
	otherKind := Evidence(raw)
	otherKind.Kind = attest.KindSEVSNP
	for name, tc := range map[string]struct {
		scheme *Scheme
		ev     attest.Evidence
		data   attest.ReportData
		code   attest.Code
	}{
		"foreign root":      {other, Evidence(raw), data, attest.CodeNotGenuine},
		"no roots":          {&Scheme{}, Evidence(raw), data, attest.CodeNotGenuine},
		"other report data": {scheme, Evidence(raw), wrong, attest.CodeNotBound},
		"trailing byte":     {scheme, Evidence(append(slices.Clone(raw), 0)), data, attest.CodeMalformed},
		"two reports":       {scheme, twice, data, attest.CodeMalformed},
		"other type":        {scheme, otherType, data, attest.CodeMalformed},
		"other kind":        {scheme, otherKind, data, attest.CodeMalformed},
		"nothing":           {scheme, attest.Evidence{}, data, attest.CodeMalformed},
	} {
		c, err := tc.scheme.Verify(context.Background(), tc.ev, &tc.data, time.Time{})
		var e *attest.Error
		if !errors.As(err, &e) || e.Reason.Code != tc.code || e.Reason.Remedy == "" || c.Genuine {
			t.Errorf("%s: got %+v, %v; want code %s", name, c, err, tc.code)
		}
	}
}

// Every bit is signed or fixes the form: no flipped report, and no shortened one, is
// genuine.
func TestEveryBitCounts(t *testing.T) {
	key, m, data := goldenInput()
	raw, err := Sign(key, m, data)
	if err != nil {
		t.Fatal(err)
	}
	scheme, _ := NewScheme(key.Public())
	for i := range len(raw) * 8 {
		flipped := slices.Clone(raw)
		flipped[i/8] ^= 1 << (i % 8)
		if c, err := scheme.Verify(context.Background(), Evidence(flipped), nil, time.Time{}); err == nil || c.Genuine {
			t.Fatalf("bit %d flipped: accepted", i)
		}
	}
	for n := range raw {
		if _, err := ParseReport(raw[:n]); err == nil {
			t.Fatalf("first %d bytes: accepted", n)
		}
	}
}

// A root signs reports only: what it signed under another label is no report.
func TestReportLabelSeparates(t *testing.T) {
	key, m, data := goldenInput()
	raw, _ := Sign(key, m, data)
	r, err := ParseReport(raw)
	if err != nil {
		t.Fatal(err)
	}
	copy(r.Signature[:], ed25519.Sign(key, r.signed()[4+len(reportLabel):]))
	raw, _ = r.Encode()
	scheme, _ := NewScheme(key.Public())
	if _, err := scheme.Verify(context.Background(), Evidence(raw), nil, time.Time{}); err == nil {
		t.Error("a signature without the label was accepted")
	}
}

func TestNewSchemeRefuses(t *testing.T) {
	key, _, _ := goldenInput()
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, roots := range map[string][]crypto.PublicKey{
		"twice": {key.Public(), key.Public()},
		"p256":  {p256.Public()},
		"nil":   {nil},
		"short": {ed25519.PublicKey{1, 2}},
	} {
		if _, err := NewScheme(roots...); err == nil || name == "p256" && !strings.Contains(err.Error(), "*ecdsa.PublicKey") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Sign(nil, [MeasurementSize]byte{}, attest.ReportData{}); err == nil {
		t.Error("signed without a key")
	}
}

// A length is refused before anything of that size is waited for or allocated.
func TestFrameLimit(t *testing.T) {
	for _, head := range []string{"\x00\x00\x00\x42", "\xff\xff\xff\xff", "\x00\x00\x00\x00"} {
		r := strings.NewReader(head + strings.Repeat("x", 100))
		if _, err := readFrame(r, maxRequest); err == nil || !strings.Contains(err.Error(), "want 1 to 65") || r.Len() != 100 {
			t.Errorf("%x: got %v with %d bytes left", head, err, r.Len())
		}
	}
}

// TestParseReportRefuses: each check on a report's form refuses by itself.
func TestParseReportRefuses(t *testing.T) {
	encode := func(edit func(*wireReport)) []byte {
		w := wireReport{Version: Version, Measurement: make([]byte, MeasurementSize), ReportData: make([]byte, attest.ReportDataSize),
			Platform: make([]byte, PlatformIDSize), Signature: make([]byte, ed25519.SignatureSize)}
		edit(&w)
		raw, err := cborEncode.Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	good := encode(func(*wireReport) {})
	if _, err := ParseReport(good); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		raw  []byte
		want string
	}{
		"too long":       {make([]byte, MaxReport+1), "the limit is"},
		"a byte behind":  {append(slices.Clone(good), 0), "extraneous"},
		"version 2":      {encode(func(w *wireReport) { w.Version = 2 }), "version 2"},
		"a short one":    {encode(func(w *wireReport) { w.Signature = w.Signature[1:] }), "signature has 63 bytes"},
		"a long one":     {encode(func(w *wireReport) { w.Measurement = append(w.Measurement, 0) }), "measurement has 49 bytes"},
		"a long integer": {slices.Concat(good[:1], []byte{0x18, Version}, good[2:]), "not in canonical form"},
	} {
		if _, err := ParseReport(tc.raw); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
	if _, err := parseAnswer(append([]byte{answerReport}, good...), attest.ReportData{1}); err == nil || !strings.Contains(err.Error(), "other report data") {
		t.Errorf("an answer to another request: %v", err)
	}
	if _, err := parseAnswer(append([]byte{answerReport}, good...), attest.ReportData{}); err != nil {
		t.Error(err)
	}
	if _, err := readFrame(strings.NewReader(""), maxRequest); err != io.EOF {
		t.Errorf("no frame: %v", err)
	}
	for _, cut := range []string{"", "\x00\x00", "\x00\x00\x00\x05", "\x00\x00\x00\x05abcd"} {
		if body, err := readFrame(strings.NewReader(cut), maxRequest); err == nil || body != nil {
			t.Errorf("%q: frame %q, %v", cut, body, err)
		}
	}
}

func FuzzParseReport(f *testing.F) {
	key, m, data := goldenInput()
	raw, _ := Sign(key, m, data)
	f.Add(raw)
	f.Add([]byte{0x85, 0x01, 0x40, 0x40, 0x40, 0x40})
	f.Add([]byte{0x9f, 0xff})
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := ParseReport(raw)
		if err != nil {
			return
		}
		if back, err := r.Encode(); err != nil || !bytes.Equal(back, raw) {
			t.Fatalf("decoded %x, encodes to %x, %v", raw, back, err)
		}
	})
}

func FuzzFrames(f *testing.F) {
	_, _, data := goldenInput()
	f.Add([]byte{0, 0, 0, 65, 1}, true)
	f.Add(attest.LengthPrefixed(nil, encodeRequest(data)), true)
	f.Add(attest.LengthPrefixed(nil, encodeRefusal(errors.New("no"))), false)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff}, false)
	f.Fuzz(func(t *testing.T, raw []byte, request bool) {
		limit := maxAnswer
		if request {
			limit = maxRequest
		}
		body, err := readFrame(bytes.NewReader(raw), limit)
		if err != nil {
			return
		}
		if len(body) == 0 || len(body) > limit {
			t.Fatalf("a frame of %d bytes", len(body))
		}
		if !request {
			_, _ = parseAnswer(body, data)
		} else if d, err := parseRequest(body); err == nil && !bytes.Equal(encodeRequest(d), body) {
			t.Fatal("a request has two encodings")
		}
	})
}
