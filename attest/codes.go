package attest

import "fmt"

// Code is an enumerated reason. The same code stands in verdicts, log leaves, metrics,
// refusals on the wire, command output and the documentation.
type Code string

// The codes; those of one kind of evidence are in a file of that kind. Each has one line in
// the remedies beside it.
const (
	CodeMalformed             Code = "malformed"
	CodeNotGenuine            Code = "not_genuine"
	CodeNotBound              Code = "not_bound"
	CodeKindNotAllowed        Code = "kind_not_allowed"
	CodeMeasurementNotAllowed Code = "measurement_not_allowed"
	CodeRevoked               Code = "revoked"
	CodeExpired               Code = "expired"
	CodeNoReferenceValues     Code = "no_reference_values"
	CodePolicyMissing         Code = "policy_missing"
	CodeDebug                 Code = "debug"
	CodeTCBBelowFloor         Code = "tcb_below_floor"
	CodeCertificateMismatch   Code = "certificate_mismatch"
	CodeCollateralMissing     Code = "collateral_missing"
	CodeCollateralStale       Code = "collateral_stale"
	CodeSimulated             Code = "simulated"
	CodeUnsupported           Code = "unsupported"
	CodeWrongMesh             Code = "wrong_mesh"
	CodeWrongIncarnation      Code = "wrong_incarnation"
	CodeWrongPeer             Code = "wrong_peer"
	CodeWrongOrganisation     Code = "wrong_organisation"
	CodeProgramNotAllowed     Code = "program_not_allowed"
	CodeWrongVersion          Code = "wrong_version"
	CodeReflection            Code = "reflection"
	CodeNoCredential          Code = "no_credential"
	CodeCredentialExpired     Code = "credential_expired"
	CodeRetired               Code = "retired"
	CodeNotStarted            Code = "not_started"
	CodeNotSeat               Code = "not_seat"
	CodeBehind                Code = "behind"
	CodeStale                 Code = "stale"
	CodeQuarantined           Code = "quarantined"
	CodeSuspended             Code = "suspended"
	CodeUnavailable           Code = "unavailable"
	CodeBusy                  Code = "busy"
	CodeShutdown              Code = "shutdown"
	CodeDuplicate             Code = "duplicate"
	CodeProtocol              Code = "protocol"
	CodeSchema                Code = "schema"
	CodeNonFinite             Code = "non_finite"
	CodeWeight                Code = "bad_weight"
	CodeRootMismatch          Code = "root_mismatch"
	CodeStaleRound            Code = "stale_round"
	CodeUnknownJob            Code = "unknown_job"
	CodeJobEnded              Code = "job_ended"
	CodeJobNotSigned          Code = "job_not_signed"
	CodeNotParticipant        Code = "not_participant"
	CodeNotEligible           Code = "not_eligible"
	CodeNotAggregator         Code = "not_aggregator"
	CodeBelowMinimum          Code = "below_minimum"
	CodeDuplicateUpdate       Code = "duplicate_update"
	CodeBadSignature          Code = "bad_signature"
	CodeResultMismatch        Code = "result_mismatch"
	CodeRoundFailed           Code = "round_failed"
	// Refusals of services.
	CodeRuntimeChanged Code = "runtime_changed"
	CodeUnknownService Code = "unknown_service"
	CodeNoSandbox      Code = "no_sandbox"
	CodeSwap           Code = "swap"
	// Refusals of ordered commands.
	CodeThreshold         Code = "threshold"
	CodeWrongSigner       Code = "wrong_signer"
	CodeStaleBase         Code = "stale_base"
	CodeReplayed          Code = "replayed"
	CodeProposalExpired   Code = "proposal_expired"
	CodeQuorumLoss        Code = "quorum_loss"
	CodeUnknownEntry      Code = "unknown_entry"
	CodeUnknownNode       Code = "unknown_node"
	CodeUnknownSuspension Code = "unknown_suspension"
	CodeSuspensionEnded   Code = "suspension_ended"
	CodeLimit             Code = "limit"
)

// remedies says what a person does about a code.
var remedies = united(remediesCommon, remediesSEVSNP, remediesTDX, remediesVTPM, remediesBoot, remediesActivation, remediesConstitution, remediesRecovery, remediesSeats, remediesPlatform, remediesProof, remediesLog)

// united merges maps that share no code.
func united(parts ...map[Code]string) map[Code]string {
	out := map[Code]string{}
	for _, p := range parts {
		for c, remedy := range p {
			if _, twice := out[c]; twice {
				panic("attest: two remedies for " + string(c))
			}
			out[c] = remedy
		}
	}
	return out
}

