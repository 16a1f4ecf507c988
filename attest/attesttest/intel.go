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
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// fakeIntel is Intel's key hierarchy: root over PCK platform CA over PCKs, and root over
// the signer of TCB collateral.
type fakeIntel struct {
	root, platform, signer          *x509.Certificate
	rootKey, platformKey, signerKey *ecdsa.PrivateKey
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
	f := fakeIntel{rootKey: derived("root " + name), platformKey: derived("platform " + name), signerKey: derived("signer " + name)}
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
	return f
}

func intelTemplate(serial *big.Int, cn string, key *ecdsa.PublicKey) *x509.Certificate {
	id := sha256.Sum256(must(key.Bytes()))
	return &x509.Certificate{SerialNumber: serial, Subject: intelName(cn), NotBefore: validFrom, NotAfter: validTo,
		SignatureAlgorithm: x509.ECDSAWithSHA256, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		SubjectKeyId: id[:20], CRLDistributionPoints: []string{"https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"}}
}

// pck certifies a platform's PCK. Its six extensions are those that Intel's have.
func (f fakeIntel) pck(key *ecdsa.PublicKey) *x509.Certificate {
	serial := make([]byte, 16)
	_, _ = rand.Read(serial)
	c := intelTemplate(new(big.Int).SetBytes(serial), "Intel SGX PCK Certificate", key)
	ppid := sha256.Sum256(serial)
	c.ExtraExtensions = []pkix.Extension{{Id: sgxOID(), Value: must(asn1.Marshal(sgxExtensions(ppid[:16])))}}
	return parsed(x509.CreateCertificate(rand.Reader, c, f.platform, key, f.platformKey))
}

// sgxOID is an extension of Intel's arc (Intel SGX PCK Certificate and CRL Profile).
func sgxOID(arc ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}, arc...)
}

// pckSVN is every component of a platform's SGX TCB.
const pckSVN = 3

func sgxExtensions(ppid []byte) []pkix.AttributeTypeAndValue {
	var tcb []pkix.AttributeTypeAndValue
	for i := range 16 {
		tcb = append(tcb, pkix.AttributeTypeAndValue{Type: sgxOID(2, i+1), Value: pckSVN})
	}
	tcb = append(tcb, pkix.AttributeTypeAndValue{Type: sgxOID(2, 17), Value: 13},
		pkix.AttributeTypeAndValue{Type: sgxOID(2, 18), Value: bytes.Repeat([]byte{pckSVN}, 16)})
	return []pkix.AttributeTypeAndValue{
		{Type: sgxOID(1), Value: ppid}, {Type: sgxOID(2), Value: tcb}, {Type: sgxOID(3), Value: must(hex.DecodeString(pceID))},
		{Type: sgxOID(4), Value: must(hex.DecodeString(fmspc))}, {Type: sgxOID(5), Value: asn1.Enumerated(1)},
		{Type: sgxOID(6), Value: make([]byte, 16)},
	}
}

// chainPEM is what a quote carries: a PCK and what is above it.
func (f fakeIntel) chainPEM(pck *x509.Certificate) []byte { return toPEM(pck, f.platform, f.root) }

func toPEM(certs ...*x509.Certificate) (out []byte) {
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// collateral is what Intel's provisioning service says about platforms, from one time to
// another, and that it revoked one of them, if any.
func (f fakeIntel) collateral(from, to time.Time, revoked *x509.Certificate) []attest.Item {
	dates := fmt.Sprintf(`"issueDate":%q,"nextUpdate":%q`, from.Format(time.RFC3339), to.Format(time.RFC3339))
	zeros := strings.Repeat("0", 96)
	module := fmt.Sprintf(`"mrsigner":%q,"attributes":"0000000000000000","attributesMask":"FFFFFFFFFFFFFFFF"`, zeros)
	info := fmt.Sprintf(`{"id":"TDX","version":3,%s,"fmspc":%q,"pceId":%q,"tcbType":0,"tcbEvaluationDataNumber":17,"tdxModule":{%s},`+
		`"tdxModuleIdentities":[{"id":"TDX_01",%s,"tcbLevels":[{"tcb":{"isvsvn":4},"tcbDate":"2024-03-13T00:00:00Z","tcbStatus":"UpToDate"}]}],`+
		`"tcbLevels":[%s,%s]}`, dates, fmspc, pceID, module, module,
		level(pckSVN, tdxSVN, "UpToDate"), level(pckSVN, 0, "OutOfDate"))
	identity := fmt.Sprintf(`{"id":"TD_QE","version":2,%s,"tcbEvaluationDataNumber":17,"miscselect":"00000000","miscselectMask":"FFFFFFFF",`+
		`"attributes":"11000000000000000000000000000000","attributesMask":"FBFFFFFFFFFFFFFF0000000000000000","mrsigner":%q,"isvprodid":%d,`+
		`"tcbLevels":[{"tcb":{"isvsvn":%d},"tcbDate":"2024-03-13T00:00:00Z","tcbStatus":"UpToDate"}]}`, dates, strings.ToUpper(intelQESigner), qeProdID, qeSVN)
	return []attest.Item{
		{Type: attest.TypeTDXTCBInfo, Data: f.signed("tcbInfo", info)}, {Type: attest.TypeTDXQEIdent, Data: f.signed("enclaveIdentity", identity)},
		{Type: attest.TypeTDXTCBChain, Data: toPEM(f.signer, f.root)},
		{Type: attest.TypeCRL, Data: crl(f.platform, f.platformKey, from, to, revoked)}, {Type: attest.TypeCRL, Data: crl(f.root, f.rootKey, from, to, nil)},
	}
}

// level is a TCB level: every SGX component at sgx, every TDX component of the platform's
// own at tdx.
func level(sgx, tdx int, status string) string {
	same := func(svn int) string {
		return strings.TrimSuffix(strings.Repeat(fmt.Sprintf(`{"svn":%d},`, svn), 16), ",")
	}
	return fmt.Sprintf(`{"tcb":{"sgxtcbcomponents":[%s],"pcesvn":13,"tdxtcbcomponents":[%s]},"tcbDate":"2024-03-13T00:00:00Z","tcbStatus":%q}`,
		same(sgx), same(tdx), status)
}

// signed returns an answer of the service: the body as signed, and R and S in hex.
func (f fakeIntel) signed(name, body string) []byte {
	return fmt.Appendf(nil, `{%q:%s,"signature":"%x"}`, name, body, must(sign256(f.signerKey, []byte(body))))
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

func crl(issuer *x509.Certificate, key *ecdsa.PrivateKey, from, to time.Time, revoked *x509.Certificate) []byte {
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: from, NextUpdate: to,
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(4711), RevocationTime: from}}}
	if revoked != nil {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: revoked.SerialNumber, RevocationTime: from})
	}
	return must(x509.CreateRevocationList(rand.Reader, list, issuer, key))
}
