// Package tsm gets reports from Linux's configfs-tsm (Documentation/ABI/testing/
// configfs-tsm-report): one interface for the guests of AMD, Intel and others, in which the
// driver's name, the provider, says whose report comes out. The files are handled by
// go-configfs-tsm, which makes an entry of its own for each report and notices by its
// generation if anybody else wrote to it.
package tsm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/linuxtsm"
	"github.com/google/go-configfs-tsm/report"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/device"
)

// The providers, as drivers name themselves.
const (
	ProviderSEVSNP = "sev_guest"
	ProviderTDX    = "tdx_guest"
)

// Path is where the kernel shows the interface.
const Path = configfsi.TsmPrefix + "/report"

// A TD waits for its host's quoting enclave, an SNP guest for the secure processor, which
// the host may make it share.
const reportWithin = time.Minute

// ErrProvider is returned where another vendor's driver answers.
var ErrProvider = errors.New("another provider")

// Source is the interface of this machine, for one provider. Methods may be called from
// several goroutines; reports are made one after the other.
type Source struct {
	device   *device.Device
	client   configfsi.Client
	provider string
}

// New returns the source that client reaches, for the named provider alone.
func New(client configfsi.Client, provider string) *Source {
	return &Source{device.New(Path), client, provider}
}

// Find returns the source of this machine if the provider is the named one. Errors for which
// errors.Is(err, fs.ErrNotExist) or errors.Is(err, ErrProvider) holds say that this is no
// guest of that vendor's, or that its kernel is without the interface.
func Find(ctx context.Context, provider string) (*Source, error) {
	client, err := system()
	if err != nil {
		return nil, err
	}
	s := New(client, provider)
	return s, s.Probe(ctx)
}

// Provider returns the name of the provider on this machine.
func Provider(ctx context.Context) (string, error) {
	client, err := system()
	if err != nil {
		return "", err
	}
	return New(client, "").name(ctx)
}

func system() (configfsi.Client, error) {
	client, err := linuxtsm.MakeClient()
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	if err != nil {
		return nil, &device.Error{Device: Path, What: "look", Err: err}
	}
	return client, nil
}

// Name names the interface, for messages.
func (s *Source) Name() string { return s.device.Name() }

// Probe returns an error unless the interface is the provider's.
func (s *Source) Probe(ctx context.Context) error {
	name, err := s.name(ctx)
	if err == nil {
		err = s.check(name)
	}
	return err
}

// name asks for the provider's.
func (s *Source) name(ctx context.Context) (string, error) {
	return device.Do(ctx, s.device, "provider", reportWithin, func(time.Time) (string, error) {
		r, err := report.Create(s.client, &report.Request{})
		if err != nil {
			return "", err
		}
		name, err := r.ReadOption("provider")
		return strings.TrimSuffix(string(name), "\n"), errors.Join(err, r.Destroy())
	})
}

// Report returns a report over data. With endorsements it also returns what the host has
// put beside it (auxblob), which may be empty.
func (s *Source) Report(ctx context.Context, data attest.ReportData, endorsements bool) (out, aux []byte, err error) {
	resp, err := device.Do(ctx, s.device, "report", reportWithin, func(time.Time) (*report.Response, error) {
		resp, err := report.Get(s.client, &report.Request{InBlob: data[:], GetAuxBlob: endorsements})
		if err != nil {
			return nil, err
		}
		return resp, nil
	})
	if err == nil {
		err = s.check(strings.TrimSuffix(resp.Provider, "\n"))
	}
	if err != nil {
		return nil, nil, err
	}
	if len(resp.OutBlob) == 0 || len(resp.OutBlob) > attest.MaxQuote || len(resp.AuxBlob) > attest.MaxQuote {
		return nil, nil, fmt.Errorf("device %s: a report of %d bytes with %d of endorsements, want 1 to %d and at most %[4]d",
			s.device.Name(), len(resp.OutBlob), len(resp.AuxBlob), attest.MaxQuote)
	}
	return resp.OutBlob, resp.AuxBlob, nil
}

func (s *Source) check(provider string) error {
	if provider != s.provider {
		return &device.Error{Device: s.device.Name(), What: "provider", Err: fmt.Errorf("%.40q, want %q: %w", provider, s.provider, ErrProvider)}
	}
	return nil
}
