package tdx

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// Document is what one of Intel's signed JSON answers says of itself: a TCB info
// (attest.TypeTDXTCBInfo) or a QE identity (attest.TypeTDXQEIdent).
type Document struct {
	ID         string    `json:"id"`    // TDX or TD_QE
	FMSPC      string    `json:"fmspc"` // of a TCB info
	Version    int       `json:"version"`
	IssueDate  time.Time `json:"issueDate"`
	NextUpdate time.Time `json:"nextUpdate"`
	Evaluation int       `json:"tcbEvaluationDataNumber"`
}

// members are the names under which the documents stand in an answer, and what they must
// say they are.
var members = map[string]struct {
	name, id string
	version  int
}{
	attest.TypeTDXTCBInfo: {"tcbInfo", "TDX", 3},
	attest.TypeTDXQEIdent: {"enclaveIdentity", "TD_QE", 2},
}

// ReadDocument reads a document without verifying its signature.
func ReadDocument(itemType string, raw []byte) (Document, error) {
	var outer map[string]json.RawMessage
	member := members[itemType]
	if len(raw) > attest.MaxQuote {
		return Document{}, fmt.Errorf("%s: %d bytes, the limit is %d", member.name, len(raw), attest.MaxQuote)
	}
	if err := json.Unmarshal(raw, &outer); err != nil {
		return Document{}, fmt.Errorf("%s: %w", member.name, err)
	}
	var d Document
	if err := json.Unmarshal(outer[member.name], &d); err != nil {
		return Document{}, fmt.Errorf("%s: %w", member.name, err)
	}
	return d, d.check(itemType)
}

func (d Document) check(itemType string) error {
	member := members[itemType]
	switch {
	case d.ID != member.id || d.Version != member.version:
		return fmt.Errorf("%s: %q version %d, want %q version %d", member.name, d.ID, d.Version, member.id, member.version)
	case d.IssueDate.IsZero() || !d.NextUpdate.After(d.IssueDate):
		return fmt.Errorf("%s: issued %v, next update %v", member.name, d.IssueDate, d.NextUpdate)
	case d.Evaluation <= 0:
		return fmt.Errorf("%s: no tcbEvaluationDataNumber", member.name)
	case itemType == attest.TypeTDXTCBInfo && len(d.FMSPC) != 12:
		return fmt.Errorf("%s: FMSPC %q, want 12 hex digits", member.name, d.FMSPC)
	}
	return nil
}

// VerifyDocument verifies a document under a TCB signing chain (PEM: the signing
// certificate, then root) and returns what it says. The signing certificate must have been
// valid when the document was issued; whether the document is current now is not asked.
func VerifyDocument(itemType string, raw, chain []byte, root *x509.Certificate) (Document, error) {
	signer, err := VerifySigningChain(chain, root)
	if err != nil {
		return Document{}, err
	}
	var d Document
	if err := signedBody(raw, members[itemType].name, []*x509.Certificate{signer}, &d); err != nil {
		return Document{}, err
	}
	if d.IssueDate.Before(signer.NotBefore) || d.IssueDate.After(signer.NotAfter) {
		return Document{}, fmt.Errorf("%s: issued %v, outside the validity of its signer", members[itemType].name, d.IssueDate)
	}
	return d, d.check(itemType)
}

// VerifySigningChain returns the TCB signing certificate of a chain under a root.
func VerifySigningChain(chain []byte, root *x509.Certificate) (*x509.Certificate, error) {
	if root == nil {
		return nil, errors.New("tdx: no root")
	}
	signers, err := (&Scheme{root: root}).tcbSigners([][]byte{chain})
	if err != nil {
		return nil, err
	}
	return signers[0], nil
}

// Root returns Intel's root, as it is compiled in.
func Root() (*x509.Certificate, error) {
	block, _ := pem.Decode(intelRootPEM)
	if block == nil {
		return nil, errors.New("tdx: no certificate in the embedded root")
	}
	return x509.ParseCertificate(block.Bytes)
}

// SignedBy reports whether a document is signed by the first certificate of a chain (PEM).
// Whose chain that is, is not asked.
func SignedBy(itemType string, raw, chain []byte) bool {
	block, _ := pem.Decode(chain)
	if block == nil {
		return false
	}
	signer, err := x509.ParseCertificate(block.Bytes)
	var d Document
	return err == nil && signedBody(raw, members[itemType].name, []*x509.Certificate{signer}, &d) == nil
}
