package attest

import "testing"

// A reference value names software by all that it lists, and by no less.
func TestReferenceMatches(t *testing.T) {
	c := Claims{Kind: KindTDX, Measurement: "aa", Registers: map[string]string{"rtmr0": "01", "rtmr1": "02"}}
	for name, test := range map[string]struct {
		r    Reference
		want bool
	}{
		"measurement":       {Reference{Kind: KindTDX, Measurement: "aa"}, true},
		"and registers":     {Reference{Kind: KindTDX, Measurement: "aa", Registers: map[string]string{"rtmr0": "01", "rtmr1": "02"}}, true},
		"other measurement": {Reference{Kind: KindTDX, Measurement: "ab"}, false},
		"other kind":        {Reference{Kind: KindSEVSNP, Measurement: "aa"}, false},
		"other register":    {Reference{Kind: KindTDX, Measurement: "aa", Registers: map[string]string{"rtmr0": "01", "rtmr1": "03"}}, false},
		"no such register":  {Reference{Kind: KindTDX, Measurement: "aa", Registers: map[string]string{"rtmr2": ""}}, false},
		"none":              {Reference{Kind: KindTDX}, false},
	} {
		if got := test.r.matches(c); got != test.want {
			t.Errorf("%s: got %v, want %v", name, got, test.want)
		}
	}
	if (Reference{Kind: KindTDX}).matches(Claims{Kind: KindTDX}) {
		t.Error("a reference without a measurement names claims without one")
	}
}
