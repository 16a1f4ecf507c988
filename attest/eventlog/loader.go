package eventlog

import (
	"bytes"
	"strings"

	"github.com/attestmesh/meshnode/attest"
)

// grubPrefixes stand in the log before the text that GRUB hashes; those of Red Hat's older
// one are without colon, and it hashes the final zero too.
var grubPrefixes = []struct {
	text   string
	kernel bool // a command line, not a command
}{
	{"grub_cmd: ", false}, {"kernel_cmdline: ", true}, {"module_cmdline: ", true},
	{"grub_cmd ", false}, {"grub_kernel_cmdline ", true}, {"grub_module_cmdline ", true},
}

// loadOptions is what the kernel's EFI stub calls the command line it was handed.
const loadOptions = "LOADED_IMAGE::LoadOptions"

// loader takes what boot loaders measured in one register.
func (f *facts) loader(n int, events []event) {
	section := false // the name of a unified kernel image's .cmdline was just measured
	for _, e := range events {
		if f.meaning(e) != 0 {
			continue
		}
		if n == 11 && !f.td {
			// systemd-stub measures each section's name, then its content.
			if section {
				f.line("systemd-stub", "", e)
			}
			section = f.hashes(e, []byte(".cmdline\x00"))
		}
		if content, kind, ok := f.readText(e); ok {
			f.text(e, content, kind)
			continue
		}
		name := label(e)
		switch {
		case strings.Contains(name, loadOptions):
			f.line("efi-stub", "", e)
		case (n == 8 || n == 12) && !f.td:
			f.line("unread", "", e)
		case f.td && strings.HasPrefix(name, "MokList"):
			f.MOK = append(f.MOK, attest.MOKFact{Name: name, Digest: f.hex(e)})
		}
		f.Files = append(f.Files, attest.BootFile{Register: f.name(n), Name: name, Digest: f.hex(e)})
	}
}

// line adds a command line, once where the same text came twice.
func (f *facts) line(source, content string, e event) {
	for i, x := range f.CommandLines {
		if content != "" && x.Text == content && x.Source == source {
			f.CommandLines[i].Digest = f.hex(e)
			return
		}
	}
	f.CommandLines = append(f.CommandLines, attest.CommandLine{Source: source, Text: content, Digest: f.hex(e)})
}

// label of a text, as far as the log's word goes.
type textKind int

const (
	plainText      textKind = iota
	grubText                // a command
	kernelText              // a command line
	wideKernelText          // one in UTF-16
)

// readText returns the text that an event's digest was made of: GRUB hashes its command
// without the log's prefix, systemd-boot and systemd-stub hash the command line in UTF-16.
// Whether a final zero is hashed and logged differs.
func (f *facts) readText(e event) (content string, kind textKind, ok bool) {
	for _, prefix := range grubPrefixes {
		cut, found := bytes.CutPrefix(e.data, []byte(prefix.text))
		if !found {
			continue
		}
		for _, form := range [][]byte{bytes.TrimSuffix(cut, []byte{0}), cut} {
			if f.hashes(e, form) {
				content = string(bytes.ToValidUTF8(bytes.TrimRight(form, "\x00"), []byte("?")))
				if prefix.kernel {
					return content, kernelText, true
				}
				return content, grubText, true
			}
		}
	}
	candidates := [][]byte{e.data}
	if tag, content := taggedEvent(e.data); tag {
		candidates = append(candidates, content)
	}
	for _, data := range candidates {
		for _, form := range finalZeros(data) {
			if !f.hashes(e, form) {
				continue
			}
			if s := strings.TrimRight(string(form), "\x00"); printable(s) {
				return s, plainText, true
			}
			if s := decodeUTF16(form); len(form)%2 == 0 && printable(s) {
				return s, wideKernelText, true
			}
		}
	}
	return "", plainText, false
}

// finalZeros returns data as they are, and with more and fewer zeros at their end.
func finalZeros(data []byte) [][]byte {
	return [][]byte{data, append(bytes.Clone(data), 0), append(bytes.Clone(data), 0, 0),
		bytes.TrimSuffix(data, []byte{0}), bytes.TrimSuffix(data, []byte{0, 0})}
}

// printable reports whether a text is one.
func printable(s string) bool {
	for _, r := range s {
		if r < 0x20 && r != '\n' && r != '\t' || r == 0x7f || r == '\uFFFD' {
			return false
		}
	}
	return s != ""
}

// text sorts a text that was hashed. The label is the log's word: whatever it says, a
// command that loads a kernel is a command line.
func (f *facts) text(e event, content string, kind textKind) {
	command, rest, _ := strings.Cut(strings.TrimSpace(content), " ")
	switch {
	case kind == wideKernelText:
		f.line("systemd-stub", content, e)
	case kind == kernelText:
		f.line("grub", content, e)
	case loadsKernel(command):
		f.GRUB = append(f.GRUB, content)
		f.line("grub", strings.TrimSpace(rest), e)
	case kind == grubText:
		f.GRUB = append(f.GRUB, content)
	default:
		f.Files = append(f.Files, attest.BootFile{Register: f.name(e.register), Name: content, Digest: f.hex(e)})
	}
}

// loadsKernel reports whether a GRUB command starts a kernel or another loader.
func loadsKernel(command string) bool {
	switch command {
	case "linux", "linuxefi", "linux16", "chainloader", "multiboot", "multiboot2", "xen_hypervisor", "kfreebsd", "ntldr", "devicetree":
		return true
	}
	return false
}

// runtime takes dstack's own events: name and payload where they hash to the digest.
func (f *facts) runtime(events []event) {
	for _, e := range events {
		fact := attest.RuntimeFact{Digest: f.hex(e)}
		if f.hashes(e, runtimeData(e.kind, e.label, e.data)) {
			fact.Name, fact.Value = e.label, payload(e.data)
		}
		f.Runtime = append(f.Runtime, fact)
	}
}
