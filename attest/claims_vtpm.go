package attest

// VTPMClaims are facts of a TPM quote and of the parts of its event log that the quote
// authenticates.
type VTPMClaims struct {
	// AKTrust says why the attestation key is believed: "" (it is not), "certificate".
	AKTrust       string `json:"ak_trust,omitempty"`
	AKDigest      string `json:"ak_digest"` // SHA-256 of the SubjectPublicKeyInfo
	Bank          string `json:"bank"`
	PCRs          []int  `json:"pcrs"`
	LogReplayed   bool   `json:"log_replayed"`
	SecureBoot    *bool  `json:"secure_boot,omitempty"`
	ResetCount    uint32 `json:"reset_count"`
	RestartCount  uint32 `json:"restart_count"`
	NonceVerified bool   `json:"nonce_verified"`
}
