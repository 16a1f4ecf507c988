package sevsnp

import (
	"context"
	"encoding/pem"
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-sev-guest/verify/testdata"
	tdxdata "github.com/google/go-tdx-guest/testing/testdata"

	"github.com/attestmesh/meshnode/attest"
)

// allocated is how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// door is both doors on the wire: decode, then verify.
func door(s *Scheme, ev attest.Evidence, data *attest.ReportData, at time.Time) (attest.Claims, error) {
	raw, err := ev.Encode()
	if err != nil {
		return attest.Claims{}, err
	}
	if ev, err = attest.DecodeEvidence(raw); err != nil {
		return attest.Claims{}, err
	}
	return s.Verify(context.Background(), ev, data, at)
}

// TestCatalogueE is group E of the catalogue of attacks, evidence parsing, as far as it is
// about SEV-SNP; E2 and E7 are TestEveryTruncation and TestEveryFlippedBit.
func TestCatalogueE(t *testing.T) {
	v := vendors[Milan]()
	s := v.scheme(t)
	report, vcek := v.report(5, nil), v.vcek(nil)
	refused := func(name string, ev attest.Evidence) error {
		t.Helper()
		c, err := door(s, ev, nil, milanAt)
		if err == nil || c.Genuine {
			t.Errorf("%s: accepted", name)
		}
		return err
	}
	t.Run("E1 empty", func(t *testing.T) {
		refused("no items", attest.Evidence{Kind: attest.KindSEVSNP})
		refused("an empty report", evidence(nil, vcek))
		refused("an empty certificate", evidence(report, nil))
		refused("an empty list", withCRL(evidence(report, vcek), nil))
	})
	t.Run("E3 lengths", func(t *testing.T) {
		// A report has no length; a certificate and a list have one at every element.
		for i, der := range [][]byte{vcek, v.crl(nil)} {
			for off := range der[:len(der)-4] {
				for _, length := range [][]byte{{0x84, 0xff, 0xff, 0xff, 0xff}, {0x82, 0xff, 0xff}} {
					bad := slices.Concat(der[:off], length, der[min(off+len(length), len(der)):])
					ev := evidence(report, bad)
					if i == 1 {
						ev = withCRL(evidence(report, vcek), bad)
					}
					if n := allocated(func() { _, _ = s.Verify(context.Background(), ev, nil, milanAt) }); n > 1<<20 {
						t.Fatalf("length at %d: %d bytes allocated", off, n)
					}
				}
			}
		}
	})
	t.Run("E4 over the limit", func(t *testing.T) {
		big := make([]byte, attest.MaxQuote+1)
		copy(big, report)
		n := allocated(func() {
			if _, err := s.Verify(context.Background(), evidence(big, vcek), nil, milanAt); code(t, err) != attest.CodeMalformed {
				t.Errorf("got %v", err)
			}
		})
		if n > 64<<10 {
			t.Errorf("%d bytes allocated", n)
		}
	})
	t.Run("E5 many certificates", func(t *testing.T) {
		refused("33", evidence(report, slices.Repeat([][]byte{vcek}, attest.MaxCertificates+1)...))
		refused("one of 64 KiB and one", evidence(report, vcek, make([]byte, attest.MaxQuote+1)))
		var certs [][]byte
		for range attest.MaxCertificates - 1 {
			certs = append(certs, testdata.VcekBytes)
		}
		ev := evidence(report, append(certs, vcek)...)
		if n := allocated(func() {
			if got := verdict(t, s, ev, milanAt); got != "" {
				t.Errorf("the last of 32: got %q", got)
			}
		}); n > 1<<20 {
			t.Errorf("32 certificates: %d bytes allocated", n)
		}
	})
	t.Run("E6 nested", func(t *testing.T) {
		nested := []byte{5, 0}
		for range 10000 {
			n := len(nested)
			nested = append([]byte{0x30, 0x83, byte(n >> 16), byte(n >> 8), byte(n)}, nested...)
			if len(nested) > attest.MaxQuote-8 {
				break
			}
		}
		start := time.Now()
		refused("certificate", evidence(report, nested))
		refused("list", withCRL(evidence(report, vcek), nested))
		if d := time.Since(start); d > 2*time.Second { // 100 ms on a machine of one's own
			t.Errorf("took %s", d)
		}
	})
	t.Run("E8 trailing", func(t *testing.T) {
		refused("report", evidence(append(slices.Clone(report), 0), vcek))
		refused("certificate", evidence(report, append(slices.Clone(vcek), 0)))
		refused("list", withCRL(evidence(report, vcek), append(v.crl(nil), 0)))
		raw, err := evidence(report, vcek).Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := attest.DecodeEvidence(append(raw, 0)); err == nil {
			t.Error("evidence: accepted")
		}
	})
	t.Run("E9 other encodings", func(t *testing.T) {
		refused("PEM", evidence(report, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: vcek})))
		refused("a long length", evidence(report, slices.Concat([]byte{0x30, 0x83, 0}, vcek[2:])))
		refused("an indefinite length", evidence(report, slices.Concat([]byte{0x30, 0x80}, vcek[4:], []byte{0, 0})))
	})
	t.Run("E10 versions", func(t *testing.T) {
		for version, want := range map[byte]attest.Code{0: attest.CodeNotGenuine, 1: attest.CodeNotGenuine, 2: "", 3: "", 4: "", 5: "",
			6: attest.CodeUnsupported, 255: attest.CodeUnsupported} {
			if got := verdict(t, s, evidence(v.report(version, nil), vcek), milanAt); got != want {
				t.Errorf("version %d: got %q, want %q", version, got, want)
			}
		}
		if got := verdict(t, s, evidence(v.report(2, func(b []byte) { b[3] = 1 }), vcek), milanAt); got != attest.CodeUnsupported {
			t.Errorf("version 2^24+2: got %q", got)
		}
	})
	t.Run("E12 another type's body", func(t *testing.T) {
		if err := refused("a quote", evidence(tdxdata.RawQuote, vcek)); code(t, err) != attest.CodeMalformed {
			t.Errorf("got %v", err)
		}
	})
	t.Run("E14 junk in names", func(t *testing.T) {
		_, err := s.Verify(context.Background(), evidence(report, v.vcek(func(l *leaf) {
			parent := *l.parent
			name := amdName("SEV-\x1b[31m\nMilan\u202e")
			parent.RawSubject, parent.Subject = nil, name
			l.parent = &parent
		})), nil, milanAt)
		if err == nil || strings.ContainsAny(err.Error(), "\x1b\n\u202e") {
			t.Errorf("got %q", err)
		}
	})
	t.Run("E15 report data of zeros", func(t *testing.T) {
		zero := v.report(5, func(b []byte) { clear(b[offReportData:][:64]) })
		data := attest.ReportData{1}
		if _, err := door(s, evidence(zero, vcek), &data, milanAt); code(t, err) != attest.CodeNotBound {
			t.Errorf("got %v", err)
		}
	})
}

