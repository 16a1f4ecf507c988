// Package tdx decides the authenticity of Intel TDX quotes, version 4 (Intel TDX DCAP
// Quoting Library API, appendix 3), and the status of the platform they come from.
//
// Evidence items: one TypeTDXQuote, of which every byte must be accounted for; optional
// collateral, as Intel's PCS serves it: TypeTDXTCBInfo and TypeTDXQEIdent (JSON bodies),
// TypeTDXTCBChain (PEM of the TCB signing certificate and the root), TypeCRL twice (the
// root's and the PCK issuer's, DER); optional TypeEventLog. TypeCertificate is allowed and
// not used: the PCK chain is in the quote, the root is compiled in. Nothing is fetched.
//
// Verify establishes, without collateral: PCK chain to Intel's root, QE report signed by
// the PCK, attestation key named by the QE report, header and body signed by that key
// (all by go-tdx-guest); the QE is Intel's TD quoting enclave and not in debug mode (which
// the library leaves to collateral, so that without any it believes every enclave); the
// report data; registers explained by the event log. TCBStatus is then "": unknown.
//
// With complete collateral: its signatures, dates (the library ignores issue dates) and
// revocation lists, then the status by Intel's algorithm (Quote Verification Library,
// TCB convergence): platform level, TDX module level and QE level together, the worst
// deciding. The library lets an up-to-date module hide an outdated or revoked platform.
// Incomplete collateral counts as none; collateral outside its dates sets CollateralStale.
//
// A platform's PCK chain, and the attestation key that its quoting enclave had certified by
// it, are remembered once they held (package chains), by all the bytes behind the quote's
// own signature and within the validity of the certificates; so is collateral, by its
// bytes, within its dates. The next quotes of the platform cost the quote's signature.
//
// Errors, as codes: malformed, unsupported (version 5), not_genuine (chain, signatures,
// revoked certificates, forged collateral), certificate_mismatch (collateral of another
// platform), seam (a TDX module that is not Intel's), replay_mismatch, not_bound. Whether
// DEBUG or other attributes are acceptable is for attest.Appraise.
package tdx

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	_ "embed" // Intel's root
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/go-tdx-guest/abi"
	"github.com/google/go-tdx-guest/pcs"
	"github.com/google/go-tdx-guest/verify"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/chains"
	"github.com/attestmesh/meshnode/attest/eventlog"
	_ "github.com/attestmesh/meshnode/internal/quietlog" // go-tdx-guest logs to standard output
)

//go:embed intel_root.pem
var intelRootPEM []byte

// The quoting enclave that Intel signs for TDs, as in every QE identity it published.
const (
	qeMRSigner = "dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5"
	qeProdID   = 2
)

// Scheme verifies quotes under one root. Its zero value has none and refuses all.
type Scheme struct {
	root *x509.Certificate
	// known are platforms that chain to root, by digest of what certifies their keys.
	known *chains.Memory[platformKey]
	// current is authentic collateral, by digest of it and of the platform's chain.
	current *chains.Memory[collateral]
}

// New returns a scheme that trusts Intel.
func New() (*Scheme, error) {
	block, _ := pem.Decode(intelRootPEM)
	if block == nil {
		return nil, errors.New("tdx: no certificate in the embedded root")
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("tdx: embedded root: %w", err)
	}
	return WithRoot(root)
}

// WithRoot returns a scheme that trusts exactly root; for tests with made-up keys.
func WithRoot(root *x509.Certificate) (*Scheme, error) {
	if root == nil {
		return nil, errors.New("tdx: no root")
	}
	return &Scheme{root: root, known: chains.New[platformKey](maxKnown), current: chains.New[collateral](maxCollateral)}, nil
}

// Kind returns attest.KindTDX.
func (s *Scheme) Kind() string { return attest.KindTDX }

// Verify implements attest.Scheme.
func (s *Scheme) Verify(ctx context.Context, ev attest.Evidence, data *attest.ReportData, at time.Time) (attest.Claims, error) {
	if err := ctx.Err(); err != nil {
		return attest.Claims{}, err
	}
	if s.root == nil || at.IsZero() { // to crypto/x509 the zero time means the clock
		return attest.Claims{}, refuse(attest.CodeNotGenuine, "at", "no root or no time", "a root and the time to verify at", nil)
	}
	items, err := split(ev)
	if err != nil {
		return attest.Claims{}, refuse(attest.CodeMalformed, "evidence", "", "", err)
	}
	q, err := parseQuote(items.quote)
	switch {
	case errors.Is(err, errVersion5):
		return attest.Claims{}, refuse(attest.CodeUnsupported, "tdx.quote_version", "5", "4", nil)
	case errors.Is(err, errHeader):
		return attest.Claims{}, refuse(attest.CodeNotGenuine, "quote", "", "", err)
	case err != nil:
		return attest.Claims{}, refuse(attest.CodeMalformed, "quote", "", "", err)
	}
	key, err := s.authentic(ctx, q, at)
	if err != nil {
		return attest.Claims{}, refuse(attest.CodeNotGenuine, "quote", "not verified", "a chain to Intel's root and valid signatures", err)
	}
	c := q.claims()
	c.At = at
	if err := s.platform(q, key, items, &c, at); err != nil {
		return attest.Claims{}, err
	}
	if err := explained(items.log, c.Registers); err != nil {
		return attest.Claims{}, err
	}
	if data != nil {
		if !bytes.Equal(q.reportData(), data[:]) {
			return attest.Claims{}, refuse(attest.CodeNotBound, "report_data", c.ReportData, hex.EncodeToString(data[:]), nil)
		}
		c.Bound = true
	}
	return c, nil
}

