package vtpm

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	activation "github.com/google/go-attestation/attest"
	"github.com/google/go-tpm/legacy/tpm2"

	mesh "github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/chains"
	"github.com/attestmesh/meshnode/internal/canonical"
)

// This file is credential activation (TPM 2.0 Library, Part 1, §24): how an Attestation CA
// gets to know that an attestation key is in the TPM whose endorsement key a manufacturer
// certified. The endorsement key cannot sign, so the CA encrypts a secret to it together
// with the name of the attestation key; the TPM decrypts only if it holds both.
//
//	node                                      Attestation CA (an enroller)
//	Endorse:  EK certificate, AK,  -------->  Challenge: EK certified? AK made in a TPM,
//	          proof of its creation           restricted, bound to it?
//	Activate: TPM2_ActivateCredential  <----  secret encrypted to the EK for the AK's name
//	          secret               -------->  Pending.Confirm: believe AKDigest
//
// Quotes of the key are then believed wherever the CA's word for its digest is known
// (Claims.Activated).

// Limits of what a node and a CA send each other.
const (
	maxEKChain     = 8
	maxCertificate = 8 << 10
	maxStructure   = 2 << 10
	// MaxEndorsement bounds the encoded Endorsement, MaxChallenge the encoded Challenge.
	MaxEndorsement = (maxEKChain+1)*(maxCertificate+8) + 4*(maxStructure+8) + 64
	MaxChallenge   = 2*(maxStructure+8) + 64
	// SecretSize is the size of the secret that proves the activation.
	SecretSize = 32
)

var activationCodec = canonical.NewCBOR(16)

// Endorsement is what a node shows to an Attestation CA: deterministic CBOR, an array
// [EK certificate, [intermediate, …], AK public area, creation data, creation attestation,
// signature].
type Endorsement struct {
	_                 struct{} `cbor:",toarray"`
	EKCertificate     []byte   // DER
	Intermediates     [][]byte // DER, between the EK's certificate and its manufacturer's root
	AKPublic          []byte   // TPMT_PUBLIC
	CreateData        []byte   // TPMS_CREATION_DATA
	CreateAttestation []byte   // TPMS_ATTEST, TPM_ST_ATTEST_CREATION
	CreateSignature   []byte   // TPMT_SIGNATURE over it, by the AK
}

func (e *Endorsement) check() error {
	if len(e.Intermediates) > maxEKChain {
		return fmt.Errorf("endorsement: %d intermediate certificates, want at most %d", len(e.Intermediates), maxEKChain)
	}
	for _, der := range append([][]byte{e.EKCertificate}, e.Intermediates...) {
		if len(der) == 0 || len(der) > maxCertificate {
			return fmt.Errorf("endorsement: a certificate of %d bytes, want 1 to %d", len(der), maxCertificate)
		}
	}
	for _, part := range [][]byte{e.AKPublic, e.CreateData, e.CreateAttestation, e.CreateSignature} {
		if len(part) == 0 || len(part) > maxStructure {
			return fmt.Errorf("endorsement: a structure of %d bytes, want 1 to %d", len(part), maxStructure)
		}
	}
	return nil
}

// Encode returns the canonical bytes.
func (e *Endorsement) Encode() ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	return activationCodec.Encode(e)
}

// DecodeEndorsement decodes what a node sent.
func DecodeEndorsement(raw []byte) (*Endorsement, error) {
	if len(raw) > MaxEndorsement {
		return nil, fmt.Errorf("endorsement: %d bytes, the limit is %d", len(raw), MaxEndorsement)
	}
	e := new(Endorsement)
	if err := activationCodec.Decode(raw, e); err != nil {
		return nil, fmt.Errorf("endorsement: %w", err)
	}
	return e, e.check()
}

// Challenge is what only the TPM with both keys can answer: deterministic CBOR, an array
// of the contents of TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET.
type Challenge struct {
	_          struct{} `cbor:",toarray"`
	Credential []byte
	Secret     []byte
}

