package attest

// Codes of SEV-SNP, and TDX where both know it.
const (
	CodeMigratable   Code = "migratable"
	CodeVMPL         Code = "vmpl"
	CodeSMT          Code = "smt"
	CodeSigningKey   Code = "signing_key"
	CodeMaskedChipID Code = "masked_chip_id"
)

var remediesSEVSNP = map[Code]string{
	CodeMigratable:   "start the guest with migration disabled",
	CodeVMPL:         "make the report at the privilege level the policy names",
	CodeSMT:          "start the guest with a policy that forbids simultaneous multithreading",
	CodeSigningKey:   "have the report signed by a key the policy accepts (VCEK or VLEK)",
	CodeMaskedChipID: "turn off chip id masking (MASK_CHIP_ID) on the host",
}
