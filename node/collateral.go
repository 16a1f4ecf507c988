package node

import (
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/collateral"
)

// withCollateral returns a as it is, or so that its evidence brings what the configured store
// has: peers judge offline.
func withCollateral(a attest.Attester, dir string) (attest.Attester, error) {
	if dir == "" {
		return a, nil
	}
	if !collateral.IsStore(dir) {
		return nil, &ConfigError{Field: "attester.collateral", Err: fmt.Errorf("%s is no store of collateral", dir), Remedy: "fill it first (meshnode collateral fetch), or leave it out"}
	}
	store, err := collateral.Open(dir)
	if err != nil {
		return nil, &ConfigError{Field: "attester.collateral", Err: err, Remedy: "name a directory that this user can read"}
	}
	return store.Attester(a, time.Now), nil
}
