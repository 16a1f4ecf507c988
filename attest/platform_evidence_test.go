package attest_test

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
)

// TestDemandsOnEvidence: what was established from evidence once, and kept as claims, can be
// judged under every later demand without the evidence.
func TestDemandsOnEvidence(t *testing.T) {
	snp, td := attesttest.NewSEVSNP("Genoa", 3), attesttest.NewTDX("platforms")
	m := attesttest.Measurement("x")
	salt := [attest.SaltSize]byte{3}
	now := time.Now()
	for _, p := range []struct {
		scheme attest.Scheme
		policy attest.Policy
		a      *attesttest.Attester
		demand func(attest.Claims) map[attest.Code]attest.Platforms
	}{
		{snp.Scheme(), snp.Policy(m), snp.Attester(m), func(c attest.Claims) map[attest.Code]attest.Platforms {
			above := c.SEVSNP.ReportedTCB
			above.BootLoader++
			return map[attest.Code]attest.Platforms{
				"":                        {Floors: []attest.Floor{{Product: "Genoa", SEVSNP: &c.SEVSNP.ReportedTCB}}, Denied: []attest.Product{{Line: "Milan"}}},
				attest.CodeTCBBelowFloor:  {Floors: []attest.Floor{{Product: "Genoa", SEVSNP: &above}}},
				attest.CodePlatformDenied: {Denied: []attest.Product{{CPUID: c.SEVSNP.CPUID}}},
				attest.CodeChipNotAllowed: {Hardware: []attest.HardwareList{{Of: "alpha", Listed: map[string]struct{}{c.HardwareID: {}}}}}, // the id is no commitment
				attest.CodeFloorAhead:     {Floors: []attest.Floor{{Product: "Genoa", SEVSNP: &above, From: now.Add(time.Hour)}}},
			}
		}},
		{td.Scheme(), td.Policy(m), td.Attester(m), func(c attest.Claims) map[attest.Code]attest.Platforms {
			return map[attest.Code]attest.Platforms{
				"":                        {Floors: []attest.Floor{{TDX: &attest.TDXDemand{MinimumTCBEvaluation: c.TDX.TCBEvaluation, TCBStatuses: []string{"UpToDate"}}}}, Hardware: []attest.HardwareList{{Of: "alpha", Listed: map[string]struct{}{c.Hardware: {}}}}},
				attest.CodeTCBEvaluation:  {Floors: []attest.Floor{{TDX: &attest.TDXDemand{MinimumTCBEvaluation: c.TDX.TCBEvaluation + 1}}}},
				attest.CodeTCBBelowFloor:  {Floors: []attest.Floor{{TDX: &attest.TDXDemand{MinimumTCBDate: now}}}},
				attest.CodeTCBStatus:      {Floors: []attest.Floor{{TDX: &attest.TDXDemand{TCBStatuses: []string{"SWHardeningNeeded"}}}}},
				attest.CodePlatformDenied: {Denied: []attest.Product{{FMSPC: c.TDX.FMSPC}}},
				attest.CodeChipNotAllowed: {Hardware: []attest.HardwareList{{Of: "alpha", Any: true, Removed: map[string]struct{}{c.Hardware: {}}}}},
			}
		}},
	} {
		data := attest.ReportData{9}
		ev, err := attest.Salted(p.a, salt).Attest(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		claims, err := attest.Verify(t.Context(), p.scheme, ev, &data, now)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(claims)
		if err != nil {
			t.Fatal(err)
		}
		var kept attest.Claims
		if err := json.Unmarshal(raw, &kept); err != nil || kept.Hardware != claims.Hardware || reflect.DeepEqual(kept, attest.Claims{}) {
			t.Fatalf("%+v %v", kept, err)
		}
		for code, platforms := range p.demand(claims) {
			p.policy.Platforms = platforms
			for _, c := range []attest.Claims{claims, kept} {
				r := attest.Appraise(c, p.policy, now)
				if r.Code() != code || r.Affirming() != (code == "" || code == attest.CodeFloorAhead) {
					t.Errorf("%s: %s %v, want %q", c.Kind, r.Verdict, r.Reasons, code)
				}
			}
		}
	}
}
