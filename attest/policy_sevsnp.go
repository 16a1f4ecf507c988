package attest

// SEVSNPPolicy lists what is demanded of an SEV-SNP guest beyond its measurement. Its zero
// value admits nothing. Lists of byte strings hold lower-case hex or are ["any"].
type SEVSNPPolicy struct {
	// Bits of the guest policy that weaken the guest, accepted if true. A bit that this
	// release does not know is refused.
	AllowDebug     bool `yaml:"allow_debug"`
	AllowMigrateMA bool `yaml:"allow_migrate_ma"`
	AllowSMT       bool `yaml:"allow_smt"`
	AllowCXL       bool `yaml:"allow_cxl"`
	// Bits of the guest policy that strengthen it, demanded if true.
	RequireSingleSocket     bool `yaml:"require_single_socket"`
	RequireMemAES256XTS     bool `yaml:"require_mem_aes_256_xts"`
	RequireRAPLDis          bool `yaml:"require_rapl_dis"`
	RequireCiphertextHiding bool `yaml:"require_ciphertext_hiding_dram"`
	RequirePageSwapDisable  bool `yaml:"require_page_swap_disable"`
	// MinimumABI is the least ABI that the guest must have asked for; zero is none.
	MinimumABI FirmwareVersion `yaml:"minimum_abi"`

	// PlatformInfoRequired and PlatformInfoAllowed name bits of PLATFORM_INFO as
	// SEVSNPPlatformInfo does: those that must be set (alias_check_complete is the answer to
	// BadRAM; old firmware sets none), and those that may be.
	PlatformInfoRequired []string `yaml:"platform_info_required"`
	PlatformInfoAllowed  []string `yaml:"platform_info_allowed"`

	AllowVLEK     bool     `yaml:"allow_vlek"`
	CSPIDs        []string `yaml:"csp_ids"` // whose VLEKs
	AllowMaskedID bool     `yaml:"allow_masked_id"`
	ChipIDs       []string `yaml:"chip_ids"` // of those that are not masked

	VMPL             []uint32 `yaml:"vmpl"` // accepted levels; none admits nothing
	HostData         []string `yaml:"host_data"`
	FamilyIDs        []string `yaml:"family_ids"`
	ImageIDs         []string `yaml:"image_ids"`
	IDKeyDigests     []string `yaml:"id_key_digests"`
	AuthorKeyDigests []string `yaml:"author_key_digests"`
	MinimumGuestSVN  uint32   `yaml:"minimum_guest_svn"`

	// MinimumTCB is the floor of the reported TCB, which the endorsement key certifies, and
	// of the committed one, below which the host cannot go back. MinimumLaunchTCB is the
	// floor of the TCB under which the guest was started. A product without a floor in any
	// of the three maps is refused.
	MinimumTCB       map[string]TCB             `yaml:"minimum_tcb"`
	MinimumLaunchTCB map[string]TCB             `yaml:"minimum_launch_tcb"`
	MinimumFirmware  map[string]FirmwareVersion `yaml:"minimum_firmware"` // committed
	// AllowProvisionalFirmware accepts a platform that runs firmware which it can go back
	// from: CURRENT_VERSION is not COMMITTED_VERSION.
	AllowProvisionalFirmware bool `yaml:"allow_provisional_firmware"`
	// Bits that the mitigation vectors must have; a report before version 5 has none.
	LaunchMitVector  uint64 `yaml:"launch_mit_vector"`
	CurrentMitVector uint64 `yaml:"current_mit_vector"`

	// RequireCRL demands a current revocation list beside the evidence.
	RequireCRL bool `yaml:"require_crl"`
}

// strictSEVSNP demands what can be demanded without knowing the guest and its host: that
// nothing but the guest reads its memory. Guests that run everywhere allow SMT, clouds mask
// chip ids and try firmware before they commit it, and a revocation list is not there
// unless somebody fetched it.
func strictSEVSNP() *SEVSNPPolicy {
	every := func() []string { return []string{Any} }
	products := func() map[string]TCB { return map[string]TCB{"Milan": {}, "Genoa": {}, "Turin": {}} }
	return &SEVSNPPolicy{
		AllowSMT: true, PlatformInfoRequired: []string{}, PlatformInfoAllowed: every(),
		AllowVLEK: true, CSPIDs: every(), AllowMaskedID: true, ChipIDs: every(),
		VMPL: []uint32{0, 1, 2, 3}, HostData: every(), FamilyIDs: every(), ImageIDs: every(),
		IDKeyDigests: every(), AuthorKeyDigests: every(),
		MinimumTCB: products(), MinimumLaunchTCB: products(),
		MinimumFirmware:          map[string]FirmwareVersion{"Milan": {}, "Genoa": {}, "Turin": {}},
		AllowProvisionalFirmware: true,
	}
}
