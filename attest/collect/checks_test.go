package collect

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	snpdata "github.com/google/go-sev-guest/verify/testdata"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/attestmesh/meshnode/attest"
)

// TestChecks holds each check by itself: behind some of them another one would refuse as
// well, with other words.
func TestChecks(t *testing.T) {
	report, many := map[string][]byte{"report.bin": snpdata.AttestationBytes}, map[string][]byte{"report.bin": snpdata.AttestationBytes}
	for i := range maxFiles + 1 {
		many[fmt.Sprintf("%03d.json", i)] = []byte("{}")
	}
	with := func(name string, raw []byte) string {
		files := map[string][]byte{name: raw}
		for n, r := range report {
			files[n] = r
		}
		return place(t, files)
	}
	encode := func(ev attest.Evidence) []byte {
		raw, err := ev.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	sim := encode(attest.Evidence{Kind: attest.KindSim, Items: []attest.Item{{Type: attest.TypeSimReport, Data: []byte{1}}}})
	var entries abi.CertTable
	for range attest.MaxCertificates + 1 {
		entries.Entries = append(entries.Entries, abi.CertTableEntry{GUID: [16]byte{1}, RawCert: []byte{1}})
	}
	path := func(path string) error { _, err := Path(path); return err }
	known := func(raw []byte) error { _, _, err := recognise(raw); return err }
	for name, tc := range map[string]struct {
		err  error
		want string
	}{
		"a large file in a folder": {path(with("large", make([]byte, maxFile+1))), "over the limit"},
		"a large file":             {path(filepath.Join(place(t, map[string][]byte{"large": make([]byte, maxFile+1)}), "large")), "over the limit"},
		"a folder of many files":   {path(place(t, many)), "the limit is 256"},
		"a file among many":        {path(filepath.Join(place(t, many), "report.bin")), "more than 256 files beside it"},
		"a certificate":            {path(filepath.Join(place(t, map[string][]byte{"vcek.der": snpdata.VcekBytes}), "vcek.der")), "certificates or collateral, not evidence"},
		"an empty file":            {known(nil), "the file is empty"},
		"simulated":                {known(sim), "simulated evidence"},
		"a table of many":          {known(append(slices.Clone(snpdata.AttestationBytes), entries.Marshal()...)), "no certificate table"},
		"many certificates":        {known([]byte(strings.Repeat(string(vcekPEM()), attest.MaxCertificates+1))), "more than 32 certificates"},
	} {
		if tc.err == nil || !strings.Contains(tc.err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, tc.err, tc.want)
		}
	}
	dir := with("vcek.der", snpdata.VcekBytes)
	if err := os.Mkdir(filepath.Join(dir, "more"), 0o700); err != nil {
		t.Fatal(err)
	}
	if in, err := Path(dir); err != nil || len(in) != 1 {
		t.Errorf("a folder with a folder in it: %v, %v", in, err)
	}
	certs := map[string][]byte{"report.bin": snpdata.AttestationBytes}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for i := range attest.MaxCertificates + 1 {
		template := &x509.Certificate{SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: "SEV-VCEK"}}
		if certs[fmt.Sprintf("%d.der", i)], err = x509.CreateCertificate(rand.Reader, template, template, key.Public(), key); err != nil {
			t.Fatal(err)
		}
	}
	if err := path(place(t, certs)); err == nil || !strings.Contains(err.Error(), "33 certificates") {
		t.Errorf("33 certificates beside a report: %v", err)
	}
	td := attest.Evidence{Kind: attest.KindTDX, Items: []attest.Item{{Type: attest.TypeTDXQuote, Data: []byte{1}}}}
	if kind, items, err := recognise(encode(td)); err != nil || kind != attest.KindTDX || len(items) != 1 {
		t.Errorf("what meshnode attest writes: %s, %v, %v", kind, items, err)
	}
}

// TestMessageOfALibrary: a report must be in it, and nothing that nobody knows.
func TestMessageOfALibrary(t *testing.T) {
	good := message(t)
	if _, ok := snpMessage(good); !ok {
		t.Fatal("the library's own message is unknown")
	}
	none, err := proto.Marshal(&spb.Attestation{CertificateChain: &spb.CertificateChain{VcekCert: snpdata.VcekBytes}})
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{"no report": none, "cut": good[:len(good)-1],
		"an unknown field": append(slices.Clone(good), protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1)...)} {
		if items, ok := snpMessage(raw); ok {
			t.Errorf("%s: %d items", name, len(items))
		}
	}
	if _, err := read(t.TempDir(), 1); !errors.Is(err, errNothing) {
		t.Errorf("a folder: %v", err)
	}
}
