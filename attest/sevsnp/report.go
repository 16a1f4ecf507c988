package sevsnp

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/attestmesh/meshnode/attest"
)

// report is a view of the fields Verify uses. Before the signature is verified its values
// serve only to choose and to compare the certificate.
type report struct {
	raw         []byte
	version     uint32
	signingKey  string
	product     string // from CPUID in version 3 and later, else ""
	reportedTCB []byte
	chipID      []byte
}

// parseReport splits a report of exactly ReportSize bytes.
func parseReport(raw []byte) (report, error) {
	if len(raw) != ReportSize {
		return report{}, fmt.Errorf("report: %d bytes, want %d", len(raw), ReportSize)
	}
	r := report{raw: raw, version: binary.LittleEndian.Uint32(raw), reportedTCB: raw[0x180:0x188], chipID: raw[0x1A0:0x1E0]}
	switch key := raw[0x48] >> 2 & 7; key {
	case 0:
		r.signingKey = "VCEK"
	case 1:
		r.signingKey = "VLEK"
	default:
		r.signingKey = fmt.Sprintf("key %d", key)
	}
	if r.version >= 3 {
		r.product = productOf(raw[0x188], raw[0x189])
	}
	return r, nil
}

// productOf maps CPU family and model to a product line (AMD 57230, "Determining the
// Product Name"); unknown parts get a name no certificate has.
func productOf(family, model byte) string {
	switch {
	case family == 0x19 && model <= 0x0f:
		return Milan
	case family == 0x19 && (model >= 0x10 && model <= 0x1f || model >= 0xa0 && model <= 0xaf):
		return Genoa
	case family == 0x1a && model <= 0x11:
		return Turin
	default:
		return fmt.Sprintf("family %#x model %#x", family, model)
	}
}

// libraryKnows reports whether go-sev-guest can verify reports of this part: it knows
// neither Turin's certificates nor the models of Zen 4c.
func (r report) libraryKnows(product string) bool {
	if product != Milan && product != Genoa {
		return false
	}
	return r.version < 3 || r.raw[0x189] == 0x01 || r.raw[0x189] == 0x11
}

// decodeTCB reads the 8 bytes of a TCB_VERSION, whose layout Turin changed.
func decodeTCB(b []byte, product string) attest.TCB {
	if product == Turin {
		return attest.TCB{FMC: b[0], BootLoader: b[1], TEE: b[2], SNP: b[3], Microcode: b[7]}
	}
	return attest.TCB{BootLoader: b[0], TEE: b[1], SNP: b[6], Microcode: b[7]}
}

// claims reads the fields of a report whose signature was verified.
func (r report) claims(product string) attest.Claims {
	raw := r.raw
	policy := binary.LittleEndian.Uint64(raw[0x08:])
	c := &attest.SEVSNPClaims{
		Version: r.version, Product: product,
		GuestSVN: binary.LittleEndian.Uint32(raw[0x04:]), Policy: policy,
		SMT: policy>>16&1 != 0, MigrateMA: policy>>18&1 != 0, Debug: policy>>19&1 != 0,
		VMPL: binary.LittleEndian.Uint32(raw[0x30:]), PlatformInfo: binary.LittleEndian.Uint64(raw[0x40:]),
		HostData: hex.EncodeToString(raw[0xC0:0xE0]), IDKeyDigest: hex.EncodeToString(raw[0xE0:0x110]),
		AuthorKey: hex.EncodeToString(raw[0x110:0x140]), ChipID: hex.EncodeToString(r.chipID), SigningKey: r.signingKey,
		ReportedTCB: decodeTCB(r.reportedTCB, product), CommittedTCB: decodeTCB(raw[0x1E0:0x1E8], product),
		LaunchTCB: decodeTCB(raw[0x1F0:0x1F8], product), CurrentTCB: decodeTCB(raw[0x38:0x40], product),
	}
	out := attest.Claims{
		Kind: attest.KindSEVSNP, Genuine: true,
		Measurement: hex.EncodeToString(raw[0x90:0xC0]), ReportData: hex.EncodeToString(raw[0x50:0x90]), SEVSNP: c,
	}
	if !isZero(r.chipID) {
		out.HardwareID = c.ChipID
	}
	return out
}
