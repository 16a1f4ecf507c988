package attest

import "time"

// Claims are facts that a Scheme established as authentic. The zero value is not genuine.
// Claims are kept with the verdict so that a later policy can judge them again without a
// new quote; they hold no secrets, but hardware ids in them are private to members.
type Claims struct {
	Kind    string `json:"kind"`
	Genuine bool   `json:"genuine"`
	// Bound reports whether the report data was compared and equal.
	Bound bool `json:"bound"`
	// Measurement is the kind's primary reference value in lower-case hex: SEV-SNP
	// MEASUREMENT, TDX MRTD, for vtpm a hash over the registers of the boot, for sim the
	// executable; of a composite that of its TEE.
	Measurement string `json:"measurement"`
	ReportData  string `json:"report_data,omitempty"`
	// Registers holds further measured values by the vendor's name: "rtmr0", "pcr4".
	Registers map[string]string `json:"registers,omitempty"`
	// HardwareID is the chip id, PPID or EK digest in hex; private.
	HardwareID string `json:"hardware_id,omitempty"`
	// Hardware is the commitment to HardwareID under the salt that came with the evidence;
	// empty where none came, or the chip is masked.
	Hardware string    `json:"hardware,omitempty"`
	At       time.Time `json:"at"`

	SEVSNP *SEVSNPClaims `json:"sevsnp,omitempty"`
	TDX    *TDXClaims    `json:"tdx,omitempty"`
	VTPM   *VTPMClaims   `json:"vtpm,omitempty"`
	Sim    *SimClaims    `json:"sim,omitempty"`
}

// SimClaims come from a sim platform: trials only, it protects nothing from its host.
type SimClaims struct {
	Platform string `json:"platform"` // digest of the platform's root key
}
