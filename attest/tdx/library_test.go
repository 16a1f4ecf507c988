package tdx_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tdx-guest/pcs"
	"github.com/google/go-tdx-guest/verify"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
)

// service answers as Intel's web service would, from the collateral of evidence.
type service map[string]answer

type answer struct {
	header map[string][]string
	body   []byte
}

// Get implements the library's HTTPSGetter.
func (s service) Get(u string) (map[string][]string, []byte, error) {
	a, ok := s[u]
	if !ok {
		return nil, nil, fmt.Errorf("nothing at %s", u)
	}
	return a.header, a.body, nil
}

// serve makes a service of what lies beside a quote. The PCK's issuer and the root are taken
// from the quote, as the library takes the FMSPC from it.
func serve(ev attest.Evidence) (service, error) {
	quote, end := ev.Items[0].Data, []byte("-----END CERTIFICATE-----\n")
	leaf, chain := pem.Decode(quote[bytes.Index(quote, []byte("-----BEGIN")) : bytes.LastIndex(quote, end)+len(end)])
	pck, err := x509.ParseCertificate(leaf.Bytes)
	if err != nil {
		return nil, err
	}
	ext, err := pcs.PckCertificateExtensions(pck)
	if err != nil {
		return nil, err
	}
	header := func(name string, chain []byte) map[string][]string {
		return map[string][]string{name: {url.QueryEscape(strings.TrimRight(string(chain), "\x00"))}}
	}
	one := func(itemType string) []byte {
		if found := ev.Find(itemType); len(found) > 0 {
			return found[0]
		}
		return nil
	}
	signing := one(attest.TypeTDXTCBChain)
	out := service{
		pcs.TcbInfoURL(ext.FMSPC): {header(pcs.TcbInfoIssuerChainPhrase, signing), one(attest.TypeTDXTCBInfo)},
		pcs.QeIdentityURL():       {header(pcs.SgxQeIdentityIssuerChainPhrase, signing), one(attest.TypeTDXQEIdent)},
	}
	for _, der := range ev.Find(attest.TypeCRL) {
		crl, err := x509.ParseRevocationList(der)
		if err != nil {
			return nil, err
		}
		if strings.Contains(crl.Issuer.CommonName, "Root") {
			out["https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"] = answer{nil, der}
		} else {
			out[pcs.PckCrlURL("platform")] = answer{header(pcs.SgxPckCrlIssuerChainPhrase, chain), der}
		}
	}
	return out, nil
}

