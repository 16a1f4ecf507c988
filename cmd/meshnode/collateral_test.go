package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	snpdata "github.com/google/go-sev-guest/verify/testdata"
	tdxmocks "github.com/google/go-tdx-guest/testing"
	tdxdata "github.com/google/go-tdx-guest/testing/testdata"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/collateral"
)

// collateralJSON runs meshnode collateral in this process.
func collateralJSON(t *testing.T, v any, args ...string) int {
	t.Helper()
	var out, errOut bytes.Buffer
	exit := execute(context.Background(), append(append([]string{"collateral"}, args...), "--json"), nil, &out, &errOut)
	if err := json.Unmarshal(out.Bytes(), v); err != nil {
		t.Fatalf("%v: exit %d, %s %s", err, exit, &out, &errOut)
	}
	return exit
}

// vendorService is a local TLS server in place of AMD's and Intel's, with genuine answers:
// those of Intel are of June 2023. It returns the flags that name it.
func vendorService(t *testing.T, count *int) []string {
	t.Helper()
	answer := func(raw []byte, headers map[string][]string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for k, v := range headers {
				w.Header()[k] = v
			}
			_, _ = w.Write(raw)
		}
	}
	answers := map[string]http.HandlerFunc{
		"/tdx/certification/v4/tcb":         answer(tdxdata.TcbInfoBody, tdxmocks.TcbInfoHeader),
		"/tdx/certification/v4/qe/identity": answer(tdxdata.QeIdentityBody, tdxmocks.QeIdentityHeader),
		"/sgx/certification/v4/pckcrl":      answer(tdxdata.PckCrlBody, tdxmocks.PckCrlHeader),
		"/IntelSGXRootCA.der":               answer(tdxdata.RootCrlBody, nil),
	}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*count++
		if strings.HasPrefix(r.URL.Path, "/vcek/v1/Milan/3ac3fe21") && r.URL.RawQuery == "blSPL=02&teeSPL=00&snpSPL=05&ucodeSPL=68" {
			_, _ = w.Write(snpdata.VcekBytes)
			return
		}
		if h := answers[r.URL.Path]; h != nil {
			h(w, r)
			return
		}
		http.NotFound(w, r)
	}))
	t.Cleanup(s.Close)
	roots := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"--amd", s.URL, "--intel", s.URL, "--intel-certificates", s.URL, "--tls-roots", roots}
}

