package tdx_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/tdx"
)

// claims verifies evidence of a forger.
func claims(t testing.TB, f *attesttest.TDX) attest.Claims {
	t.Helper()
	c, err := f.Scheme().Verify(context.Background(), made(t, f), nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// refusal is the reason for which a Scheme refuses evidence of a forger.
func refusal(t testing.TB, f *attesttest.TDX) attest.Reason {
	t.Helper()
	_, err := f.Scheme().Verify(context.Background(), made(t, f), nil, time.Now())
	var e *attest.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want a refusal", err)
	}
	return e.Reason
}

func v5(p *attesttest.TDXPlatform) { p.Version, p.BodyType = 5, 3 }

// TestFieldsOfVersion5 reads back every field that only TD reports of 1.5 have.
func TestFieldsOfVersion5(t *testing.T) {
	f := attesttest.NewTDX("forged").With(v5).With(func(p *attesttest.TDXPlatform) {
		p.TD = func(b []byte) { b[584], b[600], b[647] = 0x11, 0x22, 0x33 }
	})
	c := claims(t, f).TDX
	if c.QuoteVersion != 5 || c.BodyType != 3 || c.TEETCBSVN2[:4] != "1101" || c.MRServiceTD[:2] != "22" || c.MRServiceTD[94:] != "33" {
		t.Errorf("got %+v", c)
	}
	old := claims(t, f.With(func(p *attesttest.TDXPlatform) { p.BodyType = 2; p.TD = nil })).TDX
	if old.BodyType != 2 || old.TEETCBSVN2 != "" || old.MRServiceTD != "" {
		t.Errorf("TDX 1.0: got %+v", old)
	}
	p := f.Policy(attesttest.Measurement("one"))
	p.TDX.MRServiceTD = []string{"00"}
	all := claims(t, f)
	all.Bound = true
	if r := attest.Appraise(all, p, time.Now()); r.Code() != attest.CodeServiceTD {
		t.Errorf("a service TD that nobody named: %s %v", r.Verdict, r.Reasons)
	}
}

// TestQuotingEnclaveNamed (A17): which field of the quoting enclave is wrong is said.
func TestQuotingEnclaveNamed(t *testing.T) {
	good := attesttest.NewTDX("forged")
	for _, tc := range []struct {
		claim string
		spoil func(*attesttest.TDXPlatform)
	}{
		{"tdx.qe_vendor_id", func(p *attesttest.TDXPlatform) { p.Header = func(h []byte) { h[20] ^= 1 } }},
		{"tdx.attestation_key_type", func(p *attesttest.TDXPlatform) { p.Header = func(h []byte) { h[2] = 3 } }},
		{"tdx.tee_type", func(p *attesttest.TDXPlatform) { p.Header = func(h []byte) { h[4] = 0 } }},
		{"tdx.quote_version", func(p *attesttest.TDXPlatform) { p.Header = func(h []byte) { h[0] = 255 } }},
		{"qe_report.mrsigner", func(p *attesttest.TDXPlatform) { p.QE = func(r []byte) { r[140] ^= 1 } }},
		{"qe_report.isvprodid", func(p *attesttest.TDXPlatform) { p.QE = func(r []byte) { r[257] = 1 } }},
		{"qe_report.attributes", func(p *attesttest.TDXPlatform) { p.QE = func(r []byte) { r[48] |= 2 } }},
		{"qe_report.miscselect", func(p *attesttest.TDXPlatform) { p.QE = func(r []byte) { r[19] = 1 } }},
	} {
		for _, f := range []*attesttest.TDX{good, good.With(v5)} {
			if r := refusal(t, f.With(tc.spoil)); r.Code != attest.CodeNotGenuine || r.Claim != tc.claim || r.Got == "" || r.Want == "" {
				t.Errorf("%s: got %v", tc.claim, r)
			}
		}
	}
	// ISVSVN has levels: an old enclave is genuine, and out of date.
	c := claims(t, good.With(func(p *attesttest.TDXPlatform) { p.QE = func(r []byte) { r[258] = 1 } })).TDX
	if c.QEStatus != "OutOfDate" || c.TCBStatus != "OutOfDate" || c.PlatformStatus != "UpToDate" || c.QESVN != 1 {
		t.Errorf("an old quoting enclave: got %+v", c)
	}
}

// TestEnclaveWithoutCollateral: no collateral is needed to refuse an enclave that is not
// Intel's, or one in debug mode, whose keys anybody can read.
func TestEnclaveWithoutCollateral(t *testing.T) {
	for claim, edit := range map[string]func([]byte){
		"qe_report.mrsigner":   func(r []byte) { r[128] ^= 1 },
		"qe_report.isvprodid":  func(r []byte) { r[256] = 1 },
		"qe_report.attributes": func(r []byte) { r[48] |= 2 },
	} {
		r := refusal(t, attesttest.NewTDX("forged").With(func(p *attesttest.TDXPlatform) {
			p.QE = edit
			p.Items = func(items []attest.Item) []attest.Item { return items[:1] }
		}))
		if r.Code != attest.CodeNotGenuine || r.Claim != claim {
			t.Errorf("%s: got %v", claim, r)
		}
	}
}

// TestCollateralNamed (A19): which part is missing, and which is valid when, is said.
func TestCollateralNamed(t *testing.T) {
	good, at := attesttest.NewTDX("forged"), time.Now()
	for i, name := range []string{"tcb_info", "qe_identity", "tcb_signing_chain", "pck_crl", "root_ca_crl"} {
		f := good.With(func(p *attesttest.TDXPlatform) {
			p.Items = func(items []attest.Item) []attest.Item { return slices.Delete(slices.Clone(items), i+1, i+2) }
		})
		if c := claims(t, f).TDX; !slices.Equal(c.CollateralLacks, []string{name}) || c.TCBStatus != "" {
			t.Errorf("without %s: got %v and status %q", name, c.CollateralLacks, c.TCBStatus)
		}
		if r := judge(t, f, made(t, f), at); r.Code() != attest.CodeCollateralMissing || !strings.Contains(r.Reasons[0].Got, name) {
			t.Errorf("without %s: %v", name, r.Reasons)
		}
	}
	bare := good.With(func(p *attesttest.TDXPlatform) {
		p.Items = func(items []attest.Item) []attest.Item { return items[:1] }
	})
	if c := claims(t, bare).TDX; len(c.CollateralLacks) != 5 {
		t.Errorf("without any: got %v", c.CollateralLacks)
	}
	old := attesttest.Validity{Issued: time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC), Next: time.Date(2020, 2, 2, 3, 4, 5, 0, time.UTC)}
	for want, edit := range map[string]func(*attesttest.TDXCollateral){
		"the TCB info is valid":                                     func(c *attesttest.TDXCollateral) { c.Info = old },
		"the QE identity is valid":                                  func(c *attesttest.TDXCollateral) { c.QE = old },
		"the revocation list of Intel SGX PCK Platform CA is valid": func(c *attesttest.TDXCollateral) { c.CRL = old },
	} {
		f := good.With(func(p *attesttest.TDXPlatform) { edit(&p.Collateral) })
		r := judge(t, f, made(t, f), at)
		if r.Code() != attest.CodeCollateralStale || !strings.HasSuffix(r.Reasons[0].Got, want+" from 2020-01-02T03:04:05Z to 2020-02-02T03:04:05Z") {
			t.Errorf("want %s, got %v", want, r.Reasons)
		}
	}
}

