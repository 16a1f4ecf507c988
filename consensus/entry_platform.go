package consensus

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// governs reports whether e has a field that came with fsmGovernance.
func (e *Entry) governs() bool {
	return !e.SupersedeAt.IsZero() || e.Builder != "" || e.Rebuilds != nil || e.MinimumTCB != nil || e.TDX != nil
}

var builderPattern = regexp.MustCompile(`^[!-~]{1,256}$`)

// checkGovernance demands that the fields which came with fsmGovernance are well-formed.
func (e *Entry) checkGovernance(kinds []string) error {
	if !e.SupersedeAt.IsZero() {
		if err := checkTime("supersede_at", e.SupersedeAt); err != nil {
			return err
		}
		if len(e.Supersedes) == 0 {
			return fmt.Errorf("supersede_at: nothing is superseded")
		}
	}
	if e.Builder != "" && !builderPattern.MatchString(e.Builder) {
		return fmt.Errorf("builder: got %.40q, want 1 to 256 printable characters, as of a URI", e.Builder)
	}
	if e.Provenance == "" && (e.Builder != "" || e.Rebuilds != nil) {
		return fmt.Errorf("builder, rebuilds: without provenance there is no statement that they are about")
	}
	if err := checkRebuilds(e.Rebuilds); err != nil {
		return err
	}
	if e.MinimumTCB != nil {
		if !slices.Contains(kinds, attest.KindSEVSNP) {
			return fmt.Errorf("minimum_tcb: evidence of kind %s has none", e.Kind)
		}
		if len(e.MinimumTCB) == 0 {
			return fmt.Errorf("minimum_tcb: no product line, want at least one or nothing at all")
		}
		for _, line := range slices.Sorted(maps.Keys(e.MinimumTCB)) {
			if err := checkTCB(line, e.MinimumTCB[line]); err != nil {
				return fmt.Errorf("minimum_tcb: %w", err)
			}
		}
	}
	if e.TDX == nil {
		return nil
	}
	if !slices.Contains(kinds, attest.KindTDX) {
		return fmt.Errorf("tdx: evidence of kind %s has no TDX platform", e.Kind)
	}
	return checkTDX(*e.TDX)
}

func checkRebuilds(rebuilds []Rebuild) error {
	if len(rebuilds) > MaxRebuilds || rebuilds != nil && len(rebuilds) == 0 {
		return fmt.Errorf("rebuilds: %d, want 1 to %d or none at all", len(rebuilds), MaxRebuilds)
	}
	for i, r := range rebuilds {
		if err := r.Organisation.Validate(); err != nil {
			return fmt.Errorf("rebuilds: %w", err)
		}
		if err := checkHex("rebuilds statement", r.Statement, 32); err != nil {
			return err
		}
		if i > 0 && compareRebuilds(rebuilds[i-1], r) >= 0 {
			return fmt.Errorf("rebuilds: %s after %s, want distinct statements in the order of organisations", r.Organisation, rebuilds[i-1].Organisation)
		}
	}
	return nil
}

func compareRebuilds(a, b Rebuild) int {
	if c := strings.Compare(string(a.Organisation), string(b.Organisation)); c != 0 {
		return c
	}
	return strings.Compare(a.Statement, b.Statement)
}

// checkTCB demands a product line of SEV-SNP and a TCB that it can have.
func checkTCB(line string, tcb attest.TCB) error {
	if !slices.Contains(attest.SEVSNPProducts(), line) {
		return fmt.Errorf("product %.40q, want one of %s", line, strings.Join(attest.SEVSNPProducts(), ", "))
	}
	if tcb.FMC != 0 && line != "Turin" {
		return fmt.Errorf("product %s: fmc is %d, but only Turin has one", line, tcb.FMC)
	}
	return nil
}

var advisoryPattern = regexp.MustCompile(`^INTEL-SA-[0-9]{5}$`)

