// Package schemes gathers the schemes by which a Relying Party judges evidence: those of the
// vendors whose roots are compiled in, and the simulated one where somebody names its roots.
package schemes

import (
	"crypto"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/attest/sim"
	"github.com/attestmesh/meshnode/attest/tdx"
)

// Under returns a scheme for every kind that can be verified. simRoots are those that a
// genesis admits; without any, simulated evidence is of a kind that nobody knows.
func Under(simRoots ...crypto.PublicKey) ([]attest.Scheme, error) {
	snp, err := sevsnp.New()
	if err != nil {
		return nil, err
	}
	td, err := tdx.New()
	if err != nil {
		return nil, err
	}
	out := []attest.Scheme{snp, td}
	if len(simRoots) == 0 {
		return out, nil
	}
	s, err := sim.NewScheme(simRoots...)
	if err != nil {
		return nil, err
	}
	return append(out, s), nil
}
