package measure

import (
	"fmt"
	"unicode/utf16"
)

// EDK2 says which firmware boots the kernel: what it measures of a direct boot changed.
type EDK2 string

// The known firmware.
const (
	// EDK2Before202505 appends " initrd=initrd" to the kernel's command line.
	EDK2Before202505 EDK2 = "before-202505"
	// EDK2From202505 puts "initrd=initrd " before it and loads the kernel as the file has
	// it. The published registers are of edk2 202602.
	EDK2From202505 EDK2 = "from-202505"
)

// Event is one extension of a register.
type Event struct {
	Register int    `json:"register"` // n of RTMRn
	Name     string `json:"name"`
	Digest   Digest `json:"digest"`
}

// Replay extends the registers RTMR0 to 2 by their events: each is the SHA-384 of itself,
// at first zero, and the event's digest.
func Replay(events []Event) (out [3]Digest) {
	for _, e := range events {
		if e.Register >= 0 && e.Register < len(out) {
			out[e.Register] = sha384(out[e.Register][:], e.Digest[:])
		}
	}
	return out
}

// Events returns what Linux, booted directly with an initrd, has in RTMR1 and RTMR2: the
// firmware measures the kernel and the steps of booting, Linux's EFI stub its load options
// and the initrd. The kernel is taken as the file has it: QEMU from 10.1 on gives it so to
// TDs, and edk2 from 202505 on takes it so; older pairs patch its header.
func (b *Boot) Events(firmware EDK2) ([]Event, error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	if len(b.Initrd) == 0 {
		return nil, fmt.Errorf("initrd: none; what a boot without one measures was not compared with any published log")
	}
	options := ""
	switch firmware {
	case EDK2Before202505:
		options = b.CommandLine + " initrd=initrd"
	case EDK2From202505:
		options = "initrd=initrd " + b.CommandLine
	default:
		return nil, fmt.Errorf("edk2 %q: want %s or %s", firmware, EDK2Before202505, EDK2From202505)
	}
	kernel, err := Authenticode(b.Kernel)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	return directBoot(kernel.SHA384, options, sha384(b.Initrd)), nil
}

func directBoot(kernel Digest, options string, initrd Digest) []Event {
	return []Event{
		{1, "kernel (Authenticode)", kernel},
		{1, "Calling EFI Application from Boot Option", sha384([]byte("Calling EFI Application from Boot Option"))},
		{1, "separator", separator()},
		{1, "Exit Boot Services Invocation", sha384([]byte("Exit Boot Services Invocation"))},
		{1, "Exit Boot Services Returned with Success", sha384([]byte("Exit Boot Services Returned with Success"))},
		{2, "kernel load options", sha384(utf16le(options), []byte{0, 0})},
		{2, "initrd", initrd},
	}
}

func separator() Digest { return sha384(make([]byte, 4)) }

func utf16le(s string) []byte {
	var out []byte
	for _, u := range utf16.Encode([]rune(s)) {
		out = le.AppendUint16(out, u)
	}
	return out
}

// ACPI is what QEMU gives the firmware by fw_cfg, as files etc/acpi/rsdp, etc/acpi/tables
// and etc/table-loader. It follows from all devices of the machine, and is read in a
// guest under /sys/firmware/qemu_fw_cfg/by_name/…/raw.
type ACPI struct {
	Loader, RSDP, Tables []byte
}

// ConfigurationEvents returns what edk2 before 202505 has in RTMR0 after a direct boot
// without Secure Boot: the hand-off block, the variables' volume, the Secure Boot variables
// (all empty), ACPI, and the boot variables that it makes for its own menu.
func ConfigurationEvents(image []byte, memory uint64, acpi ACPI) ([]Event, error) {
	f, err := parseFirmware(image)
	if err != nil {
		return nil, err
	}
	sections, err := f.tdvfMetadata()
	if err != nil {
		return nil, err
	}
	cfv, err := only(sections, tdvfCFV, "CFV")
	if err != nil {
		return nil, err
	}
	hob, err := tdHOB(sections, memory)
	if err != nil {
		return nil, err
	}
	for _, b := range [][]byte{acpi.Loader, acpi.RSDP, acpi.Tables} {
		if len(b) == 0 {
			return nil, fmt.Errorf("ACPI: table loader, RSDP and tables are all measured, give the three")
		}
	}
	return configuration(sha384(hob), sha384(cfv.contents(f)), [3]Digest{sha384(acpi.Loader), sha384(acpi.RSDP), sha384(acpi.Tables)}), nil
}

// Namespaces of EFI variables (UEFI 2.10, 3.3 and 32.6.1).
var (
	guidGlobal   = newGUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
	guidSecurity = newGUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
)

func configuration(hob, cfv Digest, acpi [3]Digest) []Event {
	events := []Event{{0, "TD hand-off block", hob}, {0, "configuration firmware volume", cfv}}
	for _, v := range []struct {
		space guid
		name  string
	}{{guidGlobal, "SecureBoot"}, {guidGlobal, "PK"}, {guidGlobal, "KEK"}, {guidSecurity, "db"}, {guidSecurity, "dbx"}} {
		events = append(events, Event{0, "variable " + v.name, emptyVariable(v.space, v.name)})
	}
	return append(events,
		Event{0, "separator", separator()},
		Event{0, "ACPI table loader", acpi[0]},
		Event{0, "ACPI RSDP", acpi[1]},
		Event{0, "ACPI tables", acpi[2]},
		Event{0, "variable BootOrder", sha384([]byte{0, 0})},
		Event{0, "variable Boot0000", sha384(bootMenu())},
	)
}

// emptyVariable is the digest of UEFI_VARIABLE_DATA (TCG PFP, 10.2.6) without contents.
//
//	GUID | u64 characters of name | u64 0 bytes of contents | name in UTF-16
func emptyVariable(space guid, name string) Digest {
	lengths := le.AppendUint64(le.AppendUint64(nil, uint64(len(name))), 0)
	return sha384(space[:], lengths, utf16le(name))
}

// bootMenu is the EFI_LOAD_OPTION that edk2 makes of its own UiApp (UEFI 2.10, 3.1.3):
//
//	u32 attributes | u16 length of path | description in UTF-16, NUL | device path
//
// with a path of two nodes, a volume (MediaFv) and a file in it (FvFile), and its end.
func bootMenu() []byte {
	const activeHiddenApp = 0x109
	volume, file := newGUID("7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1"), newGUID("462caa21-7614-4503-836e-8ab6f4662331")
	path := append([]byte{4, 7, 20, 0}, volume[:]...)
	path = append(append(path, 4, 6, 20, 0), file[:]...)
	path = append(path, 0x7f, 0xff, 4, 0)
	out := le.AppendUint16(le.AppendUint32(nil, activeHiddenApp), uint16(len(path)))
	out = append(out, utf16le("UiApp\x00")...)
	return append(out, path...)
}
