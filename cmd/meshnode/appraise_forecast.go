package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/collateral"
	"github.com/attestmesh/meshnode/attest/collect"
	"github.com/attestmesh/meshnode/attest/tdx"
)

// forecaster is what --forecast names: TCB levels of Intel's or another appraisal policy.
type forecaster struct {
	file   string
	levels collateral.Index // everything in or beside file
	infos  []collateral.Entry
	policy *appraiser // nil where file holds levels
}

// forecast is what would be said of one input then: "forecast" of --json.
type forecast struct {
	File string `json:"file"`
	By   string `json:"by"` // tcb_info or policy
	// Verdict and Reasons are empty where File says nothing about this input: see Why.
	Verdict    attest.Verdict      `json:"verdict,omitempty"`
	From       *time.Time          `json:"from,omitempty"` // nil for a policy, which has no date
	TDX        *tdx.Forecast       `json:"tdx,omitempty"`
	Shortfalls []forecastShortfall `json:"shortfalls"`
	Reasons    []attest.Reason     `json:"reasons"`
	Why        string              `json:"why,omitempty"`
}

// forecastShortfall is a component that is below what is wanted then, of either vendor.
type forecastShortfall struct {
	Claim     string `json:"claim"`
	Component string `json:"component"`
	Got       uint16 `json:"got"`
	Want      uint16 `json:"want"`
}

// notForecast is the remedy for files that nothing can be forecast by.
const notForecast = "give Intel's TCB info for TDX (JSON) with its signing chain beside it, a folder or store that holds one, or an appraisal policy in YAML"

// newForecaster reads the file of --forecast; flags are those of the call.
func newForecaster(flags appraiseFlags) (*forecaster, error) {
	f := &forecaster{file: flags.forecast}
	info, err := os.Stat(f.file)
	if err != nil {
		return nil, usageError(notForecast, "--forecast: %v", err)
	}
	var own []attest.Item
	if info.IsDir() {
		own, err = partsOf(f.file)
	} else {
		own, err = collect.Parts(f.file)
	}
	if err != nil {
		if info.IsDir() || looksLikeJSON(f.file) {
			return nil, usageError(notForecast, "--forecast: %v", err)
		}
		flags.policy, flags.forecast = f.file, ""
		f.policy, err = newAppraiser(flags)
		return f, err
	}
	for _, e := range collateral.IndexOf(own).Entries() {
		if e.Type == attest.TypeTDXTCBInfo {
			f.infos = append(f.infos, e)
		}
	}
	if len(f.infos) == 0 {
		return nil, usageError(notForecast, "--forecast: %s holds no TCB info for TDX", f.file)
	}
	if !info.IsDir() {
		beside, err := collect.Beside(f.file)
		if err != nil {
			return nil, usageError(notForecast, "--forecast: %v", err)
		}
		own = append(own, beside...)
	}
	f.levels = collateral.IndexOf(own)
	return f, nil
}

