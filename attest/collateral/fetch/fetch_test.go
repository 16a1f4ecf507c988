package fetch

import (
	"context"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/collateral"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/internal/durable"
)

func TestTDXIsCompleteAfterOneFetch(t *testing.T) {
	b := newBench(t)
	b.s.publish(b.v)
	ev := tdEvidence(t)
	for name, o := range b.fetch(ev) {
		if o.Result != Stored || o.Error != nil || o.Attempts != 1 || !o.Expires.After(day) {
			t.Errorf("%s: got %+v", name, o)
		}
	}
	want := []string{tcbPath + "?fmspc=" + fmspc + "&update=standard", qePath + "?update=standard", pckPath + "?ca=platform&encoding=der", rootPath}
	if got := b.s.asked(); !slices.Equal(got, want) {
		t.Errorf("asked for %v, want %v", got, want)
	}
	index := must(b.store.Index())
	full, lacks := index.Complete(ev, day)
	if len(lacks) != 0 || len(full.Items) != 6 {
		t.Errorf("%d items, lacking %v, want 6 items", len(full.Items), lacks)
	}

	// A second run asks nobody: all stays current for a week.
	for name, o := range b.fetch(ev) {
		if o.Result != Current || o.Attempts != 0 {
			t.Errorf("again, %s: got %+v", name, o)
		}
	}
	if n := len(b.s.asked()); n != len(want) {
		t.Errorf("%d requests, want none more than %d", n, len(want))
	}

	// A week before it expires it is renewed, without evidence.
	b.now = day.AddDate(0, 0, 25)
	later := b.now.AddDate(0, 0, -1)
	b.s.set(tcbPath, body(b.v.tcbInfo(19, fmspc, later), "TCB-Info-Issuer-Chain", header(b.v.signer, b.v.root)))
	out, err := b.fetcher().Renew(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := byName(out)
	if o := got["tdx/tcb-info/"+fmspc]; o.Result != Stored || o.Evaluation != 19 {
		t.Errorf("renewed TCB info: %+v", o)
	}
	if o := got["tdx/qe-identity"]; o.Result != Unchanged {
		t.Errorf("QE identity that the server has no newer one of: %+v", o)
	}
	if o := got["tdx/crl/root"]; o.Result != Current {
		t.Errorf("a list of a year: %+v", o)
	}
}

// TestWrongAnswers: nothing is stored of what is not genuine, another's, not current, or
// older than what is there (attack A19).
func TestWrongAnswers(t *testing.T) {
	b := newBench(t)
	foreign, old, future := newVendors(), day.AddDate(0, 0, -31), day.AddDate(0, 0, 2)
	chain, from := header(b.v.signer, b.v.root), day.AddDate(0, 0, -1)
	sgx := b.v.document("tcbInfo", "SGX", 3, 18, fmspc, from, day.AddDate(0, 0, 29))
	flipped := b.v.tcbInfo(18, fmspc, from)
	flipped[strings.Index(string(flipped), "18")]++
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		code   attest.Code
		says   string
	}{
		"HTML":                {body([]byte("<html>maintenance</html>"), "TCB-Info-Issuer-Chain", chain), attest.CodeMalformed, "nothing of the sort"},
		"empty":               {body(nil), attest.CodeMalformed, "empty"},
		"no chain":            {body(b.v.tcbInfo(18, fmspc, from)), attest.CodeMalformed, "TCB-Info-Issuer-Chain"},
		"another's signature": {body(foreign.tcbInfo(18, fmspc, from), "TCB-Info-Issuer-Chain", chain), attest.CodeNotGenuine, "does not verify"},
		"another's root":      {body(foreign.tcbInfo(18, fmspc, from), "TCB-Info-Issuer-Chain", header(foreign.signer, foreign.root)), attest.CodeNotGenuine, "does not verify"},
		"changed":             {body(flipped, "TCB-Info-Issuer-Chain", chain), attest.CodeNotGenuine, "does not verify"},
		"signed by the CA":    {body(b.v.tcbInfo(18, fmspc, from), "TCB-Info-Issuer-Chain", header(b.v.platform, b.v.root)), attest.CodeNotGenuine, "does not verify"},
		"of SGX":              {body(sgx, "TCB-Info-Issuer-Chain", chain), attest.CodeMalformed, `"SGX"`},
		"other FMSPC":         {body(b.v.tcbInfo(18, "50806f000000", from), "TCB-Info-Issuer-Chain", chain), attest.CodeCertificateMismatch, "got tdx/tcb-info/50806f000000"},
		"expired":             {body(b.v.tcbInfo(18, fmspc, old), "TCB-Info-Issuer-Chain", chain), attest.CodeCollateralStale, "expired at"},
		"not yet valid":       {body(b.v.tcbInfo(18, fmspc, future), "TCB-Info-Issuer-Chain", chain), attest.CodeCollateralStale, "not valid before"},
		"lower evaluation":    {body(b.v.tcbInfo(16, fmspc, from), "TCB-Info-Issuer-Chain", chain), attest.CodeCollateralStale, "tcbEvaluationDataNumber 16, 17 was seen"},
		"older than seen":     {body(b.v.tcbInfo(17, fmspc, day.AddDate(0, 0, -29)), "TCB-Info-Issuer-Chain", chain), attest.CodeCollateralStale, "there is one of"},
		"too large":           {body(make([]byte, maxBody+1)), attest.CodeMalformed, "over the limit"},
		"404":                 {status(404), attest.CodeCollateralMissing, "404"},
		"410":                 {status(410), attest.CodeCollateralStale, "410"},
		"redirect":            {status(302, "Location", "http://elsewhere.example/"), attest.CodeUnavailable, "redirects are not followed"},
		"unauthorised":        {status(401), attest.CodeUnavailable, "status 401"},
	} {
		t.Run(name, func(t *testing.T) {
			seen := b.v.tcbInfo(17, fmspc, day.AddDate(0, 0, -28))
			b.store = must(collateral.Open(t.TempDir()))
			b.put(seen)
			b.s.publish(b.v)
			b.s.set(tcbPath, c.answer)
			o := b.fetch(tdEvidence(t))["tdx/tcb-info/"+fmspc]
			if o.Result != Failed || o.Error == nil || o.Error.Code != c.code || !strings.Contains(o.Error.Message, c.says) || o.Error.Remedy == "" {
				t.Errorf("got %+v, %v; want %s, %q", o, o.Error, c.code, c.says)
			}
			if o.Attempts != 1 {
				t.Errorf("%d attempts for a final answer, want 1", o.Attempts)
			}
			for _, e := range must(b.store.Index()).Entries() {
				if e.Type == attest.TypeTDXTCBInfo && string(e.Item().Data) != string(seen) {
					t.Errorf("stored %s issued %v", e.Name, e.Issued)
				}
			}
		})
	}
}

