package sevsnp

// ReportSize is the size of an attestation report; nothing may follow it.
const ReportSize = 0x4A0

// Report versions this package knows. AMD released no firmware that makes version 1.
const (
	minVersion = 2
	maxVersion = 5
)

const (
	// maxKnown bounds the endorsement keys whose chains are remembered, a few KiB each. A
	// mesh has one for each machine.
	maxKnown = 1024
	// maxCRL bounds a revocation list, in bytes. AMD's have about one KiB.
	maxCRL = 64 << 10
	// maxCRLs bounds the revocation lists of one evidence, and maxKnownCRLs those whose
	// signature is remembered.
	maxCRLs      = 8
	maxKnownCRLs = 32
	// maxTries bounds the certificates that fit a report and whose chains are verified.
	maxTries = 4
)
