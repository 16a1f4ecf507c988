package measure

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// bspReset is the x86 reset vector, where the first vCPU begins.
const bspReset = 0xfffffff0

// Offsets within a VMSA (AMD 24593, table B-4 "VMSA Layout, State Save Area for SEV-ES").
const (
	vmsaES       = 0x000 // segments: u16 selector, u16 attributes, u32 limit, u64 base
	vmsaCS       = 0x010
	vmsaSS       = 0x020
	vmsaDS       = 0x030
	vmsaFS       = 0x040
	vmsaGS       = 0x050
	vmsaGDTR     = 0x060
	vmsaLDTR     = 0x070
	vmsaIDTR     = 0x080
	vmsaTR       = 0x090
	vmsaEFER     = 0x0d0
	vmsaCR4      = 0x148
	vmsaCR0      = 0x158
	vmsaDR7      = 0x160
	vmsaDR6      = 0x168
	vmsaRFLAGS   = 0x170
	vmsaRIP      = 0x178
	vmsaGPAT     = 0x268
	vmsaRDX      = 0x310
	vmsaFeatures = 0x3b0
	vmsaXCR0     = 0x3e8
	vmsaMXCSR    = 0x408
	vmsaFCW      = 0x410
	defaultGPAT  = 0x0007040600070406 // AMD 24593, A.3
)

// saveArea is a VMSA page under construction.
type saveArea [pageSize]byte

func (a *saveArea) segment(at int, selector, attributes uint16, limit uint32, base uint64) {
	le.PutUint16(a[at:], selector)
	le.PutUint16(a[at+2:], attributes)
	le.PutUint32(a[at+4:], limit)
	le.PutUint64(a[at+8:], base)
}

func (a *saveArea) u64(at int, v uint64) { le.PutUint64(a[at:], v) }

// common fills what no VMM and no SVSM changes: KVM sets EFER.SVME and CR4.MCE; the rest is
// the state of an x86 after reset.
func (a *saveArea) common(features uint64) {
	a.segment(vmsaGDTR, 0, 0, 0xffff, 0)
	a.segment(vmsaIDTR, 0, 0, 0xffff, 0)
	a.segment(vmsaLDTR, 0, 0x82, 0xffff, 0)
	a.u64(vmsaEFER, 0x1000)
	a.u64(vmsaCR4, 0x40)
	a.u64(vmsaDR7, 0x400)
	a.u64(vmsaDR6, 0xffff0ff0)
	a.u64(vmsaRFLAGS, 2)
	a.u64(vmsaFeatures, features)
	a.u64(vmsaXCR0, 1)
}

// vmsa is the first state of a vCPU that begins at eip in real mode.
func (s *SNP) vmsa(eip uint32) []byte {
	cs, ss, tr := uint16(0x9b), uint16(0x93), uint16(0x8b)
	gpat, rdx := uint64(defaultGPAT), uint64(s.VCPUSignature)
	mxcsr, fcw := uint32(0x1f80), uint16(0x37f)
	switch s.VMM {
	case EC2:
		ss, tr, rdx, mxcsr, fcw = 0x92, 0x83, 0x600, 0, 0
		if eip == bspReset {
			cs = 0x9a
		}
	case GCE:
		gpat, rdx, mxcsr, fcw = 0x00070106, 0x600, 0, 0
	}
	var a saveArea
	a.common(s.GuestFeatures)
	for _, at := range []int{vmsaES, vmsaDS, vmsaFS, vmsaGS} {
		a.segment(at, 0, 0x93, 0xffff, 0)
	}
	a.segment(vmsaCS, 0xf000, cs, 0xffff, uint64(eip&0xffff0000))
	a.segment(vmsaSS, 0, ss, 0xffff, 0)
	a.segment(vmsaTR, 0, tr, 0xffff, 0)
	a.u64(vmsaCR0, 0x10)
	a.u64(vmsaRIP, uint64(eip&0xffff))
	a.u64(vmsaGPAT, gpat)
	a.u64(vmsaRDX, rdx)
	le.PutUint32(a[vmsaMXCSR:], mxcsr)
	le.PutUint16(a[vmsaFCW:], fcw)
	return a[:]
}

// svsmFeatures is SEV_FEATURES of an SVSM's vCPUs: SNPActive.
const svsmFeatures = 1

