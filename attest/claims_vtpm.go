package attest

// Why an attestation key is believed.
const (
	// AKTrustCertificate: its certificate chains to one of the scheme's roots.
	AKTrustCertificate = "certificate"
	// AKTrustActivation: an attestation CA, the organisation's enroller, activated a
	// credential for it in a TPM whose endorsement key is certified, and says so.
	AKTrustActivation = "activation"
	// AKTrustReport: the report of the TEE in which the TPM runs names it.
	AKTrustReport = "report"
)

// VTPMClaims are facts of a TPM quote and of the parts of its event log that the quote
// authenticates.
type VTPMClaims struct {
	// AKTrust says why the attestation key is believed, one of the AKTrust constants; ""
	// is that nobody vouches for it.
	AKTrust       string `json:"ak_trust,omitempty"`
	AKDigest      string `json:"ak_digest"` // SHA-256 of the SubjectPublicKeyInfo
	Nonce         string `json:"nonce"`     // the quote's extra data, hex
	NonceVerified bool   `json:"nonce_verified"`
	Bank          string `json:"bank"`
	PCRs          []int  `json:"pcrs"`
	LogReplayed   bool   `json:"log_replayed"`
	SecureBoot    *bool  `json:"secure_boot,omitempty"`
	// ResetCount counts the boots of the TPM's life, RestartCount the suspends and
	// hibernations since the last; ClockSafe is false after an unorderly shutdown.
	ResetCount      uint32 `json:"reset_count"`
	RestartCount    uint32 `json:"restart_count"`
	ClockSafe       bool   `json:"clock_safe"`
	FirmwareVersion string `json:"firmware_version"` // as its vendor numbers it, hex
	// Boot and IMA are nil where the evidence has no event log or no list.
	Boot *BootFacts `json:"boot,omitempty"`
	IMA  *IMAFacts  `json:"ima,omitempty"`
	// Paravisor is what a TEE's report vouches for besides the key.
	Paravisor *ParavisorClaims `json:"paravisor,omitempty"`
}

// ParavisorClaims are what the paravisor below a guest says of it (package hcl). What it
// does not say is nil or "".
type ParavisorClaims struct {
	RuntimeData    string `json:"runtime_data"` // digest of all that it said, hex
	SecureBoot     *bool  `json:"secure_boot,omitempty"`
	TPMEnabled     *bool  `json:"tpm_enabled,omitempty"`
	TPMPersisted   *bool  `json:"tpm_persisted,omitempty"`
	ConsoleEnabled *bool  `json:"console_enabled,omitempty"`
	VMUniqueID     string `json:"vm_unique_id,omitempty"`
	UserData       string `json:"user_data,omitempty"`
}

// Activated returns c with AKTrust "activation" if its attestation key is the one whose
// digest a verified Credential names: lower-case hex of SHA-256 over the key's
// SubjectPublicKeyInfo. A key that is believed already, another key, an empty digest and
// claims without a TPM are returned as they are. It is for callers that hold a Credential
// whose signer activates keys; the scheme alone cannot know.
func (c Claims) Activated(akDigest string) Claims {
	if !c.Genuine || c.VTPM == nil || c.VTPM.AKTrust != "" || akDigest == "" || c.VTPM.AKDigest != akDigest {
		return c
	}
	v := *c.VTPM
	v.AKTrust = AKTrustActivation
	c.VTPM = &v
	return c
}
