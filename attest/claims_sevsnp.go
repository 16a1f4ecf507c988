package attest

// SEVSNPClaims are fields of an authentic SEV-SNP report, under AMD's names (SEV Secure
// Nested Paging Firmware ABI, table "ATTESTATION_REPORT").
type SEVSNPClaims struct {
	Version      uint32 `json:"version"`
	Product      string `json:"product"`
	GuestSVN     uint32 `json:"guest_svn"`
	Policy       uint64 `json:"policy"`
	Debug        bool   `json:"debug"`
	MigrateMA    bool   `json:"migrate_ma"`
	SMT          bool   `json:"smt"`
	VMPL         uint32 `json:"vmpl"`
	PlatformInfo uint64 `json:"platform_info"`
	HostData     string `json:"host_data"`
	IDKeyDigest  string `json:"id_key_digest"`
	AuthorKey    string `json:"author_key_digest"`
	ChipID       string `json:"chip_id"`
	SigningKey   string `json:"signing_key"` // VCEK or VLEK
	ReportedTCB  TCB    `json:"reported_tcb"`
	CommittedTCB TCB    `json:"committed_tcb"`
	LaunchTCB    TCB    `json:"launch_tcb"`
	CurrentTCB   TCB    `json:"current_tcb"`
}

// TCB is an SEV-SNP TCB_VERSION, decoded by component; FMC exists on Turin only.
type TCB struct {
	FMC        uint8 `json:"fmc,omitempty"`
	BootLoader uint8 `json:"boot_loader"`
	TEE        uint8 `json:"tee"`
	SNP        uint8 `json:"snp"`
	Microcode  uint8 `json:"microcode"`
}
