package attest

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bits of TDATTRIBUTES (Intel TDX Module Base Architecture Specification, TD_ATTRIBUTES).
const (
	tdAttrTUD           = 0xff // "TD under debug" group: any bit voids confidentiality
	tdAttrLASS          = 1 << 27
	tdAttrSEPTVEDisable = 1 << 28
	tdAttrMigratable    = 1 << 29 // may be moved to another machine
	tdAttrPKS           = 1 << 30
	tdAttrKL            = 1 << 31 // key locker
	tdAttrPerfmon       = 1 << 63
)

// acceptableTCB are the statuses that a policy may accept.
var acceptableTCB = []string{"UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded",
	"OutOfDate", "OutOfDateConfigurationNeeded", "TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded"}

// TDXStatuses are the statuses that a policy may accept, in Intel's words.
func TDXStatuses() []string { return slices.Clone(acceptableTCB) }

func (a *appraisal) tdx() {
	p, c := a.policy.TDX, a.claims.TDX
	if !a.section(p != nil, c != nil, KindTDX) {
		return
	}
	a.result.Vector.Hardware, a.result.Vector.RuntimeOpaque = vectorAffirming, vectorAffirming
	a.tdxAttributes(p, c)
	a.tdxTCB(p, c)
	a.boot("tdx.boot", p.Boot, c.Boot)
	for _, f := range []struct {
		name, got string
		allowed   []string
		part      part
		code      Code
	}{
		{"tdx.mrseam", c.MRSEAM, p.MRSEAM, hardware, CodeSEAM},
		{"tdx.mrservicetd", c.MRServiceTD, p.MRServiceTD, configuration, CodeServiceTD},
		{"tdx.mrconfigid", c.MRConfigID, p.MRConfigID, configuration, CodeTDConfiguration},
		{"tdx.mrowner", c.MROwner, p.MROwner, configuration, CodeTDConfiguration},
		{"tdx.mrownerconfig", c.MROwnerConfig, p.MROwnerConfig, configuration, CodeTDConfiguration},
		{"tdx.fmspc", c.FMSPC, p.FMSPC, hardware, CodePlatformNotAllowed},
		{"hardware_id", a.claims.HardwareID, p.PPID, hardware, CodePlatformNotAllowed},
	} {
		if !anything(f.allowed) && (f.got == "" || !slices.Contains(f.allowed, f.got)) {
			a.refuse(f.part, f.code, f.name, f.got, list(f.allowed))
		}
	}
}

// tdxAttributes judges how the TD was started.
func (a *appraisal) tdxAttributes(p *TDXPolicy, c *TDXClaims) {
	attributes, err1 := littleEndianHex(c.TDAttributes)
	xfam, err2 := littleEndianHex(c.XFAM)
	if err1 != nil || err2 != nil {
		a.refuse(configuration, CodeMalformed, "tdx.td_attributes", c.TDAttributes+" "+c.XFAM, "8 bytes in hex each")
		return
	}
	if (c.Debug || attributes&tdAttrTUD != 0) && !p.AllowDebug {
		a.refuse(runtimeOpaque, CodeDebug, "tdx.debug", "true", "false")
		a.result.Vector.Configuration = vectorContraindicated
	}
	if attributes&tdAttrMigratable != 0 && !p.AllowMigratable {
		a.refuse(configuration, CodeMigratable, "tdx.td_attributes", c.TDAttributes, "MIGRATABLE clear")
	}
	if (!c.SEPTVEDisable || attributes&tdAttrSEPTVEDisable == 0) && !p.AllowNoSEPTVEDisable {
		a.refuse(configuration, CodeSEPTVEDisable, "tdx.sept_ve_disable", "false", "true")
	}
	const judged = tdAttrTUD | tdAttrMigratable | tdAttrSEPTVEDisable
	if attributes&^(p.TDAttributesAllowed|judged) != 0 {
		a.refuse(configuration, CodeTDAttributes, "tdx.td_attributes", fmt.Sprintf("%#x", attributes), fmt.Sprintf("no bit outside %#x", p.TDAttributesAllowed))
	}
	if xfam&^p.XFAMAllowed != 0 {
		a.refuse(configuration, CodeXFAM, "tdx.xfam", fmt.Sprintf("%#x", xfam), fmt.Sprintf("no bit outside %#x", p.XFAMAllowed))
	}
}

// statuses are those that are accepted under r: its own, where it has any, else the policy's.
func (a *appraisal) statuses(r Reference) []string {
	if own := r.Platform.TDX.TCBStatuses; len(own) > 0 || a.policy.TDX == nil {
		return own
	}
	return a.policy.TDX.TCBStatuses
}

// tdxTCB judges what Intel's collateral says about the platform.
func (a *appraisal) tdxTCB(p *TDXPolicy, c *TDXClaims) {
	statuses := a.statuses(a.match)
	if c.TCBStatus == "" {
		code, got := CodeCollateralMissing, "no collateral"
		switch {
		case c.CollateralStale:
			code, got = CodeCollateralStale, "collateral not valid at this time: "+c.StalePart
		case len(c.CollateralLacks) > 0 && len(c.CollateralLacks) < 5: // of five
			got = "collateral without " + list(c.CollateralLacks)
		}
		a.add(tierUndecided, hardware, NewReason(code, "tdx.tcb_status", got, list(statuses)))
		return
	}
	if !slices.Contains(statuses, c.TCBStatus) || !slices.Contains(acceptableTCB, c.TCBStatus) {
		a.refuse(hardware, CodeTCBStatus, "tdx.tcb_status", c.TCBStatus+c.short(), list(statuses))
	}
	for _, id := range c.Advisories {
		if slices.ContainsFunc(p.RejectedAdvisoryIDs, func(r string) bool { return strings.EqualFold(r, id) }) {
			a.refuse(hardware, CodeAdvisory, "tdx.advisories", id, "none of "+list(p.RejectedAdvisoryIDs))
		}
	}
	for _, n := range []struct {
		name string
		got  int
	}{{"tdx.tcb_evaluation_data_number", c.TCBEvaluation}, {"tdx.qe_evaluation_data_number", c.QEEvaluation}} {
		if n.got < p.MinimumTCBEvaluation {
			a.refuse(hardware, CodeTCBEvaluation, n.name, strconv.Itoa(n.got), fmt.Sprintf("%d or more", p.MinimumTCBEvaluation))
		}
	}
	a.tdxDate(p.MinimumTCBDate, c.TCBDate)
}

// short names the component by which a platform misses Intel's newest level.
func (c *TDXClaims) short() string {
	switch n := len(c.Shortfalls); n {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf(" (%s)", c.Shortfalls[0])
	default:
		return fmt.Sprintf(" (%s; %d more below the newest level)", c.Shortfalls[0], n-1)
	}
}

// tdxDate judges the date of the platform's TCB level; one that cannot be read refuses.
func (a *appraisal) tdxDate(minimum, got string) {
	if minimum == "" {
		return
	}
	least, err1 := time.Parse(time.RFC3339, minimum)
	date, err2 := time.Parse(time.RFC3339, got)
	if err1 != nil || err2 != nil || date.Before(least) {
		a.refuse(hardware, CodeTCBBelowFloor, "tdx.tcb_date", got, minimum+" or later, RFC 3339")
	}
}

// littleEndianHex reads 8 bytes as Intel lays them out.
func littleEndianHex(s string) (uint64, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 8 {
		return 0, fmt.Errorf("%q is not 8 bytes of hex", s)
	}
	slices.Reverse(b)
	return strconv.ParseUint(hex.EncodeToString(b), 16, 64)
}
