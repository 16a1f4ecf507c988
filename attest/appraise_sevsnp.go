package attest

import (
	"fmt"
	"slices"
	"strings"
)

func (a *appraisal) sevsnp() {
	p, c := a.policy.SEVSNP, a.claims.SEVSNP
	if !a.section(p != nil, c != nil, KindSEVSNP) {
		return
	}
	a.result.Vector.Hardware, a.result.Vector.RuntimeOpaque = vectorAffirming, vectorAffirming
	if c.Debug && !p.AllowDebug {
		a.refuse(runtimeOpaque, CodeDebug, "sevsnp.debug", "true", "false")
		a.result.Vector.Configuration = vectorContraindicated
	}
	if c.MigrateMA && !p.AllowMigrateMA {
		a.refuse(configuration, CodeMigratable, "sevsnp.migrate_ma", "true", "false")
	}
	if c.SMT && !p.AllowSMT {
		a.refuse(configuration, CodeSMT, "sevsnp.smt", "true", "false")
	}
	switch {
	case c.SigningKey != "VCEK" && c.SigningKey != "VLEK":
		a.refuse(hardware, CodeSigningKey, "sevsnp.signing_key", c.SigningKey, "VCEK or VLEK")
	case c.SigningKey == "VLEK" && !p.AllowVLEK:
		a.refuse(hardware, CodeSigningKey, "sevsnp.signing_key", c.SigningKey, "VCEK")
	}
	if strings.Trim(c.ChipID, "0") == "" && !p.AllowMaskedID {
		a.refuse(hardware, CodeMaskedChipID, "sevsnp.chip_id", "masked", "the chip's id")
	}
	if !slices.Contains(p.VMPL, c.VMPL) {
		a.refuse(configuration, CodeVMPL, "sevsnp.vmpl", fmt.Sprint(c.VMPL), list(p.VMPL))
	}
	floor, ok := p.MinimumTCB[c.Product]
	if !ok {
		a.refuse(hardware, CodeTCBBelowFloor, "sevsnp.product", c.Product, "a product the policy has a floor for")
		return
	}
	// The reported TCB is what the key certifies; the committed one is what the host can
	// no longer roll back below.
	if !floor.atMost(c.ReportedTCB) {
		a.refuse(hardware, CodeTCBBelowFloor, "sevsnp.reported_tcb", c.ReportedTCB.String(), "at least "+floor.String())
	}
	if !floor.atMost(c.CommittedTCB) {
		a.refuse(hardware, CodeTCBBelowFloor, "sevsnp.committed_tcb", c.CommittedTCB.String(), "at least "+floor.String())
	}
}

// atMost reports whether every component of t is at most that of u.
func (t TCB) atMost(u TCB) bool {
	return t.FMC <= u.FMC && t.BootLoader <= u.BootLoader && t.TEE <= u.TEE && t.SNP <= u.SNP && t.Microcode <= u.Microcode
}

// String returns the components under the names of AMD's key distribution service.
func (t TCB) String() string {
	s := fmt.Sprintf("bl=%d tee=%d snp=%d ucode=%d", t.BootLoader, t.TEE, t.SNP, t.Microcode)
	if t.FMC != 0 {
		s = fmt.Sprintf("fmc=%d ", t.FMC) + s
	}
	return s
}
