package fetch

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/collateral"
	"github.com/attestmesh/meshnode/attest/sevsnp"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// day is when the tests take place.
var day = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// authority is a key with its certificate.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newAuthority returns the authority of a common name under a parent, nil for a root.
func newAuthority(cn string, ca bool, parent *authority) *authority {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	id := sha256.Sum256(must(key.PublicKey.Bytes()))
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: cn}, NotBefore: day.AddDate(-5, 0, 0),
		NotAfter: day.AddDate(5, 0, 0), IsCA: ca, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, SubjectKeyId: id[:20]}
	if ca {
		tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	issuer, signer := tmpl, key
	if parent != nil {
		issuer, signer = parent.cert, parent.key
	}
	der := must(x509.CreateCertificate(rand.Reader, tmpl, issuer, &key.PublicKey, signer))
	return &authority{must(x509.ParseCertificate(der)), key}
}

func (a *authority) crl(from, to time.Time) []byte {
	return must(x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: from, NextUpdate: to}, a.cert, a.key))
}

// header is a chain as Intel's service puts it into a header.
func header(as ...*authority) string {
	var b strings.Builder
	for _, a := range as {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}))
	}
	return url.PathEscape(b.String())
}

// vendors are a fake Intel and AMD.
type vendors struct {
	root, signer, platform *authority
	ark                    *authority
}

func newVendors() *vendors {
	root := newAuthority("Intel SGX Root CA", true, nil)
	return &vendors{root: root, signer: newAuthority("Intel SGX TCB Signing", false, root),
		platform: newAuthority("Intel SGX PCK Platform CA", true, root), ark: newAuthority("ARK-Turin", true, nil)}
}

// document returns a signed answer of Intel's service.
func (v *vendors) document(name, id string, version, evaluation int, fmspc string, from, to time.Time) []byte {
	body := fmt.Sprintf(`{"id":%q,"version":%d,"issueDate":%q,"nextUpdate":%q,"fmspc":%q,"tcbEvaluationDataNumber":%d}`,
		id, version, from.Format(time.RFC3339), to.Format(time.RFC3339), fmspc, evaluation)
	digest := sha256.Sum256([]byte(body))
	r, s, err := ecdsa.Sign(rand.Reader, v.signer.key, digest[:])
	if err != nil {
		panic(err)
	}
	return fmt.Appendf(nil, `{%q:%s,"signature":"%x%x"}`, name, body, r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32)))
}

func (v *vendors) tcbInfo(evaluation int, fmspc string, from time.Time) []byte {
	return v.document("tcbInfo", "TDX", 3, evaluation, fmspc, from, from.AddDate(0, 0, 30))
}

func (v *vendors) qeIdentity(evaluation int, from time.Time) []byte {
	return v.document("enclaveIdentity", "TD_QE", 2, evaluation, "", from, from.AddDate(0, 0, 30))
}

// fmspc is that of the forger's platforms.
const fmspc = "00806f050000"

// service is a local TLS server in place of the vendors'. Every path has its answer; requests
// are kept.
type service struct {
	*httptest.Server
	mu       sync.Mutex
	answers  map[string]http.HandlerFunc // by path
	requests []string                    // path and query
}

func newService(t *testing.T) *service {
	s := &service{answers: map[string]http.HandlerFunc{}}
	s.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r.URL.RequestURI())
		h := s.answers[r.URL.Path]
		s.mu.Unlock()
		if h == nil {
			http.NotFound(w, r)
			return
		}
		h(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *service) set(path string, h http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[path] = h
}

func (s *service) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.requests...)
}

// body answers with bytes, and headers in pairs.
func body(raw []byte, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(headers); i += 2 {
			w.Header()[headers[i]] = []string{headers[i+1]}
		}
		_, _ = w.Write(raw)
	}
}

// status answers with a status, and headers in pairs.
func status(code int, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(code)
	}
}

// inTurn gives one answer after the other, then the last for ever.
func inTurn(hs ...http.HandlerFunc) http.HandlerFunc {
	var mu sync.Mutex
	return func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		h := hs[0]
		if len(hs) > 1 {
			hs = hs[1:]
		}
		mu.Unlock()
		h(w, r)
	}
}

// Paths of the services.
const (
	tcbPath  = "/tdx/certification/v4/tcb"
	qePath   = "/tdx/certification/v4/qe/identity"
	pckPath  = "/sgx/certification/v4/pckcrl"
	rootPath = "/IntelSGXRootCA.der"
)

// publish puts everything a TDX platform needs on the service, issued a day ago.
func (s *service) publish(v *vendors) {
	from := day.AddDate(0, 0, -1)
	s.set(tcbPath, body(v.tcbInfo(18, fmspc, from), "TCB-Info-Issuer-Chain", header(v.signer, v.root)))
	s.set(qePath, body(v.qeIdentity(18, from), "SGX-Enclave-Identity-Issuer-Chain", header(v.signer, v.root)))
	s.set(pckPath, body(v.platform.crl(from, from.AddDate(0, 0, 30)), "SGX-PCK-CRL-Issuer-Chain", header(v.platform, v.root)))
	s.set(rootPath, body(v.root.crl(from, from.AddDate(1, 0, 0))))
}

// bench is a fetcher on a service, with a clock that only waiting moves.
type bench struct {
	t      *testing.T
	s      *service
	v      *vendors
	store  *collateral.Store
	config Config
	now    time.Time
	waits  []time.Duration
	amd    sevsnp.Roots
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, s: newService(t), v: newVendors(), now: day, store: must(collateral.Open(t.TempDir()))}
	pool := x509.NewCertPool()
	pool.AddCert(b.s.Certificate())
	b.amd = sevsnp.Roots{"Turin": {ARK: b.v.ark.cert, ASK: b.v.ark.cert}}
	b.config = Config{AMD: b.s.URL, Intel: b.s.URL, IntelCertificates: b.s.URL, TLSRoots: pool,
		Now: func() time.Time { return b.now }, Chance: func() float64 { return 0 },
		Wait: func(ctx context.Context, d time.Duration) error {
			b.waits = append(b.waits, d)
			b.now = b.now.Add(d)
			return ctx.Err()
		}}
	return b
}

func (b *bench) fetcher() *Fetcher {
	b.t.Helper()
	f, err := New(b.config, b.store, collateral.VerifierWith(b.amd, b.v.root.cert))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(f.Close)
	return f
}

// fetch fetches for evidence and returns the outcomes by name.
func (b *bench) fetch(ev attest.Evidence) map[string]Outcome {
	b.t.Helper()
	out, err := b.fetcher().Evidence(b.t.Context(), ev)
	if err != nil {
		b.t.Fatal(err)
	}
	return byName(out)
}

func byName(out []Outcome) map[string]Outcome {
	m := map[string]Outcome{}
	for _, o := range out {
		m[o.Name] = o
	}
	return m
}

// evidence is a forger's, without what it brought besides the report or quote.
func evidence(t *testing.T, a *attesttest.Attester) attest.Evidence {
	t.Helper()
	ev, err := a.Attest(t.Context(), attest.ReportData{1})
	if err != nil {
		t.Fatal(err)
	}
	return attest.Evidence{Kind: ev.Kind, Items: ev.Items[:1]}
}

func tdEvidence(t *testing.T) attest.Evidence {
	return evidence(t, attesttest.NewTDX("fetch").Attester(attesttest.Measurement("a")))
}
