package attest

// Codes of attestation keys that an organisation's enroller vouches for.
const (
	// CodeNotActivated: the TPM did not answer the enroller's challenge.
	CodeNotActivated Code = "not_activated"
	// CodeWrongAttestationKey: the evidence is by another key than the Credential names.
	CodeWrongAttestationKey Code = "wrong_attestation_key"
)

var remediesActivation = map[Code]string{
	CodeNotActivated:        "enrol from the machine that holds the TPM; its answer must come on the connection of the challenge",
	CodeWrongAttestationKey: "enrol again on this machine: a Credential vouches for the attestation key that was activated for it and no other",
}
