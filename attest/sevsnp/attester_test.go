package sevsnp_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/faketsm"
	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/client"
	"github.com/google/go-sev-guest/client/linuxabi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/uuid"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/device"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/attest/tsm"
)

// guest makes the reports of a forged machine.
type guest struct {
	t      *testing.T
	forger *attesttest.SEVSNP
	forged *attesttest.Attester
}

func newGuest(t *testing.T) *guest {
	f := attesttest.NewSEVSNP(sevsnp.Milan, 3)
	return &guest{t, f, f.Attester(attesttest.Measurement("guest"))}
}

// report returns a report and its certificate table.
func (g *guest) report(data []byte) (report, table []byte) {
	g.t.Helper()
	ev, err := g.forged.Attest(g.t.Context(), attest.ReportData(data))
	if err != nil {
		g.t.Fatal(err)
	}
	certificates := abi.CertTable{Entries: []abi.CertTableEntry{{GUID: uuid.New(), RawCert: []byte("of somebody else")}}}
	for _, der := range ev.Find(attest.TypeCertificate) {
		certificates.Entries = append(certificates.Entries, abi.CertTableEntry{GUID: uuid.MustParse(abi.VcekGUID), RawCert: der})
	}
	return ev.Find(attest.TypeSEVSNPReport)[0], certificates.Marshal()
}

// configfs is configfs-tsm of a guest, its driver naming itself provider.
func (g *guest) configfs(provider string, report func([]byte) (report, table []byte)) configfsi.Client {
	sub := faketsm.Report611(0)
	empty := sub.MakeEntry
	sub.MakeEntry = func() *faketsm.ReportEntry { // the kernel says who provides before it is asked for a report
		e := empty()
		e.ROAttrs = map[string][]byte{"provider": []byte(provider + "\n")}
		return e
	}
	sub.ReadAttr = func(e *faketsm.ReportEntry, attr string) ([]byte, error) {
		out, aux := report(e.InAttrs["inblob"].Value)
		switch attr {
		case "provider":
			return []byte(provider + "\n"), nil
		case "outblob":
			return out, nil
		case "auxblob":
			return aux, nil
		}
		return nil, os.ErrNotExist
	}
	return &faketsm.Client{Subsystems: map[string]configfsi.Client{"report": sub}}
}

// accepted demands that the attester's evidence is genuine and bound.
func (g *guest) accepted(a *sevsnp.Attester) {
	g.t.Helper()
	data := attest.ReportData{1, 2, 3}
	ev, err := a.Attest(g.t.Context(), data)
	if err != nil {
		g.t.Fatal(err)
	}
	claims, err := g.forger.Scheme().Verify(g.t.Context(), ev, &data, time.Now())
	if err != nil || !claims.Genuine || !claims.Bound || len(ev.Items) != 2 {
		g.t.Errorf("got %+v, %v from %d items, want genuine and bound claims from 2", claims, err, len(ev.Items))
	}
}

func TestAttesterByConfigfs(t *testing.T) {
	g := newGuest(t)
	a := sevsnp.NewTSMAttester(tsm.New(g.configfs(tsm.ProviderSEVSNP, g.report), tsm.ProviderSEVSNP))
	if err := a.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	g.accepted(a)

	other := sevsnp.NewTSMAttester(tsm.New(g.configfs(tsm.ProviderTDX, g.report), tsm.ProviderSEVSNP))
	for name, err := range map[string]error{"probe": other.Probe(t.Context()), "attest": func() error { _, err := other.Attest(t.Context(), attest.ReportData{}); return err }()} {
		var named *device.Error
		if !errors.As(err, &named) || named.Device != tsm.Path || !strings.Contains(err.Error(), `provider: "tdx_guest"`) {
			t.Errorf("%s on another's guest: got %v, want one that names %s and the provider", name, err, tsm.Path)
		}
	}
	for name, report := range map[string]func([]byte) ([]byte, []byte){
		"a report over other data": func([]byte) ([]byte, []byte) { return g.report(make([]byte, 64)) },
		"a short report":           func(data []byte) ([]byte, []byte) { r, c := g.report(data); return r[:len(r)-1], c },
		"a long report":            func(data []byte) ([]byte, []byte) { r, c := g.report(data); return append(r, 0), c },
		"nothing":                  func([]byte) ([]byte, []byte) { return nil, nil },
		"a broken table":           func(data []byte) ([]byte, []byte) { r, c := g.report(data); return r, c[:30] },
	} {
		wrong := sevsnp.NewTSMAttester(tsm.New(g.configfs(tsm.ProviderSEVSNP, report), tsm.ProviderSEVSNP))
		if _, err := wrong.Attest(t.Context(), attest.ReportData{1}); err == nil || !strings.Contains(err.Error(), tsm.Path) {
			t.Errorf("%s: got %v, want an error that names %s", name, err, tsm.Path)
		}
	}
	// A host without certificates is no obstacle: they are found elsewhere.
	bare := sevsnp.NewTSMAttester(tsm.New(g.configfs(tsm.ProviderSEVSNP, func(data []byte) ([]byte, []byte) {
		r, _ := g.report(data)
		return r, nil
	}), tsm.ProviderSEVSNP))
	if ev, err := bare.Attest(t.Context(), attest.ReportData{1}); err != nil || len(ev.Items) != 1 {
		t.Errorf("without certificates: got %d items, %v, want the report", len(ev.Items), err)
	}
}

// ioctls is /dev/sev-guest.
type ioctls struct {
	*guest
	missing, bare, open bool
}

func (d *ioctls) Open(string) error {
	if d.missing {
		return syscall.ENODEV
	}
	d.open = true
	return nil
}

func (d *ioctls) Close() error           { d.open = false; return nil }
func (*ioctls) Product() *spb.SevProduct { return nil }

func (d *ioctls) Ioctl(_ uintptr, argument any) (uintptr, error) {
	req := argument.(*linuxabi.SnpUserGuestRequest)
	answer := req.RespData.(*linuxabi.SnpReportRespABI)
	switch ask := req.ReqData.(type) {
	case *linuxabi.SnpReportReqABI:
		report, _ := d.report(ask.ReportData[:])
		copy(answer.Data[:], report)
	case *linuxabi.SnpExtendedReportReq:
		if d.bare {
			return 0, syscall.ENOTTY
		}
		report, table := d.report(ask.Data.ReportData[:])
		if len(ask.Certs) < len(table) {
			ask.CertsLength = uint32(len(table))
			req.FwErr = uint64(abi.GuestRequestInvalidLength)
			return 0, syscall.EIO
		}
		copy(ask.Certs, table)
		copy(answer.Data[:], report)
	}
	return 0, nil
}

func TestAttesterByDevice(t *testing.T) {
	d := &ioctls{guest: newGuest(t)}
	a := sevsnp.NewDeviceAttester("/dev/fake", func() client.Device { return d })
	if err := a.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	d.accepted(a)
	d.bare = true
	data := attest.ReportData{7}
	ev, err := a.Attest(t.Context(), data)
	if err != nil || len(ev.Items) != 1 || !bytes.Contains(ev.Items[0].Data, data[:]) {
		t.Errorf("without certificates: got %d items, %v, want the report", len(ev.Items), err)
	}
	if d.open {
		t.Error("the device was left open")
	}
	d.missing = true
	var named *device.Error
	if _, err := a.Attest(t.Context(), data); !errors.Is(err, syscall.ENODEV) || !errors.As(err, &named) || named.Device != "/dev/fake" {
		t.Errorf("got %v, want ENODEV naming the device", err)
	}
}
