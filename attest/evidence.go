package attest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/fxamacker/cbor/v2"
)

// Limits on evidence, checked before any parsing of vendor bytes.
const (
	MaxQuote        = 64 << 10
	MaxLog          = 1 << 20
	MaxCertificates = 32
	MaxItems        = 48
	// MaxEvidence bounds the encoded form.
	MaxEvidence = 2 << 20
)

// Item is one typed part of evidence, shaped as a CMW record (draft-ietf-rats-msg-wrap):
// a media type and the raw bytes as the vendor made them.
type Item struct {
	_    struct{} `cbor:",toarray"`
	Type string
	Data []byte
}

// Evidence is what an Attester made: raw vendor bytes, endorsements and logs. It is
// deterministic CBOR (RFC 8949 §4.2), an array [kind, [[type, bytes], …]].
type Evidence struct {
	_     struct{} `cbor:",toarray"`
	Kind  string
	Items []Item
}

// Item types. A scheme refuses types that are not its own.
const (
	TypeSEVSNPReport = "application/vnd.meshnode.sevsnp-report"
	TypeTDXQuote     = "application/vnd.meshnode.tdx-quote"
	TypeTPMQuote     = "application/vnd.meshnode.tpm-attestation" // go-tpm-tools attest.Attestation protobuf
	TypeSimReport    = "application/vnd.meshnode.sim-report"
	TypeCertificate  = "application/pkix-cert"                      // one DER certificate
	TypeEventLog     = "application/vnd.meshnode.tcg-event-log"     // TCG PFP crypto-agile log, or CCEL
	TypeIMALog       = "application/vnd.meshnode.ima-log"           // binary or ASCII runtime measurements
	TypeTDXTCBInfo   = "application/vnd.meshnode.tdx-tcb-info+json" // Intel PCS responses
	TypeTDXQEIdent   = "application/vnd.meshnode.tdx-qe-identity+json"
	TypeTDXTCBChain  = "application/vnd.meshnode.tdx-tcb-signing-chain+pem"
	TypeCRL          = "application/pkix-crl"
	TypeTPMAttest    = "application/vnd.meshnode.tpms-attest"   // TPMS_ATTEST of a bare quote
	TypeTPMSignature = "application/vnd.meshnode.tpm-signature" // TPMT_SIGNATURE, or a raw signature
	TypeTPMPCRs      = "application/vnd.meshnode.tpm-pcrs"      // register values: JSON, or in a row
	TypeTPMPublic    = "application/vnd.meshnode.tpm-public"    // attestation key: TPMT_PUBLIC, TPM2B_PUBLIC or SubjectPublicKeyInfo
	TypeHCLReport    = "application/vnd.meshnode.azure-hcl-report"
	// TypeHardwareSalt opens the commitment to the chip; it is of no scheme: see Verify.
	TypeHardwareSalt = "application/vnd.meshnode.hardware-salt"
)

var (
	cborEncode = must(cbor.CoreDetEncOptions().EncMode())
	cborDecode = must(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		MaxArrayElements:  MaxItems,
		MaxNestedLevels:   4,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Encode returns the canonical bytes of e.
func (e Evidence) Encode() ([]byte, error) { return cborEncode.Marshal(e) }

// DecodeEvidence opens the first door: limits, canonical encoding, known kinds.
func DecodeEvidence(raw []byte) (Evidence, error) {
	if len(raw) > MaxEvidence {
		return Evidence{}, fmt.Errorf("evidence: %d bytes, the limit is %d", len(raw), MaxEvidence)
	}
	var e Evidence
	if err := cborDecode.Unmarshal(raw, &e); err != nil {
		return Evidence{}, fmt.Errorf("evidence: %w", err)
	}
	if err := sameEncoding(cborEncode, e, raw); err != nil {
		return Evidence{}, fmt.Errorf("evidence: %w", err)
	}
	return e, e.Check()
}

// sameEncoding returns an error unless mode encodes v as exactly raw. It is how a decoder
// finds out whether what it read was the one encoding; it makes no copy.
func sameEncoding(mode cbor.EncMode, v any, raw []byte) error {
	same := comparison{raw}
	if err := mode.NewEncoder(&same).Encode(v); err != nil || len(same.rest) != 0 {
		return errNotCanonical
	}
	return nil
}

var errNotCanonical = errors.New("not in canonical form")

// comparison is a writer that accepts the bytes of rest, in order.
type comparison struct{ rest []byte }

// Write implements io.Writer.
func (c *comparison) Write(p []byte) (int, error) {
	if !bytes.HasPrefix(c.rest, p) {
		return 0, errNotCanonical
	}
	c.rest = c.rest[len(p):]
	return len(p), nil
}

// Check enforces the limits on a decoded or self-made Evidence.
func (e Evidence) Check() error {
	if _, err := ParseKinds(e.Kind); err != nil {
		return err
	}
	certificates := 0
	for _, it := range e.Items {
		limit := MaxQuote
		switch it.Type {
		case TypeEventLog, TypeIMALog, TypeTPMQuote, TypeCRL:
			limit = MaxLog
		case TypeCertificate:
			certificates++
		}
		if len(it.Data) == 0 || len(it.Data) > limit {
			return fmt.Errorf("evidence: %s has %d bytes, want 1 to %d", it.Type, len(it.Data), limit)
		}
	}
	if len(e.Items) == 0 || len(e.Items) > MaxItems || certificates > MaxCertificates {
		return fmt.Errorf("evidence: %d items with %d certificates, want 1 to %d with at most %d",
			len(e.Items), certificates, MaxItems, MaxCertificates)
	}
	return nil
}

// Find returns the data of every item of one type, in order.
func (e Evidence) Find(itemType string) [][]byte {
	var out [][]byte
	for _, it := range e.Items {
		if it.Type == itemType {
			out = append(out, it.Data)
		}
	}
	return out
}

// ParseKinds splits a composite kind and requires known, distinct, sorted parts.
func ParseKinds(kind string) ([]string, error) {
	parts := strings.Split(kind, ",")
	if !slices.IsSorted(parts) || len(slices.Compact(slices.Clone(parts))) != len(parts) {
		return nil, fmt.Errorf("kind %q: want distinct kinds in order", kind)
	}
	for _, p := range parts {
		switch p {
		case KindSEVSNP, KindTDX, KindVTPM, KindSim:
		default:
			return nil, fmt.Errorf("kind %q: unknown kind %q", kind, p)
		}
	}
	return parts, nil
}
