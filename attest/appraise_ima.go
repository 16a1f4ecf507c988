package attest

import (
	"fmt"
)

// maxUnlisted bounds how many unlisted files one verdict names.
const maxUnlisted = 5

// ima judges the files that a kernel measured; prefix is the section's name.
func (a *appraisal) ima(prefix string, p IMAPolicy, c *IMAFacts) {
	if c == nil {
		if !p.AllowNoList || p.names() {
			a.add(tierUndecided, executables, NewReason(CodeIMAListMissing, prefix, "no IMA list", "the list of this boot"))
		}
		return
	}
	if c.Unverified > 0 {
		a.refuse(executables, CodeIMAUnverified, prefix+".unverified", fmt.Sprint(c.Unverified), "0")
	}
	if c.Violations > p.MaxViolations {
		a.refuse(executables, CodeIMAViolation, prefix+".violations", fmt.Sprint(c.Violations), fmt.Sprintf("at most %d", p.MaxViolations))
	}
	if c.BootAggregate == "differs" {
		a.refuse(executables, CodeIMAAggregate, prefix+".boot_aggregate", "differs", "matches")
	}
	if len(p.Allowed) == 0 {
		a.refuse(executables, CodeIMAUnlisted, prefix+".files", fmt.Sprintf("%d files", len(c.Files)), "a policy that names what it allows")
		return
	}
	if anything(p.Allowed) {
		return
	}
	allowed := make(map[string]struct{}, len(p.Allowed))
	for _, d := range p.Allowed {
		allowed[d] = struct{}{}
	}
	unlisted := 0
	for _, f := range c.Files {
		if _, ok := allowed[f.Digest]; ok {
			continue
		}
		if unlisted++; unlisted <= maxUnlisted {
			a.refuse(executables, CodeIMAUnlisted, prefix+".files", f.Path+" "+f.Digest, fmt.Sprintf("one of %d digests", len(p.Allowed)))
		}
	}
	if unlisted > maxUnlisted {
		a.refuse(executables, CodeIMAUnlisted, prefix+".files", fmt.Sprintf("%d more", unlisted-maxUnlisted), fmt.Sprintf("one of %d digests", len(p.Allowed)))
	}
	if c.Entries == 0 {
		a.refuse(executables, CodeIMAListMissing, prefix+".entries", "0", "at least the boot aggregate")
	}
}
