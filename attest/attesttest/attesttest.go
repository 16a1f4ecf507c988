// Package attesttest forges evidence for tests: valid evidence of any measurement without
// a platform, and every kind of invalid evidence. It is given to in-process nodes through
// their Deps and is never linked into meshnode (internal/layering holds that).
//
// A Forger is one fake vendor: it has a root, the Scheme that believes it, and makes
// Attesters. Its evidence is byte for byte what a real platform of that root would make,
// so nothing between an Attester and a verdict knows that it runs in a test.
//
//	forger := attesttest.New("my test")
//	good := forger.Attester(attesttest.Measurement("release 1"))
//	bad := forger.Attester(attesttest.Measurement("release 1"))
//	bad.Forge(attesttest.WrongReportData)
//	roots.sim of the genesis = forger.Roots()
//
// The only kind that can be forged so far is sim.
package attesttest

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
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

// The forgeries. The comment names the code with which a verifier must refuse; every one
// of them is refused by a Scheme, before any policy is asked.
const (
	Genuine         Forgery = iota // nothing is wrong
	WrongReportData                // not_bound: one bit of the asked report data differs
	Stale                          // not_bound: the first evidence made, again and again
	WrongRoot                      // not_genuine: signed by a platform nobody named
	StolenName                     // not_genuine: signed by another platform in the name of this one
	FlippedBit                     // not_genuine or malformed: each call flips the next bit of the report
	WrongKind                      // malformed: labelled as SEV-SNP evidence
	TwoReports                     // malformed: a second, genuine report of another measurement rides along
	Trailing                       // malformed: a byte after the report
	Truncated                      // malformed: the last byte is missing
)

// Forgeries lists every way to be wrong, for tables.
func Forgeries() []Forgery {
	var out []Forgery
	for f := WrongReportData; f <= Truncated; f++ {
		out = append(out, f)
	}
	return out
}

// String names the forgery.
func (f Forgery) String() string {
	names := []string{"genuine", "wrong report data", "stale", "wrong root", "stolen name", "flipped bit",
		"wrong kind", "two reports", "trailing", "truncated"}
	if f < 0 || int(f) >= len(names) {
		return fmt.Sprintf("forgery %d", int(f))
	}
	return names[f]
}

// ErrDevice is what a failing attester returns.
var ErrDevice = errors.New("attesttest: the device failed, as the test asked")

// Forger is a fake vendor. It is immutable.
type Forger struct {
	root, other ed25519.PrivateKey
}

// New returns the forger of a name: the same name gives the same root in every run.
func New(name string) *Forger {
	derive := func(label string) ed25519.PrivateKey {
		seed := sha256.Sum256([]byte("attesttest " + label + " " + name))
		return ed25519.NewKeyFromSeed(seed[:])
	}
	return &Forger{root: derive("root"), other: derive("other")}
}

// Measurement returns a measurement that no other name has, in the form of Claims.
func Measurement(name string) string {
	sum := sha512.Sum384([]byte("attesttest measurement " + name))
	return hex.EncodeToString(sum[:])
}

// Kind is the kind of evidence the forger makes.
func (*Forger) Kind() string { return attest.KindSim }

// Roots are the public keys that genesis names for the forged evidence to be genuine.
func (f *Forger) Roots() []crypto.PublicKey { return []crypto.PublicKey{f.root.Public()} }

// Scheme returns the Scheme that believes the forger's root.
func (f *Forger) Scheme() attest.Scheme {
	s, err := sim.NewScheme(f.Roots()...)
	if err != nil { // a fixed Ed25519 key: cannot fail
		panic(err)
	}
	return s
}

// Attester returns an attester whose genuine evidence has a measurement: 96 characters of
// lower-case hex, see Measurement. It panics on any other.
func (f *Forger) Attester(measurement string) *Attester {
	a := &Attester{forger: f}
	a.Remeasure(measurement)
	return a
}

// Attester makes evidence as its test says. Methods may be called at any time from any
// goroutine.
type Attester struct {
	forger *Forger

	mu          sync.Mutex
	measurement [sim.MeasurementSize]byte // guarded by mu, as all below
	forgery     Forgery
	failure     error
	gate        chan struct{}
	calls       int
	first       []byte
	flips       int
}

// Remeasure makes all later evidence show another measurement, as after an upgrade.
func (a *Attester) Remeasure(measurement string) {
	raw, err := hex.DecodeString(measurement)
	if err != nil || len(raw) != sim.MeasurementSize {
		panic(fmt.Sprintf("attesttest: measurement %q, want %d hex characters", measurement, 2*sim.MeasurementSize))
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
func (a *Attester) Kind() string { return a.forger.Kind() }

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
	key := a.forger.root
	switch a.forgery {
	case WrongReportData:
		data[0] ^= 1
	case WrongRoot:
		key = a.forger.other
	}
	report, err := sim.Sign(key, a.measurement, data)
	if err != nil {
		return attest.Evidence{}, err
	}
	if a.first == nil {
		a.first = slices.Clone(report)
	}
	switch a.forgery {
	case Stale:
		report = slices.Clone(a.first)
	case StolenName:
		if report, err = a.stealName(report, data); err != nil {
			return attest.Evidence{}, err
		}
	case FlippedBit:
		report[a.flips/8%len(report)] ^= 1 << (a.flips % 8)
		a.flips++
	case Trailing:
		report = append(report, 0)
	case Truncated:
		report = report[:len(report)-1]
	}
	ev := sim.Evidence(report)
	switch a.forgery {
	case WrongKind:
		ev.Kind, ev.Items[0].Type = attest.KindSEVSNP, attest.TypeSEVSNPReport
	case TwoReports:
		m := a.measurement
		m[0] ^= 1
		second, err := sim.Sign(key, m, data)
		if err != nil {
			return attest.Evidence{}, err
		}
		ev.Items = append(ev.Items, attest.Item{Type: attest.TypeSimReport, Data: second})
	}
	return ev, nil
}

// stealName signs with the other key and names the genuine platform.
func (a *Attester) stealName(genuine []byte, data attest.ReportData) ([]byte, error) {
	raw, err := sim.Sign(a.forger.other, a.measurement, data)
	if err != nil {
		return nil, err
	}
	r, err := sim.ParseReport(genuine)
	if err != nil {
		return nil, err
	}
	stolen, err := sim.ParseReport(raw)
	if err != nil {
		return nil, err
	}
	stolen.Platform = r.Platform
	return stolen.Encode()
}
