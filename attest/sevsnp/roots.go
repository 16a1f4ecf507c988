package sevsnp

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/google/go-sev-guest/kds"
	"github.com/google/go-sev-guest/verify/trust"
)

// Roots are the certificates that AMD's keys chain to, by product line.
type Roots map[string]Root

// Root is one product line's self-signed root and its two intermediates.
type Root struct {
	ARK  *x509.Certificate
	ASK  *x509.Certificate // signs VCEKs
	ASVK *x509.Certificate // signs VLEKs; go-sev-guest embeds but does not load it
}

// AMDRoots returns the roots compiled into this program.
func AMDRoots() (Roots, error) {
	roots := Roots{}
	for _, r := range []struct {
		product    string
		vcek, vlek []byte
	}{
		{Milan, trust.AskArkMilanVcekBytes, trust.AskArkMilanVlekBytes},
		{Genoa, trust.AskArkGenoaVcekBytes, trust.AskArkGenoaVlekBytes},
		{Turin, trust.AskArkTurinVcekBytes, trust.AskArkTurinVlekBytes},
	} {
		ask, ark, err := parsePair(r.vcek)
		if err != nil {
			return nil, fmt.Errorf("sevsnp: roots of %s: %w", r.product, err)
		}
		asvk, _, err := parsePair(r.vlek)
		if err != nil {
			return nil, fmt.Errorf("sevsnp: roots of %s: %w", r.product, err)
		}
		roots[r.product] = Root{ARK: ark, ASK: ask, ASVK: asvk}
	}
	return roots, nil
}

func parsePair(pem []byte) (intermediate, root *x509.Certificate, err error) {
	// One of the embedded files ends in blank lines, which the parser calls trailing data.
	a, b, err := kds.ParseProductCertChain(append(bytes.TrimSpace(pem), '\n'))
	if err != nil {
		return nil, nil, err
	}
	intermediate, err1 := x509.ParseCertificate(a)
	root, err2 := x509.ParseCertificate(b)
	return intermediate, root, errors.Join(err1, err2)
}

// check refuses a root of which a part that Verify relies on is missing, and intermediates
// that the ARK did not sign: their signatures are verified here, once, and their dates with
// every report.
func (r Root) check(product string) error {
	if r.ARK == nil || r.ASK == nil {
		return fmt.Errorf("sevsnp: root of %q without ARK or ASK", product)
	}
	signed := []*x509.Certificate{r.ARK, r.ASK}
	if r.ASVK != nil {
		signed = append(signed, r.ASVK)
	}
	for _, cert := range signed {
		if err := certifiedBy(cert, r.ARK); err != nil {
			return fmt.Errorf("sevsnp: root of %q: %s: %w", product, cert.Subject.CommonName, err)
		}
	}
	return nil
}

// certifiedBy verifies the signature of a certificate of AMD's by the one above it.
func certifiedBy(cert, parent *x509.Certificate) error {
	switch {
	case cert.SignatureAlgorithm != x509.SHA384WithRSAPSS:
		return fmt.Errorf("signed with %v, want SHA-384 with RSA-PSS", cert.SignatureAlgorithm)
	case !bytes.Equal(cert.RawIssuer, parent.RawSubject):
		return fmt.Errorf("issued by %q, want %q", cert.Issuer.CommonName, parent.Subject.CommonName)
	case len(cert.UnhandledCriticalExtensions) > 0:
		return errors.New("a critical extension that nobody knows")
	}
	return cert.CheckSignatureFrom(parent) // also: parent is a CA that may sign certificates
}

// intermediate returns the certificate above an endorsement key of a kind.
func (r Root) intermediate(kind string) *x509.Certificate {
	if kind == "VLEK" {
		return r.ASVK
	}
	return r.ASK
}