func (c *Challenge) check() error {
	for _, part := range [][]byte{c.Credential, c.Secret} {
		if len(part) == 0 || len(part) > maxStructure {
			return fmt.Errorf("challenge: a structure of %d bytes, want 1 to %d", len(part), maxStructure)
		}
	}
	return nil
}

// Encode returns the canonical bytes.
func (c *Challenge) Encode() ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	return activationCodec.Encode(c)
}

// DecodeChallenge decodes what a CA sent.
func DecodeChallenge(raw []byte) (*Challenge, error) {
	if len(raw) > MaxChallenge {
		return nil, fmt.Errorf("challenge: %d bytes, the limit is %d", len(raw), MaxChallenge)
	}
	c := new(Challenge)
	if err := activationCodec.Decode(raw, c); err != nil {
		return nil, fmt.Errorf("challenge: %w", err)
	}
	return c, c.check()
}

// Endorse returns what an Attestation CA wants to see of this machine's keys.
func (a *Attester) Endorse(ctx context.Context) (*Endorsement, error) {
	if a.opts.AK != nil {
		return nil, fmt.Errorf("device %s: the attestation key of %s was not made by this process and cannot be activated; it needs a certificate", a.device.Name(), a.opts.AK)
	}
	intermediates, err := a.chain(ctx)
	if err != nil {
		return nil, err
	}
	e, err := do(ctx, a, "endorse", again, func(ch *channel) (*Endorsement, error) {
		ek, err := endorsementKey(ch)
		if err != nil {
			return nil, err
		}
		defer ek.Close()
		public, err := a.key.PublicArea().Encode()
		if err != nil {
			return nil, err
		}
		made := a.key.creation
		return &Endorsement{EKCertificate: ek.certificate, Intermediates: intermediates, AKPublic: public,
			CreateData: made.data, CreateAttestation: made.attestation, CreateSignature: made.signature}, nil
	})
	if err != nil {
		return nil, err
	}
	return e, e.check()
}

// Activate has the TPM answer a challenge. It returns the secret.
func (a *Attester) Activate(ctx context.Context, c *Challenge) ([]byte, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	secret, err := do(ctx, a, "activate", again, func(ch *channel) ([]byte, error) {
		ek, err := endorsementKey(ch)
		if err != nil {
			return nil, err
		}
		defer ek.Close()
		session, err := endorsementSession(ch)
		if err != nil {
			return nil, err
		}
		defer session.Close()
		auth, err := session.Auth()
		if err != nil {
			return nil, fmt.Errorf("TPM2_PolicySecret: %w", err)
		}
		password := tpm2.AuthCommand{Session: tpm2.HandlePasswordSession, Attributes: tpm2.AttrContinueSession}
		secret, err := tpm2.ActivateCredentialUsingAuth(ch, []tpm2.AuthCommand{password, auth}, a.key.Handle(), ek.Handle(), c.Credential, c.Secret)
		if err != nil {
			return nil, fmt.Errorf("TPM2_ActivateCredential: the challenge is not for this endorsement and attestation key: %w", err)
		}
		return secret, nil
	})
	if err == nil && len(secret) != SecretSize {
		return nil, fmt.Errorf("challenge: a secret of %d bytes, want %d", len(secret), SecretSize)
	}
	return secret, err
}

// AttestationCA believes endorsement keys that are certified under its roots. The zero
// value believes none.
type AttestationCA struct {
	roots []*x509.Certificate
}

// NewAttestationCA returns a CA that believes the manufacturers, or operators of
// virtual TPMs, whose certificates, or keys as chains.Anchor, are given.
func NewAttestationCA(roots []*x509.Certificate) *AttestationCA {
	return &AttestationCA{roots: slices.Clone(roots)}
}

