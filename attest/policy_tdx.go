package attest

// TDXPolicy lists what is demanded of a TD beyond its measurement.
type TDXPolicy struct {
	AllowDebug           bool
	RequireSEPTVEDisable bool
	XFAMAllowed          uint64   // bits that may be set
	TCBStatuses          []string // accepted converged statuses; none admits nothing
}

func strictTDX() *TDXPolicy {
	return &TDXPolicy{RequireSEPTVEDisable: true, XFAMAllowed: 0x6DBE7, TCBStatuses: []string{"UpToDate"}}
}
