package sevsnp

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/attestmesh/meshnode/attest"
)

// endorsement is what AMD says in a VCEK or VLEK certificate (AMD 57230, "Versioned Chip
// Endorsement Key Certificate and KDS Interface Specification").
type endorsement struct {
	cert    *x509.Certificate
	key     *ecdsa.PublicKey
	kind    string  // VCEK or VLEK
	product string  // by issuer: SEV-Milan, SEV-VLEK-Milan
	tcb     [8]byte // as a report has it
	hwid    []byte  // VCEK only: 64 bytes, on Turin 8
	cspID   string  // VLEK only: the provider
}

// oidPrefix is AMD's arc of KDS extensions: 1 structure version, 2 product name, 3.n the
// security patch levels, 4 HWID, 5 CSP_ID. Structure version and product name are not
// relied on: AMD has issued certificates with a wrong one.
const oidPrefix = "1.3.6.1.4.1.3704.1."

// names returns kind and product line by the names of subject and issuer; kind is "" if
// cert is no endorsement key's.
func names(cert *x509.Certificate) (kind, product string) {
	switch cert.Subject.CommonName {
	case "SEV-VCEK":
		return "VCEK", strings.TrimPrefix(cert.Issuer.CommonName, "SEV-")
	case "SEV-VLEK":
		return "VLEK", strings.TrimPrefix(cert.Issuer.CommonName, "SEV-VLEK-")
	}
	return "", ""
}

// IsEndorsement reports whether der says it is a VCEK's or VLEK's certificate.
func IsEndorsement(der []byte) bool {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return false
	}
	kind, _ := names(cert)
	return kind != ""
}

// parseEndorsement reads a certificate; ok is false if it is not an endorsement key's.
func parseEndorsement(der []byte) (e endorsement, ok bool, err error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return endorsement{}, false, fmt.Errorf("certificate: %w", err)
	}
	e.cert = cert
	if e.kind, e.product = names(cert); e.kind == "" {
		return endorsement{}, false, nil
	}
	key, isECDSA := cert.PublicKey.(*ecdsa.PublicKey)
	if !isECDSA || key.Curve != elliptic.P384() {
		return endorsement{}, false, fmt.Errorf("certificate: its key is %v, want ECDSA P-384", cert.PublicKeyAlgorithm)
	}
	e.key = key
	if err := e.extensions(); err != nil {
		return endorsement{}, false, fmt.Errorf("certificate: %w", err)
	}
	return e, true, nil
}

// extensions reads those of AMD's arc.
func (e *endorsement) extensions() error {
	layout, levels := layoutOf(e.product), map[int]uint8{}
	seen := map[string]bool{} // crypto/x509 refuses a certificate in which one is twice
	for _, ext := range e.cert.Extensions {
		id, ours := strings.CutPrefix(ext.Id.String(), oidPrefix)
		if !ours {
			continue
		}
		seen[id] = true
		if level, ok := strings.CutPrefix(id, "3."); ok {
			n, err := strconv.Atoi(level)
			if err != nil {
				return fmt.Errorf("extension %s is no patch level", ext.Id)
			}
			if levels[n], err = number(ext.Value); err != nil {
				return fmt.Errorf("extension %s: %w", ext.Id, err)
			}
			continue
		}
		switch id {
		case "4":
			e.hwid = hwid(ext.Value)
		case "5":
			if rest, err := asn1.UnmarshalWithParams(ext.Value, &e.cspID, "ia5"); err != nil || len(rest) != 0 || e.cspID == "" {
				return fmt.Errorf("extension %s is no name of a provider", ext.Id)
			}
		}
	}
	for i, n := range layout {
		e.tcb[i] = levels[n]
		delete(levels, n)
	}
	for n, v := range levels {
		if v != 0 {
			return fmt.Errorf("patch level %d, which %s has not", n, e.product)
		}
	}
	for _, n := range []int{1, 2, 3, 8} {
		if !seen[fmt.Sprintf("3.%d", n)] {
			return fmt.Errorf("no extension %s3.%d", oidPrefix, n)
		}
	}
	if e.product == Turin && !seen["3.9"] {
		return fmt.Errorf("no extension %s3.9", oidPrefix)
	}
	if isVCEK := e.kind == "VCEK"; isVCEK == (e.hwid == nil) || isVCEK == (e.cspID != "") {
		return errors.New("a VCEK has a hardware id, a VLEK the name of a provider; this has not, or both")
	}
	return nil
}

// number reads an INTEGER from 0 to 255.
func number(der []byte) (uint8, error) {
	var v int
	if rest, err := asn1.Unmarshal(der, &v); err != nil || len(rest) != 0 || v < 0 || v > 255 {
		return 0, errors.New("is no byte")
	}
	return uint8(v), nil
}

// hwid reads the hardware id, 64 bytes or Turin's 8, which AMD writes without an ASN.1 tag
// although its specification has one.
func hwid(raw []byte) []byte {
	if len(raw) == 64 || len(raw) == 8 {
		return raw
	}
	var octets []byte
	if rest, err := asn1.Unmarshal(raw, &octets); err == nil && len(rest) == 0 && (len(octets) == 64 || len(octets) == 8) {
		return octets
	}
	return []byte{} // there, but of no chip
}

// disagrees returns the reason why e is not the certificate of the report's chip and TCB,
// or nil. A report whose host masks the chip id (all zero) shows no chip to compare, and a
// VLEK is of no chip; policy decides about both.
func (e endorsement) disagrees(r report) *attest.Reason {
	fail := func(claim, got, want string) *attest.Reason {
		reason := attest.NewReason(attest.CodeCertificateMismatch, claim, got, want)
		return &reason
	}
	if e.kind != r.signingKey {
		return fail("sevsnp.signing_key", r.signingKey+" in the report", e.kind+" in the certificate")
	}
	if r.product != "" && r.product != e.product {
		return fail("sevsnp.product", r.product+" in the report", fmt.Sprintf("%q in the certificate", e.product))
	}
	if !bytes.Equal(r.reportedTCB, e.tcb[:]) { // the reserved bytes too
		return fail("sevsnp.reported_tcb", tcbText(r.reportedTCB, e.product), tcbText(e.tcb[:], e.product))
	}
	if e.kind == "VLEK" || isZero(r.chipID) || e.isChip(r.chipID) {
		return nil
	}
	return fail("sevsnp.chip_id", fmt.Sprintf("%x", r.chipID), fmt.Sprintf("%x", e.hwid))
}

// isChip compares the hardware id with a CHIP_ID. Turin's 8 bytes stand at its beginning,
// zeros follow; on other products only 64 bytes are an id.
func (e endorsement) isChip(chipID []byte) bool {
	n := len(e.hwid)
	return (n == 64 || n == 8 && e.product == Turin) && bytes.Equal(chipID[:n], e.hwid) && isZero(chipID[n:])
}

// tcbText is a TCB_VERSION by component and as bytes.
func tcbText(b []byte, product string) string {
	return fmt.Sprintf("%s (%x)", decodeTCB(b, product), b)
}
