package attest

// TDXPolicy lists what is demanded of a TD beyond its measurement.
type TDXPolicy struct {
	AllowDebug           bool
	RequireSEPTVEDisable bool
	XFAMAllowed          uint64   // bits that may be set
	TCBStatuses          []string // accepted converged statuses; none admits nothing
	// Boot judges the facts of the CCEL.
	Boot BootPolicy
}

func strictTDX() *TDXPolicy {
	return &TDXPolicy{RequireSEPTVEDisable: true, XFAMAllowed: 0x6DBE7, TCBStatuses: []string{"UpToDate"}, Boot: strictTDBoot()}
}

// strictTDBoot accepts a TD without log or Secure Boot: MRTD covers its firmware, and what
// else started is in RTMRs that the reference values name.
func strictTDBoot() BootPolicy {
	p := StrictBoot()
	p.AllowNoLog, p.AllowSecureBootOff = true, true
	return p
}
