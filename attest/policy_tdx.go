package attest

// TDXPolicy lists what is demanded of a TD and its platform beyond its measurement. Its zero
// value refuses every TD.
type TDXPolicy struct {
	AllowDebug           bool   `yaml:"allow_debug"`              // any TUD bit of TDATTRIBUTES
	AllowMigratable      bool   `yaml:"allow_migratable"`         // TDATTRIBUTES.MIGRATABLE
	AllowNoSEPTVEDisable bool   `yaml:"allow_no_sept_ve_disable"` // TDATTRIBUTES.SEPT_VE_DISABLE clear
	TDAttributesAllowed  uint64 `yaml:"td_attributes_allowed"`    // bits that may be set, besides those above
	XFAMAllowed          uint64 `yaml:"xfam_allowed"`             // bits that may be set
	// TCBStatuses are the accepted converged statuses; none admits nothing. What Intel calls
	// Revoked, and what it has no level or no name for, is refused whatever stands here.
	TCBStatuses []string `yaml:"tcb_statuses"`
	// RejectedAdvisoryIDs are Intel's advisories that must not apply to the platform, as
	// "INTEL-SA-01036"; case does not count.
	RejectedAdvisoryIDs []string `yaml:"rejected_advisory_ids"`
	// MinimumTCBEvaluation is the least tcbEvaluationDataNumber of TCB info and QE identity:
	// what keeps a host from choosing older collateral that is still valid.
	MinimumTCBEvaluation int `yaml:"minimum_tcb_evaluation_data_number"`
	// MinimumTCBDate is the earliest tcbDate of the platform's level, RFC 3339; "" for any.
	MinimumTCBDate string `yaml:"minimum_tcb_date"`

	// Accepted values in lower-case hex, or [any]. A field that the quote does not have is
	// accepted by any only.
	MRSEAM        []string `yaml:"mrseam"` // the TDX module itself
	MRServiceTD   []string `yaml:"mrservicetd"`
	MRConfigID    []string `yaml:"mrconfigid"`
	MROwner       []string `yaml:"mrowner"`
	MROwnerConfig []string `yaml:"mrownerconfig"`
	FMSPC         []string `yaml:"fmspc"` // platform families
	PPID          []string `yaml:"ppid"`  // platforms

	// Boot judges the facts of the CCEL.
	Boot BootPolicy `yaml:"boot"`
}

// strictTDX accepts any service TD: one can act on a migratable TD only, which it refuses.
// PKS, key locker, LASS and performance monitoring take nothing from a TD's protection.
func strictTDX() *TDXPolicy {
	anything := []string{Any}
	return &TDXPolicy{
		TDAttributesAllowed: tdAttrLASS | tdAttrPKS | tdAttrKL | tdAttrPerfmon,
		XFAMAllowed:         0x6DBE7,
		TCBStatuses:         []string{"UpToDate"},
		MRSEAM:              anything, MRServiceTD: anything, MRConfigID: anything, MROwner: anything, MROwnerConfig: anything,
		FMSPC: anything, PPID: anything,
		Boot: strictTDBoot(),
	}
}

// strictTDBoot accepts a TD without log or Secure Boot: MRTD covers its firmware, and what
// else started is in RTMRs that the reference values name.
func strictTDBoot() BootPolicy {
	p := StrictBoot()
	p.AllowNoLog, p.AllowSecureBootOff = true, true
	return p
}
