package consensus

import (
	"fmt"

	"github.com/attestmesh/meshnode/attest"
)

// Action is one change: exactly one field is set. All actions of a proposal take effect
// together or not at all.
type Action struct {
	AddEntry    *AddEntry    `json:"add_entry,omitempty"`
	RemoveEntry *RemoveEntry `json:"remove_entry,omitempty"`

	RotateKey          *RotateKey          `json:"rotate_key,omitempty"`
	AddKey             *AddKey             `json:"add_key,omitempty"`
	RemoveKey          *RemoveKey          `json:"remove_key,omitempty"`
	AddOrganisation    *AddOrganisation    `json:"add_organisation,omitempty"`
	RemoveOrganisation *RemoveOrganisation `json:"remove_organisation,omitempty"`
	SetLimits          *SetLimits          `json:"set_limits,omitempty"`
	SetWitnesses       *SetWitnesses       `json:"set_witnesses,omitempty"`
	RaiseFloor         *RaiseFloor         `json:"raise_floor,omitempty"`
	DenyProduct        *DenyProduct        `json:"deny_product,omitempty"`
	AllowProduct       *AllowProduct       `json:"allow_product,omitempty"`
	LimitHardware      *LimitHardware      `json:"limit_hardware,omitempty"`
	AddHardware        *AddHardware        `json:"add_hardware,omitempty"`
	RemoveHardware     *RemoveHardware     `json:"remove_hardware,omitempty"`
	UnlimitHardware    *UnlimitHardware    `json:"unlimit_hardware,omitempty"`
}

// action is what every kind of change can do.
type action interface {
	// check decides what the bytes alone show.
	check() error
	// apply changes next, a policy state that nobody else sees yet. claim names the action
	// in refusals. It may not read a clock: members without a seat replay it later.
	apply(next *PolicyState, claim string) error
	// class is the lowest class that the change has on any state.
	class() Class
	// describe says what it does, for people, on one line that begins with + (more is
	// allowed), - (less is) or ! (the mesh itself changes).
	describe() string
	// since is the first fsm_version that knows it.
	since() int
}

// change returns the one action that a is.
func (a Action) change() (action, error) {
	var set []action
	if a.AddEntry != nil {
		set = append(set, a.AddEntry)
	}
	if a.RemoveEntry != nil {
		set = append(set, a.RemoveEntry)
	}
	set = append(set, a.constitution()...)
	set = append(set, a.platformChanges()...)
	if len(set) != 1 {
		return nil, fmt.Errorf("%d actions in one, want exactly one", len(set))
	}
	return set[0], nil
}

func (a Action) check() error {
	change, err := a.change()
	if err != nil {
		return err
	}
	return change.check()
}

// after returns the policy state that the actions of p lead to from s, which stays as it is.
// Epoch, base and chain are not moved yet.
func (s *PolicyState) after(p *Proposal) (*PolicyState, error) {
	next := s.clone()
	for i, a := range p.Actions {
		claim := fmt.Sprintf("action %d", i)
		change, err := a.change()
		if err != nil {
			return nil, refuseErr(attest.CodeMalformed, claim, err)
		}
		if since := change.since(); s.genesis.FSMVersion < since {
			return nil, s.genesis.tooEarly(claim, since)
		}
		if err := change.apply(next, claim); err != nil {
			return nil, err
		}
	}
	if err := s.lowersFloors(p); err != nil {
		return nil, err
	}
	if err := next.platforms.checkRoom(); err != nil {
		return nil, err
	}
	if len(next.entries) > MaxEntries || len(next.revoked) > MaxRevoked {
		return nil, refuse(attest.CodeLimit, "entries", fmt.Sprintf("%d and %d revoked", len(next.entries), len(next.revoked)), fmt.Sprintf("at most %d and %d", MaxEntries, MaxRevoked))
	}
	// Whatever was done and undone: a key that goes and comes back in one proposal is former too.
	if p.Class() == ClassConstitution {
		if err := next.checkConstitution(); err != nil {
			return nil, err
		}
	}
	return next, nil
}

// classify computes the class of a change from the states before and after it: each part of
// the policy by itself, and the widest counts.
func classify(before, after *PolicyState) Class {
	return widest(classifyEntries(before.entries, after.entries), classifyConstitution(before, after), classifyPlatforms(before, after))
}
