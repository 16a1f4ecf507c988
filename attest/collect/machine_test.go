package collect

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/attest/vtpm"
)

// snpTime is within the validity of all forged certificates.
var snpTime = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

// quoted returns the files of a bare quote.
func quoted(t *testing.T, useRSA bool) (m *attesttest.SoftTPM, statement, signature, spki []byte) {
	t.Helper()
	m = attesttest.NewSoftTPM(useRSA)
	m.Boot([]byte("loader"), true)
	statement, signature = m.Quote(attesttest.Statement{Nonce: []byte("n"), Bank: crypto.SHA256, Registers: []int{0, 1, 2, 3, 4, 5, 6, 7, 10}}, crypto.SHA256)
	spki, err := x509.MarshalPKIXPublicKey(m.Key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return m, statement, signature, spki
}

// lines returns register values as tpm2_pcrread prints them.
func lines(t *testing.T, raw []byte) []byte {
	t.Helper()
	var banks map[string]map[string]string
	if err := json.Unmarshal(raw, &banks); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for bank, values := range banks {
		fmt.Fprintf(&b, "  %s:\n", bank)
		for n := range 24 {
			fmt.Fprintf(&b, "    %-2d: 0x%s\n", n, strings.ToUpper(values[fmt.Sprint(n)]))
		}
	}
	return []byte(b.String())
}

func flat(t *testing.T, raw []byte) []byte {
	t.Helper()
	var banks map[string]json.RawMessage
	if err := json.Unmarshal(raw, &banks); err != nil {
		t.Fatal(err)
	}
	return banks["sha256"]
}

// TestBareQuote: whatever the files are called, and whichever of them is given.
func TestBareQuote(t *testing.T) {
	for _, useRSA := range []bool{true, false} {
		m, statement, signature, spki := quoted(t, useRSA)
		raw := signature[6:]
		if !useRSA {
			raw = slices.Concat(signature[6:38], signature[40:])
		}
		inPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})
		for name, files := range map[string]map[string][]byte{
			"TPM's forms":  {"q.msg": statement, "q.sig": signature, "pcrs.json": m.PCRs(crypto.SHA256), "ak.der": spki},
			"raw, PEM":     {"a": statement, "b": raw, "c": m.PCRs(crypto.SHA256), "d": inPEM},
			"flat":         {"a": statement, "b": signature, "c": flat(t, m.PCRs(crypto.SHA256)), "d": spki},
			"tpm2_pcrread": {"a": statement, "b": signature, "c": lines(t, m.PCRs(crypto.SHA256)), "d": spki},
			"with logs":    {"a": statement, "b": signature, "c": m.PCRs(crypto.SHA256), "d": spki, "e": m.Log(), "f": m.IMA()},
		} {
			dir := place(t, files)
			paths := []string{dir}
			for file := range files {
				if name != "with logs" {
					paths = append(paths, filepath.Join(dir, file))
				}
			}
			for _, path := range paths {
				in, err := Path(path)
				if err != nil || len(in) != 1 || in[0].Kind != attest.KindVTPM {
					t.Errorf("RSA %v, %s, %s: got %v, %v", useRSA, name, filepath.Base(path), in, err)
					continue
				}
				c, err := vtpm.New(nil).Verify(context.Background(), in[0].Evidence, nil, snpTime)
				if err != nil || len(c.Registers) != 9 || (c.VTPM.Boot != nil) != (name == "with logs") || (c.VTPM.IMA != nil) != (name == "with logs") {
					t.Errorf("RSA %v, %s, %s: %v %v", useRSA, name, filepath.Base(path), c.VTPM, err)
				}
			}
		}
	}
}

// TestTwoBareQuotes: of two machines in one folder each quote gets its own parts.
func TestTwoBareQuotes(t *testing.T) {
	m1, statement1, signature1, key1 := quoted(t, false)
	m2, statement2, signature2, key2 := quoted(t, false)
	dir := place(t, map[string][]byte{"1": signature2, "2": signature1, "3": key2, "4": key1, "5": statement1, "6": statement2,
		"7": m1.PCRs(crypto.SHA256), "8": m2.PCRs(crypto.SHA256)})
	in, err := Path(dir)
	if err != nil || len(in) != 2 {
		t.Fatalf("got %v, %v", in, err)
	}
	for _, i := range in {
		if c, err := vtpm.New(nil).Verify(context.Background(), i.Evidence, nil, snpTime); err != nil || !c.Genuine {
			t.Errorf("%s: %v", i.File, err)
		}
	}
	if _, err := Path(filepath.Join(place(t, map[string][]byte{"s": signature1}), "s")); err == nil {
		t.Error("a signature without a quote was taken for evidence")
	}
}

