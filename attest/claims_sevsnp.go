package attest

import (
	"fmt"
	"time"
)

// SEVSNPClaims are all fields of an authentic SEV-SNP report, under AMD's names (AMD 56860,
// "SEV Secure Nested Paging Firmware ABI Specification", table "ATTESTATION_REPORT
// Structure"), and what its certificate adds. REPORT_DATA and MEASUREMENT are in Claims.
// Byte strings are lower-case hex.
type SEVSNPClaims struct {
	Version uint32 `json:"version"`
	// Product is the product line that the certificate's issuer names: Milan, Genoa, Turin.
	Product string `json:"product"`
	// CPUID is the part; reports of version 2 do not say it.
	CPUID *CPUID `json:"cpuid,omitempty"`

	// Policy is the guest policy as a number; the fields below it are its bits.
	Policy               uint64          `json:"policy"`
	ABI                  FirmwareVersion `json:"abi"` // the least that the guest asked for; no build
	SMT                  bool            `json:"smt"`
	MigrateMA            bool            `json:"migrate_ma"`
	Debug                bool            `json:"debug"`
	SingleSocket         bool            `json:"single_socket"`
	CXLAllow             bool            `json:"cxl_allow"`
	MemAES256XTS         bool            `json:"mem_aes_256_xts"`
	RAPLDis              bool            `json:"rapl_dis"`
	CiphertextHidingDRAM bool            `json:"ciphertext_hiding_dram"`
	PageSwapDisable      bool            `json:"page_swap_disable"`

	// PlatformInfo as a number, and the names of its bits that are set.
	PlatformInfo     uint64   `json:"platform_info"`
	PlatformInfoBits []string `json:"platform_info_bits"`

	GuestSVN    uint32 `json:"guest_svn"`
	FamilyID    string `json:"family_id"`
	ImageID     string `json:"image_id"`
	VMPL        uint32 `json:"vmpl"`
	HostData    string `json:"host_data"`
	IDKeyDigest string `json:"id_key_digest"`
	AuthorKeyEn bool   `json:"author_key_en"`
	AuthorKey   string `json:"author_key_digest"`
	ReportID    string `json:"report_id"`
	ReportIDMA  string `json:"report_id_ma"`

	SigningKey string `json:"signing_key"`      // VCEK or VLEK
	CSPID      string `json:"csp_id,omitempty"` // whose VLEK it is
	// ChipID is zero where the host masks it; MaskChipKey is set where it forbids signing.
	ChipID      string `json:"chip_id"`
	MaskChipKey bool   `json:"mask_chip_key"`

	CurrentTCB       TCB             `json:"current_tcb"`
	ReportedTCB      TCB             `json:"reported_tcb"`
	CommittedTCB     TCB             `json:"committed_tcb"`
	LaunchTCB        TCB             `json:"launch_tcb"`
	CurrentVersion   FirmwareVersion `json:"current_version"`
	CommittedVersion FirmwareVersion `json:"committed_version"`
	// Mitigation vectors exist in reports of version 5.
	LaunchMitVector  uint64 `json:"launch_mit_vector"`
	CurrentMitVector uint64 `json:"current_mit_vector"`

	// CRL says what AMD's revocation list says of the chain: "" none was given, CRLGood,
	// CRLStale none is of this time. A revoked chain has no claims.
	CRL           string     `json:"crl,omitempty"`
	CRLNextUpdate *time.Time `json:"crl_next_update,omitempty"`
	// CertificateNotAfter is when the first certificate of the chain expires.
	CertificateNotAfter time.Time `json:"certificate_not_after"`
}

// The answers of a revocation list.
const (
	CRLGood  = "good"
	CRLStale = "stale"
)

// sevsnpPlatformInfo are the bits of PLATFORM_INFO by position; "" is reserved.
var sevsnpPlatformInfo = [64]string{"smt_en", "tsme_en", "ecc_en", "rapl_dis", "ciphertext_hiding_dram_en",
	"alias_check_complete", "", "tio_en"}

// SEVSNPPlatformInfo names the bits that are set in a PLATFORM_INFO, "bitN" where AMD 56860
// (table "PLATFORM_INFO Field") has no name for bit N.
func SEVSNPPlatformInfo(info uint64) []string { return bitNames(&sevsnpPlatformInfo, info) }

func bitNames(names *[64]string, bits uint64) []string {
	out := []string{}
	for n, name := range names {
		if bits>>n&1 == 0 {
			continue
		}
		if name == "" {
			name = fmt.Sprintf("bit%d", n)
		}
		out = append(out, name)
	}
	return out
}

// CPUID identifies a part: family and model with their extensions added, and stepping.
type CPUID struct {
	Family   uint8 `json:"family" yaml:"family"`
	Model    uint8 `json:"model" yaml:"model"`
	Stepping uint8 `json:"stepping" yaml:"stepping"`
}

// String returns "family-model-stepping" in decimal.
func (c CPUID) String() string { return fmt.Sprintf("%d-%d-%d", c.Family, c.Model, c.Stepping) }

// FirmwareVersion is the version of the SEV firmware, or the part of it that its ABI has.
type FirmwareVersion struct {
	Major uint8 `json:"major" yaml:"major"`
	Minor uint8 `json:"minor" yaml:"minor"`
	Build uint8 `json:"build" yaml:"build,omitempty"`
}

// String returns "major.minor.build".
func (v FirmwareVersion) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Build) }

// before reports whether v is older than u.
func (v FirmwareVersion) before(u FirmwareVersion) bool {
	if v.Major != u.Major {
		return v.Major < u.Major
	}
	if v.Minor != u.Minor {
		return v.Minor < u.Minor
	}
	return v.Build < u.Build
}

// TCB is an SEV-SNP TCB_VERSION, decoded by component; FMC exists on Turin only.
type TCB struct {
	FMC        uint8 `json:"fmc,omitempty" yaml:"fmc,omitempty"`
	BootLoader uint8 `json:"boot_loader" yaml:"boot_loader"`
	TEE        uint8 `json:"tee" yaml:"tee"`
	SNP        uint8 `json:"snp" yaml:"snp"`
	Microcode  uint8 `json:"microcode" yaml:"microcode"`
}

// component is one part of a TCB under the name of AMD's key distribution service.
type component struct {
	name  string
	value uint8
}

func (t TCB) components() []component {
	return []component{{"fmc", t.FMC}, {"bl", t.BootLoader}, {"tee", t.TEE}, {"snp", t.SNP}, {"ucode", t.Microcode}}
}

// String returns the components under the names of AMD's key distribution service.
func (t TCB) String() string {
	s := fmt.Sprintf("bl=%d tee=%d snp=%d ucode=%d", t.BootLoader, t.TEE, t.SNP, t.Microcode)
	if t.FMC != 0 {
		s = fmt.Sprintf("fmc=%d ", t.FMC) + s
	}
	return s
}