func write(t *testing.T, name string, raw []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestCollateralFetch: a bare genuine report is nothing to decide by; after one fetch it is
// judged, offline, and the second fetch asks nobody for what is there.
func TestCollateralFetch(t *testing.T) {
	var asked int
	flags := vendorService(t, &asked)
	report, store := write(t, "report.bin", snpdata.AttestationBytes), filepath.Join(t.TempDir(), "store")
	if exit, lines := appraiseJSON(t, "--at", milanAt, report); exit != exitUnavailable || lines[0].codes() != "collateral_missing" {
		t.Fatalf("bare: exit %d, %+v", exit, lines)
	}
	var out fetched
	exit := collateralJSON(t, &out, append([]string{"fetch", "--dir", store, report}, flags...)...)
	if exit != exitUnavailable || len(out.Objects) != 2 || out.Objects[0].Result != "stored" || out.Objects[1].Error.Code != attest.CodeCollateralMissing || len(out.Lacks) != 0 {
		t.Fatalf("exit %d, %+v", exit, out)
	}
	if exit, lines := appraiseJSON(t, "--at", milanAt, "--collateral", store, report); exit != exitRefused || !*lines[0].Genuine || !strings.HasPrefix(lines[0].codes(), "debug") {
		t.Errorf("with the store: exit %d, %+v", exit, lines)
	}
	before := asked
	collateralJSON(t, &out, append([]string{"fetch", "--dir", store, report}, flags...)...)
	if out.Objects[0].Result != "current" || asked != before+1 {
		t.Errorf("again: %d requests, %+v", asked-before, out)
	}
}

// TestCollateralFetchStale: genuine answers of years ago are refused by name.
func TestCollateralFetchStale(t *testing.T) {
	var asked int
	flags := vendorService(t, &asked)
	quote, store := write(t, "quote.bin", rawQuote()), filepath.Join(t.TempDir(), "store")
	var out fetched
	exit := collateralJSON(t, &out, append([]string{"fetch", "--dir", store, quote}, flags...)...)
	if exit != exitUnavailable || len(out.Objects) != 4 || len(out.Lacks) != 4 {
		t.Fatalf("exit %d, %+v", exit, out)
	}
	for _, o := range out.Objects {
		if o.Error == nil || o.Error.Code != attest.CodeCollateralStale || !strings.Contains(o.Error.Message, "expired at") {
			t.Errorf("%s: %v", o.Name, o.Error)
		}
	}
	var shown struct{ Objects []shownObject }
	if exit := collateralJSON(t, &shown, "show", "--dir", store); exit != exitOK || len(shown.Objects) != 0 {
		t.Errorf("exit %d, stored %+v", exit, shown)
	}
}

// TestCollateralImport: the same answers are taken by hand, for verdicts of their day.
func TestCollateralImport(t *testing.T) {
	dir, store := t.TempDir(), filepath.Join(t.TempDir(), "store")
	chain := tdxmocks.TcbInfoHeader["Tcb-Info-Issuer-Chain"][0]
	for name, raw := range map[string][]byte{"quote.bin": rawQuote(), "tcb.json": tdxdata.TcbInfoBody, "qe.json": tdxdata.QeIdentityBody,
		"pck.crl": tdxdata.PckCrlBody, "root.crl": tdxdata.RootCrlBody, "vcek.der": snpdata.VcekBytes, "chain.pem": []byte(unescape(t, chain))} {
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out struct{ Objects []imported }
	if exit := collateralJSON(t, &out, "import", "--dir", store, dir); exit != exitOK {
		t.Fatalf("exit %d, %+v", exit, out)
	}
	stored := 0
	for _, o := range out.Objects {
		if o.Result == "stored" {
			stored++
		}
	}
	if stored != 7 { // the quote brings the certificate of its PCK CA
		t.Errorf("%d stored, want 7: %+v", stored, out)
	}

	var shown struct {
		Objects []struct {
			Name, State string
			Expires     time.Time
		}
	}
	states := func(args ...string) (int, map[string]string) {
		exit := collateralJSON(t, &shown, append([]string{"show", "--dir", store}, args...)...)
		m := map[string]string{}
		for _, o := range shown.Objects {
			m[o.Name] = o.State
		}
		return exit, m
	}
	if exit, m := states("--at", "2023-07-01T00:00:00Z"); exit != exitOK || m["tdx/qe-identity"] != collateral.StateCurrent {
		t.Errorf("of its day: exit %d, %v", exit, m)
	}
	if exit, _ := states("--at", "2023-07-01T00:00:00Z", "--within", "240h"); exit != exitUnavailable {
		t.Errorf("ten days before it expires: exit %d", exit)
	}
	if exit, m := states(); exit != exitUnavailable || m["tdx/qe-identity"] != collateral.StateExpired {
		t.Errorf("today: exit %d, %v", exit, m)
	}

	// Of its day there is a status, of today there is none that counts.
	quote := write(t, "quote.bin", rawQuote())
	_, lines := appraiseJSON(t, "--at", "2023-07-01T00:00:00Z", "--collateral", store, quote)
	if l := lines[0]; l.Claims.TDX == nil || l.Claims.TDX.TCBStatus == "" {
		t.Errorf("of its day: %+v", l)
	}
	if exit, lines := appraiseJSON(t, "--at", "2026-03-01T00:00:00Z", "--collateral", store, quote); exit == exitOK || !strings.Contains(lines[0].codes(), "collateral_stale") {
		t.Errorf("of today: exit %d, %s", exit, lines[0].codes())
	}

	// Another's root, and files that are none.
	if exit := collateralJSON(t, &out, "import", "--dir", store, write(t, "qe.json", bytes.Replace(tdxdata.QeIdentityBody, []byte("DC9E"), []byte("DC9F"), 1))); exit != exitRefused || out.Objects[0].Result != "failed" {
		t.Errorf("changed: exit %d, %+v", exit, out)
	}
	var refused struct{ Error map[string]string }
	if exit := collateralJSON(t, &refused, "import", "--dir", store, write(t, "report.bin", snpdata.AttestationBytes)); exit != exitUsage || refused.Error["remedy"] == "" {
		t.Errorf("a report alone: exit %d, %+v", exit, refused)
	}

	// A store can be taken to a machine that reaches nobody.
	second := filepath.Join(t.TempDir(), "second")
	out.Objects = nil
	if exit := collateralJSON(t, &out, "import", "--dir", second, store); exit != exitOK || len(out.Objects) != len(shown.Objects) {
		t.Errorf("a store: exit %d, %+v", exit, out)
	}
}

// rawQuote is the library's genuine quote without the padding behind it.
func rawQuote() []byte {
	const signed = 48 + 584
	return tdxdata.RawQuote[:signed+4+binary.LittleEndian.Uint32(tdxdata.RawQuote[signed:])]
}

func unescape(t *testing.T, chain string) string {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, "https://x/?c="+chain, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r.URL.Query().Get("c")
}

// TestAppraiseOfItsDay: one store, one quote, two days: each is judged with what counted then.
func TestAppraiseOfItsDay(t *testing.T) {
	root := filepath.Join("..", "..", "..", "shared", "data", "evidence", "tdx")
	if _, err := os.Stat(root); err != nil {
		t.Skip("the samples are not here: ", root)
	}
	store := filepath.Join(t.TempDir(), "store")
	var out struct{ Objects []imported }
	for _, sample := range []string{"tdx-v4-collateral-202506", "tdx-v4-collateral-202508"} {
		if exit := collateralJSON(t, &out, "import", "--dir", store, filepath.Join(root, sample)); exit != exitOK {
			t.Fatalf("exit %d, %+v", exit, out)
		}
	}
	quote, err := os.ReadFile(filepath.Join(root, "tdx-v4-collateral-202506", "quote.bin"))
	if err != nil {
		t.Fatal(err)
	}
	file := write(t, "quote.bin", quote)
	for _, c := range []struct{ at, codes string }{
		{"2025-07-04T00:00:00Z", "no_reference_values"},
		{"2025-09-03T00:00:00Z", "no_reference_values"},
		{"2025-08-01T00:00:00Z", "collateral_stale"}, // June's has expired, August's is not there yet
	} {
		_, lines := appraiseJSON(t, "--at", c.at, "--collateral", store, file)
		if !strings.Contains(lines[0].codes(), c.codes) || strings.Contains(lines[0].codes(), "stale") != (c.codes == "collateral_stale") {
			t.Errorf("%s: got %s, want %s", c.at, lines[0].codes(), c.codes)
		}
	}
}
