package tdx_test

import (
	"bytes"
	"crypto/sha512"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/faketsm"
	"github.com/google/go-tdx-guest/client"
	"github.com/google/go-tdx-guest/client/linuxabi"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/device"
	"github.com/attestmesh/meshnode/attest/tdx"
	"github.com/attestmesh/meshnode/attest/tsm"
)

// td makes the quotes of a forged platform.
type td struct {
	t      *testing.T
	forger *attesttest.TDX
	guest  *attesttest.Attester
}

func newTD(t *testing.T) *td {
	f := attesttest.NewTDX(t.Name())
	return &td{t, f, f.Attester(attesttest.Measurement("td"))}
}

func (m *td) quote(data []byte) []byte {
	m.t.Helper()
	ev, err := m.guest.Attest(m.t.Context(), attest.ReportData(data))
	if err != nil {
		m.t.Fatal(err)
	}
	return ev.Find(attest.TypeTDXQuote)[0]
}

// configfs is configfs-tsm of a TD, its driver naming itself provider.
func (m *td) configfs(provider string, quote func([]byte) []byte) configfsi.Client {
	sub := faketsm.Report611(0)
	empty := sub.MakeEntry
	sub.MakeEntry = func() *faketsm.ReportEntry { // the kernel says who provides before it is asked for a report
		e := empty()
		e.ROAttrs = map[string][]byte{"provider": []byte(provider + "\n")}
		return e
	}
	sub.ReadAttr = func(e *faketsm.ReportEntry, attr string) ([]byte, error) {
		switch attr {
		case "provider":
			return []byte(provider + "\n"), nil
		case "outblob":
			return quote(e.InAttrs["inblob"].Value), nil
		}
		return nil, os.ErrNotExist
	}
	return &faketsm.Client{Subsystems: map[string]configfsi.Client{"report": sub}}
}

// accepted demands that the attester's evidence is genuine and bound.
func (m *td) accepted(a *tdx.Attester) {
	m.t.Helper()
	data := attest.ReportData{1, 2, 3}
	ev, err := a.Attest(m.t.Context(), data)
	if err != nil {
		m.t.Fatal(err)
	}
	claims, err := m.forger.Scheme().Verify(m.t.Context(), ev, &data, time.Now())
	if err != nil || !claims.Genuine || !claims.Bound {
		m.t.Errorf("got %+v, %v, want genuine and bound claims", claims, err)
	}
}

func TestAttesterByConfigfs(t *testing.T) {
	m := newTD(t)
	a := tdx.NewTSMAttester(tsm.New(m.configfs(tsm.ProviderTDX, m.quote), tsm.ProviderTDX))
	if err := a.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	m.accepted(a)

	var named *device.Error
	other := tdx.NewTSMAttester(tsm.New(m.configfs(tsm.ProviderSEVSNP, m.quote), tsm.ProviderTDX))
	if err := other.Probe(t.Context()); !errors.As(err, &named) || !strings.Contains(err.Error(), `provider: "sev_guest"`) {
		t.Errorf("on another's guest: got %v, want one that names the provider", err)
	}
	if _, err := other.Attest(t.Context(), attest.ReportData{}); !errors.As(err, &named) || named.Device != tsm.Path {
		t.Errorf("on another's guest: got %v, want one that names %s", err, tsm.Path)
	}
	for name, quote := range map[string]func([]byte) []byte{
		"a quote over other data": func([]byte) []byte { return m.quote(make([]byte, 64)) },
		"no quote":                func(data []byte) []byte { return bytes.Repeat(data, 100) },
		"nothing":                 func([]byte) []byte { return nil },
		"too much":                func([]byte) []byte { return make([]byte, attest.MaxQuote+1) },
	} {
		wrong := tdx.NewTSMAttester(tsm.New(m.configfs(tsm.ProviderTDX, quote), tsm.ProviderTDX))
		if _, err := wrong.Attest(t.Context(), attest.ReportData{1}); err == nil || !strings.Contains(err.Error(), tsm.Path) {
			t.Errorf("%s: got %v, want an error that names %s", name, err, tsm.Path)
		}
	}
}

// ioctls is /dev/tdx_guest of kernels that make quotes by it.
type ioctls struct {
	*td
	missing bool
	open    bool
	last    []byte
}

func (d *ioctls) Open(string) error {
	if d.missing {
		return syscall.ENODEV
	}
	d.open = true
	return nil
}

func (d *ioctls) Close() error { d.open = false; return nil }

func (d *ioctls) Ioctl(_ uintptr, argument any) (uintptr, error) {
	switch req := argument.(type) {
	case *linuxabi.TdxReportReq:
		d.last = bytes.Clone(req.ReportData[:])
	case *linuxabi.TdxQuoteReq:
		header := req.Buffer.(*linuxabi.TdxQuoteHdr)
		header.OutLen = uint32(copy(header.Data[:], d.quote(d.last)))
	default:
		return 0, syscall.ENOTTY
	}
	return 0, nil
}

func TestAttesterByDevice(t *testing.T) {
	d := &ioctls{td: newTD(t)}
	a := tdx.NewDeviceAttester("/dev/fake", func() client.Device { return d })
	if err := a.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	d.accepted(a)
	if d.open {
		t.Error("the device was left open")
	}
	d.missing = true
	var named *device.Error
	if _, err := a.Attest(t.Context(), attest.ReportData{}); !errors.Is(err, syscall.ENODEV) || !errors.As(err, &named) || named.Device != "/dev/fake" {
		t.Errorf("got %v, want ENODEV naming the device", err)
	}
}

func TestAttesterExtendsRTMR3(t *testing.T) {
	m := newTD(t)
	a := tdx.NewTSMAttester(tsm.New(m.configfs(tsm.ProviderTDX, m.quote), tsm.ProviderTDX))
	var _ attest.Extender = a
	got := map[int][]byte{}
	tdx.SetExtend(a, func(index int, digest []byte) error { got[index] = digest; return nil })
	if err := a.Extend(t.Context(), []byte("event")); err != nil {
		t.Fatal(err)
	}
	want := sha512.Sum384([]byte("event"))
	if len(got) != 1 || !bytes.Equal(got[3], want[:]) {
		t.Errorf("got %x, want register 3 extended by %x", got, want)
	}
	tdx.SetExtend(a, func(int, []byte) error { return syscall.EIO })
	var named *device.Error
	if err := a.Extend(t.Context(), []byte("event")); !errors.Is(err, syscall.EIO) || !errors.As(err, &named) || named.Device != tdx.RTMRPath {
		t.Errorf("got %v, want EIO naming the register", err)
	}
}
