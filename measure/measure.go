// Package measure computes, from the files of an image, what the hardware will say about a
// guest that was launched from them: the reference values of a release, before any node
// runs it. It reads no file, clock or network: all functions are functions of bytes.
//
// What is computed, and what it was compared with (the tests name the sources):
//
//	SEV-SNP launch digest  Firmware, SEV metadata, kernel hashes, VMSAs under QEMU, EC2, GCE,
//	                       and QEMU with COCONUT-SVSM. Compared with the vectors of
//	                       virtee/sev-snp-measure, and with a MEASUREMENT that a Milan chip
//	                       signed (QEMU, 2 vCPUs of type EPYC-v4).
//	TDX MRTD               Firmware by its TDVF metadata. Compared with the MRTD of a
//	                       published synthetic firmware, and on Debian's OVMF with what
//	                       google/gce-tcb-verifier computes. The order TwoPass (older KVM)
//	                       was compared with nothing that tells it from SinglePass.
//	TDX RTMR0              Direct boot under edk2 before 202505, ACPI tables given. Compared
//	                       event by event with the log of a genuine quote (QEMU 8.2, 2 GiB);
//	                       the hand-off block with that of a second one (64 GiB).
//	TDX RTMR1, RTMR2       Direct boot with an initrd. Compared with that log, and with
//	                       published registers of edk2 202602; the kernel's digest as below.
//	Authenticode           PE images as UEFI measures them, into PCR 4 or RTMR1. Compared with
//	                       what OVMF measured of Debian's shim, GRUB and kernel.
//
// Not computed are RTMR0 under newer edk2, kernels whose header QEMU patches (before 10.1) and
// other boots than direct ones: there was no published value to compare with. ACPI tables do
// not follow from an image: QEMU makes them from all devices of a machine.
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

// UnmarshalText reads what MarshalText writes.
func (d *Digest) UnmarshalText(text []byte) (err error) {
	*d, err = ParseDigest(string(text))
	return err
}

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
