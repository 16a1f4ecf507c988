package sevsnp

import (
	"bytes"
	"crypto/x509"
	"fmt"

	"github.com/google/go-sev-guest/kds"
	"github.com/google/go-sev-guest/verify/trust"
)

// The product lines, as AMD's key distribution service names them.
const (
	Milan = "Milan" // Zen 3
	Genoa = "Genoa" // Zen 4, and Zen 4c parts (Bergamo, Siena), which share its roots
	Turin = "Turin" // Zen 5
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
		asvk, ark2, err := parsePair(r.vlek)
		if err != nil {
			return nil, fmt.Errorf("sevsnp: roots of %s: %w", r.product, err)
		}
		if !ark.Equal(ark2) {
			return nil, fmt.Errorf("sevsnp: roots of %s: two different ARKs", r.product)
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
	if intermediate, err = x509.ParseCertificate(a); err != nil {
		return nil, nil, err
	}
	root, err = x509.ParseCertificate(b)
	return intermediate, root, err
}

// check refuses a root of which a part that Verify relies on is missing.
func (r Root) check(product string) error {
	if r.ARK == nil || r.ASK == nil {
		return fmt.Errorf("sevsnp: root of %q without ARK or ASK", product)
	}
	return nil
}

// intermediate returns the certificate above an endorsement key of a kind.
func (r Root) intermediate(kind string) *x509.Certificate {
	if kind == "VLEK" {
		return r.ASVK
	}
	return r.ASK
}

// vendor returns a fresh copy in the library's shape: it keeps state in it.
func (r Root) vendor(product string) *trust.AMDRootCerts {
	out := trust.AMDRootCertsProduct(product)
	out.ProductCerts = &trust.ProductCerts{Ask: r.ASK, Asvk: r.ASVK, Ark: r.ARK}
	return out
}
