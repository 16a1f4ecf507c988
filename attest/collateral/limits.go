package collateral

import "github.com/attestmesh/meshnode/attest"

// Limits of a store.
const (
	maxObjects = 16384         // a fleet of some thousand machines over some years
	maxObject  = attest.MaxLog // bytes; each type has its own limit in Read
)
