package sevsnp

// ReportSize is the size of an attestation report; nothing may follow it.
const ReportSize = 0x4A0

// Report versions this package knows. AMD released no firmware that makes version 1.
const (
	minVersion = 2
	maxVersion = 5
)

// maxKnown bounds the endorsement keys whose chains are remembered, a few KiB each. A mesh
// has one for each machine.
const maxKnown = 1024
