package tdx

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/go-tdx-guest/abi"
	"github.com/google/go-tdx-guest/pcs"

	"github.com/attestmesh/meshnode/attest/chains"
)

// The quoting enclave that Intel signs for TDs, as in every QE identity it published.
const (
	qeMRSigner = "dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5"
	qeProdID   = 2
)

// Subjects in Intel's hierarchy (Intel SGX PCK Certificate and CRL Profile §1.3).
const (
	pckName      = "Intel SGX PCK Certificate"
	platformCA   = "Intel SGX PCK Platform CA"
	processorCA  = "Intel SGX PCK Processor CA"
	tcbSignerCN  = "Intel SGX TCB Signing"
	qeDebug      = 1 << 1 // SGX ATTRIBUTES.DEBUG
	certificates = 3      // PCK, its CA, the root
)

// pckChain is the authenticated chain of a quote.
type pckChain struct {
	leaf, intermediate *x509.Certificate
	ext                *pcs.PckExtensions
}

// platformKey is an attestation key and the chain that certifies it.
type platformKey struct {
	pckChain
	id  chains.Key
	key *ecdsa.PublicKey
}

// authentic verifies all signatures of a quote, those above the attestation key only if
// they are not known to hold.
func (s *Scheme) authentic(q quote, at time.Time) (platformKey, error) {
	id := chains.Key(sha256.Sum256(q.certification()))
	known, ok := s.known.Recall(id, at)
	if !ok {
		chain, err := s.pck(q.chain, at)
		if err != nil {
			return platformKey{}, err
		}
		key, err := chain.certified(q)
		if err != nil {
			return platformKey{}, err
		}
		known = platformKey{chain, id, key}
	}
	if err := verifyRaw(known.key, q.signed(), q.signature); err != nil {
		return platformKey{}, fmt.Errorf("header and body are not signed by the attestation key: %w", err)
	}
	if !ok {
		s.known.Keep(id, chains.Validity(known.leaf, known.intermediate, s.root), known)
	}
	return known, nil
}

// pck verifies the PCK certificate of a chain: PCK, the CA that issued it, and our root, all
// valid at a time and of the form that Intel's profile gives them.
func (s *Scheme) pck(chainPEM []byte, at time.Time) (out pckChain, err error) {
	certs, err := parseChain(chainPEM, s.root)
	if err != nil {
		return out, err
	}
	if len(certs) != certificates {
		return out, fmt.Errorf("%d certificates in the quote, want the PCK's, its CA's and the root's", len(certs))
	}
	if !certs[2].Equal(s.root) {
		return out, errors.New("the root in the quote is not the trusted one")
	}
	out = pckChain{leaf: certs[0], intermediate: certs[1]}
	if name := out.leaf.Subject.CommonName; name != pckName {
		return out, fmt.Errorf("the certificate of %q stands in the place of the PCK's", name)
	}
	if name := out.intermediate.Subject.CommonName; name != platformCA && name != processorCA {
		return out, fmt.Errorf("the certificate of %q stands in the place of the PCK's issuer", name)
	}
	if err := s.trusted(at, out.leaf, out.intermediate); err != nil {
		return out, err
	}
	out.ext, err = extensions(out.leaf)
	return out, err
}

// trusted verifies a certificate that chains to our root, through intermediates if given.
// The root itself was trusted without its signature; its dates count.
func (s *Scheme) trusted(at time.Time, leaf *x509.Certificate, intermediates ...*x509.Certificate) error {
	opts := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	opts.Roots.AddCert(s.root)
	for _, c := range append(intermediates, leaf) {
		if c.SignatureAlgorithm != x509.ECDSAWithSHA256 {
			return fmt.Errorf("the certificate of %q is signed with %s, want %s", c.Subject.CommonName, c.SignatureAlgorithm, x509.ECDSAWithSHA256)
		}
		if _, err := p256(c); err != nil {
			return err
		}
	}
	for _, c := range intermediates {
		opts.Intermediates.AddCert(c)
	}
	if leaf.IsCA {
		return fmt.Errorf("the certificate of %q is a CA's", leaf.Subject.CommonName)
	}
	if _, err := leaf.Verify(opts); err != nil {
		return fmt.Errorf("the certificate of %q: %w", leaf.Subject.CommonName, err)
	}
	return nil
}

