package chains

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

// Anchor returns a trust anchor that is a key alone (RFC 5280, §6.1.1 (d), without the name):
// a genesis names manufacturers by key, so that they can renew certificates. It is for Pool
// and in itself no certificate that anything chains to.
func Anchor(key crypto.PublicKey) (*x509.Certificate, error) {
	out := &x509.Certificate{PublicKey: key}
	switch key.(type) {
	case *rsa.PublicKey:
		out.PublicKeyAlgorithm = x509.RSA
	case *ecdsa.PublicKey:
		out.PublicKeyAlgorithm = x509.ECDSA
	case ed25519.PublicKey:
		out.PublicKeyAlgorithm = x509.Ed25519
	default:
		return nil, fmt.Errorf("trust anchor: %T is none of RSA, ECDSA and Ed25519", key)
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("trust anchor: %w", err)
	}
	out.RawSubjectPublicKeyInfo = spki
	return out, nil
}

// Anchors returns the anchor of each key.
func Anchors(keys ...crypto.PublicKey) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, k := range keys {
		a, err := Anchor(k)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// Pool returns roots as crypto/x509 wants them for the verification of chain. A certificate
// among them is taken as it is. An Anchor has no name and no end: it stands as the issuer of
// each certificate of the chain, under the name that this one calls its issuer, and whether it
// is that is decided by the signature.
func Pool(roots []*x509.Certificate, chain ...*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, root := range roots {
		if root.Raw != nil {
			pool.AddCert(root)
			continue
		}
		for _, c := range chain {
			pool.AddCert(named(root, c.RawIssuer))
		}
	}
	return pool
}

// named returns the certificate that an anchor's owner could have issued to itself.
func named(anchor *x509.Certificate, name []byte) *x509.Certificate {
	c := *anchor
	// The pool tells certificates apart by their bytes, of which these are none.
	c.Raw = slices.Concat(anchor.RawSubjectPublicKeyInfo, name)
	c.RawSubject, c.RawIssuer = name, name
	c.Version, c.BasicConstraintsValid, c.IsCA, c.MaxPathLen, c.KeyUsage = 3, true, true, -1, x509.KeyUsageCertSign
	c.NotAfter = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) // RFC 5280, §4.1.2.5
	return &c
}
