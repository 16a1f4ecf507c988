// Package collateral keeps what vendors publish about their platforms: AMD's endorsement
// certificates and revocation lists, Intel's TCB info, QE identity, signing chain and
// revocation lists. It is filled out of band (package fetch, or files by hand) and read
// where evidence is made or judged; nothing here uses a network.
//
// # What is kept
//
// One object is one attest.Item, byte for byte as the vendor made it. Its Entry says what
// it speaks of, read from the object itself:
//
//	sevsnp/vcek/PRODUCT/HWID/TCB          certificate of a chip's key at a TCB
//	sevsnp/vlek/PRODUCT/PROVIDER/TCB      certificate of a provider's key at a TCB
//	sevsnp/crl/PRODUCT                    revocation list of ARK-PRODUCT
//	tdx/tcb-info/FMSPC                    TCB info, version 3, of TDX
//	tdx/qe-identity                       identity of the TD quoting enclave, version 2
//	tdx/tcb-signing-chain                 certificates (PEM) that sign the two
//	tdx/pck-ca/platform|processor         intermediate over PCK certificates
//	tdx/crl/root|platform|processor       revocation lists
//
// with TCB as FMC.BL.TEE.SNP.UCODE in decimal (FMC on Turin only). Entries of one name
// succeed each other in time; all are kept, so that an old verdict can be judged again with
// the collateral of its day.
//
// # Which one counts
//
// Index.Current(name, at) is the entry, of those issued at or before at, of the highest
// tcbEvaluationDataNumber, and of these the one that was issued last. It may have expired:
// then there is none that counts, for an older number that is still in date is a rollback
// (the vendor keeps re-issuing old numbers for a year) and an older list may lack a
// revocation.
//
// # Store
//
// A Store is a directory with one file for each object: objects/SHA256.SUFFIX, written
// durably and never changed. There is no index file: the index is a pure function of the
// objects. A file whose name is not the digest of its content, or that is nothing of the
// above, is damaged: it is reported and not used. Only what a Verifier verified can be put.
// That is housekeeping, not trust: whoever holds the disk can put what they like, and each
// Verify of a Scheme verifies every object again.
//
// Intel publishes two sets, standard and early (PCS v4, parameter update). A Store holds one
// of them; the early one lives in a store of its own, so that it does not count before its
// time.
package collateral

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/attest/tdx"
)

// Entry says what one object is and when it is current.
type Entry struct {
	Name    string    `json:"name"`
	Type    string    `json:"type"`
	Digest  string    `json:"digest"` // SHA-256
	Issued  time.Time `json:"issued"`
	Expires time.Time `json:"expires"`
	// Evaluation is the tcbEvaluationDataNumber of Intel's documents.
	Evaluation int `json:"tcb_evaluation_data_number,omitempty"`

	data []byte
}

// Item returns the object.
func (e Entry) Item() attest.Item { return attest.Item{Type: e.Type, Data: e.data} }

// Holds reports whether the object is current at a time.
func (e Entry) Holds(at time.Time) bool { return !at.Before(e.Issued) && !at.After(e.Expires) }

// Fixed names.
const (
	NameQEIdentity   = "tdx/qe-identity"
	NameSigningChain = "tdx/tcb-signing-chain"
	NameRootCRL      = "tdx/crl/root"
)

// NameTCBInfo is the name of the TCB info of a platform.
func NameTCBInfo(fmspc string) string { return "tdx/tcb-info/" + strings.ToLower(fmspc) }

// NamePCKCRL is the name of the revocation list of a PCK CA, platform or processor.
func NamePCKCRL(ca string) string { return "tdx/crl/" + ca }

// NameSEVSNPCRL is the name of the revocation list of a product line.
func NameSEVSNPCRL(product string) string { return "sevsnp/crl/" + product }

// NameVCEK is the name of the certificate of a chip's key.
func NameVCEK(product, hwid string, tcb attest.TCB) string {
	return fmt.Sprintf("sevsnp/vcek/%s/%s/%s", product, hwid, tcbText(product, tcb))
}

func tcbText(product string, t attest.TCB) string {
	s := fmt.Sprintf("%d.%d.%d.%d", t.BootLoader, t.TEE, t.SNP, t.Microcode)
	if product == sevsnp.Turin {
		s = fmt.Sprintf("%d.%s", t.FMC, s)
	}
	return s
}

