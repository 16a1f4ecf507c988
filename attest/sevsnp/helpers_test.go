package sevsnp

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/testdata"
	"github.com/google/go-sev-guest/verify/trust"

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

// vendorRoot returns a root in the library's shape, a new one because it keeps state in it.
func vendorRoot(product string, r Root) *trust.AMDRootCerts {
	out := trust.AMDRootCertsProduct(product)
	out.ProductCerts = &trust.ProductCerts{Ask: r.ASK, Asvk: r.ASVK, Ark: r.ARK}
	return out
}

// byLibrary verifies with go-sev-guest under the same roots.
func byLibrary(roots Roots, report, cert []byte, at time.Time) error {
	parsed, err := abi.ReportToProto(report)
	if err != nil {
		return err
	}
	chain := &spb.CertificateChain{VcekCert: cert}
	if report[offKeyInfo]>>2&7 == 1 {
		chain = &spb.CertificateChain{VlekCert: cert}
	}
	trusted := map[string][]*trust.AMDRootCerts{}
	for product, r := range roots {
		trusted[product] = []*trust.AMDRootCerts{vendorRoot(product, r)}
	}
	return verify.SnpAttestation(&spb.Attestation{Report: parsed, CertificateChain: chain},
		&verify.Options{DisableCertFetching: true, Now: at, TrustedRoots: trusted})
}
