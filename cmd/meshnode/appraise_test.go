package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	snpdata "github.com/google/go-sev-guest/verify/testdata"

	"go.yaml.in/yaml/v4"

	"github.com/attestmesh/meshnode/attest"
)

// line is what a script reads from appraise --json.
type line struct {
	File    string
	Verdict attest.Verdict
	Kind    string
	Genuine *bool
	Bound   bool
	Claims  struct {
		Measurement string
		Registers   map[string]string
		TDX         *attest.TDXClaims
	}
	Reasons  []attest.Reason
	Forecast *forecast
	EAR      json.RawMessage
}

func (l line) codes() string {
	var out []string
	for _, r := range l.Reasons {
		out = append(out, string(r.Code))
	}
	return strings.Join(out, ",")
}

// appraiseJSON runs the command in this process.
func appraiseJSON(t *testing.T, args ...string) (int, []line) {
	t.Helper()
	var out, errOut bytes.Buffer
	exit := execute(context.Background(), append([]string{"appraise", "--json"}, args...), nil, &out, &errOut)
	if errOut.Len() > 0 {
		t.Errorf("on standard error: %s", &errOut)
	}
	var lines []line
	for dec := json.NewDecoder(&out); dec.More(); {
		var l line
		if err := dec.Decode(&l); err != nil {
			t.Fatalf("%v in %s", err, &out)
		}
		lines = append(lines, l)
	}
	return exit, lines
}

