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

	// Platforms is what a mesh demands of all hardware.
	Platforms Platforms
}

// Any, as the only member of a list of accepted values, accepts every value: the policy says
// that it does not rely on the field. An empty list accepts none.
const Any = "any"

// anything reports whether a list of accepted values says so.
func anything(list []string) bool { return len(list) == 1 && list[0] == Any }

// Reference is one reference value. Zero times are unbounded.
type Reference struct {
	ID          string `yaml:"id,omitempty"`
	Kind        string `yaml:"kind"`
	Measurement string `yaml:"measurement"` // lower-case hex
	// Registers must all match too. For a composite some must be of the TPM, lest the best
	// verdict be "warning": the measurement is the paravisor's, under any guest.
	Registers map[string]string `yaml:"registers,omitempty"`
	// IMA lists the digests ("sha256:HEX") of all files that the IMA list may show, and takes
	// the place of the policy's own list; with none, files are judged by the policy alone.
	IMA       []string  `yaml:"ima,omitempty"`
	NotBefore time.Time `yaml:"not_before,omitempty"`
	NotAfter  time.Time `yaml:"not_after,omitempty"`
	// Platform is what a mesh demands of the hardware under this software; files have none.
	Platform ReferencePlatform `yaml:"-"`
}

// ReferencePlatform is what is demanded of the hardware under one reference value, besides
// what the policy demands. Its zero value demands nothing.
type ReferencePlatform struct {
	// MinimumTCB are floors by product line of SEV-SNP, as Floor has them; where there is one,
	// the other lines are refused.
	MinimumTCB map[string]TCB
	// TDX demands more of TDX platforms, but that its TCBStatuses, where there are any, take
	// the place of the policy's.
	TDX TDXDemand
	// Hardware must have the chip; nil is every chip.
	Hardware *HardwareList
}

// SimPolicy admits simulated evidence; its presence is the admission.
type SimPolicy struct{}

// StrictPolicy is what meshnode appraise uses without --policy: every check on, no
// reference values. TCB floors of zero accept any TCB that its certificate confirms.
func StrictPolicy() Policy {
	return Policy{
		Kinds:             []string{KindSEVSNP, KindTDX, KindVTPM, KindSEVSNP + "," + KindVTPM, KindTDX + "," + KindVTPM},
		AllowNoReferences: true,
		AllowUnbound:      true,
		SEVSNP:            strictSEVSNP(),
		TDX:               strictTDX(),
		VTPM:              strictVTPM(),
	}
}
