package attest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// objection is one thing that a demand on hardware finds wrong.
type objection struct {
	code             Code
	claim, got, want string
}

// platforms judges the hardware by what the mesh and the matching reference demand of it.
func (a *appraisal) platforms() {
	p, c := a.policy.Platforms, a.claims
	for _, d := range p.Denied {
		if d.names(c) {
			a.refuse(hardware, CodePlatformDenied, "platform", d.String(), "hardware that the organisations have not denied")
		}
	}
	for _, f := range p.Floors {
		if !f.due(a.result.At) {
			for _, o := range f.objections(c) {
				a.add(tierNote, nil, NewReason(CodeFloorAhead, o.claim, o.got, o.want+" from "+f.From.Format(time.RFC3339)))
			}
			continue
		}
		a.object(f.objections(c))
	}
	for _, l := range p.Hardware {
		a.object(l.objections(c))
	}
	a.object(a.match.Platform.objections(c))
}

func (a *appraisal) object(objections []objection) {
	for _, o := range objections {
		why := NewReason(o.code, o.claim, o.got, o.want)
		if !slices.Contains(a.result.Reasons, why) { // two floors can find the same
			a.add(tierRefusal, hardware, why)
		}
	}
}

func (f Floor) objections(c Claims) []objection {
	switch {
	case f.SEVSNP != nil && c.SEVSNP != nil && c.SEVSNP.Product == f.Product:
		return belowTCB(*f.SEVSNP, c)
	case f.TDX != nil && c.TDX != nil:
		return f.TDX.objections(*c.TDX)
	}
	return nil
}

// belowTCB lists what is short of a floor: in the reported and committed TCB, and in the one
// that the guest was started under.
func belowTCB(floor TCB, c Claims) (out []objection) {
	for _, s := range ForecastSEVSNP(c, floor) {
		out = append(out, objection{CodeTCBBelowFloor, s.Claim, s.got(), s.want()})
	}
	return out
}

// objections are none where no collateral says anything of the platform: that is undecided.
func (d TDXDemand) objections(c TDXClaims) (out []objection) {
	if c.TCBStatus == "" {
		return nil
	}
	if len(d.TCBStatuses) > 0 && !slices.Contains(d.TCBStatuses, c.TCBStatus) {
		out = append(out, objection{CodeTCBStatus, "tdx.tcb_status", c.TCBStatus + c.short(), list(d.TCBStatuses)})
	}
	for _, id := range c.Advisories {
		if slices.ContainsFunc(d.RejectedAdvisoryIDs, func(r string) bool { return strings.EqualFold(r, id) }) {
			out = append(out, objection{CodeAdvisory, "tdx.advisories", id, "none of " + list(d.RejectedAdvisoryIDs)})
		}
	}
	if got := min(c.TCBEvaluation, c.QEEvaluation); got < d.MinimumTCBEvaluation {
		out = append(out, objection{CodeTCBEvaluation, "tdx.tcb_evaluation_data_number", strconv.Itoa(got), fmt.Sprintf("%d or more", d.MinimumTCBEvaluation)})
	}
	if least := d.MinimumTCBDate; !least.IsZero() {
		if date, err := time.Parse(time.RFC3339, c.TCBDate); err != nil || date.Before(least) {
			out = append(out, objection{CodeTCBBelowFloor, "tdx.tcb_date", c.TCBDate, least.Format(time.RFC3339) + " or later"})
		}
	}
	return out
}

func (l HardwareList) objections(c Claims) []objection {
	if l.Admits(c.Hardware) {
		return nil
	}
	got := "a chip that is not on it"
	if c.Hardware == "" {
		got = "a chip that was not shown with its salt"
	}
	return []objection{{CodeChipNotAllowed, "hardware", got, "a chip on the list of " + l.Of}}
}

func (r ReferencePlatform) objections(c Claims) (out []objection) {
	if snp := c.SEVSNP; snp != nil && len(r.MinimumTCB) > 0 {
		if floor, ok := r.MinimumTCB[snp.Product]; ok {
			out = belowTCB(floor, c)
		} else {
			out = append(out, objection{CodeProduct, "sevsnp.product", snp.Product, "a product that the entry has a floor for"})
		}
	}
	if c.TDX != nil {
		out = append(out, r.TDX.objections(*c.TDX)...)
	}
	if r.Hardware != nil {
		out = append(out, r.Hardware.objections(c)...)
	}
	return out
}