var remediesCommon = map[Code]string{
	CodeMalformed:             "check that the file or peer speaks this format and version",
	CodeNotGenuine:            "the evidence was not signed by the claimed hardware; fetch it again from the machine itself",
	CodeNotBound:              "the evidence was made for another connection; if it repeats, somebody is relaying",
	CodeKindNotAllowed:        "run on a platform whose kind genesis admits for this role",
	CodeMeasurementNotAllowed: "propose the measurement (meshnode policy approve DRAFT, then policy propose) or run an allowed release",
	CodeRevoked:               "upgrade to an allowed release; the organisations voted this measurement out",
	CodeExpired:               "the allowed-set entry is outside its validity; propose a newer one",
	CodeNoReferenceValues:     "give reference values with --policy to decide whether this software is wanted",
	CodePolicyMissing:         "the policy has no section for this kind of evidence; add it",
	CodeDebug:                 "start the guest with debugging disabled",
	CodeTCBBelowFloor:         "update the platform firmware and microcode, then fetch new certificates",
	CodeCertificateMismatch:   "fetch the certificate that belongs to this chip and this TCB",
	CodeCollateralMissing:     "fetch the vendor's certificates or collateral (meshnode collateral fetch) or put them beside the evidence",
	CodeCollateralStale:       "fetch newer collateral from the vendor (meshnode collateral fetch)",
	CodeSimulated:             "simulated evidence protects nothing from its host; use it for trials only",
	CodeUnsupported:           "this release cannot verify this product or format version; use a newer one",
	CodeWrongMesh:             "give both nodes the same genesis file",
	CodeWrongIncarnation:      "fetch the newest policy state; the mesh has been recovered since",
	CodeWrongOrganisation:     "connect to a node of an organisation that your policy names, or name this one in it",
	CodeProgramNotAllowed:     "ask the owner which program this is; name its digest in your policy if you trust it",
	CodeWrongPeer:             "the address answers with another identity; refresh the peer's URL",
	CodeWrongVersion:          "run releases that speak a common protocol version",
	CodeReflection:            "a peer returned our own messages; it is not an honest node",
	CodeNoCredential:          "enrol the node with its organisation's enroller",
	CodeCredentialExpired:     "renew the credential at the organisation's enroller",
	CodeRetired:               "a newer boot of this node is known, or its organisation retired it; stop the old process",
	CodeNotStarted:            "wait until every founding organisation's seat is up and Bootstrap is committed",
	CodeNotSeat:               "only seats speak this protocol",
	CodeBehind:                "fetch the newest policy state and connect again",
	CodeStale:                 "restore the connection to a majority of the seats",
	CodeQuarantined:           "restore this node's connection to the seats; its verdict on the peer must get into the published log",
	CodeSuspended:             "wait until the suspension ends, or have the organisations lift it (meshnode policy lift)",
	CodeUnavailable:           "try again when the service answers",
	CodeBusy:                  "try again later",
	CodeShutdown:              "the peer is stopping",
	CodeDuplicate:             "the other connection to this peer stays in use",
	CodeProtocol:              "the peer broke the protocol; compare versions",
	CodeSchema:                "train the model that the round names; its tensors keep their names, types and shapes",
	CodeNonFinite:             "lower the learning rate or look for broken rows; NaN and infinity are never averaged",
	CodeWeight:                "report the number of rows trained on; the job bounds it",
	CodeRootMismatch:          "fetch the file again; its bytes are not those that were signed",
	CodeStaleRound:            "fetch the current round and attempt; this one is closed",
	CodeUnknownJob:            "submit the job first (meshnode job submit)",
	CodeJobEnded:              "submit a new job; this one has committed its last round or failed",
	CodeJobNotSigned:          "have an organisation that takes part sign the job with its govern key",
	CodeNotParticipant:        "wait for the next round; this node was not in the round when it opened",
	CodeNotEligible:           "restore the node's attestation; it may not take part in rounds now",
	CodeNotAggregator:         "let the aggregator that the round names close and commit it",
	CodeBelowMinimum:          "bring more trainers up or lower min_participants in a new job",
	CodeDuplicateUpdate:       "send one update for each round and attempt",
	CodeBadSignature:          "the statement was not signed by the node it names",
	CodeResultMismatch:        "the sum does not give this result; ask the aggregator's organisation for the evidence",
	CodeRoundFailed:           "cure the cause of the last attempt and submit the job again under another seed",
	CodeRuntimeChanged:        "appraise the node again; it has started something since",
	CodeUnknownService:        "meshnode service list on the node names what it serves",
	CodeNoSandbox:             "install bubblewrap 0.8 or newer (apt-get install bubblewrap) and allow user namespaces",
	CodeSwap:                  "turn swap off (swapoff -a); what is in memory could be written to a disk",
	CodeThreshold:             "collect signatures of more organisations (meshnode policy approve), then propose again",
	CodeWrongSigner:           "sign with a key that genesis lists for this role and organisation",
	CodeStaleBase:             "the allowed set was widened since; make the proposal anew with meshnode policy rebase",
	CodeReplayed:              "this was ordered before; there is nothing to do",
	CodeProposalExpired:       "make the proposal again with a later expiry",
	CodeQuorumLoss:            "move the seats to another measurement first, or set confirm_quorum_loss in the proposal",
	CodeUnknownEntry:          "compare with the entries that meshnode policy show lists",
	CodeUnknownNode:           "compare with the nodes that meshnode peers lists",
	CodeUnknownSuspension:     "compare with the suspensions that meshnode policy show lists",
	CodeSuspensionEnded:       "nothing is suspended by it any more; suspend again if that is still needed",
	CodeLimit:                 "remove what is no longer needed and try again",
}

// Codes returns every code that has a remedy, for documentation and tests.
func Codes() []Code {
	out := make([]Code, 0, len(remedies))
	for c := range remedies {
		out = append(out, c)
	}
	return out
}

// Reason is one finding: what was judged, what was got, what was wanted, what to do.
type Reason struct {
	Code   Code   `json:"code"`
	Claim  string `json:"claim,omitempty"`
	Got    string `json:"got,omitempty"`
	Want   string `json:"want,omitempty"`
	Remedy string `json:"remedy,omitempty"`
}

// NewReason returns a reason with the remedy of its code.
func NewReason(code Code, claim, got, want string) Reason {
	return Reason{code, claim, got, want, remedies[code]}
}

// String returns "code: claim: got G, want W".
func (r Reason) String() string {
	s := string(r.Code)
	if r.Claim != "" {
		s += ": " + r.Claim
	}
	if r.Got != "" || r.Want != "" {
		s += fmt.Sprintf(": got %s, want %s", orDash(r.Got), orDash(r.Want))
	}
	return s
}

func orDash(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}
