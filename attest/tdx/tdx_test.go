package tdx

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tdx-guest/abi"
	vendorpcs "github.com/google/go-tdx-guest/pcs"
	"github.com/google/go-tdx-guest/testing/testdata"
	"github.com/google/go-tdx-guest/verify"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/tsm"
)

func TestGenuineWithoutCollateral(t *testing.T) {
	c, err := scheme(t).Verify(context.Background(), evidence(rawQuote()), nil, sampleAt)
	if err != nil {
		t.Fatal(err)
	}
	if !c.Genuine || c.Bound || c.TDX.TCBStatus != "" || c.TDX.FMSPC != "50806f000000" {
		t.Errorf("got %+v %+v", c, c.TDX)
	}
	// This TD lacks SEPT_VE_DISABLE, so it is refused; with that allowed, nothing decides.
	p := attest.StrictPolicy()
	if r := attest.Appraise(c, p, sampleAt); r.Verdict != attest.VerdictContraindicated || r.Code() != attest.CodeSEPTVEDisable {
		t.Errorf("got %s %v", r.Verdict, r.Reasons)
	}
	p.TDX.AllowNoSEPTVEDisable = true
	if r := attest.Appraise(c, p, sampleAt); r.Verdict != attest.VerdictNone || r.Code() != attest.CodeCollateralMissing {
		t.Errorf("got %s %v", r.Verdict, r.Reasons)
	}
	data := attest.ReportData(rawQuote()[568:632])
	if c, err := scheme(t).Verify(context.Background(), evidence(rawQuote()), &data, sampleAt); err != nil || !c.Bound {
		t.Errorf("got %v, %v", c.Bound, err)
	}
	data[0]++
	if _, err := scheme(t).Verify(context.Background(), evidence(rawQuote()), &data, sampleAt); code(t, err) != attest.CodeNotBound {
		t.Errorf("got %v", err)
	}
}

func TestRefusals(t *testing.T) {
	raw := rawQuote()
	edit := func(f func([]byte)) []byte {
		out := append([]byte(nil), raw...)
		f(out)
		return out
	}
	wrongKind := evidence(raw)
	wrongKind.Kind = attest.KindSEVSNP
	for name, tc := range map[string]struct {
		ev   attest.Evidence
		at   time.Time
		want attest.Code
	}{
		"truncated by one":    {evidence(raw[:len(raw)-1]), sampleAt, attest.CodeMalformed},
		"trailing byte":       {evidence(append(append([]byte(nil), raw...), 0)), sampleAt, attest.CodeMalformed},
		"header alone":        {evidence(raw[:48]), sampleAt, attest.CodeMalformed},
		"huge section":        {evidence(edit(func(b []byte) { binary.LittleEndian.PutUint32(b[632:], 1<<31) })), sampleAt, attest.CodeMalformed},
		"tiny section":        {evidence(edit(func(b []byte) { binary.LittleEndian.PutUint32(b[632:], 1) })), sampleAt, attest.CodeMalformed},
		"huge auth data":      {evidence(edit(func(b []byte) { binary.LittleEndian.PutUint16(b[1218:], 0xffff) })), sampleAt, attest.CodeMalformed},
		"another root's time": {evidence(raw), time.Date(2060, 1, 1, 0, 0, 0, 0, time.UTC), attest.CodeNotGenuine},
		"not yet":             {evidence(raw), time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), attest.CodeNotGenuine},
		"the zero time":       {evidence(raw), time.Time{}, attest.CodeNotGenuine},
		"wrong kind":          {wrongKind, sampleAt, attest.CodeMalformed},
		"two quotes":          {evidence(raw, attest.Item{Type: attest.TypeTDXQuote, Data: raw}), sampleAt, attest.CodeMalformed},
		"foreign item":        {evidence(raw, attest.Item{Type: attest.TypeSEVSNPReport, Data: raw}), sampleAt, attest.CodeMalformed},
		"nothing":             {attest.Evidence{}, sampleAt, attest.CodeMalformed},
		"foreign enclave":     {evidence(edit(func(b []byte) { b[bytes.Index(b, mrsigner(t))] ^= 1 })), sampleAt, attest.CodeNotGenuine},
	} {
		c, err := scheme(t).Verify(context.Background(), tc.ev, nil, tc.at)
		if err == nil || c.Genuine {
			t.Errorf("%s: accepted", name)
		} else if got := code(t, err); got != tc.want {
			t.Errorf("%s: got %v, want %s", name, err, tc.want)
		}
	}
	if _, err := new(Scheme).Verify(context.Background(), evidence(raw), nil, sampleAt); err == nil || !strings.Contains(err.Error(), "no root or no time") {
		t.Errorf("the zero scheme: %v", err)
	}
	ended, end := context.WithCancel(context.Background())
	end()
	if _, err := scheme(t).Verify(ended, evidence(raw), nil, sampleAt); !errors.Is(err, context.Canceled) {
		t.Errorf("a verification that is not wanted any more: %v", err)
	}
}

