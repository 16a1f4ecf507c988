package tdx

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// Forecast is what a set of TCB levels says about a platform, whenever it is in force.
type Forecast struct {
	Status         string `json:"tcb_status"` // converged
	PlatformStatus string `json:"platform_tcb_status,omitempty"`
	ModuleStatus   string `json:"tdx_module_tcb_status,omitempty"`
	QEStatus       string `json:"qe_tcb_status,omitempty"`
	// TCBDate is the date of the platform's level, RFC 3339; empty where none matches.
	TCBDate string `json:"tcb_date,omitempty"`
	// tcbEvaluationDataNumber of the TCB info and of the QE identity.
	Evaluation   int `json:"tcb_evaluation_data_number"`
	QEEvaluation int `json:"qe_evaluation_data_number"`
	// IssueDate and NextUpdate are those of the TCB info: who demands this set refuses from
	// the former on.
	IssueDate  time.Time `json:"issue_date"`
	NextUpdate time.Time `json:"next_update"`
	// Since is the tcbDate of the newest level: a platform that is short of it lacks what
	// Intel published on that day.
	Since      time.Time             `json:"since"`
	Advisories []string              `json:"advisories,omitempty"` // that apply to the platform
	Shortfalls []attest.TDXShortfall `json:"shortfalls,omitempty"`
}

// Forecast judges the platform of genuine evidence by other TCB levels: such as Intel's early
// set (PCS API v4, update=early), which the standard set follows, months later. levels are
// a TypeTDXTCBInfo and, where they differ from those of the evidence, a TypeTDXQEIdent and
// the TypeTDXTCBChain that they are signed under. Signatures are verified; the dates of the
// levels, which may lie in the future, are reported and not judged. at is the time at which
// the evidence is judged.
func (s *Scheme) Forecast(ctx context.Context, ev attest.Evidence, levels []attest.Item, at time.Time) (Forecast, error) {
	c, err := attest.Verify(ctx, s, ev, nil, at)
	if err != nil {
		return Forecast{}, err
	}
	own, err := split(ev)
	if err != nil {
		return Forecast{}, err
	}
	other, err := split(attest.Evidence{Kind: attest.KindTDX, Items: append([]attest.Item{{Type: attest.TypeTDXQuote, Data: own.quote}}, levels...)})
	if err != nil {
		return Forecast{}, err
	}
	if other.qeIdentity == nil {
		other.qeIdentity = own.qeIdentity
	}
	if len(other.tcbChains) == 0 {
		other.tcbChains = own.tcbChains
	}
	signers, err := s.tcbSigners(other.tcbChains)
	if err != nil {
		return Forecast{}, err
	}
	if other.tcbInfo == nil || other.qeIdentity == nil || len(signers) == 0 {
		return Forecast{}, fmt.Errorf("forecast: no TCB info, QE identity or signing chain; give Intel's answers for FMSPC %s", c.TDX.FMSPC)
	}
	info, qe, err := decodeSigned(other.tcbInfo, other.qeIdentity, signers)
	if err != nil {
		return Forecast{}, err
	}
	if !strings.EqualFold(info.FMSPC, c.TDX.FMSPC) || !strings.EqualFold(info.PCEID, c.TDX.PCEID) {
		return Forecast{}, fmt.Errorf("forecast: TCB info of FMSPC %s and PCE %s, want %s and %s", info.FMSPC, info.PCEID, c.TDX.FMSPC, c.TDX.PCEID)
	}
	return s.forecast(own.quote, info, qe, at)
}

func (s *Scheme) forecast(raw []byte, info tcbInfo, qe qeIdentity, at time.Time) (Forecast, error) {
	q, err := parseQuote(raw)
	if err != nil {
		return Forecast{}, err
	}
	key, err := s.authentic(q, at)
	if err != nil {
		return Forecast{}, err
	}
	for _, m := range []*mismatch{qe.describes(q), info.module(q)} {
		if m != nil { // no level is this platform's
			return Forecast{}, fmt.Errorf("forecast: by these levels the quote is not of Intel's enclave and module: %w", m)
		}
	}
	v := q.svns(key.ext)
	st := stand(info, qe, v)
	out := Forecast{Status: st.status, Evaluation: info.Evaluation, QEEvaluation: qe.Evaluation,
		IssueDate: info.IssueDate, NextUpdate: info.NextUpdate, Advisories: st.advisories(), Shortfalls: v.short(info, qe)}
	for level, status := range map[*tcbLevel]*string{st.platform: &out.PlatformStatus, st.module: &out.ModuleStatus, st.qe: &out.QEStatus} {
		if level != nil {
			*status = level.Status
		}
	}
	if st.platform != nil {
		out.TCBDate = date(st.platform.Date)
	}
	if len(info.Levels) > 0 {
		out.Since = info.Levels[0].Date
	}
	return out, nil
}

// advisories are those of all levels that apply, sorted.
func (st standing) advisories() (out []string) {
	for _, l := range []*tcbLevel{st.platform, st.module, st.qe} {
		if l != nil {
			out = append(out, l.Advisories...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// short lists the components that are below the newest level of the platform, of its TDX
// module and of the quoting enclave.
func (v svns) short(info tcbInfo, qe qeIdentity) (out []attest.TDXShortfall) {
	below := func(claim string, component fmt.Stringer, got, want uint16) {
		if got < want {
			out = append(out, attest.TDXShortfall{Claim: claim, Component: component.String(), Got: got, Want: want})
		}
	}
	if len(info.Levels) > 0 {
		newest := info.Levels[0].TCB
		for i, c := range newest.SGX[:min(len(newest.SGX), len(v.sgx))] {
			below("tdx.sgx_tcb_svn", place{i, c}, uint16(v.sgx[i]), uint16(c.SVN))
		}
		below("tdx.pcesvn", named("PCE"), v.pce, newest.PCESVN)
		for i, c := range newest.TDX[:min(len(newest.TDX), len(v.tee))] {
			if i >= v.firstTDX() {
				below("tdx.tee_tcb_svn", place{i, c}, uint16(v.tee[i]), uint16(c.SVN))
			}
		}
	}
	if version := v.tee[1]; version > 0 {
		if id := info.identity(version); id != nil && len(id.Levels) > 0 {
			below("tdx.tee_tcb_svn", named("TDX module "+id.ID), uint16(v.tee[0]), id.Levels[0].TCB.ISVSVN)
		}
	}
	if len(qe.Levels) > 0 {
		below("tdx.qe_isvsvn", named("quoting enclave"), v.qe, qe.Levels[0].TCB.ISVSVN)
	}
	return out
}

// place is a component at its place in a TCB.
type place struct {
	i int
	component
}

// String is the place, from 1 as in PCK certificates, and what Intel calls the component.
func (p place) String() string {
	return strings.TrimSpace(fmt.Sprintf("component %d %s", p.i+1, strings.TrimSpace(p.Category+" "+p.Type)))
}

// named is a part that is not one of the components.
type named string

// String returns the name.
func (n named) String() string { return string(n) }
