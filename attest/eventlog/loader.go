package eventlog

import (
	"bytes"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/attestmesh/meshnode/attest"
)

// grubPrefixes stand in the log before the text that GRUB hashes; those of Red Hat's older
// one are without colon, and it hashes the final zero too.
var grubPrefixes = []string{"grub_cmd: ", "kernel_cmdline: ", "module_cmdline: ", "grub_cmd ", "grub_kernel_cmdline ", "grub_module_cmdline "}

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
				f.line("unread", "", e)
			}
			section = f.hashes(e, []byte(".cmdline\x00"))
		}
		if f.grub(e) || f.loaderText(n, e) {
			continue
		}
		if slices.ContainsFunc(grubPrefixes, func(p string) bool { return bytes.HasPrefix(e.data, []byte(p)) }) {
			f.damaged(n, e)
		}
		if (n == 8 || n == 12) && !f.td {
			f.line("unread", "", e)
		}
		f.Files = append(f.Files, attest.BootFile{Register: f.name(n), Digest: f.hex(e)})
	}
}

// line adds a command line.
func (f *facts) line(source, content string, e event) {
	f.CommandLines = append(f.CommandLines, attest.CommandLine{Source: source, Text: content, Digest: f.hex(e)})
}

// grub takes a text that GRUB measured. What stands before it in the log is not hashed, so
// that only its length is used: whatever it is called, a command that loads a kernel holds
// the command line.
func (f *facts) grub(e event) bool {
	for _, prefix := range grubPrefixes {
		if len(e.data) <= len(prefix) {
			continue
		}
		text := e.data[len(prefix):]
		for _, form := range [][]byte{bytes.TrimSuffix(text, []byte{0}), text} {
			if !f.hashes(e, form) {
				continue
			}
			content := string(bytes.ToValidUTF8(bytes.TrimRight(form, "\x00"), []byte("?")))
			f.GRUB = append(f.GRUB, content)
			if command, rest, _ := strings.Cut(strings.TrimSpace(content), " "); loadsKernel(command) {
				f.line("grub", strings.TrimSpace(rest), e)
			}
			return true
		}
	}
	return false
}

// loaderText takes a text that was measured as it stands in the log: a command line in
// UTF-16 by systemd-boot or systemd-stub, or something else's. Whether a final zero is
// hashed and logged differs.
func (f *facts) loaderText(n int, e event) bool {
	candidates := [][]byte{e.data}
	if tag, content := taggedEvent(e.data); tag {
		candidates = append(candidates, content)
	}
	for _, data := range candidates {
		for _, form := range finalZeros(data) {
			if !f.hashes(e, form) {
				continue
			}
			s := strings.TrimRight(string(form), "\x00")
			if printable(s) {
				if command, rest, _ := strings.Cut(strings.TrimSpace(s), " "); loadsKernel(command) {
					f.line("grub", strings.TrimSpace(rest), e)
				} else if (n == 8 || n == 12) && !f.td {
					f.line("systemd-stub", s, e)
				}
				f.Files = append(f.Files, attest.BootFile{Register: f.name(n), Name: truncated(s), Digest: f.hex(e)})
				return true
			}
			if s := decodeUTF16(form); len(form)%2 == 0 && printable(s) {
				f.line("systemd-stub", s, e)
				return true
			}
		}
	}
	return false
}

func truncated(s string) string {
	if len(s) > maxLabel {
		return strings.ToValidUTF8(s[:maxLabel], "") + "…"
	}
	return s
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

// loadsKernel reports whether a GRUB command starts a kernel or another loader.
func loadsKernel(command string) bool {
	switch command {
	case "linux", "linuxefi", "linux16", "chainloader", "multiboot", "multiboot2", "xen_hypervisor", "kfreebsd", "ntldr", "devicetree":
		return true
	}
	return false
}

// runtime takes dstack's own events: name and payload where they hash to the digest.
func (f *facts) runtime(n int, events []event) {
	for _, e := range events {
		fact := attest.RuntimeFact{Digest: f.hex(e)}
		if f.hashes(e, runtimeData(e.kind, e.label, e.data)) {
			fact.Name, fact.Value = e.label, payload(e.data)
		} else if e.kind == dstackRuntime {
			f.damaged(n, e)
		}
		f.Runtime = append(f.Runtime, fact)
	}
}

// payload shows text as it is and anything else in hex.
func payload(data []byte) string {
	if s := text(data); s != "" {
		return s
	}
	return hex.EncodeToString(data)
}
