package attesttest

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	_ "embed" // the fake AMD's keys
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/sevsnp"
)

// Two RSA-4096 keys as AMD's are. They are in the source because making them takes
// seconds, and they protect nothing: no binary believes them.
//
//go:embed amd_keys.pem
var amdKeysPEM []byte

// The validity of everything forged.
var (
	validFrom = time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC)
	validTo   = time.Date(2099, 12, 31, 23, 59, 59, 0, time.UTC)
)

// fakeAMD is AMD's key hierarchy for one product: ARK over ASK over endorsement keys.
type fakeAMD struct {
	product  string
	ark, ask *x509.Certificate
	askKey   *rsa.PrivateKey
}

// must is for what fails only if this package is wrong.
func must[T any](v T, err error) T {
	if err != nil {
		panic("attesttest: " + err.Error())
	}
	return v
}

func amdKeys() (out [2]*rsa.PrivateKey) {
	rest := amdKeysPEM
	for i := range out {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		out[i] = must(x509.ParsePKCS1PrivateKey(block.Bytes))
	}
	return out
}

// amdPair is a fake AMD and another one that nobody named, whose keys are the same ones in
// each other's place.
type amdPair struct{ named, foreign fakeAMD }

// The hierarchies are made at the first use and are the same in the whole process: salted
// signatures would make them differ.
var (
	milan = sync.OnceValue(func() amdPair { return newAMDPair(sevsnp.Milan) })
	genoa = sync.OnceValue(func() amdPair { return newAMDPair(sevsnp.Genoa) })
)

func newAMDPair(product string) amdPair {
	k := amdKeys()
	return amdPair{newFakeAMD(product, k[0], k[1]), newFakeAMD(product, k[1], k[0])}
}

// amdName is the name of a certificate of AMD's (AMD 57230, "Certificate Format").
func amdName(cn string) pkix.Name {
	return pkix.Name{CommonName: cn, Organization: []string{"Advanced Micro Devices"}, OrganizationalUnit: []string{"Engineering"},
		Country: []string{"US"}, Locality: []string{"Santa Clara"}, Province: []string{"CA"}}
}

func newFakeAMD(product string, arkKey, askKey *rsa.PrivateKey) fakeAMD {
	ca := func(serial int64, cn string) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: amdName(cn), NotBefore: validFrom, NotAfter: validTo,
			SignatureAlgorithm: x509.SHA384WithRSAPSS, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
			CRLDistributionPoints: []string{"https://kdsintf.amd.com/vcek/v1/" + product + "/crl"}}
	}
	ark, ask := ca(0x10001, "ARK-"+product), ca(0x10002, "SEV-"+product)
	ark = parsed(x509.CreateCertificate(rand.Reader, ark, ark, arkKey.Public(), arkKey))
	ask = parsed(x509.CreateCertificate(rand.Reader, ask, ark, askKey.Public(), arkKey))
	return fakeAMD{product, ark, ask, askKey}
}

func parsed(der []byte, err error) *x509.Certificate {
	return must(x509.ParseCertificate(must(der, err)))
}

// amdOID is an extension of AMD's arc (AMD 57230, "VCEK Certificate").
func amdOID(arc ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}, arc...)
}

// vcek certifies the endorsement key of a chip at a TCB.
func (a fakeAMD) vcek(key *ecdsa.PublicKey, chip [64]byte, tcb attest.TCB) []byte {
	extension := func(value []byte, arc ...int) pkix.Extension {
		return pkix.Extension{Id: amdOID(arc...), Value: value}
	}
	number := func(v uint8, arc ...int) pkix.Extension {
		return extension(must(asn1.Marshal(int(v))), arc...)
	}
	return must(x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: amdName("SEV-VCEK"), NotBefore: validFrom, NotAfter: validTo,
		SignatureAlgorithm: x509.SHA384WithRSAPSS,
		ExtraExtensions: []pkix.Extension{
			number(0, 1), extension(must(asn1.MarshalWithParams(a.product+"-B0", "ia5")), 2),
			number(tcb.BootLoader, 3, 1), number(tcb.TEE, 3, 2), number(tcb.SNP, 3, 3), number(0, 3, 4), number(0, 3, 5),
			number(0, 3, 6), number(0, 3, 7), number(tcb.Microcode, 3, 8),
			extension(chip[:], 4),
		}}, a.ask, key, a.askKey))
}
