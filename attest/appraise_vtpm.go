package attest

import "slices"

func (a *appraisal) vtpm() {
	p, c := a.policy.VTPM, a.claims.VTPM
	if !a.section(p != nil, c != nil, KindVTPM) {
		return
	}
	a.result.Vector.InstanceIdentity = vectorAffirming
	if c.AKTrust == "" {
		a.add(tierUndecided, identity, NewReason(CodeNoEndorsement, "vtpm.ak_trust", "an attestation key nobody vouches for", "certificate"))
	}
	if !slices.Contains(p.Banks, c.Bank) {
		a.refuse(configuration, CodePCRSelection, "vtpm.bank", c.Bank, list(p.Banks))
	}
	if len(p.RequiredPCRs) == 0 {
		a.refuse(configuration, CodePCRSelection, "vtpm.pcrs", list(c.PCRs), "a policy that names the registers it needs")
	}
	for _, n := range p.RequiredPCRs {
		if !slices.Contains(c.PCRs, n) {
			a.refuse(configuration, CodePCRSelection, "vtpm.pcrs", list(c.PCRs), list(p.RequiredPCRs))
			break
		}
	}
	if !c.LogReplayed {
		a.add(tierUndecided, executables, NewReason(CodeCollateralMissing, "vtpm.log_replayed", "no event log", "the log of this boot"))
	}
	if p.RequireSecureBoot {
		switch {
		case c.SecureBoot == nil && c.LogReplayed:
			a.refuse(configuration, CodeSecureBootOff, "vtpm.secure_boot", "not in the authenticated log", "true")
		case c.SecureBoot != nil && !*c.SecureBoot:
			a.refuse(configuration, CodeSecureBootOff, "vtpm.secure_boot", "false", "true")
		}
	}
}
