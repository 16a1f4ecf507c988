package sevsnp

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/chains"
)

// IsCRL reports whether der says it is a revocation list of AMD's for SEV-SNP keys.
func IsCRL(der []byte) bool {
	list, err := x509.ParseRevocationList(der)
	return err == nil && strings.HasPrefix(list.Issuer.CommonName, "ARK-")
}

// checkedCRL is a revocation list whose signature was verified.
type checkedCRL struct {
	list   *x509.RevocationList
	issuer [32]byte // digest of the certificate that signed it
}

// revocation judges the chain of e by the lists that came with the evidence, and fills in
// what they say. A list is about what its issuer certified: the ARK's about ASK and ASVK,
// which is what AMD publishes; one of an intermediate's would be about endorsement keys.
// Lists of other issuers are those of other products or vendors and say nothing here.
//
// A certificate on a list is revoked, whichever time the list is of: an old verdict that is
// judged again must hear of it. That a certificate is on none counts only while the list
// is current; of several lists, one current one suffices.
func (s *Scheme) revocation(c *attest.SEVSNPClaims, e endorsement, root Root, lists [][]byte, at time.Time) error {
	parent := root.intermediate(e.kind)
	for _, der := range lists {
		list, subject, err := s.crl(der, e.cert, parent, root.ARK, at)
		if err != nil {
			return err
		}
		if list == nil {
			continue
		}
		for _, entry := range list.RevokedCertificateEntries {
			if entry.SerialNumber.Cmp(subject.SerialNumber) == 0 {
				return refuse(attest.CodeCertificateRevoked, "certificate",
					fmt.Sprintf("%s, serial %x, revoked %s", subject.Subject.CommonName, entry.SerialNumber, entry.RevocationTime.UTC().Format(time.RFC3339)),
					"one that AMD did not revoke", nil)
			}
		}
		if subject != parent {
			continue
		}
		if current := (chains.Span{From: list.ThisUpdate, To: list.NextUpdate}); !current.Holds(at) {
			if c.CRL == "" {
				c.CRL = attest.CRLStale
			}
		} else if c.CRL != attest.CRLGood || list.NextUpdate.After(*c.CRLNextUpdate) {
			next := list.NextUpdate
			c.CRL, c.CRLNextUpdate = attest.CRLGood, &next
		}
	}
	return nil
}

// crl reads a list and returns it with the certificate of the chain that it is about, or
// nil where it is about none.
func (s *Scheme) crl(der []byte, leaf, parent, ark *x509.Certificate, at time.Time) (*x509.RevocationList, *x509.Certificate, error) {
	digest := chains.Key(sha256.Sum256(der))
	subjects := map[[32]byte]*x509.Certificate{sha256.Sum256(ark.Raw): parent, sha256.Sum256(parent.Raw): leaf}
	if known, ok := s.lists.Recall(digest, at); ok {
		if subject := subjects[known.issuer]; subject != nil {
			return known.list, subject, nil
		}
		return nil, nil, nil
	}
	if len(der) > maxCRL {
		return nil, nil, refuse(attest.CodeMalformed, "crl", fmt.Sprintf("%d bytes", len(der)), fmt.Sprintf("at most %d", maxCRL), nil)
	}
	list, err := x509.ParseRevocationList(der)
	if err == nil && len(list.Raw) != len(der) { // which crypto/x509 passes over
		err = fmt.Errorf("%d bytes after it", len(der)-len(list.Raw))
	}
	if err != nil {
		return nil, nil, refuse(attest.CodeMalformed, "crl", "", "a certificate revocation list in DER", err)
	}
	for _, issuer := range []*x509.Certificate{ark, parent} {
		if !bytes.Equal(list.RawIssuer, issuer.RawSubject) {
			continue
		}
		for _, ext := range list.Extensions {
			if ext.Critical { // a list of changes, or of a part of the certificates
				return nil, nil, refuse(attest.CodeUnsupported, "crl", "critical extension "+ext.Id.String(), "a full list", nil)
			}
		}
		if err := list.CheckSignatureFrom(issuer); err != nil {
			return nil, nil, refuse(attest.CodeNotGenuine, "crl", "not signed by "+issuer.Subject.CommonName, "its issuer's signature", err)
		}
		id := sha256.Sum256(issuer.Raw)
		s.lists.Keep(digest, chains.Span{From: list.ThisUpdate, To: list.NextUpdate}, checkedCRL{list, id})
		return list, subjects[id], nil
	}
	return nil, nil, nil
}
