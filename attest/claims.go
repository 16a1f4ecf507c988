package attest

import "time"

// Claims are facts that a Scheme established as authentic. The zero value is not genuine.
// Claims are kept with the verdict so that a later policy can judge them again without a
// new quote; they hold no secrets, but hardware ids in them are private to members.
type Claims struct {
	Kind    string `json:"kind"`
	Genuine bool   `json:"genuine"`
	// Bound reports whether the report data was compared and equal.
	Bound bool `json:"bound"`
	// Measurement is the kind's primary reference value in lower-case hex: SEV-SNP
	// MEASUREMENT, TDX MRTD, for vtpm the quoted PCR digest, for sim the executable.
	Measurement string `json:"measurement"`
	ReportData  string `json:"report_data,omitempty"`
	// Registers holds further measured values by the vendor's name: "rtmr0", "pcr4".
	Registers map[string]string `json:"registers,omitempty"`
	// HardwareID is the chip id, PPID or EK digest in hex; private.
	HardwareID string    `json:"hardware_id,omitempty"`
	At         time.Time `json:"at"`

	SEVSNP *SEVSNPClaims `json:"sevsnp,omitempty"`
	TDX    *TDXClaims    `json:"tdx,omitempty"`
	VTPM   *VTPMClaims   `json:"vtpm,omitempty"`
	Sim    *SimClaims    `json:"sim,omitempty"`
}

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

// TDXClaims are fields of an authentic TDX quote, under Intel's names (TDX DCAP quoting
// library API, TD Quote Body).
type TDXClaims struct {
	QuoteVersion  uint16 `json:"quote_version"`
	TEETCBSVN     string `json:"tee_tcb_svn"`
	MRSEAM        string `json:"mrseam"`
	MRSignerSEAM  string `json:"mrsignerseam"`
	TDAttributes  string `json:"td_attributes"`
	Debug         bool   `json:"debug"`
	SEPTVEDisable bool   `json:"sept_ve_disable"`
	XFAM          string `json:"xfam"`
	MRConfigID    string `json:"mrconfigid"`
	MROwner       string `json:"mrowner"`
	MROwnerConfig string `json:"mrownerconfig"`
	FMSPC         string `json:"fmspc,omitempty"`
	// TCBStatus is Intel's status of platform, TDX module and quoting enclave converged,
	// "NoMatchingLevel", or "" where no collateral was given: cannot decide.
	TCBStatus string `json:"tcb_status,omitempty"`
	// CollateralStale reports that collateral was given but is not valid at the time.
	CollateralStale bool     `json:"collateral_stale,omitempty"`
	Advisories      []string `json:"advisories,omitempty"`
	TCBDate         string   `json:"tcb_date,omitempty"`
}

// VTPMClaims are facts of a TPM quote and of the parts of its event log that the quote
// authenticates.
type VTPMClaims struct {
	// AKTrust says why the attestation key is believed: "" (it is not), "certificate".
	AKTrust       string `json:"ak_trust,omitempty"`
	AKDigest      string `json:"ak_digest"` // SHA-256 of the SubjectPublicKeyInfo
	Bank          string `json:"bank"`
	PCRs          []int  `json:"pcrs"`
	LogReplayed   bool   `json:"log_replayed"`
	SecureBoot    *bool  `json:"secure_boot,omitempty"`
	ResetCount    uint32 `json:"reset_count"`
	RestartCount  uint32 `json:"restart_count"`
	NonceVerified bool   `json:"nonce_verified"`
}

// SimClaims come from a sim platform: trials only, it protects nothing from its host.
type SimClaims struct {
	Platform string `json:"platform"` // digest of the platform's root key
}
