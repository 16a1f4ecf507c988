package attest

import "fmt"

// TDXClaims are fields of an authentic TDX quote, of the PCK certificate of its platform and
// of Intel's collateral, under Intel's names (TDX DCAP Quoting Library API, appendix A; PCK
// Certificate and CRL Profile; PCS API v4; supplemental data of the Quote Verification
// Library). Bytes are lower-case hex in the quote's order. All but the debug and
// SEPT_VE_DISABLE flags, which are read from TDAttributes, are as they were signed.
type TDXClaims struct {
	QuoteVersion uint16 `json:"quote_version"`
	// BodyType is 2 for a TD report of TDX 1.0 and 3 for one of 1.5; 0 in version 4, which
	// has the former only.
	BodyType       uint16 `json:"body_type,omitempty"`
	TEETCBSVN      string `json:"tee_tcb_svn"`
	MRSEAM         string `json:"mrseam"`
	MRSignerSEAM   string `json:"mrsignerseam"`
	SEAMAttributes string `json:"seam_attributes"`
	TDAttributes   string `json:"td_attributes"`
	Debug          bool   `json:"debug"`
	SEPTVEDisable  bool   `json:"sept_ve_disable"`
	XFAM           string `json:"xfam"`
	MRConfigID     string `json:"mrconfigid"`
	MROwner        string `json:"mrowner"`
	MROwnerConfig  string `json:"mrownerconfig"`
	// TEETCBSVN2 is the TCB of the TDX module that runs now, MRServiceTD the hash of the
	// service TDs bound to this one. Empty in TD reports of 1.0, which do not say.
	TEETCBSVN2  string `json:"tee_tcb_svn2,omitempty"`
	MRServiceTD string `json:"mrservicetd,omitempty"`
	QESVN       uint16 `json:"qe_isvsvn"` // of the quoting enclave

	// Of the PCK certificate. SGXTCBSVN is its 16 SGX TCB components.
	FMSPC     string `json:"fmspc,omitempty"`
	PCEID     string `json:"pceid,omitempty"`
	SGXTCBSVN string `json:"sgx_tcb_svn,omitempty"`
	PCESVN    uint16 `json:"pcesvn,omitempty"`

	// TCBStatus is Intel's status of platform, TDX module and quoting enclave converged,
	// "NoMatchingLevel", or "" where no collateral was given: cannot decide. Below it is
	// what Intel says of each part, empty where none of its levels matches.
	TCBStatus      string `json:"tcb_status,omitempty"`
	PlatformStatus string `json:"platform_tcb_status,omitempty"`
	ModuleStatus   string `json:"tdx_module_tcb_status,omitempty"`
	QEStatus       string `json:"qe_tcb_status,omitempty"`
	TDXModuleID    string `json:"tdx_module_id,omitempty"` // "TDX_01"; empty for TDX 1.0
	// CollateralStale reports that collateral was given but is not valid at the time, and
	// StalePart which part of it is valid when.
	CollateralStale bool   `json:"collateral_stale,omitempty"`
	StalePart       string `json:"collateral_stale_part,omitempty"`
	// CollateralLacks names the parts that were not given, of those that decide TCBStatus:
	// tcb_info, qe_identity, tcb_signing_chain, pck_crl, root_ca_crl.
	CollateralLacks []string `json:"collateral_lacks,omitempty"`
	Advisories      []string `json:"advisories,omitempty"`
	// Dates of the TCB levels (tcbDate), RFC 3339; TCBDate is the platform's.
	TCBDate       string `json:"tcb_date,omitempty"`
	ModuleTCBDate string `json:"tdx_module_tcb_date,omitempty"`
	QETCBDate     string `json:"qe_tcb_date,omitempty"`
	// tcbEvaluationDataNumber of the TCB info and of the QE identity.
	TCBEvaluation int `json:"tcb_evaluation_data_number,omitempty"`
	QEEvaluation  int `json:"qe_evaluation_data_number,omitempty"`
	// When the first and the last part of the collateral were issued and when the first
	// ceases to be valid, RFC 3339; and which revocation lists they were.
	EarliestIssueDate      string `json:"earliest_issue_date,omitempty"`
	LatestIssueDate        string `json:"latest_issue_date,omitempty"`
	EarliestExpirationDate string `json:"earliest_expiration_date,omitempty"`
	PCKCRLNumber           string `json:"pck_crl_num,omitempty"`
	RootCRLNumber          string `json:"root_ca_crl_num,omitempty"`
	// Shortfalls are the components that are below Intel's newest level.
	Shortfalls []TDXShortfall `json:"tcb_shortfalls,omitempty"`
	// Boot is nil where the evidence has no event log.
	Boot *BootFacts `json:"boot,omitempty"`
}

// TDXShortfall is a component of a platform that is below a TCB level.
type TDXShortfall struct {
	Claim     string `json:"claim"`     // the claim that holds it: tdx.sgx_tcb_svn, tdx.pcesvn …
	Component string `json:"component"` // its place there and what Intel calls it
	Got       uint16 `json:"got"`
	Want      uint16 `json:"want"`
}

// String returns "claim: component is got, want at least want".
func (s TDXShortfall) String() string {
	return fmt.Sprintf("%s: %s is %d, want at least %d", s.Claim, s.Component, s.Got, s.Want)
}

// tdxAttributes are the bits of a TD's ATTRIBUTES by position; "" is reserved (Linux,
// arch/x86/include/asm/shared/tdx.h).
var tdxAttributes = [64]string{0: "debug", 4: "hgs_plus_prof", 5: "perf_prof", 6: "pmt_prof", 16: "icssd", 27: "lass",
	28: "sept_ve_disable", 29: "migratable", 30: "pks", 31: "kl", 62: "tpa", 63: "perfmon"}

// AttributeNames names the bits that are set in TDAttributes, "bitN" where bit N has no name;
// none where it is not 8 bytes.
func (c *TDXClaims) AttributeNames() []string {
	bits, err := littleEndianHex(c.TDAttributes)
	if err != nil {
		return nil
	}
	return bitNames(&tdxAttributes, bits)
}