// TestSplit: one quote, one log, one of each document, and nothing else.
func TestSplit(t *testing.T) {
	for name, tc := range map[string]struct {
		items []string
		want  string
	}{
		"two logs":       {[]string{attest.TypeTDXQuote, attest.TypeEventLog, attest.TypeEventLog}, "two items"},
		"two quotes":     {[]string{attest.TypeTDXQuote, attest.TypeTDXQuote}, "two items"},
		"no quote":       {[]string{attest.TypeEventLog}, "no quote"},
		"three chains":   {[]string{attest.TypeTDXQuote, attest.TypeTDXTCBChain, attest.TypeTDXTCBChain, attest.TypeTDXTCBChain}, "is not TDX's"},
		"of another TEE": {[]string{attest.TypeTDXQuote, attest.TypeSEVSNPReport}, "is not TDX's"},
	} {
		ev := attest.Evidence{Kind: attest.KindTDX}
		for _, it := range tc.items {
			ev.Items = append(ev.Items, attest.Item{Type: it, Data: []byte{1}})
		}
		if _, err := split(ev); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}

// TestQuoteAccountsForItsBytes: what lies behind a part, within a section that says it is
// that long, is nobody's word.
func TestQuoteAccountsForItsBytes(t *testing.T) {
	raw := rawQuote()
	f := frames[0]
	longer := append(slices.Clone(raw), 1, 2, 3, 4)
	add := func(at int) { binary.LittleEndian.PutUint32(longer[at:], binary.LittleEndian.Uint32(longer[at:])+4) }
	add(f.end())
	if _, err := parseQuote(longer); err == nil || !strings.Contains(err.Error(), "4 bytes behind the certification data") {
		t.Errorf("behind the certification data: %v", err)
	}
	add(f.section() + signatureSize + 64 + 2)
	if _, err := parseQuote(longer); err == nil || !strings.Contains(err.Error(), "4 bytes behind the certificates") {
		t.Errorf("behind the certificates: %v", err)
	}
	if _, err := parseQuote(make([]byte, attest.MaxQuote+1)); err == nil || !strings.Contains(err.Error(), "bytes, want ") {
		t.Errorf("longer than any: %v", err)
	}
	if !LooksLike(raw) || LooksLike(raw[:20]) {
		t.Error("a quote does not look like one, or 20 bytes do")
	}
}

// TestLevelsOfOtherSizes hold for no platform, nor does any for a platform without components.
func TestLevelsOfOtherSizes(t *testing.T) {
	level := func(sgx, tee int) (l tcbLevel) {
		l.TCB.SGX, l.TCB.TDX = make([]component, sgx), make([]component, tee)
		return l
	}
	v := svns{sgx: make([]byte, 16), tee: make([]byte, 16)}
	if !v.hold(level(16, 16)) {
		t.Fatal("the platform is below zero")
	}
	if v.holdSGX(level(15, 16)) || v.hold(level(16, 17)) || v.hold(level(16, 0)) {
		t.Error("a level of another size holds")
	}
	none := svns{tee: make([]byte, 16)}
	if none.holdSGX(level(0, 16)) {
		t.Error("a level holds for a platform without components")
	}
}

// TestChoose: only a machine without configfs-tsm, or one of another vendor's, is looked for
// by its device.
func TestChoose(t *testing.T) {
	broken := errors.New("the interface does not answer")
	if a, err := choose(nil, broken, os.DevNull); a != nil || !errors.Is(err, broken) {
		t.Errorf("a broken interface: %v, %v", a, err)
	}
	for _, none := range []error{fs.ErrNotExist, tsm.ErrProvider} {
		if a, err := choose(nil, none, filepath.Join(t.TempDir(), "none")); a != nil || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("no device: %v, %v", a, err)
		}
	}
}

func mrsigner(t *testing.T) []byte {
	t.Helper()
	q, err := parseQuote(rawQuote())
	if err != nil {
		t.Fatal(err)
	}
	return q.qeMRSigner()
}

