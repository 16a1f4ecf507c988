package ratls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Key is the key of one certificate. It lives in memory only and in one process.
type Key struct {
	private *ecdsa.PrivateKey
	spki    [32]byte
}

// NewKey makes a P-256 key.
func NewKey() (Key, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Key{}, err
	}
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		return Key{}, err
	}
	return Key{private, sha256.Sum256(der)}, nil
}

// SPKIHash is the SHA-256 of the key's SubjectPublicKeyInfo, which evidence names.
func (k Key) SPKIHash() [32]byte { return k.spki }

// Template is what a certificate says besides its key.
type Template struct {
	Claimant Claimant
	Node     identity.NodeRef // for people; proves nothing
	Names    []string         // host names and addresses, for people and browsers
	Proof    attest.Proof     // of Claimant.CertificateBinder(key.SPKIHash())
	// NotBefore and Lifetime; at most MaxLifetime.
	NotBefore time.Time
	Lifetime  time.Duration
}

// Certificate makes the self-signed certificate of k.
func (k Key) Certificate(t Template) (tls.Certificate, error) {
	if k.private == nil {
		return tls.Certificate{}, errors.New("ratls: no key")
	}
	if t.Lifetime <= 0 || t.Lifetime > MaxLifetime {
		return tls.Certificate{}, fmt.Errorf("ratls: lifetime %s, want more than nothing and at most %s", t.Lifetime, MaxLifetime)
	}
	value, err := extensionValue(t.Proof)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)),
		Subject:      pkix.Name{CommonName: t.Node.String(), Organization: []string{string(t.Node.Org)}},
		NotBefore:    t.NotBefore, NotAfter: t.NotBefore.Add(t.Lifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
		URIs:            []*url.URL{t.Claimant.urn()},
		ExtraExtensions: []pkix.Extension{{Id: OIDConceptualMessage(), Value: value}},
	}
	for _, name := range t.Names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.private.Public(), k.private)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("ratls: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("ratls: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k.private, Leaf: leaf}, nil
}

// extensionValue is the DER OCTET STRING of the CMW record of a proof.
func extensionValue(p attest.Proof) ([]byte, error) {
	proof, err := EncodeProof(p)
	if err != nil {
		return nil, err
	}
	if len(proof) > MaxCertificateProof {
		return nil, fmt.Errorf("ratls: a proof of %d bytes, a certificate holds at most %d", len(proof), MaxCertificateProof)
	}
	record, err := encodeRecord(proof)
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(record)
}

func (c Claimant) urn() *url.URL {
	return &url.URL{Scheme: "urn", Opaque: strings.TrimPrefix(urnPrefix, "urn:") + c.MeshID.String() + ":" +
		strconv.FormatUint(uint64(c.Incarnation), 10) + ":" + c.Peer.String()}
}

func parseURN(s string) (Claimant, error) {
	rest, ok := strings.CutPrefix(s, urnPrefix)
	parts := strings.Split(rest, ":")
	if !ok || len(parts) != 3 {
		return Claimant{}, fmt.Errorf("name %.160q, want %s<mesh id>:<incarnation>:<peer id>", s, urnPrefix)
	}
	var c Claimant
	incarnation, err := strconv.ParseUint(parts[1], 10, 64)
	if err != nil {
		return Claimant{}, fmt.Errorf("incarnation %.40q: %w", parts[1], err)
	}
	c.Incarnation = identity.Incarnation(incarnation)
	if c.MeshID, err = identity.ParseMeshID(parts[0]); err != nil {
		return Claimant{}, err
	}
	if c.Peer, err = identity.ParsePeerID(parts[2]); err != nil {
		return Claimant{}, err
	}
	if c.urn().String() != s {
		return Claimant{}, fmt.Errorf("name %.160q is not in canonical form", s)
	}
	return c, nil
}

