// Package tdx decides the authenticity of Intel TDX quotes of version 4 and 5, with TD
// reports of TDX 1.0 and 1.5 (Intel TDX DCAP Quoting Library API, appendix A.3 and A.4), and
// the status of the platform they come from. All of it is our own code, since go-tdx-guest
// knows version 4 only and converges no status; from it are the SGX extensions of PCK
// certificates. Tests hold the two against each other wherever the library can follow.
//
// # Quotes
//
// Integers are little-endian. Every byte is accounted for.
//
//	header, 48: u16 version (4, 5), u16 key type (2: ECDSA P-256), u32 TEE type (0x81),
//	            4 reserved, 16 QE vendor id (Intel's), 20 user data
//	version 5:  u16 body type (2: TDX 1.0, 3: TDX 1.5), u32 size of the body (584, 648)
//	TD report:  0 TEE_TCB_SVN[16]  16 MRSEAM[48]  64 MRSIGNERSEAM[48]  112 SEAMATTRIBUTES[8]
//	            120 TDATTRIBUTES[8]  128 XFAM[8]  136 MRTD[48]  184 MRCONFIGID[48]
//	            232 MROWNER[48]  280 MROWNERCONFIG[48]  328 RTMR0..3[48 each]  520 REPORTDATA[64]
//	  TDX 1.5:  584 TEE_TCB_SVN2[16]  600 MRSERVICETD[48]
//	u32 size of what follows:
//	signature[64] over all above the size; attestation key[64]; u16 6, u32 size of:
//	  QE report[384], its signature[64] by the PCK; u16 size, QE authentication data;
//	  u16 5, u32 size, PEM of PCK certificate, its CA, root
//
// # Evidence
//
// One TypeTDXQuote; optional collateral, as Intel's PCS serves it: TypeTDXTCBInfo and
// TypeTDXQEIdent (JSON bodies), TypeTDXTCBChain once or twice (PEM of the TCB signing
// certificate and the root), TypeCRL (the root's and the PCK issuer's, DER); optional
// TypeEventLog. TypeCertificate is allowed and not used: the PCK chain is in the quote, the
// root is compiled in. Nothing is fetched.
//
// # What Verify establishes
//
// Without collateral: PCK chain to Intel's root (subjects of Intel's profile, P-256, valid at
// the time), QE report signed by the PCK, attestation key named by the QE report, header and
// body signed by that key; the QE is Intel's TD quoting enclave and not in debug mode; the
// report data; that the event log replays to the registers and leaves none of RTMR0 to RTMR2
// out, and what it proves. TCBStatus is then "": unknown.
//
// With complete collateral: its signatures, issue and next-update dates and revocation
// lists, TDX module and QE against their identities, then the status by Intel's algorithm
// (Quote Verification Library, checkTcbLevel): platform, TDX module, relaunch and QE
// together, the worst deciding. A status that Intel does not define there becomes
// "UnrecognizedStatus". Incomplete collateral counts as none; collateral outside its dates
// sets CollateralStale.
//
// A platform's PCK chain, and the attestation key that its quoting enclave had certified by
// it, are remembered once they held (package chains), by all the bytes behind the quote's
// own signature and within the validity of the certificates; so is collateral, by its
// bytes, within its dates. The next quotes of the platform cost the quote's signature.
//
// Errors, as codes: malformed; not_genuine (header, chain, signatures, QE, a revoked
// certificate, forged collateral; the claim names what), certificate_mismatch (collateral of
// another platform), seam (a TDX module that is not Intel's), replay_mismatch, not_bound.
// Whether DEBUG, a status or other facts are acceptable is for attest.Appraise.
package tdx

import (
	"bytes"
	"context"
	"crypto/x509"
	_ "embed" // Intel's root
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/chains"
	"github.com/attestmesh/meshnode/attest/eventlog"
	_ "github.com/attestmesh/meshnode/internal/quietlog" // go-tdx-guest logs to standard output
)