// TestLibraryAcceptsTrailingBytes is why parseQuote stands in front.
func TestLibraryAcceptsTrailingBytes(t *testing.T) {
	longer := append(rawQuote(), "more"...)
	if _, err := abi.QuoteToProto(longer); err != nil {
		t.Errorf("the library refuses trailing bytes now: %v", err)
	}
	if _, err := parseQuote(longer); err == nil {
		t.Error("we accept trailing bytes")
	}
}

// TestLibraryPanics is why vendor code runs under recover, behind parseQuote.
func TestLibraryPanics(t *testing.T) {
	crafted := rawQuote()
	binary.LittleEndian.PutUint16(crafted[1218:], 0xffff) // size of the QE authentication data
	panicked := func() (p bool) {
		defer func() { p = recover() != nil }()
		_, _ = abi.QuoteToProto(crafted)
		return
	}()
	if !panicked {
		t.Error("the library does not panic on a crafted size any more")
	}
	if _, err := scheme(t).Verify(context.Background(), evidence(crafted), nil, sampleAt); err == nil {
		t.Error("accepted")
	}
}

func TestSamples(t *testing.T) {
	dir, samples := loadSamples(t)
	for _, want := range samples {
		c, err := scheme(t).Verify(context.Background(), want.load(t, dir), nil, want.At)
		if (err == nil && c.Genuine) != want.Genuine {
			t.Errorf("%s: genuine %v (%v), want %v", want.Name, c.Genuine, err, want.Genuine)
			continue
		}
		if !want.Genuine {
			if code(t, err) != attest.CodeNotGenuine {
				t.Logf("%s: refused as %v", want.Name, err)
			}
			continue
		}
		status, _, _ := strings.Cut(want.TCBStatus, "(")
		if c.Measurement != want.Measurement || c.ReportData != want.ReportData || c.TDX.Debug != want.Debug ||
			c.TDX.TEETCBSVN != want.TEETCBSVN || c.TDX.FMSPC != want.FMSPC || c.TDX.TCBStatus != status {
			t.Errorf("%s: got %+v %+v, want %+v", want.Name, c, c.TDX, want)
		}
		for i, r := range want.RTMR {
			if c.Registers[[]string{"rtmr0", "rtmr1", "rtmr2", "rtmr3"}[i]] != r {
				t.Errorf("%s: RTMR%d differs", want.Name, i)
			}
		}
	}
}

// TestCollateral takes a sample with full collateral and spoils one thing at a time.
func TestCollateral(t *testing.T) {
	dir, samples := loadSamples(t)
	var good sample
	for _, s := range samples {
		if s.Name == "tdx-v4-collateral-202506" {
			good = s
		}
	}
	for i, c := range collateralTypes {
		ev := good.load(t, dir)
		ev.Items = append(ev.Items[:1+i:1+i], ev.Items[2+i:]...)
		got, err := scheme(t).Verify(context.Background(), ev, nil, good.At)
		if err != nil || got.TDX.TCBStatus != "" {
			t.Errorf("without %s: status %q, %v", c.file, got.TDX.TCBStatus, err)
		}
		ev = good.load(t, dir)
		spoiled := ev.Items[1+i].Data
		at := len(spoiled) / 2
		if c.itemType != attest.TypeTDXTCBChain {
			at = bytes.Index(spoiled, []byte("2025"))
			if at < 0 {
				at = len(spoiled) - 20
			}
		}
		spoiled[at] ^= 1
		if got, err := scheme(t).Verify(context.Background(), ev, nil, good.At); err == nil {
			t.Errorf("spoiled %s: accepted with status %q", c.file, got.TDX.TCBStatus)
		}
	}
	for name, at := range map[string]time.Time{"before issue": good.At.AddDate(0, 0, -20), "after next update": good.At.AddDate(0, 1, 0)} {
		got, err := scheme(t).Verify(context.Background(), good.load(t, dir), nil, at)
		if err != nil || got.TDX.TCBStatus != "" || !got.TDX.CollateralStale {
			t.Errorf("%s: got %+v, %v", name, got.TDX, err)
		}
		if r := attest.Appraise(got, attest.StrictPolicy(), at); r.Verdict != attest.VerdictNone || r.Code() != attest.CodeCollateralStale {
			t.Errorf("%s: got %s %v", name, r.Verdict, r.Reasons)
		}
	}
	// Collateral of another platform is not silently used.
	mismatches := 0
	for _, s := range samples {
		if s.Files["tcb_info"] != "" && s.FMSPC != good.FMSPC {
			ev := s.load(t, dir)
			ev.Items[0] = good.load(t, dir).Items[0]
			_, err := scheme(t).Verify(context.Background(), ev, nil, s.At)
			if k := code(t, err); k != attest.CodeCertificateMismatch && k != attest.CodeNotGenuine {
				t.Errorf("collateral of %s: got %v", s.Name, err)
			} else if k == attest.CodeCertificateMismatch {
				mismatches++
			}
		}
	}
	if mismatches == 0 {
		t.Error("no other platform's collateral was refused for its FMSPC")
	}
}

