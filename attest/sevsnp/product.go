package sevsnp

import "github.com/attestmesh/meshnode/attest"

// The product lines, as AMD's key distribution service names them.
const (
	Milan = "Milan" // Zen 3
	Genoa = "Genoa" // Zen 4, and Zen 4c parts (Bergamo, Siena), which share its roots
	Turin = "Turin" // Zen 5, and Zen 5c parts (Turin dense)
)

// The bytes of a TCB_VERSION by the number n of their extension 1.3.6.1.4.1.3704.1.3.n in
// a certificate, the number of the lowest byte first (AMD 56860, table "TCB_VERSION
// Structure"; AMD 57230, "VCEK Certificate"). Turin put the FMC in front and moved the
// others; Genoa and before have no n of 9.
var (
	tcbLayout      = [8]int{1, 2, 4, 5, 6, 7, 3, 8}
	tcbLayoutTurin = [8]int{9, 1, 2, 3, 5, 6, 7, 8}
)

func layoutOf(product string) [8]int {
	if product == Turin {
		return tcbLayoutTurin
	}
	return tcbLayout
}

// decodeTCB names the bytes of a TCB_VERSION; those that are reserved have no name.
func decodeTCB(b []byte, product string) attest.TCB {
	if product == Turin {
		return attest.TCB{FMC: b[0], BootLoader: b[1], TEE: b[2], SNP: b[3], Microcode: b[7]}
	}
	return attest.TCB{BootLoader: b[0], TEE: b[1], SNP: b[6], Microcode: b[7]}
}