// TestPartsOfNothing: parts that do not fit are taken all the same, so that the scheme says
// what is wrong with them; of register values those that the statement is about.
func TestPartsOfNothing(t *testing.T) {
	m, statement, signature, _ := quoted(t, false)
	_, _, _, other := quoted(t, false)
	digit := regexp.MustCompile(`": ?"[0-9a-f]`)
	wrong := digit.ReplaceAllFunc(m.PCRs(crypto.SHA256), func(b []byte) []byte { return append(b[:len(b)-1], "f0"[b[len(b)-1]&1]) })
	in, err := Path(place(t, map[string][]byte{"1": wrong, "2": m.PCRs(crypto.SHA256), "q": statement, "s": signature, "k": other}))
	if err != nil || len(in) != 1 {
		t.Fatalf("%v, %v", in, err)
	}
	ev := in[0].Evidence
	if got := ev.Find(attest.TypeTPMPCRs); len(got) != 1 || !bytes.Equal(got[0], m.PCRs(crypto.SHA256)) {
		t.Errorf("register values %q", got)
	}
	if got := ev.Find(attest.TypeTPMPublic); len(got) != 1 || !bytes.Equal(got[0], other) {
		t.Errorf("keys %x", got)
	}
	in, err = Path(place(t, map[string][]byte{"1": wrong, "q": statement, "s": signature}))
	if err != nil || len(in) != 1 || len(in[0].Evidence.Find(attest.TypeTPMPCRs)) != 1 {
		t.Errorf("values of other registers: %v, %v", in, err)
	}
}

// azure returns the files of a machine with a paravisor.
func azure(t *testing.T) (map[string][]byte, attest.Scheme) {
	t.Helper()
	f := attesttest.NewHCL(attesttest.NewSEVSNP(sevsnp.Milan, 3), true)
	ev, err := f.Attester(attesttest.Measurement("m")).Attest(context.Background(), attest.ReportData{})
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for i, it := range ev.Items {
		if it.Type != attest.TypeEventLog && it.Type != attest.TypeIMALog {
			files[fmt.Sprintf("part%d.bin", i)] = it.Data
		}
	}
	return files, f.Scheme()
}

// TestParavisor: report and quote are one piece of evidence, whichever file is given; and a
// report with a spoiled quote is not the report alone.
func TestParavisor(t *testing.T) {
	files, s := azure(t)
	dir := place(t, files)
	for _, path := range append(slices.Collect(func(yield func(string) bool) {
		for name, raw := range files {
			if _, err := x509.ParseCertificate(raw); err != nil && !yield(filepath.Join(dir, name)) {
				return
			}
		}
	}), dir) {
		in, err := Path(path)
		if err != nil || len(in) != 1 || in[0].Kind != "sevsnp,vtpm" {
			t.Errorf("%s: got %v, %v", filepath.Base(path), in, err)
			continue
		}
		if c, err := s.Verify(context.Background(), in[0].Evidence, nil, snpTime); err != nil || !c.Genuine {
			t.Errorf("%s: %v", filepath.Base(path), err)
		}
	}
	for name, raw := range files {
		if !vtpm.LooksLikeStatement(raw) {
			continue
		}
		for at := range 8 {
			spoiled := map[string][]byte{}
			for n, b := range files {
				spoiled[n] = slices.Clone(b)
			}
			spoiled[name][at] ^= 0xff
			in, err := Path(place(t, spoiled))
			for _, i := range in {
				if i.Kind == attest.KindSEVSNP {
					t.Errorf("byte %d spoiled: the report alone was taken, %v", at, err)
				}
			}
		}
		delete(files, name)
	}
	// Nothing of a quote at all: the guest's report.
	alone := map[string][]byte{}
	for name, raw := range files {
		if _, err := x509.ParseCertificate(raw); err == nil || strings.HasPrefix(string(raw), "HCLA") {
			alone[name] = raw
		}
	}
	if in, err := Path(place(t, alone)); err != nil || len(in) != 1 || in[0].Kind != attest.KindSEVSNP || !in[0].has(attest.TypeCertificate) {
		t.Errorf("alone: got %v, %v", in, err)
	}
}

func TestUnpadded(t *testing.T) {
	quote := make([]byte, 48+584+4+10)
	quote[0], quote[632] = 4, 10
	quote[len(quote)-1] = 1
	for name, tc := range map[string]struct {
		raw  []byte
		want int
	}{
		"whole":    {quote, len(quote)},
		"padded":   {append(slices.Clone(quote), make([]byte, 70)...), len(quote)},
		"trailing": {append(slices.Clone(quote), 0, 1), len(quote) + 2},
		"cut":      {quote[:len(quote)-1], len(quote) - 1},
		"short":    {quote[:100], 100},
		"flooded":  {append(slices.Clone(quote), make([]byte, 2000)...), len(quote) + 2000},
	} {
		if got := len(unpadded(tc.raw)); got != tc.want {
			t.Errorf("%s: %d bytes, want %d", name, got, tc.want)
		}
	}
}
