package collateral

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/attest/tdx"
	"github.com/attestmesh/meshnode/internal/durable"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

var day = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// tcbInfo is a TCB info that nobody signed.
func tcbInfo(evaluation int, from time.Time, days int) attest.Item {
	return attest.Item{Type: attest.TypeTDXTCBInfo, Data: fmt.Appendf(nil,
		`{"tcbInfo":{"id":"TDX","version":3,"issueDate":%q,"nextUpdate":%q,"fmspc":"00806f050000","tcbEvaluationDataNumber":%d},"signature":""}`,
		from.Format(time.RFC3339), from.AddDate(0, 0, days).Format(time.RFC3339), evaluation)}
}

func td(t *testing.T) (*attesttest.TDX, attest.Evidence) {
	f := attesttest.NewTDX("collateral")
	return f, must(f.Attester(attesttest.Measurement("a")).Attest(t.Context(), attest.ReportData{1}))
}

func snp(t *testing.T) (*attesttest.SEVSNP, attest.Evidence) {
	f := attesttest.NewSEVSNP(sevsnp.Milan, 3)
	return f, must(f.Attester(attesttest.Measurement("a")).Attest(t.Context(), attest.ReportData{1}))
}

// without returns evidence with its first item only.
func without(ev attest.Evidence) attest.Evidence {
	return attest.Evidence{Kind: ev.Kind, Items: ev.Items[:1:1]}
}

func TestNames(t *testing.T) {
	_, quote := td(t)
	_, report := snp(t)
	var got []string
	for _, item := range append(quote.Items[1:], report.Items[1:]...) {
		e, err := Read(item)
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(item.Data); e.Digest != hex.EncodeToString(sum[:]) || !e.Holds(day) || e.Type != item.Type {
			t.Errorf("%s: got %+v", e.Name, e)
		}
		got = append(got, e.Name)
	}
	key := must(sevsnp.NameKey(report.Items[0].Data))
	want := []string{"tdx/tcb-info/00806f050000", "tdx/qe-identity", "tdx/tcb-signing-chain", "tdx/crl/platform", "tdx/crl/root",
		"sevsnp/vcek/Milan/" + key.HWID("Milan") + "/3.0.8.115"}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestReadRefuses(t *testing.T) {
	_, quote := td(t)
	from := day.Format(time.RFC3339)
	for name, item := range map[string]attest.Item{
		"a quote":         quote.Items[0],
		"nothing":         {Type: attest.TypeCRL},
		"too large":       {Type: attest.TypeTDXTCBInfo, Data: append(tcbInfo(17, day, 30).Data, bytes.Repeat([]byte(" "), attest.MaxQuote)...)},
		"long chain":      {Type: attest.TypeTDXTCBChain, Data: append(slices.Clone(quote.Find(attest.TypeTDXTCBChain)[0]), bytes.Repeat([]byte("\n"), attest.MaxQuote)...)},
		"no next update":  {Type: attest.TypeCRL, Data: shortList()},
		"no JSON":         {Type: attest.TypeTDXTCBInfo, Data: []byte("hello")},
		"other member":    {Type: attest.TypeTDXQEIdent, Data: tcbInfo(17, day, 30).Data},
		"of SGX":          {Type: attest.TypeTDXTCBInfo, Data: []byte(strings.Replace(string(tcbInfo(17, day, 30).Data), `"TDX"`, `"SGX"`, 1))},
		"of version 2":    {Type: attest.TypeTDXTCBInfo, Data: []byte(strings.Replace(string(tcbInfo(17, day, 30).Data), `"version":3`, `"version":2`, 1))},
		"without dates":   {Type: attest.TypeTDXTCBInfo, Data: []byte(strings.Replace(string(tcbInfo(17, day, 30).Data), from, "0001-01-01T00:00:00Z", 1))},
		"ends first":      tcbInfo(17, day, -1),
		"no evaluation":   tcbInfo(0, day, 30),
		"FMSPC of a path": {Type: attest.TypeTDXTCBInfo, Data: []byte(strings.Replace(string(tcbInfo(17, day, 30).Data), "00806f050000", "../../../etc", 1))},
		"one certificate": {Type: attest.TypeTDXTCBChain, Data: quote.Find(attest.TypeTDXTCBChain)[0][:700]},
		"no certificate":  {Type: attest.TypeCertificate, Data: []byte("hello")},
		"no list":         {Type: attest.TypeCRL, Data: []byte("hello")},
	} {
		if e, err := Read(item); err == nil {
			t.Errorf("%s: got %+v", name, e)
		}
	}
}

// shortList is a revocation list of AMD's name that ends when it begins.
func shortList() []byte {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "ARK-Milan"}, KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}}
	return must(x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: day, NextUpdate: day}, ca, key))
}