// pcsService serves a sample's collateral as Intel's web service would.
type pcsService map[string]struct {
	header map[string][]string
	body   []byte
}

func (p pcsService) Get(u string) (map[string][]string, []byte, error) {
	r, ok := p[u]
	if !ok {
		return nil, nil, fmt.Errorf("nothing at %s", u)
	}
	return r.header, r.body, nil
}

// TestLibraryAcceptsOutOfDate: go-tdx-guest lets an up-to-date TDX module hide that the
// platform is out of date.
func TestLibraryAcceptsOutOfDate(t *testing.T) {
	dir, samples := loadSamples(t)
	i := slices.IndexFunc(samples, func(s sample) bool { return s.Name == "tdx-v4-module3-collateral-202510" })
	s := samples[i]
	raw := read(t, dir, s.Files["quote"])
	q, err := parseQuote(raw)
	if err != nil {
		t.Fatal(err)
	}
	_, chain := pem.Decode(q.chain) // intermediate and root
	issuer := func(name string, chain []byte) map[string][]string {
		return map[string][]string{name: {url.QueryEscape(strings.TrimRight(string(chain), "\x00"))}}
	}
	signing := read(t, dir, s.Files["tcb_signing_chain"])
	type answer = struct {
		header map[string][]string
		body   []byte
	}
	service := pcsService{
		vendorpcs.TcbInfoURL(s.FMSPC):                                       answer{issuer(vendorpcs.TcbInfoIssuerChainPhrase, signing), read(t, dir, s.Files["tcb_info"])},
		vendorpcs.QeIdentityURL():                                           answer{issuer(vendorpcs.SgxQeIdentityIssuerChainPhrase, signing), read(t, dir, s.Files["qe_identity"])},
		vendorpcs.PckCrlURL("platform"):                                     answer{issuer(vendorpcs.SgxPckCrlIssuerChainPhrase, chain), read(t, dir, s.Files["pck_crl"])},
		"https://certificates.trustedservices.intel.com/IntelSGXRootCA.der": answer{nil, read(t, dir, s.Files["root_crl"])},
	}
	err = verify.RawTdxQuote(raw, &verify.Options{GetCollateral: true, CheckRevocations: true, Getter: service,
		Now: &verify.TimeSet{PckCertChain: s.At, TcbInfo: s.At, QeIdentity: s.At, PckCrl: s.At, RootCaCrl: s.At}})
	if err != nil {
		t.Errorf("the library refuses now: %v", err)
	}
	c, err := scheme(t).Verify(context.Background(), s.load(t, dir), nil, s.At)
	if err != nil {
		t.Fatal(err)
	}
	if r := attest.Appraise(c, attest.StrictPolicy(), s.At); r.Verdict != attest.VerdictContraindicated || r.Code() != attest.CodeTCBStatus {
		t.Errorf("got %s %v", r.Verdict, r.Reasons)
	}
}

func TestEventLog(t *testing.T) {
	dir := filepath.Join(sharedEvidence(t), "eventlog")
	for _, tc := range []struct {
		name, file string
		components int
	}{{"ccel-gcp-tdx-rtmr", "eventlog.bin", 2}, {"dstack-eventlog", "event_log.json", 1}} {
		quote, log := read(t, dir, tc.name, "quote.bin"), read(t, dir, tc.name, tc.file)
		at := time.Date(2026, 5, 15, 0, 0, 0, 0, time.UTC)
		c, err := scheme(t).Verify(context.Background(), evidence(quote, attest.Item{Type: attest.TypeEventLog, Data: log}), nil, at)
		if err != nil || c.TDX.Boot == nil || c.TDX.Boot.SecureBoot == nil || *c.TDX.Boot.SecureBoot ||
			len(c.TDX.Boot.Components) != tc.components || len(c.TDX.Boot.Contradictions) != 0 {
			t.Errorf("%s: %+v, %v", tc.name, c.TDX, err)
		}
		if _, err := scheme(t).Verify(context.Background(), evidence(rawQuote(), attest.Item{Type: attest.TypeEventLog, Data: log}), nil, at); err == nil ||
			code(t, err) != attest.CodeReplayMismatch {
			t.Errorf("%s under another quote: got %v", tc.name, err)
		}
	}
}

