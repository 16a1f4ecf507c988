package attesttest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"math/big"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/vtpm"
)

// VTPM is a fake maker of TPMs, who certifies attestation keys. A TPM's measurement is a hash
// over registers and cannot be chosen: Measurement tells which one a machine shows whose boot
// loader is another's measurement.
type VTPM struct {
	root    *x509.Certificate
	key     *ecdsa.PrivateKey
	foreign *ecdsa.PrivateKey
	useRSA  bool
}

// NewVTPM returns the maker of a name, whose attestation keys are RSA or of P-256.
func NewVTPM(name string, useRSA bool) *VTPM {
	f := &VTPM{key: derived("TPM maker " + name), foreign: derived("TPM maker nobody named"), useRSA: useRSA}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "attesttest TPM maker " + name},
		NotBefore: validFrom, NotAfter: validTo, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	f.root = parsed(x509.CreateCertificate(rand.Reader, template, template, &f.key.PublicKey, f.key))
	return f
}

// Kind is the kind of evidence the forger makes.
func (*VTPM) Kind() string { return attest.KindVTPM }

// Root is the one to believe for the forged keys to be certified.
func (f *VTPM) Root() *x509.Certificate { return f.root }

// Scheme returns a new Scheme that believes the forger's root.
func (f *VTPM) Scheme() attest.Scheme { return vtpm.New([]*x509.Certificate{f.root}) }

// loaderOf is the boot loader of a machine.
func loaderOf(measurement [measurementSize]byte) []byte {
	return append([]byte("loader "), measurement[:]...)
}

// program is what every machine runs, unlisted what none should.
var program, unlisted = []byte("program"), []byte("unlisted program")

// Measurement returns what genuine evidence of Attester(measurement) shows.
func (f *VTPM) Measurement(measurement string) string {
	t := NewSoftTPM(false)
	t.Boot(loaderOf([measurementSize]byte(must(hex.DecodeString(measurement)))), true)
	return t.stable()
}

// IMAAllowed are the files that genuine machines run, as policies list them.
func IMAAllowed() []string {
	digest := sha256.Sum256(program)
	return []string{"sha256:" + hex.EncodeToString(digest[:])}
}

// Policy returns a policy that admits genuine evidence of the attesters' measurements, and
// nothing more.
func (f *VTPM) Policy(measurements ...string) attest.Policy {
	var shown []string
	for _, m := range measurements {
		shown = append(shown, f.Measurement(m))
	}
	return attest.Policy{Kinds: []string{attest.KindVTPM}, References: references(attest.KindVTPM, shown), VTPM: tpmPolicy(attest.AKTrustCertificate)}
}

// tpmPolicy is strict about everything a SoftTPM shows.
func tpmPolicy(trust string) *attest.VTPMPolicy {
	p := attest.StrictPolicy().VTPM
	p.AKTrust, p.Banks, p.AllowRestarts = []string{trust}, []string{"sha256"}, false
	p.IMA = attest.IMAPolicy{Allowed: IMAAllowed()}
	return p
}

// Attester returns an attester on a machine of its own: see Measurement of the package for
// the form of its argument.
func (f *VTPM) Attester(measurement string) *Attester {
	return newAttester(&tpmMachine{f, NewSoftTPM(f.useRSA).Key}, measurement)
}

// tpmMachine has a TPM with a key; it boots for every quote.
type tpmMachine struct {
	*VTPM
	ak crypto.Signer
}

func (*tpmMachine) kind() string { return attest.KindVTPM }

// tpmForgeries are those of every TPM.
var tpmForgeries = []Forgery{ForeignStatement, OtherStatement, NoRegisters, WeakSignature, EditedLog, EditedRegister,
	WeakBank, MissingRegisters, SecureBootOff, Suspended, UnlistedFile}

func (*tpmMachine) forgeries() []Forgery { return append([]Forgery{UncertifiedKey}, tpmForgeries...) }

// booted returns the TPM of a key after a boot.
func booted(ak crypto.Signer, f Forgery, measurement [measurementSize]byte) *SoftTPM {
	t := NewSoftTPM(false)
	t.Key = ak
	t.Boot(loaderOf(measurement), f != SecureBootOff)
	t.Run("/usr/bin/program", program)
	if f == UnlistedFile {
		t.Run("/tmp/program", unlisted)
	}
	if f == Suspended {
		t.Restarts = 1
	}
	return t
}

func (m *tpmMachine) evidence(f Forgery, measurement [measurementSize]byte, data attest.ReportData) (attest.Evidence, int, error) {
	nonce := sha256.Sum256(data[:])
	ev := attest.Evidence{Kind: attest.KindVTPM, Items: booted(m.ak, f, measurement).items(f, nonce[:])}
	spki, err := x509.MarshalPKIXPublicKey(m.ak.Public())
	if err != nil {
		return attest.Evidence{}, 0, err
	}
	ev.Items = append(ev.Items, attest.Item{Type: attest.TypeTPMPublic, Data: spki})
	if f != UncertifiedKey {
		issuer := m.key
		if f == WrongRoot {
			issuer = m.foreign
		}
		der, err := m.certify(m.ak.Public(), issuer)
		if err != nil {
			return attest.Evidence{}, 0, err
		}
		ev.Items = append(ev.Items, attest.Item{Type: attest.TypeCertificate, Data: der})
	}
	return ev, len(ev.Items[0].Data), nil
}

// certify makes the certificate of an attestation key, as TPM makers do: the subject is empty
// and a critical alternative name holds the model (TCG EK Credential Profile §3.2.9).
func (f *VTPM) certify(ak crypto.PublicKey, issuer *ecdsa.PrivateKey) ([]byte, error) {
	name := must(asn1.Marshal(pkix.Name{CommonName: "SoftTPM"}.ToRDNSequence()))
	san := must(asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name}}))
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: validFrom, NotAfter: validTo, KeyUsage: x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true, ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: san}}}
	parent := *f.root
	parent.PublicKey = &issuer.PublicKey
	return x509.CreateCertificate(rand.Reader, template, &parent, ak, issuer)
}
