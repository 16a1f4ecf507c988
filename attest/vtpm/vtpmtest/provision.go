package vtpmtest

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-tpm-tools/client"
	"github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpmutil"
)

// Where ProvisionAK puts the key and its certificate: the places of Azure's virtual TPMs.
const (
	ProvisionedAK      = 0x81000003
	ProvisionedAKIndex = 0x01C101D0
)

// ProvisionAK makes a persistent ECDSA attestation key, as a cloud does before it hands the
// machine over, and puts a certificate of the issuer's into an NV index.
func (m *TPM) ProvisionAK(t testing.TB) {
	t.Helper()
	m.with(t, func(rw io.ReadWriter) error {
		key, err := client.NewKey(rw, tpm2.HandleEndorsement, client.AKTemplateECC())
		if err != nil {
			return err
		}
		defer key.Close()
		if err := tpm2.EvictControl(rw, "", tpm2.HandleOwner, key.Handle(), ProvisionedAK); err != nil {
			return err
		}
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "attestation key of a test"},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature,
		}, m.Issuer, key.PublicKey(), m.key)
		if err != nil {
			return err
		}
		m.ak = key.PublicKey()
		return writeIndex(rw, ProvisionedAKIndex, der)
	})
}

// AK returns the key that ProvisionAK made.
func (m *TPM) AK() crypto.PublicKey { return m.ak }

// WriteIndex defines an NV index with content that anybody may read.
func (m *TPM) WriteIndex(t testing.TB, index uint32, content []byte) {
	t.Helper()
	m.with(t, func(rw io.ReadWriter) error { return writeIndex(rw, index, content) })
}

// maxNVWrite is what one command writes.
const maxNVWrite = 1024

func writeIndex(rw io.ReadWriter, index uint32, content []byte) error {
	const attributes = tpm2.AttrOwnerRead | tpm2.AttrOwnerWrite | tpm2.AttrAuthRead | tpm2.AttrAuthWrite
	handle := tpmutil.Handle(index)
	if err := tpm2.NVDefineSpace(rw, tpm2.HandleOwner, handle, "", "", nil, attributes, uint16(len(content))); err != nil {
		return err
	}
	for at := 0; at < len(content); at += maxNVWrite {
		piece := content[at:min(at+maxNVWrite, len(content))]
		if err := tpm2.NVWrite(rw, tpm2.HandleOwner, handle, "", piece, uint16(at)); err != nil {
			return err
		}
	}
	return nil
}
