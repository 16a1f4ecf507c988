package attest

import (
	"crypto"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf16"

	_ "crypto/sha1" // digests of command lines
	_ "crypto/sha256"
	_ "crypto/sha512"
)

// noLogRemedy is where an event log is to be had.
const noLogRemedy = "put the machine's event log (/sys/kernel/security/tpm0/binary_bios_measurements) beside the evidence; meshnode attest takes it along"

// boot judges how a machine was booted; prefix is the section whose claims these are.
func (a *appraisal) boot(prefix string, p BootPolicy, c *BootFacts) {
	if c == nil {
		if !p.AllowNoLog || p.names() {
			r := NewReason(CodeCollateralMissing, prefix, "no event log", "the log of this boot")
			r.Remedy = noLogRemedy // no vendor has it
			a.add(tierUndecided, executables, r)
		}
		return
	}
	for _, text := range c.Contradictions {
		a.refuse(configuration, CodeBootLog, prefix, text, "a log that says one thing")
	}
	switch {
	case c.SecureBoot != nil && *c.SecureBoot, p.AllowSecureBootOff:
	case c.SecureBoot == nil:
		a.refuse(configuration, CodeSecureBootOff, prefix+".secure_boot", "not in the authenticated log", "true")
	default:
		a.refuse(configuration, CodeSecureBootOff, prefix+".secure_boot", "false", "true")
	}
	if c.FirmwareDebug && !p.AllowFirmwareDebug {
		a.refuse(configuration, CodeFirmwareDebug, prefix+".firmware_debug", "true", "false")
	}
	if c.DMAUnprotected && !p.AllowDMAUnprotected {
		a.refuse(configuration, CodeFirmwareDebug, prefix+".dma_unprotected", "true", "false")
	}
	a.revocations(prefix, p, c)
	a.explained(prefix, p, c)
	a.components(prefix, p, c)
}

// explained refuses a log that leaves out what a list of the policy is about: that it shows
// nothing else there says nothing.
func (a *appraisal) explained(prefix string, p BootPolicy, c *BootFacts) {
	for _, list := range []struct {
		name      string
		code      Code
		part      part
		allowed   []string
		registers []string
	}{
		{"components", CodeBootComponent, executables, p.Components, []string{"pcr2", "pcr4"}},
		{"command_lines", CodeCommandLine, executables, p.CommandLines, []string{"pcr8", "pcr12"}},
		{"files", CodeBootFile, executables, p.Files, []string{"pcr8", "pcr9", "pcr12"}},
		{"mok", CodeMOK, configuration, p.MOK, []string{"pcr14"}},
	} {
		if anything(list.allowed) {
			continue
		}
		for _, register := range list.registers {
			if slices.Contains(c.Unexplained, register) {
				a.refuse(list.part, list.code, prefix+"."+list.name, register+" without its events", register+" quoted, and all events of it in the log")
			}
		}
	}
}

// revocations compares the lists of what may no longer start.
func (a *appraisal) revocations(prefix string, p BootPolicy, c *BootFacts) {
	var missing []string
	for _, want := range p.MinimumDBX {
		if !c.DBX.contains(want) {
			missing = append(missing, want)
		}
	}
	if len(missing) > 0 {
		got := "not measured"
		if c.DBX != nil {
			got = fmt.Sprintf("%d hashes and %d certificates without %s", len(c.DBX.Hashes), len(c.DBX.Certificates), few(missing))
		}
		a.refuse(configuration, CodeDBXTooOld, prefix+".dbx", got, fmt.Sprintf("%d entries in it", len(p.MinimumDBX)))
	}
	for _, name := range slices.Sorted(maps.Keys(p.MinimumSBAT)) {
		got, ok := c.SBAT[name]
		if want := p.MinimumSBAT[name]; !ok || got < want {
			text := fmt.Sprint(got)
			if !ok {
				text = "no level"
			}
			a.refuse(configuration, CodeSBATTooOld, prefix+".sbat."+name, text, fmt.Sprintf("at least %d", want))
		}
	}
}

