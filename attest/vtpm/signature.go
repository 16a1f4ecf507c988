package vtpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"github.com/attestmesh/meshnode/internal/cursor"
)

// signature is a TPM's signature, TPMT_SIGNATURE (Part 2, §11.3.4): u16 scheme, u16 hash,
// then TPM2B for RSA, TPM2B r and TPM2B s for ECDSA.
type signature struct {
	scheme tpm2.TPMAlgID
	hash   crypto.Hash
	rsa    []byte
	r, s   []byte
}

// errWeakHash refuses what nobody should sign with.
var errWeakHash = errors.New("the signature's hash is too weak or unknown, want SHA-256 or stronger")

// strongHashes may be signed with.
var strongHashes = []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512}

// parseSignature reads a TPMT_SIGNATURE and accounts for every byte.
func parseSignature(raw []byte) (signature, error) {
	r := cursor.Big(raw)
	s := signature{scheme: tpm2.TPMAlgID(r.U16())}
	algorithm := tpm2.TPMAlgID(r.U16())
	switch s.scheme {
	case tpm2.TPMAlgRSASSA, tpm2.TPMAlgRSAPSS:
		s.rsa = sized(&r)
	case tpm2.TPMAlgECDSA:
		s.r, s.s = sized(&r), sized(&r)
	default:
		return signature{}, fmt.Errorf("signature: scheme %#04x, want RSASSA, RSAPSS or ECDSA", uint16(s.scheme))
	}
	if r.Short() || r.Len() != 0 {
		return signature{}, fmt.Errorf("signature: %d bytes, cut short or %d behind its end", len(raw), r.Len())
	}
	s.hash = bankHashes[algorithm]
	if s.hash == 0 || s.hash == crypto.SHA1 {
		return signature{}, fmt.Errorf("%w: hash %#04x", errWeakHash, uint16(algorithm))
	}
	return s, nil
}

// rawSignatures returns what a signature without TPMT_SIGNATURE's header may be, for a key
// of the kind: RSA of the modulus' size, or ECDSA in DER or as r and s in a row. Which hash
// it was made with, only verifying tells.
func rawSignatures(raw []byte, key crypto.PublicKey) (out []signature) {
	switch key := key.(type) {
	case *rsa.PublicKey:
		if len(raw) != key.Size() {
			return nil
		}
		for _, h := range strongHashes {
			out = append(out, signature{scheme: tpm2.TPMAlgRSASSA, hash: h, rsa: raw}, signature{scheme: tpm2.TPMAlgRSAPSS, hash: h, rsa: raw})
		}
	case *ecdsa.PublicKey:
		var der struct{ R, S *big.Int }
		size := (key.Params().BitSize + 7) / 8
		var r, s []byte
		switch rest, err := asn1.Unmarshal(raw, &der); {
		case err == nil && len(rest) == 0 && der.R.Sign() > 0 && der.S.Sign() > 0:
			r, s = der.R.Bytes(), der.S.Bytes()
		case len(raw) == 2*size:
			r, s = raw[:size], raw[size:]
		default:
			return nil
		}
		for _, h := range strongHashes {
			out = append(out, signature{scheme: tpm2.TPMAlgECDSA, hash: h, r: r, s: s})
		}
	}
	return out
}

// verify checks the signature over a statement.
func (s signature) verify(key crypto.PublicKey, statement []byte) error {
	h := s.hash.New()
	h.Write(statement)
	digest := h.Sum(nil)
	switch key := key.(type) {
	case *rsa.PublicKey:
		switch s.scheme {
		case tpm2.TPMAlgRSASSA:
			return rsa.VerifyPKCS1v15(key, s.hash, digest, s.rsa)
		case tpm2.TPMAlgRSAPSS:
			// TPMs before 1.38 salt with all that fits, later ones with the hash's size.
			return rsa.VerifyPSS(key, s.hash, digest, s.rsa, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto})
		}
	case *ecdsa.PublicKey:
		size := (key.Params().BitSize + 7) / 8
		if s.scheme == tpm2.TPMAlgECDSA && len(s.r) <= size && len(s.s) <= size {
			if ecdsa.Verify(key, digest, new(big.Int).SetBytes(s.r), new(big.Int).SetBytes(s.s)) {
				return nil
			}
			return errors.New("the ECDSA signature does not verify")
		}
	}
	return fmt.Errorf("a signature of scheme %#04x does not fit a key %T", uint16(s.scheme), key)
}

// signedBy verifies a statement's signature and returns the hash that it was made with. Only
// where bare is set may it lack TPMT_SIGNATURE's header.
func signedBy(key crypto.PublicKey, statement, raw []byte, bare bool) (crypto.Hash, error) {
	s, err := parseSignature(raw)
	if err == nil {
		return s.hash, s.verify(key, statement)
	}
	candidates := rawSignatures(raw, key)
	if !bare || len(candidates) == 0 {
		return 0, err
	}
	for _, s := range candidates {
		if s.verify(key, statement) == nil {
			return s.hash, nil
		}
	}
	return 0, errors.New("the raw signature verifies with no scheme and hash that a TPM has")
}
