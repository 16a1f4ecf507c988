package collateral

import (
	"context"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// Attester returns an attester whose evidence brings what the store has for it when it is
// made, so that a verifier need have nothing. It probes and extends as a does.
func (s *Store) Attester(a attest.Attester, now func() time.Time) attest.Attester {
	c := completing{a, s, now}
	if e, ok := a.(attest.Extender); ok {
		return extending{c, e}
	}
	return c
}

type completing struct {
	attest.Attester
	store *Store
	now   func() time.Time
}

// Attest implements attest.Attester.
func (c completing) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	ev, err := c.Attester.Attest(ctx, data)
	if err != nil {
		return attest.Evidence{}, err
	}
	return c.store.Complete(ev, c.now()), nil
}

// Probe says whether the attester answers, where it can say that.
func (c completing) Probe(ctx context.Context) error {
	if p, ok := c.Attester.(interface{ Probe(context.Context) error }); ok {
		return p.Probe(ctx)
	}
	return nil
}

type extending struct {
	completing
	extender attest.Extender
}

// Extend implements attest.Extender.
func (e extending) Extend(ctx context.Context, event []byte) error {
	return e.extender.Extend(ctx, event)
}
