// Package fetch fills a collateral store from AMD's key distribution service (AMD 57230) and
// Intel's provisioning certification service (PCS, version 4), or from mirrors that answer
// the same paths. It is run by a person or a timer, never while a connection waits: no
// package but the command line may import it.
//
// # What is fetched
//
//	AMD    /vcek/v1/PRODUCT/HWID?blSPL=…&teeSPL=…&snpSPL=…&ucodeSPL=…   DER certificate;
//	       on Turin HWID is 8 bytes and fmcSPL=… comes first
//	       /vcek/v1/PRODUCT/crl, /vlek/v1/PRODUCT/crl                   DER revocation list of the ARK
//	Intel  /tdx/certification/v4/tcb?fmspc=…                            JSON, chain in TCB-Info-Issuer-Chain
//	       /tdx/certification/v4/qe/identity                            JSON, chain in SGX-Enclave-Identity-Issuer-Chain
//	       /sgx/certification/v4/pckcrl?ca=…&encoding=der               DER, chain in SGX-PCK-CRL-Issuer-Chain
//	       /IntelSGXRootCA.der, at certificates.trustedservices.intel.com
//
// The two documents take update=standard|early or tcbEvaluationDataNumber=N. A VLEK's
// certificate is given to the cloud provider only: it comes with the report, or not at all.
//
// # What is believed
//
// Nothing that a server says. An answer is kept if it is what was asked for (this chip and
// TCB, this FMSPC, this CA), verifies under the vendor's root, is current, and is no older
// than what the store has, in evaluation number and date. TLS only keeps others from seeing
// which machines are asked for.
//
// # How servers are treated
//
// One request at a time, for what the store does not have current for another MinValid. Each
// request has a time limit and a size limit; redirects are not followed. After 429, 5xx, or
// no answer the server is left alone: as long as Retry-After says, else for a time that
// doubles with each failure in a row, with a tenth of chance in it. Times up to MaxWait are
// waited for, at most Attempts times; then, and for longer ones at once, the server is given
// up for the whole run and the failure says when to come back. The store remembers that
// time, so that the next process keeps to it too. 404 and other answers are final.
package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/collateral"
)

// The vendors' services.
const (
	AMD               = "https://kdsintf.amd.com"
	Intel             = "https://api.trustedservices.intel.com"
	IntelCertificates = "https://certificates.trustedservices.intel.com"
)

// Update sets of Intel's documents.
const (
	Standard = "standard"
	Early    = "early"
)

// Config says from where and how to fetch. Zero values are the defaults that are named.
type Config struct {
	AMD, Intel, IntelCertificates string // base URLs, https only; the vendors'

	// TLSRoots are believed for the servers' names; the system's. What is fetched is
	// believed for its signatures only.
	TLSRoots *x509.CertPool

	Update     string // Standard or Early; Standard
	Evaluation int    // ask for this tcbEvaluationDataNumber in place of a set

	MinValid time.Duration // do not ask for what stays current that long; 7 days
	Timeout  time.Duration // of one request, to the last byte; 30 s
	MaxWait  time.Duration // the longest wait for one server; 2 min
	Attempts int           // for one object; 4

	// Progress, if set, is told before each request and each wait.
	Progress func(Event)

	// The edges to time and chance; the clock, a timer, math/rand.
	Now    func() time.Time
	Wait   func(context.Context, time.Duration) error
	Chance func() float64 // in [0, 1)
}

// Event is what is about to happen.
type Event struct {
	Name, URL string
	Attempt   int
	Wait      time.Duration // if positive, a wait
	Why       string        // for what
}

// Result of one request.
const (
	Stored    = "stored"    // new in the store
	Unchanged = "unchanged" // the server has what the store has
	Current   = "current"   // not asked for: it stays current long enough
	Failed    = "failed"
)

