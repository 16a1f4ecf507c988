package tdx

import (
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/attest"
)

// TestReadDocument: what a document says of itself is whole, and is what was asked for.
func TestReadDocument(t *testing.T) {
	const good = `{"tcbInfo":{"id":"TDX","version":3,"issueDate":"2026-01-01T00:00:00Z","nextUpdate":"2026-02-01T00:00:00Z","fmspc":"00806f050000","tcbEvaluationDataNumber":18},"signature":"00"}`
	if d, err := ReadDocument(attest.TypeTDXTCBInfo, []byte(good)); err != nil || d.FMSPC != "00806f050000" || d.Evaluation != 18 {
		t.Fatalf("got %+v, %v", d, err)
	}
	for name, tc := range map[string]struct{ old, new, want string }{
		"SGX":            {`"id":"TDX"`, `"id":"SGX"`, `want "TDX" version 3`},
		"older format":   {`"version":3`, `"version":2`, `want "TDX" version 3`},
		"no issue date":  {`"issueDate":"2026-01-01T00:00:00Z",`, ``, "next update"},
		"ends at once":   {`2026-02-01`, `2026-01-01`, "next update"},
		"no evaluation":  {`"tcbEvaluationDataNumber":18`, `"tcbEvaluationDataNumber":0`, "no tcbEvaluationDataNumber"},
		"FMSPC":          {`00806f050000`, `00806f05`, "want 12 hex digits"},
		"another member": {`"tcbInfo"`, `"enclaveIdentity"`, "unexpected end of JSON input"},
		"no JSON":        {`{"tcbInfo"`, `{tcbInfo`, "invalid character 't'"},
		"too long":       {`"00"}`, `"` + strings.Repeat("0", attest.MaxQuote) + `"}`, "the limit is"},
	} {
		raw := strings.Replace(good, tc.old, tc.new, 1)
		if _, err := ReadDocument(attest.TypeTDXTCBInfo, []byte(raw)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}
