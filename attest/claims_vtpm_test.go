package attest

import "testing"

func TestActivated(t *testing.T) {
	const digest = "abcd"
	c := Claims{Kind: KindVTPM, Genuine: true, VTPM: &VTPMClaims{AKDigest: digest}}
	if got := c.Activated(digest); got.VTPM.AKTrust != AKTrustActivation || c.VTPM.AKTrust != "" {
		t.Errorf("got %q, the original %q", got.VTPM.AKTrust, c.VTPM.AKTrust)
	}
	for name, tc := range map[string]struct {
		claims Claims
		digest string
	}{
		"another key":       {c, "abce"},
		"no digest":         {Claims{Genuine: true, VTPM: &VTPMClaims{}}, ""},
		"not genuine":       {Claims{VTPM: &VTPMClaims{AKDigest: digest}}, digest},
		"no TPM":            {Claims{Genuine: true}, digest},
		"believed already":  {Claims{Genuine: true, VTPM: &VTPMClaims{AKDigest: digest, AKTrust: AKTrustReport}}, digest},
		"certified already": {Claims{Genuine: true, VTPM: &VTPMClaims{AKDigest: digest, AKTrust: AKTrustCertificate}}, digest},
	} {
		if got := tc.claims.Activated(tc.digest); got.VTPM != nil && got.VTPM.AKTrust == AKTrustActivation {
			t.Errorf("%s: activated", name)
		}
	}
}
