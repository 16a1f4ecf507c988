package measure

import (
	"crypto/sha256"
	"fmt"
)

// VMM is the hypervisor's user space that builds an SEV-SNP guest: they differ in the first
// register values and in pages that they measure.
type VMM string

// The VMMs.
const (
	QEMU VMM = "qemu"
	EC2  VMM = "ec2"
	GCE  VMM = "gce"
)

// SNP is all that the launch digest of an SEV-SNP guest depends on.
type SNP struct {
	// Firmware is the OVMF image: one file with code and variables, as QEMU's -bios takes it.
	Firmware []byte
	// FirmwareDigest, if not zero, stands for the digest of the firmware's pages; Firmware
	// then need only have the same metadata. It is what FirmwareDigest the function returns.
	FirmwareDigest Digest
	// SVSM, if any, is a COCONUT-SVSM image (QEMU only); it lies below the firmware and
	// VarsSize bytes of variables.
	SVSM     []byte
	VarsSize uint32
	// Boot, if any, is measured by kernel hashes (QEMU: kernel-hashes=on).
	Boot *Boot

	VCPUs int
	// VCPUSignature is the CPUID 1 EAX that QEMU gives: see VCPUSignature the function. EC2
	// and GCE do not measure it: 0.
	VCPUSignature uint32
	// GuestFeatures is SEV_FEATURES of each VMSA: bit 0 SNPActive, 5 DebugSwap, … (AMD
	// 24593, table B-4).
	GuestFeatures uint64
	VMM           VMM
}

// LaunchDigest returns the MEASUREMENT that reports of such a guest carry (AMD 56860,
// SNP_LAUNCH_UPDATE and SNP_LAUNCH_FINISH).
func (s *SNP) LaunchDigest() (Digest, error) {
	if err := s.check(); err != nil {
		return Digest{}, err
	}
	f, err := parseFirmware(s.Firmware)
	if err != nil {
		return Digest{}, err
	}
	var hashes []byte
	if s.Boot != nil {
		hashes = kernelHashes(s.Boot.CommandLine, sha256.Sum256(s.Boot.Initrd), sha256.Sum256(s.Boot.Kernel))
	}
	return s.launch(f, hashes)
}

// launch measures a guest of checked inputs; hashes is nil without a kernel.
func (s *SNP) launch(f *firmware, hashes []byte) (Digest, error) {
	var ctx gctx
	if s.FirmwareDigest != (Digest{}) {
		ctx.ld = s.FirmwareDigest
	} else {
		ctx.normal(f.gpa(fourGiB), f.data)
	}
	if s.SVSM != nil {
		return s.svsmDigest(&ctx, f)
	}
	if err := s.sections(&ctx, f, hashes); err != nil {
		return Digest{}, err
	}
	reset, err := f.value(guidSEVESReset, "AP reset vector")
	if err != nil {
		return Digest{}, err
	}
	for i := range s.VCPUs {
		eip := reset
		if i == 0 {
			eip = bspReset
		}
		ctx.update(pageVMSA, vmsaGPA, sha384(s.vmsa(eip)))
	}
	return ctx.ld, nil
}

// FirmwareDigest returns the digest after the firmware's pages alone: what a release may
// publish so that others compute launch digests without the whole image.
func FirmwareDigest(image []byte) (Digest, error) {
	f, err := parseFirmware(image)
	if err != nil {
		return Digest{}, err
	}
	var ctx gctx
	ctx.normal(f.gpa(fourGiB), f.data)
	return ctx.ld, nil
}

func (s *SNP) check() error {
	switch s.VMM {
	case QEMU:
		if s.VCPUSignature == 0 {
			return fmt.Errorf("vCPU signature: none; QEMU measures it, name the vCPU type or its CPUID signature")
		}
	case EC2, GCE:
		if s.VCPUSignature != 0 {
			return fmt.Errorf("vCPU signature %#x: %s does not measure it, leave it out", s.VCPUSignature, s.VMM)
		}
		if s.SVSM != nil {
			return fmt.Errorf("an SVSM is known for %s only, not for %s", QEMU, s.VMM)
		}
	default:
		return fmt.Errorf("VMM %q: want %s, %s or %s", s.VMM, QEMU, EC2, GCE)
	}
	switch {
	case s.VCPUs < 1 || s.VCPUs > MaxVCPUs:
		return fmt.Errorf("%d vCPUs, want 1 to %d", s.VCPUs, MaxVCPUs)
	case s.GuestFeatures&1 == 0:
		return fmt.Errorf("guest features %#x: bit 0, SNPActive, is not set", s.GuestFeatures)
	case s.SVSM != nil && s.Boot != nil:
		return fmt.Errorf("a kernel beside an SVSM is not measured by the launch digest; measure it without")
	case s.SVSM != nil && s.GuestFeatures != svsmFeatures:
		return fmt.Errorf("guest features %#x: an SVSM is launched with %#x", s.GuestFeatures, svsmFeatures)
	case s.SVSM == nil && s.VarsSize != 0:
		return fmt.Errorf("the size of variables matters only with an SVSM")
	case s.Boot != nil:
		return s.Boot.check()
	}
	return nil
}

