// Package schemes gathers the schemes by which a Relying Party judges evidence: those of the
// vendors whose roots are compiled in, that of TPMs, and the composites of both, and the
// simulated one where somebody names its roots.
package schemes

import (
	"crypto"
	"crypto/x509"
	"slices"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/chains"
	"github.com/attestmesh/meshnode/attest/hcl"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/attest/sim"
	"github.com/attestmesh/meshnode/attest/tdx"
	"github.com/attestmesh/meshnode/attest/vtpm"
)

// Roots are the trust anchors that nobody can compile in: those a genesis or an appraisal
// policy names.
type Roots struct {
	// Sim are keys of sim platforms. Without any, simulated evidence is of a kind that
	// nobody knows.
	Sim []crypto.PublicKey
	// VTPM certify attestation keys of TPMs. Without any, quotes can be verified, but their
	// keys are believed only by activation or where a TEE report names them.
	VTPM []*x509.Certificate
	// VTPMKeys are further ones of which a genesis names the key alone.
	VTPMKeys []crypto.PublicKey
}

// Under returns a scheme for every kind that can be verified.
func Under(roots Roots) ([]attest.Scheme, error) {
	snp, err := sevsnp.New()
	if err != nil {
		return nil, err
	}
	td, err := tdx.New()
	if err != nil {
		return nil, err
	}
	anchors, err := chains.Anchors(roots.VTPMKeys...)
	if err != nil {
		return nil, err
	}
	tpm := vtpm.New(slices.Concat(roots.VTPM, anchors))
	out := []attest.Scheme{snp, td, tpm}
	for _, tee := range []attest.Scheme{snp, td} {
		both, err := hcl.New(tee, tpm)
		if err != nil {
			return nil, err
		}
		out = append(out, both)
	}
	if len(roots.Sim) == 0 {
		return out, nil
	}
	s, err := sim.NewScheme(roots.Sim...)
	if err != nil {
		return nil, err
	}
	return append(out, s), nil
}