// put puts a TCB info into the store.
func (b *bench) put(info []byte) {
	b.t.Helper()
	f := b.fetcher()
	a := answer{body: info, header: http.Header{"Tcb-Info-Issuer-Chain": {header(b.v.signer, b.v.root)}}}
	chain := must(a.chain("TCB-Info-Issuer-Chain", attest.TypeTDXTCBInfo))
	must(b.store.Put(must(f.verifier.Verify(attest.Item{Type: attest.TypeTDXTCBInfo, Data: info}, chain))))
}

// TestServerInTrouble: waits are those that the server asks for, or double; they end
// (attack A22).
func TestServerInTrouble(t *testing.T) {
	for name, c := range map[string]struct {
		answers []http.HandlerFunc
		result  string
		waits   []time.Duration
	}{
		"429 with seconds":    {[]http.HandlerFunc{status(429, "Retry-After", "17"), nil}, Stored, []time.Duration{17 * time.Second}},
		"429 with a date":     {[]http.HandlerFunc{status(429, "Retry-After", day.Add(40*time.Second).Format(http.TimeFormat)), nil}, Stored, []time.Duration{40 * time.Second}},
		"429 without":         {[]http.HandlerFunc{status(429), nil}, Stored, []time.Duration{10 * time.Second}},
		"429 twice":           {[]http.HandlerFunc{status(429), status(429), nil}, Stored, []time.Duration{10 * time.Second, 20 * time.Second}},
		"500 then well":       {[]http.HandlerFunc{status(500), nil}, Stored, []time.Duration{2 * time.Second}},
		"503 with seconds":    {[]http.HandlerFunc{status(503, "Retry-After", "5"), nil}, Stored, []time.Duration{5 * time.Second}},
		"500 for ever":        {[]http.HandlerFunc{status(500)}, Failed, []time.Duration{2 * time.Second, 4 * time.Second, 8 * time.Second}},
		"429 for an hour":     {[]http.HandlerFunc{status(429, "Retry-After", "3600")}, Failed, nil},
		"a date that is past": {[]http.HandlerFunc{status(429, "Retry-After", day.Add(-time.Hour).Format(http.TimeFormat)), nil}, Stored, []time.Duration{10 * time.Second}},
		"nonsense to wait":    {[]http.HandlerFunc{status(429, "Retry-After", "-1 soon"), nil}, Stored, []time.Duration{10 * time.Second}},
		"connection cut":      {[]http.HandlerFunc{func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, nil}, Stored, []time.Duration{2 * time.Second}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.s.publish(b.v)
			b.s.mu.Lock()
			good := b.s.answers[tcbPath]
			b.s.mu.Unlock()
			for i, h := range c.answers {
				if h == nil {
					c.answers[i] = good
				}
			}
			b.s.set(tcbPath, inTurn(c.answers...))
			var seen []Event
			b.config.Progress = func(e Event) { seen = append(seen, e) }
			o := b.fetch(tdEvidence(t))["tdx/tcb-info/"+fmspc]
			if o.Result != c.result {
				t.Errorf("got %+v, %v", o, o.Error)
			}
			if !slices.Equal(b.waits, c.waits) {
				t.Errorf("waited %v, want %v", b.waits, c.waits)
			}
			if c.result == Failed && (o.Error.Code != attest.CodeUnavailable || !o.Error.Until.After(b.now)) {
				t.Errorf("got %v until %v", o.Error, o.Error.Until)
			}
			if len(c.waits) > 0 && !slices.ContainsFunc(seen, func(e Event) bool { return e.Wait == c.waits[0] && e.Why != "" }) {
				t.Errorf("no progress said that it waits: %v", seen)
			}
		})
	}
}

