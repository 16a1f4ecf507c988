package sevsnp

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// fixture is genuine evidence under some roots.
type fixture struct {
	name   string
	roots  Roots
	report []byte
	certs  [][]byte
	at     time.Time
}

// fixtures are all genuine samples at hand and forged ones of other versions.
func fixtures(t *testing.T) (out []fixture) {
	t.Helper()
	roots := mustRoots(t)
	out = append(out, fixture{"library sample", roots, milan().Items[0].Data, [][]byte{milan().Items[1].Data}, milanAt})
	for version, name := range map[byte]string{2: "forged v2", 3: "forged v3", maxVersion + 1: "forged v6"} {
		roots, vcek, sign := forge(t, sampleTCB())
		report := sign(func(b []byte) {
			if b[0] = version; version >= 3 {
				b[0x188], b[0x189] = 0x19, 0x01
			}
		})
		out = append(out, fixture{name, roots, report, [][]byte{vcek}, milanAt})
	}
	t.Run("samples", func(t *testing.T) {
		dir := sharedEvidence(t)
		var samples []sample
		if err := json.Unmarshal(read(t, dir, "expected.json"), &samples); err != nil {
			t.Fatal(err)
		}
		for _, s := range samples {
			if s.Kind != attest.KindSEVSNP || !s.Genuine {
				continue
			}
			f := fixture{s.Name, roots, read(t, dir, s.Files["report"]), nil, s.At}
			for _, part := range []string{"vcek", "vlek", "certificate"} {
				if file := s.Files[part]; file != "" {
					f.certs = append(f.certs, read(t, dir, file))
				}
			}
			out = append(out, f)
		}
	})
	return out
}

// agree verifies with a scheme that knows the chain and with one that remembers nothing.
// What they say is the same, reason by reason.
func agree(t *testing.T, what string, warm, cold *Scheme, ev attest.Evidence, at time.Time) {
	t.Helper()
	c1, err1 := warm.Verify(context.Background(), ev, nil, at)
	c2, err2 := cold.Verify(context.Background(), ev, nil, at)
	if !reflect.DeepEqual(c1, c2) || (err1 == nil) != (err2 == nil) {
		t.Errorf("%s: remembering says %+v, %v; not remembering %+v, %v", what, c1.SEVSNP, err1, c2.SEVSNP, err2)
		return
	}
	var r1, r2 *attest.Error
	if err1 != nil && (!errors.As(err1, &r1) || !errors.As(err2, &r2) || r1.Reason != r2.Reason) {
		t.Errorf("%s: remembering refuses with %v, not remembering with %v", what, err1, err2)
	}
}

// edges are the times around which the validity of any of the certificates changes.
func edges(t *testing.T, f fixture) []time.Time {
	t.Helper()
	out := []time.Time{f.at, f.at.AddDate(-40, 0, 0), f.at.AddDate(40, 0, 0), {}}
	for _, der := range f.certs {
		e, ok, err := parseEndorsement(der)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		root := f.roots[e.product]
		for _, c := range []*x509.Certificate{e.cert, root.intermediate(e.kind), root.ARK} {
			for _, d := range []time.Duration{-1, 0, 1} {
				out = append(out, c.NotBefore.Add(d), c.NotAfter.Add(d))
			}
		}
	}
	return out
}