// pckCAs are the intermediates over PCK certificates by common name.
var pckCAs = map[string]string{"Intel SGX PCK Platform CA": "platform", "Intel SGX PCK Processor CA": "processor"}

const intelRootName = "Intel SGX Root CA"

// Read says what an item is. It verifies no signature. An error means that it is no
// collateral we know.
func Read(item attest.Item) (Entry, error) {
	limit := attest.MaxQuote
	if item.Type == attest.TypeCRL {
		limit = attest.MaxLog
	}
	if len(item.Data) > limit {
		return Entry{}, fmt.Errorf("collateral: %s of %d bytes, want at most %d", item.Type, len(item.Data), limit)
	}
	digest := sha256.Sum256(item.Data)
	e := Entry{Type: item.Type, Digest: hex.EncodeToString(digest[:]), data: item.Data}
	var err error
	switch item.Type {
	case attest.TypeTDXTCBInfo, attest.TypeTDXQEIdent:
		err = e.document()
	case attest.TypeTDXTCBChain:
		err = e.signingChain()
	case attest.TypeCertificate:
		err = e.certificate()
	case attest.TypeCRL:
		err = e.revocationList()
	default:
		err = fmt.Errorf("%s is evidence, not collateral", item.Type)
	}
	if err != nil {
		return Entry{}, fmt.Errorf("collateral: %w", err)
	}
	return e, nil
}

func (e *Entry) document() error {
	d, err := tdx.ReadDocument(e.Type, e.data)
	if err != nil {
		return err
	}
	e.Name = NameQEIdentity
	if e.Type == attest.TypeTDXTCBInfo {
		if _, err := hex.DecodeString(d.FMSPC); err != nil {
			return fmt.Errorf("FMSPC %q is no hex", d.FMSPC)
		}
		e.Name = NameTCBInfo(d.FMSPC)
	}
	e.Issued, e.Expires, e.Evaluation = d.IssueDate, d.NextUpdate, d.Evaluation
	return nil
}

func (e *Entry) signingChain() error {
	certs, err := parseChain(e.data)
	if err != nil {
		return err
	}
	e.Name, e.Issued, e.Expires = NameSigningChain, certs[0].NotBefore, certs[0].NotAfter
	return nil
}

// parseChain reads a chain of two certificates in PEM.
func parseChain(raw []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, raw = pem.Decode(raw); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if certs = append(certs, cert); len(certs) > 2 {
			break
		}
	}
	if len(certs) != 2 {
		return nil, errors.New("a signing chain has two certificates, the signer's and the root")
	}
	return certs, nil
}

func (e *Entry) certificate() error {
	cert, err := x509.ParseCertificate(e.data)
	if err != nil {
		return err
	}
	e.Issued, e.Expires = cert.NotBefore, cert.NotAfter
	if ca := pckCAs[cert.Subject.CommonName]; ca != "" && cert.IsCA {
		e.Name = "tdx/pck-ca/" + ca
		return nil
	}
	k, err := sevsnp.ReadEndorsement(e.data)
	if err != nil {
		return err
	}
	if k.Kind == "VLEK" {
		e.Name = fmt.Sprintf("sevsnp/vlek/%s/%s/%s", k.Product, plain(k.Provider), tcbText(k.Product, k.TCB))
		return nil
	}
	e.Name = NameVCEK(k.Product, hex.EncodeToString(k.HWID), k.TCB)
	return nil
}

// plain makes a part of a name of what a certificate says.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r >= 0x7f || r == '/' {
			return '_'
		}
		return r
	}, s)
}

func (e *Entry) revocationList() error {
	crl, err := x509.ParseRevocationList(e.data)
	if err != nil {
		return err
	}
	e.Issued, e.Expires = crl.ThisUpdate, crl.NextUpdate
	name := crl.Issuer.CommonName
	product, amd := strings.CutPrefix(name, "ARK-")
	switch {
	case amd && product == plain(product) && product != "":
		e.Name = NameSEVSNPCRL(product)
	case name == intelRootName:
		e.Name = NameRootCRL
	case pckCAs[name] != "":
		e.Name = NamePCKCRL(pckCAs[name])
	default:
		return fmt.Errorf("a revocation list of %q, neither AMD's nor Intel's", name)
	}
	if !crl.NextUpdate.After(crl.ThisUpdate) {
		return errors.New("a revocation list without a next update")
	}
	return nil
}
