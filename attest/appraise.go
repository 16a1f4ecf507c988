package attest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// AR4SI values of the trustworthiness vector (draft-ietf-rats-ar4si §2.3).
const (
	vectorAffirming       = 2
	vectorWarning         = 32
	vectorContraindicated = 96
)

// tier says what one reason does to the verdict; the worst reason decides.
type tier int

const (
	tierNote tier = iota // shown, changes nothing
	tierWarning
	tierUndecided // not bad: a fact that the policy needs is missing
	tierRefusal
)

// part is the component of the vector that a reason speaks about.
type part func(*Vector) *int8

func hardware(v *Vector) *int8      { return &v.Hardware }
func executables(v *Vector) *int8   { return &v.Executables }
func configuration(v *Vector) *int8 { return &v.Configuration }
func runtimeOpaque(v *Vector) *int8 { return &v.RuntimeOpaque }
func identity(v *Vector) *int8      { return &v.InstanceIdentity }

// appraisal gathers reasons; it is local to one call of Appraise.
type appraisal struct {
	claims Claims
	policy Policy
	match  Reference // the one that names the software, or none
	result Result
	tiers  []tier
}

// add records a reason. Each component of the vector keeps the worst of its reasons; an
// undecided one makes it 0, "no claim".
func (a *appraisal) add(t tier, p part, r Reason) {
	a.result.Reasons = append(a.result.Reasons, r)
	a.tiers = append(a.tiers, t)
	if p == nil {
		return
	}
	switch c := p(&a.result.Vector); {
	case t == tierRefusal:
		*c = vectorContraindicated
	case t == tierUndecided && *c != vectorContraindicated:
		*c = 0
	case t == tierWarning && *c == vectorAffirming:
		*c = vectorWarning
	}
}

func (a *appraisal) refuse(p part, code Code, claim, got, want string) {
	a.add(tierRefusal, p, NewReason(code, claim, got, want))
}

// Appraise opens the third door: it judges authentic claims under a policy at a time and
// returns every reason, those that refuse first. It is a pure function of its arguments.
//
// The verdict is that of the worst reason: contraindicated if the policy refuses, none if
// a fact the policy needs is missing (collateral, endorsement), warning if nothing names
// the software as wanted, else affirming. Claims that are not genuine are refused without
// looking at anything else. Simulated evidence can be affirming where the policy has a
// Sim section, but carries the reason "simulated" and claims no hardware.
func Appraise(c Claims, p Policy, at time.Time) Result {
	a := &appraisal{claims: c, policy: p, result: Result{Kind: c.Kind, Epoch: p.Epoch, At: at}}
	if !c.Genuine {
		a.refuse(hardware, CodeNotGenuine, "genuine", "false", "true")
		return a.finish()
	}
	a.result.Measurement = c.Measurement
	kinds, err := ParseKinds(c.Kind)
	if err != nil {
		a.refuse(nil, CodeMalformed, "kind", c.Kind, "known kinds in order")
		return a.finish()
	}
	if !slices.Contains(p.Kinds, c.Kind) {
		a.refuse(nil, CodeKindNotAllowed, "kind", c.Kind, list(p.Kinds))
	}
	if !c.Bound && !p.AllowUnbound {
		a.refuse(identity, CodeNotBound, "report_data", "not compared", "the report data of this exchange")
	}
	a.result.Vector.Configuration = vectorAffirming
	a.reference()
	for _, k := range kinds {
		switch k {
		case KindSEVSNP:
			a.sevsnp()
		case KindTDX:
			a.tdx()
		case KindVTPM:
			a.vtpm()
		case KindSim:
			a.sim()
		}
	}
	a.platforms()
	return a.finish()
}

// finish orders the reasons by weight and takes the verdict of the worst.
func (a *appraisal) finish() Result {
	worst := tierNote
	for _, t := range a.tiers {
		worst = max(worst, t)
	}
	var ordered []Reason
	for t := tierRefusal; t >= tierNote; t-- {
		for i, r := range a.result.Reasons {
			if a.tiers[i] == t {
				ordered = append(ordered, r)
			}
		}
	}
	a.result.Reasons = ordered
	a.result.Verdict = map[tier]Verdict{
		tierNote: VerdictAffirming, tierWarning: VerdictWarning,
		tierUndecided: VerdictNone, tierRefusal: VerdictContraindicated,
	}[worst]
	return a.result
}

// matches reports whether r names the software of c, whatever the time.
func (r Reference) matches(c Claims) bool {
	if r.Kind != c.Kind || r.Measurement == "" || r.Measurement != c.Measurement {
		return false
	}
	for name, want := range r.Registers {
		if got, ok := c.Registers[name]; !ok || got != want {
			return false
		}
	}
	return true
}

// lists reports whether r names every file that was run, if it names any.
func (r Reference) lists(c Claims) bool {
	if len(r.IMA) == 0 {
		return true
	}
	if c.VTPM == nil || c.VTPM.IMA == nil {
		return false
	}
	listed := make(map[string]struct{}, len(r.IMA))
	for _, digest := range r.IMA {
		listed[digest] = struct{}{}
	}
	return !slices.ContainsFunc(c.VTPM.IMA.Files, func(f IMAFile) bool { _, ok := listed[f.Digest]; return !ok })
}

