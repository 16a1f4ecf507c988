package ima

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func read(t testing.TB, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// quoted are the registers that were read from the TPM in the boot that made the lists.
func quoted(t testing.TB) map[string]map[int][]byte {
	t.Helper()
	out := map[string]map[int][]byte{}
	for line := range strings.Lines(string(read(t, "testdata", "pcrs.txt"))) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) != 3 {
			continue
		}
		var n int
		if _, err := fmt.Sscan(f[1], &n); err != nil {
			t.Fatal(err)
		}
		bank := strings.ToLower(f[0])
		if out[bank] == nil {
			out[bank] = map[int][]byte{}
		}
		v, err := hex.DecodeString(f[2])
		if err != nil {
			t.Fatal(err)
		}
		out[bank][n] = v
	}
	return out
}

// TestRealListExplainsQuote: in both forms and all three banks, of which the kernel hashed
// in two and padded SHA-1 in the third.
func TestRealListExplainsQuote(t *testing.T) {
	for _, form := range []string{"ima-ascii", "ima-binary"} {
		for bank, registers := range quoted(t) {
			f, err := Explain(read(t, "testdata", form), bank, registers)
			if err != nil {
				t.Errorf("%s, %s: %v", form, bank, err)
				continue
			}
			if f.Entries != 10 || f.Beyond != 0 || f.Violations != 0 || f.Unverified != 0 || len(f.Files) != 9 || f.Files[1].Path != "/init" ||
				f.Files[1].Digest != "sha256:9709a1c296748148220553442db56fc821129cf594fea05a7215f51ff68228ca" {
				t.Errorf("%s, %s: %+v", form, bank, f)
			}
			if want := map[string]string{"sha256": "matches"}[bank]; f.BootAggregate != want {
				t.Errorf("%s, %s: boot aggregate %q, want %q", form, bank, f.BootAggregate, want)
			}
		}
	}
}

func TestBothFormsSayTheSame(t *testing.T) {
	a, err1 := Replay(read(t, "testdata", "ima-ascii"))
	b, err2 := Replay(read(t, "testdata", "ima-binary"))
	if err1 != nil || err2 != nil || fmt.Sprint(a) != fmt.Sprint(b) || len(a.Registers) != len(banks) {
		t.Errorf("ASCII %+v %v, binary %+v %v", a, err1, b, err2)
	}
}

func TestBootAggregateOfAnotherBoot(t *testing.T) {
	q := quoted(t)["sha256"]
	q[4] = bytes.Repeat([]byte{1}, 32)
	f, err := Explain(read(t, "testdata", "ima-binary"), "sha256", q)
	if err != nil || f.BootAggregate != "differs" {
		t.Errorf("%+v, %v", f, err)
	}
	delete(q, 4)
	if f, err := Explain(read(t, "testdata", "ima-binary"), "sha256", q); err != nil || f.BootAggregate != "" {
		t.Errorf("without register 4: %+v, %v", f, err)
	}
	delete(q, 9)
	q[4] = bytes.Repeat([]byte{1}, 32)
	if f, err := Explain(read(t, "testdata", "ima-binary"), "sha256", q); err != nil || f.BootAggregate != "" {
		t.Errorf("without register 9: %+v, %v", f, err)
	}
}

// TestPrefix: what was measured after the quote is not judged; what was measured before it
// cannot be left out.
func TestPrefix(t *testing.T) {
	q := quoted(t)["sha256"]
	raw := read(t, "testdata", "ima-ascii")
	lines := bytes.SplitAfter(bytes.TrimSuffix(raw, []byte("\n")), []byte("\n"))
	longer := slices.Concat(raw, []byte("10 "+strings.Repeat("0", 40)+" ima-ng sha256:"+strings.Repeat("0", 64)+" /violation\n"))
	f, err := Explain(longer, "sha256", q)
	if err != nil || f.Entries != 10 || f.Beyond != 1 || f.Violations != 0 {
		t.Errorf("a longer list: %+v, %v", f, err)
	}
	for i := range lines {
		shorter := bytes.Join(slices.Delete(slices.Clone(lines), i, i+1), nil)
		var m *Mismatch
		if f, err := Explain(shorter, "sha256", q); !errors.As(err, &m) {
			t.Errorf("without line %d: %+v, %v", i+1, f, err)
		}
	}
	empty := map[int][]byte{Register: make([]byte, 32)}
	if f, err := Explain(raw, "sha256", empty); err != nil || f.Entries != 0 || f.Beyond != 10 {
		t.Errorf("a quote before the first entry: %+v, %v", f, err)
	}
	if f, err := Explain(raw, "sha256", map[int][]byte{}); err == nil {
		t.Errorf("register 10 not quoted: %+v", f)
	}
	if f, err := Explain(raw, "md5", q); err == nil {
		t.Errorf("an unknown bank: %+v", f)
	}
}

