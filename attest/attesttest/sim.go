package attesttest

import (
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/sim"
)

// Forger is a fake vendor of sim platforms. It is immutable.
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
func (f *Forger) Attester(measurement string) *Attester { return newAttester(f, measurement) }

func (f *Forger) kind() string { return f.Kind() }

func (f *Forger) forgeries() []Forgery { return nil }

func (f *Forger) evidence(forgery Forgery, m [measurementSize]byte, data attest.ReportData) (attest.Evidence, int, error) {
	key := f.root
	if forgery == WrongRoot || forgery == StolenName {
		key = f.other
	}
	report, err := sim.Sign(key, m, data)
	if err == nil && forgery == StolenName {
		report, err = f.rename(report, m, data)
	}
	return sim.Evidence(report), len(report), err
}

// rename puts the name of the genuine platform into a report of the other.
func (f *Forger) rename(report []byte, m [measurementSize]byte, data attest.ReportData) ([]byte, error) {
	genuine, err := sim.Sign(f.root, m, data)
	if err != nil {
		return nil, err
	}
	r, err := sim.ParseReport(genuine)
	if err != nil {
		return nil, err
	}
	stolen, err := sim.ParseReport(report)
	if err != nil {
		return nil, err
	}
	stolen.Platform = r.Platform
	return stolen.Encode()
}
