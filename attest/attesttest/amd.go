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

// fakeAMD is AMD's key hierarchy for one product: ARK over ASK and ASVK over endorsement
// keys. The two intermediates share a key, as the real ones do not.
type fakeAMD struct {
	product         string
	ark, ask, asvk  *x509.Certificate
	arkKey, caKey   *rsa.PrivateKey
	current, listed []byte // revocation lists of the ARK's: of nothing, and of both intermediates
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
var amdPairs = map[string]func() amdPair{
	sevsnp.Milan: sync.OnceValue(func() amdPair { return newAMDPair(sevsnp.Milan) }),
	sevsnp.Genoa: sync.OnceValue(func() amdPair { return newAMDPair(sevsnp.Genoa) }),
	sevsnp.Turin: sync.OnceValue(func() amdPair { return newAMDPair(sevsnp.Turin) }),
}

func newAMDPair(product string) amdPair {
	k := amdKeys()
	return amdPair{newFakeAMD(product, k[0], k[1]), newFakeAMD(product, k[1], k[0])}
}

// amdName is the name of a certificate of AMD's (AMD 57230, "Certificate Format").
func amdName(cn string) pkix.Name {
	return pkix.Name{CommonName: cn, Organization: []string{"Advanced Micro Devices"}, OrganizationalUnit: []string{"Engineering"},
		Country: []string{"US"}, Locality: []string{"Santa Clara"}, Province: []string{"CA"}}
}

func newFakeAMD(product string, arkKey, caKey *rsa.PrivateKey) fakeAMD {
	ca := func(serial int64, cn, service string, usage x509.KeyUsage) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: amdName(cn), NotBefore: validFrom, NotAfter: validTo,
			SignatureAlgorithm: x509.SHA384WithRSAPSS, IsCA: true, BasicConstraintsValid: true, KeyUsage: usage,
			CRLDistributionPoints: []string{"https://kdsintf.amd.com/" + service + "/v1/" + product + "/crl"}}
	}
	ark := ca(0x10000, "ARK-"+product, "vcek", x509.KeyUsageCertSign|x509.KeyUsageCRLSign)
	ark = parsed(x509.CreateCertificate(rand.Reader, ark, ark, arkKey.Public(), arkKey))
	ask := ca(0x10001, "SEV-"+product, "vcek", x509.KeyUsageCertSign)
	asvk := ca(0x10101, "SEV-VLEK-"+product, "vlek", x509.KeyUsageCertSign)
	a := fakeAMD{product: product, ark: ark, arkKey: arkKey, caKey: caKey,
		ask:  parsed(x509.CreateCertificate(rand.Reader, ask, ark, caKey.Public(), arkKey)),
		asvk: parsed(x509.CreateCertificate(rand.Reader, asvk, ark, caKey.Public(), arkKey))}
	a.current, a.listed = a.crl(validFrom, validTo), a.crl(validFrom, validTo, a.ask, a.asvk)
	return a
}

// crl is a revocation list of the ARK's.
func (a fakeAMD) crl(from, to time.Time, revoked ...*x509.Certificate) []byte {
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: from, NextUpdate: to, SignatureAlgorithm: x509.SHA384WithRSAPSS}
	for _, cert := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: cert.SerialNumber, RevocationTime: from})
	}
	return must(x509.CreateRevocationList(rand.Reader, list, a.ark, a.arkKey))
}

func parsed(der []byte, err error) *x509.Certificate {
	return must(x509.ParseCertificate(must(der, err)))
}

// amdExtension is an extension of AMD's arc (AMD 57230, "VCEK Certificate").
func amdExtension(value []byte, arc ...int) pkix.Extension {
	return pkix.Extension{Id: append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}, arc...), Value: value}
}

func amdNumber(v uint8, arc ...int) pkix.Extension {
	return amdExtension(must(asn1.Marshal(int(v))), arc...)
}

// amdLevels are the extensions of a TCB, in the order and number that AMD's certificates of
// the product have: Turin's begin with the FMC and have no fourth.
func amdLevels(product string, tcb attest.TCB) []pkix.Extension {
	if product == sevsnp.Turin {
		return []pkix.Extension{amdNumber(tcb.FMC, 3, 9), amdNumber(tcb.BootLoader, 3, 1), amdNumber(tcb.TEE, 3, 2),
			amdNumber(tcb.SNP, 3, 3), amdNumber(0, 3, 5), amdNumber(0, 3, 6), amdNumber(0, 3, 7), amdNumber(tcb.Microcode, 3, 8)}
	}
	return []pkix.Extension{amdNumber(tcb.BootLoader, 3, 1), amdNumber(tcb.TEE, 3, 2), amdNumber(0, 3, 4), amdNumber(0, 3, 5),
		amdNumber(0, 3, 6), amdNumber(0, 3, 7), amdNumber(tcb.SNP, 3, 3), amdNumber(tcb.Microcode, 3, 8)}
}

// amdProduct is the structure version and product name of a certificate.
func amdProduct(product string, stepping string) []pkix.Extension {
	version := uint8(0)
	if product == sevsnp.Turin {
		version, stepping = 1, ""
	}
	return []pkix.Extension{amdNumber(version, 1), amdExtension(must(asn1.MarshalWithParams(product+stepping, "ia5")), 2)}
}

// vcek certifies the endorsement key of a chip at a TCB. The hardware id has no ASN.1 tag,
// as AMD writes it, and on Turin the 8 bytes that the chip id has there.
func (a fakeAMD) vcek(key *ecdsa.PublicKey, chip [64]byte, tcb attest.TCB) []byte {
	id := chip[:]
	if a.product == sevsnp.Turin {
		id = chip[:turinChip]
	}
	return a.endorse("SEV-VCEK", a.ask, key, append(append(amdProduct(a.product, "-B0"), amdLevels(a.product, tcb)...), amdExtension(id, 4)))
}

// vlek certifies an endorsement key that is loaded into the machines of a provider.
func (a fakeAMD) vlek(key *ecdsa.PublicKey, provider string, tcb attest.TCB) []byte {
	return a.endorse("SEV-VLEK", a.asvk, key, append(append(amdProduct(a.product, ""), amdLevels(a.product, tcb)...),
		amdExtension(must(asn1.MarshalWithParams(provider, "ia5")), 5)))
}

func (a fakeAMD) endorse(cn string, parent *x509.Certificate, key *ecdsa.PublicKey, extensions []pkix.Extension) []byte {
	return must(x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(0), Subject: amdName(cn), NotBefore: validFrom, NotAfter: validTo,
		SignatureAlgorithm: x509.SHA384WithRSAPSS, ExtraExtensions: extensions,
	}, parent, key, a.caKey))
}
