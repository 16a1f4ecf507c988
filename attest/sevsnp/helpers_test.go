package sevsnp

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-sev-guest/verify/testdata"

	"github.com/attestmesh/meshnode/attest"
)

// milanAt is a time at which the library's sample certificate is valid.
var milanAt = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

func evidence(report []byte, certs ...[]byte) attest.Evidence {
	ev := attest.Evidence{Kind: attest.KindSEVSNP, Items: []attest.Item{{Type: attest.TypeSEVSNPReport, Data: report}}}
	for _, c := range certs {
		ev.Items = append(ev.Items, attest.Item{Type: attest.TypeCertificate, Data: c})
	}
	return ev
}

func milan() attest.Evidence { return evidence(testdata.AttestationBytes, testdata.VcekBytes) }

func scheme(t testing.TB) *Scheme {
	t.Helper()
	s, err := New()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// sharedEvidence returns the folder of samples that are not part of this repository.
func sharedEvidence(t *testing.T) string {
	t.Helper()
	for dir, _ := os.Getwd(); dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			path := filepath.Join(filepath.Dir(dir), "shared", "data", "evidence")
			if _, err := os.Stat(path); err != nil {
				t.Skipf("no samples at ../shared/data/evidence beside the repository: %v", err)
			}
			return path
		}
	}
	t.Skip("no go.mod above the package")
	return ""
}