// TestWhichCounts: the highest evaluation number, then the newest, of those issued by then.
func TestWhichCounts(t *testing.T) {
	old, newer := tcbInfo(17, day.AddDate(0, 0, -60), 30), tcbInfo(17, day.AddDate(0, 0, -20), 30)
	higher, lowerLater := tcbInfo(18, day.AddDate(0, 0, 10), 30), tcbInfo(17, day.AddDate(0, 0, 20), 30)
	index := IndexOf([]attest.Item{lowerLater, newer, higher, old, newer})
	if n := len(index.Entries()); n != 4 {
		t.Fatalf("%d entries, want 4", n)
	}
	const name = "tdx/tcb-info/00806f050000"
	for _, c := range []struct {
		days  int
		want  attest.Item
		holds bool
	}{
		{-60, old, true}, {-21, old, false}, {-20, newer, true}, {9, newer, true}, {10, higher, true},
		{25, higher, true}, // a lower number that was issued later does not count
		{45, higher, false},
	} {
		at := day.AddDate(0, 0, c.days)
		e, ok := index.Current(name, at)
		if !ok || string(e.Item().Data) != string(c.want.Data) || e.Holds(at) != c.holds {
			t.Errorf("day %d: got %d of %v, holds %v", c.days, e.Evaluation, e.Issued, e.Holds(at))
		}
	}
	if _, ok := index.Current(name, day.AddDate(0, 0, -61)); ok {
		t.Error("something counted before anything was issued")
	}
	if _, ok := index.Current("tdx/tcb-info/00806f05000", day); ok {
		t.Error("a part of a name found something")
	}
	at := day.AddDate(0, 0, 15)
	for i, want := range []string{StateSuperseded, StateSuperseded, StateCurrent, StateNotYetValid} {
		if got := index.State(index.entries[i], at); got != want {
			t.Errorf("entry %d: %s, want %s", i, got, want)
		}
	}
	if got := index.State(index.entries[2], day.AddDate(0, 0, 45)); got != StateExpired {
		t.Errorf("the one that counts, after its time: %s", got)
	}
}

// TestStatesOfSigningChains: several count at once; one that expired is superseded by another.
func TestStatesOfSigningChains(t *testing.T) {
	chain := func(digest string, from, to int) Entry {
		return Entry{Name: NameSigningChain, Type: attest.TypeTDXTCBChain, Digest: digest, Issued: day.AddDate(0, 0, from), Expires: day.AddDate(0, 0, to)}
	}
	old, one, two := chain("0", -90, -10), chain("1", -50, 50), chain("2", -20, 80)
	index := NewIndex(old, one, two)
	for e, want := range map[*Entry]string{&old: StateSuperseded, &one: StateCurrent, &two: StateCurrent} {
		if got := index.State(*e, day); got != want {
			t.Errorf("chain %s: %s, want %s", e.Digest, got, want)
		}
	}
	if got := NewIndex(old).State(old, day); got != StateExpired {
		t.Errorf("the only one: %s", got)
	}
}