// Pending is an activation that waits for its answer.
type Pending struct {
	// AKDigest and EKDigest are SHA-256 of the keys' SubjectPublicKeyInfo, in hex. They
	// are what the node says until Confirm has returned true.
	AKDigest string
	EKDigest string
	secret   [SecretSize]byte
	live     bool
}

// Confirm reports whether answer proves the activation. It can do so once: a second answer
// is refused, whatever it is.
func (p *Pending) Confirm(answer []byte) bool {
	live := p.live
	p.live = false
	return live && subtle.ConstantTimeCompare(answer, p.secret[:]) == 1
}

// Challenge judges an endorsement at a time and makes the challenge for it. Errors are
// *attest.Error with the codes malformed, not_genuine (keys or proof of creation) and
// no_endorsement (nobody this CA believes certified the endorsement key).
func (ca *AttestationCA) Challenge(e *Endorsement, at time.Time) (c *Challenge, p *Pending, err error) {
	defer func() {
		if r := recover(); r != nil {
			c, p, err = nil, nil, refuse(mesh.CodeNotGenuine, "endorsement", "", "", fmt.Errorf("go-attestation failed: %v", r))
		}
	}()
	if err := e.check(); err != nil {
		return nil, nil, refuse(mesh.CodeMalformed, "endorsement", "", "", err)
	}
	ek, err := ca.believe(e, at)
	if err != nil {
		return nil, nil, refuse(mesh.CodeNoEndorsement, "endorsement key", "", "a certificate under the roots for TPMs", err)
	}
	ak, err := activatable(e)
	if err != nil {
		return nil, nil, refuse(mesh.CodeNotGenuine, "attestation key", "", "a restricted signing key made in a TPM", err)
	}
	params := activation.ActivationParameters{EK: ek.PublicKey, Rand: rand.Reader, AK: activation.AttestationParameters{
		Public: e.AKPublic, CreateData: e.CreateData, CreateAttestation: e.CreateAttestation, CreateSignature: e.CreateSignature}}
	secret, encrypted, err := params.Generate()
	if err != nil {
		return nil, nil, refuse(mesh.CodeNotGenuine, "attestation key", "", "a proof of its creation in a TPM", err)
	}
	p = &Pending{live: true, secret: [SecretSize]byte(secret)} // by the library, of that size
	if p.AKDigest, err = keyDigest(ak); err != nil {
		return nil, nil, refuse(mesh.CodeNotGenuine, "attestation key", "", "", err)
	}
	if p.EKDigest, err = keyDigest(ek.PublicKey); err != nil {
		return nil, nil, refuse(mesh.CodeNotGenuine, "endorsement key", "", "", err)
	}
	// The library returns both as TPM2B, with their u16 lengths.
	c = &Challenge{Credential: encrypted.Credential[2:], Secret: encrypted.Secret[2:]}
	return c, p, nil
}

// believe verifies the endorsement key's certificate at a time.
func (ca *AttestationCA) believe(e *Endorsement, at time.Time) (*x509.Certificate, error) {
	cert, err := parseEndorsement(e.EKCertificate)
	if err != nil {
		return nil, err
	}
	if len(ca.roots) == 0 || at.IsZero() {
		return nil, errors.New("no roots for TPMs, or no time to judge at")
	}
	chain, intermediates := []*x509.Certificate{cert}, x509.NewCertPool()
	for i, der := range e.Intermediates {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("intermediate certificate %d: %w", i, err)
		}
		intermediates.AddCert(c)
		chain = append(chain, c)
	}
	_, err = cert.Verify(x509.VerifyOptions{Roots: chains.Pool(ca.roots, chain...), Intermediates: intermediates, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return cert, err
}

// ekUsage is tcg-kp-EKCertificate (TCG EK Credential Profile, §3.2.16).
var ekUsage = asn1.ObjectIdentifier{2, 23, 133, 8, 1}

// subjectAltName holds the TPM's model as a directory name, which crypto/x509 does not
// read and, as it is critical, calls unhandled. Nothing is decided by it.
var subjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// parseEndorsement parses an endorsement key's certificate and demands that it is one: not
// a CA's, for encryption only, and for the purpose where it names any.
func parseEndorsement(der []byte) (*x509.Certificate, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	cert.UnhandledCriticalExtensions = slices.DeleteFunc(cert.UnhandledCriticalExtensions, subjectAltName.Equal)
	encrypts := x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement
	if cert.IsCA || cert.KeyUsage&encrypts == 0 || cert.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature) != 0 {
		return nil, fmt.Errorf("a certificate with key usage %#x, CA: %v, want one for key encipherment or agreement alone", int(cert.KeyUsage), cert.IsCA)
	}
	if len(cert.ExtKeyUsage) > 0 || len(cert.UnknownExtKeyUsage) > 0 {
		if !slices.ContainsFunc(cert.UnknownExtKeyUsage, ekUsage.Equal) {
			return nil, errors.New("a certificate for other purposes than tcg-kp-EKCertificate")
		}
	}
	return cert, nil
}

