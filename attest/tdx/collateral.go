package tdx

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest/chains"
)

// tcbInfo is the part we use of Intel's TCB info, version 3.
type tcbInfo struct {
	ID         string           `json:"id"`
	Version    int              `json:"version"`
	IssueDate  time.Time        `json:"issueDate"`
	NextUpdate time.Time        `json:"nextUpdate"`
	FMSPC      string           `json:"fmspc"`
	PCEID      string           `json:"pceId"`
	Evaluation int              `json:"tcbEvaluationDataNumber"`
	TDXModule  moduleIdentity   `json:"tdxModule"`
	Identities []moduleIdentity `json:"tdxModuleIdentities"`
	Levels     []tcbLevel       `json:"tcbLevels"`
}

type moduleIdentity struct {
	ID             string     `json:"id"`
	MRSigner       string     `json:"mrsigner"`
	Attributes     string     `json:"attributes"`
	AttributesMask string     `json:"attributesMask"`
	Levels         []tcbLevel `json:"tcbLevels"`
}

type tcbLevel struct {
	TCB struct {
		SGX    []component `json:"sgxtcbcomponents"`
		TDX    []component `json:"tdxtcbcomponents"`
		PCESVN uint16      `json:"pcesvn"`
		ISVSVN uint16      `json:"isvsvn"`
	} `json:"tcb"`
	Date       time.Time `json:"tcbDate"`
	Status     string    `json:"tcbStatus"`
	Advisories []string  `json:"advisoryIDs"`
}

type component struct {
	SVN      uint8  `json:"svn"`
	Category string `json:"category"`
	Type     string `json:"type"`
}

// qeIdentity is the part we use of Intel's enclave identity, version 2.
type qeIdentity struct {
	ID             string     `json:"id"`
	Version        int        `json:"version"`
	IssueDate      time.Time  `json:"issueDate"`
	NextUpdate     time.Time  `json:"nextUpdate"`
	Evaluation     int        `json:"tcbEvaluationDataNumber"`
	MiscSelect     string     `json:"miscselect"`
	MiscSelectMask string     `json:"miscselectMask"`
	Attributes     string     `json:"attributes"`
	AttributesMask string     `json:"attributesMask"`
	MRSigner       string     `json:"mrsigner"`
	ProdID         uint16     `json:"isvprodid"`
	Levels         []tcbLevel `json:"tcbLevels"`
}

// collateral is authentic and current at the time it was checked for. It is not changed
// once made.
type collateral struct {
	info tcbInfo
	qe   qeIdentity
	span chains.Span // in which all of it is current
	// When the first and the last part of it were issued.
	firstIssued, lastIssued time.Time
	// Numbers of the revocation lists of the PCK's issuer and of the root.
	pckCRL, rootCRL string
}

// staleError says which part of the collateral is not valid at the time.
type staleError struct{ part part }

func (e *staleError) Error() string { return "collateral: not valid at this time: " + e.part.String() }

// incompleteError says which revocation lists are missing.
type incompleteError struct{ lacks []string }

func (e *incompleteError) Error() string {
	return "collateral: without " + strings.Join(e.lacks, ", ")
}

// lacks names the parts of the collateral that are not there; which revocation lists are, is
// seen when they are read.
func (it items) lacks() (out []string) {
	for _, p := range []struct {
		name  string
		there bool
	}{{"tcb_info", it.tcbInfo != nil}, {"qe_identity", it.qeIdentity != nil}, {"tcb_signing_chain", len(it.tcbChains) > 0},
		{"pck_crl", len(it.crls) > 0}, {"root_ca_crl", len(it.crls) > 0}} {
		if !p.there {
			out = append(out, p.name)
		}
	}
	return out
}

// collateralAt returns the collateral of a platform, verified now or remembered.
func (s *Scheme) collateralAt(key platformKey, it items, at time.Time) (collateral, error) {
	id := it.collateralID(key.id)
	if col, ok := s.current.Recall(id, at); ok {
		return col, nil
	}
	col, err := s.collateral(key.pckChain, it, at)
	if err == nil {
		s.current.Keep(id, col.span, col)
	}
	return col, err
}

// collateralID is the digest of collateral and of the platform whose revocation it decides.
func (it items) collateralID(platform chains.Key) (out chains.Key) {
	h := sha256.New()
	h.Write(platform[:])
	for _, list := range [][][]byte{{it.tcbInfo, it.qeIdentity}, it.tcbChains, it.crls} {
		for _, part := range list {
			h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
			h.Write(part)
		}
	}
	h.Sum(out[:0])
	return out
}

