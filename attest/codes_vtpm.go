package attest

// Codes of TPM quotes, event logs and IMA lists.
const (
	CodeSecureBootOff  Code = "secure_boot_off"
	CodePCRSelection   Code = "pcr_selection"
	CodeNoEndorsement  Code = "no_endorsement"
	CodeReplayMismatch Code = "replay_mismatch"
	CodeAKBinding      Code = "ak_binding"
	CodeRestarted      Code = "restarted"
)

var remediesVTPM = map[Code]string{
	CodeSecureBootOff:  "enable Secure Boot in the guest's firmware",
	CodePCRSelection:   "quote the registers the policy requires, in a SHA-256 or stronger bank",
	CodeNoEndorsement:  "trust the attestation key by certificate, activation or a TEE report that names it",
	CodeAKBinding:      "take report and quote from the same machine; the report must name the key that signed the quote",
	CodeRestarted:      "boot the machine anew; it was suspended or hibernated since its registers were measured",
	CodeReplayMismatch: "the log does not explain the registers; fetch log and quote from the same boot",
}
