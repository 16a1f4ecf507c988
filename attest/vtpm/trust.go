package vtpm

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"slices"
	"time"

	mesh "github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/chains"
)

// Bounds of what is remembered. Anybody can make a key and sign a quote that explains a log
// of his making, so that logs have to be few and small: what they say takes several times
// their size.
const (
	maxKnown     = 1 << 10   // keys
	maxKnownLogs = 1 << 7    // of the event log and IMA list of a machine
	maxKnownLog  = 256 << 10 // bytes of both
)

// endorsedKey is an attestation key and why it is believed.
type endorsedKey struct {
	attestationKey
	trust string
}

// key finds the attestation key and whoever vouches for it.
func (s *Scheme) key(b bundle, named crypto.PublicKey, at time.Time) (endorsedKey, error) {
	if named != nil {
		return b.namedKey(named)
	}
	id := b.keyID()
	if known, ok := s.keys.Recall(id, at); ok {
		return known, nil
	}
	key, err := b.givenKey()
	if err != nil {
		return endorsedKey{}, err
	}
	out, span := endorsedKey{attestationKey: key}, chains.Span{From: time.Unix(0, 0), To: time.Unix(1<<40, 0)}
	if len(s.roots) > 0 {
		chain := s.certified(b, key, at)
		if chain != nil {
			out.trust, span = mesh.AKTrustCertificate, chains.Validity(chain...)
		} else if b.cert != nil || len(b.certs) > 0 {
			return out, nil // at another time the certificates may be valid
		}
	}
	s.keys.Keep(id, span, out)
	return out, nil
}

// keyID is over all that key reads, besides roots and time.
func (b bundle) keyID() chains.Key {
	var buf []byte
	for _, part := range append([][]byte{b.area, b.public, b.cert}, b.certs...) {
		buf = mesh.LengthPrefixed(buf, part)
	}
	return sha256.Sum256(buf)
}

// namedKey is the key that a TEE report names; one that the evidence holds must be it.
func (b bundle) namedKey(named crypto.PublicKey) (endorsedKey, error) {
	key, err := newKey(named)
	if err != nil {
		return endorsedKey{}, refuse(mesh.CodeAKBinding, "vtpm.ak_digest", "", "a key that a TPM can have", err)
	}
	if b.area != nil || b.public != nil {
		given, err := b.givenKey()
		if err != nil {
			return endorsedKey{}, err
		}
		if given.digest != key.digest {
			return endorsedKey{}, refuse(mesh.CodeAKBinding, "vtpm.ak_digest", given.digest, key.digest+", which the TEE report names", nil)
		}
	}
	return endorsedKey{key, mesh.AKTrustReport}, nil
}

// givenKey reads the key in the evidence: itself, or that of the only certificate that is
// no authority's.
func (b bundle) givenKey() (attestationKey, error) {
	var key attestationKey
	var err error
	switch {
	case b.area != nil:
		if key, err = areaKey(b.area); err != nil {
			return key, refuse(mesh.CodeNotGenuine, "attestation key", "", "a restricted signing key", err)
		}
		return key, nil
	case b.public != nil:
		if key, err = publicKey(b.public); err != nil {
			return key, refuse(mesh.CodeMalformed, "attestation key", "", "", err)
		}
		return key, nil
	}
	for _, der := range b.certs {
		if c, err := x509.ParseCertificate(der); err == nil && !c.IsCA {
			if key.public != nil {
				return attestationKey{}, refuse(mesh.CodeMalformed, "attestation key", "several certificates", "one, or the key", nil)
			}
			if key, err = newKey(c.PublicKey); err != nil {
				return attestationKey{}, refuse(mesh.CodeMalformed, "attestation key", "", "", err)
			}
		}
	}
	if key.public == nil {
		return key, refuse(mesh.CodeNoEndorsement, "attestation key", "", "the key, its certificate, or the TEE report that names it", nil)
	}
	return key, nil
}

// certified returns the chain of the AK's certificate to a root of ours, nil if there is
// none at the time. go-tpm-tools would use the clock.
func (s *Scheme) certified(b bundle, key attestationKey, at time.Time) []*x509.Certificate {
	if at.IsZero() { // to crypto/x509 that is the clock
		return nil
	}
	intermediates := x509.NewCertPool()
	var chain []*x509.Certificate
	var leaf *x509.Certificate
	candidates := b.certs
	if b.cert != nil {
		candidates = append([][]byte{b.cert}, b.certs...)
	}
	for _, der := range candidates {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			continue
		}
		chain = append(chain, c)
		switch {
		case leaf == nil && certifiesAttestation(c) && equalKeys(c.PublicKey, key.public):
			leaf = c
		default:
			intermediates.AddCert(c)
		}
	}
	if leaf == nil {
		return nil
	}
	// crypto/x509 does not read the TPM's directory names and calls the extension unhandled.
	san := asn1.ObjectIdentifier{2, 5, 29, 17}
	leaf.UnhandledCriticalExtensions = slices.DeleteFunc(leaf.UnhandledCriticalExtensions, san.Equal)
	found, err := leaf.Verify(x509.VerifyOptions{Roots: chains.Pool(s.roots, chain...), Intermediates: intermediates, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil
	}
	return found[0]
}

// akUsages are the purposes of which a certificate for an attestation key names one, if it
// names any: tcg-kp-AIKCertificate, tcg-cap-verifiedTPMRestricted (TCG TPM 2.0 Keys for Device
// Identity and Attestation, §8) and, as Google Cloud has it, tcg-kp-EKCertificate.
var akUsages = []asn1.ObjectIdentifier{{2, 23, 133, 8, 3}, {2, 23, 133, 11, 1, 3}, ekUsage}

// certifiesAttestation reports whether a certificate is for a key that signs what a TPM says.
// Those who certify TPMs certify other keys too: a device's identity (IDevID) is in the TPM,
// but signs whatever it is given, a quote that its owner made up as well.
func certifiesAttestation(c *x509.Certificate) bool {
	if c.IsCA || c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return false
	}
	if len(c.ExtKeyUsage) == 0 && len(c.UnknownExtKeyUsage) == 0 {
		return true
	}
	return slices.ContainsFunc(c.UnknownExtKeyUsage, func(id asn1.ObjectIdentifier) bool {
		return slices.ContainsFunc(akUsages, id.Equal)
	})
}
