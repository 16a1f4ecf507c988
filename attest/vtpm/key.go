package vtpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// minRSA is the smallest modulus, in bits, of an attestation key.
const minRSA = 2048

// attestationKey is a key that signs quotes.
type attestationKey struct {
	public crypto.PublicKey
	digest string // SHA-256 of the SubjectPublicKeyInfo
}

// newKey refuses keys that are none of a TPM's or too weak.
func newKey(pub crypto.PublicKey) (attestationKey, error) {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSA || bits > 4*minRSA {
			return attestationKey{}, fmt.Errorf("attestation key: RSA of %d bits, want %d to %d", bits, minRSA, 4*minRSA)
		}
	case *ecdsa.PublicKey:
	default:
		return attestationKey{}, fmt.Errorf("attestation key: %T, want RSA or ECDSA", pub)
	}
	spki, err := x509.MarshalPKIXPublicKey(pub) // not of a point off its curve, which a public area may have
	if err != nil {
		return attestationKey{}, fmt.Errorf("attestation key: %w", err)
	}
	sum := sha256.Sum256(spki)
	return attestationKey{pub, hex.EncodeToString(sum[:])}, nil
}

// areaKey reads TPMT_PUBLIC in its one encoding. A key that is not restricted would sign a
// quote its owner made up; but only the key itself is authenticated by what it signed, so
// that the attributes are a sanity check and trust in the AK comes from whoever certified it.
func areaKey(area []byte) (attestationKey, error) {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](area)
	if err != nil {
		return attestationKey{}, fmt.Errorf("public area: %w", err)
	}
	if !bytes.Equal(tpm2.Marshal(public), area) {
		return attestationKey{}, errors.New("the public area is not in its one encoding")
	}
	if a := public.ObjectAttributes; !a.Restricted || !a.SignEncrypt || a.Decrypt {
		return attestationKey{}, errors.New("the public area is not that of a restricted signing key")
	}
	pub, err := tpm2.Pub(*public)
	if err != nil {
		return attestationKey{}, fmt.Errorf("public area: %w", err)
	}
	return newKey(pub)
}

// publicKey reads an attestation key in any of the forms that TypeTPMPublic has.
func publicKey(raw []byte) (attestationKey, error) {
	if len(raw) > 2 && raw[0] == 0x30 {
		pub, err := x509.ParsePKIXPublicKey(raw)
		if err != nil {
			return attestationKey{}, err
		}
		return newKey(pub)
	}
	if len(raw) > 2 && int(binary.BigEndian.Uint16(raw)) == len(raw)-2 {
		raw = raw[2:] // TPM2B_PUBLIC
	}
	return areaKey(raw)
}

// LooksLikeKey reports whether raw is an attestation key as TypeTPMPublic has it.
func LooksLikeKey(raw []byte) bool {
	_, err := publicKey(raw)
	return err == nil
}

func equalKeys(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}
