package attest

// Codes of SEV-SNP, and TDX where both know it.
const (
	CodeMigratable         Code = "migratable"
	CodeVMPL               Code = "vmpl"
	CodeSMT                Code = "smt"
	CodeSigningKey         Code = "signing_key"
	CodeMaskedChipID       Code = "masked_chip_id"
	CodeGuestPolicy        Code = "guest_policy"
	CodePlatformInfo       Code = "platform_info"
	CodeProduct            Code = "product_not_allowed"
	CodeChipNotAllowed     Code = "chip_not_allowed"
	CodeIDBlock            Code = "id_block"
	CodeHostData           Code = "host_data"
	CodeProvisional        Code = "provisional_firmware"
	CodeMitigation         Code = "mitigation_missing"
	CodeCertificateRevoked Code = "certificate_revoked"
)

var remediesSEVSNP = map[Code]string{
	CodeMigratable:         "start the guest with migration disabled",
	CodeVMPL:               "make the report at the privilege level the policy names",
	CodeSMT:                "start the guest with a policy that forbids simultaneous multithreading",
	CodeSigningKey:         "have the report signed by a key the policy accepts (VCEK or VLEK)",
	CodeMaskedChipID:       "turn off chip id masking (MASK_CHIP_ID) on the host",
	CodeGuestPolicy:        "start the guest with a guest policy (POLICY) as the appraisal policy demands it",
	CodePlatformInfo:       "change the host's set-up (BIOS, SEV firmware) until PLATFORM_INFO shows what the policy demands",
	CodeProduct:            "run on a product line the policy has floors for, or add its floors to the policy",
	CodeChipNotAllowed:     "run on a machine whose chip the policy lists, or list this one",
	CodeIDBlock:            "start the guest with an ID block that is signed by the keys, and has the ids and SVN, the policy names",
	CodeHostData:           "have the host start the guest with the HOST_DATA the policy names",
	CodeProvisional:        "commit the SEV firmware on the host (SNP_COMMIT) after trying it",
	CodeMitigation:         "update the SEV firmware, apply its mitigations (SNP_VERIFY_MITIGATION), and start the guest again",
	CodeCertificateRevoked: "the vendor revoked the key above this evidence; move to a platform whose keys are valid",
}
