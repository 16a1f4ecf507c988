package attest

// Codes of changes to the constitution, and of quotas.
const (
	CodeUnknownOrganisation  Code = "unknown_organisation"
	CodeUnknownKey           Code = "unknown_key"
	CodeUnreachableThreshold Code = "unreachable_threshold"
	CodeOrganisationRemoved  Code = "organisation_removed"
	CodeQuota                Code = "quota"
)

var remediesConstitution = map[Code]string{
	CodeUnknownOrganisation:  "compare with the organisations that meshnode policy show lists",
	CodeUnknownKey:           "compare with the keys that meshnode policy show lists",
	CodeUnreachableThreshold: "let another organisation in first; a mesh has at least two members",
	CodeOrganisationRemoved:  "the organisations voted this one out; it comes back by a proposal, with new keys",
	CodeQuota:                "try again after the next tick, about two seconds; if it lasts, find the node that submits so much or raise the limit (set_limits)",
}