// made returns evidence of a forger's platform with a fault.
func made(t testing.TB, f *attesttest.TDX) attest.Evidence {
	t.Helper()
	ev, err := f.Attester(attesttest.Measurement("one")).Attest(context.Background(), attest.ReportData{1})
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

// judge takes evidence through Scheme and policy of its forger.
func judge(t testing.TB, f *attesttest.TDX, ev attest.Evidence, at time.Time) attest.Result {
	t.Helper()
	data := attest.ReportData{1}
	c, err := f.Scheme().Verify(context.Background(), ev, &data, at)
	var refusal *attest.Error
	if errors.As(err, &refusal) {
		return attest.Refuse(at, refusal.Reason)
	}
	if err != nil {
		t.Fatal(err)
	}
	return attest.Appraise(c, f.Policy(attesttest.Measurement("one")), at)
}

// TestLibraryHoles: what go-tdx-guest accepts and we refuse, each in evidence that differs
// from good evidence, which both accept, in this one thing.
func TestLibraryHoles(t *testing.T) {
	good, at := attesttest.NewTDX("library"), time.Now()
	if err := byLibrary(made(t, good), good.Root(), at); err != nil {
		t.Fatalf("good evidence: the library: %v", err)
	}
	if r := judge(t, good, made(t, good), at); !r.Affirming() {
		t.Fatalf("good evidence: we: %v", r.Reasons)
	}
	status := func(s string) func(*attesttest.TDXPlatform) {
		return func(p *attesttest.TDXPlatform) { p.Collateral.Levels[0].Status = s }
	}
	future := attesttest.Validity{Issued: at.AddDate(0, 0, 20), Next: at.AddDate(0, 2, 0)}
	for name, hole := range map[string]struct {
		spoil func(*attesttest.TDXPlatform)
		want  attest.Code
	}{
		"a revoked platform under an up-to-date module":                  {status("Revoked"), attest.CodeTCBStatus},
		"an out-of-date platform under an up-to-date module":             {status("OutOfDate"), attest.CodeTCBStatus},
		"a platform in need of configuration under an up-to-date module": {status("ConfigurationNeeded"), attest.CodeTCBStatus},
		"a TD in debug mode":             {func(p *attesttest.TDXPlatform) { p.TD = func(b []byte) { b[120] |= 1 } }, attest.CodeDebug},
		"a TD without SEPT_VE_DISABLE":   {func(p *attesttest.TDXPlatform) { p.TD = func(b []byte) { b[123] = 0 } }, attest.CodeSEPTVEDisable},
		"TCB info of the future":         {func(p *attesttest.TDXPlatform) { p.Collateral.Info = future }, attest.CodeCollateralStale},
		"a QE identity of the future":    {func(p *attesttest.TDXPlatform) { p.Collateral.QE = future }, attest.CodeCollateralStale},
		"revocation lists of the future": {func(p *attesttest.TDXPlatform) { p.Collateral.CRL = future }, attest.CodeCollateralStale},
		"bytes behind the quote": {func(p *attesttest.TDXPlatform) {
			p.Items = func(items []attest.Item) []attest.Item {
				items[0].Data = append(items[0].Data, "more"...)
				return items
			}
		}, attest.CodeMalformed},
		"old TCB info that is still valid": {func(p *attesttest.TDXPlatform) { p.Collateral.Evaluation = 3 }, attest.CodeTCBEvaluation},
	} {
		f := good.With(hole.spoil)
		ev := made(t, f)
		if err := byLibrary(ev, f.Root(), at); err != nil {
			t.Errorf("%s: the library refuses it too: %v", name, err)
		}
		data := attest.ReportData{1}
		p := f.Policy(attesttest.Measurement("one"))
		p.TDX.MinimumTCBEvaluation = 17
		c, err := f.Scheme().Verify(context.Background(), ev, &data, at)
		var refusal *attest.Error
		got := attest.Appraise(c, p, at).Code()
		if errors.As(err, &refusal) {
			got = refusal.Reason.Code
		}
		if got != hole.want {
			t.Errorf("%s: we say %q, want %s", name, got, hole.want)
		}
	}
}

// TestLibraryKnowsLess: evidence that is good, and that go-tdx-guest refuses.
func TestLibraryKnowsLess(t *testing.T) {
	good, at := attesttest.NewTDX("library"), time.Now()
	for name, more := range map[string]func(*attesttest.TDXPlatform){
		"version 5, TDX 1.0": func(p *attesttest.TDXPlatform) { p.Version, p.BodyType = 5, 2 },
		"version 5, TDX 1.5": func(p *attesttest.TDXPlatform) { p.Version, p.BodyType = 5, 3 },
	} {
		f := good.With(more)
		ev := made(t, f)
		if err := byLibrary(ev, f.Root(), at); err == nil {
			t.Errorf("%s: the library accepts it now", name)
		}
		if r := judge(t, f, ev, at); !r.Affirming() {
			t.Errorf("%s: we refuse: %v", name, r.Reasons)
		}
	}
}

// TestLibraryAgrees: of all faults, the library accepts none that we admit.
func TestLibraryAgrees(t *testing.T) {
	good, at := attesttest.NewTDX("library"), time.Now()
	for _, fault := range attesttest.TDXFaults() {
		f := good.With(fault.Spoil)
		ev := made(t, f)
		ours := judge(t, f, ev, at)
		if theirs := byLibrary(ev, f.Root(), at); theirs != nil && ours.Affirming() {
			t.Errorf("%s: the library refuses with %v, we admit", fault.Name, theirs)
		}
	}
}

// TestSignedBytes: the members are verified as they are, so white space that a tool put
// between them does not matter, and a changed value does.
func TestSignedBytes(t *testing.T) {
	f, at := attesttest.NewTDX("library"), time.Now()
	ev := made(t, f)
	for i, it := range ev.Items {
		if it.Type != attest.TypeTDXTCBInfo && it.Type != attest.TypeTDXQEIdent {
			continue
		}
		var pretty bytes.Buffer
		if err := json.Indent(&pretty, it.Data, "", "  "); err != nil {
			t.Fatal(err)
		}
		ev.Items[i].Data = pretty.Bytes()
	}
	if r := judge(t, f, ev, at); !r.Affirming() {
		t.Errorf("indented collateral: %v", r.Reasons)
	}
	for i, it := range ev.Items {
		if it.Type == attest.TypeTDXTCBInfo {
			ev.Items[i].Data = bytes.Replace(it.Data, []byte("OutOfDate"), []byte("UpToDate"), 1)
		}
	}
	if r := judge(t, f, ev, at); r.Code() != attest.CodeNotGenuine {
		t.Errorf("indented and changed: %s %v", r.Verdict, r.Reasons)
	}
}

// TestLibraryChangesItsOptions: the time of a first verification stays in them, so that one a
// year later is of the first one's time. A scheme of ours is told the time of each.
func TestLibraryChangesItsOptions(t *testing.T) {
	f, at := attesttest.NewTDX("library"), time.Now()
	ev := made(t, f)
	roots := x509.NewCertPool()
	roots.AddCert(f.Root())
	opts := &verify.Options{TrustedRoots: roots}
	if err := verify.RawTdxQuote(ev.Items[0].Data, opts); err != nil {
		t.Fatal(err)
	}
	if opts.Now == nil || time.Since(opts.Now.PckCertChain) > time.Hour {
		t.Errorf("the library leaves its options alone now: %+v", opts.Now)
	}
	s := f.Scheme()
	for when, want := range map[time.Time]bool{at: true, at.AddDate(100, 0, 0): false, at.Add(time.Second): true} {
		if _, err := s.Verify(context.Background(), ev, nil, when); (err == nil) != want {
			t.Errorf("at %s: %v", when, err)
		}
	}
}
