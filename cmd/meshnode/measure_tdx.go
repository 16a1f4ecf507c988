package main

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/measure"
)

const measureTDXHelp = `Compute MRTD of a TD, and RTMR1, RTMR2 and RTMR0 of a direct boot.

MRTD depends on the firmware (TDVF) alone; what the guest boots is in the registers:

  meshnode measure tdx --firmware OVMF.fd --kernel vmlinuz --initrd initrd.img \
    --append "console=ttyS0" --edk2 from-202505

RTMR1 and RTMR2 are those of a Linux kernel with EFI stub that QEMU boots directly with an
initrd; the kernel is measured as its file is, as QEMU from 10.1 and edk2 from 202505 on take it.

RTMR0 is computed for --edk2 before-202505, without Secure Boot, and needs the memory and what QEMU
gives the firmware as ACPI. It follows from all of the machine's devices; read it in a guest
that was launched alike: /sys/firmware/qemu_fw_cfg/by_name/etc/{table-loader,acpi/rsdp,acpi/tables}/raw.

Compared with: a published synthetic firmware, and google/gce-tcb-verifier on Debian's OVMF
(MRTD, single-pass); the registers and logs of two genuine quotes (RTMR0; RTMR1 and RTMR2 before
202505); published registers of edk2 202602 (RTMR2). The kernel's digest: what OVMF measured of
Debian's shim, GRUB and kernel. Compared with nothing: MRTD of two-pass.`

// measureTDXFlags are the options of meshnode measure tdx.
type measureTDXFlags struct {
	firmware, order, edk2 string
	memory                string
	loader, rsdp, tables  string
	boot                  bootFlags
	json                  bool
}

