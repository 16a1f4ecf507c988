package sevsnp

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"strings"

	"github.com/attestmesh/meshnode/attest"
)

// endorsement is what AMD says in the extensions of a VCEK or VLEK certificate (AMD
// 57230, "Versioned Chip Endorsement Key Certificate and KDS Interface Specification").
type endorsement struct {
	cert    *x509.Certificate
	kind    string // VCEK or VLEK
	product string // by issuer: SEV-Milan, SEV-VLEK-Milan
	tcb     attest.TCB
	hwid    []byte // VCEK only; 64 bytes, Turin 8
	held    way    // the ways in which its chain is known to hold, at the time it was recalled for
}

// oidPrefix is AMD's arc of KDS extensions.
const oidPrefix = "1.3.6.1.4.1.3704.1."

// parseEndorsement reads a certificate; ok is false if it is not an endorsement key's.
func parseEndorsement(der []byte) (e endorsement, ok bool, err error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return endorsement{}, false, fmt.Errorf("certificate: %w", err)
	}
	kind, isEK := strings.CutPrefix(cert.Subject.CommonName, "SEV-")
	if !isEK || kind != "VCEK" && kind != "VLEK" {
		return endorsement{}, false, nil
	}
	e = endorsement{cert: cert, kind: kind}
	e.product = strings.TrimPrefix(cert.Issuer.CommonName, "SEV-")
	if kind == "VLEK" {
		e.product = strings.TrimPrefix(e.product, "VLEK-")
	}
	parts := map[string]*uint8{"3.1": &e.tcb.BootLoader, "3.2": &e.tcb.TEE, "3.3": &e.tcb.SNP, "3.8": &e.tcb.Microcode}
	if e.product == Turin {
		parts["3.9"] = &e.tcb.FMC
	}
	seen := 0
	for _, ext := range cert.Extensions {
		id, ours := strings.CutPrefix(ext.Id.String(), oidPrefix)
		if !ours {
			continue
		}
		if part := parts[id]; part != nil {
			var v int
			if rest, err := asn1.Unmarshal(ext.Value, &v); err != nil || len(rest) != 0 || v < 0 || v > 255 {
				return endorsement{}, false, fmt.Errorf("certificate: extension %s is no byte", ext.Id)
			}
			*part = uint8(v)
			seen++
		}
		if id == "4" {
			e.hwid = hwid(ext.Value)
		}
	}
	if seen != len(parts) {
		return endorsement{}, false, fmt.Errorf("certificate: %d TCB extensions, want %d", seen, len(parts))
	}
	return e, true, nil
}

// IsEndorsement reports whether der says it is a VCEK's or VLEK's certificate.
func IsEndorsement(der []byte) bool {
	cert, err := x509.ParseCertificate(der)
	return err == nil && (cert.Subject.CommonName == "SEV-VCEK" || cert.Subject.CommonName == "SEV-VLEK")
}

// hwid reads the hardware id, which AMD writes with and without an ASN.1 tag.
func hwid(raw []byte) []byte {
	var octets []byte
	if rest, err := asn1.Unmarshal(raw, &octets); err == nil && len(rest) == 0 && len(octets) > 0 {
		return octets
	}
	return raw
}

// disagrees returns the reason why e is not the certificate of the report's chip and TCB,
// or nil. A report whose host masks the chip id (all zero) shows no chip to compare;
// policy decides about that.
func (e endorsement) disagrees(r report) *attest.Reason {
	fail := func(claim, got, want string) *attest.Reason {
		reason := attest.NewReason(attest.CodeCertificateMismatch, claim, got, want)
		return &reason
	}
	if e.kind != r.signingKey {
		return fail("sevsnp.signing_key", r.signingKey+" in the report", e.kind+" in the certificate")
	}
	if r.product != "" && r.product != e.product {
		return fail("sevsnp.product", r.product+" in the report", e.product+" in the certificate")
	}
	if got := decodeTCB(r.reportedTCB, e.product); got != e.tcb {
		return fail("sevsnp.reported_tcb", got.String(), e.tcb.String())
	}
	if e.kind == "VLEK" || isZero(r.chipID) {
		return nil
	}
	size := 64
	if e.product == Turin {
		size = 8
	}
	if len(e.hwid) != size || !bytes.Equal(r.chipID[:size], e.hwid) || !isZero(r.chipID[size:]) {
		return fail("sevsnp.chip_id", fmt.Sprintf("%x", r.chipID), fmt.Sprintf("%x", e.hwid))
	}
	return nil
}

func isZero(b []byte) bool { return bytes.Count(b, []byte{0}) == len(b) }
