package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	snpdata "github.com/google/go-sev-guest/verify/testdata"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
)

// runAppraiser appraises files in this process under the roots of a fake Intel.
func runAppraiser(t *testing.T, s attest.Scheme, f appraiseFlags, files ...string) (int, string) {
	t.Helper()
	a, err := newAppraiser(f)
	if err != nil {
		t.Fatal(err)
	}
	a.schemes[s.Kind()] = s
	var out, errOut bytes.Buffer
	if err := a.run(context.Background(), &out, &errOut, files); err != nil {
		var status exitStatus
		if errors.As(err, &status) {
			return int(status), out.String()
		}
		f := asFailure(t.Context(), err)
		return f.exit, out.String() + f.message
	}
	return exitOK, out.String()
}

// forecastOf decodes the one line that appraise --json printed.
func forecastOf(t *testing.T, text string) (l struct {
	Verdict  attest.Verdict
	Forecast *forecast
}) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	if l.Forecast == nil {
		t.Fatalf("no forecast in %s", text)
	}
	return l
}

// tdxFiles writes a fake machine's evidence, and another set of Intel's collateral in a
// folder of its own: TCB info, QE identity and, if wanted, the chain that signs them.
func tdxFiles(t *testing.T, f, then *attesttest.TDX, chain bool) (quote, folder string) {
	t.Helper()
	ev, err := f.Attester(attesttest.Measurement("release")).Attest(t.Context(), attest.ReportData{1})
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := ev.Encode()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	quote, folder = filepath.Join(dir, "evidence.bin"), filepath.Join(dir, "early")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{quote: encoded}
	items := then.Collateral()
	for i, name := range []string{"tcb_info.json", "qe_identity.json", "chain.pem"} {
		if i < 2 || chain {
			files[filepath.Join(folder, name)] = items[i].Data
		}
	}
	for name, raw := range files {
		if err := os.WriteFile(name, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return quote, folder
}

// laterIntel is what a fake Intel says from 2098 on.
func laterIntel(p *attesttest.TDXPlatform) {
	from := time.Date(2098, 1, 1, 0, 0, 0, 0, time.UTC)
	p.Collateral.Info = attesttest.Validity{Issued: from, Next: from.AddDate(0, 1, 0)}
	p.Collateral.Evaluation = 20
	p.Collateral.Levels[0].Status = "OutOfDate"
	p.Collateral.Levels = append([]attesttest.TDXLevel{{SGX: 3, TDX: 3, PCE: 14, Status: "UpToDate", Date: "2097-11-01T00:00:00Z"}}, p.Collateral.Levels...)
}

// TestForecastByTCBInfo: the status, verdict, date and component that Intel's later levels
// mean for a TD that is in order today, from a folder, from the file alone, with the chain
// that the evidence brought, and from a store.
func TestForecastByTCBInfo(t *testing.T) {
	f := attesttest.NewTDX("forecast")
	for name, chain := range map[string]bool{"with the chain": true, "with that of the evidence": false} {
		quote, folder := tdxFiles(t, f, f.With(laterIntel), chain)
		plainExit, plain := runAppraiser(t, f.Scheme(), appraiseFlags{}, quote)
		for _, file := range []string{folder, filepath.Join(folder, "tcb_info.json")} {
			exit, text := runAppraiser(t, f.Scheme(), appraiseFlags{forecast: file, json: true}, quote)
			l := forecastOf(t, text)
			got := l.Forecast
			if exit != exitOK || exit != plainExit || l.Verdict != attest.VerdictWarning || got.Verdict != attest.VerdictContraindicated || got.File != file ||
				got.By != "tcb_info" || got.Why != "" || got.From == nil || got.From.Format(time.DateOnly) != "2098-01-01" || got.TDX.Status != "OutOfDate" ||
				got.TDX.Evaluation != 20 || !slices.Equal(got.Shortfalls, []forecastShortfall{{"tdx.pcesvn", "PCE", 13, 14}}) ||
				got.Reasons[0].Code != attest.CodeTCBStatus || got.Reasons[0].Got != "OutOfDate (tdx.pcesvn: PCE is 13, want at least 14)" {
				t.Errorf("%s, %s: exit %d, got %+v", name, file, exit, got)
			}
			exit, text = runAppraiser(t, f.Scheme(), appraiseFlags{forecast: file}, quote)
			for _, want := range []string{"contraindicated, TCB status OutOfDate, from 2098-01-01T00:00:00Z on (evaluation number 20, newest level of 2097-11-01)",
				"short: tdx.pcesvn: PCE got 13, want at least 14", "then: tcb_status"} {
				if exit != exitOK || !strings.Contains(text, want) {
					t.Errorf("%s: exit %d, %q is missing in\n%s", name, exit, want, text)
				}
			}
			if !strings.HasPrefix(text, plain) {
				t.Errorf("%s: without a forecast\n%swith it\n%s", name, plain, text)
			}
		}
	}
	// By today's levels nothing changes.
	quote, folder := tdxFiles(t, f, f, true)
	_, text := runAppraiser(t, f.Scheme(), appraiseFlags{forecast: folder, json: true}, quote)
	if l := forecastOf(t, text); l.Forecast.Verdict != l.Verdict || l.Forecast.TDX.Status != "UpToDate" || len(l.Forecast.Shortfalls) != 0 {
		t.Errorf("today: %s", text)
	}
}

// TestForecastOtherPlatform: levels of other platforms say nothing; those of a stranger, or
// spoiled ones, are a mistake.
func TestForecastOtherPlatform(t *testing.T) {
	f := attesttest.NewTDX("forecast")
	other := f.With(func(p *attesttest.TDXPlatform) { p.Collateral.FMSPC = "00a06d080000" })
	quote, folder := tdxFiles(t, f, other, true)
	exit, text := runAppraiser(t, f.Scheme(), appraiseFlags{forecast: folder, json: true}, quote)
	if l := forecastOf(t, text); exit != exitOK || l.Verdict != attest.VerdictWarning || l.Forecast.Verdict != "" || !strings.Contains(l.Forecast.Why, "no TCB info for platforms of FMSPC") {
		t.Errorf("another platform: exit %d, %s", exit, text)
	}
	quote, folder = tdxFiles(t, f, attesttest.NewTDX("stranger"), true)
	if exit, text = runAppraiser(t, f.Scheme(), appraiseFlags{forecast: folder, json: true}, quote); exit != exitUsage || strings.Contains(text, `"verdict"`) {
		t.Errorf("a stranger's levels: exit %d, %s", exit, text)
	}
	// SEV-SNP evidence, and a quote that is not genuine, have none by Intel's word.
	_, folder = tdxFiles(t, f, f, true)
	plainExit, _ := appraiseJSON(t, "--at", milanAt, milanSample(t))
	exit, lines := appraiseJSON(t, "--at", milanAt, "--forecast", folder, milanSample(t))
	if exit != plainExit || lines[0].Forecast == nil || !strings.Contains(lines[0].Forecast.Why, "says nothing about evidence of kind sevsnp") {
		t.Errorf("SEV-SNP: exit %d, %+v", exit, lines[0].Forecast)
	}
	exit, lines = appraiseJSON(t, "--forecast", folder, quote) // a fake Intel is nobody here
	if exit != exitRefused || lines[0].Forecast == nil || lines[0].Forecast.Why != "only genuine evidence has a forecast" {
		t.Errorf("not genuine: exit %d, %+v", exit, lines[0].Forecast)
	}
}

// TestForecastWithoutRevocationLists: levels decide nothing while other collateral lacks.
func TestForecastWithoutRevocationLists(t *testing.T) {
	f := attesttest.NewTDX("forecast")
	quote, folder := tdxFiles(t, f, f, true)
	raw, err := os.ReadFile(quote)
	if err != nil {
		t.Fatal(err)
	}
	ev, err := attest.DecodeEvidence(raw)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(quote, ev.Find(attest.TypeTDXQuote)[0], 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{folder, filepath.Join(folder, "tcb_info.json")} { // the rest is beside it
		exit, text := runAppraiser(t, f.Scheme(), appraiseFlags{forecast: file, json: true}, quote)
		if l := forecastOf(t, text); exit != exitUnavailable || l.Forecast.Verdict != attest.VerdictNone || l.Forecast.TDX.Status != "UpToDate" ||
			!strings.Contains(l.Forecast.Reasons[0].Got, "pck_crl, root_ca_crl") || strings.Contains(l.Forecast.Reasons[0].Got, "tcb_info") {
			t.Errorf("%s: exit %d, %s", file, exit, text)
		}
	}
}

// TestForecastByPolicy: a raised floor says which components of AMD's are short, each TCB by
// its own floor, and the verdict is that of the policy; the one of today stays.
func TestForecastByPolicy(t *testing.T) {
	dir, today := milanSample(t), attest.StrictPolicy()
	today.SEVSNP.AllowDebug = true
	f := policyFile{Kinds: today.Kinds, SEVSNP: today.SEVSNP, TDX: today.TDX, VTPM: today.VTPM,
		References: []attest.Reference{{Kind: attest.KindSEVSNP, Measurement: milanMeasurement()}}}
	now := writePolicy(t, f)
	f.SEVSNP.MinimumTCB["Milan"] = attest.TCB{SNP: 200}
	f.SEVSNP.MinimumLaunchTCB["Milan"] = attest.TCB{TEE: 201}
	raised := writePolicy(t, f)
	exit, lines := appraiseJSON(t, "--at", milanAt, "--policy", now, "--forecast", raised, dir)
	l := lines[0]
	if exit != exitOK || l.Verdict != attest.VerdictAffirming || l.Forecast == nil {
		t.Fatalf("exit %d, %+v", exit, l)
	}
	got := l.Forecast
	var short []string
	for _, s := range got.Shortfalls {
		short = append(short, s.Claim+" "+s.Component)
		if s.Want != map[string]uint16{"snp": 200, "tee": 201}[s.Component] || s.Got >= s.Want {
			t.Errorf("got %+v", s)
		}
	}
	if got.Verdict != attest.VerdictContraindicated || got.By != "policy" || got.From != nil || got.TDX != nil || len(got.Reasons) != 3 ||
		got.Reasons[0].Code != attest.CodeTCBBelowFloor || !slices.Equal(short, []string{"sevsnp.reported_tcb snp", "sevsnp.committed_tcb snp", "sevsnp.launch_tcb tee"}) {
		t.Errorf("got %+v", got)
	}
	exit, lines = appraiseJSON(t, "--at", milanAt, "--policy", raised, "--forecast", now, dir)
	if exit != exitRefused || lines[0].Verdict != attest.VerdictContraindicated || lines[0].Forecast.Verdict != attest.VerdictAffirming || len(lines[0].Forecast.Shortfalls) != 0 {
		t.Errorf("lowered: exit %d, %+v", exit, lines[0].Forecast)
	}
	var out, errOut bytes.Buffer
	execute(t.Context(), []string{"appraise", "--at", milanAt, "--policy", now, "--forecast", raised, dir}, nil, &out, &errOut)
	for _, want := range []string{": affirming (sevsnp, genuine)", "contraindicated, from the day on which this policy holds", "short: sevsnp.launch_tcb: tee got ", ", want at least 201"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, &out)
		}
	}
}

func milanMeasurement() string { return hex.EncodeToString(snpdata.AttestationBytes[0x90:0xC0]) }

// TestForecastWrongInput: each is exit 2 with a remedy, before anything is judged.
func TestForecastWrongInput(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	empty := t.TempDir()
	milan := milanSample(t)
	for name, tc := range map[string]struct{ file, says string }{
		"absent":             {filepath.Join(dir, "absent"), "absent"},
		"an empty folder":    {empty, "holds no TCB info"},
		"a sample":           {milan, "holds no TCB info"},
		"a certificate":      {filepath.Join(milan, "vcek.der"), "holds no TCB info"},
		"JSON of another":    {write("other.json", `{"a":1}`), "not Intel's collateral"},
		"a cut answer":       {write("cut.json", `{"tcbInfo":{"id":"TDX",`), "JSON"},
		"an unknown key":     {write("unknown.yaml", "kinds: []\nreferences: []\nfloor: 3\n"), `"floor"`},
		"half a policy":      {write("half.yaml", "kinds: [sevsnp]\nreferences: []\n"), `"sevsnp" is missing`},
		"a policy of no use": {write("prose.yaml", "hello there"), "prose.yaml"},
	} {
		var out, errOut bytes.Buffer
		exit := execute(t.Context(), []string{"appraise", "--at", milanAt, "--forecast", tc.file, milan}, nil, &out, &errOut)
		if exit != exitUsage || out.Len() > 0 || !strings.Contains(errOut.String(), tc.says) || !strings.Contains(errOut.String(), "try: ") {
			t.Errorf("%s: exit %d, %s%s", name, exit, &out, &errOut)
		}
	}
	var out, errOut bytes.Buffer
	exit := execute(t.Context(), []string{"appraise", "--forecast", writeDefault(t), "https://127.0.0.1:1"}, nil, &out, &errOut)
	if exit != exitUsage || !strings.Contains(errOut.String(), "--forecast is for files") {
		t.Errorf("a node: exit %d, %s", exit, &errOut)
	}
}

func writeDefault(t *testing.T) string {
	t.Helper()
	s := attest.StrictPolicy()
	return writePolicy(t, policyFile{Kinds: s.Kinds, References: []attest.Reference{}, SEVSNP: s.SEVSNP, TDX: s.TDX, VTPM: s.VTPM})
}

// TestForecastSamples: a genuine TD of 2025 by what Intel said of its family in 2026.
func TestForecastSamples(t *testing.T) {
	root := filepath.Join("..", "..", "..", "shared", "data", "evidence", "tdx")
	levels := filepath.Join(root, "tdx-v4-azure-collateral-202602", "tcb_info.json")
	if _, err := os.Stat(levels); err != nil {
		t.Skipf("no samples at ../shared/data/evidence beside the repository: %v", err)
	}
	quote := filepath.Join(root, "tdx-v4-nocollateral", "quote.bin")
	plainExit, plain := appraiseJSON(t, "--at", "2026-02-15T00:00:00Z", quote)
	exit, lines := appraiseJSON(t, "--at", "2026-02-15T00:00:00Z", "--forecast", levels, quote)
	got := lines[0].Forecast
	if exit != plainExit || lines[0].Verdict != plain[0].Verdict || got == nil || got.TDX == nil || got.TDX.Evaluation != 18 || got.TDX.Status == "" ||
		(got.TDX.Status == "UpToDate") != (len(got.Shortfalls) == 0) {
		t.Fatalf("exit %d, %+v", exit, got)
	}
	// Of another machine of the family one component is short, and the lists are its own.
	_, lines = appraiseJSON(t, "--at", "2026-02-20T00:00:00Z", "--forecast", filepath.Dir(levels), filepath.Join(root, "tdx-v5-collateral-202602"))
	want := []forecastShortfall{{"tdx.sgx_tcb_svn", "component 8 OS/VMM SEAMLDR ACM", 3, 5}}
	if got := lines[0].Forecast; got == nil || got.Verdict != attest.VerdictContraindicated || !slices.Equal(got.Shortfalls, want) {
		t.Errorf("got %+v", got)
	}
}
