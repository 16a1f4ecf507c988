package attest

// Codes of TDX.
const (
	CodeTCBStatus          Code = "tcb_status"
	CodeSEPTVEDisable      Code = "sept_ve_disable"
	CodeTDAttributes       Code = "td_attributes"
	CodeXFAM               Code = "xfam"
	CodeSEAM               Code = "seam"
	CodeServiceTD          Code = "service_td"
	CodeTDConfiguration    Code = "td_configuration"
	CodeAdvisory           Code = "advisory"
	CodeTCBEvaluation      Code = "tcb_evaluation_number"
	CodePlatformNotAllowed Code = "platform_not_allowed"
)

var remediesTDX = map[Code]string{
	CodeTCBStatus:          "update the platform to a TCB level whose status the policy accepts",
	CodeSEPTVEDisable:      "start the TD with SEPT_VE_DISABLE set",
	CodeTDAttributes:       "start the TD without the attributes that the policy does not allow",
	CodeXFAM:               "start the TD with an XFAM the policy allows",
	CodeSEAM:               "update the TDX module to one the policy names",
	CodeServiceTD:          "start the TD without that service TD, or have the policy name its hash",
	CodeTDConfiguration:    "start the TD with the configuration and owner that the policy names",
	CodeAdvisory:           "update the platform past the advisory that the policy rejects",
	CodeTCBEvaluation:      "fetch newer collateral; the policy demands a higher TCB evaluation data number",
	CodePlatformNotAllowed: "move the TD to a platform that the policy names",
}