// Outcome is what became of one request.
type Outcome struct {
	Name    string    `json:"name"`
	URL     string    `json:"url,omitempty"`
	Result  string    `json:"result"`
	Digest  string    `json:"digest,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
	// Evaluation is the tcbEvaluationDataNumber of Intel's documents.
	Evaluation int    `json:"tcb_evaluation_data_number,omitempty"`
	Attempts   int    `json:"attempts"`
	Error      *Error `json:"error,omitempty"`
}

// Error says why a request failed and what to do.
type Error struct {
	Code    attest.Code `json:"code"`
	Message string      `json:"message"`
	Remedy  string      `json:"remedy"`
	// Until is the time before which the server is not asked again.
	Until time.Time `json:"until,omitzero"`
}

// Error implements error.
func (e *Error) Error() string { return string(e.Code) + ": " + e.Message }

func fail(code attest.Code, remedy, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), Remedy: remedy}
}

// Fetcher fills one store, in one run. It is used by one goroutine.
type Fetcher struct {
	config   Config
	store    *collateral.Store
	verifier collateral.Verifier
	client   *http.Client
	servers  *servers
	givenUp  map[string]*Error // hosts that this fetcher asks no more
}

// New returns a fetcher into a store that the caller holds the lock of.
func New(config Config, store *collateral.Store, verifier collateral.Verifier) (*Fetcher, error) {
	config = config.withDefaults()
	for _, base := range []string{config.AMD, config.Intel, config.IntelCertificates} {
		if u, err := url.Parse(base); err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			return nil, fmt.Errorf("fetch: %q is no https address of a server", base)
		}
	}
	if config.Update != Standard && config.Update != Early {
		return nil, fmt.Errorf("fetch: update %q, want %s or %s", config.Update, Standard, Early)
	}
	if config.Evaluation < 0 || store == nil {
		return nil, errors.New("fetch: no store, or a negative evaluation number")
	}
	if err := claimSet(store, config.Update); err != nil {
		return nil, err
	}
	return &Fetcher{config: config, store: store, verifier: verifier, servers: loadServers(store.Dir()), givenUp: map[string]*Error{}, client: &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: config.TLSRoots},
			MaxResponseHeaderBytes: maxHeader,
			DisableCompression:     true, // what is limited is what is read
			ForceAttemptHTTP2:      true,
			MaxConnsPerHost:        1,
			IdleConnTimeout:        config.Timeout,
		},
	}}, nil
}

// Close gives up idle connections.
func (f *Fetcher) Close() { f.client.CloseIdleConnections() }

func (c Config) withDefaults() Config {
	text := func(v *string, or string) {
		if *v == "" {
			*v = or
		}
	}
	text(&c.AMD, AMD)
	text(&c.Intel, Intel)
	text(&c.IntelCertificates, IntelCertificates)
	text(&c.Update, Standard)
	span := func(v *time.Duration, or time.Duration) {
		if *v <= 0 {
			*v = or
		}
	}
	span(&c.MinValid, 7*24*time.Hour)
	span(&c.Timeout, 30*time.Second)
	span(&c.MaxWait, 2*time.Minute)
	if c.Attempts <= 0 {
		c.Attempts = 4
	}
	if c.Progress == nil {
		c.Progress = func(Event) {}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Wait == nil {
		c.Wait = wait
	}
	if c.Chance == nil {
		c.Chance = rand.Float64
	}
	return c
}

// wait returns after d or with the context's error.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// setFile says which of Intel's sets a store holds.
const setFile = "set"

// claimSet makes a store one of a set, or refuses if it is one of the other.
func claimSet(store *collateral.Store, set string) error {
	raw, err := store.Dir().ReadFile(setFile, 64)
	if errors.Is(err, fs.ErrNotExist) {
		return store.Dir().WriteFile(setFile, []byte(set+"\n"), 0o644)
	}
	if err != nil {
		return err
	}
	if got := strings.TrimSpace(string(raw)); got != set {
		return fmt.Errorf("fetch: the store holds Intel's %q set, not %q: the early one would count before its time; give it a folder of its own", got, set)
	}
	return nil
}