// TestTroubleIsRemembered: the next process leaves a server alone that wanted it, asks it
// once the time has come, and forgets the trouble with the first answer.
func TestTroubleIsRemembered(t *testing.T) {
	b := newBench(t)
	b.s.set(tcbPath, status(429, "Retry-After", "3600"))
	out := b.fetch(tdEvidence(t))
	if n := len(b.s.asked()); n != 1 {
		t.Errorf("%d requests to a server that said an hour, want 1", n)
	}
	for name, o := range out {
		if o.Result != Failed || o.Error.Code != attest.CodeUnavailable || !o.Error.Until.Equal(day.Add(time.Hour)) {
			t.Errorf("%s: got %+v, %v", name, o, o.Error)
		}
	}
	b.now = day.Add(59 * time.Minute)
	b.config.MaxWait = time.Second
	b.fetch(tdEvidence(t))
	if n := len(b.s.asked()); n != 1 {
		t.Errorf("%d requests within the hour, want 1", n)
	}
	b.s.publish(b.v)
	b.now = day.Add(time.Hour)
	if o := b.fetch(tdEvidence(t))["tdx/tcb-info/"+fmspc]; o.Result != Stored {
		t.Errorf("after the hour: %+v, %v", o, o.Error)
	}
	if raw := string(must(os.ReadFile(b.store.Dir().Path(serversFile)))); raw != "{}\n" {
		t.Errorf("still remembered: %s", raw)
	}
	// A memory that cannot be read, or of a clock that was wrong, stops nobody.
	for _, raw := range []string{"nonsense", "null", `{"` + hostOf(b.s.URL) + `":{"failures":1,"until":"2096-01-01T00:00:00Z"}}`} {
		must(0, os.WriteFile(b.store.Dir().Path(serversFile), []byte(raw), 0o600))
		b.store = must(collateral.Open(t.TempDir()))
		if o := b.fetch(tdEvidence(t))["tdx/tcb-info/"+fmspc]; o.Result != Stored {
			t.Errorf("%s: %+v, %v", raw, o, o.Error)
		}
	}
}