// TestLogLeavesNothingOut: a log without the events of one register replays to the others,
// and would hide what that register proves.
func TestLogLeavesNothingOut(t *testing.T) {
	dir := filepath.Join(sharedEvidence(t), "eventlog", "dstack-eventlog")
	quote, log := read(t, dir, "quote.bin"), read(t, dir, "event_log.json")
	at := time.Date(2026, 5, 15, 0, 0, 0, 0, time.UTC)
	var events []map[string]any
	if err := json.Unmarshal(log, &events); err != nil {
		t.Fatal(err)
	}
	for register := range 4 {
		less := slices.DeleteFunc(slices.Clone(events), func(e map[string]any) bool { return e["imr"] == float64(register) })
		raw, err := json.Marshal(less)
		if err != nil {
			t.Fatal(err)
		}
		_, err = scheme(t).Verify(context.Background(), evidence(quote, attest.Item{Type: attest.TypeEventLog, Data: raw}), nil, at)
		if register == 3 { // the workload's, of which another log may tell
			if err != nil {
				t.Errorf("without RTMR3: %v", err)
			}
			continue
		}
		var e *attest.Error
		if !errors.As(err, &e) || e.Reason.Code != attest.CodeReplayMismatch || e.Reason.Claim != fmt.Sprintf("rtmr%d", register) {
			t.Errorf("without the events of RTMR%d: got %v", register, err)
		}
	}
	// A21: one event of one register changed, as another command line would.
	for _, i := range []int{0, len(events) / 2} {
		changed := slices.Clone(events)
		changed[i] = maps.Clone(events[i])
		changed[i]["digest"] = strings.Repeat("ab", 48)
		raw, err := json.Marshal(changed)
		if err != nil {
			t.Fatal(err)
		}
		_, err = scheme(t).Verify(context.Background(), evidence(quote, attest.Item{Type: attest.TypeEventLog, Data: raw}), nil, at)
		var e *attest.Error
		if !errors.As(err, &e) || e.Reason.Code != attest.CodeReplayMismatch || e.Reason.Claim != fmt.Sprintf("rtmr%v", events[i]["imr"]) {
			t.Errorf("event %d changed: got %v", i, err)
		}
	}
}

func TestConverge(t *testing.T) {
	for _, tc := range []struct{ platform, part, want string }{
		{upToDate, upToDate, upToDate}, {revoked, upToDate, revoked}, {outOfDate, upToDate, outOfDate},
		{configuration, upToDate, configuration}, {swHardening, outOfDate, outOfDate}, {upToDate, outOfDate, outOfDate},
		{configuration, outOfDate, outOfDateConfiguration}, {configurationAndHardening, outOfDate, outOfDateConfiguration},
		{revoked, outOfDate, revoked}, {outOfDateConfiguration, outOfDate, outOfDateConfiguration},
		{upToDate, revoked, revoked}, {upToDate, "Sunny", unrecognised},
	} {
		if got := converge(tc.platform, tc.part); got != tc.want {
			t.Errorf("converge(%s, %s) = %s, want %s", tc.platform, tc.part, got, tc.want)
		}
	}
}

func FuzzParseQuote(f *testing.F) {
	f.Add(rawQuote())
	f.Add(rawQuote()[:700])
	s := scheme(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		q, err := parseQuote(raw)
		if err == nil && (len(q.qeReport) != qeReportSize || len(q.signature) != 64 || len(q.td) < body10Size) {
			t.Errorf("parsed %+v", q)
		}
		if c, err := s.Verify(context.Background(), evidence(raw), nil, sampleAt); err == nil && !c.Genuine {
			t.Error("neither refused nor genuine")
		}
	})
}

func FuzzCollateral(f *testing.F) {
	f.Add(testdata.TcbInfoBody)
	f.Add(testdata.QeIdentityBody)
	s := scheme(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var v tcbInfo
		if err := signedBody(raw, "tcbInfo", []*x509.Certificate{s.root}, &v); err == nil {
			t.Error("the root never signed this")
		}
		if _, err := s.tcbSigners([][]byte{raw}); err == nil {
			t.Error("a chain out of noise")
		}
	})
}
