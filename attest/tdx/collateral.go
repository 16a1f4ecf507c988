package tdx

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
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
	Date       string   `json:"tcbDate"`
	Status     string   `json:"tcbStatus"`
	Advisories []string `json:"advisoryIDs"`
}

type component struct {
	SVN uint8 `json:"svn"`
}

// qeIdentity is the part we use of Intel's enclave identity, version 2.
type qeIdentity struct {
	ID             string     `json:"id"`
	Version        int        `json:"version"`
	IssueDate      time.Time  `json:"issueDate"`
	NextUpdate     time.Time  `json:"nextUpdate"`
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
}

// staleError says which part of the collateral is not valid at the time.
type staleError struct{ what string }

func (e *staleError) Error() string { return "collateral: " + e.what + " is not valid at this time" }

// errIncomplete says that a revocation list is missing.
var errIncomplete = errors.New("collateral: a revocation list is missing")

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
	for _, part := range append([][]byte{it.tcbInfo, it.qeIdentity, it.tcbChain}, it.crls...) {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		h.Write(part)
	}
	h.Sum(out[:0])
	return out
}

// collateral authenticates all five parts. Signatures come before dates, so that forged
// collateral is never merely stale.
func (s *Scheme) collateral(chain pckChain, it items, at time.Time) (out collateral, err error) {
	signer, err := s.tcbSigner(it.tcbChain)
	if err != nil {
		return out, err
	}
	if err := signedBody(it.tcbInfo, "tcbInfo", signer, &out.info); err != nil {
		return out, err
	}
	if err := signedBody(it.qeIdentity, "enclaveIdentity", signer, &out.qe); err != nil {
		return out, err
	}
	if out.info.ID != "TDX" || out.info.Version != 3 || out.qe.ID != "TD_QE" || out.qe.Version != 2 {
		return out, fmt.Errorf("collateral: %q version %d and %q version %d, want TDX 3 and TD_QE 2",
			out.info.ID, out.info.Version, out.qe.ID, out.qe.Version)
	}
	if len(out.info.Levels) > maxTCBLevels || len(out.info.Identities) > maxIdentities || len(out.qe.Levels) > maxTCBLevels {
		return out, errors.New("collateral: more levels than Intel publishes")
	}
	parts, err := s.revocation(chain, signer, it.crls)
	if err != nil {
		return out, err
	}
	parts = append(parts,
		part{"the TCB info", chains.Span{From: out.info.IssueDate, To: out.info.NextUpdate}},
		part{"the QE identity", chains.Span{From: out.qe.IssueDate, To: out.qe.NextUpdate}},
		part{"the TCB signing certificate", chains.Validity(signer)})
	out.span = parts[0].span
	for _, p := range parts {
		if !p.span.Holds(at) {
			return out, &staleError{p.what}
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

// tcbSigner returns the TCB signing certificate of a chain that ends in our root.
func (s *Scheme) tcbSigner(chain []byte) (*x509.Certificate, error) {
	var certs []*x509.Certificate
	for len(certs) < 3 {
		var block *pem.Block
		if block, chain = pem.Decode(chain); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil || block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("collateral: TCB signing chain: %s: %w", block.Type, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) != 2 || !certs[1].Equal(s.root) || certs[0].Subject.CommonName != "Intel SGX TCB Signing" {
		return nil, errors.New("collateral: want the TCB signing certificate and Intel's root")
	}
	if err := certs[0].CheckSignatureFrom(s.root); err != nil {
		return nil, fmt.Errorf("collateral: TCB signing certificate: %w", err)
	}
	return certs[0], nil
}

// signedBody verifies Intel's signature over the bytes of one member and decodes it.
func signedBody(raw []byte, name string, signer *x509.Certificate, v any) error {
	var outer map[string]json.RawMessage
	if err := json.Unmarshal(raw, &outer); err != nil {
		return fmt.Errorf("collateral: %s: %w", name, err)
	}
	var sigHex string
	if err := json.Unmarshal(outer["signature"], &sigHex); err != nil {
		return fmt.Errorf("collateral: %s: signature: %w", name, err)
	}
	sig, err := hex.DecodeString(sigHex)
	if err != nil || len(sig) != 64 {
		return fmt.Errorf("collateral: %s: signature of %d bytes, want 64", name, len(sig))
	}
	der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])})
	if err != nil {
		return err
	}
	if err := signer.CheckSignature(x509.ECDSAWithSHA256, outer[name], der); err != nil {
		return fmt.Errorf("collateral: %s: %w", name, err)
	}
	if err := json.Unmarshal(outer[name], v); err != nil {
		return fmt.Errorf("collateral: %s: %w", name, err)
	}
	return nil
}

// revocation requires a current list of the root and of the PCK's issuer, and none of our
// certificates on them. It returns when the lists are current.
func (s *Scheme) revocation(chain pckChain, signer *x509.Certificate, raw [][]byte) ([]part, error) {
	lists := map[*x509.Certificate]*x509.RevocationList{}
	for _, der := range raw {
		crl, err := x509.ParseRevocationList(der)
		if err != nil {
			return nil, fmt.Errorf("collateral: revocation list: %w", err)
		}
		for _, issuer := range []*x509.Certificate{s.root, chain.intermediate} {
			if string(crl.RawIssuer) != string(issuer.RawSubject) {
				continue
			}
			if err := crl.CheckSignatureFrom(issuer); err != nil {
				return nil, fmt.Errorf("collateral: revocation list of %s: %w", issuer.Subject.CommonName, err)
			}
			// Of two genuine lists the newer one counts.
			if old := lists[issuer]; old == nil || crl.ThisUpdate.After(old.ThisUpdate) {
				lists[issuer] = crl
			}
		}
	}
	if lists[s.root] == nil || lists[chain.intermediate] == nil {
		return nil, errIncomplete
	}
	var parts []part
	for _, issuer := range []*x509.Certificate{s.root, chain.intermediate} {
		crl := lists[issuer]
		for _, entry := range crl.RevokedCertificateEntries {
			for _, cert := range []*x509.Certificate{chain.leaf, chain.intermediate, signer} {
				if string(cert.RawIssuer) == string(issuer.RawSubject) && cert.SerialNumber.Cmp(entry.SerialNumber) == 0 {
					return nil, fmt.Errorf("collateral: %s was revoked at %v", cert.Subject.CommonName, entry.RevocationTime)
				}
			}
		}
		parts = append(parts, part{"the revocation list of " + issuer.Subject.CommonName, chains.Span{From: crl.ThisUpdate, To: crl.NextUpdate}})
	}
	return parts, nil
}
