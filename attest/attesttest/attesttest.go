// Package attesttest forges evidence for tests: valid evidence of any measurement without
// a platform, and every kind of invalid evidence. It is given to in-process nodes through
// their Deps and is never linked into meshnode (internal/layering holds that).
//
// A forger is one fake vendor: it has a root, the Scheme that believes it, and makes
// Attesters. There is one for each kind: Forger for sim, SEVSNP for a fake AMD, TDX for a
// fake Intel, VTPM for a fake maker of TPMs, HCL for composites on machines of the last three. The evidence is byte for byte what a real platform under that root would
// make, with certificates and collateral of the vendors' shape, and it is judged by the
// real Scheme; nothing between an Attester and a verdict knows that it runs in a test.
//
//	forger := attesttest.New("my test")
//	good := forger.Attester(attesttest.Measurement("release 1"))
//	bad := forger.Attester(attesttest.Measurement("release 1"))
//	bad.Forge(attesttest.WrongReportData)
//	roots.sim of the genesis = forger.Roots()
//
// Certificates and collateral are valid from 1999 to 2099, so that they are at the first
// instant of a synctest bubble too. Whoever reads the source has every private key.
package attesttest

import (
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/sim"
)

// Forgery is what is wrong with evidence.
type Forgery int

// The forgeries; Codes says how each is refused. Down to Truncated there is one for every
// kind. Those to RevokedPlatform are refused by a Scheme, before any policy is asked; the
// last ones are genuine, and it is for the policy to refuse them.
const (
	Genuine         Forgery = iota // nothing is wrong
	WrongReportData                // one bit of the asked report data differs
	Stale                          // the first evidence made, again and again
	WrongRoot                      // signed by a platform nobody named
	StolenName                     // signed by another platform in the name of this one
	FlippedBit                     // each call flips the next bit of the report
	WrongKind                      // labelled as evidence of another kind
	TwoReports                     // a second, genuine report of another measurement rides along
	Trailing                       // a byte after the report
	Truncated                      // the last byte is missing

	OtherTCB         // SEV-SNP: reports a higher TCB than its certificate
	OtherChip        // SEV-SNP: reports another chip than its certificate
	NoCertificate    // SEV-SNP
	Unsigned         // SEV-SNP: says that nobody signed it (MASK_CHIP_KEY)
	NewerFormat      // SEV-SNP: says something where its version has nothing
	ForeignEnclave   // TDX: quoted by an enclave that is not Intel's
	OtherHalf        // composites: the quote of another machine's TPM over the same report data
	ForeignRuntime   // composites: runtime data that the TEE's report does not vouch for
	NoRuntime        // composites: a report bound to the exchange itself, which names no key
	ForeignStatement // TPM: a statement that was not made inside it
	OtherStatement   // TPM: a certification instead of a quote
	NoRegisters      // TPM: a quote over nothing
	WeakSignature    // TPM: signed with SHA-1
	EditedLog        // TPM: a log that does not lead to the registers
	EditedRegister   // TPM: a register's value that is not the quoted one
	RevokedPlatform  // a certificate above it is on the revocation list

	DebugGuest      // the host may read its memory
	MigratableGuest // SEV-SNP: the host may move it with an agent
	MaskedChip      // SEV-SNP: shows no chip id
	WrongVMPL       // SEV-SNP: quoted at level 3
	OldTCB          // a platform that lacks updates
	StaleCollateral // TDX
	NoCollateral    // TDX

	UncertifiedKey   // TPM: nobody vouches for the attestation key
	WeakBank         // TPM: only the SHA-1 bank is quoted
	MissingRegisters // TPM: register 7 is not quoted
	SecureBootOff    // TPM
	Suspended        // TPM: the machine slept since it booted
	UnlistedFile     // TPM: a file ran that no policy lists
	last
)

// Forgeries lists the ways to be wrong that evidence of every kind has, for tables.
func Forgeries() []Forgery {
	var out []Forgery
	for f := WrongReportData; f <= Truncated; f++ {
		out = append(out, f)
	}
	return out
}