// TestKeylimeLines: entries of ima-sig and ima-buf made by kernels, one of them edited by
// whoever published it.
func TestKeylimeLines(t *testing.T) {
	// From keylime's test of IMA verification (Apache-2.0): a key measured by ima-buf.
	raw := `10 0c8a706a75a5689c1e168f0a573a3cbec33061b5 ima-sig sha256:e4cb9f5709c88376b5fc3743cd88e76b9aae8f3d992d845678de5215edb31216 boot_aggregate ` + "\n" +
		`10 5426cf3031a43f5bfca183d79950698a95a728f6 ima-sig sha256:f1125b940480d20ad841d26d5ea253edc0704b5ec1548c891edf212cb1a9365e /lib/modules/5.4.48-openpower1/kernel/drivers/usb/common/usb-common.ko` + "\n"
	for e, err := range Entries([]byte(raw)) {
		if err != nil || !e.Verified || e.Violation || e.Algorithm != "sha256" || len(e.File) != 32 || e.Signature == nil && e.Path() != "boot_aggregate" && len(e.Signature) != 0 {
			t.Errorf("%+v, %v", e, err)
		}
	}
	edited := strings.Replace(raw, "usb-common", "usb-commom", 1)
	if r, err := Replay([]byte(edited)); err != nil || r.Unverified != 1 || len(r.Registers) != 1 || r.Registers["sha1:pcr10"] == "" {
		t.Errorf("an edited path: %+v, %v", r, err)
	}
}

// A list whose text was edited still replays in SHA-1, but what it says is not believed.
func TestEditedText(t *testing.T) {
	raw := bytes.Replace(read(t, "testdata", "ima-ascii"), []byte("/init"), []byte("/idle"), 1)
	f, err := Explain(raw, "sha1", quoted(t)["sha1"])
	if err != nil || f.Unverified != 1 {
		t.Errorf("%+v, %v", f, err)
	}
	for _, file := range f.Files {
		if file.Path == "/idle" {
			t.Error("the edited name is believed")
		}
	}
	if f, err := Explain(raw, "sha256", quoted(t)["sha256"]); err == nil {
		t.Errorf("replayed in a bank whose digests it cannot know: %+v", f)
	}
}

func TestMalformed(t *testing.T) {
	zero := "10 " + strings.Repeat("0", 40) + " ima-ng sha1:00 /x\n"
	bin := read(t, "testdata", "ima-binary")
	for name, raw := range map[string][]byte{
		"empty": nil, "spaces": []byte(" \n"), "words": []byte("10 nothing"), "register 24": []byte(strings.Replace(zero, "10", "24", 1)),
		"register 300": []byte(strings.Replace(zero, "10", "300", 1)), "short digest": []byte("10 00 ima-ng sha1:00 /x"),
		"foreign template": []byte(strings.Replace(zero, "ima-ng", "evm", 1)), "no digest first": []byte(strings.Replace(zero, "ima-ng", "n-ng|d-ng", 1)),
		"unknown field": []byte(strings.Replace(zero, "ima-ng", "d-ng|n-ng|x", 1)), "too long": make([]byte, MaxList+1),
		"cut": bin[:len(bin)-1], "a byte more": append(slices.Clone(bin), 0), "second list of another kind": append(slices.Clone(bin), zero...),
		"too many": bytes.Repeat([]byte(zero), MaxEntries+1),
	} {
		if r, err := Replay(raw); err == nil {
			t.Errorf("%s: got %+v", name, r)
		}
	}
}

// TestSamples replays the lists that are not part of this repository.
func TestSamples(t *testing.T) {
	dir := filepath.Join("..", "..", "..", "shared", "data", "evidence", "ima")
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("no samples at ../shared/data/evidence beside the repository: %v", err)
	}
	for name, want := range map[string]Replayed{
		"ima-ng-full":           {826, 0, 0, map[string]string{"sha1:pcr10": "82231c67a69da98dc5b3aa10f6343d33109225fc"}},
		"ima-test-verification": {7, 0, 1, map[string]string{"sha1:pcr10": "c284291abe5329ce5ed4ef741eca6188685a566e"}},
		"ima-ng-sha256":         {2, 0, 0, map[string]string{"sha1:pcr10": "8adcb4304b78ee782bbba3733b191591e75dc83d"}},
		"ima-ng-unknown":        {2, 1, 1, map[string]string{"sha1:pcr10": ""}},
	} {
		r, err := Replay(read(t, dir, name, "ascii_runtime_measurements"))
		if err != nil || r.Entries != want.Entries || r.Violations != want.Violations || r.Unverified != want.Unverified ||
			r.Registers["sha1:pcr10"] != want.Registers["sha1:pcr10"] {
			t.Errorf("%s: %+v, %v, want %+v", name, r, err, want)
		}
	}
}
