package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/measure"
)

// measureDir writes a small firmware with TDVF and SEV metadata, a PE image as kernel and
// an initrd, and returns their folder.
func measureDir(t *testing.T) string {
	t.Helper()
	le := binary.LittleEndian
	fw := make([]byte, 0x3000)
	for i := range fw {
		fw[i] = byte(i*13 + 5)
	}
	guid := func(first uint32, rest string) []byte { return append(le.AppendUint32(nil, first), rest...) }
	entry := func(g []byte, values ...uint32) (out []byte) {
		for _, v := range values {
			out = le.AppendUint32(out, v)
		}
		return append(le.AppendUint16(out, uint16(len(out)+18)), g...)
	}
	section := func(out []byte, offset, size uint32, gpa, memory uint64, kind, attributes uint32) []byte {
		out = le.AppendUint32(le.AppendUint32(out, offset), size)
		out = le.AppendUint64(le.AppendUint64(out, gpa), memory)
		return le.AppendUint32(le.AppendUint32(out, kind), attributes)
	}
	tdvf := append([]byte("TDVF"), 144, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0)
	tdvf = section(tdvf, 0, 0x1000, 0xfffff000, 0x1000, 0, 1)
	tdvf = section(tdvf, 0x1000, 0x1000, 0xffffe000, 0x1000, 1, 1)
	tdvf = section(tdvf, 0, 0, 0x809000, 0x2000, 2, 0)
	tdvf = section(tdvf, 0, 0, 0x80b000, 0x1000, 3, 2)
	copy(fw[0x2000:], tdvf)
	sev := append([]byte("ASEV"), 28, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0)
	for _, v := range []uint32{0x810000, 0x1000, 0x10} {
		sev = le.AppendUint32(sev, v)
	}
	copy(fw[0x2800:], sev)
	table := bytes.Join([][]byte{
		entry(guid(0x00f771de, "\x7e\x1a\xcb\x4f\x89\x0e\x68\xc7\x7e\x2f\xb4\x4e"), 0x80b004),
		entry(guid(0x7255371f, "\x3b\x3a\x04\x4b\x92\x7b\x1d\xa6\xef\xa8\xd4\x54"), 0x810c00, 0x400),
		entry(guid(0xdc886566, "\x4a\x98\x98\x47\xa7\x5e\x55\x85\xa7\xbf\x67\xcc"), 0x800),
		entry(guid(0xe47a6535, "\x4a\x98\x98\x47\x86\x5e\x46\x85\xa7\xbf\x8e\xc2"), 0x1000),
	}, nil)
	tail := append(table, entry(guid(0x96b582de, "\xb2\x1f\xf7\x45\xba\xea\xa3\x66\xc5\x5a\x08\x2d"))...)
	le.PutUint16(tail[len(table):], uint16(len(table)+18))
	copy(fw[len(fw)-len(tail)-32:], append(tail, make([]byte, 32)...))

	pe := make([]byte, 0x300)
	copy(pe, "MZ")
	pe[0x3c] = 0x40
	copy(pe[0x40:], "PE\x00\x00")
	le.PutUint16(pe[0x46:], 1)
	le.PutUint16(pe[0x54:], 240)
	le.PutUint16(pe[0x58:], 0x20b)
	le.PutUint32(pe[0x58+60:], 0x200)
	le.PutUint32(pe[0x58+240+16:], 0x100)
	le.PutUint32(pe[0x58+240+20:], 0x200)

	dir := t.TempDir()
	for name, data := range map[string][]byte{"OVMF.fd": fw, "vmlinuz": pe, "initrd": []byte("initrd"), "empty": nil, "acpi": []byte("acpi")} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// measureCall runs meshnode measure in dir: words are split at spaces.
func measureCall(t *testing.T, dir, words string) (int, string, string) {
	t.Helper()
	t.Chdir(dir)
	var out, errOut bytes.Buffer
	exit := execute(t.Context(), append([]string{"measure"}, strings.Fields(words)...), nil, &out, &errOut)
	return exit, out.String(), errOut.String()
}

const (
	snpCall = "snp --firmware OVMF.fd --vcpus 2 --vcpu-type EPYC-v4"
	tdxCall = "tdx --firmware OVMF.fd"
	boot    = " --kernel vmlinuz --initrd initrd --append quiet"
	acpi    = " --memory 2G --acpi-loader acpi --acpi-rsdp acpi --acpi-tables acpi"
)

// The command prints what the room computes, and says what it covers.
func TestMeasure(t *testing.T) {
	dir := measureDir(t)
	firmware, err := os.ReadFile(filepath.Join(dir, "OVMF.fd"))
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := os.ReadFile(filepath.Join(dir, "vmlinuz"))
	if err != nil {
		t.Fatal(err)
	}
	b := &measure.Boot{Kernel: kernel, Initrd: []byte("initrd"), CommandLine: "quiet"}
	snp := measure.SNP{Firmware: firmware, VCPUs: 2, VCPUSignature: 0x800f12, GuestFeatures: 1, VMM: measure.QEMU, Boot: b}
	launch, err := snp.LaunchDigest()
	if err != nil {
		t.Fatal(err)
	}
	mrtd, err := measure.MRTD(firmware, measure.SinglePass)
	if err != nil {
		t.Fatal(err)
	}
	events, err := b.Events(measure.EDK2Before202505)
	if err != nil {
		t.Fatal(err)
	}
	configuration, err := measure.ConfigurationEvents(firmware, 2<<30, measure.ACPI{Loader: []byte("acpi"), RSDP: []byte("acpi"), Tables: []byte("acpi")})
	if err != nil {
		t.Fatal(err)
	}
	registers := measure.Replay(append(configuration, events...))

	for _, c := range []struct {
		call      string
		want      measured
		registers []int
	}{
		{snpCall + boot, measured{Kind: "sevsnp", Measurement: launch.String(), Covers: []string{"firmware", "vcpus", "kernel", "initrd", "command_line"}}, nil},
		{tdxCall, measured{Kind: "tdx", Measurement: mrtd.String(), Covers: []string{"firmware"}}, nil},
		{tdxCall + boot + " --edk2 before-202505", measured{Kind: "tdx", Measurement: mrtd.String(),
			Covers: []string{"firmware", "kernel", "initrd", "command_line"}}, []int{1, 2}},
		{tdxCall + boot + acpi + " --edk2 before-202505", measured{Kind: "tdx", Measurement: mrtd.String(),
			Covers: []string{"firmware", "kernel", "initrd", "command_line", "acpi", "memory", "variables"}}, []int{0, 1, 2}},
	} {
		exit, out, errOut := measureCall(t, dir, c.call+" --json")
		var got measured
		if err := json.Unmarshal([]byte(out), &got); exit != 0 || err != nil {
			t.Errorf("%s: exit %d, %v, %s", c.call, exit, err, errOut)
			continue
		}
		if got.Kind != c.want.Kind || got.Measurement != c.want.Measurement || strings.Join(got.Covers, " ") != strings.Join(c.want.Covers, " ") {
			t.Errorf("%s: got %+v, want %+v", c.call, got, c.want)
		}
		if len(got.Registers) != len(c.registers) {
			t.Errorf("%s: registers %v, want %v", c.call, got.Registers, c.registers)
		}
		for _, n := range c.registers {
			if name := "rtmr" + string(rune('0'+n)); got.Registers[name] != registers[n].String() {
				t.Errorf("%s: %s %s, want %v", c.call, name, got.Registers[name], registers[n])
			}
		}
		exit, out, _ = measureCall(t, dir, c.call)
		line := regexp.MustCompile(`(?m)^  - add_entry: \{kind: ` + c.want.Kind + `, measurement: ` + c.want.Measurement + `(, registers: \{rtmr.*\})?, roles: \[member\]\}$`)
		if covered := len(c.want.Covers) > 2; exit != 0 || line.MatchString(out) != covered || !covered && !strings.Contains(out, "note: kernel, initrd and command line are not covered") {
			t.Errorf("%s: exit %d, got %s", c.call, exit, out)
		}
	}
}

func TestMeasureImage(t *testing.T) {
	dir := measureDir(t)
	exit, out, errOut := measureCall(t, dir, "image vmlinuz initrd --json")
	if exit != 0 || strings.Count(out, "\n") != 2 || strings.Count(out, `"authenticode"`) != 1 ||
		!strings.Contains(out, `"ima":"sha256:`) || !strings.Contains(out, `"sim":"`) {
		t.Errorf("exit %d, got %s%s", exit, out, errOut)
	}
	if exit, out, _ = measureCall(t, dir, "image vmlinuz"); exit != 0 || !strings.Contains(out, "authenticode sha384") {
		t.Errorf("exit %d, got %s", exit, out)
	}
}

// Half of a description is no figure: each is refused, naming what is missing.
func TestMeasureRefused(t *testing.T) {
	dir := measureDir(t)
	if err := os.WriteFile(filepath.Join(dir, "broken"), []byte("MZ"+strings.Repeat("\x00", 0x3a)+"\x40\x00\x00\x00PE\x00\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	for call, want := range map[string]string{
		"snp":                   "no --firmware",
		"tdx":                   "no --firmware",
		"image":                 "requires at least 1 arg",
		"cow":                   `unknown command "cow"`,
		"snp --firmware absent": "firmware: open absent",
		"snp --firmware empty":  "firmware: empty is empty",
		"snp --firmware initrd --vcpus 1 --vcpu-type EPYC":                "want a multiple of 4096",
		"snp --firmware OVMF.fd --vcpu-type EPYC":                         "0 vCPUs",
		"snp --firmware OVMF.fd --vcpus 1":                                "vCPU signature: none",
		snpCall + " --vcpu-sig 1":                                         "both --vcpu-type and --vcpu-sig",
		"snp --firmware OVMF.fd --vcpus 1 --vcpu-sig x":                   "is no number of 32 bits",
		"snp --firmware OVMF.fd --vcpus 1 --vcpu-type Atom":               `vCPU type "Atom"`,
		snpCall + " --guest-features x":                                   "is no number",
		snpCall + " --guest-features 0":                                   "SNPActive",
		snpCall + " --vmm xen":                                            `VMM "xen"`,
		snpCall + " --vmm ec2":                                            "ec2 does not measure it",
		snpCall + " --firmware-digest 12":                                 "is no SHA-384",
		snpCall + " --firmware-digest " + strings.Repeat("0", 96):         "is no SHA-384",
		snpCall + " --svsm OVMF.fd":                                       "belong together",
		snpCall + " --vars OVMF.fd":                                       "belong together",
		snpCall + " --append quiet":                                       "--append without a --kernel",
		snpCall + " --initrd initrd":                                      "--initrd without a --kernel",
		snpCall + " --kernel empty":                                       "kernel: empty is empty",
		snpCall + " --kernel vmlinuz --initrd absent":                     "initrd: open absent",
		tdxCall + " --page-order both":                                    `page order "both"`,
		tdxCall + " --edk2 from-202505":                                   "--edk2 without a --kernel",
		tdxCall + boot:                                                    `edk2 ""`,
		tdxCall + boot + " --edk2 202411":                                 `edk2 "202411"`,
		tdxCall + " --kernel vmlinuz --edk2 from-202505":                  "initrd: none",
		tdxCall + " --kernel initrd --initrd initrd --edk2 from-202505":   "no MZ and PE",
		tdxCall + boot + " --edk2 before-202505 --memory 2G":              "RTMR0 needs",
		tdxCall + acpi:                                                    "there is no --kernel",
		tdxCall + boot + acpi + " --edk2 from-202505":                     "RTMR0 is computed for --edk2 before-202505 only",
		tdxCall + boot + acpi + " --edk2 before-202505 --memory 2T":       "is no size",
		tdxCall + boot + acpi + " --edk2 before-202505 --memory 1M":       "want whole pages",
		tdxCall + boot + acpi + " --edk2 before-202505 --acpi-rsdp empty": "acpi-rsdp: empty is empty",
		"image broken": "cut off within its headers",
		"image empty":  "is empty",
	} {
		exit, out, errOut := measureCall(t, dir, call)
		if exit != exitUsage || out != "" || !strings.Contains(errOut, want) {
			t.Errorf("%s: exit %d, %q, %q; want %q", call, exit, out, errOut, want)
		}
	}
	exit, out, _ := measureCall(t, dir, "snp --json")
	if exit != exitUsage || !strings.HasPrefix(out, `{"error":{"code":"usage","message":"no --firmware","remedy":"`) {
		t.Errorf("exit %d, got %s", exit, out)
	}
}

// The commands of docs/MEASURE.md are as the program takes them: only the files are missing.
func TestMeasurePage(t *testing.T) {
	page, err := os.ReadFile("../../docs/MEASURE.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := measureDir(t)
	for _, name := range []string{"initrd.img", "table-loader", "rsdp", "tables", "meshnode"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	calls := regexp.MustCompile("(?s)\n```\nmeshnode measure (.*?)\n```\n").FindAllStringSubmatch(string(page), -1)
	if len(calls) != 4 {
		t.Fatalf("%d commands, want 4", len(calls))
	}
	for _, c := range calls {
		words := strings.ReplaceAll(strings.ReplaceAll(c[1], "\\\n", " "), `"`, "")
		if exit, _, errOut := measureCall(t, dir, words); exit != 0 {
			t.Errorf("%s: exit %d, %s", words, exit, errOut)
		}
	}
}
