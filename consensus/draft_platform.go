package consensus

import (
	"fmt"
	"slices"
	"strings"

	"github.com/attestmesh/meshnode/attest"
)

// platformSpecs are the actions about hardware as a person writes them. Lists need no order.
type platformSpecs struct {
	RaiseFloor      *floorSpec      `yaml:"raise_floor"`
	DenyProduct     *attest.Product `yaml:"deny_product"`
	AllowProduct    *attest.Product `yaml:"allow_product"`
	LimitHardware   *hardwareSpec   `yaml:"limit_hardware"`
	AddHardware     *hardwareSpec   `yaml:"add_hardware"`
	RemoveHardware  *hardwareSpec   `yaml:"remove_hardware"`
	UnlimitHardware *hardwareSpec   `yaml:"unlimit_hardware"`
}

type floorSpec struct {
	Product string      `yaml:"product"`
	SEVSNP  *attest.TCB `yaml:"sevsnp"`
	TDX     *tdxSpec    `yaml:"tdx"`
	From    string      `yaml:"from"`
}

type tdxSpec struct {
	TCBStatuses          []string `yaml:"tcb_statuses"`
	RejectedAdvisoryIDs  []string `yaml:"rejected_advisory_ids"`
	MinimumTCBEvaluation int      `yaml:"minimum_tcb_evaluation_data_number"`
	MinimumTCBDate       string   `yaml:"minimum_tcb_date"`
}

type hardwareSpec struct {
	HardwareScope `yaml:",inline"`
	Chips         []string `yaml:"chips"`
	Readmit       bool     `yaml:"readmit"`
}

// orderedSet returns values in order without repetition; nil stays nil.
func orderedSet(values []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(values)))
}

func (s *tdxSpec) demand() (*attest.TDXDemand, error) {
	if s == nil {
		return nil, nil
	}
	d := &attest.TDXDemand{TCBStatuses: orderedSet(s.TCBStatuses), RejectedAdvisoryIDs: orderedSet(s.RejectedAdvisoryIDs), MinimumTCBEvaluation: s.MinimumTCBEvaluation}
	date, err := parseTime("minimum_tcb_date", s.MinimumTCBDate)
	d.MinimumTCBDate = canonicalTime(date)
	return d, err
}

func (s *floorSpec) floor() (f attest.Floor, err error) {
	f = attest.Floor{Product: s.Product, SEVSNP: s.SEVSNP}
	if f.TDX, err = s.TDX.demand(); err != nil {
		return f, err
	}
	from, err := parseTime("from", s.From)
	f.From = canonicalTime(from)
	return f, err
}

// set sets in a what is written.
func (s *platformSpecs) set(a *Action) error {
	if s.RaiseFloor != nil {
		f, err := s.RaiseFloor.floor()
		if err != nil {
			return fmt.Errorf("raise_floor: %w", err)
		}
		a.RaiseFloor = &RaiseFloor{f}
	}
	if s.DenyProduct != nil {
		a.DenyProduct = &DenyProduct{*s.DenyProduct}
	}
	if s.AllowProduct != nil {
		a.AllowProduct = &AllowProduct{*s.AllowProduct}
	}
	for _, h := range []struct {
		name string
		spec *hardwareSpec
	}{{"limit_hardware", s.LimitHardware}, {"remove_hardware", s.RemoveHardware}, {"unlimit_hardware", s.UnlimitHardware}} {
		if h.spec != nil && (h.spec.Readmit || h.name == "unlimit_hardware" && h.spec.Chips != nil) {
			return fmt.Errorf("%s: names more than it does: readmit belongs to add_hardware, and unlimit_hardware names no chips", h.name)
		}
	}
	if h := s.LimitHardware; h != nil {
		a.LimitHardware = &LimitHardware{h.HardwareScope, orderedSet(h.Chips)}
	}
	if h := s.AddHardware; h != nil {
		a.AddHardware = &AddHardware{h.HardwareScope, orderedSet(h.Chips), h.Readmit}
	}
	if h := s.RemoveHardware; h != nil {
		a.RemoveHardware = &RemoveHardware{h.HardwareScope, orderedSet(h.Chips)}
	}
	if h := s.UnlimitHardware; h != nil {
		a.UnlimitHardware = &UnlimitHardware{h.HardwareScope}
	}
	return nil
}

// govern sets the fields of an entry that came with fsmGovernance.
func (s entrySpec) govern(e *Entry) (err error) {
	e.Builder, e.Rebuilds, e.MinimumTCB = s.Builder, slices.Clone(s.Rebuilds), s.MinimumTCB
	slices.SortFunc(e.Rebuilds, compareRebuilds)
	if len(e.Rebuilds) == 0 {
		e.Rebuilds = nil
	}
	if len(e.MinimumTCB) == 0 {
		e.MinimumTCB = nil
	}
	if e.TDX, err = s.TDX.demand(); err != nil {
		return fmt.Errorf("tdx: %w", err)
	}
	e.SupersedeAt, err = parseTime("supersede_at", s.SupersedeAt)
	return err
}

// setPlatforms sets what the first policy demands of hardware; the order is not the person's.
func (p *FirstPolicy) setPlatforms(floors []floorSpec, denied []attest.Product) error {
	for _, spec := range floors {
		f, err := spec.floor()
		if err != nil {
			return fmt.Errorf("floors: %w", err)
		}
		p.Floors = append(p.Floors, f)
	}
	sortFloors(p.Floors)
	p.Denied = slices.Clone(denied)
	slices.SortFunc(p.Denied, func(a, b attest.Product) int { return strings.Compare(a.String(), b.String()) })
	if len(p.Denied) == 0 {
		p.Denied = nil
	}
	return nil
}
