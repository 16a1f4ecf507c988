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
	a.snpGuestPolicy(p, c)
	a.snpPlatform(p, c)
	a.snpIdentity(p, c)
	a.snpTCB(p, c)
	if p.RequireCRL && c.CRL != CRLGood {
		code := CodeCollateralMissing
		if c.CRL == CRLStale {
			code = CodeCollateralStale
		}
		a.add(tierUndecided, hardware, NewReason(code, "sevsnp.crl", c.CRL, "a current revocation list of AMD's"))
	}
}

// Bits of the guest policy (AMD 56860, table "Guest Policy Structure"): ABI in 0 to 15, a
// bit that is always one, and those that have fields.
const (
	snpPolicyOne   = 1 << 17
	snpPolicyKnown = 1<<26 - 1
)

// snpGuestPolicy judges what the guest allowed its host.
func (a *appraisal) snpGuestPolicy(p *SEVSNPPolicy, c *SEVSNPClaims) {
	if c.Debug && !p.AllowDebug {
		a.refuse(runtimeOpaque, CodeDebug, "sevsnp.debug", "true", "false")
		a.result.Vector.Configuration = vectorContraindicated
	}
	for _, bit := range []struct {
		set, allowed bool
		code         Code
		claim        string
	}{
		{c.MigrateMA, p.AllowMigrateMA, CodeMigratable, "migrate_ma"},
		{c.SMT, p.AllowSMT, CodeSMT, "smt"},
		{c.CXLAllow, p.AllowCXL, CodeGuestPolicy, "cxl_allow"},
	} {
		if bit.set && !bit.allowed {
			a.refuse(configuration, bit.code, "sevsnp."+bit.claim, "true", "false")
		}
	}
	for _, bit := range []struct {
		set, required bool
		claim         string
	}{
		{c.SingleSocket, p.RequireSingleSocket, "single_socket"},
		{c.MemAES256XTS, p.RequireMemAES256XTS, "mem_aes_256_xts"},
		{c.RAPLDis, p.RequireRAPLDis, "rapl_dis"},
		{c.CiphertextHidingDRAM, p.RequireCiphertextHiding, "ciphertext_hiding_dram"},
		{c.PageSwapDisable, p.RequirePageSwapDisable, "page_swap_disable"},
	} {
		if !bit.set && bit.required {
			a.refuse(configuration, CodeGuestPolicy, "sevsnp."+bit.claim, "false", "true")
		}
	}
	if c.Policy&^snpPolicyKnown != 0 || c.Policy&snpPolicyOne == 0 {
		a.refuse(configuration, CodeGuestPolicy, "sevsnp.policy", fmt.Sprintf("%#x", c.Policy), "bit 17 and none above 25")
	}
	if c.ABI.before(p.MinimumABI) {
		a.refuse(configuration, CodeGuestPolicy, "sevsnp.abi", c.ABI.String(), "at least "+p.MinimumABI.String())
	}
}

// snpPlatform judges the state of the host, and the key that speaks for it.
func (a *appraisal) snpPlatform(p *SEVSNPPolicy, c *SEVSNPClaims) {
	for _, name := range p.PlatformInfoRequired {
		if !slices.Contains(c.PlatformInfoBits, name) {
			a.refuse(configuration, CodePlatformInfo, "sevsnp.platform_info."+name, "0", "1")
		}
	}
	for _, name := range c.PlatformInfoBits {
		if !accepts(p.PlatformInfoAllowed, name) {
			a.refuse(configuration, CodePlatformInfo, "sevsnp.platform_info."+name, "1", "0")
		}
	}
	switch {
	case c.SigningKey != "VCEK" && c.SigningKey != "VLEK":
		a.refuse(hardware, CodeSigningKey, "sevsnp.signing_key", c.SigningKey, "VCEK or VLEK")
	case c.SigningKey == "VLEK" && !p.AllowVLEK:
		a.refuse(hardware, CodeSigningKey, "sevsnp.signing_key", c.SigningKey, "VCEK")
	case c.SigningKey == "VLEK":
		a.oneOf(hardware, CodeSigningKey, "csp_id", c.CSPID, p.CSPIDs)
	}
	switch masked := strings.Trim(c.ChipID, "0") == ""; {
	case masked && !p.AllowMaskedID:
		a.refuse(hardware, CodeMaskedChipID, "sevsnp.chip_id", "masked", "the chip's id")
	case !masked:
		a.oneOf(hardware, CodeChipNotAllowed, "chip_id", c.ChipID, p.ChipIDs)
	}
}

