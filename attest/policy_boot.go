package attest

import "slices"

// BootPolicy lists what is demanded of a boot. The zero value refuses every boot.
type BootPolicy struct {
	// AllowNoLog accepts evidence without an event log: the registers are then judged by
	// the reference values alone. It has no effect where something below is named: whoever
	// sends evidence could leave the log out.
	AllowNoLog         bool `yaml:"allow_no_log"`
	AllowSecureBootOff bool `yaml:"allow_secure_boot_off"`
	AllowFirmwareDebug bool `yaml:"allow_firmware_debug"`
	// AllowDMAUnprotected accepts firmware that does not keep devices out of memory.
	AllowDMAUnprotected bool `yaml:"allow_dma_unprotected"`
	// MinimumDBX must all be in the measured dbx: hashes, or digests of certificates.
	MinimumDBX []string `yaml:"minimum_dbx"`
	// MinimumSBAT is the least revocation level by component: {shim: 4, grub: 5}; the
	// level's date is sbat.date.
	MinimumSBAT map[string]uint64 `yaml:"minimum_sbat"`
	// Components, CommandLines, Files and MOK list what is allowed: digests of images;
	// texts; digests of what loaders read; digests of shim's variables. Any allows all,
	// an empty list none. Only a TD's list of files makes its command lines complete.
	Components   []string `yaml:"components"`
	CommandLines []string `yaml:"command_lines"`
	Files        []string `yaml:"files"`
	MOK          []string `yaml:"mok"`
}

// IMAPolicy lists what is demanded of the files that a kernel measured. The zero value
// refuses every list that has an entry, and that there is none.
type IMAPolicy struct {
	// AllowNoList accepts evidence without an IMA list, unless Allowed names digests.
	AllowNoList bool `yaml:"allow_no_list"`
	// Allowed are digests of files and buffers, "sha256:HEX", or Any.
	Allowed []string `yaml:"allowed"`
	// MaxViolations is how many entries may say that a file changed while it was read.
	MaxViolations int `yaml:"max_violations"`
}

// names reports whether p names what must or may be in a boot: only its log can show that.
func (p BootPolicy) names() bool {
	return len(p.MinimumDBX) > 0 || len(p.MinimumSBAT) > 0 ||
		slices.ContainsFunc([][]string{p.Components, p.CommandLines, p.Files, p.MOK}, named)
}

// names reports whether p names the files that it allows.
func (p IMAPolicy) names() bool { return named(p.Allowed) }

func named(allowed []string) bool { return len(allowed) > 0 && !anything(allowed) }

// StrictBoot demands a log and Secure Boot, and names no software. DMA protection is not
// demanded: many servers ship without.
func StrictBoot() BootPolicy {
	all := []string{Any}
	return BootPolicy{AllowDMAUnprotected: true, Components: all, CommandLines: all, Files: all, MOK: all}
}

// StrictIMA believes a list that is there, and names no files.
func StrictIMA() IMAPolicy {
	return IMAPolicy{AllowNoList: true, Allowed: []string{Any}}
}