// String names the forgery.
func (f Forgery) String() string {
	names := [last]string{"genuine", "wrong report data", "stale", "wrong root", "stolen name", "flipped bit",
		"wrong kind", "two reports", "trailing", "truncated", "other TCB", "other chip", "no certificate",
		"unsigned", "newer format", "foreign enclave", "other half", "foreign runtime data", "no runtime data", "foreign statement",
		"other statement", "no registers", "weak signature", "edited log", "edited register", "revoked platform", "debug guest", "migratable guest", "masked chip", "wrong VMPL", "old TCB", "stale collateral", "no collateral",
		"uncertified key", "weak bank", "missing registers", "Secure Boot off", "suspended", "unlisted file"}
	if f < 0 || f >= last {
		return fmt.Sprintf("forgery %d", int(f))
	}
	return names[f]
}

// Codes returns the codes with which evidence of this forgery may be refused: one of them,
// by the Scheme of its kind or by a policy. It is empty for what is genuine.
func (f Forgery) Codes() []attest.Code {
	switch f {
	case WrongReportData, Stale:
		return []attest.Code{attest.CodeNotBound}
	case WrongRoot: // the quote of a TPM is genuine under any key; whose it is is for the policy
		return []attest.Code{attest.CodeNotGenuine, attest.CodeNoEndorsement}
	case StolenName, ForeignEnclave, Unsigned, ForeignStatement, OtherStatement, WeakSignature, EditedRegister:
		return []attest.Code{attest.CodeNotGenuine}
	case OtherHalf:
		return []attest.Code{attest.CodeNotGenuine, attest.CodeAKBinding}
	case ForeignRuntime, NoRuntime:
		return []attest.Code{attest.CodeAKBinding}
	case NoRegisters:
		return []attest.Code{attest.CodePCRSelection}
	case WeakBank, MissingRegisters: // the measurement is over the registers that are quoted
		return []attest.Code{attest.CodePCRSelection, attest.CodeMeasurementNotAllowed}
	case EditedLog:
		return []attest.Code{attest.CodeReplayMismatch}
	case UncertifiedKey:
		return []attest.Code{attest.CodeNoEndorsement}
	case SecureBootOff:
		return []attest.Code{attest.CodeSecureBootOff, attest.CodeMeasurementNotAllowed}
	case Suspended:
		return []attest.Code{attest.CodeRestarted}
	case UnlistedFile:
		return []attest.Code{attest.CodeIMAUnlisted}
	case RevokedPlatform:
		return []attest.Code{attest.CodeCertificateRevoked, attest.CodeNotGenuine}
	case NewerFormat:
		return []attest.Code{attest.CodeUnsupported}
	case MigratableGuest:
		return []attest.Code{attest.CodeMigratable}
	case MaskedChip:
		return []attest.Code{attest.CodeMaskedChipID}
	case FlippedBit:
		return []attest.Code{attest.CodeNotGenuine, attest.CodeMalformed, attest.CodeCertificateMismatch}
	case WrongKind, TwoReports, Trailing, Truncated:
		return []attest.Code{attest.CodeMalformed}
	case OtherTCB, OtherChip:
		return []attest.Code{attest.CodeCertificateMismatch}
	case NoCertificate, NoCollateral:
		return []attest.Code{attest.CodeCollateralMissing}
	case DebugGuest:
		return []attest.Code{attest.CodeDebug}
	case WrongVMPL: // no paravisor runs there
		return []attest.Code{attest.CodeVMPL, attest.CodeAKBinding}
	case OldTCB:
		return []attest.Code{attest.CodeTCBBelowFloor, attest.CodeTCBStatus}
	case StaleCollateral:
		return []attest.Code{attest.CodeCollateralStale}
	}
	return nil
}

// ErrDevice is what a failing attester returns.
var ErrDevice = errors.New("attesttest: the device failed, as the test asked")

// Measurement returns a measurement that no other name has, in the form of Claims.
func Measurement(name string) string {
	sum := sha512.Sum384([]byte("attesttest measurement " + name))
	return hex.EncodeToString(sum[:])
}