// suits reports whether r has no objection to what was run, nor to the hardware below.
func (a *appraisal) suits(r Reference) bool {
	r.Platform.TDX.TCBStatuses = a.statuses(r)
	return r.lists(a.claims) && len(r.Platform.objections(a.claims)) == 0
}

// valid reports whether at is within r's validity.
func (r Reference) valid(at time.Time) bool {
	return (r.NotBefore.IsZero() || !at.Before(r.NotBefore)) && (r.NotAfter.IsZero() || !at.After(r.NotAfter))
}

// reference looks for a reference value that names the measured software. Two releases may
// boot alike and differ in their files, or two entries in the hardware they demand: the one
// that has no objection is meant, and if none is, the first says what it objects to.
func (a *appraisal) reference() {
	p, c := a.policy, a.claims
	var inside, outside *Reference
	for _, r := range p.References {
		switch {
		case !r.matches(c):
		case !r.valid(a.result.At):
			outside = &r
		case inside == nil || !a.suits(*inside) && a.suits(r):
			inside = &r
		}
	}
	if inside != nil {
		a.result.Reference, a.match = inside.ID, *inside
		a.result.Vector.Executables = vectorAffirming
		a.guest(*inside)
		return
	}
	got := orDash(c.Measurement)
	for _, r := range p.Revoked {
		if r.matches(c) {
			a.refuse(executables, CodeRevoked, "measurement", got, "a measurement that was not revoked")
			return
		}
	}
	switch {
	case outside != nil:
		a.refuse(executables, CodeExpired, "measurement", got+" at "+a.result.At.UTC().Format(time.RFC3339),
			"the validity of "+outside.ID)
	case len(p.References) == 0 && p.AllowNoReferences:
		a.add(tierWarning, nil, NewReason(CodeNoReferenceValues, "measurement", got, "a reference value that names it"))
		a.result.Vector.Executables = vectorWarning
	case !a.registers():
		a.refuse(executables, CodeMeasurementNotAllowed, "measurement", got, a.wantedMeasurement())
	}
}

// guest warns where reference values name a paravisor and none what runs above it: the
// measurement of a composite is the same for every guest, whose boot is in the TPM alone.
func (a *appraisal) guest(matching Reference) {
	if a.claims.VTPM == nil || a.claims.Kind == KindVTPM || a.policy.VTPM != nil && named(a.policy.VTPM.Boot.Components) {
		return
	}
	if slices.ContainsFunc(a.policy.References, func(r Reference) bool {
		return r.matches(a.claims) && r.valid(a.result.At) && r.namesGuest()
	}) {
		return
	}
	why := NewReason(CodeNoReferenceValues, "registers", "none of the TPM's in "+orDash(matching.ID), "pcr4 and what else shows what the guest booted")
	why.Remedy = "name registers of the TPM in the reference value: its measurement is the paravisor's, whichever guest runs above it"
	a.add(tierWarning, executables, why)
}

// namesGuest reports whether r has a register of a TPM.
func (r Reference) namesGuest() bool {
	for name := range r.Registers {
		if strings.HasPrefix(name, "pcr") {
			return true
		}
	}
	return false
}

// registers names the registers in which the claims differ from the reference value that is
// closest to them, and reports whether there is one with their measurement.
func (a *appraisal) registers() bool {
	var closest Reference
	var differ []string
	for _, r := range a.policy.References {
		if r.Kind != a.claims.Kind || r.Measurement == "" || r.Measurement != a.claims.Measurement {
			continue
		}
		var names []string
		for _, name := range slices.Sorted(maps.Keys(r.Registers)) {
			if got, ok := a.claims.Registers[name]; !ok || got != r.Registers[name] {
				names = append(names, name)
			}
		}
		if differ == nil || len(names) < len(differ) {
			closest, differ = r, names
		}
	}
	for _, name := range differ {
		a.refuse(executables, CodeMeasurementNotAllowed, name, a.claims.Registers[name], closest.Registers[name])
	}
	return len(differ) > 0
}

// wantedMeasurement describes the reference values of this kind without flooding a line.
func (a *appraisal) wantedMeasurement() string {
	var want []string
	for _, r := range a.policy.References {
		if r.Kind == a.claims.Kind {
			want = append(want, r.Measurement)
		}
	}
	if len(want) > 3 {
		return fmt.Sprintf("one of %d reference values", len(want))
	}
	return list(want)
}

func (a *appraisal) sim() {
	if !a.section(a.policy.Sim != nil, a.claims.Sim != nil, KindSim) {
		return
	}
	a.add(tierNote, nil, NewReason(CodeSimulated, "kind", KindSim, "hardware, outside trials"))
}

// section reports whether policy and claims both have the section of a kind; that one is
// missing is a refusal, never a skipped check.
func (a *appraisal) section(inPolicy, inClaims bool, kind string) bool {
	if !inPolicy {
		a.refuse(nil, CodePolicyMissing, "policy."+kind, "", "the demands on "+kind)
	}
	if !inClaims {
		a.refuse(nil, CodeMalformed, kind, "", "the claims of "+kind)
	}
	return inPolicy && inClaims
}

// list prints values for a reason.
func list[T any](values []T) string {
	if len(values) == 0 {
		return "none"
	}
	return strings.Trim(strings.Join(strings.Fields(fmt.Sprint(values)), ", "), "[]")
}
