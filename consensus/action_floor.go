package consensus

import (
	"fmt"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// RaiseFloor demands a least TCB of every node, from its time on. Floors never fall: what is in
// force already stays, and where one floor covers another the lower says nothing any more.
type RaiseFloor struct{ attest.Floor }

func (*RaiseFloor) class() Class { return ClassNarrow }
func (*RaiseFloor) since() int   { return fsmGovernance }

func (r *RaiseFloor) check() error {
	if !r.From.IsZero() {
		if err := checkTime("raise_floor from", r.From); err != nil {
			return err
		}
	}
	switch {
	case r.SEVSNP != nil && r.TDX == nil:
		if err := checkTCB(r.Product, *r.SEVSNP); err != nil {
			return fmt.Errorf("raise_floor: %w", err)
		}
		if *r.SEVSNP == (attest.TCB{}) {
			return fmt.Errorf("raise_floor: sevsnp demands nothing")
		}
		return nil
	case r.TDX != nil && r.SEVSNP == nil && r.Product == "":
		if err := checkTDX(*r.TDX); err != nil {
			return fmt.Errorf("raise_floor: %w", err)
		}
		return nil
	}
	return fmt.Errorf("raise_floor: want product and sevsnp, or tdx")
}

func (r *RaiseFloor) describe() string { return r.Describe() }

// Describe says what is demanded, in one line for people.
func (r *RaiseFloor) Describe() string {
	s := "- demand of every TDX platform" + describeTDXDemand(r.TDX)
	if r.SEVSNP != nil {
		s = fmt.Sprintf("- demand of every %s platform a TCB of at least %s", r.Product, r.SEVSNP)
	}
	if r.From.IsZero() {
		return s + ", at once"
	}
	return s + ", from " + r.From.Format(time.RFC3339)
}

func describeTDXDemand(d *attest.TDXDemand) string {
	if d == nil {
		return ""
	}
	return " to be one" + describeTDX(*d)
}

func (r *RaiseFloor) apply(next *PolicyState, _ string) error {
	floors, raised := attest.Raise(next.platforms.floors, r.Floor)
	if raised {
		sortFloors(floors)
		next.platforms.floors = floors
	}
	return nil
}

// lowersFloors refuses a proposal that is about floors alone and leaves them all as they are:
// whoever signed it wanted other floors than it would give. One that does something besides
// is not refused, so that what else it takes away cannot be held up by a floor that was raised
// meanwhile.
func (s *PolicyState) lowersFloors(p *Proposal) error {
	var asked []string
	for _, a := range p.Actions {
		if a.RaiseFloor == nil || !attest.Covered(s.platforms.floors, a.RaiseFloor.Floor) {
			return nil
		}
		asked = append(asked, strings.TrimPrefix(a.RaiseFloor.describe(), "- "))
	}
	return refuse(attest.CodeFloorNotRaised, "raise_floor", strings.Join(asked, "; "), "a floor that is higher than those in force")
}

// DenyProduct refuses a class of hardware, until a widening allows it again.
type DenyProduct struct{ attest.Product }

func (*DenyProduct) class() Class       { return ClassNarrow }
func (*DenyProduct) since() int         { return fsmGovernance }
func (d *DenyProduct) check() error     { return checkProduct("deny_product", d.Product) }
func (d *DenyProduct) describe() string { return "- refuse " + d.String() }

func (d *DenyProduct) apply(next *PolicyState, _ string) error {
	next.platforms.denied = with(next.platforms.denied, d.String(), d.Product)
	return nil
}

// AllowProduct takes back a DenyProduct.
type AllowProduct struct{ attest.Product }

func (*AllowProduct) class() Class       { return ClassWiden }
func (*AllowProduct) since() int         { return fsmGovernance }
func (d *AllowProduct) check() error     { return checkProduct("allow_product", d.Product) }
func (d *AllowProduct) describe() string { return "+ refuse no longer " + d.String() }

func (d *AllowProduct) apply(next *PolicyState, claim string) error {
	if _, ok := next.platforms.denied[d.String()]; !ok {
		return refuse(attest.CodeReplayed, claim, d.String()+" is not denied", "a product that is denied")
	}
	next.platforms.denied = without(next.platforms.denied, d.String())
	return nil
}

// checkProduct demands exactly one class of hardware that exists.
func checkProduct(what string, p attest.Product) error {
	switch {
	case p.Line != "" && p.CPUID == nil && p.FMSPC == "":
		if err := checkTCB(p.Line, attest.TCB{}); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	case p.CPUID != nil && p.Line == "" && p.FMSPC == "":
		if line := attest.SEVSNPProduct(p.CPUID.Family, p.CPUID.Model); checkTCB(line, attest.TCB{}) != nil {
			return fmt.Errorf("%s: cpuid %s is no part with SEV-SNP that this release knows", what, p.CPUID)
		}
		return nil
	case p.FMSPC != "" && p.CPUID == nil && p.Line == "":
		return checkHex(what+" fmspc", p.FMSPC, 6)
	}
	return fmt.Errorf("%s: want exactly one of product, cpuid and fmspc", what)
}