// checkTDX demands at least one demand, in the one spelling.
func checkTDX(d attest.TDXDemand) error {
	if len(d.TCBStatuses) == 0 && len(d.RejectedAdvisoryIDs) == 0 && d.MinimumTCBEvaluation == 0 && d.MinimumTCBDate.IsZero() {
		return fmt.Errorf("tdx: demands nothing")
	}
	for _, l := range []struct {
		name   string
		values []string
		ok     func(string) bool
	}{
		{"tcb_statuses", d.TCBStatuses, func(v string) bool { return slices.Contains(attest.TDXStatuses(), v) }},
		{"rejected_advisory_ids", d.RejectedAdvisoryIDs, advisoryPattern.MatchString},
	} {
		if len(l.values) > MaxAdvisories {
			return fmt.Errorf("tdx: %s: %d, want at most %d", l.name, len(l.values), MaxAdvisories)
		}
		for i, v := range l.values {
			if !l.ok(v) || i > 0 && l.values[i-1] >= v {
				return fmt.Errorf("tdx: %s: got %.40q, want distinct names of Intel's in order", l.name, v)
			}
		}
	}
	if d.MinimumTCBEvaluation < 0 || d.MinimumTCBEvaluation > maxEvaluation {
		return fmt.Errorf("tdx: minimum_tcb_evaluation_data_number: got %d, want 0 to %d", d.MinimumTCBEvaluation, maxEvaluation)
	}
	if d.MinimumTCBDate.IsZero() {
		return nil
	}
	return checkTime("tdx: minimum_tcb_date", d.MinimumTCBDate)
}

// platform is what e demands of hardware, but for lists of chips, which are policy.
func (e *Entry) platform() attest.ReferencePlatform {
	p := attest.ReferencePlatform{MinimumTCB: maps.Clone(e.MinimumTCB)}
	if e.TDX != nil {
		p.TDX = *e.TDX
	}
	return p
}

// tdx is what e demands of TDX platforms in full: without statuses of its own, UpToDate.
func (e *Entry) tdx() (d attest.TDXDemand) {
	if e.TDX != nil {
		d = *e.TDX
	}
	if len(d.TCBStatuses) == 0 {
		d.TCBStatuses = attest.StrictPolicy().TDX.TCBStatuses
	}
	return d
}

// coversPlatform reports whether hardware that was good enough for e is for other.
func (e *Entry) coversPlatform(other *Entry) bool {
	if len(other.MinimumTCB) > 0 && len(e.MinimumTCB) == 0 {
		return false
	}
	for line, tcb := range e.MinimumTCB {
		least, ok := other.MinimumTCB[line]
		if len(other.MinimumTCB) > 0 && (!ok || !tcb.Covers(least)) {
			return false
		}
	}
	return e.tdx().Covers(other.tdx())
}

func (e *Entry) describePlatform() (s string) {
	for _, line := range slices.Sorted(maps.Keys(e.MinimumTCB)) {
		s += fmt.Sprintf(" on %s of at least %s", line, e.MinimumTCB[line])
	}
	if e.TDX != nil {
		s += " on TDX platforms" + describeTDX(*e.TDX)
	}
	return s
}

func describeTDX(d attest.TDXDemand) (s string) {
	if len(d.TCBStatuses) > 0 {
		s += " that are " + strings.Join(d.TCBStatuses, " or ")
	}
	if len(d.RejectedAdvisoryIDs) > 0 {
		s += " without " + strings.Join(d.RejectedAdvisoryIDs, ", ")
	}
	if d.MinimumTCBEvaluation > 0 {
		s += fmt.Sprintf(" by collateral of evaluation number %d or more", d.MinimumTCBEvaluation)
	}
	if !d.MinimumTCBDate.IsZero() {
		s += " with a TCB level of " + d.MinimumTCBDate.Format(time.RFC3339) + " or later"
	}
	return s
}

// DescribeProvenance says where the release of e comes from: UNPROVENANCED is that nobody
// has said.
func (e *Entry) DescribeProvenance() string {
	if e.Provenance == "" {
		return "UNPROVENANCED"
	}
	s := "provenance " + e.Provenance
	if e.Builder != "" {
		s += " by " + e.Builder
	}
	var orgs []string
	for _, r := range e.Rebuilds {
		orgs = append(orgs, string(r.Organisation))
	}
	if len(orgs) > 0 {
		s += ", rebuilt by " + strings.Join(slices.Compact(orgs), ", ")
	}
	return s
}
