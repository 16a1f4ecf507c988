// Package measure computes, from the files of an image, what the hardware will say about a
// guest that was launched from them: the reference values of a release, before any node
// runs it. It reads no file, clock or network: all functions are functions of bytes.
//
// What is computed, and what it was compared with (tests name the sources):
//
//	SEV-SNP launch digest  firmware, SEV metadata, kernel hashes, VMSAs; QEMU, EC2, GCE, and
//	                       QEMU with COCONUT-SVSM. The vectors of virtee/sev-snp-measure;
//	                       one MEASUREMENT that a Milan chip signed (QEMU, 2 vCPUs, EPYC-v4).
//	TDX MRTD               firmware by its TDVF metadata. A published synthetic firmware; two
//	                       firmwares' published values where the files are at hand. The order
//	                       TwoPass (older KVM) is not told apart by any of them.
//	TDX RTMR0              direct boot under edk2 before 202505, ACPI tables given. One TD
//	                       quote with its event log (QEMU 8.2, 2 GiB), event by event.
//	TDX RTMR1              direct boot, kernel not patched by QEMU. The register's chain: that
//	                       quote; the kernel's digest: see below.
//	TDX RTMR2              direct boot with an initrd. That quote (edk2 before 202505) and
//	                       published register values of edk2 202602.
//	Authenticode           of PE images, as UEFI measures them into PCR 4 and RTMR1. A published
//	                       synthetic image; what OVMF measured of Debian's shim.
//
// What is not computed here does not follow from the image: RTMR0 under newer edk2 and
// other boot paths than direct boot, since no published log was at hand to compare with,
// and ACPI tables, which QEMU makes from all of its devices.
//
// A wrong figure cannot let a wrong guest in: it lets the right one not in.
package measure

import (
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// Digest is a SHA-384 digest: a launch digest, a register or an event of one.
type Digest [sha512.Size384]byte

// String returns lower-case hex.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText makes JSON show lower-case hex.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// ParseDigest decodes 96 hex characters.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != len(d) {
		return d, fmt.Errorf("digest %q: want %d bytes in hex", s, len(d))
	}
	return Digest(raw), nil
}

// Limits of the inputs. Firmware is mapped below 4 GiB by every VMM; MaxVCPUs is QEMU's for
// q35.
const (
	MaxFirmware = 64 << 20
	MaxVCPUs    = 4096

	pageSize = 4096
	fourGiB  = 1 << 32
)

// Boot is a direct boot: what -kernel, -initrd and -append of QEMU name. An empty Initrd is
// none.
type Boot struct {
	Kernel      []byte
	Initrd      []byte
	CommandLine string
}

// check refuses what no direct boot can have.
func (b *Boot) check() error {
	if b.Kernel == nil {
		return fmt.Errorf("kernel: none")
	}
	for i := range len(b.CommandLine) {
		if c := b.CommandLine[i]; c < ' ' || c > '~' {
			return fmt.Errorf("command line: byte %#02x at %d, want printable ASCII", c, i)
		}
	}
	return nil
}

func sha384(data ...[]byte) Digest {
	h := sha512.New384()
	for _, d := range data {
		h.Write(d)
	}
	return Digest(h.Sum(nil))
}

var le = binary.LittleEndian
