package attest

import "time"

// Policy is an Appraisal Policy: which authentic claims are good enough. Its zero value
// admits nothing: a kind without its own section is refused, and so is every measurement
// that no Reference names.
type Policy struct {
	// Epoch of the mesh policy that this was made from; 0 outside a mesh.
	Epoch uint64
	// Kinds admitted at all.
	Kinds []string
	// References are the reference values; with none, the best verdict is "warning"
	// where AllowNoReferences is set (meshnode appraise without --policy), else a denial.
	References        []Reference
	AllowNoReferences bool
	// AllowUnbound accepts claims whose report data was not compared: samples appraised
	// offline. On a connection it stays false.
	AllowUnbound bool
	// Revoked were references once: their code is "revoked", not "measurement_not_allowed".
	Revoked []Reference

	SEVSNP *SEVSNPPolicy
	TDX    *TDXPolicy
	VTPM   *VTPMPolicy
	Sim    *SimPolicy
}

// Reference is one reference value. Zero times are unbounded.
type Reference struct {
	ID          string
	Kind        string
	Measurement string            // lower-case hex
	Registers   map[string]string // all of these must match too
	NotBefore   time.Time
	NotAfter    time.Time
}

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

// TDXPolicy lists what is demanded of a TD beyond its measurement.
type TDXPolicy struct {
	AllowDebug           bool
	RequireSEPTVEDisable bool
	XFAMAllowed          uint64   // bits that may be set
	TCBStatuses          []string // accepted converged statuses; none admits nothing
}

// VTPMPolicy lists what is demanded of a measured boot.
type VTPMPolicy struct {
	RequireSecureBoot bool
	RequiredPCRs      []int
	Banks             []string // accepted banks, "sha256" or stronger
}

// SimPolicy admits simulated evidence; its presence is the admission.
type SimPolicy struct{}

// StrictPolicy is what meshnode appraise uses without --policy: every check on, no
// reference values. TCB floors of zero accept any TCB that its certificate confirms.
func StrictPolicy() Policy {
	return Policy{
		Kinds:             []string{KindSEVSNP, KindTDX, KindVTPM},
		AllowNoReferences: true,
		AllowUnbound:      true,
		SEVSNP: &SEVSNPPolicy{AllowSMT: true, AllowVLEK: true, AllowMaskedID: true, VMPL: []uint32{0, 1, 2, 3},
			MinimumTCB: map[string]TCB{"Milan": {}, "Genoa": {}, "Turin": {}}},
		TDX:  &TDXPolicy{RequireSEPTVEDisable: true, XFAMAllowed: 0x6DBE7, TCBStatuses: []string{"UpToDate"}},
		VTPM: &VTPMPolicy{RequireSecureBoot: true, RequiredPCRs: []int{0, 1, 2, 3, 4, 5, 6, 7}, Banks: []string{"sha256", "sha384"}},
	}
}
