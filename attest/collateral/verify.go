package collateral

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/attest/tdx"
)

// Verifier decides whether objects are the vendors'. Its zero value believes nobody.
type Verifier struct {
	amd   sevsnp.Roots
	intel *x509.Certificate
}

// NewVerifier returns a verifier that trusts AMD and Intel.
func NewVerifier() (Verifier, error) {
	amd, err := sevsnp.AMDRoots()
	if err != nil {
		return Verifier{}, err
	}
	intel, err := tdx.Root()
	if err != nil {
		return Verifier{}, err
	}
	return VerifierWith(amd, intel), nil
}

// VerifierWith returns a verifier that trusts exactly these roots; for tests.
func VerifierWith(amd sevsnp.Roots, intel *x509.Certificate) Verifier { return Verifier{amd, intel} }

// Verified is an entry whose object was verified. Only a Verifier makes it.
type Verified struct{ entry Entry }

// Entry returns what was verified.
func (v Verified) Entry() Entry { return v.entry }

// Verify verifies that an object is its vendor's: that it chains to the vendor's root as it
// did on the day it was issued. Whether it is current now is not asked. beside holds what
// else is needed: the signing chain of Intel's documents, the certificate of a PCK CA for its
// revocation list.
func (v Verifier) Verify(item attest.Item, beside []attest.Item) (Verified, error) {
	e, err := Read(item)
	if err != nil {
		return Verified{}, err
	}
	if v.intel == nil {
		return Verified{}, errors.New("collateral: no roots to verify under")
	}
	switch item.Type {
	case attest.TypeTDXTCBInfo, attest.TypeTDXQEIdent:
		err = v.document(e, beside)
	case attest.TypeTDXTCBChain:
		_, err = tdx.VerifySigningChain(e.data, v.intel)
	case attest.TypeCertificate:
		if strings.HasPrefix(e.Name, "sevsnp/") {
			err = v.amd.Endorses(e.data, e.Issued)
		} else {
			err = v.intermediate(e)
		}
	case attest.TypeCRL:
		err = v.revocationList(e, beside)
	}
	if err != nil {
		return Verified{}, fmt.Errorf("collateral: %s: %w", e.Name, err)
	}
	return Verified{e}, nil
}

func (v Verifier) document(e Entry, beside []attest.Item) error {
	err := errors.New("no TCB signing chain beside it")
	for _, item := range beside {
		if item.Type != attest.TypeTDXTCBChain {
			continue
		}
		if _, err = tdx.VerifyDocument(e.Type, e.data, item.Data, v.intel); err == nil {
			return nil
		}
	}
	return err
}

// intermediate verifies the certificate of a PCK CA.
func (v Verifier) intermediate(e Entry) error {
	cert, err := x509.ParseCertificate(e.data)
	if err != nil {
		return err
	}
	if err := cert.CheckSignatureFrom(v.intel); err != nil {
		return fmt.Errorf("not issued by Intel's root: %w", err)
	}
	return nil
}

func (v Verifier) revocationList(e Entry, beside []attest.Item) error {
	crl, err := x509.ParseRevocationList(e.data)
	if err != nil {
		return err
	}
	if product, amd := strings.CutPrefix(e.Name, NameSEVSNPCRL("")); amd {
		if ark := v.amd[product].ARK; ark != nil {
			return crl.CheckSignatureFrom(ark)
		}
		return fmt.Errorf("no root of product line %q", product)
	}
	if e.Name == NameRootCRL {
		return crl.CheckSignatureFrom(v.intel)
	}
	err = errors.New("the certificate of its issuer is not beside it")
	for _, item := range beside {
		ca, caErr := Read(item)
		if caErr != nil || ca.Name != strings.Replace(e.Name, "/crl/", "/pck-ca/", 1) {
			continue
		}
		if err = v.intermediate(ca); err != nil {
			continue
		}
		cert, parseErr := x509.ParseCertificate(ca.data)
		if parseErr != nil {
			return parseErr
		}
		if err = crl.CheckSignatureFrom(cert); err == nil {
			return nil
		}
	}
	return err
}
