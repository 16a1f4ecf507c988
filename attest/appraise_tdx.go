package attest

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
)

// Bits of TDATTRIBUTES (Intel TDX Module Base Architecture Specification).
const (
	tdAttrTUD        = 0xff    // "TD under debug" group: any bit voids confidentiality
	tdAttrMigratable = 1 << 29 // may be moved to another machine
)

func (a *appraisal) tdx() {
	p, c := a.policy.TDX, a.claims.TDX
	if !a.section(p != nil, c != nil, KindTDX) {
		return
	}
	a.result.Vector.Hardware, a.result.Vector.RuntimeOpaque = vectorAffirming, vectorAffirming
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
	if attributes&tdAttrMigratable != 0 {
		a.refuse(configuration, CodeMigratable, "tdx.td_attributes", c.TDAttributes, "MIGRATABLE clear")
	}
	if !c.SEPTVEDisable && p.RequireSEPTVEDisable {
		a.refuse(configuration, CodeSEPTVEDisable, "tdx.sept_ve_disable", "false", "true")
	}
	if extra := xfam &^ p.XFAMAllowed; extra != 0 {
		a.refuse(configuration, CodeXFAM, "tdx.xfam", fmt.Sprintf("%#x", xfam), fmt.Sprintf("no bit outside %#x", p.XFAMAllowed))
	}
	switch {
	case c.TCBStatus == "" && c.CollateralStale:
		a.add(tierUndecided, hardware, NewReason(CodeCollateralStale, "tdx.tcb_status", "collateral not valid at this time", list(p.TCBStatuses)))
	case c.TCBStatus == "":
		a.add(tierUndecided, hardware, NewReason(CodeCollateralMissing, "tdx.tcb_status", "no collateral", list(p.TCBStatuses)))
	case !slices.Contains(p.TCBStatuses, c.TCBStatus):
		a.refuse(hardware, CodeTCBStatus, "tdx.tcb_status", c.TCBStatus, list(p.TCBStatuses))
	}
	a.boot("tdx.boot", p.Boot, c.Boot)
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
