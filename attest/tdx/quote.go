package tdx

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"

	"github.com/google/go-tdx-guest/abi"

	"github.com/attestmesh/meshnode/attest"
)

// Offsets and sizes of a version 4 quote (Intel TDX DCAP Quoting Library API, A.3).
const (
	headerSize   = 48
	bodySize     = 584
	signedSize   = headerSize + bodySize
	sizeOffset   = signedSize
	sectionStart = signedSize + 4
	qeReportSize = 384
)

// Header values.
const (
	version4  = 4
	version5  = 5
	keyECDSA  = 2    // ECDSA-256-with-P-256
	teeTDX    = 0x81 // TEE type
	certTypeQ = 6    // QE report certification data
	certTypeP = 5    // PCK certificate chain in PEM
)

// intelQE is the vendor id of Intel's quoting enclaves.
var intelQE = [16]byte{0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07}

// quote is a view of the parts of a quote. Nothing in it is authentic by itself.
type quote struct {
	raw       []byte
	version   uint16
	body      []byte // 584 bytes
	signature []byte
	key       []byte
	qeReport  []byte
	qeSig     []byte
	authData  []byte
	chain     []byte // PEM
}

// LooksLike reports whether raw bears at least two of the three marks of a TDX quote, so
// that one that was tampered with is still refused as a quote.
func LooksLike(raw []byte) bool {
	if len(raw) < sectionStart {
		return false
	}
	marks := 0
	if v := binary.LittleEndian.Uint16(raw); v == version4 || v == version5 {
		marks++
	}
	if binary.LittleEndian.Uint32(raw[4:]) == teeTDX {
		marks++
	}
	if distance(raw[12:28], intelQE[:]) <= 1 {
		marks++
	}
	return marks >= 2
}

// distance counts differing bits.
func distance(a, b []byte) int {
	n := 0
	for i := range a {
		n += bits.OnesCount8(a[i] ^ b[i])
	}
	return n
}

// errVersion5 is returned for a well-formed quote of version 5.
var errVersion5 = errors.New("quote version 5")

// errHeader is returned for header values that no TDX quote has.
var errHeader = errors.New("not the header of a TDX quote")

// parseQuote splits a quote and accounts for every byte.
func parseQuote(raw []byte) (quote, error) {
	if len(raw) < sectionStart || len(raw) > attest.MaxQuote {
		return quote{}, fmt.Errorf("quote: %d bytes, want %d to %d", len(raw), sectionStart, attest.MaxQuote)
	}
	q := quote{raw: raw, version: binary.LittleEndian.Uint16(raw), body: raw[headerSize:signedSize]}
	keyType, tee := binary.LittleEndian.Uint16(raw[2:]), binary.LittleEndian.Uint32(raw[4:])
	if q.version == version5 && isVersion5(raw) {
		return quote{}, errVersion5
	}
	if q.version != version4 || keyType != keyECDSA || tee != teeTDX || !bytes.Equal(raw[12:28], intelQE[:]) {
		return quote{}, fmt.Errorf("%w: version %d, key type %d, TEE type %#x, vendor %x", errHeader, q.version, keyType, tee, raw[12:28])
	}
	r := reader{raw[sizeOffset:]}
	section := r.sized32(len(raw))
	if len(r.rest) != 0 {
		return quote{}, fmt.Errorf("quote: %d bytes behind the signature section", len(r.rest))
	}
	r.rest = section
	q.signature, q.key = r.take(64), r.take(64)
	outer := r.certification(certTypeQ, attest.MaxQuote)
	if len(r.rest) != 0 {
		return quote{}, fmt.Errorf("quote: %d bytes behind the certification data", len(r.rest))
	}
	r.rest = outer
	q.qeReport, q.qeSig = r.take(qeReportSize), r.take(64)
	q.authData = r.sized16(maxAuthData)
	q.chain = r.certification(certTypeP, maxChain)
	if len(r.rest) != 0 {
		return quote{}, fmt.Errorf("quote: %d bytes behind the certificates", len(r.rest))
	}
	if q.chain == nil || q.qeSig == nil || q.signature == nil {
		return quote{}, errors.New("quote: cut short, or a part has another type or size")
	}
	return q, nil
}