// contains reports whether a database holds a hash, or a certificate by its digest.
func (d *SignatureDatabase) contains(digest string) bool {
	return d != nil && (slices.Contains(d.Hashes, digest) ||
		slices.ContainsFunc(d.Certificates, func(c CertificateFact) bool { return c.Digest == digest }))
}

// components compares what was started with what may be.
func (a *appraisal) components(prefix string, p BootPolicy, c *BootFacts) {
	var started, read []string
	for _, x := range c.Components {
		started = append(started, x.Digest)
	}
	for _, x := range c.Files {
		read = append(read, x.Digest)
	}
	// A kernel that is started without a loader's text measures its command line as it
	// measures a file: the digest alone says which it is.
	lines := a.commandLines(prefix, p, c, slices.Concat(started, read))
	a.digests(CodeBootComponent, executables, prefix+".components", started, p.Components, lines, true)
	a.digests(CodeBootFile, executables, prefix+".files", read, p.Files, lines, false)
	a.digests(CodeMOK, configuration, prefix+".mok", c.MOK, p.MOK, nil, false)
}

// digests refuses those that are neither allowed nor among the command lines, and that there
// are none where there must be some.
func (a *appraisal) digests(code Code, part part, claim string, got, allowed, lines []string, some bool) {
	if anything(allowed) {
		return
	}
	for _, d := range got {
		if !slices.Contains(allowed, d) && !slices.Contains(lines, d) {
			a.refuse(part, code, claim, d, few(allowed))
		}
	}
	if len(got) == 0 && some {
		a.refuse(part, code, claim, "none", few(allowed))
	}
}

// commandLines judges command lines and returns the digests among others that are those of
// allowed ones.
func (a *appraisal) commandLines(prefix string, p BootPolicy, c *BootFacts, others []string) (digests []string) {
	if anything(p.CommandLines) {
		return nil
	}
	for _, d := range others {
		if (CommandLine{Digest: d}).among(c.Bank, p.CommandLines) {
			digests = append(digests, d)
		}
	}
	for _, x := range c.CommandLines {
		if !x.among(c.Bank, p.CommandLines) {
			a.refuse(executables, CodeCommandLine, prefix+".command_lines", orDigest(x.Text, x.Digest), few(p.CommandLines))
		}
	}
	if len(c.CommandLines)+len(digests) == 0 {
		a.refuse(executables, CodeCommandLine, prefix+".command_lines", "none in the log", few(p.CommandLines))
	}
	return digests
}

// among reports whether a command line is one of those allowed: by its text or, where the
// log does not hold the text, by the digest of the text as loaders write it, in UTF-8 or
// UTF-16 (little endian), with or without a final zero.
func (l CommandLine) among(bank string, allowed []string) bool {
	hash, known := map[string]crypto.Hash{"sha1": crypto.SHA1, "sha256": crypto.SHA256, "sha384": crypto.SHA384, "sha512": crypto.SHA512}[bank]
	for _, text := range allowed {
		if l.Text != "" || !known {
			if l.Text == text && text != "" {
				return true
			}
			continue
		}
		wide := make([]byte, 0, 2*len(text)+2)
		for _, u := range utf16.Encode([]rune(text)) {
			wide = binary.LittleEndian.AppendUint16(wide, u)
		}
		for _, form := range [][]byte{[]byte(text), append([]byte(text), 0), wide, append(slices.Clone(wide), 0, 0)} {
			h := hash.New()
			h.Write(form)
			if hex.EncodeToString(h.Sum(nil)) == l.Digest {
				return true
			}
		}
	}
	return false
}

func orDigest(text, digest string) string {
	if text != "" {
		return text
	}
	return digest
}

// few lists values without flooding a line.
func few(values []string) string {
	if len(values) > 3 {
		return fmt.Sprintf("%s and %d more", strings.Join(values[:3], ", "), len(values)-3)
	}
	return list(values)
}
