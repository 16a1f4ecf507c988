package attest

// Codes of what a log, or one entry of it, proves to somebody outside.
const (
	// CodeNotIncluded: a leaf is not in the tree of the checkpoint that it comes with.
	CodeNotIncluded Code = "not_included"
	// CodePolicyIncomplete: changes of the policy were left out.
	CodePolicyIncomplete Code = "policy_incomplete"
	// CodeNotShown: a leaf that others rest on was left out.
	CodeNotShown Code = "not_shown"
	// CodeNotLinked: a proof of inclusion comes without what links it to genesis.
	CodeNotLinked Code = "not_linked"
	// CodeFewVerifiers: too few other organisations affirm a node.
	CodeFewVerifiers Code = "few_verifiers"
	// CodeOwnOrganisation: a verifier is of its subject's own organisation.
	CodeOwnOrganisation Code = "own_organisation"
)

var remediesProof = map[Code]string{
	CodeNotIncluded:      "get the file again from whoever made it; a leaf in it, a path or the checkpoint is another's",
	CodePolicyIncomplete: "have the proof made again from the whole log (meshnode log prove); changes of the policy were left out",
	CodeNotShown:         "have the proof made again from the whole log (meshnode log prove); what it rests on was left out",
	CodeNotLinked:        "get the proof that meshnode log prove makes, or the log itself for meshnode log audit",
	CodeFewVerifiers:     "restore the node's links to nodes of other organisations, which have to attest it",
	CodeOwnOrganisation:  "nothing; an organisation's word on its own node counts for nothing",
}