// snpIdentity judges what the guest's owner and its host said at launch.
func (a *appraisal) snpIdentity(p *SEVSNPPolicy, c *SEVSNPClaims) {
	if !slices.Contains(p.VMPL, c.VMPL) {
		a.refuse(configuration, CodeVMPL, "sevsnp.vmpl", fmt.Sprint(c.VMPL), list(p.VMPL))
	}
	a.oneOf(configuration, CodeHostData, "host_data", c.HostData, p.HostData)
	a.oneOf(identity, CodeIDBlock, "family_id", c.FamilyID, p.FamilyIDs)
	a.oneOf(identity, CodeIDBlock, "image_id", c.ImageID, p.ImageIDs)
	a.oneOf(identity, CodeIDBlock, "id_key_digest", c.IDKeyDigest, p.IDKeyDigests)
	a.oneOf(identity, CodeIDBlock, "author_key_digest", c.AuthorKey, p.AuthorKeyDigests)
	if c.GuestSVN < p.MinimumGuestSVN {
		a.refuse(identity, CodeIDBlock, "sevsnp.guest_svn", fmt.Sprint(c.GuestSVN), fmt.Sprintf("at least %d", p.MinimumGuestSVN))
	}
}

// snpTCB judges firmware and microcode.
func (a *appraisal) snpTCB(p *SEVSNPPolicy, c *SEVSNPClaims) {
	floor, ok1 := p.MinimumTCB[c.Product]
	launch, ok2 := p.MinimumLaunchTCB[c.Product]
	firmware, ok3 := p.MinimumFirmware[c.Product]
	if !ok1 || !ok2 || !ok3 {
		a.refuse(hardware, CodeProduct, "sevsnp.product", c.Product, "a product the policy has all floors for")
		return
	}
	short := append(shortfalls("sevsnp.reported_tcb", c.ReportedTCB, floor), shortfalls("sevsnp.committed_tcb", c.CommittedTCB, floor)...)
	for _, s := range append(short, shortfalls("sevsnp.launch_tcb", c.LaunchTCB, launch)...) {
		a.refuse(hardware, CodeTCBBelowFloor, s.Claim, s.got(), s.want())
	}
	if c.CommittedVersion.before(firmware) {
		a.refuse(hardware, CodeTCBBelowFloor, "sevsnp.committed_version", c.CommittedVersion.String(), "at least "+firmware.String())
	}
	if c.CurrentVersion != c.CommittedVersion && !p.AllowProvisionalFirmware {
		a.refuse(hardware, CodeProvisional, "sevsnp.current_version", c.CurrentVersion.String(), "the committed "+c.CommittedVersion.String())
	}
	for _, v := range []struct {
		claim     string
		got, want uint64
	}{{"launch_mit_vector", c.LaunchMitVector, p.LaunchMitVector}, {"current_mit_vector", c.CurrentMitVector, p.CurrentMitVector}} {
		if v.want&^v.got != 0 {
			a.refuse(hardware, CodeMitigation, "sevsnp."+v.claim, fmt.Sprintf("%#x", v.got), fmt.Sprintf("all bits of %#x", v.want))
		}
	}
}

// accepts reports whether a list of accepted values has got, or accepts any.
func accepts(want []string, got string) bool {
	return slices.Contains(want, got) || anything(want)
}

// oneOf refuses a claim of SEV-SNP whose value a list does not accept.
func (a *appraisal) oneOf(p part, code Code, claim, got string, want []string) {
	if accepts(want, got) {
		return
	}
	text := list(want)
	if len(want) > 3 {
		text = fmt.Sprintf("one of %d values", len(want))
	}
	a.refuse(p, code, "sevsnp."+claim, orDash(got), text)
}
