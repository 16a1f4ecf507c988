package collect

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	snpdata "github.com/google/go-sev-guest/verify/testdata"
	tdxdata "github.com/google/go-tdx-guest/testing/testdata"
	"google.golang.org/protobuf/proto"

	"github.com/attestmesh/meshnode/attest"
)

// place writes files into a new folder.
func place(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, raw := range files {
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func load(t testing.TB, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func types(ev attest.Evidence) []string {
	var out []string
	for _, it := range ev.Items {
		out = append(out, it.Type)
	}
	return out
}

func table(t *testing.T) []byte {
	t.Helper()
	c := abi.CertsFromProto(&spb.CertificateChain{VcekCert: snpdata.VcekBytes})
	return append(slices.Clone(snpdata.AttestationBytes), c.Marshal()...)
}

func message(t *testing.T) []byte {
	t.Helper()
	r, err := abi.ReportToProto(snpdata.AttestationBytes)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := proto.Marshal(&spb.Attestation{Report: r, CertificateChain: &spb.CertificateChain{VcekCert: snpdata.VcekBytes}})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func vcekPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: snpdata.VcekBytes})
}

func TestRecognised(t *testing.T) {
	bios := load(t, "..", "eventlog", "testdata", "bios")
	for name, tc := range map[string]struct {
		files map[string][]byte
		path  string
		kind  string
		items []string
	}{
		"bare report":            {map[string][]byte{"r": snpdata.AttestationBytes}, "r", attest.KindSEVSNP, []string{attest.TypeSEVSNPReport}},
		"report, DER beside":     {map[string][]byte{"r": snpdata.AttestationBytes, "vcek.der": snpdata.VcekBytes}, "r", attest.KindSEVSNP, []string{attest.TypeSEVSNPReport, attest.TypeCertificate}},
		"report, PEM beside":     {map[string][]byte{"r": snpdata.AttestationBytes, "x.pem": vcekPEM(), "ca.pem": load(t, "..", "tdx", "intel_root.pem")}, "r", attest.KindSEVSNP, []string{attest.TypeSEVSNPReport, attest.TypeCertificate}},
		"other suffix beside":    {map[string][]byte{"r": snpdata.AttestationBytes, "vcek": snpdata.VcekBytes}, "r", attest.KindSEVSNP, []string{attest.TypeSEVSNPReport}},
		"folder of report":       {map[string][]byte{"r": snpdata.AttestationBytes, "vcek": snpdata.VcekBytes, "README": []byte("hello")}, "", attest.KindSEVSNP, []string{attest.TypeSEVSNPReport, attest.TypeCertificate}},
		"report with table":      {map[string][]byte{"r": table(t)}, "r", attest.KindSEVSNP, []string{attest.TypeSEVSNPReport, attest.TypeCertificate}},
		"table wins over beside": {map[string][]byte{"r": table(t), "vcek.der": snpdata.VcekBytes}, "r", attest.KindSEVSNP, []string{attest.TypeSEVSNPReport, attest.TypeCertificate}},
		"protobuf":               {map[string][]byte{"r": message(t)}, "r", attest.KindSEVSNP, []string{attest.TypeSEVSNPReport, attest.TypeCertificate}},
		"quote":                  {map[string][]byte{"q": tdxdata.RawQuote}, "q", attest.KindTDX, []string{attest.TypeTDXQuote}},
		"quote and collateral":   {map[string][]byte{"q": tdxdata.RawQuote, "a.json": tdxdata.TcbInfoBody, "b.json": tdxdata.QeIdentityBody, "c.crl": tdxdata.PckCrlBody, "d.json": []byte("{}")}, "q", attest.KindTDX, []string{attest.TypeTDXQuote, attest.TypeTDXTCBInfo, attest.TypeTDXQEIdent, attest.TypeCRL}},
		"quote in hex":           {map[string][]byte{"q": []byte("0x" + hex.EncodeToString(tdxdata.RawQuote) + "\n")}, "q", attest.KindTDX, []string{attest.TypeTDXQuote}},
		"quote in base64":        {map[string][]byte{"q": []byte(base64.StdEncoding.EncodeToString(tdxdata.RawQuote))}, "q", attest.KindTDX, []string{attest.TypeTDXQuote}},
		"list in hex":            {map[string][]byte{"q": tdxdata.RawQuote, "c.crl": []byte(hex.EncodeToString(tdxdata.PckCrlBody))}, "q", attest.KindTDX, []string{attest.TypeTDXQuote, attest.TypeCRL}},
		"quote and a set": {map[string][]byte{"q": tdxdata.RawQuote, "s.json": []byte(`{"pck_crl":"` + hex.EncodeToString(tdxdata.PckCrlBody) + `"}`)}, "q", attest.KindTDX,
			[]string{attest.TypeTDXQuote, attest.TypeCRL}},
		"quote and log": {map[string][]byte{"q": tdxdata.RawQuote, "log": bios}, "", attest.KindTDX, []string{attest.TypeTDXQuote, attest.TypeEventLog}},
		"log alone":     {map[string][]byte{"log": bios}, "", attest.KindEventLog, []string{attest.TypeEventLog}},
		"IMA, ASCII":    {map[string][]byte{"l": load(t, "..", "ima", "testdata", "ima-ascii")}, "l", attest.KindIMA, []string{attest.TypeIMALog}},
		"IMA, binary":   {map[string][]byte{"l": load(t, "..", "ima", "testdata", "ima-binary")}, "l", attest.KindIMA, []string{attest.TypeIMALog}},
		"TPM":           {map[string][]byte{"a": load(t, "..", "vtpm", "testdata", "secureboot-on-ecc.pb"), "log": bios}, "", attest.KindVTPM, []string{attest.TypeTPMQuote}},
	} {
		in, err := Path(filepath.Join(place(t, tc.files), tc.path))
		if err != nil || len(in) != 1 {
			t.Errorf("%s: got %v, %v", name, in, err)
			continue
		}
		if in[0].Kind != tc.kind || !slices.Equal(types(in[0].Evidence), tc.items) {
			t.Errorf("%s: got %s %v, want %s %v", name, in[0].Kind, types(in[0].Evidence), tc.kind, tc.items)
		}
	}
}

func TestSeveralInAFolder(t *testing.T) {
	dir := place(t, map[string][]byte{"a.pb": load(t, "..", "vtpm", "testdata", "secureboot-on-ecc.pb"),
		"b.pb": load(t, "..", "vtpm", "testdata", "secureboot-on-rsa.pb"), "log": load(t, "..", "eventlog", "testdata", "bios")})
	in, err := Path(dir)
	if err != nil || len(in) != 2 || filepath.Base(in[0].File) != "a.pb" || filepath.Base(in[1].File) != "b.pb" {
		t.Errorf("got %v, %v", in, err)
	}
}

func TestParts(t *testing.T) {
	dir := place(t, map[string][]byte{"r": snpdata.AttestationBytes, "x": snpdata.VcekBytes, "note": []byte("hello")})
	for path, want := range map[string][]string{
		dir:                     {attest.TypeSEVSNPReport, attest.TypeCertificate},
		filepath.Join(dir, "x"): {attest.TypeCertificate},
	} {
		items, err := Parts(path)
		if err != nil || !slices.Equal(types(attest.Evidence{Items: items}), want) {
			t.Errorf("%s: got %v, %v, want %v", path, items, err, want)
		}
	}
	for _, path := range []string{filepath.Join(dir, "absent"), filepath.Join(dir, "note")} {
		if _, err := Parts(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v", path, err)
		}
	}
}

func TestRefused(t *testing.T) {
	long := append(slices.Clone(snpdata.AttestationBytes), 1, 2, 3)
	for name, raw := range map[string][]byte{
		"empty": {}, "text": []byte("hello\n"), "blanks": []byte("  \n"), "zeros": make([]byte, 1184), "report and noise": long,
		"report cut short": snpdata.AttestationBytes[:1183], "certificate": snpdata.VcekBytes, "PEM": vcekPEM(),
		"key": []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), "json": []byte(`{"a":1}`), "list": []byte("[1]"),
		"collateral alone": tdxdata.TcbInfoBody, "too large": make([]byte, maxFile+1),
	} {
		path := filepath.Join(place(t, map[string][]byte{"f": raw}), "f")
		if in, err := Path(path); err == nil {
			t.Errorf("%s: got %v", name, in)
		} else if !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v does not name the file", name, err)
		}
	}
	if _, err := Path(t.TempDir()); err == nil {
		t.Error("an empty folder was accepted")
	}
	if _, err := Path(place(t, map[string][]byte{"vcek.der": snpdata.VcekBytes})); err == nil {
		t.Error("a folder of certificates was accepted")
	}
	if _, err := Path(filepath.Join(t.TempDir(), "absent")); err == nil {
		t.Error("an absent file was accepted")
	}
	if _, err := Path(os.DevNull); err == nil {
		t.Error("a device was read")
	}
}