// TestCompleted: bare evidence with the index of what it needs passes the second door as if
// it had brought everything itself.
func TestCompleted(t *testing.T) {
	f, ev := td(t)
	g, report := snp(t)
	_, other := snp(t)
	index := IndexOf(append(append(ev.Items, report.Items...), other.Items...))
	for _, c := range []struct {
		scheme attest.Scheme
		ev     attest.Evidence
		items  int
	}{{f.Scheme(), without(ev), 6}, {g.Scheme(), without(report), 2}, {f.Scheme(), ev, 6}, {g.Scheme(), report, 2}} {
		full, lacks := index.Complete(c.ev, day)
		claims, err := c.scheme.Verify(t.Context(), full, nil, day)
		if err != nil || len(lacks) != 0 || len(full.Items) != c.items {
			t.Errorf("%s: %d items, lacking %v: %v", c.ev.Kind, len(full.Items), lacks, err)
		}
		if c.ev.Kind == attest.KindTDX && claims.TDX.TCBStatus != "UpToDate" {
			t.Errorf("status %q", claims.TDX.TCBStatus)
		}
	}
	// Of other machines' collateral nothing is taken.
	full, lacks := IndexOf(other.Items).Complete(without(report), day)
	if len(full.Items) != 1 || len(lacks) != 1 || !strings.HasPrefix(lacks[0].Name, "sevsnp/vcek/Milan/") {
		t.Errorf("another chip's certificate: %d items, lacking %v", len(full.Items), lacks)
	}
	full, lacks = Index{}.Complete(without(ev), day)
	if len(full.Items) != 1 || len(lacks) != 4 {
		t.Errorf("nothing there: %d items, lacking %v", len(full.Items), lacks)
	}
	if len(ev.Items) != 6 {
		t.Error("the evidence given was changed")
	}
}

// TestCompletedReplaces: what evidence brought is replaced by what counts, and kept where
// nothing better is known.
func TestCompletedReplaces(t *testing.T) {
	_, ev := td(t)
	ev = without(ev)
	stale, fresh := tcbInfo(17, day.AddDate(0, 0, -60), 30), tcbInfo(17, day.AddDate(0, 0, -1), 30)
	ev.Items = append(ev.Items, stale)
	has := func(ev attest.Evidence, want attest.Item) {
		t.Helper()
		if got := ev.Find(attest.TypeTDXTCBInfo); len(got) != 1 || string(got[0]) != string(want.Data) {
			t.Errorf("got %d TCB infos, not the one wanted", len(got))
		}
	}
	full, _ := IndexOf([]attest.Item{fresh}).Complete(ev, day)
	has(full, fresh)
	full, lacks := Index{}.Complete(ev, day)
	has(full, stale)
	if lacks[0].Expired.IsZero() {
		t.Errorf("lacking %v, want to be told when it expired", lacks)
	}
	full, _ = IndexOf([]attest.Item{fresh}).Complete(ev, day.AddDate(0, 0, -40)) // of its day
	has(full, stale)
	full, _ = IndexOf([]attest.Item{tcbInfo(16, day, 30)}).Complete(ev, day) // a rollback
	has(full, stale)
	full, _ = IndexOf([]attest.Item{fresh}).Complete(ev, day.AddDate(-1, 0, 0)) // before all
	has(full, stale)
}

