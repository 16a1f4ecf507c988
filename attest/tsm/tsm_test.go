package tsm

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/faketsm"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/device"
)

// fake returns a source whose kernel answers with out and aux.
func fake(provider string, out, aux []byte, err error) *Source {
	sub := faketsm.Report611(0)
	empty := sub.MakeEntry
	sub.MakeEntry = func() *faketsm.ReportEntry {
		e := empty()
		e.ROAttrs = map[string][]byte{"provider": []byte(provider + "\n")}
		return e
	}
	sub.ReadAttr = func(_ *faketsm.ReportEntry, attr string) ([]byte, error) {
		switch attr {
		case "provider":
			return []byte(provider + "\n"), nil
		case "outblob":
			return out, err
		case "auxblob":
			return aux, err
		}
		return nil, os.ErrNotExist
	}
	return New(&faketsm.Client{Subsystems: map[string]configfsi.Client{"report": sub}}, ProviderTDX)
}

func TestReport(t *testing.T) {
	most := make([]byte, attest.MaxQuote)
	s := fake(ProviderTDX, most, most, nil)
	if err := s.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	out, aux, err := s.Report(t.Context(), attest.ReportData{1}, true)
	if err != nil || !bytes.Equal(out, most) || !bytes.Equal(aux, most) {
		t.Errorf("got %d and %d bytes, %v", len(out), len(aux), err)
	}
	if _, aux, err = s.Report(t.Context(), attest.ReportData{1}, false); err != nil || aux != nil {
		t.Errorf("got %d bytes that were not asked for, %v", len(aux), err)
	}
	over := make([]byte, attest.MaxQuote+1)
	for name, tc := range map[string]struct {
		s    *Source
		says string
	}{
		"no report":              {fake(ProviderTDX, nil, nil, nil), "a report of 0 bytes"},
		"a long report":          {fake(ProviderTDX, over, nil, nil), "a report of 65537 bytes"},
		"long endorsements":      {fake(ProviderTDX, most, over, nil), "with 65537 of endorsements"},
		"another provider":       {fake(ProviderSEVSNP, most, nil, nil), `provider: "sev_guest", want "tdx_guest"`},
		"an error of a driver's": {fake(ProviderTDX, nil, nil, syscall.EIO), "input/output error"},
	} {
		_, _, err := tc.s.Report(t.Context(), attest.ReportData{1}, true)
		if err == nil || !strings.Contains(err.Error(), "device "+Path) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: got %v, want one that names %s and says %q", name, err, Path, tc.says)
		}
	}
	if err := fake("other", nil, nil, nil).Probe(t.Context()); !errors.Is(err, ErrProvider) {
		t.Errorf("got %v, want another provider", err)
	}
	if name, err := fake("other", nil, nil, nil).name(t.Context()); name != "other" || err != nil {
		t.Errorf("got %q, %v", name, err)
	}
}

// On a machine without the interface that is what is said.
func TestFind(t *testing.T) {
	if _, err := os.Stat(Path); err == nil {
		t.Skipf("there is %s", Path)
	}
	var named *device.Error
	if _, err := Find(t.Context(), ProviderTDX); !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &named) || named.Device != Path {
		t.Errorf("got %v, want one that names %s", err, Path)
	}
	if _, err := Provider(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want that it does not exist", err)
	}
}
