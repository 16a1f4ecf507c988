package node

import (
	"context"
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/collateral"
)

// endorsed is an attester whose evidence is completed from a store of collateral: vendors'
// certificates, TCB information, revocation lists. Peers judge offline, so whoever attests
// brings what they need; what is in the store they verify as if anybody had sent it.
type endorsed struct {
	attest.Attester
	store *collateral.Store
}

// Attest implements attest.Attester.
func (e endorsed) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	ev, err := e.Attester.Attest(ctx, data)
	if err != nil {
		return attest.Evidence{}, err
	}
	return e.store.Complete(ev, time.Now()), nil
}

// Extend implements attest.Extender; it does nothing where the attester has no register.
func (e endorsed) Extend(ctx context.Context, event []byte) error {
	if x, ok := e.Attester.(attest.Extender); ok {
		return x.Extend(ctx, event)
	}
	return nil
}

// Probe implements Prober, as far as the attester does.
func (e endorsed) Probe(ctx context.Context) error {
	if p, ok := e.Attester.(Prober); ok {
		return p.Probe(ctx)
	}
	return nil
}

// withCollateral returns a as it is, or completed from the store that is configured.
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
	return endorsed{a, store}, nil
}