// A scheme that remembers chains accepts and refuses exactly what one without a memory
// does: every genuine sample at every edge of its validity, and mutations of it.
func TestMemoryChangesNoAnswer(t *testing.T) {
	flips, bits := 60, 8
	if testing.Short() || flipStep > 1 {
		flips, bits = 8, 1
	}
	all := fixtures(t)
	for i, f := range all {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			warm, err := WithRoots(f.roots)
			if err != nil {
				t.Fatal(err)
			}
			cold := &Scheme{roots: f.roots}
			ev := evidence(f.report, f.certs...)
			for range 2 {
				agree(t, "genuine", warm, cold, ev, f.at)
			}
			if c, _, _ := warm.candidate(f.certs[0], f.at); !c.known {
				t.Fatal("the chain was not remembered")
			}
			for _, at := range edges(t, f) {
				agree(t, "at "+at.String(), warm, cold, ev, at)
			}
			rnd := rand.New(rand.NewPCG(uint64(i), 1))
			for range flips {
				report := append([]byte(nil), f.report...)
				certs := [][]byte{append([]byte(nil), f.certs[0]...)}
				for range 1 + rnd.IntN(2) {
					report[rnd.IntN(len(report))] ^= 1 << rnd.IntN(8)
				}
				agree(t, "flipped report", warm, cold, evidence(report, f.certs...), f.at)
				certs[0][rnd.IntN(len(certs[0]))] ^= 1 << rnd.IntN(8)
				agree(t, "flipped certificate", warm, cold, evidence(f.report, certs...), f.at)
			}
			// The header, the CPUID bytes, and the fields beside the signature.
			for _, at := range []int{0, 0x0a, 0x34, 0x48, 0x4c, 0x180, 0x188, 0x189, 0x18a, 0x1a0, 0x2a0, 0x330} {
				for bit := range bits {
					report := append([]byte(nil), f.report...)
					report[at] ^= 1 << bit
					agree(t, "flipped field", warm, cold, evidence(report, f.certs...), f.at)
				}
			}
			for _, other := range all {
				agree(t, "certificate of "+other.name, warm, cold, evidence(f.report, other.certs...), f.at)
				agree(t, "also that of "+other.name, warm, cold, evidence(f.report, append(other.certs, f.certs...)...), f.at)
				agree(t, "report of "+other.name, warm, cold, evidence(other.report, f.certs...), f.at)
			}
			agree(t, "cut", warm, cold, evidence(f.report[:len(f.report)-1], f.certs...), f.at)
			agree(t, "trailing", warm, cold, evidence(append(append([]byte(nil), f.report...), 0), f.certs...), f.at)
			agree(t, "trailing certificate", warm, cold, evidence(f.report, append(append([]byte(nil), f.certs[0]...), 0)), f.at)
		})
	}
}

// Nothing that failed is remembered, whichever step it failed at.
func TestFailuresAreForgotten(t *testing.T) {
	roots, vcek, sign := forge(t, sampleTCB())
	s, err := WithRoots(roots)
	if err != nil {
		t.Fatal(err)
	}
	report := sign(func([]byte) {})
	badSignature := append([]byte(nil), report...)
	badSignature[0x2a0] ^= 1
	badCert := append([]byte(nil), vcek...)
	badCert[len(badCert)-1] ^= 1
	for name, c := range map[string]struct {
		ev attest.Evidence
		at time.Time
	}{
		"signature": {evidence(badSignature, vcek), milanAt},
		"chain":     {evidence(report, badCert), milanAt},
		"date":      {evidence(report, vcek), milanAt.AddDate(40, 0, 0)},
		"AMD's":     {milan(), milanAt},
	} {
		if _, err := s.Verify(context.Background(), c.ev, nil, c.at); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if s.known.Len() != 0 {
			t.Fatalf("%s: remembered", name)
		}
	}
}

// Many machines verified at once by one scheme: answers stay right and places bounded.
func TestMemoryIsShared(t *testing.T) {
	s := scheme(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 10 {
				ev, at := milan(), milanAt
				if i%3 == 0 {
					at = at.AddDate(40, 0, 0)
				}
				if _, err := s.Verify(context.Background(), ev, nil, at); (err == nil) != (i%3 != 0) {
					t.Errorf("%d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	if s.known.Len() != 1 {
		t.Errorf("%d chains remembered, want 1", s.known.Len())
	}
}

// The caller's map of roots may change; the scheme's may not, for it has judged by them.
func TestRootsAreCopied(t *testing.T) {
	roots, vcek, sign := forge(t, sampleTCB())
	s, err := WithRoots(roots)
	if err != nil {
		t.Fatal(err)
	}
	roots[Milan] = mustRoots(t)[Milan]
	if _, err := s.Verify(context.Background(), evidence(sign(func([]byte) {}), vcek), nil, milanAt); err != nil {
		t.Error(err)
	}
}
