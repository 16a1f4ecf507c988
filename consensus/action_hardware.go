package consensus

import (
	"fmt"
	"maps"
	"strings"

	"github.com/attestmesh/meshnode/attest"
)

// A list of chips holds commitments (attest.HardwareCommitment), never ids. Where a scope has
// one, only nodes on chips that it lists count. Limits and removals name all that they do, so
// that they come to the same in whatever order they are ordered: what remains is listed by
// every limit and named by no removal.

// LimitHardware lists the chips of a scope; where it had a list, those on both remain.
type LimitHardware struct {
	HardwareScope
	Chips []string `json:"chips"`
}

func (*LimitHardware) class() Class   { return ClassNarrow }
func (*LimitHardware) since() int     { return fsmGovernance }
func (l *LimitHardware) check() error { return checkChips("limit_hardware", l.HardwareScope, l.Chips) }

func (l *LimitHardware) describe() string {
	return fmt.Sprintf("- let %s use no chips but these: %s", l.HardwareScope, strings.Join(l.Chips, ", "))
}

func (l *LimitHardware) apply(next *PolicyState, claim string) error {
	if err := l.known(next, claim); err != nil {
		return err
	}
	list := next.hardwareOf(l.HardwareScope)
	listed := map[string]struct{}{}
	for _, c := range l.Chips {
		if list.Admits(c) {
			listed[c] = struct{}{}
		}
	}
	list.Any, list.Listed = false, listed
	next.setHardware(l.HardwareScope, list)
	return nil
}

// RemoveHardware takes chips off the list of a scope, for as long as nobody adds them again.
type RemoveHardware struct {
	HardwareScope
	Chips []string `json:"chips"`
}

func (*RemoveHardware) class() Class { return ClassNarrow }
func (*RemoveHardware) since() int   { return fsmGovernance }
func (r *RemoveHardware) check() error {
	return checkChips("remove_hardware", r.HardwareScope, r.Chips)
}

func (r *RemoveHardware) describe() string {
	return fmt.Sprintf("- let %s use these chips no longer: %s", r.HardwareScope, strings.Join(r.Chips, ", "))
}

func (r *RemoveHardware) apply(next *PolicyState, claim string) error {
	if err := r.known(next, claim); err != nil {
		return err
	}
	list := next.hardwareOf(r.HardwareScope)
	list.Listed, list.Removed = maps.Clone(list.Listed), clonedSet(list.Removed)
	for _, c := range r.Chips {
		delete(list.Listed, c)
		list.Removed[c] = struct{}{}
	}
	next.setHardware(r.HardwareScope, list)
	return nil
}

// AddHardware lists more chips for a scope that has a list.
type AddHardware struct {
	HardwareScope
	Chips []string `json:"chips"`
	// Readmit is demanded where a chip was removed before, as it is for entries.
	Readmit bool `json:"readmit,omitempty"`
}

func (*AddHardware) class() Class   { return ClassWiden }
func (*AddHardware) since() int     { return fsmGovernance }
func (a *AddHardware) check() error { return checkChips("add_hardware", a.HardwareScope, a.Chips) }

func (a *AddHardware) describe() string {
	s := "+ let "
	if a.Readmit {
		s = "+ let again, though removed, "
	}
	return fmt.Sprintf("%s%s use these chips too: %s", s, a.HardwareScope, strings.Join(a.Chips, ", "))
}

func (a *AddHardware) apply(next *PolicyState, claim string) error {
	if err := a.known(next, claim); err != nil {
		return err
	}
	list := next.hardwareOf(a.HardwareScope)
	list.Listed, list.Removed = clonedSet(list.Listed), maps.Clone(list.Removed)
	for _, c := range a.Chips {
		if list.Admits(c) {
			return refuse(attest.CodeReplayed, claim, "chip "+c+" is allowed already", "a chip that is not")
		}
		if _, removed := list.Removed[c]; removed && !a.Readmit {
			return refuse(attest.CodeRevoked, claim, "chip "+c+" was removed", "readmit: true, if it is meant")
		}
		delete(list.Removed, c)
		if !list.Any {
			list.Listed[c] = struct{}{}
		}
	}
	next.setHardware(a.HardwareScope, list)
	return nil
}

// UnlimitHardware takes the list of a scope away; what was removed stays out.
type UnlimitHardware struct{ HardwareScope }

func (*UnlimitHardware) class() Class   { return ClassWiden }
func (*UnlimitHardware) since() int     { return fsmGovernance }
func (u *UnlimitHardware) check() error { return checkScope("unlimit_hardware", u.HardwareScope) }

func (u *UnlimitHardware) describe() string {
	return fmt.Sprintf("+ let %s use any chip that was not removed", u.HardwareScope)
}

func (u *UnlimitHardware) apply(next *PolicyState, claim string) error {
	list := next.hardwareOf(u.HardwareScope)
	if list.Any {
		return refuse(attest.CodeReplayed, claim, u.HardwareScope.String()+" has no list of chips", "one that has")
	}
	list.Any, list.Listed = true, nil
	next.setHardware(u.HardwareScope, list)
	return nil
}

// hardwareOf returns the list of a scope; without one every chip counts.
func (s *PolicyState) hardwareOf(scope HardwareScope) attest.HardwareList {
	if l, ok := s.platforms.hardware[scope]; ok {
		return l
	}
	return attest.HardwareList{Of: scope.String(), Any: true}
}

func (s *PolicyState) setHardware(scope HardwareScope, l attest.HardwareList) {
	if l.Any && len(l.Removed) == 0 {
		s.platforms.hardware = without(s.platforms.hardware, scope)
		return
	}
	s.platforms.hardware = with(s.platforms.hardware, scope, l)
}

// clonedSet is maps.Clone that never returns nil.
func clonedSet(m map[string]struct{}) map[string]struct{} {
	if m == nil {
		return map[string]struct{}{}
	}
	return maps.Clone(m)
}

func checkScope(what string, scope HardwareScope) error {
	if err := scope.check(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func checkChips(what string, scope HardwareScope, chips []string) error {
	if err := checkScope(what, scope); err != nil {
		return err
	}
	if len(chips) == 0 || len(chips) > MaxActionChips {
		return fmt.Errorf("%s: %d chips, want 1 to %d", what, len(chips), MaxActionChips)
	}
	for i, c := range chips {
		if err := checkHex(what+" chips", c, 32); err != nil {
			return err
		}
		if i > 0 && chips[i-1] >= c {
			return fmt.Errorf("%s: chips: %.16s… after %.16s…, want distinct commitments in order", what, c, chips[i-1])
		}
	}
	return nil
}