// TestRevocationListCompletes: AMD's list of the day is added, and said to be good.
func TestRevocationListCompletes(t *testing.T) {
	f, ev := snp(t)
	list := attest.Item{Type: attest.TypeCRL, Data: f.CRL()}
	full, lacks := IndexOf(append(ev.Items[1:], list)).Complete(without(ev), day)
	c, err := f.Scheme().Verify(t.Context(), full, nil, day)
	if err != nil || len(lacks) != 0 || c.SEVSNP.CRL != attest.CRLGood {
		t.Errorf("%d items, lacking %v, %+v, %v", len(full.Items), lacks, c.SEVSNP, err)
	}
	if e := must(Read(list)); e.Name != "sevsnp/crl/Milan" {
		t.Errorf("got %s", e.Name)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(0, tcbInfo(17, day, 30).Data)
	types := []string{attest.TypeTDXTCBInfo, attest.TypeTDXQEIdent, attest.TypeTDXTCBChain, attest.TypeCertificate, attest.TypeCRL}
	ev := must(attesttest.NewTDX("fuzz").Attester(attesttest.Measurement("a")).Attest(f.Context(), attest.ReportData{}))
	for _, item := range ev.Items[1:] {
		f.Add(slices.Index(types, item.Type), item.Data)
	}
	f.Fuzz(func(t *testing.T, kind int, raw []byte) {
		if kind < 0 || kind >= len(types) {
			return
		}
		e, err := Read(attest.Item{Type: types[kind], Data: raw})
		if err == nil && (e.Name == "" || strings.Contains(e.Name, "..") || !e.Expires.After(e.Issued) && types[kind] != attest.TypeCertificate && types[kind] != attest.TypeTDXTCBChain) {
			t.Errorf("got %+v", e)
		}
	})
}

func FuzzPlatform(f *testing.F) {
	ev := must(attesttest.NewTDX("fuzz").Attester(attesttest.Measurement("a")).Attest(f.Context(), attest.ReportData{}))
	f.Add(ev.Items[0].Data)
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, itemType := range []string{attest.TypeTDXQuote, attest.TypeSEVSNPReport} {
			ev := attest.Evidence{Items: []attest.Item{{Type: itemType, Data: raw}}}
			p := PlatformOf(ev)
			if p.FMSPC != "" && p.PCKCA == "" {
				t.Errorf("FMSPC %q without a CA", p.FMSPC)
			}
			if p.Report != nil {
				p.CertificateName()
			}
		}
	})
}

// TestVerifier: each object that is not its vendor's is refused.
func TestVerifier(t *testing.T) {
	f, ev := td(t)
	g, report := snp(t)
	foreign := attesttest.NewTDX("not collateral")
	other := must(foreign.Attester(attesttest.Measurement("a")).Attest(t.Context(), attest.ReportData{}))
	v := VerifierWith(g.Roots(), f.Root())
	beside := append(slices.Clone(ev.Items), PlatformOf(ev).PCKCAs...)
	for _, item := range append(ev.Items[1:], report.Items[1], PlatformOf(ev).PCKCAs[0]) {
		verified, err := v.Verify(item, beside)
		if err != nil || verified.Entry().Digest != must(Read(item)).Digest {
			t.Errorf("genuine %s: %v", item.Type, err)
		}
		for _, nobody := range []Verifier{{}, VerifierWith(sevsnp.Roots{}, nil), VerifierWith(nil, foreign.Root())} {
			if _, err := nobody.Verify(item, beside); err == nil {
				t.Errorf("%s was believed without its root", item.Type)
			}
		}
		flipped := attest.Item{Type: item.Type, Data: slices.Clone(item.Data)}
		flipped.Data[len(flipped.Data)-9] ^= 1 // in the signature, or in the root
		if _, err := v.Verify(flipped, beside); err == nil {
			t.Errorf("%s with a bit flipped was believed", item.Type)
		}
	}
	list := attest.Item{Type: attest.TypeCRL, Data: g.CRL()}
	if _, err := v.Verify(list, nil); err != nil {
		t.Errorf("AMD's list: %v", err)
	}
	for _, roots := range []sevsnp.Roots{{}, must(sevsnp.AMDRoots())} {
		if _, err := VerifierWith(roots, f.Root()).Verify(list, nil); err == nil {
			t.Error("a list of another AMD's was believed")
		}
	}
	for _, item := range append(other.Items[1:], PlatformOf(other).PCKCAs[0]) {
		for _, with := range [][]attest.Item{beside, append(slices.Clone(other.Items), PlatformOf(other).PCKCAs...), nil} {
			if _, err := v.Verify(item, with); err == nil {
				t.Errorf("another vendor's %s was believed", item.Type)
			}
		}
	}
	for _, name := range []string{"tdx/tcb-info/00806f050000", NameQEIdentity, "tdx/crl/platform"} {
		for _, item := range ev.Items[1:] {
			if must(Read(item)).Name != name {
				continue
			}
			if _, err := v.Verify(item, nil); err == nil {
				t.Errorf("%s was believed without what it needs", name)
			}
		}
	}
	if _, err := VerifierWith(sevsnp.Roots{}, f.Root()).Verify(report.Items[1], nil); err == nil {
		t.Error("a certificate was believed without a root of its product line")
	}
}

