package attest

// BootFacts say how a machine was booted, as far as registers prove it. A scheme takes
// them from an event log only where the log replays to the register that was quoted, and
// only from what the digests themselves bind: the type of an event is not covered by any
// digest and nothing here depends on it (TCG PC Client Platform Firmware Profile §10;
// go-attestation, "event log disclosure"). Nor do names of what was hashed stand here.
type BootFacts struct {
	Format string `json:"format"` // "tcg", "sha1", "ccel", "dstack"; "paravisor" where it speaks and no log does
	Bank   string `json:"bank"`   // whose digests were replayed
	Events int    `json:"events"`
	// SecureBoot is nil if the log does not say, or says both.
	SecureBoot *bool `json:"secure_boot,omitempty"`
	// FirmwareDebug is a firmware that reports its debugger, DMAUnprotected one that lets
	// devices write to memory before the operating system runs.
	FirmwareDebug  bool `json:"firmware_debug"`
	DMAUnprotected bool `json:"dma_unprotected"`
	// The variables of Secure Boot, nil if not measured before the boot loader ran.
	PK  *SignatureDatabase `json:"pk,omitempty"`
	KEK *SignatureDatabase `json:"kek,omitempty"`
	DB  *SignatureDatabase `json:"db,omitempty"`
	DBX *SignatureDatabase `json:"dbx,omitempty"`
	// Authorities are what the firmware and shim verified images with, in order.
	Authorities []Authority `json:"authorities,omitempty"`
	// SBAT is shim's revocation level by component: generations below are not started.
	SBAT map[string]uint64 `json:"sbat,omitempty"`
	// Components are the images that firmware and loaders started, in order: option ROMs
	// and drivers, shim, GRUB or systemd-boot, the kernel.
	Components []BootComponent `json:"components,omitempty"`
	// CommandLines are those handed to the kernel.
	CommandLines []CommandLine `json:"command_lines,omitempty"`
	// GRUB are the commands that it ran.
	GRUB []string `json:"grub,omitempty"`
	// MOK are digests of shim's lists of the machine owner's additions to Secure Boot.
	MOK []string `json:"mok,omitempty"`
	// Files are what the loader read (kernel, initrd, modules) by digest.
	Files []BootFile `json:"files,omitempty"`
	// Runtime are dstack's own events, by which it says what it started.
	Runtime []RuntimeFact `json:"runtime,omitempty"`
	// Unexplained are registers of a TPM that facts above are taken from and of which the log
	// shows nothing though it might: they are not quoted, or were extended without an event.
	Unexplained []string `json:"unexplained,omitempty"`
	// Contradictions say where the log cannot be believed though it replays.
	Contradictions []string `json:"contradictions,omitempty"`
}

// SignatureDatabase is the content of an authenticated UEFI variable (UEFI 2.10 §32.4.1).
type SignatureDatabase struct {
	Certificates []CertificateFact `json:"certificates,omitempty"`
	Hashes       []string          `json:"hashes,omitempty"` // SHA-256 of images, or of a certificate's TBS
	Other        int               `json:"other,omitempty"`  // entries of further types
}

// CertificateFact names one certificate of a database.
type CertificateFact struct {
	Digest  string `json:"digest"` // SHA-256 of the DER
	Subject string `json:"subject,omitempty"`
}

// Authority is an entry that verified an image.
type Authority struct {
	Variable string `json:"variable"`          // "db", "MokList", "Shim", …
	Digest   string `json:"digest"`            // SHA-256 of the certificate, else of the entry
	Subject  string `json:"subject,omitempty"` // of the certificate
}

// BootComponent is an image that was started.
type BootComponent struct {
	Register string `json:"register"`
	Digest   string `json:"digest"` // Authenticode, in the facts' bank
}

// CommandLine is what a kernel was started with. Digest is what was extended; Text is
// set where the log holds bytes of that digest.
type CommandLine struct {
	Source string `json:"source"` // "grub", "systemd-stub"; "unread" where the log does not hold it
	Text   string `json:"text,omitempty"`
	Digest string `json:"digest"`
}

// BootFile is something that a loader read. Name is set where it is the text that was
// measured.
type BootFile struct {
	Register string `json:"register"`
	Name     string `json:"name,omitempty"`
	Digest   string `json:"digest"`
}

// RuntimeFact is an event of the guest's own. Name and Value are set where they hash to
// the digest; Value is text, or hex.
type RuntimeFact struct {
	Name   string `json:"name,omitempty"`
	Value  string `json:"value,omitempty"`
	Digest string `json:"digest"`
}

// IMAFacts are what an IMA list says, as far as the quoted register covers it.
type IMAFacts struct {
	Bank    string `json:"bank"`
	Entries int    `json:"entries"` // covered by the quote
	// Beyond counts entries that came after the quote; they are not judged.
	Beyond     int `json:"beyond,omitempty"`
	Violations int `json:"violations"`
	// Unverified counts entries whose data do not hash to what was extended.
	Unverified int `json:"unverified"`
	// BootAggregate compares the first entry with the quoted registers 0 to 9: "matches",
	// "differs", or "" where they are not quoted or there is no such entry.
	BootAggregate string `json:"boot_aggregate,omitempty"`
	// Files are the files and buffers measured, in order.
	Files []IMAFile `json:"files,omitempty"`
}

// IMAFile is one measurement.
type IMAFile struct {
	Digest    string `json:"digest"` // "sha256:HEX"
	Path      string `json:"path"`
	Signature string `json:"signature,omitempty"` // security.ima, in hex; not checked here
}