// TestCatalogueA is group A, appraisal, as far as it is decided here; the rest is in
// attest.TestSEVSNPOneThingWrong, TestRevocation (A2) and TestEndorsements (A6).
func TestCatalogueA(t *testing.T) {
	v := vendors[Turin]()
	s := v.scheme(t)
	report, vcek := v.report(5, nil), v.vcek(nil)
	t.Run("A1 own root", func(t *testing.T) {
		if got := verdict(t, scheme(t), evidence(report, vcek, v.root.ASK.Raw, v.root.ARK.Raw), milanAt); got != attest.CodeNotGenuine {
			t.Errorf("got %q", got)
		}
	})
	t.Run("A3 nonce", func(t *testing.T) {
		right := attest.ReportData(report[offReportData:offMeasurement])
		if c, err := door(s, evidence(report, vcek), &right, milanAt); err != nil || !c.Bound {
			t.Errorf("got %v", err)
		}
		for bit := range 512 {
			wrong := right
			wrong[bit/8] ^= 1 << (bit % 8)
			if bit%flipStep != 0 {
				continue
			}
			if c, err := s.Verify(context.Background(), evidence(report, vcek), &wrong, milanAt); c.Bound || code(t, err) != attest.CodeNotBound {
				t.Fatalf("bit %d: got %v", bit, err)
			}
		}
		if _, err := s.Verify(context.Background(), evidence(report, vcek), &attest.ReportData{}, milanAt); code(t, err) != attest.CodeNotBound {
			t.Errorf("zeros: got %v", err)
		}
	})
	t.Run("A19 certificates out of their time", func(t *testing.T) {
		for _, at := range []time.Time{milanAt.AddDate(-2, 0, 0), milanAt.AddDate(7, 0, 0), milanAt.AddDate(19, 0, 0), {}} {
			if got := verdict(t, s, evidence(report, vcek), at); got != attest.CodeNotGenuine {
				t.Errorf("at %s: got %q", at, got)
			}
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if c, err := s.Verify(ctx, evidence(report, vcek), nil, milanAt); !errors.Is(err, context.Canceled) || c.Genuine {
			t.Errorf("got %v", err)
		}
	})
}

// TestAllocations: an appraisal costs little beyond what it was given, first and later.
func TestAllocations(t *testing.T) {
	s, ev := scheme(t), milan()
	for _, what := range []string{"first", "later"} {
		if n := allocated(func() {
			if got := verdict(t, s, ev, milanAt); got != "" {
				t.Error(got)
			}
		}); n > 256<<10 {
			t.Errorf("%s: %d bytes", what, n)
		} else {
			t.Logf("%s: %d bytes", what, n)
		}
	}
}

// TestRootsAreChecked: an intermediate that the ARK did not sign, or an ARK that did not
// sign itself, is no root.
func TestRootsAreChecked(t *testing.T) {
	m, g := vendors[Milan]().root, vendors[Genoa]().root
	unnamed := *m.ASK
	unnamed.RawIssuer = g.ARK.RawSubject
	broken := *m.ASK
	broken.Signature = slices.Clone(broken.Signature)
	broken.Signature[9] ^= 1
	hashed := *m.ASK
	hashed.SignatureAlgorithm++
	for name, root := range map[string]Root{
		"nothing": {}, "no ASK": {ARK: m.ARK, ASVK: m.ASVK}, "no ARK": {ASK: m.ASK, ASVK: m.ASVK},
		"another's ASK": {ARK: m.ARK, ASK: g.ASK}, "another's ASVK": {ARK: m.ARK, ASK: m.ASK, ASVK: g.ASVK}, "an ASK as ARK": {ARK: m.ASK, ASK: m.ASK},
		"another issuer's name": {ARK: m.ARK, ASK: &unnamed}, "a broken signature": {ARK: m.ARK, ASK: &broken}, "another algorithm": {ARK: m.ARK, ASK: &hashed},
	} {
		if _, err := WithRoots(Roots{Milan: root}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := WithRoots(Roots{Milan: {ARK: m.ARK, ASK: m.ASK}, Genoa: {}}); err == nil {
		t.Error("one good root and a bad one: accepted")
	}
}
