package tdx

import (
	"bytes"
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/google/go-tdx-guest/client"
	"github.com/google/go-tdx-guest/rtmr"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/device"
	"github.com/attestmesh/meshnode/attest/tsm"
)

// Paths of Linux.
const (
	// DevicePath is the device of the tdx-guest driver. Only kernels that some clouds ship
	// make quotes by it; the others make them by configfs-tsm.
	DevicePath = "/dev/tdx_guest"
	// CCELPath is the event log of firmware and boot loader (UEFI 2.10, §38.4; ACPI table
	// CCEL).
	CCELPath = "/sys/firmware/acpi/tables/data/CCEL"
	// RTMRPath is the register by which the runtime event log is extended (Linux 6.16).
	RTMRPath = "/sys/class/misc/tdx_guest/measurements/rtmr3:sha384"
)

// RuntimeRTMR is the register that the runtime event log is extended into. Firmware, boot
// loader and kernel leave it to applications (Intel TDX Virtual Firmware Design Guide, §8.1).
const RuntimeRTMR = 3

// How long the host's quoting enclave, the driver and the kernel may take.
const (
	quoteWithin  = time.Minute
	extendWithin = 20 * time.Second
	logWithin    = 10 * time.Second
)

// Attester gets quotes of this TD, with its event log where the firmware left one. The
// evidence is without collateral, which a TD does not have.
type Attester struct {
	name  string
	probe func(context.Context) error
	quote func(context.Context, attest.ReportData) ([]byte, error)

	log      *device.File // nil: none
	register *device.Device
	extend   func(index int, digest []byte) error
}

// FindAttester returns the attester of this machine: by configfs-tsm where the kernel has
// it, else by the device. An error for which errors.Is(err, fs.ErrNotExist) holds says
// that this is no TD.
func FindAttester(ctx context.Context) (*Attester, error) {
	source, err := tsm.Find(ctx, tsm.ProviderTDX)
	return choose(source, err, DevicePath)
}

// choose returns the attester by source; by the device if looking for source found that there
// is none.
func choose(source *tsm.Source, err error, path string) (*Attester, error) {
	var a *Attester
	switch {
	case err == nil:
		a = NewTSMAttester(source)
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, tsm.ErrProvider):
		return nil, err
	default:
		if err := device.Present(path); err != nil {
			return nil, err
		}
		a = NewDeviceAttester(path, func() client.Device { return &client.LinuxDevice{} })
	}
	if device.Present(CCELPath) == nil {
		a.log = device.NewFile(CCELPath, attest.MaxLog, logWithin)
	}
	return a, nil
}

// newAttester returns one that extends the register of this machine.
func newAttester(name string) *Attester {
	return &Attester{name: name, register: device.New(RTMRPath), extend: rtmr.ExtendDigest}
}

// NewTSMAttester returns an attester by configfs-tsm.
func NewTSMAttester(source *tsm.Source) *Attester {
	a := newAttester(source.Name())
	a.probe = source.Probe
	a.quote = func(ctx context.Context, data attest.ReportData) ([]byte, error) {
		out, _, err := source.Report(ctx, data, false)
		return out, err
	}
	return a
}

// NewDeviceAttester returns an attester by the ioctls of the device at path, which make
// returns unopened.
func NewDeviceAttester(path string, make func() client.Device) *Attester {
	d := device.New(path)
	opened := func(f func(client.Device) ([]byte, error)) func(time.Time) ([]byte, error) {
		return func(time.Time) ([]byte, error) {
			dev := make()
			if err := dev.Open(path); err != nil {
				return nil, err
			}
			out, err := f(dev)
			return out, errors.Join(err, dev.Close())
		}
	}
	a := newAttester(path)
	a.probe = func(ctx context.Context) error {
		_, err := device.Do(ctx, d, "open", quoteWithin, opened(func(client.Device) ([]byte, error) { return nil, nil }))
		return err
	}
	a.quote = func(ctx context.Context, data attest.ReportData) ([]byte, error) {
		return device.Do(ctx, d, "quote", quoteWithin, opened(func(dev client.Device) ([]byte, error) {
			return client.GetRawQuote(dev, data)
		}))
	}
	return a
}

// Kind implements attest.Attester.
func (*Attester) Kind() string { return attest.KindTDX }

// Name names the interface that quotes come from.
func (a *Attester) Name() string { return a.name }

// Probe reports whether the interface is there and this guest's.
func (a *Attester) Probe(ctx context.Context) error { return a.probe(ctx) }

// Attest implements attest.Attester.
func (a *Attester) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	raw, err := a.quote(ctx, data)
	if err != nil {
		return attest.Evidence{}, err
	}
	// Where REPORTDATA is depends on the version; the scheme knows.
	if !LooksLike(raw) || !bytes.Contains(raw, data[:]) {
		return attest.Evidence{}, fmt.Errorf("device %s: %d bytes that are no quote over the data that was given", a.name, len(raw))
	}
	ev := attest.Evidence{Kind: attest.KindTDX, Items: []attest.Item{{Type: attest.TypeTDXQuote, Data: raw}}}
	if a.log != nil {
		log, err := a.log.Read(ctx)
		if err != nil {
			return attest.Evidence{}, fmt.Errorf("event log: %w", err)
		}
		ev.Items = append(ev.Items, attest.Item{Type: attest.TypeEventLog, Data: log})
	}
	return ev, ev.Check()
}

// Extend extends RTMR3 by SHA-384 of event. It implements attest.Extender.
func (a *Attester) Extend(ctx context.Context, event []byte) error {
	digest := sha512.Sum384(event)
	_, err := device.Do(ctx, a.register, "extend", extendWithin, func(time.Time) (struct{}, error) {
		return struct{}{}, a.extend(RuntimeRTMR, digest[:])
	})
	return err
}
