package node

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/collateral"
)

// bare is a device that gives evidence without anything around it.
type bare struct {
	events int
	err    error
}

// Kind implements attest.Attester.
func (*bare) Kind() string { return attest.KindSEVSNP }

// Attest implements attest.Attester.
func (b *bare) Attest(context.Context, attest.ReportData) (attest.Evidence, error) {
	return attest.Evidence{Kind: attest.KindSEVSNP, Items: []attest.Item{{Type: attest.TypeSEVSNPReport, Data: []byte("report")}}}, b.err
}

// Extend implements attest.Extender.
func (b *bare) Extend(context.Context, []byte) error { b.events++; return b.err }

// Probe implements Prober.
func (b *bare) Probe(context.Context) error { return b.err }

// What an attester can do it still can with a store behind it, and what it cannot it still
// cannot; a store that is not there is a mistake of the configuration.
func TestWithCollateral(t *testing.T) {
	dir := t.TempDir()
	device := &bare{}
	if a, err := withCollateral(device, ""); err != nil || a != attest.Attester(device) {
		t.Errorf("without a store: %v, %v", a, err)
	}
	var mistake *ConfigError
	if _, err := withCollateral(device, dir); !errors.As(err, &mistake) || mistake.Field != "attester.collateral" || !strings.Contains(mistake.Remedy, "collateral fetch") {
		t.Errorf("an empty directory: %v", err)
	}
	if _, err := collateral.Open(dir); err != nil {
		t.Fatal(err)
	}
	a, err := withCollateral(device, dir)
	if err != nil {
		t.Fatal(err)
	}
	ev, err := a.Attest(t.Context(), attest.ReportData{})
	if err != nil || a.Kind() != attest.KindSEVSNP || string(ev.Items[0].Data) != "report" {
		t.Errorf("got %+v, %v", ev, err)
	}
	if err := a.(attest.Extender).Extend(t.Context(), []byte("event")); err != nil || device.events != 1 {
		t.Errorf("%d events, %v", device.events, err)
	}
	device.err = errors.New("no answer")
	_, attested := a.Attest(t.Context(), attest.ReportData{})
	for what, err := range map[string]error{"attest": attested, "extend": a.(attest.Extender).Extend(t.Context(), nil), "probe": a.(Prober).Probe(t.Context())} {
		if !errors.Is(err, device.err) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