// Certificate is what a well-formed certificate claims.
type Certificate struct {
	Claimant
	SPKIHash  [32]byte
	Proof     attest.Proof
	NotBefore time.Time
	NotAfter  time.Time
}

// HasProof reports whether a certificate carries the extension at all, in any form: others'
// certificates do not.
func HasProof(cert *x509.Certificate) bool {
	for _, e := range cert.Extensions {
		if e.Id.Equal(OIDConceptualMessage()) {
			return true
		}
	}
	return false
}

// SPKIHash is the SHA-256 of a certificate's SubjectPublicKeyInfo.
func SPKIHash(cert *x509.Certificate) [32]byte { return sha256.Sum256(cert.RawSubjectPublicKeyInfo) }

// ParseCertificate opens the first door: self-signed, P-256, one name, one canonical proof,
// a short life that at is within. Errors are *attest.Error. The claims are believed once a
// Scheme has verified Proof.Evidence against ReportData.
func ParseCertificate(cert *x509.Certificate, at time.Time) (Certificate, error) {
	public, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return refuse(attest.CodeMalformed, "certificate key", cert.PublicKeyAlgorithm.String(), "ECDSA P-256", nil)
	}
	if err := cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature); err != nil {
		return refuse(attest.CodeMalformed, "certificate signature", "not by its own key", "a self-signed certificate", err)
	}
	c := Certificate{SPKIHash: SPKIHash(cert), NotBefore: cert.NotBefore, NotAfter: cert.NotAfter}
	if life := c.NotAfter.Sub(c.NotBefore); life > MaxLifetime {
		return refuse(attest.CodeStale, "certificate lifetime", life.String(), "at most "+MaxLifetime.String(), nil)
	}
	if at.Before(c.NotBefore) || at.After(c.NotAfter) {
		return refuse(attest.CodeStale, "certificate", "valid "+c.NotBefore.UTC().Format(time.RFC3339)+" to "+c.NotAfter.UTC().Format(time.RFC3339),
			at.UTC().Format(time.RFC3339), nil)
	}
	if len(cert.URIs) != 1 {
		return refuse(attest.CodeMalformed, "certificate names", fmt.Sprintf("%d URIs", len(cert.URIs)), "one", nil)
	}
	var err error
	if c.Claimant, err = parseURN(cert.URIs[0].String()); err != nil {
		return refuse(attest.CodeMalformed, "certificate name", "undecodable", "the name of a node", err)
	}
	if c.Proof, err = certificateProof(cert); err != nil {
		return refuse(attest.CodeMalformed, "certificate evidence", "undecodable", "one proof in id-pe-cmw", err)
	}
	return c, nil
}

func certificateProof(cert *x509.Certificate) (attest.Proof, error) {
	var value []byte
	for _, e := range cert.Extensions {
		if !e.Id.Equal(OIDConceptualMessage()) {
			continue
		}
		if value != nil {
			return attest.Proof{}, errors.New("more than one")
		}
		value = e.Value
	}
	if len(value) == 0 || len(value) > MaxCertificateProof+256 {
		return attest.Proof{}, fmt.Errorf("%d bytes, want up to %d", len(value), MaxCertificateProof)
	}
	var record []byte
	rest, err := asn1.Unmarshal(value, &record)
	if err != nil || len(rest) != 0 {
		return attest.Proof{}, errors.New("not one DER OCTET STRING")
	}
	proof, err := decodeRecord(record)
	if err != nil {
		return attest.Proof{}, err
	}
	return DecodeProof(proof)
}

// ReportData is what the certificate's evidence must carry.
func (c Certificate) ReportData() (attest.ReportData, error) {
	return c.Proof.ReportData(c.CertificateBinder(c.SPKIHash), c.MeshID, string(c.Peer))
}

func refuse(code attest.Code, claim, got, want string, err error) (Certificate, error) {
	return Certificate{}, &attest.Error{Reason: attest.NewReason(code, claim, got, want), Err: err}
}
