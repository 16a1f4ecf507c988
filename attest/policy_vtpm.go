package attest

// VTPMPolicy lists what is demanded of a TPM's quote, alone or beside a TEE report.
type VTPMPolicy struct {
	// AKTrust lists what the attestation key may be believed for: AKTrustCertificate,
	// AKTrustActivation, AKTrustReport.
	AKTrust []string `yaml:"ak_trust"`
	// Banks lists accepted PCR banks: "sha256" or stronger.
	Banks []string `yaml:"banks"`
	// RequiredPCRs must be quoted; none admits nothing.
	RequiredPCRs []int `yaml:"required_pcrs"`
	// RequireSecureBoot demands that Secure Boot is on by the event log or, where the TPM
	// is a paravisor's, by what the TEE report covers.
	RequireSecureBoot bool `yaml:"require_secure_boot"`
	// RequireEventLog demands a log that explains the registers. Without one they can be
	// judged by a reference value only.
	RequireEventLog bool `yaml:"require_event_log"`
	// AllowRestarts accepts machines that were suspended or hibernated since they booted.
	AllowRestarts bool `yaml:"allow_restarts"`
}

func strictVTPM() *VTPMPolicy {
	return &VTPMPolicy{AKTrust: []string{AKTrustCertificate, AKTrustActivation, AKTrustReport}, Banks: []string{"sha256", "sha384", "sha512"},
		RequiredPCRs: []int{0, 1, 2, 3, 4, 5, 6, 7}, RequireSecureBoot: true, AllowRestarts: true}
}