// TestConvergedStatus (A20) takes each part's status through the whole verification.
func TestConvergedStatus(t *testing.T) {
	for _, tc := range []struct{ platform, module, qe, want string }{
		{"UpToDate", "UpToDate", "UpToDate", "UpToDate"},
		{"SWHardeningNeeded", "UpToDate", "UpToDate", "SWHardeningNeeded"},
		{"ConfigurationNeeded", "UpToDate", "UpToDate", "ConfigurationNeeded"},
		{"ConfigurationAndSWHardeningNeeded", "UpToDate", "UpToDate", "ConfigurationAndSWHardeningNeeded"},
		{"OutOfDate", "UpToDate", "UpToDate", "OutOfDate"},
		{"OutOfDateConfigurationNeeded", "UpToDate", "UpToDate", "OutOfDateConfigurationNeeded"},
		{"Revoked", "UpToDate", "UpToDate", "Revoked"},
		{"UpToDate", "OutOfDate", "UpToDate", "OutOfDate"},
		{"SWHardeningNeeded", "UpToDate", "OutOfDate", "OutOfDate"},
		{"ConfigurationNeeded", "OutOfDate", "UpToDate", "OutOfDateConfigurationNeeded"},
		{"ConfigurationAndSWHardeningNeeded", "UpToDate", "OutOfDate", "OutOfDateConfigurationNeeded"},
		{"Revoked", "OutOfDate", "OutOfDate", "Revoked"},
		{"UpToDate", "Revoked", "UpToDate", "Revoked"},
		{"OutOfDate", "UpToDate", "Revoked", "Revoked"},
		{"Sunny", "UpToDate", "UpToDate", "UnrecognizedStatus"},
		{"UpToDate", "ConfigurationNeeded", "UpToDate", "UnrecognizedStatus"},
		{"UpToDate", "UpToDate", "SWHardeningNeeded", "UnrecognizedStatus"},
	} {
		c := claims(t, attesttest.NewTDX("forged").With(func(p *attesttest.TDXPlatform) {
			p.Collateral.Levels[0].Status, p.Collateral.Modules[0].Levels[0].Status, p.Collateral.QELevels[0].Status = tc.platform, tc.module, tc.qe
		})).TDX
		if c.TCBStatus != tc.want || c.PlatformStatus != tc.platform || c.ModuleStatus != tc.module || c.QEStatus != tc.qe {
			t.Errorf("%+v: got %s of %s, %s, %s", tc, c.TCBStatus, c.PlatformStatus, c.ModuleStatus, c.QEStatus)
		}
	}
}

