package attest

// SEVSNPPolicy lists what is demanded of an SEV-SNP guest beyond its measurement.
type SEVSNPPolicy struct {
	AllowDebug     bool
	AllowMigrateMA bool
	AllowSMT       bool
	AllowVLEK      bool
	AllowMaskedID  bool
	VMPL           []uint32       // accepted levels; none admits nothing
	MinimumTCB     map[string]TCB // by product; a product without a floor is refused
}

func strictSEVSNP() *SEVSNPPolicy {
	return &SEVSNPPolicy{AllowSMT: true, AllowVLEK: true, AllowMaskedID: true, VMPL: []uint32{0, 1, 2, 3},
		MinimumTCB: map[string]TCB{"Milan": {}, "Genoa": {}, "Turin": {}}}
}