// looksLikeJSON keeps a spoiled answer of Intel's from being complained of as YAML.
func looksLikeJSON(file string) bool {
	raw, err := readLimited(file, attest.MaxLog)
	return err == nil && bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{"))
}

// forecast says what would be said of an input that was appraised as r.
func (a *appraiser) forecast(ctx context.Context, in collect.Input, r appraised) (*forecast, error) {
	f := a.forecaster
	if f.policy != nil {
		return f.byPolicy(ctx, in, r)
	}
	out := &forecast{File: f.file, By: "tcb_info", Shortfalls: []forecastShortfall{}, Reasons: []attest.Reason{}}
	switch {
	case r.Genuine == nil || !*r.Genuine:
		out.Why = "only genuine evidence has a forecast"
	case r.claims.TDX == nil:
		out.Why = "Intel's TCB info says nothing about evidence of kind " + r.Kind
	default:
		levels := f.levelsOf(r.claims.TDX.FMSPC)
		if levels == nil {
			out.Why = "no TCB info for platforms of FMSPC " + r.claims.TDX.FMSPC
			return out, nil
		}
		return out, a.byLevels(ctx, in, r, levels, out)
	}
	return out, nil
}

// levelsOf returns the newest TCB info of a platform, whenever it is in force, with the
// newest QE identity and signing chains there are; nil where there is no TCB info.
func (f *forecaster) levelsOf(fmspc string) (levels []attest.Item) {
	newest := func(entries []collateral.Entry, is func(collateral.Entry) bool) (best *collateral.Entry) {
		for _, e := range entries {
			if is(e) && (best == nil || e.Evaluation > best.Evaluation || e.Evaluation == best.Evaluation && !e.Issued.Before(best.Issued)) {
				best = &e
			}
		}
		return best
	}
	info := newest(f.infos, func(e collateral.Entry) bool { return e.Name == collateral.NameTCBInfo(fmspc) })
	if info == nil {
		return nil
	}
	levels = append(levels, info.Item())
	if qe := newest(f.levels.Entries(), func(e collateral.Entry) bool { return e.Name == collateral.NameQEIdentity }); qe != nil {
		levels = append(levels, qe.Item())
	}
	var chains []attest.Item
	for _, e := range f.levels.Entries() { // those that were issued last come last
		if e.Name == collateral.NameSigningChain {
			chains = append(chains, e.Item())
		}
	}
	return append(levels, chains[max(0, len(chains)-2):]...) // evidence may have two
}

// byLevels fills in what other levels of Intel's mean for a TD.
func (a *appraiser) byLevels(ctx context.Context, in collect.Input, r appraised, levels []attest.Item, out *forecast) error {
	scheme, ok := a.schemes[attest.KindTDX].(*tdx.Scheme)
	if !ok {
		out.Why = "TDX is not judged here"
		return nil
	}
	ev := attest.Evidence{Kind: attest.KindTDX}
	for _, it := range in.Evidence.Items { // of a machine with a TPM too, what is the TD's
		switch it.Type {
		case attest.TypeTDXQuote, attest.TypeTDXTCBInfo, attest.TypeTDXQEIdent, attest.TypeTDXTCBChain, attest.TypeCRL:
			ev.Items = append(ev.Items, it)
		}
	}
	then, err := scheme.Forecast(ctx, ev, levels, a.at)
	if err != nil {
		return usageError("fetch it again: meshnode collateral fetch --update early --dir DIR "+in.File, "--forecast: %s: %v", out.File, err)
	}
	from := then.IssueDate
	out.From, out.TDX = &from, &then
	for _, s := range then.Shortfalls {
		out.Shortfalls = append(out.Shortfalls, forecastShortfall(s))
	}
	result := attest.Appraise(claimsThen(r.claims, then, levels), a.policy, a.at)
	out.Verdict = result.Verdict
	out.Reasons = append(out.Reasons, result.Reasons...)
	return nil
}

// claimsThen are claims with what other levels say in place of what the evidence's own
// collateral says. What the levels do not bring stays as it is: without valid revocation
// lists nothing is decided then either.
func claimsThen(c attest.Claims, then tdx.Forecast, levels []attest.Item) attest.Claims {
	t := *c.TDX
	brought := func(part string) bool {
		name := map[string]string{"tcb_info": attest.TypeTDXTCBInfo, "qe_identity": attest.TypeTDXQEIdent, "tcb_signing_chain": attest.TypeTDXTCBChain}[part]
		return name != "" && slices.ContainsFunc(levels, func(it attest.Item) bool { return it.Type == name })
	}
	t.CollateralLacks = slices.DeleteFunc(slices.Clone(t.CollateralLacks), brought)
	if len(t.CollateralLacks) == 0 && !t.CollateralStale {
		t.TCBStatus = then.Status
	}
	t.PlatformStatus, t.ModuleStatus, t.QEStatus = then.PlatformStatus, then.ModuleStatus, then.QEStatus
	t.TCBEvaluation, t.QEEvaluation, t.TCBDate = then.Evaluation, then.QEEvaluation, then.TCBDate
	t.Advisories, t.Shortfalls = then.Advisories, then.Shortfalls
	c.TDX = &t
	return c
}

// byPolicy says what another policy would say, and which components are below its floors.
func (f *forecaster) byPolicy(ctx context.Context, in collect.Input, r appraised) (*forecast, error) {
	out := &forecast{File: f.file, By: "policy", Shortfalls: []forecastShortfall{}, Reasons: []attest.Reason{}}
	if r.Genuine == nil || !*r.Genuine {
		out.Why = "only genuine evidence has a forecast"
		return out, nil
	}
	then, err := f.policy.appraise(ctx, in)
	if err != nil {
		return nil, err
	}
	out.Verdict = then.Verdict
	out.Reasons = append(out.Reasons, then.Reasons...)
	p, c := f.policy.policy.SEVSNP, then.claims
	if p == nil || c.SEVSNP == nil {
		return out, nil
	}
	const launch = "sevsnp.launch_tcb"
	for _, s := range attest.ForecastSEVSNP(c, p.MinimumTCB[c.SEVSNP.Product]) {
		if s.Claim != launch {
			out.Shortfalls = append(out.Shortfalls, forecastShortfall{s.Claim, s.Component, uint16(s.Got), uint16(s.Want)})
		}
	}
	for _, s := range attest.ForecastSEVSNP(c, p.MinimumLaunchTCB[c.SEVSNP.Product]) {
		if s.Claim == launch {
			out.Shortfalls = append(out.Shortfalls, forecastShortfall{s.Claim, s.Component, uint16(s.Got), uint16(s.Want)})
		}
	}
	return out, nil
}

// print writes the forecast as lines of its input.
func (f *forecast) print(b *strings.Builder) {
	switch {
	case f == nil:
		return
	case f.Why != "":
		fmt.Fprintf(b, "  forecast by %s: none: %s\n", f.File, f.Why)
		return
	case f.TDX != nil:
		fmt.Fprintf(b, "  forecast by %s: %s, TCB status %s, from %s on (evaluation number %d, newest level of %s)\n", f.File, f.Verdict,
			f.TDX.Status, f.From.UTC().Format(time.RFC3339), f.TDX.Evaluation, f.TDX.Since.UTC().Format(time.DateOnly))
	default:
		fmt.Fprintf(b, "  forecast by %s: %s, from the day on which this policy holds\n", f.File, f.Verdict)
	}
	for _, s := range f.Shortfalls {
		fmt.Fprintf(b, "    short: %s: %s got %d, want at least %d\n", s.Claim, s.Component, s.Got, s.Want)
	}
	for _, r := range f.Reasons {
		fmt.Fprintf(b, "    then: %s\n", r)
	}
}