// collateral authenticates all five parts. Signatures come before dates, so that forged
// collateral is never merely stale.
func (s *Scheme) collateral(chain pckChain, it items, at time.Time) (out collateral, err error) {
	signers, err := s.tcbSigners(it.tcbChains)
	if err != nil {
		return out, err
	}
	if out.info, out.qe, err = decodeSigned(it.tcbInfo, it.qeIdentity, signers); err != nil {
		return out, err
	}
	lists, err := s.revocation(chain, signers, it.crls)
	if err != nil {
		return out, err
	}
	out.pckCRL, out.rootCRL = lists[0].Number.String(), lists[1].Number.String()
	parts := []part{
		{"the revocation list of " + chain.intermediate.Subject.CommonName, chains.Span{From: lists[0].ThisUpdate, To: lists[0].NextUpdate}},
		{"the revocation list of " + s.root.Subject.CommonName, chains.Span{From: lists[1].ThisUpdate, To: lists[1].NextUpdate}},
		{"the TCB info", chains.Span{From: out.info.IssueDate, To: out.info.NextUpdate}},
		{"the QE identity", chains.Span{From: out.qe.IssueDate, To: out.qe.NextUpdate}},
	}
	out.firstIssued, out.lastIssued = parts[0].span.From, parts[0].span.From
	for _, p := range parts[1:] {
		if p.span.From.Before(out.firstIssued) {
			out.firstIssued = p.span.From
		}
		if p.span.From.After(out.lastIssued) {
			out.lastIssued = p.span.From
		}
	}
	for _, c := range signers {
		parts = append(parts, part{"the TCB signing certificate", chains.Validity(c, s.root)})
	}
	out.span = parts[0].span
	for _, p := range parts {
		if !p.span.Holds(at) {
			return out, &staleError{p}
		}
		out.span = out.span.And(p.span)
	}
	return out, nil
}

// part is a part of the collateral with the time in which it is current.
type part struct {
	what string
	span chains.Span
}

// String says when the part is valid.
func (p part) String() string {
	return fmt.Sprintf("%s is valid from %s to %s", p.what, date(p.span.From), date(p.span.To))
}

// decodeSigned authenticates TCB info and QE identity and decodes them.
func decodeSigned(rawInfo, rawQE []byte, signers []*x509.Certificate) (info tcbInfo, qe qeIdentity, err error) {
	if err := signedBody(rawInfo, "tcbInfo", signers, &info); err != nil {
		return info, qe, err
	}
	if err := signedBody(rawQE, "enclaveIdentity", signers, &qe); err != nil {
		return info, qe, err
	}
	if info.ID != "TDX" || info.Version != 3 || qe.ID != "TD_QE" || qe.Version != 2 {
		return info, qe, fmt.Errorf("collateral: %q version %d and %q version %d, want TDX 3 and TD_QE 2", info.ID, info.Version, qe.ID, qe.Version)
	}
	if len(info.Levels) > maxTCBLevels || len(info.Identities) > maxIdentities || len(qe.Levels) > maxTCBLevels {
		return info, qe, errors.New("collateral: more levels than Intel publishes")
	}
	return info, qe, nil
}

// tcbSigners returns the TCB signing certificates of chains that end in our root: one, or
// two in the days in which Intel renews it.
func (s *Scheme) tcbSigners(texts [][]byte) (signers []*x509.Certificate, err error) {
	for _, text := range texts {
		certs, err := parseChain(text, s.root)
		if err != nil {
			return nil, fmt.Errorf("collateral: TCB signing chain: %w", err)
		}
		found := false
		for _, c := range certs {
			switch {
			case c.Equal(s.root):
			case c.Subject.CommonName != tcbSignerCN:
				return nil, fmt.Errorf("collateral: TCB signing chain: %q is neither the signer nor Intel's root", c.Subject.CommonName)
			default:
				if err := s.trusted(c.NotBefore, c); err != nil { // dates are judged with those of the rest
					return nil, fmt.Errorf("collateral: TCB signing chain: %w", err)
				}
				found = true
				if !slices.ContainsFunc(signers, c.Equal) {
					signers = append(signers, c)
				}
			}
		}
		if !found {
			return nil, errors.New("collateral: no TCB signing certificate in its chain")
		}
	}
	return signers, nil
}

// signedBody verifies Intel's signature over the bytes of one member and decodes them.
func signedBody(raw []byte, name string, signers []*x509.Certificate, v any) error {
	var outer map[string]json.RawMessage
	if err := json.Unmarshal(raw, &outer); err != nil {
		return fmt.Errorf("collateral: %s: %w", name, err)
	}
	var sigHex string
	if err := json.Unmarshal(outer["signature"], &sigHex); err != nil {
		return fmt.Errorf("collateral: %s: signature: %w", name, err)
	}
	sig, err := hex.DecodeString(sigHex)
	if err != nil || len(sig) != signatureSize {
		return fmt.Errorf("collateral: %s: signature of %d bytes, want %d", name, len(sig), signatureSize)
	}
	body, err := signedBytes(outer[name], sig, signers)
	if err != nil {
		return fmt.Errorf("collateral: %s: %w", name, err)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("collateral: %s: %w", name, err)
	}
	return nil
}

// signedBytes returns the bytes that one of signers signed: body, or body without the white
// space that a tool put into it since. Intel signs JSON without any.
func signedBytes(body, sig []byte, signers []*x509.Certificate) ([]byte, error) {
	if anySigned(body, sig, signers) {
		return body, nil
	}
	var compact bytes.Buffer
	_ = json.Compact(&compact, body) // of a member that was read; nobody signs that of one that is missing
	if compact.Len() != len(body) && anySigned(compact.Bytes(), sig, signers) {
		return compact.Bytes(), nil
	}
	return nil, errors.New("the signature does not hold")
}

func anySigned(text, sig []byte, signers []*x509.Certificate) bool {
	return slices.ContainsFunc(signers, func(c *x509.Certificate) bool {
		key, err := p256(c)
		return err == nil && verifyRaw(key, text, sig) == nil
	})
}
