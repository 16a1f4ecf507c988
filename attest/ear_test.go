package attest

import (
	"encoding/json"
	"testing"

	"github.com/veraison/ear"
)

// What we issue is read by the reader that others use, and means the same to it.
func TestEARStockReader(t *testing.T) {
	tiers := map[Verdict]ear.TrustTier{VerdictAffirming: ear.TrustTierAffirming, VerdictWarning: ear.TrustTierWarning,
		VerdictNone: ear.TrustTierNone, VerdictContraindicated: ear.TrustTierContraindicated}
	seen := map[Verdict]bool{}
	results := []Result{{}, Refuse(judged, NewReason(CodeDebug, "tdx.debug", "true", "false"))}
	for _, c := range goodClaims() {
		results = append(results, Appraise(c, goodPolicy(), judged), Appraise(c, Policy{}, judged))
	}
	loose := goodPolicy()
	loose.References, loose.AllowNoReferences = nil, true
	results = append(results, Appraise(goodClaims()[KindSEVSNP], loose, judged))
	for _, r := range results {
		raw, err := json.Marshal(r.EAR("test"))
		if err != nil {
			t.Fatal(err)
		}
		var got ear.AttestationResult
		if err := got.UnmarshalJSON(raw); err != nil {
			t.Errorf("%s %q: %v", r.Verdict, r.Kind, err)
			continue
		}
		want := r.Verdict
		if want == "" {
			want = VerdictNone
		}
		seen[want] = true
		if len(got.Submods) != 1 {
			t.Fatalf("%d appraisals, want 1", len(got.Submods))
		}
		for kind, a := range got.Submods {
			if *a.Status != tiers[want] {
				t.Errorf("%s: status %v, want %s", kind, a.Status, want)
			}
			if v := a.TrustVector; int8(v.Executables) != r.Vector.Executables || int8(v.Hardware) != r.Vector.Hardware ||
				int8(v.RuntimeOpaque) != r.Vector.RuntimeOpaque || int8(v.Configuration) != r.Vector.Configuration ||
				int8(v.InstanceIdentity) != r.Vector.InstanceIdentity {
				t.Errorf("%s: vector %+v, want %+v", kind, v, r.Vector)
			}
		}
	}
	for v := range tiers {
		if !seen[v] {
			t.Errorf("no result is %s", v)
		}
	}
}
