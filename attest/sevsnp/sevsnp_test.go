package sevsnp

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/testdata"

	"github.com/attestmesh/meshnode/attest"
)

func code(t *testing.T, err error) attest.Code {
	t.Helper()
	var e *attest.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an *attest.Error", err)
	}
	return e.Reason.Code
}

func TestGenuineMilanIsDebug(t *testing.T) {
	c, err := scheme(t).Verify(context.Background(), milan(), nil, milanAt)
	if err != nil {
		t.Fatal(err)
	}
	if !c.Genuine || c.Bound || !c.SEVSNP.Debug || c.SEVSNP.Product != Milan {
		t.Errorf("got %+v", c.SEVSNP)
	}
	r := attest.Appraise(c, attest.StrictPolicy(), milanAt)
	if r.Verdict != attest.VerdictContraindicated || r.Code() != attest.CodeDebug {
		t.Errorf("got %s %v, want contraindicated debug", r.Verdict, r.Reasons)
	}
	want := attest.TCB{BootLoader: 2, SNP: 5, Microcode: 68}
	if c.SEVSNP.ReportedTCB != want {
		t.Errorf("reported TCB %v, want %v", c.SEVSNP.ReportedTCB, want)
	}
}

func TestBinding(t *testing.T) {
	s, ctx := scheme(t), context.Background()
	data := attest.ReportData(testdata.AttestationBytes[0x50:0x90])
	if c, err := s.Verify(ctx, milan(), &data, milanAt); err != nil || !c.Bound {
		t.Errorf("got %v, %v", c.Bound, err)
	}
	data[63]++
	if _, err := s.Verify(ctx, milan(), &data, milanAt); code(t, err) != attest.CodeNotBound {
		t.Errorf("got %v", err)
	}
}

func TestRefusals(t *testing.T) {
	report, vcek := testdata.AttestationBytes, testdata.VcekBytes
	patched := func(off int, b byte) []byte {
		out := append([]byte(nil), report...)
		out[off] = b
		return out
	}
	other := milan()
	other.Items = append(other.Items, attest.Item{Type: attest.TypeTDXQuote, Data: []byte{1}})
	wrongKind := milan()
	wrongKind.Kind = attest.KindTDX
	for name, tc := range map[string]struct {
		ev   attest.Evidence
		at   time.Time
		want attest.Code
	}{
		"no certificate":                   {evidence(report), milanAt, attest.CodeCollateralMissing},
		"only CA certificates":             {evidence(report, ark(t)), milanAt, attest.CodeCollateralMissing},
		"truncated":                        {evidence(report[:1183], vcek), milanAt, attest.CodeMalformed},
		"trailing byte":                    {evidence(append(append([]byte(nil), report...), 0), vcek), milanAt, attest.CodeMalformed},
		"trailing byte in the certificate": {evidence(report, append(append([]byte(nil), vcek...), 0)), milanAt, attest.CodeNotGenuine},
		"two reports":                      {evidenceTwice(report, vcek), milanAt, attest.CodeMalformed},
		"foreign item":                     {other, milanAt, attest.CodeMalformed},
		"wrong kind":                       {wrongKind, milanAt, attest.CodeMalformed},
		"nothing":                          {attest.Evidence{}, milanAt, attest.CodeMalformed},
		"version 1":                        {evidence(patched(0, 1), vcek), milanAt, attest.CodeNotGenuine},
		"version 6, bad signature":         {evidence(patched(0, 6), vcek), milanAt, attest.CodeNotGenuine},
		"says VLEK":                        {evidence(patched(0x48, 4), vcek), milanAt, attest.CodeNotGenuine},
		"certificate expired":              {milan(), time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC), attest.CodeNotGenuine},
		"certificate not yet":              {milan(), time.Date(2022, 1, 1, 0, 0, 0, 0, time.UTC), attest.CodeNotGenuine},
		"the zero time":                    {milan(), time.Time{}, attest.CodeNotGenuine},
	} {
		c, err := scheme(t).Verify(context.Background(), tc.ev, nil, tc.at)
		if err == nil || c.Genuine {
			t.Errorf("%s: accepted", name)
		} else if got := code(t, err); got != tc.want {
			t.Errorf("%s: got %v, want %s", name, err, tc.want)
		}
	}
	if _, err := new(Scheme).Verify(context.Background(), milan(), nil, milanAt); err == nil {
		t.Error("the zero scheme accepted")
	}
	for _, roots := range []Roots{nil, {Milan: {}}, {Milan: {ARK: mustRoots(t)[Milan].ARK}}} {
		if _, err := WithRoots(roots); err == nil {
			t.Errorf("roots %v were accepted", roots)
		}
	}
}

func evidenceTwice(report, cert []byte) attest.Evidence {
	ev := evidence(report, cert)
	ev.Items = append(ev.Items, ev.Items[0])
	return ev
}

func mustRoots(t *testing.T) Roots {
	t.Helper()
	roots, err := AMDRoots()
	if err != nil {
		t.Fatal(err)
	}
	return roots
}

func ark(t *testing.T) []byte { return mustRoots(t)[Milan].ARK.Raw }

