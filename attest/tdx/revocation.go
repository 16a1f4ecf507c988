package tdx

import (
	"crypto/x509"
	"fmt"
	"math/big"
)

// revocation requires a list of the PCK's issuer and one of the root, in that order, and
// none of our certificates on them.
func (s *Scheme) revocation(chain pckChain, signers []*x509.Certificate, raw [][]byte) (lists [2]*x509.RevocationList, err error) {
	issuers := [2]*x509.Certificate{chain.intermediate, s.root}
	for _, der := range raw {
		crl, err := x509.ParseRevocationList(der)
		if err != nil {
			return lists, fmt.Errorf("collateral: revocation list: %w", err)
		}
		if len(crl.Raw) != len(der) { // which crypto/x509 passes over
			return lists, fmt.Errorf("collateral: revocation list of %s: %d bytes after it", crl.Issuer.CommonName, len(der)-len(crl.Raw))
		}
		for i, issuer := range issuers {
			if string(crl.RawIssuer) != string(issuer.RawSubject) {
				continue
			}
			if err := crl.CheckSignatureFrom(issuer); err != nil {
				return lists, fmt.Errorf("collateral: revocation list of %s: %w", issuer.Subject.CommonName, err)
			}
			if crl.Number == nil {
				crl.Number = new(big.Int)
			}
			// Of two genuine lists the newer one counts.
			if lists[i] == nil || crl.ThisUpdate.After(lists[i].ThisUpdate) {
				lists[i] = crl
			}
		}
	}
	var lacks []string
	for i, name := range [2]string{"pck_crl", "root_ca_crl"} {
		if lists[i] == nil {
			lacks = append(lacks, name)
		}
	}
	if len(lacks) > 0 {
		return lists, &incompleteError{lacks}
	}
	for i, issuer := range issuers {
		for _, entry := range lists[i].RevokedCertificateEntries {
			for _, cert := range append([]*x509.Certificate{chain.leaf, chain.intermediate}, signers...) {
				if string(cert.RawIssuer) == string(issuer.RawSubject) && cert.SerialNumber.Cmp(entry.SerialNumber) == 0 {
					return lists, &mismatch{"certificate", fmt.Sprintf("%s with serial %x was revoked at %s", cert.Subject.CommonName,
						cert.SerialNumber, entry.RevocationTime.UTC().Format("2006-01-02T15:04:05Z")), "a certificate that is not revoked"}
				}
			}
		}
	}
	return lists, nil
}
