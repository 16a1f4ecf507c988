package sevsnp

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/attestmesh/meshnode/attest"
)

// Offsets of fields of a report. All integers are little-endian.
const (
	offGuestSVN     = 0x004 // u32
	offPolicy       = 0x008 // u64
	offFamilyID     = 0x010 // 16 bytes
	offImageID      = 0x020 // 16 bytes
	offVMPL         = 0x030 // u32
	offAlgorithm    = 0x034 // u32
	offCurrentTCB   = 0x038 // TCB_VERSION, 8 bytes, as the other three
	offPlatformInfo = 0x040 // u64
	offKeyInfo      = 0x048 // u32: AUTHOR_KEY_EN, MASK_CHIP_KEY, SIGNING_KEY in bits 4:2
	offReserved1    = 0x04C
	offReportData   = 0x050 // 64 bytes
	offMeasurement  = 0x090 // 48 bytes
	offHostData     = 0x0C0 // 32 bytes
	offIDKey        = 0x0E0 // 48 bytes
	offAuthorKey    = 0x110 // 48 bytes
	offReportID     = 0x140 // 32 bytes
	offReportIDMA   = 0x160 // 32 bytes
	offReportedTCB  = 0x180
	offCPUID        = 0x188 // family, model, stepping: a byte each, since version 3
	offReserved2    = 0x18B
	offChipID       = 0x1A0 // 64 bytes
	offCommittedTCB = 0x1E0
	offCurrent      = 0x1E8 // build, minor, major and a reserved byte
	offCommitted    = 0x1EC // build, minor, major and a reserved byte
	offLaunchTCB    = 0x1F0
	offLaunchMit    = 0x1F8 // u64, since version 5
	offCurrentMit   = 0x200 // u64, since version 5
	offReserved3    = 0x208
	offSignature    = 0x2A0 // R and S, 72 bytes each; all before it is signed
	offPadding      = offSignature + 2*sizeScalar

	sizeScalar = 72
)

// report is a view of a report's bytes with the fields that Verify needs before the
// signature is verified: until then they serve only to choose and compare a certificate.
type report struct {
	raw         []byte
	version     uint32
	signingKey  string
	product     string // from CPUID in version 3 and later, else ""
	reportedTCB []byte
	chipID      []byte
}

// parseReport views a report of exactly ReportSize bytes.
func parseReport(raw []byte) (report, error) {
	if len(raw) != ReportSize {
		return report{}, fmt.Errorf("report: %d bytes, want %d", len(raw), ReportSize)
	}
	r := report{raw: raw, version: binary.LittleEndian.Uint32(raw), reportedTCB: raw[offReportedTCB:][:8], chipID: raw[offChipID:][:64]}
	switch key := raw[offKeyInfo] >> 2 & 7; key {
	case 0:
		r.signingKey = "VCEK"
	case 1:
		r.signingKey = "VLEK"
	case 7:
		r.signingKey = "none"
	default:
		r.signingKey = fmt.Sprintf("key %d", key)
	}
	if r.version >= 3 {
		r.product = attest.SEVSNPProduct(raw[offCPUID], raw[offCPUID+1])
	}
	return r, nil
}

// signedBy verifies the signature, ECDSA P-384 with SHA-384 over all before it.
func (r report) signedBy(key *ecdsa.PublicKey) error {
	if algorithm := binary.LittleEndian.Uint32(r.raw[offAlgorithm:]); algorithm != 1 {
		return fmt.Errorf("signature algorithm %d, want 1 (ECDSA P-384 with SHA-384)", algorithm)
	}
	if !isZero(r.raw[offPadding:]) {
		return errors.New("bytes behind the signature")
	}
	digest := sha512.Sum384(r.raw[:offSignature])
	if !ecdsa.Verify(key, digest[:], scalar(r.raw[offSignature:]), scalar(r.raw[offSignature+sizeScalar:])) {
		return errors.New("the signature is not by the certificate's key")
	}
	return nil
}

// scalar reads R or S. What is above the curve's order is refused by ecdsa.Verify.
func scalar(b []byte) *big.Int {
	reversed := slices.Clone(b[:sizeScalar])
	slices.Reverse(reversed)
	return new(big.Int).SetBytes(reversed)
}