// certified verifies that the quoting enclave is Intel's and had the attestation key of q
// certified by the PCK, and returns that key.
func (c pckChain) certified(q quote) (*ecdsa.PublicKey, error) {
	if signer := hex.EncodeToString(q.qeMRSigner()); signer != qeMRSigner {
		return nil, &mismatch{"qe_report.mrsigner", signer, qeMRSigner}
	}
	if q.qeProdID() != qeProdID {
		return nil, &mismatch{"qe_report.isvprodid", strconv.Itoa(int(q.qeProdID())), strconv.Itoa(qeProdID)}
	}
	if q.qeAttributes()[0]&qeDebug != 0 {
		return nil, &mismatch{"qe_report.attributes", "DEBUG", "an enclave that is not in debug mode"}
	}
	pck, err := p256(c.leaf)
	if err != nil {
		return nil, err
	}
	if err := verifyRaw(pck, q.qeReport, q.qeSig); err != nil {
		return nil, fmt.Errorf("the QE report is not signed by the PCK: %w", err)
	}
	var named [64]byte
	h := sha256.New()
	h.Write(q.key)
	h.Write(q.authData)
	h.Sum(named[:0])
	if !bytes.Equal(named[:], q.qeReportData()) {
		return nil, errors.New("the QE report names another attestation key")
	}
	return ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, q.key...))
}

// verifyRaw verifies a signature of R and S, 32 bytes each, over the SHA-256 of msg.
func verifyRaw(key *ecdsa.PublicKey, msg, signature []byte) error {
	der, err := abi.SignatureToDER(signature)
	if err != nil {
		return err
	}
	if digest := sha256.Sum256(msg); !ecdsa.VerifyASN1(key, digest[:], der) {
		return errors.New("the signature does not hold")
	}
	return nil
}

func p256(c *x509.Certificate) (*ecdsa.PublicKey, error) {
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("the certificate of %q has no P-256 key", c.Subject.CommonName)
	}
	return key, nil
}

// parseChain parses PEM certificates with nothing between, before and behind them, save
// white space and the NUL with which Intel's library ends them. One that is root is returned
// as it, without being parsed again.
func parseChain(text []byte, root *x509.Certificate) (certs []*x509.Certificate, err error) {
	const blank = " \t\r\n\x00"
	begin, end := []byte("-----BEGIN CERTIFICATE-----"), []byte("-----END CERTIFICATE-----")
	for text = bytes.Trim(text, blank); len(text) > 0; text = bytes.TrimLeft(text, blank) {
		size := bytes.Index(text, end) + len(end) // without an end it is less than begin has
		if !bytes.HasPrefix(text, begin) || bytes.Count(text[:size], begin) != 1 || len(certs) == certificates {
			return nil, fmt.Errorf("something that is no certificate, or one too many, behind %d certificates in PEM", len(certs))
		}
		block, _ := pem.Decode(text[:size])
		if block == nil || len(block.Headers) != 0 {
			return nil, fmt.Errorf("certificate %d is not in PEM", len(certs)+1)
		}
		cert := root
		if root == nil || !bytes.Equal(block.Bytes, root.Raw) {
			var err error
			if cert, err = x509.ParseCertificate(block.Bytes); err != nil {
				return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
			}
		}
		certs, text = append(certs, cert), text[size:]
	}
	return certs, nil
}

// extensions reads the SGX extensions of a PCK certificate.
func extensions(leaf *x509.Certificate) (out *pcs.PckExtensions, err error) {
	defer func() {
		if p := recover(); p != nil {
			out, err = nil, fmt.Errorf("go-tdx-guest failed on the PCK certificate: %v", p)
		}
	}()
	if out, err = pcs.PckCertificateExtensions(leaf); err != nil {
		return nil, fmt.Errorf("PCK certificate: %w", err)
	}
	return out, nil
}
