package node

import (
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
)

// TestDoctorNamesCollateral: what peers would miss is named before they do.
func TestDoctorNamesCollateral(t *testing.T) {
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	forger := attesttest.NewTDX("doctor")
	genuine := forger.Attester(attesttest.Measurement("a"))
	full, err := genuine.Attest(t.Context(), attest.ReportData{})
	if err != nil {
		t.Fatal(err)
	}
	bare := attest.Evidence{Kind: full.Kind, Items: full.Items[:1]}
	for _, c := range []struct {
		ev   attest.Evidence
		at   time.Time
		code attest.Code
		got  string
	}{
		{full, now, "", "current"},
		{bare, now, attest.CodeCollateralMissing, "tdx/qe-identity is missing"},
		{full, now.AddDate(100, 0, 0), attest.CodeCollateralStale, "tdx/qe-identity expired 2099"},
	} {
		d := &doctor{}
		d.collateral(c.ev, c.at)
		if len(d.out.Checks) != 1 {
			t.Fatalf("%d checks", len(d.out.Checks))
		}
		if got := d.out.Checks[0]; got.OK != (c.code == "") || got.Code != c.code || !strings.Contains(got.Got, c.got) {
			t.Errorf("want %q %q, got %+v", c.code, c.got, got)
		}
	}
	d := &doctor{}
	d.collateral(attest.Evidence{Kind: attest.KindSim, Items: []attest.Item{{Type: attest.TypeSimReport, Data: []byte{1}}}}, now)
	if len(d.out.Checks) != 0 {
		t.Errorf("simulated evidence needs none: %+v", d.out.Checks)
	}
}