// activatable demands of the key what go-attestation does not: one encoding of each
// structure, and that it signs and does nothing else. It returns the public key.
func activatable(e *Endorsement) (any, error) {
	area, err := tpm2.DecodePublic(e.AKPublic)
	if err != nil {
		return nil, err
	}
	if back, err := area.Encode(); !same(back, err, e.AKPublic) {
		return nil, errors.New("the public area is not in its one encoding")
	}
	need := tpm2.FlagRestricted | tpm2.FlagSign | tpm2.FlagFixedTPM | tpm2.FlagFixedParent | tpm2.FlagSensitiveDataOrigin
	if area.Attributes&need != need || area.Attributes&tpm2.FlagDecrypt != 0 || area.NameAlg == tpm2.AlgSHA1 {
		return nil, fmt.Errorf("attributes %#x and name algorithm %v, want a restricted signing key made in and fixed to its TPM, named by SHA-256 or stronger", uint32(area.Attributes), area.NameAlg)
	}
	data, err := tpm2.DecodeCreationData(e.CreateData)
	if err != nil {
		return nil, fmt.Errorf("creation data: %w", err)
	}
	if back, err := data.EncodeCreationData(); !same(back, err, e.CreateData) {
		return nil, errors.New("the creation data is not in its one encoding")
	}
	att, err := tpm2.DecodeAttestationData(e.CreateAttestation)
	if err != nil {
		return nil, fmt.Errorf("creation attestation: %w", err)
	}
	if back, err := att.Encode(); !same(back, err, e.CreateAttestation) {
		return nil, errors.New("the creation attestation is not in its one encoding")
	}
	sig, err := tpm2.DecodeSignature(bytes.NewBuffer(e.CreateSignature))
	if err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	if back, err := sig.Encode(); !same(back, err, e.CreateSignature) {
		return nil, errors.New("the signature is not in its one encoding")
	}
	if !ofScheme(sig, area) {
		return nil, errors.New("the signature is not of the key's own scheme and hash")
	}
	return area.Key()
}

// same reports whether a structure was encoded again to what it was decoded from.
func same(back []byte, err error, raw []byte) bool { return err == nil && bytes.Equal(back, raw) }

// ofScheme reports whether a signature says that it is by the scheme of the key, which the
// library takes for granted.
func ofScheme(sig *tpm2.Signature, area tpm2.Public) bool {
	switch {
	case sig.ECC != nil && area.ECCParameters != nil && area.ECCParameters.Sign != nil:
		return tpm2.SigScheme{Alg: sig.Alg, Hash: sig.ECC.HashAlg} == *area.ECCParameters.Sign
	case sig.RSA != nil && area.RSAParameters != nil && area.RSAParameters.Sign != nil:
		return tpm2.SigScheme{Alg: sig.Alg, Hash: sig.RSA.HashAlg} == *area.RSAParameters.Sign
	}
	return false
}