// machine is one platform of a fake vendor.
type machine interface {
	kind() string
	// evidence makes evidence with one thing wrong, as far as that is the machine's matter.
	// The report is its first item, the first solid bytes of which no bit can be spared.
	evidence(f Forgery, m [measurementSize]byte, data attest.ReportData) (ev attest.Evidence, solid int, err error)
	// forgeries lists what the machine can do wrong beyond Forgeries.
	forgeries() []Forgery
}

// measurementSize is that of all three kinds.
const measurementSize = sim.MeasurementSize

// Attester makes evidence as its test says. Methods may be called at any time from any
// goroutine.
type Attester struct {
	machine machine

	mu          sync.Mutex
	measurement [measurementSize]byte // guarded by mu, as all below
	forgery     Forgery
	failure     error
	gate        chan struct{}
	calls       int
	first       *attest.Evidence
	flips       int
}

// newAttester panics on a measurement that is not 96 characters of lower-case hex.
func newAttester(m machine, measurement string) *Attester {
	a := &Attester{machine: m}
	a.Remeasure(measurement)
	return a
}

// Forgeries lists every way in which this attester can be wrong.
func (a *Attester) Forgeries() []Forgery { return append(Forgeries(), a.machine.forgeries()...) }

// Remeasure makes all later evidence show another measurement, as after an upgrade.
func (a *Attester) Remeasure(measurement string) {
	raw, err := hex.DecodeString(measurement)
	if err != nil || len(raw) != measurementSize {
		panic(fmt.Sprintf("attesttest: measurement %q, want %d hex characters", measurement, 2*measurementSize))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	copy(a.measurement[:], raw)
}

// Forge makes all later evidence wrong in one way; Genuine makes it right again.
func (a *Attester) Forge(f Forgery) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forgery = f
}

// Fail makes all later calls fail with err, or succeed again if err is nil.
func (a *Attester) Fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failure = err
}

// Hold makes all later calls wait, as a slow device does, until release is called or
// their context ends.
func (a *Attester) Hold() (release func()) {
	gate := make(chan struct{})
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gate = gate
	return sync.OnceFunc(func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		close(gate)
		if a.gate == gate {
			a.gate = nil
		}
	})
}

// Calls returns how many quotes were asked for: what batching and fast mode save.
func (a *Attester) Calls() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls
}

// Kind implements attest.Attester.
func (a *Attester) Kind() string { return a.machine.kind() }

// Attest implements attest.Attester.
func (a *Attester) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	a.mu.Lock()
	a.calls++
	gate := a.gate
	a.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return attest.Evidence{}, ctx.Err()
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failure != nil {
		return attest.Evidence{}, a.failure
	}
	return a.make(data)
}

// make makes evidence; mu is held.
func (a *Attester) make(data attest.ReportData) (attest.Evidence, error) {
	asked := data
	if a.forgery == WrongReportData {
		data[0] ^= 1
	}
	ev, solid, err := a.machine.evidence(a.forgery, a.measurement, data)
	if err != nil {
		return attest.Evidence{}, err
	}
	if a.first == nil {
		first := ev
		first.Items = slices.Clone(ev.Items)
		a.first = &first
	}
	report := slices.Clone(ev.Items[0].Data)
	switch a.forgery {
	case Stale:
		return *a.first, nil
	case FlippedBit:
		report[a.flips/8%solid] ^= 1 << (a.flips % 8)
		a.flips++
	case Trailing:
		report = append(report, 0)
	case Truncated:
		report = report[:len(report)-1]
	case WrongKind:
		ev.Kind, ev.Items[0].Type = attest.KindSEVSNP, attest.TypeSEVSNPReport
		if a.Kind() == attest.KindSEVSNP {
			ev.Kind, ev.Items[0].Type = attest.KindTDX, attest.TypeTDXQuote
		}
	case TwoReports:
		m := a.measurement
		m[0] ^= 1
		second, _, err := a.machine.evidence(Genuine, m, asked)
		if err != nil {
			return attest.Evidence{}, err
		}
		ev.Items = append(ev.Items, second.Items[0])
	}
	ev.Items[0].Data = report
	return ev, nil
}