// TestFactsOfCollateral: advisories of all parts, dates, evaluation and list numbers.
func TestFactsOfCollateral(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Second)
	day := func(n int) time.Time { return now.AddDate(0, 0, n) }
	c := claims(t, attesttest.NewTDX("forged").With(func(p *attesttest.TDXPlatform) {
		col := &p.Collateral
		col.Levels[0].Advisories, col.Modules[0].Levels[0].Advisories = []string{"INTEL-SA-3", "INTEL-SA-1"}, []string{"INTEL-SA-2", "INTEL-SA-1"}
		col.QELevels[0].Advisories = []string{"INTEL-SA-4"}
		col.Levels[0].Date, col.Modules[0].Levels[0].Date, col.QELevels[0].Date = "2025-01-01T00:00:00Z", "2025-02-01T00:00:00Z", "2025-03-01T00:00:00Z"
		col.Evaluation, col.QEEvaluation = 18, 19
		col.Info, col.QE, col.CRL = attesttest.Validity{Issued: day(-3), Next: day(9)}, attesttest.Validity{Issued: day(-2), Next: day(8)}, attesttest.Validity{Issued: day(-4), Next: day(7)}
	})).TDX
	if !slices.Equal(c.Advisories, []string{"INTEL-SA-1", "INTEL-SA-2", "INTEL-SA-3", "INTEL-SA-4"}) || c.TDXModuleID != "TDX_01" ||
		c.TCBDate != "2025-01-01T00:00:00Z" || c.ModuleTCBDate != "2025-02-01T00:00:00Z" || c.QETCBDate != "2025-03-01T00:00:00Z" ||
		c.TCBEvaluation != 18 || c.QEEvaluation != 19 || c.PCKCRLNumber != "7" || c.RootCRLNumber != "8" ||
		c.EarliestIssueDate != day(-4).Format(time.RFC3339) || c.LatestIssueDate != day(-2).Format(time.RFC3339) ||
		c.EarliestExpirationDate != day(7).Format(time.RFC3339) {
		t.Errorf("got %+v", c)
	}
}