// surplus names what a signed report says in places that are reserved in its version, or
// "": such a report was made by a firmware that knows more than this release. Bits of the
// guest policy and of PLATFORM_INFO that are reserved are claims, and the policy's matter.
func (r report) surplus() string {
	cpuid, mitigation := offCPUID, offLaunchMit
	if r.version >= 3 {
		cpuid = offReserved2
	}
	if r.version >= 5 {
		mitigation = offReserved3
	}
	for _, reserved := range [][2]int{{offReserved1, offReportData}, {cpuid, offChipID}, {offCurrent + 3, offCommitted},
		{offCommitted + 3, offLaunchTCB}, {mitigation, offSignature}} {
		if !isZero(r.raw[reserved[0]:reserved[1]]) {
			return fmt.Sprintf("bytes %#x to %#x", reserved[0], reserved[1]-1)
		}
	}
	if binary.LittleEndian.Uint32(r.raw[offKeyInfo:])>>5 != 0 {
		return fmt.Sprintf("key info %#x", r.raw[offKeyInfo:][:4])
	}
	return ""
}

// claims reads the fields of a report whose signature was verified.
func (r report) claims(e endorsement) attest.Claims {
	at := func(off, size int) string { return hex.EncodeToString(r.raw[off:][:size]) }
	number := func(off int) uint32 { return binary.LittleEndian.Uint32(r.raw[off:]) }
	long := func(off int) uint64 { return binary.LittleEndian.Uint64(r.raw[off:]) }
	tcb := func(off int) attest.TCB { return decodeTCB(r.raw[off:], e.product) }
	firmware := func(off int) attest.FirmwareVersion {
		return attest.FirmwareVersion{Build: r.raw[off], Minor: r.raw[off+1], Major: r.raw[off+2]}
	}
	policy, keys := long(offPolicy), number(offKeyInfo)
	c := &attest.SEVSNPClaims{
		Version: r.version, Product: e.product,
		Policy: policy, ABI: attest.FirmwareVersion{Minor: uint8(policy), Major: uint8(policy >> 8)},
		SMT: policy>>16&1 != 0, MigrateMA: policy>>18&1 != 0, Debug: policy>>19&1 != 0, SingleSocket: policy>>20&1 != 0,
		CXLAllow: policy>>21&1 != 0, MemAES256XTS: policy>>22&1 != 0, RAPLDis: policy>>23&1 != 0,
		CiphertextHidingDRAM: policy>>24&1 != 0, PageSwapDisable: policy>>25&1 != 0,
		PlatformInfo: long(offPlatformInfo), PlatformInfoBits: attest.SEVSNPPlatformInfo(long(offPlatformInfo)),
		GuestSVN: number(offGuestSVN), FamilyID: at(offFamilyID, 16), ImageID: at(offImageID, 16), VMPL: number(offVMPL),
		HostData: at(offHostData, 32), IDKeyDigest: at(offIDKey, 48), AuthorKeyEn: keys&1 != 0, AuthorKey: at(offAuthorKey, 48),
		ReportID: at(offReportID, 32), ReportIDMA: at(offReportIDMA, 32),
		SigningKey: r.signingKey, CSPID: e.cspID, ChipID: hex.EncodeToString(r.chipID), MaskChipKey: keys&2 != 0,
		CurrentTCB: tcb(offCurrentTCB), ReportedTCB: tcb(offReportedTCB), CommittedTCB: tcb(offCommittedTCB), LaunchTCB: tcb(offLaunchTCB),
		CurrentVersion: firmware(offCurrent), CommittedVersion: firmware(offCommitted),
		LaunchMitVector: long(offLaunchMit), CurrentMitVector: long(offCurrentMit),
	}
	if r.version >= 3 {
		c.CPUID = &attest.CPUID{Family: r.raw[offCPUID], Model: r.raw[offCPUID+1], Stepping: r.raw[offCPUID+2]}
	}
	out := attest.Claims{Kind: attest.KindSEVSNP, Genuine: true, Measurement: at(offMeasurement, 48), ReportData: at(offReportData, 64), SEVSNP: c}
	if !isZero(r.chipID) {
		out.HardwareID = c.ChipID
	}
	return out
}

func isZero(b []byte) bool { return bytes.Count(b, []byte{0}) == len(b) }