func measureTDXCommand() *cobra.Command {
	var f measureTDXFlags
	cmd := &cobra.Command{
		Use:   "tdx --firmware FILE",
		Short: "Compute MRTD and RTMR0 to RTMR2 of a TD",
		Long:  measureTDXHelp,
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
	fl.StringVar(&f.firmware, "firmware", "", "TDVF image `FILE`, code and variables in one, as for QEMU's -bios")
	fl.StringVar(&f.order, "page-order", string(measure.SinglePass), "how the host adds pages: single-pass (upstream KVM) or two-pass (patched kernels before it)")
	f.boot.add(cmd)
	fl.StringVar(&f.edk2, "edk2", "", "release that the firmware is built from: before-202505 or from-202505; needed with --kernel")
	fl.StringVar(&f.memory, "memory", "", "`SIZE` of the guest's memory, like 2048M or 16G; for RTMR0")
	fl.StringVar(&f.loader, "acpi-loader", "", "`FILE` with etc/table-loader of fw_cfg; for RTMR0")
	fl.StringVar(&f.rsdp, "acpi-rsdp", "", "`FILE` with etc/acpi/rsdp; for RTMR0")
	fl.StringVar(&f.tables, "acpi-tables", "", "`FILE` with etc/acpi/tables; for RTMR0")
	fl.BoolVar(&f.json, "json", false, "print one JSON object, with all events")
	return cmd
}

func (f *measureTDXFlags) measure(cmd *cobra.Command) (*measured, error) {
	if f.firmware == "" {
		return nil, usageError("name the TDVF image with --firmware", "no --firmware")
	}
	files := &measureFiles{}
	firmware, err := files.read("firmware", f.firmware, measure.MaxFirmware)
	if err != nil {
		return nil, err
	}
	mrtd, err := measure.MRTD(firmware, measure.PageOrder(f.order))
	if err != nil {
		return nil, usageError("", "%v", err)
	}
	m := &measured{Kind: attest.KindTDX, Measurement: mrtd.String(), Covers: []string{"firmware"}, Notes: []string{},
		Parameters: map[string]string{"page_order": f.order}}
	if f.order == string(measure.TwoPass) {
		m.Notes = append(m.Notes, "MRTD in the order two-pass was compared with no published value")
	}
	boot, err := f.boot.boot(cmd, files)
	if err != nil {
		return nil, err
	}
	configuration, err := f.configuration(firmware, files, boot != nil)
	if err != nil {
		return nil, err
	}
	m.Inputs = files.inputs
	if boot == nil {
		if f.edk2 != "" {
			return nil, usageError("name the kernel, or leave it out", "--edk2 without a --kernel")
		}
		m.Notes = append(m.Notes, "kernel, initrd and command line are not covered: they are in RTMR1 and RTMR2, name --kernel")
		return m, nil
	}
	return m, f.registers(m, boot, configuration)
}

// registers fills in what was booted.
func (f *measureTDXFlags) registers(m *measured, boot *measure.Boot, configuration []measure.Event) error {
	events, err := boot.Events(measure.EDK2(f.edk2))
	if err != nil {
		return usageError("", "%v", err)
	}
	m.Events = append(configuration, events...)
	m.Parameters["edk2"] = f.edk2
	m.Covers = append(m.Covers, "kernel", "initrd", "command_line")
	all := measure.Replay(m.Events)
	m.Registers = map[string]string{"rtmr1": all[1].String(), "rtmr2": all[2].String()}
	if configuration != nil {
		m.Parameters["memory"] = f.memory
		m.Registers["rtmr0"] = all[0].String()
		m.Covers = append(m.Covers, "acpi", "memory", "variables")
	} else {
		m.Notes = append(m.Notes, "RTMR0 (ACPI tables, variables, memory) was not computed: a host may give other ACPI tables, which can run code in the guest")
	}
	if f.edk2 == string(measure.EDK2Before202505) {
		m.Notes = append(m.Notes, "RTMR1 takes the kernel as its file is; QEMU before 10.1 patches its header, and RTMR1 then differs")
	}
	return nil
}

// configuration computes the events of RTMR0; nil where none of its options is given.
func (f *measureTDXFlags) configuration(firmware []byte, files *measureFiles, boot bool) ([]measure.Event, error) {
	given := 0
	for _, s := range []string{f.memory, f.loader, f.rsdp, f.tables} {
		if s != "" {
			given++
		}
	}
	switch {
	case given == 0:
		return nil, nil
	case given < 4:
		return nil, usageError("give all four or none", "RTMR0 needs --memory, --acpi-loader, --acpi-rsdp and --acpi-tables")
	case !boot:
		return nil, usageError("name the kernel", "RTMR0 is computed of a direct boot, but there is no --kernel")
	case f.edk2 != string(measure.EDK2Before202505):
		return nil, usageError("leave the options of RTMR0 out, or take its value from a guest that you trust",
			"RTMR0 is computed for --edk2 %s only: for other firmware there was no published log to compare with", measure.EDK2Before202505)
	}
	memory, err := parseSize(f.memory)
	if err != nil {
		return nil, err
	}
	var acpi measure.ACPI
	for _, in := range []struct {
		name, path string
		to         *[]byte
	}{{"acpi-loader", f.loader, &acpi.Loader}, {"acpi-rsdp", f.rsdp, &acpi.RSDP}, {"acpi-tables", f.tables, &acpi.Tables}} {
		if *in.to, err = files.read(in.name, in.path, measure.MaxFirmware); err != nil {
			return nil, err
		}
	}
	events, err := measure.ConfigurationEvents(firmware, memory, acpi)
	if err != nil {
		return nil, usageError("", "%v", err)
	}
	return events, nil
}

// parseSize reads a number of bytes with an optional unit M or G, as QEMU's -m does.
func parseSize(s string) (uint64, error) {
	number, shift := s, 0
	for unit, by := range map[string]int{"M": 20, "G": 30} {
		if n, ok := strings.CutSuffix(s, unit); ok {
			number, shift = n, by
		}
	}
	n, err := strconv.ParseUint(number, 10, 64-shift)
	if err != nil || n == 0 {
		return 0, usageError("give a size like 2048M or 16G", "--memory %q is no size", s)
	}
	return n << shift, nil
}