func TestStore(t *testing.T) {
	f, ev := td(t)
	g, report := snp(t)
	v := VerifierWith(g.Roots(), f.Root())
	dir := t.TempDir()
	s := must(Open(dir))
	if !IsStore(dir) || IsStore(t.TempDir()) {
		t.Error("a store is not told from other folders")
	}
	reader := must(Open(dir)) // of another process
	if got := reader.Complete(without(ev), day); len(got.Items) != 1 {
		t.Error("an empty store had something")
	}
	beside := append(slices.Clone(ev.Items), PlatformOf(ev).PCKCAs...)
	for _, item := range append(ev.Items[1:], report.Items[1]) {
		for _, want := range []bool{true, false} {
			if added, err := s.Put(must(v.Verify(item, beside))); added != want || err != nil {
				t.Errorf("put %s: %v, %v, want %v", item.Type, added, err, want)
			}
		}
	}
	if _, err := s.Put(Verified{}); err == nil || !strings.Contains(err.Error(), "nothing was verified") {
		t.Errorf("nothing was put: %v", err)
	}
	for _, c := range []struct {
		scheme attest.Scheme
		ev     attest.Evidence
	}{{f.Scheme(), without(ev)}, {g.Scheme(), without(report)}} {
		if _, err := c.scheme.Verify(t.Context(), reader.Complete(c.ev, day), nil, day); err != nil {
			t.Errorf("%s from what another process put: %v", c.ev.Kind, err)
		}
	}

	// A file that was changed, or is nothing we know, is reported and not used; it can be put
	// again.
	files, err := filepath.Glob(filepath.Join(dir, "objects", "*.qe-identity.json"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	raw := must(os.ReadFile(files[0]))
	must(0, os.WriteFile(files[0], []byte(strings.Replace(string(raw), "11000000", "11000001", 1)), 0o600))
	must(0, os.WriteFile(filepath.Join(dir, "objects", "note"), []byte("hello"), 0o600))
	must(0, os.WriteFile(filepath.Join(dir, "objects", ".x.tmp1"), []byte("hello"), 0o600))
	s = must(Open(dir))
	if _, ok := must(s.Index()).Current(NameQEIdentity, day); ok || len(s.Damaged()) != 2 {
		t.Errorf("a changed file is used: %v, damaged %v", ok, s.Damaged())
	}
	for _, item := range ev.Items {
		if item.Type == attest.TypeTDXQEIdent {
			must(s.Put(must(v.Verify(item, beside))))
		}
	}
	if _, ok := must(s.Index()).Current(NameQEIdentity, day); !ok || len(s.Damaged()) != 1 {
		t.Errorf("put again: %v, damaged %v", ok, s.Damaged())
	}
	must(0, os.RemoveAll(filepath.Join(dir, "objects")))
	if got := s.Complete(ev, day); len(got.Items) != len(ev.Items) {
		t.Error("evidence was lost with the store")
	}
}

// stub is an attester of which fixed evidence is made.
type stub struct {
	ev       attest.Evidence
	err      error
	extended []byte
}

func (s *stub) Kind() string { return s.ev.Kind }
func (s *stub) Attest(context.Context, attest.ReportData) (attest.Evidence, error) {
	return s.ev, s.err
}
func (s *stub) Probe(context.Context) error { return s.err }

type extendingStub struct{ *stub }

func (s extendingStub) Extend(_ context.Context, event []byte) error {
	s.extended = event
	return s.err
}

// TestAttester: evidence brings what the store has when it is made; the rest is as before.
func TestAttester(t *testing.T) {
	f, ev := td(t)
	v, s := VerifierWith(nil, f.Root()), must(Open(t.TempDir()))
	bare := &stub{ev: without(ev)}
	a := s.Attester(extendingStub{bare}, func() time.Time { return day })
	beside := append(slices.Clone(ev.Items), PlatformOf(ev).PCKCAs...)
	for want, item := range ev.Items {
		if want > 0 {
			must(s.Put(must(v.Verify(item, beside))))
		}
	}
	full := must(a.Attest(t.Context(), attest.ReportData{}))
	if c, err := f.Scheme().Verify(t.Context(), full, nil, day); err != nil || c.TDX.TCBStatus != "UpToDate" {
		t.Errorf("got %+v, %v", c.TDX, err)
	}
	if err := a.(attest.Extender).Extend(t.Context(), []byte("event")); err != nil || string(bare.extended) != "event" || a.Kind() != attest.KindTDX {
		t.Errorf("extended %q, %v, kind %s", bare.extended, err, a.Kind())
	}
	if _, ok := s.Attester(bare, time.Now).(attest.Extender); ok {
		t.Error("an attester without a register extends one")
	}
	bare.err = errors.New("broken")
	if _, err := a.Attest(t.Context(), attest.ReportData{}); !errors.Is(err, bare.err) {
		t.Errorf("got %v", err)
	}
	if err := a.(interface{ Probe(context.Context) error }).Probe(t.Context()); !errors.Is(err, bare.err) {
		t.Errorf("got %v", err)
	}
}

// TestStoreLimits: a store that is full takes no more, one that is over its limit is not read.
func TestStoreLimits(t *testing.T) {
	f, ev := td(t)
	v := VerifierWith(nil, f.Root())
	s := must(Open(t.TempDir()))
	s.limit = 1
	chain := must(v.Verify(attest.Item{Type: attest.TypeTDXTCBChain, Data: ev.Find(attest.TypeTDXTCBChain)[0]}, nil))
	for _, e := range []Verified{chain, must(v.Verify(PlatformOf(ev).PCKCAs[0], nil))} {
		if _, err := s.Put(e); (err == nil) != (e.entry.Name == NameSigningChain) {
			t.Errorf("put %s: %v", e.entry.Name, err)
		}
	}
	s.limit = 0
	if _, err := s.Index(); err == nil {
		t.Error("a store over its limit was read")
	}
	file := filepath.Join(t.TempDir(), "file")
	must(0, os.WriteFile(file, []byte("hello"), 0o600))
	if _, err := Open(file); err == nil {
		t.Error("a file was opened as a store")
	}
	occupied := t.TempDir()
	if err := os.WriteFile(filepath.Join(occupied, "objects"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(occupied); err == nil {
		t.Error("a directory whose objects are a file was opened")
	}
}

// TestStoreWriteFails: an object that could not be written durably is not in the store.
func TestStoreWriteFails(t *testing.T) {
	f, ev := td(t)
	v := VerifierWith(sevsnp.Roots{}, f.Root())
	item := attest.Item{Type: attest.TypeTDXTCBChain, Data: ev.Find(attest.TypeTDXTCBChain)[0]}
	for _, op := range []durable.Op{durable.OpCreate, durable.OpWrite, durable.OpSync, durable.OpRename} {
		broken := errors.New("broken")
		dir := t.TempDir()
		s := must(Open(dir, durable.WithFault(func(got durable.Op, path string) error {
			if got == op && strings.Contains(path, objects+"/") {
				return broken
			}
			return nil
		})))
		if added, err := s.Put(must(v.Verify(item, nil))); added || !errors.Is(err, broken) {
			t.Errorf("%s: %v, %v", op, added, err)
		}
		if n := len(must(must(Open(dir)).Index()).Entries()); n != 0 {
			t.Errorf("%s: %d objects", op, n)
		}
	}
}

// TestGenuineSamples: what AMD and Intel made verifies under their roots, and completes the
// evidence it was published for.
func TestGenuineSamples(t *testing.T) {
	root := filepath.Join("..", "..", "..", "shared", "data", "evidence")
	if _, err := os.Stat(root); err != nil {
		t.Skip("the samples are not here: ", root)
	}
	v := must(NewVerifier())
	td := must(tdx.New())
	for sample, at := range map[string]time.Time{
		"tdx-v4-collateral-202506":       time.Date(2025, 7, 4, 0, 0, 0, 0, time.UTC),
		"tdx-v4-collateral-202508":       time.Date(2025, 9, 3, 0, 0, 0, 0, time.UTC),
		"tdx-v4-azure-collateral-202602": time.Date(2026, 3, 5, 0, 0, 0, 0, time.UTC),
		"tdx-v5-collateral-202603":       time.Date(2026, 4, 5, 0, 0, 0, 0, time.UTC),
	} {
		load := func(itemType, file string) attest.Item {
			return attest.Item{Type: itemType, Data: must(os.ReadFile(filepath.Join(root, "tdx", sample, file)))}
		}
		ev := attest.Evidence{Kind: attest.KindTDX, Items: []attest.Item{load(attest.TypeTDXQuote, "quote.bin")}}
		items := []attest.Item{load(attest.TypeTDXTCBInfo, "tcb_info.json"), load(attest.TypeTDXQEIdent, "qe_identity.json"),
			load(attest.TypeTDXTCBChain, "tcb_signing_chain.pem"), load(attest.TypeCRL, "pck_crl.der"), load(attest.TypeCRL, "root_crl.der")}
		beside := append(slices.Clone(items), PlatformOf(ev).PCKCAs...)
		for _, item := range beside {
			if _, err := v.Verify(item, beside); err != nil {
				t.Errorf("%s: %v", sample, err)
			}
		}
		full, lacks := IndexOf(items).Complete(ev, at)
		if len(lacks) != 0 || len(full.Items) != 6 {
			t.Errorf("%s: %d items, lacking %v", sample, len(full.Items), lacks)
		}
		if c, err := td.Verify(t.Context(), full, nil, at); err != nil || c.TDX.TCBStatus == "" || c.TDX.CollateralStale {
			t.Errorf("%s: %+v, %v", sample, c.TDX, err)
		}
	}
	azure := filepath.Join(root, "tpm", "azure-snp-milan-v3-vtpm")
	paravisor := attest.Evidence{Kind: "sevsnp,vtpm", Items: []attest.Item{{Type: attest.TypeHCLReport, Data: must(os.ReadFile(filepath.Join(azure, "hcl_report.bin")))}}}
	vcek := attest.Item{Type: attest.TypeCertificate, Data: must(os.ReadFile(filepath.Join(azure, "vcek.der")))}
	if full, lacks := IndexOf([]attest.Item{vcek}).Complete(paravisor, day); len(full.Items) != 2 || len(lacks) != 0 {
		t.Errorf("a paravisor's: %d items, lacking %v", len(full.Items), lacks)
	}
	names, _ := filepath.Glob(filepath.Join(root, "sevsnp", "*", "v?ek.der"))
	if len(names) < 10 {
		t.Errorf("%d certificates, want at least 10", len(names))
	}
	for _, name := range names {
		der := must(os.ReadFile(name))
		report := must(os.ReadFile(filepath.Join(filepath.Dir(name), "report.bin")))
		verified, err := v.Verify(attest.Item{Type: attest.TypeCertificate, Data: der}, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		ev := attest.Evidence{Kind: attest.KindSEVSNP, Items: []attest.Item{{Type: attest.TypeSEVSNPReport, Data: report}}}
		full, lacks := NewIndex(verified.Entry()).Complete(ev, verified.Entry().Issued.AddDate(0, 1, 0))
		if len(full.Items) != 2 || len(lacks) != 0 {
			t.Errorf("%s: %d items, lacking %v", name, len(full.Items), lacks)
		}
	}
}