func refuse(code attest.Code, claim, got, want string, err error) *attest.Error {
	return &attest.Error{Reason: attest.NewReason(code, claim, got, want), Err: err}
}

// items is evidence by type.
type items struct {
	quote, log, tcbInfo, qeIdentity, tcbChain []byte
	crls                                      [][]byte
}

func split(ev attest.Evidence) (out items, err error) {
	if err := ev.Check(); err != nil {
		return out, err
	}
	if ev.Kind != attest.KindTDX {
		return out, fmt.Errorf("kind %q, want %q", ev.Kind, attest.KindTDX)
	}
	single := map[string]*[]byte{attest.TypeTDXQuote: &out.quote, attest.TypeEventLog: &out.log,
		attest.TypeTDXTCBInfo: &out.tcbInfo, attest.TypeTDXQEIdent: &out.qeIdentity, attest.TypeTDXTCBChain: &out.tcbChain}
	for _, it := range ev.Items {
		slot, known := single[it.Type]
		switch {
		case known && *slot == nil:
			*slot = it.Data
		case known:
			return out, fmt.Errorf("two items %q", it.Type)
		case it.Type == attest.TypeCRL:
			out.crls = append(out.crls, it.Data)
		case it.Type == attest.TypeCertificate:
		default:
			return out, fmt.Errorf("item %q is not TDX's", it.Type)
		}
	}
	if out.quote == nil {
		return out, errors.New("no quote")
	}
	return out, nil
}

// pckChain is the authenticated chain of a quote.
type pckChain struct {
	leaf, intermediate *x509.Certificate
	ext                *pcs.PckExtensions
}

// platformKey is an attestation key and the chain that certifies it.
type platformKey struct {
	pckChain
	id  chains.Key
	key *ecdsa.PublicKey
}

// authentic verifies all signatures of a quote, those above the attestation key only if
// they are not known to hold.
func (s *Scheme) authentic(ctx context.Context, q quote, at time.Time) (platformKey, error) {
	id := chains.Key(sha256.Sum256(q.certification()))
	if known, ok := s.known.Recall(id, at); ok {
		if err := q.signedBy(known.key); err != nil {
			return platformKey{}, err
		}
		return known, nil
	}
	chain, err := s.library(ctx, q, at)
	if err != nil {
		return platformKey{}, err
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, q.key...))
	if err != nil { // the library has verified with it
		return platformKey{}, err
	}
	out := platformKey{chain, id, key}
	s.known.Keep(id, chains.Validity(chain.leaf, chain.intermediate, s.root), out)
	return out, nil
}

// library lets go-tdx-guest verify chain and signatures and closes what it leaves open
// without collateral. Options are made for each call, because the library keeps state in
// them; roots are explicit; and a panic on crafted bytes is an error.
func (s *Scheme) library(ctx context.Context, q quote, at time.Time) (out pckChain, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("go-tdx-guest failed: %v", p)
		}
	}()
	if hex.EncodeToString(q.qeMRSigner()) != qeMRSigner || q.qeProdID() != qeProdID {
		return out, fmt.Errorf("the quoting enclave is signed by %x with product id %d, want Intel's %s with %d",
			q.qeMRSigner(), q.qeProdID(), qeMRSigner, qeProdID)
	}
	if q.qeAttributes()[0]&2 != 0 {
		return out, errors.New("the quoting enclave is in debug mode")
	}
	parsed, err := abi.QuoteToProto(q.raw)
	if err != nil {
		return out, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(s.root)
	err = verify.TdxQuoteContext(ctx, parsed, &verify.Options{TrustedRoots: roots, Now: &verify.TimeSet{
		PckCertChain: at, TcbInfo: at, QeIdentity: at, PckCrl: at, RootCaCrl: at}})
	if err != nil {
		return out, err
	}
	chain, err := verify.ExtractChainFromQuote(parsed)
	if err != nil {
		return out, err
	}
	if !chain.RootCertificate.Equal(s.root) {
		return out, errors.New("the root in the quote is not the trusted one")
	}
	out = pckChain{leaf: chain.PCKCertificate, intermediate: chain.IntermediateCertificate}
	out.ext, err = pcs.PckCertificateExtensions(out.leaf)
	return out, err
}

// platform adds what the PCK certificate and the collateral say about the platform.
func (s *Scheme) platform(q quote, key platformKey, it items, c *attest.Claims, at time.Time) error {
	c.HardwareID = strings.ToLower(key.ext.PPID)
	c.TDX.FMSPC = strings.ToLower(key.ext.FMSPC)
	if it.tcbInfo == nil || it.qeIdentity == nil || it.tcbChain == nil || len(it.crls) == 0 {
		return nil
	}
	col, err := s.collateralAt(key, it, at)
	var stale *staleError
	if errors.As(err, &stale) {
		c.TDX.CollateralStale = true
		return nil
	}
	if errors.Is(err, errIncomplete) {
		return nil
	}
	if err != nil {
		return refuse(attest.CodeNotGenuine, "collateral", "not verified", "collateral signed by Intel, no certificate revoked", err)
	}
	return col.evaluate(q, key.ext, c.TDX)
}

// explained compares the registers that a log replays to with the quoted ones.
func explained(log []byte, registers map[string]string) error {
	if log == nil {
		return nil
	}
	replayed, err := eventlog.Parse(log)
	if err != nil {
		return refuse(attest.CodeMalformed, "event_log", "", "", err)
	}
	for name, got := range replayed.Registers() {
		if want, ok := registers[name]; !ok || want != got {
			return refuse(attest.CodeReplayMismatch, name, got+" by replay", want+" in the quote", nil)
		}
	}
	return nil
}
