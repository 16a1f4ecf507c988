package attesttest

import (
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// tdxShapes are the forms that quotes have.
func tdxShapes() map[string]*TDX {
	v4 := NewTDX("tdx_test")
	return map[string]*TDX{"version 4": v4,
		"version 5, TDX 1.0":    v4.With(func(p *TDXPlatform) { p.Version, p.BodyType = 5, 2 }),
		"version 5, TDX 1.5":    v4.With(func(p *TDXPlatform) { p.Version, p.BodyType = 5, 3 }),
		"version 4, module 1.0": v4.With(func(p *TDXPlatform) { p.Processor, p.TD = true, func(body []byte) { body[0], body[1] = 3, 0 } }),
	}
}

// TestTDXFaults: every form is admitted as it is, and with one fault refused by the code of
// that fault, which comes first.
func TestTDXFaults(t *testing.T) {
	for shape, f := range tdxShapes() {
		judge := func(f *TDX) (attest.Claims, attest.Result) {
			data := attest.ReportData{1}
			return appraise(t, f.Scheme(), f.Policy(Measurement("one")), made(t, f.Attester(Measurement("one")), data), data, time.Now())
		}
		if c, r := judge(f); !r.Affirming() || c.TDX.TCBStatus != "UpToDate" || c.TDX.PlatformStatus != "UpToDate" || c.TDX.QEStatus != "UpToDate" {
			t.Errorf("%s: %s %v %+v", shape, r.Verdict, r.Reasons, c.TDX)
		}
		for _, fault := range TDXFaults() {
			if fault.Genuine && strings.HasPrefix(fault.Name, "module: ") && shape == "version 4, module 1.0" {
				continue // it has no levels of its own
			}
			c, r := judge(f.With(fault.Spoil))
			if r.Affirming() || len(r.Reasons) != 1 || r.Code() != fault.Code || c.Genuine != fault.Genuine {
				t.Errorf("%s, %s: %s %v, genuine %v; want %s, genuine %v", shape, fault.Name, r.Verdict, r.Reasons, c.Genuine, fault.Code, fault.Genuine)
			}
		}
	}
}
