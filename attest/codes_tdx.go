package attest

// Codes of TDX.
const (
	CodeTCBStatus     Code = "tcb_status"
	CodeSEPTVEDisable Code = "sept_ve_disable"
	CodeXFAM          Code = "xfam"
	CodeSEAM          Code = "seam"
)

var remediesTDX = map[Code]string{
	CodeTCBStatus:     "update the platform to a TCB level whose status the policy accepts",
	CodeSEPTVEDisable: "start the TD with SEPT_VE_DISABLE set",
	CodeXFAM:          "start the TD with an XFAM the policy allows",
	CodeSEAM:          "update the TDX module to one the policy names",
}