// TestFlippedBitsStayRecognised: a report with any bit flipped is still refused as a
// report, not passed over as something else.
func TestFlippedBitsStayRecognised(t *testing.T) {
	raw := slices.Clone(snpdata.AttestationBytes)
	for bit := range len(raw) * 8 {
		raw[bit/8] ^= 1 << (bit % 8)
		if kind, _, err := recognise(raw); err != nil || kind != attest.KindSEVSNP {
			t.Fatalf("bit %d of byte %#x: %q, %v", bit%8, bit/8, kind, err)
		}
		raw[bit/8] ^= 1 << (bit % 8)
	}
}

func FuzzRecognise(f *testing.F) {
	f.Add(snpdata.AttestationBytes)
	f.Add(tdxdata.RawQuote)
	f.Add(vcekPEM())
	f.Add(tdxdata.TcbInfoBody)
	f.Fuzz(func(t *testing.T, raw []byte) {
		kind, items, err := recognise(raw)
		if err == nil && (len(items) == 0 || len(items) > attest.MaxCertificates+1) {
			t.Errorf("%q with %d items", kind, len(items))
		}
		if err == nil && kind == "" && items[0].Type == attest.TypeCertificate {
			if _, err := x509.ParseCertificate(items[0].Data); err != nil {
				t.Errorf("a certificate that is none: %v", err)
			}
		}
	})
}
