package collect

import "github.com/attestmesh/meshnode/attest/ima"

// Limits on what is read, checked before parsing.
const (
	maxFile  = ima.MaxList // bytes of one file; no other kind may be as long
	maxPart  = 64 << 10    // bytes of a certificate or collateral file beside evidence
	maxFiles = 256         // files looked at in one folder
)
