package tdx_test

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/tdx"
)

// early is what a fake Intel will say from next month on: every part must be newer.
func early(p *attesttest.TDXPlatform) {
	col, from := &p.Collateral, time.Date(2098, 1, 1, 0, 0, 0, 0, time.UTC)
	col.Info = attesttest.Validity{Issued: from, Next: from.AddDate(0, 1, 0)}
	col.Evaluation, col.QEEvaluation = 20, 21
	col.Levels[0].Status, col.Levels[0].Advisories = "OutOfDate", []string{"INTEL-SA-09999"}
	col.Levels = append([]attesttest.TDXLevel{{SGX: 4, TDX: 3, PCE: 14, Status: "UpToDate", Date: "2097-11-01T00:00:00Z"}}, col.Levels...)
	col.Modules[0].Levels[0].SVN = 6
	col.QELevels[0].SVN = 5
}

func TestForecast(t *testing.T) {
	f, at := attesttest.NewTDX("forecast"), time.Now()
	s := f.Scheme().(*tdx.Scheme)
	ev, then := made(t, f), f.With(early).Collateral()
	levels := then[:2] // TCB info and QE identity; the signer is that of the evidence
	got, err := s.Forecast(context.Background(), ev, levels, at)
	if err != nil {
		t.Fatal(err)
	}
	if got.Status != "OutOfDate" || got.PlatformStatus != "OutOfDate" || got.ModuleStatus != "OutOfDate" || got.QEStatus != "OutOfDate" ||
		got.Evaluation != 20 || got.QEEvaluation != 21 || got.IssueDate.Year() != 2098 || got.Since.Month() != time.November || got.TCBDate != "2024-03-13T00:00:00Z" ||
		!slices.Equal(got.Advisories, []string{"INTEL-SA-01036", "INTEL-SA-09999"}) {
		t.Errorf("got %+v", got)
	}
	var lines []string
	for _, s := range got.Shortfalls {
		lines = append(lines, s.String())
	}
	text := strings.Join(lines, "\n")
	for _, want := range []string{"tdx.sgx_tcb_svn: component 1 is 3, want at least 4", "tdx.sgx_tcb_svn: component 16 is 3, want at least 4",
		"tdx.pcesvn: PCE is 13, want at least 14", "tdx.tee_tcb_svn: TDX module TDX_01 is 5, want at least 6", "tdx.qe_isvsvn: quoting enclave is 4, want at least 5"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if len(lines) != 19 {
		t.Errorf("%d shortfalls, want 16 SGX components, PCE, module and enclave:\n%s", len(lines), text)
	}
	// By the levels of today nothing is short, and the forecast is what Verify says.
	today, err := s.Forecast(context.Background(), ev, f.Collateral()[:1], at)
	if err != nil || today.Status != "UpToDate" || today.Shortfalls != nil || today.Advisories != nil {
		t.Errorf("today: %+v, %v", today, err)
	}
}

func TestForecastRefusals(t *testing.T) {
	f, stranger, at := attesttest.NewTDX("forecast"), attesttest.NewTDX("stranger"), time.Now()
	s, ev := f.Scheme().(*tdx.Scheme), made(t, f)
	bare := ev
	bare.Items = ev.Items[:1]
	mute := ev // says nothing of its signers
	mute.Items = slices.DeleteFunc(slices.Clone(ev.Items), func(it attest.Item) bool { return it.Type == attest.TypeTDXTCBChain })
	pce := f.With(func(p *attesttest.TDXPlatform) { p.Collateral.PCEID = "0001" }).Collateral()
	other := f.With(func(p *attesttest.TDXPlatform) { p.Collateral.FMSPC = "00a06d080000" }).Collateral()
	// Without collateral nobody says what modules and enclaves Intel has made.
	unknown := func(edit func(*attesttest.TDXPlatform)) attest.Evidence {
		out := made(t, f.With(edit))
		out.Items = out.Items[:1]
		return out
	}
	module := unknown(func(p *attesttest.TDXPlatform) { p.TD = func(b []byte) { b[64] = 1 } })
	enclave := unknown(func(p *attesttest.TDXPlatform) { p.QE = func(b []byte) { b[16] ^= 1 } })
	spoiled := slices.Clone(ev.Items)
	spoiled[0].Data = slices.Clone(spoiled[0].Data)
	spoiled[0].Data[100] ^= 1
	for name, tc := range map[string]struct {
		ev     attest.Evidence
		levels []attest.Item
		want   string
	}{
		"no levels":           {ev, nil, "no TCB info"},
		"no QE identity":      {bare, []attest.Item{f.Collateral()[0], f.Collateral()[2]}, "no TCB info, QE identity"},
		"no signer":           {mute, f.Collateral()[:1], "or signing chain"},
		"a stranger's levels": {ev, stranger.Collateral()[:1], "does not hold"},
		"a stranger's signer": {ev, stranger.Collateral()[:3], "TCB signing chain"},
		"another platform's":  {ev, other[:1], "TCB info of FMSPC"},
		"another PCE's":       {ev, pce[:1], "and PCE 0001"},
		"spoiled evidence":    {attest.Evidence{Kind: ev.Kind, Items: spoiled}, f.Collateral()[:1], "signature"},
		"a second quote":      {ev, ev.Items[:1], "two items"},
		"another module":      {module, f.Collateral()[:3], "tdx.mrsignerseam"},
		"another enclave":     {enclave, f.Collateral()[:3], "qe_report.miscselect"},
	} {
		if got, err := s.Forecast(context.Background(), tc.ev, tc.levels, at); err == nil || !strings.Contains(err.Error(), tc.want) || !reflect.DeepEqual(got, tdx.Forecast{}) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
	// Evidence that brought no collateral is forecast by levels that bring all of it.
	if got, err := s.Forecast(context.Background(), bare, f.Collateral()[:3], at); err != nil || got.Status != "UpToDate" {
		t.Errorf("bare evidence: %+v, %v", got, err)
	}
}
