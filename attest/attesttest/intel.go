package attesttest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"
)

// fakeIntel is Intel's key hierarchy: root over PCK platform CA over PCKs, and root over
// the signer of TCB collateral.
type fakeIntel struct {
	root, platform, processor, signer             *x509.Certificate
	rootKey, platformKey, processorKey, signerKey *ecdsa.PrivateKey
}

// What all platforms are.
const (
	fmspc = "00806f050000"
	pceID = "0000"
)

// derived returns the P-256 key of a label.
func derived(label string) *ecdsa.PrivateKey {
	for i := 0; ; i++ { // a digest that is no scalar does not occur in practice
		d := sha256.Sum256(fmt.Appendf(nil, "attesttest %s %d", label, i))
		if key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), d[:]); err == nil {
			return key
		}
	}
}

func newP256() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

func intelName(cn string) pkix.Name {
	return pkix.Name{CommonName: cn, Organization: []string{"Intel Corporation"}, Country: []string{"US"},
		Locality: []string{"Santa Clara"}, Province: []string{"CA"}}
}

// newFakeIntel returns the hierarchy of a name. Signatures are deterministic (RFC 6979), so
// that the same name gives the same certificates in every run.
func newFakeIntel(name string) fakeIntel {
	f := fakeIntel{rootKey: derived("root " + name), platformKey: derived("platform " + name),
		processorKey: derived("processor " + name), signerKey: derived("signer " + name)}
	certify := func(serial int64, cn string, ca bool, key *ecdsa.PublicKey, parent *x509.Certificate) *x509.Certificate {
		c := intelTemplate(big.NewInt(serial), cn, key)
		if c.IsCA = ca; ca {
			c.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
		}
		if parent == nil {
			parent = c
		}
		return parsed(x509.CreateCertificate(nil, c, parent, key, f.rootKey))
	}
	f.root = certify(1, "Intel SGX Root CA", true, &f.rootKey.PublicKey, nil)
	f.platform = certify(2, "Intel SGX PCK Platform CA", true, &f.platformKey.PublicKey, f.root)
	f.signer = certify(3, "Intel SGX TCB Signing", false, &f.signerKey.PublicKey, f.root)
	f.processor = certify(4, "Intel SGX PCK Processor CA", true, &f.processorKey.PublicKey, f.root)
	return f
}

func intelTemplate(serial *big.Int, cn string, key *ecdsa.PublicKey) *x509.Certificate {
	id := sha256.Sum256(must(key.Bytes()))
	return &x509.Certificate{SerialNumber: serial, Subject: intelName(cn), NotBefore: validFrom, NotAfter: validTo,
		SignatureAlgorithm: x509.ECDSAWithSHA256, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		SubjectKeyId: id[:20], CRLDistributionPoints: []string{"https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"}}
}

// ca returns the CA that certifies a platform: the processor CA those of one processor
// package, the platform CA all others.
func (f fakeIntel) ca(p *TDXPlatform) (*x509.Certificate, *ecdsa.PrivateKey) {
	if p.Processor {
		return f.processor, f.processorKey
	}
	return f.platform, f.platformKey
}

// pck certifies a platform's PCK. Its six extensions are those that Intel's have.
func (f fakeIntel) pck(key *ecdsa.PublicKey, p *TDXPlatform) *x509.Certificate {
	serial := make([]byte, 16)
	_, _ = rand.Read(serial)
	c := intelTemplate(new(big.Int).SetBytes(serial), "Intel SGX PCK Certificate", key)
	ppid := sha256.Sum256(serial)
	c.ExtraExtensions = []pkix.Extension{{Id: sgxOID(), Value: must(asn1.Marshal(sgxExtensions(ppid[:16], p)))}}
	ca, caKey := f.ca(p)
	return parsed(x509.CreateCertificate(rand.Reader, c, ca, key, caKey))
}

// sgxOID is an extension of Intel's arc (Intel SGX PCK Certificate and CRL Profile).
func sgxOID(arc ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}, arc...)
}

func sgxExtensions(ppid []byte, p *TDXPlatform) []pkix.AttributeTypeAndValue {
	var tcb []pkix.AttributeTypeAndValue
	for i := range 16 {
		tcb = append(tcb, pkix.AttributeTypeAndValue{Type: sgxOID(2, i+1), Value: int(p.SGXSVN)})
	}
	tcb = append(tcb, pkix.AttributeTypeAndValue{Type: sgxOID(2, 17), Value: int(p.PCESVN)},
		pkix.AttributeTypeAndValue{Type: sgxOID(2, 18), Value: bytes.Repeat([]byte{p.SGXSVN}, 16)})
	return []pkix.AttributeTypeAndValue{
		{Type: sgxOID(1), Value: ppid}, {Type: sgxOID(2), Value: tcb}, {Type: sgxOID(3), Value: must(hex.DecodeString(pceID))},
		{Type: sgxOID(4), Value: must(hex.DecodeString(fmspc))}, {Type: sgxOID(5), Value: asn1.Enumerated(1)},
		{Type: sgxOID(6), Value: make([]byte, 16)},
	}
}

// chainPEM is what a quote carries: a PCK and what is above it.
func (f fakeIntel) chainPEM(pck *x509.Certificate, p *TDXPlatform) []byte {
	ca, _ := f.ca(p)
	return toPEM(pck, ca, f.root)
}

func toPEM(certs ...*x509.Certificate) (out []byte) {
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// sign256 returns R and S of 32 bytes each over SHA-256 of msg.
func sign256(key *ecdsa.PrivateKey, msg []byte) ([]byte, error) {
	digest := sha256.Sum256(msg)
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		return nil, err
	}
	out := make([]byte, 64)
	r.FillBytes(out[:32])
	s.FillBytes(out[32:])
	return out, nil
}

func crl(issuer *x509.Certificate, key *ecdsa.PrivateKey, number int64, from, to time.Time, revoked ...*x509.Certificate) []byte {
	list := &x509.RevocationList{Number: big.NewInt(number), ThisUpdate: from, NextUpdate: to,
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(4711), RevocationTime: from}}}
	for _, c := range revoked {
		if string(c.RawIssuer) == string(issuer.RawSubject) {
			list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: from})
		}
	}
	return must(x509.CreateRevocationList(rand.Reader, list, issuer, key))
}
