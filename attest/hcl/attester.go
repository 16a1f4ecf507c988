package hcl

import (
	"context"
	"errors"
	"fmt"

	"github.com/attestmesh/meshnode/attest"
)

// ReportIndex is the NV index in which the paravisor keeps its report.
const ReportIndex = 0x01400001

// Machine is the paravisor's TPM as its guest sees it; a *vtpm.Attester is one.
type Machine interface {
	attest.Attester
	Probe(ctx context.Context) error
	// ReadIndex returns what is in an NV index.
	ReadIndex(ctx context.Context, index uint32) ([]byte, error)
}

// Attester makes composite evidence of an SEV-SNP guest with a paravisor: the quote of its
// TPM, by the key that the report names, and that report. The guest has no other way to its
// TEE. The certificate of the report's key is not in the machine; the evidence is to be
// completed from collateral.
type Attester struct{ tpm Machine }

// errTD is returned on a TD with a paravisor.
var errTD = errors.New("the report of a TD's paravisor is evidence only with a quote, which the host's service alone can make of it")

// NewAttester returns the attester by a TPM that quotes with the paravisor's attestation key.
func NewAttester(tpm Machine) *Attester { return &Attester{tpm} }

// Kind returns "sevsnp,vtpm".
func (*Attester) Kind() string { return attest.KindSEVSNP + "," + attest.KindVTPM }

// Probe reports whether the TPM answers and has a report of an SEV-SNP guest.
func (a *Attester) Probe(ctx context.Context) error {
	_, err := a.report(ctx)
	return err
}

// Attest implements attest.Attester: data is what the quote carries. The report carries what
// it did when the machine started, which names the quote's key.
func (a *Attester) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	report, err := a.report(ctx)
	if err != nil {
		return attest.Evidence{}, err
	}
	ev, err := a.tpm.Attest(ctx, data)
	if err != nil {
		return attest.Evidence{}, err
	}
	ev.Kind = a.Kind()
	ev.Items = append([]attest.Item{{Type: attest.TypeHCLReport, Data: report}}, ev.Items...)
	return ev, ev.Check()
}

// Extend extends the runtime event log's register. It implements attest.Extender.
func (a *Attester) Extend(ctx context.Context, event []byte) error {
	e, ok := a.tpm.(attest.Extender)
	if !ok {
		return errors.New("this TPM cannot be extended")
	}
	return e.Extend(ctx, event)
}

// report reads the report, which the paravisor renews whenever its index is written to.
func (a *Attester) report(ctx context.Context) ([]byte, error) {
	raw, err := a.tpm.ReadIndex(ctx, ReportIndex)
	if err != nil {
		return nil, err
	}
	r, err := Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("NV index %#x: %w", ReportIndex, err)
	}
	if r.TEE != attest.KindSEVSNP {
		return nil, fmt.Errorf("NV index %#x: %w", ReportIndex, errTD)
	}
	return raw, nil
}