// svsmVMSA is the first state of a vCPU that begins in an SVSM, in protected mode. The x87
// control word stays 0, unlike a firmware's: so the published measurement has it.
func (s *SNP) svsmVMSA(eip uint32) []byte {
	var a saveArea
	a.common(svsmFeatures)
	for _, at := range []int{vmsaES, vmsaSS, vmsaDS, vmsaFS} {
		a.segment(at, 16, 0xc93, 0xffffffff, 0)
	}
	a.segment(vmsaCS, 8, 0xc9b, 0xffffffff, 0)
	a.segment(vmsaGS, 0, 0x93, 0xffff, 0)
	a.segment(vmsaTR, 0, 0x8b, 0xffff, 0)
	a.u64(vmsaCR0, 0x11)
	a.u64(vmsaRIP, uint64(eip))
	a.u64(vmsaGPAT, defaultGPAT)
	a.u64(vmsaRDX, uint64(s.VCPUSignature))
	le.PutUint32(a[vmsaMXCSR:], 0x1f80)
	return a[:]
}

// svsmDigest goes on after the firmware's pages: the SVSM's pages, its metadata, and all
// vCPUs beginning in it.
func (s *SNP) svsmDigest(ctx *gctx, ovmf *firmware) (Digest, error) {
	svsm, err := parseFirmware(s.SVSM)
	if err != nil {
		return Digest{}, fmt.Errorf("SVSM: %w", err)
	}
	below := uint64(len(ovmf.data)) + uint64(s.VarsSize) + uint64(len(svsm.data))
	if s.VarsSize%pageSize != 0 || below >= fourGiB {
		return Digest{}, fmt.Errorf("variables of %d bytes: want whole pages that leave room below 4 GiB", s.VarsSize)
	}
	gpa := svsm.gpa(ovmf.gpa(fourGiB) - uint64(s.VarsSize))
	offset, err := svsm.value(guidSVSMInfo, "SVSM info")
	if err != nil {
		return Digest{}, fmt.Errorf("SVSM: %w", err)
	}
	ctx.normal(gpa, svsm.data)
	if err := s.sections(ctx, svsm, nil); err != nil {
		return Digest{}, fmt.Errorf("SVSM: %w", err)
	}
	page := sha384(s.svsmVMSA(uint32(gpa) + offset))
	for range s.VCPUs {
		ctx.update(pageVMSA, vmsaGPA, page)
	}
	return ctx.ld, nil
}

// vcpuTypes are QEMU's AMD models by family, model and stepping (target/i386/cpu.c,
// builtin_x86_defs); EPYC stands for -v1 to -v4 of it, and so on.
var vcpuTypes = map[string][3]uint32{
	"EPYC":       {23, 1, 2},
	"EPYC-Rome":  {23, 49, 0},
	"EPYC-Milan": {25, 1, 1},
	"EPYC-Genoa": {25, 17, 0},
	"EPYC-Turin": {26, 0, 0},
}

// VCPUTypes lists the names that VCPUSignature knows, without versions.
func VCPUTypes() []string { return slices.Sorted(maps.Keys(vcpuTypes)) }

// VCPUSignature returns the CPUID signature of a QEMU CPU model, such as EPYC-Milan or
// EPYC-v4.
func VCPUSignature(name string) (uint32, error) {
	base, version, versioned := strings.Cut(name, "-v")
	fms, ok := vcpuTypes[base]
	if !ok || versioned && (len(version) != 1 || version[0] < '1' || version[0] > '9') {
		return 0, fmt.Errorf("vCPU type %q: want one of %s, with or without a version like -v2", name, strings.Join(VCPUTypes(), ", "))
	}
	return CPUSignature(fms[0], fms[1], fms[2])
}

// CPUSignature encodes CPUID Fn0000_0001_EAX (AMD 25481).
func CPUSignature(family, model, stepping uint32) (uint32, error) {
	if family > 0xf+0xff || model > 0xff || stepping > 0xf {
		return 0, fmt.Errorf("family %d, model %d, stepping %d: want at most %d, %d, %d", family, model, stepping, 0xf+0xff, 0xff, 0xf)
	}
	low, high := family, uint32(0)
	if family > 0xf {
		low, high = 0xf, family-0xf
	}
	return high<<20 | model>>4<<16 | low<<8 | model&0xf<<4 | stepping, nil
}
