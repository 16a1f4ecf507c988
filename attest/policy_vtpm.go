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
	// AllowRestarts accepts machines that were suspended or hibernated since they booted.
	AllowRestarts bool `yaml:"allow_restarts"`
	// Boot and IMA are what is demanded of the logs behind the registers.
	Boot BootPolicy `yaml:"boot"`
	IMA  IMAPolicy  `yaml:"ima"`
}

func strictVTPM() *VTPMPolicy {
	return &VTPMPolicy{AKTrust: []string{AKTrustCertificate, AKTrustActivation, AKTrustReport}, Banks: []string{"sha256", "sha384", "sha512"},
		RequiredPCRs: []int{0, 1, 2, 3, 4, 5, 6, 7}, AllowRestarts: true, Boot: StrictBoot(), IMA: StrictIMA()}
}
