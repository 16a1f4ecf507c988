package attest

import (
	"fmt"
	"slices"
)

func (a *appraisal) vtpm() {
	p, c := a.policy.VTPM, a.claims.VTPM
	if !a.section(p != nil, c != nil, KindVTPM) {
		return
	}
	if a.result.Vector.InstanceIdentity == 0 {
		a.result.Vector.InstanceIdentity = vectorAffirming
	}
	switch {
	case c.AKTrust == "":
		a.add(tierUndecided, identity, NewReason(CodeNoEndorsement, "vtpm.ak_trust", "an attestation key nobody vouches for", list(p.AKTrust)))
	case !slices.Contains(p.AKTrust, c.AKTrust):
		a.refuse(identity, CodeNoEndorsement, "vtpm.ak_trust", c.AKTrust, list(p.AKTrust))
	}
	if !slices.Contains(p.Banks, c.Bank) {
		a.refuse(configuration, CodePCRSelection, "vtpm.bank", c.Bank, list(p.Banks))
	}
	a.requiredPCRs(p, c)
	if c.RestartCount > 0 && !p.AllowRestarts {
		a.refuse(configuration, CodeRestarted, "vtpm.restart_count", fmt.Sprint(c.RestartCount), "0")
	}
	a.paravisor(p.Boot, c)
	files := p.IMA
	if len(a.match.IMA) > 0 { // the software is named by its files too: their list must be there
		files.AllowNoList, files.Allowed = false, a.match.IMA
	}
	a.ima("vtpm.ima", files, c.IMA)
}

func (a *appraisal) requiredPCRs(p *VTPMPolicy, c *VTPMClaims) {
	if len(p.RequiredPCRs) == 0 {
		a.refuse(configuration, CodePCRSelection, "vtpm.pcrs", list(c.PCRs), "a policy that names the registers it needs")
	}
	for _, n := range p.RequiredPCRs {
		if !slices.Contains(c.PCRs, n) {
			a.refuse(configuration, CodePCRSelection, "vtpm.pcrs", list(c.PCRs), list(p.RequiredPCRs))
			break
		}
	}
}

// paravisor judges a boot by the log and, where the TEE's report vouches for what the
// paravisor says, by its word: that Secure Boot is off is always believed, that it is on only
// where there is no log. Everything else a policy demands of a boot needs the log.
func (a *appraisal) paravisor(p BootPolicy, c *VTPMClaims) {
	said := c.Paravisor
	if said == nil || said.SecureBoot == nil {
		a.boot("vtpm.boot", p, c.Boot)
		return
	}
	if !*said.SecureBoot && !p.AllowSecureBootOff {
		a.refuse(configuration, CodeSecureBootOff, "vtpm.paravisor.secure_boot", "false", "true")
	}
	if c.Boot == nil && !p.needsLog() {
		return
	}
	a.boot("vtpm.boot", p, c.Boot)
}

// needsLog reports whether p demands what only an event log can show. The debugger of the
// firmware is not: beside a paravisor that is part of what the TEE measured.
func (p BootPolicy) needsLog() bool {
	for _, allowed := range [][]string{p.Components, p.CommandLines, p.Files, p.MOK} {
		if !anything(allowed) {
			return true
		}
	}
	return len(p.MinimumDBX) > 0 || len(p.MinimumSBAT) > 0 || !p.AllowDMAUnprotected
}