// TestRelaunch: a TD launched by an old module that was updated under it. Only TD reports of
// 1.5 say so, and only where everything else is up to date.
func TestRelaunch(t *testing.T) {
	outdated := func(p *attesttest.TDXPlatform) { p.TD = func(b []byte) { b[0] = 2 } } // launched by 2, running 5
	for name, tc := range map[string]struct {
		edit func(*attesttest.TDXPlatform)
		want string
	}{
		"relaunch":                {func(*attesttest.TDXPlatform) {}, "TDRelaunchAdvised"},
		"version 4 does not say":  {func(p *attesttest.TDXPlatform) { p.Version = 4 }, "OutOfDate"},
		"TDX 1.0 does not say":    {func(p *attesttest.TDXPlatform) { p.BodyType = 2 }, "OutOfDate"},
		"configuration":           {func(p *attesttest.TDXPlatform) { p.Collateral.Levels[0].Status = "ConfigurationNeeded" }, "TDRelaunchAdvisedConfigurationNeeded"},
		"hardening":               {func(p *attesttest.TDXPlatform) { p.Collateral.Levels[0].Status = "SWHardeningNeeded" }, "TDRelaunchAdvised"},
		"still the old module":    {func(p *attesttest.TDXPlatform) { p.TD = func(b []byte) { b[0], b[584] = 2, 2 } }, "OutOfDate"},
		"old microcode":           {func(p *attesttest.TDXPlatform) { p.TD = func(b []byte) { b[0], b[586] = 2, 1 } }, "OutOfDate"},
		"unknown module runs":     {func(p *attesttest.TDXPlatform) { p.TD = func(b []byte) { b[0], b[585] = 2, 9 } }, "NoMatchingLevel"},
		"module 1.0 runs":         {func(p *attesttest.TDXPlatform) { p.TD = func(b []byte) { b[0], b[585] = 2, 0 } }, "TDRelaunchAdvised"},
		"old module 1.0 runs":     {func(p *attesttest.TDXPlatform) { p.TD = func(b []byte) { b[0], b[584], b[585] = 2, 1, 0 } }, "OutOfDate"},
		"old enclave":             {func(p *attesttest.TDXPlatform) { p.Collateral.QELevels[0].Status = "OutOfDate" }, "OutOfDate"},
		"out-of-date platform":    {func(p *attesttest.TDXPlatform) { p.Collateral.Levels[0].Status = "OutOfDate" }, "OutOfDate"},
		"revoked module launched": {func(p *attesttest.TDXPlatform) { p.Collateral.Modules[0].Levels[1].Status = "Revoked" }, "Revoked"},
	} {
		c := claims(t, attesttest.NewTDX("forged").With(v5).With(outdated).With(tc.edit)).TDX
		if c.TCBStatus != tc.want {
			t.Errorf("%s: got %s, want %s", name, c.TCBStatus, tc.want)
		}
	}
}

