package sevsnp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/client"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/device"
	"github.com/attestmesh/meshnode/attest/tsm"
)

// DevicePath is the device of Linux's sev-guest driver, which kernels before 6.7 have
// instead of configfs-tsm.
const DevicePath = "/dev/sev-guest"

// reportWithin is how long the secure processor may take. The driver's client waits up to
// two seconds between requests, since hosts throttle them.
const reportWithin = time.Minute

// Attester gets attestation reports of this guest at its own VMPL, with the certificates
// that the host provides. Hosts may provide none: the evidence is then to be completed
// from collateral.
type Attester struct {
	name  string
	probe func(context.Context) error
	// report returns a report and the certificate table (AMD 56421, §4.1.8.1).
	report func(context.Context, attest.ReportData) (report, table []byte, err error)
}

// FindAttester returns the attester of this machine: by configfs-tsm where the kernel has
// it, else by the device. An error for which errors.Is(err, fs.ErrNotExist) holds says
// that this is no SEV-SNP guest.
func FindAttester(ctx context.Context) (*Attester, error) {
	source, err := tsm.Find(ctx, tsm.ProviderSEVSNP)
	return choose(source, err, DevicePath)
}

// choose returns the attester by source; by the device if looking for source found that there
// is none.
func choose(source *tsm.Source, err error, path string) (*Attester, error) {
	switch {
	case err == nil:
		return NewTSMAttester(source), nil
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, tsm.ErrProvider):
		return nil, err
	}
	if err := device.Present(path); err != nil {
		return nil, err
	}
	return NewDeviceAttester(path, func() client.Device { return &client.LinuxDevice{} }), nil
}

// NewTSMAttester returns an attester by configfs-tsm.
func NewTSMAttester(source *tsm.Source) *Attester {
	return &Attester{name: source.Name(), probe: source.Probe, report: func(ctx context.Context, data attest.ReportData) ([]byte, []byte, error) {
		return source.Report(ctx, data, true)
	}}
}

// NewDeviceAttester returns an attester by the ioctls of the device at path, which make
// returns unopened.
func NewDeviceAttester(path string, make func() client.Device) *Attester {
	d := device.New(path)
	type answer struct{ report, table []byte }
	opened := func(f func(client.Device) (answer, error)) func(time.Time) (answer, error) {
		return func(time.Time) (answer, error) {
			dev := make()
			if err := dev.Open(path); err != nil {
				return answer{}, err
			}
			out, err := f(dev)
			return out, errors.Join(err, dev.Close())
		}
	}
	return &Attester{name: path,
		probe: func(ctx context.Context) error {
			_, err := device.Do(ctx, d, "open", reportWithin, opened(func(client.Device) (answer, error) { return answer{}, nil }))
			return err
		},
		report: func(ctx context.Context, data attest.ReportData) ([]byte, []byte, error) {
			a, err := device.Do(ctx, d, "report", reportWithin, opened(func(dev client.Device) (out answer, err error) {
				//lint:ignore SA1019 the provider that replaces it opens its own device, which no test can stand in for
				if out.report, out.table, err = client.GetRawExtendedReport(dev, data); err != nil || len(out.table) == 0 {
					out.table = nil
					//lint:ignore SA1019 as above
					out.report, err = client.GetRawReport(dev, data) // a host without certificates
				}
				return out, err
			}))
			return a.report, a.table, err
		},
	}
}

// Kind implements attest.Attester.
func (*Attester) Kind() string { return attest.KindSEVSNP }

// Name names the interface that reports come from.
func (a *Attester) Name() string { return a.name }

// Probe reports whether the interface is there and this guest's.
func (a *Attester) Probe(ctx context.Context) error { return a.probe(ctx) }

// Attest implements attest.Attester.
func (a *Attester) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	raw, table, err := a.report(ctx, data)
	if err != nil {
		return attest.Evidence{}, err
	}
	if len(raw) != ReportSize || !bytes.Equal(raw[reportDataOffset:][:attest.ReportDataSize], data[:]) {
		return attest.Evidence{}, fmt.Errorf("device %s: %d bytes that are no report over the data that was given, want %d", a.name, len(raw), ReportSize)
	}
	ev := attest.Evidence{Kind: attest.KindSEVSNP, Items: []attest.Item{{Type: attest.TypeSEVSNPReport, Data: raw}}}
	certificates, err := tableCertificates(table)
	if err != nil {
		return attest.Evidence{}, fmt.Errorf("device %s: %w", a.name, err)
	}
	for _, der := range certificates {
		ev.Items = append(ev.Items, attest.Item{Type: attest.TypeCertificate, Data: der})
	}
	return ev, ev.Check()
}

// reportDataOffset is that of REPORT_DATA (AMD 56860, table "ATTESTATION_REPORT").
const reportDataOffset = 0x50

// tableCertificates returns the certificates of a table, whose other entries are left out.
func tableCertificates(raw []byte) ([][]byte, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	var table abi.CertTable
	if err := table.Unmarshal(raw); err != nil {
		return nil, fmt.Errorf("certificate table: %w", err)
	}
	var out [][]byte
	for _, e := range table.Entries {
		switch e.GUID.String() {
		case abi.VcekGUID, abi.VlekGUID, abi.AskGUID, abi.ArkGUID, abi.AsvkGUID:
			if len(e.RawCert) > 0 {
				out = append(out, e.RawCert)
			}
		}
	}
	return out, nil
}
