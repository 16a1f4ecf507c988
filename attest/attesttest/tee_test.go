package attesttest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/attest/tdx"
)

// vendor is what the fakes of hardware vendors have in common.
type vendor interface {
	Kind() string
	Scheme() attest.Scheme
	Policy(measurements ...string) attest.Policy
	Attester(measurement string) *Attester
}

func vendors() map[string]vendor {
	return map[string]vendor{
		"Milan v2": NewSEVSNP(sevsnp.Milan, 2), "Milan v3": NewSEVSNP(sevsnp.Milan, 3), "Milan v5": NewSEVSNP(sevsnp.Milan, 5),
		"Genoa v2": NewSEVSNP(sevsnp.Genoa, 2), "Genoa v3": NewSEVSNP(sevsnp.Genoa, 3), "Bergamo v5": NewSEVSNP("Bergamo", 5), "Siena v3": NewSEVSNP("Siena", 3),
		"Turin v2": NewSEVSNP(sevsnp.Turin, 2), "Turin v3": NewSEVSNP(sevsnp.Turin, 3), "Turin dense v5": NewSEVSNP("Turin dense", 5),
		"Milan VLEK v4": NewSEVSNP(sevsnp.Milan, 4).VLEK(), "Turin VLEK v5": NewSEVSNP(sevsnp.Turin, 5).VLEK(), "TDX": NewTDX("tee_test"),
		"HCL Milan v3": NewHCL(NewSEVSNP(sevsnp.Milan, 3), true), "HCL Genoa v5": NewHCL(NewSEVSNP(sevsnp.Genoa, 5), false), "HCL TDX": NewHCL(NewTDX("tee_test"), true),
	}
}

