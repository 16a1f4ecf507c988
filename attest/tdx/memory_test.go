package tdx

import (
	"context"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// fixture is genuine evidence under Intel's root.
type fixture struct {
	name string
	ev   attest.Evidence
	at   time.Time
}

func fixtures(t *testing.T) []fixture {
	t.Helper()
	out := []fixture{{"library sample", evidence(rawQuote()), sampleAt}}
	t.Run("samples", func(t *testing.T) {
		dir, samples := loadSamples(t)
		for _, s := range samples {
			if s.Genuine {
				out = append(out, fixture{s.Name, s.load(t, dir), s.At})
			}
		}
	})
	return out
}

// with returns f's evidence with the data of one item replaced.
func (f fixture) with(item int, data []byte) attest.Evidence {
	ev := f.ev
	ev.Items = slices.Clone(ev.Items)
	ev.Items[item].Data = data
	return ev
}

// quoteOf returns the parsed quote of evidence.
func quoteOf(t testing.TB, ev attest.Evidence) quote {
	t.Helper()
	q, err := parseQuote(ev.Items[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// agree verifies with a scheme that knows the platform and with one that remembers
// nothing. What they say is the same, reason by reason.
func agree(t *testing.T, what string, warm, cold *Scheme, ev attest.Evidence, at time.Time) {
	t.Helper()
	c1, err1 := warm.Verify(context.Background(), ev, nil, at)
	c2, err2 := cold.Verify(context.Background(), ev, nil, at)
	if !reflect.DeepEqual(c1, c2) || (err1 == nil) != (err2 == nil) {
		t.Errorf("%s: remembering says %+v, %v; not remembering %+v, %v", what, c1.TDX, err1, c2.TDX, err2)
		return
	}
	var r1, r2 *attest.Error
	if err1 != nil && (!errors.As(err1, &r1) || !errors.As(err2, &r2) || r1.Reason != r2.Reason) {
		t.Errorf("%s: remembering refuses with %v, not remembering with %v", what, err1, err2)
	}
}

// edges are the times around which anything in f begins or ceases to be valid.
func edges(t *testing.T, s *Scheme, f fixture) []time.Time {
	t.Helper()
	items, err := split(f.ev)
	if err != nil {
		t.Fatal(err)
	}
	q, err := parseQuote(items.quote)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := s.pck(q.chain, f.at)
	if err != nil {
		t.Fatal(err)
	}
	marks := []time.Time{f.at.AddDate(-40, 0, 0), f.at.AddDate(40, 0, 0)}
	certs := []*x509.Certificate{chain.leaf, chain.intermediate, s.root}
	if signers, err := s.tcbSigners(items.tcbChains); err == nil {
		certs = append(certs, signers...)
	}
	for _, c := range certs {
		marks = append(marks, c.NotBefore, c.NotAfter)
	}
	for _, der := range items.crls {
		crl, err := x509.ParseRevocationList(der)
		if err != nil {
			t.Fatal(err)
		}
		marks = append(marks, crl.ThisUpdate, crl.NextUpdate)
	}
	if col, err := s.collateral(chain, items, f.at); err == nil {
		marks = append(marks, col.info.IssueDate, col.info.NextUpdate, col.qe.IssueDate, col.qe.NextUpdate, col.span.From, col.span.To)
	}
	out := []time.Time{f.at, {}}
	for _, m := range marks {
		out = append(out, m.Add(-1), m, m.Add(1))
	}
	return out
}

// A scheme that remembers platforms and collateral accepts, refuses and says exactly what
// one without a memory does: every genuine sample at every edge, and mutations of it.
func TestMemoryChangesNoAnswer(t *testing.T) {
	flips := 20
	if testing.Short() || flipStep > 1 {
		flips = 15
	}
	all := fixtures(t)
	for i, f := range all {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			warm := scheme(t)
			cold := &Scheme{root: warm.root}
			for range 2 {
				agree(t, "genuine", warm, cold, f.ev, f.at)
			}
			c, err := warm.Verify(context.Background(), f.ev, nil, f.at)
			if err != nil || warm.known.Len() != 1 || (warm.current.Len() == 1) != (c.TDX.TCBStatus != "") {
				t.Fatalf("%d platforms and %d collaterals remembered, status %q, %v", warm.known.Len(), warm.current.Len(), c.TDX.TCBStatus, err)
			}
			for _, at := range edges(t, cold, f) {
				agree(t, "at "+at.String(), warm, cold, f.ev, at)
			}
			rnd := rand.New(rand.NewPCG(uint64(i), 2))
			for range flips {
				for item := range f.ev.Items {
					data := slices.Clone(f.ev.Items[item].Data)
					data[rnd.IntN(len(data))] ^= 1 << rnd.IntN(8)
					agree(t, "flipped "+f.ev.Items[item].Type, warm, cold, f.with(item, data), f.at)
				}
				// What the memory leaves out, and what it is keyed by.
				quote := slices.Clone(f.ev.Items[0].Data)
				quote[rnd.IntN(quoteOf(t, f.ev).section()+signatureSize)] ^= 1 << rnd.IntN(8)
				agree(t, "flipped header, body or signature", warm, cold, f.with(0, quote), f.at)
			}
			for item := range f.ev.Items {
				less := f.ev
				less.Items = slices.Delete(slices.Clone(less.Items), item, item+1)
				agree(t, "without "+f.ev.Items[item].Type, warm, cold, less, f.at)
				data := f.ev.Items[item].Data
				agree(t, "trailing", warm, cold, f.with(item, append(slices.Clone(data), 0)), f.at)
				agree(t, "cut", warm, cold, f.with(item, data[:len(data)-1]), f.at)
			}
			for _, other := range all {
				// One platform's body under the keys and certificates of another.
				to := quoteOf(t, other.ev)
				quote := slices.Clone(to.raw)
				copy(quote[:to.end()], f.ev.Items[0].Data)
				agree(t, "body before the chain of "+other.name, warm, cold, f.with(0, quote), f.at)
				agree(t, "quote of "+other.name, warm, cold, f.with(0, other.ev.Items[0].Data), f.at)
			}
			agree(t, "genuine, after all that", warm, cold, f.ev, f.at)
		})
	}
}

// Nothing that failed is remembered, nor what would be decided differently tomorrow.
func TestFailuresAreForgotten(t *testing.T) {
	s := scheme(t)
	badSignature := rawQuote()
	badSignature[frames[0].section()] ^= 1
	badChain := rawQuote()
	badChain[frames[0].section()+70] ^= 1 // the attestation key
	for name, c := range map[string]fixture{
		"signature": {ev: evidence(badSignature), at: sampleAt},
		"key":       {ev: evidence(badChain), at: sampleAt},
		"date":      {ev: evidence(rawQuote()), at: sampleAt.AddDate(40, 0, 0)},
	} {
		if _, err := s.Verify(context.Background(), c.ev, nil, c.at); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if s.known.Len() != 0 {
			t.Fatalf("%s: remembered", name)
		}
	}
	dir, samples := loadSamples(t)
	i := slices.IndexFunc(samples, func(s sample) bool { return s.Name == "tdx-v4-collateral-202506" })
	good := samples[i]
	for name, at := range map[string]time.Time{"early": good.At.AddDate(0, 0, -20), "late": good.At.AddDate(0, 1, 0)} {
		if c, err := s.Verify(context.Background(), good.load(t, dir), nil, at); err != nil || !c.TDX.CollateralStale {
			t.Errorf("%s: %v", name, err)
		}
		if s.current.Len() != 0 {
			t.Errorf("%s: stale collateral was remembered", name)
		}
	}
}

func TestMemoryIsShared(t *testing.T) {
	s := scheme(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 20 {
				at := sampleAt
				if i%3 == 0 {
					at = at.AddDate(40, 0, 0)
				}
				if _, err := s.Verify(context.Background(), evidence(rawQuote()), nil, at); (err == nil) != (i%3 != 0) {
					t.Errorf("%d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	if s.known.Len() != 1 {
		t.Errorf("%d platforms remembered, want 1", s.known.Len())
	}
}
