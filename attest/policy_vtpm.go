package attest

// VTPMPolicy lists what is demanded of a measured boot.
type VTPMPolicy struct {
	RequireSecureBoot bool
	RequiredPCRs      []int
	Banks             []string // accepted banks, "sha256" or stronger
}

func strictVTPM() *VTPMPolicy {
	return &VTPMPolicy{RequireSecureBoot: true, RequiredPCRs: []int{0, 1, 2, 3, 4, 5, 6, 7}, Banks: []string{"sha256", "sha384"}}
}
