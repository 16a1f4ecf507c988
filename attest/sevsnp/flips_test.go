package sevsnp

import (
	"context"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-sev-guest/verify/testdata"

	"github.com/attestmesh/meshnode/attest"
)

// genuine is one genuine report with its certificate.
type genuine struct {
	name         string
	report, cert []byte
	at           time.Time
}

// genuines are one sample of each format and product line: the library's, and where they are
// at hand those beside the repository.
func genuines(t *testing.T) []genuine {
	t.Helper()
	out := []genuine{{"library sample, Milan v2", testdata.AttestationBytes, testdata.VcekBytes, milanAt}}
	t.Run("samples", func(t *testing.T) {
		dir := sharedEvidence(t) + "/sevsnp/"
		for _, s := range []struct{ name, cert string }{{"snp-genoa-v3-vcek", "vcek.der"}, {"snp-turin-v5-vcek", "vcek.der"}, {"snp-milan-v5-vcek-vmpl1", "vcek.der"},
			{"snp-milan-v3-vlek-vmpl1", "vlek.der"}} {
			at := milanAt
			if s.cert == "vlek.der" {
				at = time.Date(2025, 2, 8, 22, 14, 21, 0, time.UTC)
			}
			out = append(out, genuine{s.name, read(t, dir, s.name, "report.bin"), read(t, dir, s.name, s.cert), at})
		}
	})
	return out
}

// TestEveryFlippedBit flips each bit of genuine reports of each format, signed, signature
// and padding: none is accepted, none fails.
func TestEveryFlippedBit(t *testing.T) {
	step := flipStep
	if testing.Short() {
		step = 61
	}
	for i, g := range genuines(t) {
		if i > 2 {
			step = max(step, 61) // the fourth and fifth are of formats and lines that were swept
		}
		s := scheme(t)
		if got := verdict(t, s, evidence(g.report, g.cert), g.at); got != "" {
			t.Fatalf("%s: %s", g.name, got)
		}
		var next atomic.Int64
		var wg sync.WaitGroup
		for range runtime.GOMAXPROCS(0) {
			wg.Go(func() {
				raw := slices.Clone(g.report)
				for {
					bit := next.Add(int64(step)) - int64(step)
					if bit >= ReportSize*8 {
						return
					}
					raw[bit/8] ^= 1 << (bit % 8)
					if c, err := s.Verify(context.Background(), evidence(raw, g.cert), nil, g.at); err == nil || c.Genuine {
						t.Errorf("%s: bit %d of byte %#x: accepted", g.name, bit%8, bit/8)
					} else if k := code(t, err); k != attest.CodeNotGenuine && k != attest.CodeCertificateMismatch {
						t.Errorf("%s: bit %d of byte %#x: %s, want not_genuine", g.name, bit%8, bit/8, k)
					}
					raw[bit/8] ^= 1 << (bit % 8)
				}
			})
		}
		wg.Wait()
	}
}

// TestEveryTruncation cuts genuine reports and certificates at every byte and puts bytes
// after them.
func TestEveryTruncation(t *testing.T) {
	for _, g := range genuines(t) {
		s := scheme(t)
		for n := range len(g.report) {
			want := attest.CodeMalformed
			if got := verdict(t, s, evidence(g.report[:n], g.cert), g.at); got != want {
				t.Errorf("%s: %d bytes: got %q", g.name, n, got)
			}
		}
		for _, n := range []int{1, 2, 24, ReportSize} {
			if got := verdict(t, s, evidence(append(slices.Clone(g.report), make([]byte, n)...), g.cert), g.at); got != attest.CodeMalformed {
				t.Errorf("%s: %d bytes more: got %q", g.name, n, got)
			}
		}
		for n := 1; n < len(g.cert); n++ {
			if got := verdict(t, s, evidence(g.report, g.cert[:n]), g.at); got != attest.CodeNotGenuine {
				t.Errorf("%s: a certificate of %d bytes: got %q", g.name, n, got)
			}
		}
		if got := verdict(t, s, evidence(g.report, append(slices.Clone(g.cert), 0)), g.at); got != attest.CodeNotGenuine {
			t.Errorf("%s: a byte after the certificate: got %q", g.name, got)
		}
	}
}

// TestFlippedCertificate flips bits of certificates: what is accepted all the same, for
// there may be bits that say nothing, has the same claims.
func TestFlippedCertificate(t *testing.T) {
	step := 29 + flipStep
	if testing.Short() {
		step = 997
	}
	for _, g := range genuines(t)[:1] {
		s := scheme(t)
		want, err := s.Verify(context.Background(), evidence(g.report, g.cert), nil, g.at)
		if err != nil {
			t.Fatal(err)
		}
		for bit := 0; bit < len(g.cert)*8; bit += step {
			der := slices.Clone(g.cert)
			der[bit/8] ^= 1 << (bit % 8)
			if c, err := s.Verify(context.Background(), evidence(g.report, der), nil, g.at); err == nil && !reflect.DeepEqual(c, want) {
				t.Errorf("%s: certificate bit %d: other claims", g.name, bit)
			} else if err == nil {
				t.Errorf("%s: certificate bit %d: accepted", g.name, bit)
			}
		}
	}
}
