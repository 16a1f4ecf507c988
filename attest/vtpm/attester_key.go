package vtpm

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/google/go-tpm-tools/client"
	"github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpmutil"
)

// attestationTemplate is a restricted ECDSA P-256 signing key that cannot leave its TPM.
// The unique field is random, so that each attester has a key of its own and boots of one
// machine cannot be linked by it; the same template gives the same key again in the same
// TPM, should the channel to it have been lost.
func attestationTemplate() tpm2.Public {
	t := client.AKTemplateECC()
	// crypto/rand never fails.
	_, _ = rand.Read(t.ECCParameters.Point.XRaw)
	_, _ = rand.Read(t.ECCParameters.Point.YRaw)
	return t
}

// loaded is an attestation key in the TPM and, where the TPM made it just now, the proof
// of that.
type loaded struct {
	*client.Key
	creation *creation
}

// creation is what TPM2_CertifyCreation says about a key, signed by the key itself.
type creation struct {
	data        []byte // TPMS_CREATION_DATA
	attestation []byte // TPMS_ATTEST of type TPM_ST_ATTEST_CREATION
	signature   []byte // TPMT_SIGNATURE
}

// createKey makes the key of template as a primary of the endorsement hierarchy: for keys
// of the owner's the TPM would disguise reset and restart counters and firmware version in
// every quote (TPM 2.0 Library, Part 1, §36.7).
func createKey(ch *channel, template tpm2.Public) (*loaded, error) {
	handle, _, data, hash, ticket, _, err := tpm2.CreatePrimaryEx(ch, tpm2.HandleEndorsement, tpm2.PCRSelection{}, "", "", template)
	if err != nil {
		return nil, fmt.Errorf("TPM2_CreatePrimary of an attestation key: %w", err)
	}
	scheme := template.ECCParameters.Sign
	attestation, signature, err := tpm2.CertifyCreation(ch, "", handle, handle, nil, hash, *scheme, ticket)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("TPM2_CertifyCreation: %w", err), tpm2.FlushContext(ch, handle))
	}
	key, err := client.LoadCachedKey(ch, handle, client.NullSession{})
	if err != nil {
		return nil, errors.Join(err, tpm2.FlushContext(ch, handle))
	}
	return &loaded{key, &creation{data, attestation, signature}}, nil
}

// provisionedKey loads the key that came with the machine, with its certificate.
func provisionedKey(ch *channel, p ProvisionedAK) (*loaded, error) {
	var key *client.Key
	var err error
	if p.Handle != 0 {
		key, err = client.LoadCachedKey(ch, tpmutil.Handle(p.Handle), client.NullSession{})
	} else {
		key, err = client.EndorsementKeyFromNvIndex(ch, p.TemplateIndex)
	}
	if err != nil {
		return nil, fmt.Errorf("attestation key of %s: %w", p, err)
	}
	if p.CertificateIndex == 0 {
		return &loaded{Key: key}, nil
	}
	der, err := readIndex(ch, p.CertificateIndex)
	if err != nil {
		return nil, fmt.Errorf("certificate of the attestation key: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err == nil {
		err = key.SetCert(cert)
	}
	if err != nil {
		return nil, fmt.Errorf("certificate of the attestation key in NV index %#x: %w", p.CertificateIndex, err)
	}
	return &loaded{Key: key}, nil
}

// readIndex returns the DER certificate in an NV index. Some manufacturers define a larger
// index than they fill: what follows the outermost SEQUENCE is left out.
func readIndex(ch *channel, index uint32) ([]byte, error) {
	raw, err := readWhole(ch, index)
	if err != nil {
		return nil, err
	}
	der, err := sequence(raw)
	if err != nil {
		return nil, fmt.Errorf("NV index %#x: %w", index, err)
	}
	return der, nil
}

// sequence returns the DER SEQUENCE of 256 to 65,535 bytes with which raw begins.
func sequence(raw []byte) ([]byte, error) {
	if len(raw) < 4 || raw[0] != 0x30 || raw[1] != 0x82 {
		return nil, fmt.Errorf("%d bytes that are no certificate", len(raw))
	}
	size := 4 + int(raw[2])<<8 + int(raw[3])
	if size > len(raw) {
		return nil, fmt.Errorf("a certificate of %d bytes in %d", size, len(raw))
	}
	return raw[:size], nil
}

// readWhole returns all of an NV index, by its own authorisation or by the owner's.
func readWhole(ch *channel, index uint32) ([]byte, error) {
	raw, err := tpm2.NVReadEx(ch, tpmutil.Handle(index), tpmutil.Handle(index), "", 0)
	if err != nil && answered(err) {
		raw, err = tpm2.NVReadEx(ch, tpmutil.Handle(index), tpm2.HandleOwner, "", 0)
	}
	if err != nil {
		return nil, fmt.Errorf("NV index %#x: %w", index, err)
	}
	return raw, nil
}

// endorsement is an endorsement key with the certificate that its manufacturer gave it.
type endorsement struct {
	*client.Key
	certificate []byte
}

// endorsementKinds are the places of the TCG EK Credential Profile (§2.2.1.4, "low range")
// and of the Provisioning Guidance, table 2.
var endorsementKinds = []struct {
	index    uint32
	handle   tpmutil.Handle
	template func() tpm2.Public
}{
	{client.EKCertNVIndexRSA, client.EKReservedHandle, client.DefaultEKTemplateRSA},
	{client.EKCertNVIndexECC, client.EKECCReservedHandle, client.DefaultEKTemplateECC},
}

// endorsementKey loads the first endorsement key that has a certificate. Nothing is made
// persistent.
func endorsementKey(ch *channel) (*endorsement, error) {
	var missing error
	for _, kind := range endorsementKinds {
		der, err := readIndex(ch, kind.index)
		if err != nil {
			missing = errors.Join(missing, err)
			continue
		}
		cert, err := parseEndorsement(der)
		if err != nil {
			return nil, fmt.Errorf("NV index %#x: %w", kind.index, err)
		}
		key, err := endorsementHandle(ch, kind.handle, kind.template())
		if err != nil {
			return nil, fmt.Errorf("endorsement key: %w", err)
		}
		if !equalKeys(key.PublicKey(), cert.PublicKey) {
			key.Close()
			return nil, fmt.Errorf("the certificate in NV index %#x is not that of the endorsement key", kind.index)
		}
		return &endorsement{key, der}, nil
	}
	return nil, fmt.Errorf("no endorsement key certificate: %w", missing)
}

func endorsementHandle(ch *channel, handle tpmutil.Handle, template tpm2.Public) (*client.Key, error) {
	if public, _, _, err := tpm2.ReadPublic(ch, handle); err == nil && public.MatchesTemplate(template) {
		return client.LoadCachedKey(ch, handle, nil)
	}
	return client.NewKey(ch, tpm2.HandleEndorsement, template)
}

// keyDigest is how claims and Credentials name a key: SHA-256 of its
// SubjectPublicKeyInfo, in hex.
func keyDigest(public any) (string, error) {
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:]), nil
}

// endorsementSession is the policy session by which the default endorsement key is used.
func endorsementSession(ch *channel) (client.Session, error) {
	s, err := client.NewEKSession(ch)
	if err != nil {
		return nil, fmt.Errorf("TPM2_StartAuthSession: %w", err)
	}
	return s, nil
}