// milanSample is a folder with the genuine report of a debuggable guest.
func milanSample(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, raw := range map[string][]byte{"report.bin": snpdata.AttestationBytes, "vcek.der": snpdata.VcekBytes} {
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const milanAt = "2026-03-01T00:00:00Z"

func TestAppraiseGenuineMilan(t *testing.T) {
	dir := milanSample(t)
	for _, path := range []string{dir, filepath.Join(dir, "report.bin")} {
		exit, lines := appraiseJSON(t, "--at", milanAt, path)
		if exit != exitRefused || len(lines) != 1 {
			t.Fatalf("exit %d, %v", exit, lines)
		}
		l := lines[0]
		if l.Verdict != attest.VerdictContraindicated || l.Kind != "sevsnp" || l.Genuine == nil || !*l.Genuine || l.Bound ||
			l.codes() != "debug,no_reference_values" || !strings.HasPrefix(l.Claims.Measurement, "b07af962") {
			t.Errorf("got %+v", l)
		}
		if _, r, err := attest.ParseEAR(l.EAR); err != nil || r.Verdict != l.Verdict || r.Measurement != l.Claims.Measurement {
			t.Errorf("EAR %s: %v", l.EAR, err)
		}
	}
}

func TestAppraiseTampered(t *testing.T) {
	dir := milanSample(t)
	path := filepath.Join(dir, "report.bin")
	for _, at := range []int{0x00, 0x08, 0x30, 0x34, 0x48, 0x50, 0x90, 0x180, 0x1A0, 0x208, 0x29f, 0x2A0, 0x2E8} {
		raw := bytes.Clone(snpdata.AttestationBytes)
		raw[at] ^= 4
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		exit, lines := appraiseJSON(t, "--at", milanAt, path)
		if exit != exitRefused || len(lines) != 1 || lines[0].Genuine == nil || *lines[0].Genuine || lines[0].Claims.Measurement != "" {
			t.Errorf("byte %#x: exit %d, %+v", at, exit, lines)
		}
	}
}

func TestAppraiseReportData(t *testing.T) {
	dir := milanSample(t)
	good := hex.EncodeToString(snpdata.AttestationBytes[0x50:0x90])
	if _, lines := appraiseJSON(t, "--at", milanAt, "--report-data", good, dir); !lines[0].Bound {
		t.Errorf("got %+v", lines[0])
	}
	exit, lines := appraiseJSON(t, "--at", milanAt, "--report-data", strings.Repeat("ab", 64), dir)
	if exit != exitRefused || lines[0].codes() != "not_bound" {
		t.Errorf("exit %d, %+v", exit, lines)
	}
}

func TestAppraisePolicy(t *testing.T) {
	dir := milanSample(t)
	release := attest.Reference{ID: "release", Kind: attest.KindSEVSNP, Measurement: hex.EncodeToString(snpdata.AttestationBytes[0x90:0xC0])}
	for name, tc := range map[string]struct {
		edit    func(*policyFile)
		verdict attest.Verdict
		codes   string
		exit    int
	}{
		"affirming":     {func(*policyFile) {}, attest.VerdictAffirming, "", exitOK},
		"revoked":       {func(f *policyFile) { f.References, f.Revoked = nil, f.References }, attest.VerdictContraindicated, "revoked", exitRefused},
		"no references": {func(f *policyFile) { f.References = nil }, attest.VerdictContraindicated, "measurement_not_allowed", exitRefused},
		"floor": {func(f *policyFile) { f.SEVSNP.MinimumTCB["Milan"] = attest.TCB{SNP: 6} }, attest.VerdictContraindicated,
			"tcb_below_floor,tcb_below_floor", exitRefused},
		"other kind": {func(f *policyFile) { f.Kinds = []string{attest.KindTDX} }, attest.VerdictContraindicated, "kind_not_allowed", exitRefused},
	} {
		strict := attest.StrictPolicy()
		f := policyFile{Kinds: strict.Kinds, References: []attest.Reference{release}, SEVSNP: strict.SEVSNP, TDX: strict.TDX, VTPM: strict.VTPM}
		f.SEVSNP.AllowDebug = true
		tc.edit(&f)
		if f.References == nil {
			f.References = []attest.Reference{}
		}
		exit, lines := appraiseJSON(t, "--at", milanAt, "--policy", writePolicy(t, f), dir)
		if exit != tc.exit || len(lines) != 1 || lines[0].Verdict != tc.verdict || lines[0].codes() != tc.codes {
			t.Errorf("%s: exit %d, %+v", name, exit, lines)
		}
	}
}

func writePolicy(t *testing.T, f policyFile) string {
	t.Helper()
	text, err := yaml.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAppraiseCannotDecide(t *testing.T) {
	dir := milanSample(t)
	if err := os.Remove(filepath.Join(dir, "vcek.der")); err != nil {
		t.Fatal(err)
	}
	exit, lines := appraiseJSON(t, "--at", milanAt, dir)
	if exit != exitUnavailable || lines[0].Verdict != attest.VerdictNone || lines[0].codes() != "collateral_missing" {
		t.Errorf("exit %d, %+v", exit, lines)
	}
	// With certificates from another folder it is decided; the worst exit code counts.
	exit, lines = appraiseJSON(t, "--at", milanAt, "--collateral", milanSample(t), dir)
	if exit != exitRefused || lines[0].codes() != "debug,no_reference_values" {
		t.Errorf("exit %d, %+v", exit, lines)
	}
	if exit, lines = appraiseJSON(t, "--at", milanAt, dir, milanSample(t)); exit != exitRefused || len(lines) != 2 {
		t.Errorf("exit %d, %+v", exit, lines)
	}
}

func TestWorseExit(t *testing.T) {
	for _, tc := range [][3]int{{0, 3, 3}, {3, 1, 1}, {1, 3, 1}, {1, 2, 2}, {2, 1, 2}, {0, 0, 0}} {
		if got := worseExit(tc[0], tc[1]); got != tc[2] {
			t.Errorf("worse of %d and %d: %d, want %d", tc[0], tc[1], got, tc[2])
		}
	}
}

func TestAppraiseHuman(t *testing.T) {
	var out, errOut bytes.Buffer
	dir := milanSample(t)
	execute(context.Background(), []string{"appraise", "--explain", "--at", milanAt, dir}, nil, &out, &errOut)
	for _, want := range []string{"report.bin: contraindicated (sevsnp, genuine)", "debug: sevsnp.debug: got true, want false",
		"try: start the guest with debugging disabled", "sevsnp.product", "runtime-opaque       96", "compared with nothing"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, &out)
		}
	}
}

func TestExplainNamesAttributes(t *testing.T) {
	var b strings.Builder
	explain(&b, appraised{claims: attest.Claims{TDX: &attest.TDXClaims{TDAttributes: "0000003000000000"}}})
	if !strings.Contains(b.String(), "bits   sept_ve_disable migratable\n") {
		t.Errorf("got\n%s", &b)
	}
}

// TestAppraiseSamples appraises the samples that are not part of this repository.
func TestAppraiseSamples(t *testing.T) {
	root, err := filepath.Abs(filepath.Join("..", "..", "..", "shared", "data", "evidence"))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(root, "expected.json"))
	if err != nil {
		t.Skipf("no samples at ../shared/data/evidence beside the repository: %v", err)
	}
	var samples []struct {
		Name, Kind, At, Measurement string
		Genuine, Debug              bool
		Version                     int
		TCBStatus                   string `json:"tcb_status"`
		Files                       map[string]string
	}
	if err := json.Unmarshal(raw, &samples); err != nil {
		t.Fatal(err)
	}
	main := map[string][]string{"sevsnp": {"report"}, "tdx": {"quote"}, "tpm": {"attestation"},
		"eventlog": {"eventlog", "event_log"}, "ima": {"ascii_runtime_measurements"}}
	for _, s := range samples {
		var file string
		for _, name := range main[s.Kind] {
			if s.Files[name] != "" {
				file = filepath.Join(root, s.Files[name])
			}
		}
		if file == "" {
			continue // Azure's runtime reports, bare quotes with values in JSON
		}
		exit, lines := appraiseJSON(t, "--at", s.At, file)
		if len(lines) != 1 {
			t.Errorf("%s: exit %d, %v", s.Name, exit, lines)
			continue
		}
		l := lines[0]
		switch s.Kind {
		case "eventlog", "ima":
			if l.Kind != s.Kind || l.Genuine != nil || l.Verdict != attest.VerdictNone || exit != exitOK || len(l.Claims.Registers) == 0 {
				t.Errorf("%s: exit %d, %+v", s.Name, exit, l)
			}
			continue
		}
		if l.Genuine == nil || *l.Genuine != s.Genuine {
			t.Errorf("%s: genuine %v, want %v: %v", s.Name, l.Genuine, s.Genuine, l.Reasons)
		}
		if s.Genuine && s.Measurement != "" && l.Claims.Measurement != s.Measurement {
			t.Errorf("%s: measurement %s, want %s", s.Name, l.Claims.Measurement, s.Measurement)
		}
		if s.Debug != strings.Contains(l.codes(), "debug") {
			t.Errorf("%s: debug %v, got %s", s.Name, s.Debug, l.codes())
		}
		if status, _, _ := strings.Cut(s.TCBStatus, "("); l.Claims.TDX != nil && l.Claims.TDX.TCBStatus != status {
			t.Errorf("%s: status %q, want %q", s.Name, l.Claims.TDX.TCBStatus, status)
		}
	}
}