// sections measures what the metadata names, in its order; EC2 measures the CPUID page last.
func (s *SNP) sections(ctx *gctx, f *firmware, hashes []byte) error {
	sections, err := f.sevMetadata()
	if err != nil {
		return err
	}
	hashed := false
	for _, sec := range sections {
		gpa, size := uint64(sec.gpa), uint64(sec.size)
		switch sec.kind {
		case sevSecMem:
			if s.VMM == GCE {
				ctx.blank(pageUnmeasured, gpa, size)
			} else {
				ctx.blank(pageZero, gpa, size)
			}
		case sevSVSMCAA:
			ctx.blank(pageZero, gpa, size)
		case sevSecrets:
			ctx.blank(pageSecrets, gpa, size)
		case sevCPUID:
			if s.VMM != EC2 {
				ctx.blank(pageCPUID, gpa, size)
			}
		case sevKernelHashes:
			if hashes == nil {
				ctx.blank(pageZero, gpa, size)
				continue
			}
			page, err := hashesPage(f, gpa, hashes)
			if err != nil {
				return err
			}
			ctx.normal(gpa, page)
			hashed = true
		}
	}
	if hashes != nil && !hashed {
		return fmt.Errorf("firmware: no section for kernel hashes, so it would not measure the kernel; build OvmfPkg/AmdSev, or leave the kernel out")
	}
	if s.VMM == EC2 {
		for _, sec := range sections {
			if sec.kind == sevCPUID {
				ctx.blank(pageCPUID, uint64(sec.gpa), uint64(sec.size))
			}
		}
	}
	return nil
}

// Page types of PAGE_INFO (AMD 56860, SNP_LAUNCH_UPDATE).
const (
	pageNormal     = 1
	pageVMSA       = 2
	pageZero       = 3
	pageUnmeasured = 4
	pageSecrets    = 5
	pageCPUID      = 6
)

// vmsaGPA is what the firmware records for VMSAs: all ones, page-aligned, 48 bits.
const vmsaGPA = 0xFFFFFFFFF000

// gctx is the launch digest as it grows. Each page replaces it by the SHA-384 of
//
//	digest (48) | contents (48) | u16 0x70 | u8 page type | u8 IMI 0 | 4 × u8 permissions and
//	reserved 0 | u64 gpa
//
// where contents is the page's SHA-384, or zero where the page's bytes do not count.
type gctx struct{ ld Digest }

func (c *gctx) update(kind byte, gpa uint64, contents Digest) {
	const size = 0x70
	var info [size]byte
	copy(info[:], c.ld[:])
	copy(info[48:], contents[:])
	le.PutUint16(info[96:], size)
	info[98] = kind
	le.PutUint64(info[104:], gpa)
	c.ld = sha384(info[:])
}

// normal measures whole pages with their bytes.
func (c *gctx) normal(gpa uint64, data []byte) {
	for ; len(data) > 0; data, gpa = data[pageSize:], gpa+pageSize {
		c.update(pageNormal, gpa, sha384(data[:pageSize]))
	}
}

// blank measures pages by their address and type alone.
func (c *gctx) blank(kind byte, gpa, size uint64) {
	for at := gpa; at < gpa+size; at += pageSize {
		c.update(kind, at, Digest{})
	}
}

// hashesPage is the page with the kernel hashes table, at the place that the firmware names.
func hashesPage(f *firmware, gpa uint64, table []byte) ([]byte, error) {
	at, err := f.value(guidSEVHashTable, "place for kernel hashes")
	if err != nil {
		return nil, err
	}
	offset := uint64(at) - gpa
	if uint64(at) < gpa || offset+uint64(len(table)) > pageSize {
		return nil, fmt.Errorf("firmware: kernel hashes of %d bytes at %#x do not fit into their page at %#x", len(table), at, gpa)
	}
	page := make([]byte, pageSize)
	copy(page[offset:], table)
	return page, nil
}

// sevHashTable GUIDs (QEMU, target/i386/sev.c).
var (
	guidHashTable = newGUID("9438d606-4f22-4cc9-b479-a793d411fd21")
	guidKernel    = newGUID("4de79437-abd2-427f-b835-d5b172d2045b")
	guidInitrd    = newGUID("44baf731-3a2f-4bd7-9af1-41e29169781d")
	guidCmdline   = newGUID("97d02dd8-bd20-4c94-aa78-e7714d36ab2a")
)

// kernelHashes encodes what QEMU hands to the firmware, padded to 16 bytes:
//
//	GUID | u16 168 | 3 × (GUID | u16 50 | SHA-256) of command line with NUL, initrd, kernel
//
// The firmware compares what fw_cfg gives it with these. QEMU does not patch the kernel of
// an SEV guest, so its hash is that of the file.
func kernelHashes(commandLine string, initrd, kernel [sha256.Size]byte) []byte {
	const entry, size, padded = 16 + 2 + 32, 16 + 2 + 3*(16+2+32), 176
	out := make([]byte, 0, padded)
	out = append(out, guidHashTable[:]...)
	out = le.AppendUint16(out, size)
	for _, e := range []struct {
		g   guid
		sum [sha256.Size]byte
	}{{guidCmdline, sha256.Sum256(append([]byte(commandLine), 0))}, {guidInitrd, initrd}, {guidKernel, kernel}} {
		out = append(out, e.g[:]...)
		out = le.AppendUint16(out, entry)
		out = append(out, e.sum[:]...)
	}
	return out[:padded]
}