//go:embed intel_root.pem
var intelRootPEM []byte

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
	root, err := Root()
	if err != nil {
		return nil, err
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
	if err != nil {
		return attest.Claims{}, notGenuine(attest.CodeMalformed, "quote", "", "", err)
	}
	key, err := s.authentic(q, at)
	if err != nil {
		return attest.Claims{}, notGenuine(attest.CodeNotGenuine, "quote", "not verified", "a chain to Intel's root and valid signatures", err)
	}
	c := q.claims()
	c.At = at
	if err := s.platform(q, key, items, &c, at); err != nil {
		return attest.Claims{}, err
	}
	if c.TDX.Boot, err = explained(items.log, c.Registers); err != nil {
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

// notGenuine names the check that failed, if it has a name; else it says what it is told.
func notGenuine(code attest.Code, claim, got, want string, err error) *attest.Error {
	var m *mismatch
	if errors.As(err, &m) {
		return refuse(attest.CodeNotGenuine, m.claim, m.got, m.want, nil)
	}
	return refuse(code, claim, got, want, err)
}

// items is evidence by type.
type items struct {
	quote, log, tcbInfo, qeIdentity []byte
	tcbChains, crls                 [][]byte
}

func split(ev attest.Evidence) (out items, err error) {
	if err := ev.Check(); err != nil {
		return out, err
	}
	if ev.Kind != attest.KindTDX {
		return out, fmt.Errorf("kind %q, want %q", ev.Kind, attest.KindTDX)
	}
	single := map[string]*[]byte{attest.TypeTDXQuote: &out.quote, attest.TypeEventLog: &out.log,
		attest.TypeTDXTCBInfo: &out.tcbInfo, attest.TypeTDXQEIdent: &out.qeIdentity}
	for _, it := range ev.Items {
		slot, known := single[it.Type]
		switch {
		case known && *slot == nil:
			*slot = it.Data
		case known:
			return out, fmt.Errorf("two items %q", it.Type)
		case it.Type == attest.TypeCRL:
			out.crls = append(out.crls, it.Data)
		case it.Type == attest.TypeTDXTCBChain && len(out.tcbChains) < 2:
			out.tcbChains = append(out.tcbChains, it.Data)
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

// platform adds what the PCK certificate and the collateral say about the platform.
func (s *Scheme) platform(q quote, key platformKey, it items, c *attest.Claims, at time.Time) error {
	c.HardwareID = strings.ToLower(key.ext.PPID)
	c.TDX.FMSPC, c.TDX.PCEID = strings.ToLower(key.ext.FMSPC), strings.ToLower(key.ext.PCEID)
	c.TDX.SGXTCBSVN, c.TDX.PCESVN = hex.EncodeToString(key.ext.TCB.CPUSvnComponents), key.ext.TCB.PCESvn
	if c.TDX.CollateralLacks = it.lacks(); len(c.TDX.CollateralLacks) > 0 {
		return nil
	}
	col, err := s.collateralAt(key, it, at)
	var stale *staleError
	if errors.As(err, &stale) {
		c.TDX.CollateralStale, c.TDX.StalePart = true, stale.part.String()
		return nil
	}
	var incomplete *incompleteError
	if errors.As(err, &incomplete) {
		c.TDX.CollateralLacks = incomplete.lacks
		return nil
	}
	if err != nil {
		return notGenuine(attest.CodeNotGenuine, "collateral", "not verified", "collateral signed by Intel, no certificate revoked", err)
	}
	return col.evaluate(q, key.ext, c.TDX)
}

// firmwareRTMRs are the registers of which a log must explain every one that was extended,
// lest what it leaves out be taken for what did not happen. RTMR3 is the workload's.
const firmwareRTMRs = 3

// explained compares the registers that a log replays to with the quoted ones and returns
// what they prove; nil for no log.
func explained(log []byte, registers map[string]string) (*attest.BootFacts, error) {
	if log == nil {
		return nil, nil
	}
	replayed, err := eventlog.Parse(log)
	if err != nil {
		return nil, refuse(attest.CodeMalformed, "event_log", "", "", err)
	}
	found := replayed.Registers()
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if want := registers[name]; want != found[name] {
			return nil, refuse(attest.CodeReplayMismatch, name, found[name]+" by replay", want+" in the quote", nil)
		}
	}
	for _, name := range rtmrNames[:firmwareRTMRs] {
		if _, ok := found[name]; !ok && strings.Trim(registers[name], "0") != "" {
			return nil, refuse(attest.CodeReplayMismatch, name, "no event in the log", registers[name]+" in the quote", nil)
		}
	}
	// Every replayed register is a quoted one now.
	return replayed.Facts("sha384", replayed.Banks["sha384"]), nil
}
