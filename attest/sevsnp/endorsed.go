package sevsnp

import (
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// Endorsed is what the certificate of an endorsement key says: of which chip, at which TCB.
// It is not authentic by itself; see Roots.Endorses.
type Endorsed struct {
	Kind                string // VCEK or VLEK
	Product             string // the product line of its issuer
	TCB                 attest.TCB
	HWID                []byte // VCEK only: 64 bytes, of Turin 8
	Provider            string // VLEK only: to whom AMD gave it
	NotBefore, NotAfter time.Time
}

// ReadEndorsement reads the certificate of a VCEK or VLEK.
func ReadEndorsement(der []byte) (Endorsed, error) {
	e, ok, err := parseEndorsement(der)
	if err != nil {
		return Endorsed{}, err
	}
	if !ok {
		return Endorsed{}, errors.New("certificate: neither a VCEK's nor a VLEK's")
	}
	return Endorsed{Kind: e.kind, Product: e.product, TCB: decodeTCB(e.tcb[:], e.product), HWID: e.hwid, Provider: e.cspID,
		NotBefore: e.cert.NotBefore, NotAfter: e.cert.NotAfter}, nil
}

// Endorses returns an error unless der is the certificate of an endorsement key that chains
// to one of the roots at a time.
func (roots Roots) Endorses(der []byte, at time.Time) error {
	e, _, err := parseEndorsement(der)
	if err != nil {
		return err
	}
	root := roots[e.product] // none for what is of no product
	if root.ARK == nil || root.intermediate(e.kind) == nil {
		return fmt.Errorf("no root for %s %s, issued by %q", e.product, e.kind, e.issuer())
	}
	if err := certifiedBy(root.intermediate(e.kind), root.ARK); err != nil {
		return err
	}
	return root.endorses(e, at)
}

func (e endorsement) issuer() string {
	if e.cert == nil {
		return ""
	}
	return e.cert.Issuer.CommonName
}

// Key is what a report says about the key that signed it: by what to ask AMD for its
// certificate. It is not authentic.
type Key struct {
	Kind    string // VCEK or VLEK
	Product string // "" in reports of version 2, which do not say it
	chip    []byte // 64 bytes
	tcb     []byte // REPORTED_TCB
}

// NameKey reads a report of exactly ReportSize bytes.
func NameKey(raw []byte) (Key, error) {
	r, err := parseReport(raw)
	if err != nil {
		return Key{}, err
	}
	return Key{Kind: r.signingKey, Product: r.product, chip: r.chipID, tcb: r.reportedTCB}, nil
}

// Products returns the product lines that the key can be of.
func (k Key) Products() []string {
	switch k.Product {
	case "":
		return []string{Milan, Genoa} // no firmware of Turin makes reports of version 2
	case Milan, Genoa, Turin:
		return []string{k.Product}
	}
	return nil
}

// Masked reports whether the host hides the chip id, without which no VCEK is found.
func (k Key) Masked() bool { return isZero(k.chip) }

// HWID returns the hardware id in hex under which AMD knows the chip: the whole chip id, on
// Turin its first 8 bytes (AMD 57230, "VCEK Certificate").
func (k Key) HWID(product string) string {
	if product == Turin {
		return hex.EncodeToString(k.chip[:8])
	}
	return hex.EncodeToString(k.chip)
}

// TCB returns the reported TCB in the layout of a product line.
func (k Key) TCB(product string) attest.TCB { return decodeTCB(k.tcb, product) }

// SignedBy reports whether der is the certificate of the very key that signed a report: it
// names the report's chip and TCB and its key verifies the signature. Whether AMD issued it
// is not asked.
func SignedBy(report, der []byte) bool {
	r, err := parseReport(report)
	if err != nil {
		return false
	}
	e, _, _ := parseEndorsement(der) // what is none is of no kind, and no report agrees
	return e.disagrees(r) == nil && r.signedBy(e.key) == nil
}