// appraise takes evidence through all doors, over the wire and back.
func appraise(t *testing.T, s attest.Scheme, p attest.Policy, ev attest.Evidence, data attest.ReportData, at time.Time) (attest.Claims, attest.Result) {
	t.Helper()
	raw, err := ev.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if ev, err = attest.DecodeEvidence(raw); err != nil {
		t.Fatal(err)
	}
	c, err := s.Verify(context.Background(), ev, &data, at)
	var refusal *attest.Error
	if errors.As(err, &refusal) {
		return c, attest.Refuse(at, refusal.Reason)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c, attest.Appraise(c, p, at)
}

func made(t *testing.T, a *Attester, data attest.ReportData) attest.Evidence {
	t.Helper()
	ev, err := a.Attest(context.Background(), data)
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

// The real schemes believe what the fakes of their vendors make, and only under their
// roots.
func TestGenuineTEE(t *testing.T) {
	amd, err := sevsnp.New()
	if err != nil {
		t.Fatal(err)
	}
	intel, err := tdx.New()
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range vendors() {
		t.Run(name, func(t *testing.T) {
			s, p := v.Scheme(), v.Policy(Measurement("one"), Measurement("two"))
			for i, m := range []string{Measurement("one"), Measurement("two")} {
				data := attest.ReportData{byte(i), 2}
				ev := made(t, v.Attester(m), data)
				c, r := appraise(t, s, p, ev, data, time.Now())
				if !r.Affirming() || !c.Bound || c.Measurement != m || c.Kind != v.Kind() || c.HardwareID == "" {
					t.Errorf("got %s %v of %+v", r.Verdict, r.Reasons, c)
				}
				_, r = appraise(t, s, v.Policy(Measurement("three")), ev, data, time.Now())
				if r.Code() != attest.CodeMeasurementNotAllowed {
					t.Errorf("another measurement: got %v", r.Reasons)
				}
				for _, real := range []attest.Scheme{amd, intel} {
					if _, err := real.Verify(context.Background(), ev, &data, time.Now()); err == nil {
						t.Errorf("the vendor of %s believes it", real.Kind())
					}
				}
			}
		})
	}
}

func TestGenuineInABubble(t *testing.T) {
	for name, v := range vendors() {
		synctest.Test(t, func(t *testing.T) {
			if _, r := appraise(t, v.Scheme(), v.Policy(Measurement("m")), made(t, v.Attester(Measurement("m")), attest.ReportData{}), attest.ReportData{}, time.Now()); !r.Affirming() {
				t.Errorf("%s at %s: %v", name, time.Now(), r.Reasons)
			}
		})
	}
}

// Each forgery is refused with a code that Codes promises, by the Scheme up to
// RevokedPlatform, and only because of the forgery: the same machine is genuine before and
// after, so that the Scheme remembers it.
func TestTEEForgeries(t *testing.T) {
	seen := map[Forgery]bool{}
	all := vendors()
	all["TPM RSA"], all["TPM ECC"] = NewVTPM("tee_test", true), NewVTPM("tee_test", false)
	for _, name := range []string{"Milan v3", "Genoa v2", "Turin dense v5", "Milan VLEK v4", "TDX", "HCL Milan v3", "HCL TDX", "TPM RSA", "TPM ECC"} {
		v := all[name]
		s, p, a := v.Scheme(), v.Policy(Measurement("one")), v.Attester(Measurement("one"))
		serial := byte(0)
		judge := func() (attest.Claims, attest.Result) {
			serial++
			data := attest.ReportData{serial}
			return appraise(t, s, p, made(t, a, data), data, time.Now())
		}
		for _, forgery := range a.Forgeries() {
			seen[forgery] = true
			for range 2 {
				a.Forge(Genuine)
				if _, r := judge(); !r.Affirming() {
					t.Fatalf("%s: genuine: %v", name, r.Reasons)
				}
				a.Forge(forgery)
				c, r := judge()
				if r.Affirming() || !slices.Contains(forgery.Codes(), r.Code()) {
					t.Errorf("%s: %s: got %s %v, want one of %v", name, forgery, r.Verdict, r.Reasons, forgery.Codes())
				}
				if decided := v.Kind() == attest.KindVTPM && forgery == WrongRoot || v.Kind() == "sevsnp,vtpm" && forgery == WrongVMPL; !decided && c.Genuine != (forgery > RevokedPlatform) {
					t.Errorf("%s: %s: genuine %v", name, forgery, c.Genuine)
				}
			}
		}
	}
	for f := WrongReportData; f < last; f++ {
		if !seen[f] {
			t.Errorf("%s is no attester's", f)
		}
	}
}

// WrongKind is refused by the scheme that its label names, too.
func TestWrongKindAtTheOther(t *testing.T) {
	snp, td := NewSEVSNP(sevsnp.Milan, 3), NewTDX("tee_test")
	for _, c := range []struct{ from, to vendor }{{snp, td}, {td, snp}} {
		a := c.from.Attester(Measurement("one"))
		a.Forge(WrongKind)
		ev := made(t, a, attest.ReportData{})
		if ev.Kind != c.to.Kind() {
			t.Errorf("labelled %s", ev.Kind)
		}
		if _, r := appraise(t, c.to.Scheme(), c.to.Policy(Measurement("one")), ev, attest.ReportData{}, time.Now()); r.Affirming() ||
			r.Code() != attest.CodeMalformed && r.Code() != attest.CodeNotGenuine {
			t.Errorf("%s as %s: %s %v", c.from.Kind(), c.to.Kind(), r.Verdict, r.Reasons)
		}
	}
}

// Machines differ; one cannot be taken for another.
func TestMachinesDiffer(t *testing.T) {
	for name, v := range vendors() {
		s := v.Scheme()
		ids := map[string]bool{}
		for range 3 {
			c, err := s.Verify(context.Background(), made(t, v.Attester(Measurement("m")), attest.ReportData{}), nil, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			ids[c.HardwareID] = true
		}
		if len(ids) != 3 {
			t.Errorf("%s: %d hardware ids of 3 machines", name, len(ids))
		}
	}
	if !bytes.Equal(NewTDX("a").Root().Raw, NewTDX("a").Root().Raw) || bytes.Equal(NewTDX("a").Root().Raw, NewTDX("b").Root().Raw) {
		t.Error("a fake Intel is not that of its name")
	}
}

func TestUnknownProduct(t *testing.T) {
	for _, f := range []func(){func() { NewSEVSNP("Naples", 3) }, func() { NewSEVSNP(sevsnp.Milan, 1) }, func() { NewTDX("x").Attester("short") }} {
		if func() (p bool) { defer func() { p = recover() != nil }(); f(); return }() == false {
			t.Error("did not panic")
		}
	}
}