// Who answers nothing in time cannot be judged: that is no mistake of whoever asked.
func TestAppraiseSilentAddress(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := newAppraiser(appraiseFlags{})
	if err != nil {
		t.Fatal(err)
	}
	a.within = 50 * time.Millisecond
	_, err = a.appraiseNode(t.Context(), "https://"+ln.Addr().String())
	if f := asFailure(t.Context(), err); f.exit != exitUnavailable || f.code != "unavailable" {
		t.Errorf("exit %d, code %q, want %d, unavailable: %v", f.exit, f.code, exitUnavailable, err)
	}
}

// The default policy is a policy file, and every line of it is needed.
func TestDefaultPolicy(t *testing.T) {
	var b strings.Builder
	if err := printDefaultPolicy(&b); err != nil {
		t.Fatal(err)
	}
	read := func(text string) (attest.Policy, error) {
		path := filepath.Join(t.TempDir(), "policy.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		p, _, err := readAppraisalPolicy(path)
		return p, err
	}
	p, err := read(b.String())
	if err != nil {
		t.Fatal(err)
	}
	if p.AllowNoReferences || !p.AllowUnbound || len(p.References) != 0 {
		t.Errorf("got %+v", p)
	}
	strict := attest.StrictPolicy()
	for _, section := range [][2]any{{p.SEVSNP, strict.SEVSNP}, {p.TDX, strict.TDX}, {p.VTPM, strict.VTPM}, {p.Kinds, strict.Kinds}} {
		got, err1 := yaml.Marshal(section[0])
		want, err2 := yaml.Marshal(section[1])
		if err1 != nil || err2 != nil || !bytes.Equal(got, want) {
			t.Errorf("got\n%s\nwant\n%s\n%v %v", got, want, err1, err2)
		}
	}
	lines, removed := strings.SplitAfter(b.String(), "\n"), 0
	for i, line := range lines {
		key, _, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok || strings.HasPrefix(key, "#") || strings.HasPrefix(key, "-") || optional(key) {
			continue
		}
		end := i + 1 // the key with all that is under it
		for end < len(lines) && (indent(lines[end]) > indent(line) || strings.HasPrefix(strings.TrimSpace(lines[end]), "- ") && indent(lines[end]) == indent(line)) {
			end++
		}
		removed++
		rest := strings.Join(lines[:i], "") + strings.Join(lines[end:], "")
		_, err := read(rest)
		if err == nil {
			t.Errorf("%q may be left out", key)
			continue
		}
		if f := asFailure(t.Context(), err); f.exit != exitUsage || !strings.Contains(f.message, key) {
			t.Errorf("without %q: %v", key, err)
		}
	}
	if removed < 20 {
		t.Errorf("%d keys were left out in turn: the file has more", removed)
	}
}

// optional names keys of the default policy that may be left out: products without a floor
// are refused anyway.
func optional(key string) bool { return slices.Contains([]string{"Milan", "Genoa", "Turin"}, key) }

func indent(line string) int { return len(line) - len(strings.TrimLeft(line, " ")) }