func TestCertificateMismatch(t *testing.T) {
	e, ok, err := parseEndorsement(testdata.VcekBytes)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	r, err := parseReport(testdata.AttestationBytes)
	if err != nil || e.disagrees(r) != nil {
		t.Fatal(err, e.disagrees(r))
	}
	for name, change := range map[string]func(*endorsement, *report){
		"tcb":      func(e *endorsement, _ *report) { e.tcb[7]++ },
		"chip":     func(e *endorsement, _ *report) { e.hwid = append([]byte{e.hwid[0] + 1}, e.hwid[1:]...) },
		"no chip":  func(e *endorsement, _ *report) { e.hwid = []byte{} },
		"product":  func(_ *endorsement, r *report) { r.product = Genoa },
		"key kind": func(_ *endorsement, r *report) { r.signingKey = "VLEK" },
	} {
		e2, r2 := e, r
		change(&e2, &r2)
		if reason := e2.disagrees(r2); reason == nil || reason.Code != attest.CodeCertificateMismatch {
			t.Errorf("%s: got %v", name, reason)
		}
	}
}

// TestVLEKWithoutASVK: the library dereferences a nil intermediate where revocation is
// checked, and the embedded roots know no ASVK; a scheme without one refuses.
func TestVLEKWithoutASVK(t *testing.T) {
	dir := filepath.Join(sharedEvidence(t), "sevsnp", "snp-milan-v2-vlek")
	report, vlek := read(t, dir, "report.bin"), read(t, dir, "vlek.der")
	at := time.Date(2024, 7, 4, 21, 45, 26, 0, time.UTC)
	if _, err := scheme(t).Verify(context.Background(), evidence(report, vlek), nil, at); err != nil {
		t.Fatal(err)
	}
	roots := mustRoots(t)
	m := roots[Milan]
	m.ASVK = nil
	s, err := WithRoots(Roots{Milan: m})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Verify(context.Background(), evidence(report, vlek), nil, at); code(t, err) != attest.CodeNotGenuine {
		t.Errorf("got %v", err)
	}
	parsed, err := abi.ReportToProto(report)
	if err != nil {
		t.Fatal(err)
	}
	att := &spb.Attestation{Report: parsed, CertificateChain: &spb.CertificateChain{VlekCert: vlek}}
	if err := verify.SnpAttestation(att, &verify.Options{DisableCertFetching: true, Now: at}); err == nil {
		t.Error("the library verifies VLEKs under its embedded roots now; our ASVKs may go")
	}
}

func read(t *testing.T, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type sample struct {
	Name, Kind, Measurement, Product, Note string
	Report                                 string `json:"report_data"`
	Files                                  map[string]string
	At                                     time.Time
	Genuine, Debug                         bool
	Version                                uint32
	VMPL                                   uint32
	ReportedTCB                            string `json:"reported_tcb"`
}

func TestSamples(t *testing.T) {
	dir := sharedEvidence(t)
	var samples []sample
	if err := json.Unmarshal(read(t, dir, "expected.json"), &samples); err != nil {
		t.Fatal(err)
	}
	s, n := scheme(t), 0
	for _, want := range samples {
		if want.Kind != attest.KindSEVSNP {
			continue
		}
		n++
		var certs [][]byte
		for _, name := range []string{"vcek", "vlek"} {
			if f := want.Files[name]; f != "" {
				certs = append(certs, read(t, dir, f))
			}
		}
		report := read(t, dir, want.Files["report"])
		c, err := s.Verify(context.Background(), evidence(report, certs...), nil, want.At)
		if (err == nil && c.Genuine) != want.Genuine {
			t.Errorf("%s: genuine %v (%v), want %v", want.Name, c.Genuine, err, want.Genuine)
			continue
		}
		if !want.Genuine {
			continue
		}
		if c.Measurement != want.Measurement || c.ReportData != want.Report || c.SEVSNP.Debug != want.Debug ||
			c.SEVSNP.Version != want.Version || c.SEVSNP.VMPL != want.VMPL || c.SEVSNP.Product != want.Product {
			t.Errorf("%s: got %+v, want %+v", want.Name, c, want)
		}
		// We agree with the library on each sample that it can verify.
		if err := byLibrary(s.roots, report, certs[0], want.At); (err == nil) != (want.Product != Turin) {
			t.Errorf("%s: the library says %v", want.Name, err)
		}
		if strings.Contains(want.Note, "expired on") {
			if _, err := s.Verify(context.Background(), evidence(report, certs...), nil, want.At.AddDate(2, 0, 0)); err == nil {
				t.Errorf("%s: accepted after the certificate expired", want.Name)
			}
		}
		report[0x93] ^= 1
		if _, err := s.Verify(context.Background(), evidence(report, certs...), nil, want.At); err == nil {
			t.Errorf("%s: a flipped measurement was accepted", want.Name)
		}
	}
	if n == 0 {
		t.Error("no samples")
	}
}

func FuzzVerify(f *testing.F) {
	f.Add(testdata.AttestationBytes, testdata.VcekBytes)
	f.Add(testdata.AttestationBytes, []byte{})
	s := scheme(f)
	f.Fuzz(func(t *testing.T, report, cert []byte) {
		c, err := s.Verify(context.Background(), evidence(report, cert), nil, milanAt)
		if err == nil && (!c.Genuine || string(report[:0x2A0]) != string(testdata.AttestationBytes[:0x2A0])) {
			t.Errorf("accepted %x", report)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	s, ev := scheme(b), milan()
	for b.Loop() {
		if _, err := s.Verify(context.Background(), ev, nil, milanAt); err != nil {
			b.Fatal(err)
		}
	}
}
