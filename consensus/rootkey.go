package consensus

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"strings"
)

// RootKey is the key of somebody outside the mesh who certifies hardware, as a manufacturer
// of TPMs: RSA of 2048 to 8192 bits, a NIST curve, Ed25519. It is written as base64
// SubjectPublicKeyInfo DER. Only the key is named: its owner may renew the certificate.
type RootKey struct{ crypto.PublicKey }

// Sizes of RSA moduli in bits.
const (
	minRSA = 2048
	maxRSA = 8192
)

func (k RootKey) der() ([]byte, error) {
	switch pub := k.PublicKey.(type) {
	case ed25519.PublicKey, *ecdsa.PublicKey:
	case *rsa.PublicKey:
		if n := pub.N.BitLen(); n < minRSA || n > maxRSA {
			return nil, fmt.Errorf("key: RSA of %d bits, want %d to %d", n, minRSA, maxRSA)
		}
	default:
		return nil, fmt.Errorf("key: %T is none of RSA, ECDSA and Ed25519", k.PublicKey)
	}
	return x509.MarshalPKIXPublicKey(k.PublicKey)
}

// id returns the hex SHA-256 of the SubjectPublicKeyInfo.
func (k RootKey) id() (string, error) {
	der, err := k.der()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}

// MarshalText implements encoding.TextMarshaler.
func (k RootKey) MarshalText() ([]byte, error) {
	der, err := k.der()
	if err != nil {
		return nil, err
	}
	return []byte(base64.StdEncoding.EncodeToString(der)), nil
}

// UnmarshalText implements encoding.TextUnmarshaler and takes the one encoding of a key.
func (k *RootKey) UnmarshalText(text []byte) error {
	der, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil {
		return fmt.Errorf("key: %w", err)
	}
	pub, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return fmt.Errorf("key: %w", err)
	}
	next := RootKey{pub}
	if back, err := next.der(); err != nil {
		return err
	} else if !bytes.Equal(back, der) {
		return fmt.Errorf("key: not in its one encoding")
	}
	*k = next
	return nil
}

// parseRootKey reads what a person writes: base64 of a SubjectPublicKeyInfo, or the PEM of a
// public key or of a certificate, whose key it then is.
func parseRootKey(s string) (k RootKey, err error) {
	block, rest := pem.Decode([]byte(s))
	if block == nil {
		if s == "" {
			return k, fmt.Errorf("is empty")
		}
		return k, k.UnmarshalText([]byte(s))
	}
	if strings.TrimSpace(string(rest)) != "" {
		return k, fmt.Errorf("more than one PEM block; write one to an item")
	}
	switch block.Type {
	case "PUBLIC KEY":
		k.PublicKey, err = x509.ParsePKIXPublicKey(block.Bytes)
	case "CERTIFICATE":
		var cert *x509.Certificate
		if cert, err = x509.ParseCertificate(block.Bytes); err == nil {
			k.PublicKey = cert.PublicKey
		}
	default:
		return k, fmt.Errorf("PEM of type %.40q, want CERTIFICATE or PUBLIC KEY", block.Type)
	}
	if err == nil {
		_, err = k.der()
	}
	return k, err
}
