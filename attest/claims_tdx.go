package attest

// TDXClaims are fields of an authentic TDX quote, under Intel's names (TDX DCAP quoting
// library API, TD Quote Body).
type TDXClaims struct {
	QuoteVersion  uint16 `json:"quote_version"`
	TEETCBSVN     string `json:"tee_tcb_svn"`
	MRSEAM        string `json:"mrseam"`
	MRSignerSEAM  string `json:"mrsignerseam"`
	TDAttributes  string `json:"td_attributes"`
	Debug         bool   `json:"debug"`
	SEPTVEDisable bool   `json:"sept_ve_disable"`
	XFAM          string `json:"xfam"`
	MRConfigID    string `json:"mrconfigid"`
	MROwner       string `json:"mrowner"`
	MROwnerConfig string `json:"mrownerconfig"`
	FMSPC         string `json:"fmspc,omitempty"`
	// TCBStatus is Intel's status of platform, TDX module and quoting enclave converged,
	// "NoMatchingLevel", or "" where no collateral was given: cannot decide.
	TCBStatus string `json:"tcb_status,omitempty"`
	// CollateralStale reports that collateral was given but is not valid at the time.
	CollateralStale bool     `json:"collateral_stale,omitempty"`
	Advisories      []string `json:"advisories,omitempty"`
	TCBDate         string   `json:"tcb_date,omitempty"`
	// Boot is nil where the evidence has no event log.
	Boot *BootFacts `json:"boot,omitempty"`
}