// TestSignersAndLists: a renewed signer and further lists do not disturb; a list of a
// stranger in the name of the CA does.
func TestSignersAndLists(t *testing.T) {
	good, stranger := attesttest.NewTDX("forged"), attesttest.NewTDX("stranger")
	more := func(extra ...attest.Item) func(*attesttest.TDXPlatform) {
		return func(p *attesttest.TDXPlatform) {
			p.Items = func(items []attest.Item) []attest.Item { return append(slices.Clone(items), extra...) }
		}
	}
	theirs, ours := stranger.Collateral(), good.Collateral()
	processor := good.With(func(p *attesttest.TDXPlatform) { p.Processor = true }).Collateral()
	if c := claims(t, good.With(more(ours[2], processor[3], ours[3]))).TDX; c.TCBStatus != "UpToDate" {
		t.Errorf("a second chain and further lists: %s", c.TCBStatus)
	}
	if r := refusal(t, good.With(more(theirs[3]))); r.Code != attest.CodeNotGenuine {
		t.Errorf("a stranger's revocation list: %v", r)
	}
	longer := attest.Item{Type: ours[3].Type, Data: append(slices.Clone(ours[3].Data), 0)}
	if r := refusal(t, good.With(more(longer))); r.Code != attest.CodeNotGenuine {
		t.Errorf("a revocation list with a byte after it: %v", r)
	}
	if r := refusal(t, good.With(more(theirs[2]))); r.Code != attest.CodeNotGenuine {
		t.Errorf("a stranger's signer: %v", r)
	}
	if r := refusal(t, good.With(more(ours[2], ours[2]))); r.Code != attest.CodeMalformed {
		t.Errorf("three signing chains: %v", r)
	}
	if r := refusal(t, good.With(more(ours[0]))); r.Code != attest.CodeMalformed {
		t.Errorf("two TCB infos: %v", r)
	}
	// Of two lists of one CA the newer counts, whatever their order.
	old := attesttest.Validity{Issued: time.Now().AddDate(-1, 0, 0), Next: time.Now().AddDate(1, 0, 0)}
	revoking := good.With(func(p *attesttest.TDXPlatform) { p.Collateral.CRL, p.Collateral.RevokeCA = old, true }).Collateral()
	if r := refusal(t, good.With(more(revoking[4]))); r.Code != attest.CodeNotGenuine || r.Claim != "certificate" {
		t.Errorf("a newer list that revokes: %v", r)
	}
}

// TestChains: what stands in the place of a PCK certificate and its issuer.
func TestChains(t *testing.T) {
	if _, err := tdx.WithRoot(nil); err == nil {
		t.Error("a scheme without a root")
	}
	good := attesttest.NewTDX("forged")
	for name, at := range map[string]time.Time{"before its certificates": time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC), "after them": time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)} {
		if _, err := good.Scheme().Verify(context.Background(), made(t, good), nil, at); err == nil {
			t.Errorf("accepted %s", name)
		}
	}
}

// TestTooManyLevels: collateral is bounded, whoever signed it.
func TestTooManyLevels(t *testing.T) {
	good := attesttest.NewTDX("forged")
	for name, edit := range map[string]func(*attesttest.TDXCollateral){
		"levels":  func(c *attesttest.TDXCollateral) { c.Levels = slices.Repeat(c.Levels[:1], 257) },
		"modules": func(c *attesttest.TDXCollateral) { c.Modules = slices.Repeat(c.Modules, 65) },
		"QE":      func(c *attesttest.TDXCollateral) { c.QELevels = slices.Repeat(c.QELevels[:1], 257) },
	} {
		f := good.With(func(p *attesttest.TDXPlatform) { edit(&p.Collateral) })
		want := attest.CodeNotGenuine
		if len(made(t, f).Items[1].Data) > attest.MaxQuote {
			want = attest.CodeMalformed // for its size, before anything is read
		}
		if r := refusal(t, f); r.Code != want {
			t.Errorf("%s: got %v, want %s", name, r, want)
		}
	}
}

// TestOldComponent: one TDX component of the platform below the newest level.
func TestOldComponent(t *testing.T) {
	c := claims(t, attesttest.NewTDX("forged").With(func(p *attesttest.TDXPlatform) { p.TD = func(b []byte) { b[15] = 2 } })).TDX
	if c.TCBStatus != "OutOfDate" || len(c.Shortfalls) != 1 || c.Shortfalls[0].Claim != "tdx.tee_tcb_svn" {
		t.Errorf("got %s, short of %v", c.TCBStatus, c.Shortfalls)
	}
}