// TestSlowServer: a server that sends a byte now and then is given up at the time limit.
func TestSlowServer(t *testing.T) {
	b := newBench(t)
	b.config.Timeout, b.config.Attempts = 300*time.Millisecond, 2
	b.s.set(tcbPath, func(w http.ResponseWriter, r *http.Request) {
		for tick := time.NewTicker(20 * time.Millisecond); ; {
			if _, err := w.Write([]byte("{")); err != nil {
				panic(http.ErrAbortHandler)
			}
			w.(http.Flusher).Flush()
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return
			}
		}
	})
	o := b.fetch(tdEvidence(t))["tdx/tcb-info/"+fmspc]
	if o.Result != Failed || o.Error.Code != attest.CodeUnavailable || !strings.Contains(o.Error.Message, "time limit") || o.Attempts != 2 {
		t.Errorf("got %+v, %v", o, o.Error)
	}
}

// TestEndlessAnswer: an answer without an end is cut off at the size limit.
func TestEndlessAnswer(t *testing.T) {
	b := newBench(t)
	b.s.set(tcbPath, func(w http.ResponseWriter, _ *http.Request) {
		for chunk := make([]byte, 64<<10); ; {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	o := b.fetch(tdEvidence(t))["tdx/tcb-info/"+fmspc]
	if o.Result != Failed || o.Error.Code != attest.CodeMalformed || !strings.Contains(o.Error.Message, "over the limit") {
		t.Errorf("got %+v, %v", o, o.Error)
	}
}

// TestNobodyAnswers: what is in the store stays and is used (attack A22).
func TestNobodyAnswers(t *testing.T) {
	b := newBench(t)
	b.s.publish(b.v)
	ev := tdEvidence(t)
	b.fetch(ev)
	b.s.Close()
	b.now = day.AddDate(0, 0, 25)
	for name, o := range b.fetch(ev) {
		if o.Result == Failed && o.Error.Code != attest.CodeUnavailable {
			t.Errorf("%s: %+v, %v", name, o, o.Error)
		}
	}
	// One host is one server: it is given up once, for all objects that it has.
	if len(b.waits) != 3 {
		t.Errorf("%d waits, want 3: %v", len(b.waits), b.waits)
	}
	if _, lacks := must(b.store.Index()).Complete(ev, b.now); len(lacks) != 0 {
		t.Errorf("before it expires: lacking %v", lacks)
	}
	_, lacks := must(b.store.Index()).Complete(ev, day.AddDate(0, 0, 40))
	if len(lacks) == 0 || lacks[0].Expired.IsZero() {
		t.Errorf("after it expired: lacking %v", lacks)
	}
}

func TestForeignTLS(t *testing.T) {
	b := newBench(t)
	b.s.publish(b.v)
	b.config.TLSRoots, b.config.Attempts = nil, 1
	if o := b.fetch(tdEvidence(t))["tdx/tcb-info/"+fmspc]; o.Result != Failed || !strings.Contains(o.Error.Message, "TLS certificate is not believed") {
		t.Errorf("got %+v, %v", o, o.Error)
	}
}

func TestConfigRefused(t *testing.T) {
	for name, spoil := range map[string]func(*Config){
		"no TLS":         func(c *Config) { c.Intel = "http://127.0.0.1:1" },
		"no host":        func(c *Config) { c.AMD = "https:///vcek" },
		"a query":        func(c *Config) { c.AMD = "https://127.0.0.1?a=b" },
		"a fragment":     func(c *Config) { c.IntelCertificates = "https://127.0.0.1#a" },
		"no address":     func(c *Config) { c.Intel = "https://127.0.0.1:port" },
		"unknown set":    func(c *Config) { c.Update = "late" },
		"below zero":     func(c *Config) { c.Evaluation = -1 },
		"nothing is bad": func(*Config) {},
	} {
		var c Config
		spoil(&c)
		_, err := New(c, must(collateral.Open(t.TempDir())), collateral.Verifier{})
		if (err == nil) != (name == "nothing is bad") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := New(Config{}, nil, collateral.Verifier{}); err == nil {
		t.Error("a fetcher without a store")
	}
}

// TestChainHeader: the chain of a PCK CA must be certificates.
func TestChainHeader(t *testing.T) {
	for header, want := range map[string]attest.Code{"": attest.CodeMalformed, "hello": attest.CodeMalformed, "%zz": attest.CodeMalformed} {
		b := newBench(t)
		b.s.publish(b.v)
		b.s.set(pckPath, body(b.v.platform.crl(day, day.AddDate(0, 0, 30)), "SGX-PCK-CRL-Issuer-Chain", header))
		if o := b.fetch(tdEvidence(t))["tdx/crl/platform"]; o.Result != Failed || o.Error.Code != want {
			t.Errorf("%q: got %+v, %v", header, o, o.Error)
		}
	}
}

func TestInterrupted(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	b.s.set(tcbPath, func(http.ResponseWriter, *http.Request) { cancel(); <-ctx.Done() })
	if _, err := b.fetcher().Evidence(ctx, tdEvidence(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(b.store.Dir().Path(serversFile)); err == nil {
		t.Error("a person's interruption was held against the server")
	}
}

// TestInterruptedWhileWaiting: nothing is asked for after the interruption.
func TestInterruptedWhileWaiting(t *testing.T) {
	b := newBench(t)
	b.s.set(tcbPath, status(429))
	ctx, cancel := context.WithCancel(t.Context())
	b.config.Wait = func(ctx context.Context, _ time.Duration) error { cancel(); return ctx.Err() }
	if _, err := b.fetcher().Evidence(ctx, tdEvidence(t)); !errors.Is(err, context.Canceled) || len(b.s.asked()) != 1 {
		t.Errorf("got %v after %d requests, want 1", err, len(b.s.asked()))
	}
}

// TestWaitFails: a wait that failed ends the run, whatever the reason.
func TestWaitFails(t *testing.T) {
	b := newBench(t)
	b.s.set(tcbPath, status(429))
	broken := errors.New("broken")
	b.config.Wait = func(context.Context, time.Duration) error { return broken }
	if _, err := b.fetcher().Evidence(t.Context(), tdEvidence(t)); !errors.Is(err, broken) || len(b.s.asked()) != 1 {
		t.Errorf("got %v after %d requests, want the wait's error after 1", err, len(b.s.asked()))
	}
}

// TestDiskFails: what could not be kept ends the run with the disk's error.
func TestDiskFails(t *testing.T) {
	for _, suffix := range []string{".tcb-info.json", ".tcb-signing-chain.pem", serversFile} {
		b := newBench(t)
		b.s.publish(b.v)
		if suffix == serversFile {
			b.s.set(tcbPath, status(500))
		}
		broken := errors.New("broken")
		b.store = must(collateral.Open(t.TempDir(), durable.WithFault(func(op durable.Op, path string) error {
			if op == durable.OpSync && strings.HasSuffix(path, suffix) {
				return broken
			}
			return nil
		})))
		if _, err := b.fetcher().Evidence(t.Context(), tdEvidence(t)); !errors.Is(err, broken) {
			t.Errorf("%s: got %v", suffix, err)
		}
	}
}

// TestSets: the early set is asked for by name and kept apart; an evaluation number replaces
// the set and must be what comes.
func TestSets(t *testing.T) {
	b := newBench(t)
	b.s.publish(b.v)
	b.config.Update = Early
	b.fetch(tdEvidence(t))
	if got := b.s.asked()[0]; !strings.HasSuffix(got, "&update=early") {
		t.Errorf("asked for %s", got)
	}
	b.config.Update = Standard
	if _, err := New(b.config, b.store, collateral.Verifier{}); err == nil || !strings.Contains(err.Error(), "early") {
		t.Errorf("a store of the early set was taken for the standard one: %v", err)
	}
	b.store = must(collateral.Open(t.TempDir()))
	b.config.Evaluation = 19
	o := b.fetch(tdEvidence(t))["tdx/tcb-info/"+fmspc]
	if got := b.s.asked()[4]; !strings.HasSuffix(got, "&tcbEvaluationDataNumber=19") {
		t.Errorf("asked for %s", got)
	}
	if o.Result != Failed || o.Error.Code != attest.CodeCertificateMismatch {
		t.Errorf("another number than asked for: %+v, %v", o, o.Error)
	}
	b.config.Evaluation = 18
	if o := b.fetch(tdEvidence(t))["tdx/tcb-info/"+fmspc]; o.Result != Stored {
		t.Errorf("the number that was asked for: %+v, %v", o, o.Error)
	}
	b.config.Evaluation = 19 // what is there is of another number, though current
	if o := b.fetch(tdEvidence(t))["tdx/tcb-info/"+fmspc]; o.Attempts != 1 {
		t.Errorf("another number than is there: %+v", o)
	}
}

func TestVCEK(t *testing.T) {
	b := newBench(t)
	milan := attesttest.NewSEVSNP(sevsnp.Milan, 3)
	b.amd = milan.Roots()
	one, other := milan.Attester(attesttest.Measurement("a")), milan.Attester(attesttest.Measurement("a"))
	ev := evidence(t, one)
	key := must(sevsnp.NameKey(ev.Items[0].Data))
	path := "/vcek/v1/Milan/" + key.HWID("Milan")
	certificate := func(a *attesttest.Attester) []byte {
		return must(a.Attest(t.Context(), attest.ReportData{})).Find(attest.TypeCertificate)[0]
	}
	name := "sevsnp/vcek/Milan/" + key.HWID("Milan") + "/3.0.8.115"

	b.s.set(path, body(certificate(other)))
	if o := b.fetch(ev)[name]; o.Result != Failed || o.Error.Code != attest.CodeCertificateMismatch {
		t.Errorf("another chip's certificate: %+v, %v", o, o.Error)
	}
	one.Forge(attesttest.WrongRoot)
	b.s.set(path, body(certificate(one)))
	if o := b.fetch(ev)[name]; o.Result != Failed || o.Error.Code != attest.CodeNotGenuine {
		t.Errorf("a certificate of another root: %+v, %v", o, o.Error)
	}
	one.Forge(attesttest.Genuine)
	b.s.set(path, body(certificate(one)))
	if o := b.fetch(ev)[name]; o.Result != Stored {
		t.Errorf("got %+v, %v", o, o.Error)
	}
	if got, want := b.s.asked()[0], path+"?blSPL=03&teeSPL=00&snpSPL=08&ucodeSPL=115"; got != want {
		t.Errorf("asked for %s, want %s", got, want)
	}
	// It is there now; the list of revocations was not, and is.
	b.s.set("/vcek/v1/Milan/crl", body(milan.CRL()))
	if out := b.fetch(ev); out[name].Result != Current || out["sevsnp/crl/Milan"].Result != Stored {
		t.Errorf("again: %+v", out)
	}
	full := b.store.Complete(ev, day)
	if c, err := milan.Scheme().Verify(t.Context(), full, nil, day); err != nil || c.SEVSNP.CRL != attest.CRLGood {
		t.Errorf("the completed evidence: %+v, %v", c.SEVSNP, err)
	}
}

// TestVCEKOfUnknownProduct: a report of version 2 does not say its product line; the second
// one that could be is asked after a 404 of the first.
func TestVCEKOfUnknownProduct(t *testing.T) {
	b := newBench(t)
	genoa := attesttest.NewSEVSNP(sevsnp.Genoa, 2)
	b.amd = genoa.Roots()
	a := genoa.Attester(attesttest.Measurement("a"))
	ev := evidence(t, a)
	key := must(sevsnp.NameKey(ev.Items[0].Data))
	b.s.set("/vcek/v1/Genoa/"+key.HWID("Genoa"), body(must(a.Attest(t.Context(), attest.ReportData{})).Items[1].Data))
	out := b.fetch(ev)
	if o := out[collateral.NameVCEK("Genoa", key.HWID("Genoa"), key.TCB("Genoa"))]; o.Result != Stored || o.Attempts != 2 {
		t.Errorf("got %+v", out)
	}
	if _, ok := out["sevsnp/crl/Genoa"]; !ok {
		t.Errorf("no revocation list of the product line was asked for: %v", out)
	}
	if o := b.fetch(ev)[collateral.NameVCEK("Genoa", key.HWID("Genoa"), key.TCB("Genoa"))]; o.Result != Current {
		t.Errorf("again: got %+v", o)
	}
}

// TestTurin: the hardware id has 8 bytes and the FMC comes first (AMD 57230).
func TestTurin(t *testing.T) {
	raw := make([]byte, sevsnp.ReportSize)
	raw[0], raw[0x188], raw[0x189] = 5, 0x1a, 0x02
	copy(raw[0x180:], []byte{0, 1, 2, 3, 0, 0, 0, 0x47})
	for i := range 8 {
		raw[0x1a0+i] = byte(0x10 + i)
	}
	want := "/vcek/v1/Turin/1011121314151617?fmcSPL=00&blSPL=01&teeSPL=02&snpSPL=03&ucodeSPL=71"
	if got := VCEKPath(sevsnp.Turin, must(sevsnp.NameKey(raw))); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestVCEKThatCannotBeAskedFor: a masked chip and a provider's key are named, nobody is asked.
func TestVCEKThatCannotBeAskedFor(t *testing.T) {
	for name, spoil := range map[string]func(raw []byte){
		"masked": func(raw []byte) { clear(raw[0x1a0:0x1e0]) },
		"VLEK":   func(raw []byte) { raw[0x48] = 1 << 2 },
		"model":  func(raw []byte) { raw[0x188] = 0x77 },
	} {
		b := newBench(t)
		ev := evidence(t, attesttest.NewSEVSNP(sevsnp.Milan, 3).Attester(attesttest.Measurement("a")))
		spoil(ev.Items[0].Data)
		out, err := b.fetcher().Evidence(t.Context(), ev)
		if err != nil || out[0].Result != Failed || out[0].Error.Remedy == "" || out[0].Attempts != 0 {
			t.Errorf("%s: got %+v, %v", name, out, err)
		}
		for _, path := range b.s.asked() {
			if !strings.HasSuffix(path, "/crl") {
				t.Errorf("%s: asked for %s", name, path)
			}
		}
	}
}

// TestCertificateBrought: a certificate that came with the report, a VLEK's too, is kept and
// not asked for; one that does not verify is not kept.
func TestCertificateBrought(t *testing.T) {
	milan := attesttest.NewSEVSNP(sevsnp.Milan, 3)
	a := milan.Attester(attesttest.Measurement("a"))
	for forgery, want := range map[attesttest.Forgery]string{attesttest.Genuine: Stored, attesttest.WrongRoot: Failed} {
		b := newBench(t)
		b.amd = milan.Roots()
		a.Forge(forgery)
		ev := must(a.Attest(t.Context(), attest.ReportData{}))
		out := must(b.fetcher().Evidence(t.Context(), ev))
		if out[0].Result != want || (out[0].Attempts == 0) != (want == Stored) {
			t.Errorf("%v: got %+v", forgery, out[0])
		}
	}
}

func TestSEVSNPRevocationListIsRenewed(t *testing.T) {
	b := newBench(t)
	seen := attest.Item{Type: attest.TypeCRL, Data: b.v.ark.crl(day.AddDate(0, -1, 0), day.AddDate(0, 0, 1))}
	f := b.fetcher()
	must(b.store.Put(must(f.verifier.Verify(seen, nil))))
	for name, crl := range map[string][]byte{
		"another's": newVendors().ark.crl(day, day.AddDate(0, 1, 0)),
		"older":     b.v.ark.crl(day.AddDate(0, -2, 0), day.AddDate(0, 1, 0)),
	} {
		b.s.set("/vcek/v1/Turin/crl", body(crl))
		if out := must(f.Renew(t.Context())); out[0].Result != Failed {
			t.Errorf("%s: got %+v", name, out[0])
		}
	}
	b.s.set("/vcek/v1/Turin/crl", body(b.v.ark.crl(day, day.AddDate(0, 1, 0))))
	if out := must(f.Renew(t.Context())); len(out) != 1 || out[0].Result != Stored {
		t.Errorf("newer: got %+v", out)
	}
}
