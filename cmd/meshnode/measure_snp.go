package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/measure"
)

const measureSNPHelp = `Compute the launch digest (MEASUREMENT) of an SEV-SNP guest.

It depends on the firmware, the number of vCPUs and their first state, and, where the
firmware supports it (OvmfPkg/AmdSev, QEMU's kernel-hashes=on), on kernel, initrd and command
line. Without them whoever launches the guest chooses what it boots.

  meshnode measure snp --firmware OVMF.fd --vcpus 4 --vcpu-type EPYC-v4 \
    --kernel vmlinuz --initrd initrd.img --append "console=ttyS0"

Compared with the published vectors of virtee/sev-snp-measure (QEMU, EC2 and GCE, vCPU
signature 0x800f12, guest features 0x1 and 0x21; COCONUT-SVSM on QEMU, of which the value was
read from hardware), and with one measurement that a Milan chip signed.`

// measureSNPFlags are the options of meshnode measure snp.
type measureSNPFlags struct {
	firmware, firmwareDigest, svsm string
	vars                           string
	vcpus                          int
	vcpuType, vcpuSig, features    string
	vmm                            string
	boot                           bootFlags
	json                           bool
}

func measureSNPCommand() *cobra.Command {
	var f measureSNPFlags
	cmd := &cobra.Command{
		Use:   "snp --firmware FILE --vcpus N --vcpu-type TYPE",
		Short: "Compute the launch digest of an SEV-SNP guest",
		Long:  measureSNPHelp,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := f.measure(cmd)
			if err != nil {
				return err
			}
			return m.print(cmd.OutOrStdout(), f.json)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.firmware, "firmware", "", "OVMF image `FILE`, code and variables in one, as for QEMU's -bios")
	fl.StringVar(&f.firmwareDigest, "firmware-digest", "", "published digest of the firmware's pages in `HEX`; --firmware then only gives the metadata")
	fl.StringVar(&f.svsm, "svsm", "", "COCONUT-SVSM image `FILE` (QEMU); needs --vars")
	fl.StringVar(&f.vars, "vars", "", "OVMF variables `FILE`, mapped between firmware and SVSM: its size counts")
	fl.IntVar(&f.vcpus, "vcpus", 0, "number `N` of vCPUs at launch")
	fl.StringVar(&f.vcpuType, "vcpu-type", "", "QEMU's CPU model `TYPE`: "+strings.Join(measure.VCPUTypes(), ", ")+", or a version like EPYC-v4")
	fl.StringVar(&f.vcpuSig, "vcpu-sig", "", "CPUID signature `NUMBER` of the vCPUs, for another model")
	fl.StringVar(&f.features, "guest-features", "0x1", "SEV_FEATURES of the vCPUs, a `NUMBER`: 0x1 SNPActive, 0x20 DebugSwap, …")
	fl.StringVar(&f.vmm, "vmm", string(measure.QEMU), "who launches it: qemu, ec2 or gce")
	f.boot.add(cmd)
	fl.BoolVar(&f.json, "json", false, "print one JSON object")
	return cmd
}

func (f *measureSNPFlags) measure(cmd *cobra.Command) (*measured, error) {
	in, files, err := f.input(cmd)
	if err != nil {
		return nil, err
	}
	digest, err := in.LaunchDigest()
	if err != nil {
		return nil, usageError("", "%v", err)
	}
	m := &measured{Kind: attest.KindSEVSNP, Measurement: digest.String(), Inputs: files.inputs, Notes: []string{},
		Covers:     []string{"firmware", "vcpus"},
		Parameters: map[string]string{"vmm": string(in.VMM), "vcpus": strconv.Itoa(in.VCPUs), "guest_features": fmt.Sprintf("%#x", in.GuestFeatures)}}
	if in.VMM == measure.QEMU {
		m.Parameters["vcpu_signature"] = fmt.Sprintf("%#x", in.VCPUSignature)
	}
	if in.FirmwareDigest != (measure.Digest{}) {
		m.Parameters["firmware_digest"] = in.FirmwareDigest.String()
		m.Notes = append(m.Notes, "the firmware's code was not measured: its digest was given, and only its metadata come from the file")
	}
	switch {
	case in.Boot != nil:
		m.Covers = append(m.Covers, "kernel", "initrd", "command_line")
	case in.SVSM != nil:
		m.Covers = append(m.Covers, "svsm")
		fallthrough
	default:
		m.Notes = append(m.Notes, "kernel, initrd and command line are not covered: whoever launches the guest chooses them, unless the firmware itself checks")
	}
	return m, nil
}

// input reads the flags; what they do not fit in, the measurement itself refuses.
func (f *measureSNPFlags) input(cmd *cobra.Command) (*measure.SNP, *measureFiles, error) {
	if f.firmware == "" {
		return nil, nil, usageError("name the OVMF image with --firmware", "no --firmware")
	}
	files := &measureFiles{}
	in := &measure.SNP{VCPUs: f.vcpus, VMM: measure.VMM(f.vmm)}
	var err error
	if in.Firmware, err = files.read("firmware", f.firmware, measure.MaxFirmware); err != nil {
		return nil, nil, err
	}
	if f.firmwareDigest != "" {
		if in.FirmwareDigest, err = measure.ParseDigest(f.firmwareDigest); err != nil || in.FirmwareDigest == (measure.Digest{}) {
			return nil, nil, usageError("give 96 hex characters", "--firmware-digest %q is no SHA-384", f.firmwareDigest)
		}
	}
	if (f.svsm == "") != (f.vars == "") {
		return nil, nil, usageError("give both or none", "--svsm and --vars belong together")
	}
	if in.SVSM, err = files.read("svsm", f.svsm, measure.MaxFirmware); err != nil {
		return nil, nil, err
	}
	vars, err := files.read("vars", f.vars, measure.MaxFirmware)
	if err != nil {
		return nil, nil, err
	}
	in.VarsSize = uint32(len(vars))
	if in.GuestFeatures, err = strconv.ParseUint(f.features, 0, 64); err != nil {
		return nil, nil, usageError("give a number like 0x1", "--guest-features %q is no number", f.features)
	}
	if in.VCPUSignature, err = f.signature(); err != nil {
		return nil, nil, err
	}
	in.Boot, err = f.boot.boot(cmd, files)
	return in, files, err
}

func (f *measureSNPFlags) signature() (uint32, error) {
	switch {
	case f.vcpuType != "" && f.vcpuSig != "":
		return 0, usageError("give one of them", "both --vcpu-type and --vcpu-sig")
	case f.vcpuType != "":
		sig, err := measure.VCPUSignature(f.vcpuType)
		if err != nil {
			return 0, usageError("give --vcpu-sig for another model", "--vcpu-type: %v", err)
		}
		return sig, nil
	case f.vcpuSig != "":
		sig, err := strconv.ParseUint(f.vcpuSig, 0, 32)
		if err != nil {
			return 0, usageError("give EAX of CPUID 1, like 0x800f12", "--vcpu-sig %q is no number of 32 bits", f.vcpuSig)
		}
		return uint32(sig), nil
	}
	return 0, nil
}