// isVersion5 reports whether raw has the frame of a version 5 quote with a TD report 1.0
// or 1.5, so that version 4 with a flipped bit is not taken for one.
func isVersion5(raw []byte) bool {
	if len(raw) < headerSize+6 {
		return false
	}
	kind, size := binary.LittleEndian.Uint16(raw[headerSize:]), binary.LittleEndian.Uint32(raw[headerSize+2:])
	end := headerSize + 6 + int64(size)
	return (kind == 2 && size == 584 || kind == 3 && size == 648) && end+4 <= int64(len(raw)) &&
		end+4+int64(binary.LittleEndian.Uint32(raw[end:])) == int64(len(raw))
}

// reader takes bytes from the front; past the end it yields nil and stays empty.
type reader struct{ rest []byte }

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.rest) {
		r.rest = nil
		return nil
	}
	out := r.rest[:n:n]
	r.rest = r.rest[n:]
	return out
}

func (r *reader) sized16(limit int) []byte {
	head := r.take(2)
	if head == nil || int(binary.LittleEndian.Uint16(head)) > limit {
		r.rest = nil
		return nil
	}
	return r.take(int(binary.LittleEndian.Uint16(head)))
}

func (r *reader) sized32(limit int) []byte {
	head := r.take(4)
	if head == nil || uint64(binary.LittleEndian.Uint32(head)) > uint64(limit) {
		r.rest = nil
		return nil
	}
	return r.take(int(binary.LittleEndian.Uint32(head)))
}

// certification takes {u16 type, u32 size, data} of one type.
func (r *reader) certification(want uint16, limit int) []byte {
	head := r.take(2)
	if head == nil || binary.LittleEndian.Uint16(head) != want {
		r.rest = nil
		return nil
	}
	return r.sized32(limit)
}

// certification is all that stands between a quote's signature and the root: attestation
// key, QE report with its signature and data, PCK chain. parseQuote accounts for its bytes.
func (q quote) certification() []byte { return q.raw[sectionStart+len(q.signature):] }

// errQuoteSignature is returned for a quote that its attestation key did not sign.
var errQuoteSignature = errors.New("header and body are not signed by the attestation key")

// signedBy verifies the signature over header and body.
func (q quote) signedBy(key *ecdsa.PublicKey) error {
	der, err := abi.SignatureToDER(q.signature)
	if err != nil {
		return err
	}
	if digest := sha256.Sum256(q.raw[:signedSize]); !ecdsa.VerifyASN1(key, digest[:], der) {
		return errQuoteSignature
	}
	return nil
}

// TD quote body, offsets within it.
func (q quote) teeTCBSVN() []byte      { return q.body[0:16] }
func (q quote) mrSeam() []byte         { return q.body[16:64] }
func (q quote) mrSignerSeam() []byte   { return q.body[64:112] }
func (q quote) seamAttributes() []byte { return q.body[112:120] }
func (q quote) reportData() []byte     { return q.body[520:584] }

// claims reads the body of a quote whose signatures were verified.
func (q quote) claims() attest.Claims {
	b := q.body
	h := hex.EncodeToString
	out := attest.Claims{
		Kind: attest.KindTDX, Genuine: true, Measurement: h(b[136:184]), ReportData: h(q.reportData()),
		Registers: map[string]string{},
		TDX: &attest.TDXClaims{
			QuoteVersion: q.version, TEETCBSVN: h(q.teeTCBSVN()), MRSEAM: h(q.mrSeam()), MRSignerSEAM: h(q.mrSignerSeam()),
			TDAttributes: h(b[120:128]), Debug: b[120] != 0, SEPTVEDisable: b[123]&(1<<4) != 0, XFAM: h(b[128:136]),
			MRConfigID: h(b[184:232]), MROwner: h(b[232:280]), MROwnerConfig: h(b[280:328]),
		},
	}
	for i := range 4 {
		out.Registers[fmt.Sprintf("rtmr%d", i)] = h(b[328+48*i : 376+48*i])
	}
	return out
}

// QE report (an SGX REPORTBODY), offsets within it.
func (q quote) qeMiscSelect() []byte { return q.qeReport[16:20] }
func (q quote) qeAttributes() []byte { return q.qeReport[48:64] }
func (q quote) qeMRSigner() []byte   { return q.qeReport[128:160] }
func (q quote) qeProdID() uint16     { return binary.LittleEndian.Uint16(q.qeReport[256:]) }
func (q quote) qeSVN() uint16        { return binary.LittleEndian.Uint16(q.qeReport[258:]) }
