package tdx

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"strconv"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/cursor"
)

// Sizes within quotes (Intel TDX DCAP Quoting Library API, appendix A.3 and A.4).
const (
	headerSize     = 48
	descriptorSize = 6   // version 5: u16 type, u32 size of the body
	body10Size     = 584 // TD report of TDX 1.0
	body15Size     = 648 // TD report of TDX 1.5
	qeReportSize   = 384
	signatureSize  = 64
)

// Header values.
const (
	version4    = 4
	version5    = 5
	bodyType10  = 2
	bodyType15  = 3
	keyECDSA    = 2    // ECDSA-256-with-P-256
	teeTDX      = 0x81 // TEE type
	certTypeQE  = 6    // QE report certification data
	certTypePCK = 5    // PCK certificate chain in PEM
)

// intelQE is the vendor id of Intel's quoting enclaves.
var intelQE = [16]byte{0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07}

// frame is where body and signature section of a quote lie.
type frame struct {
	version, bodyType uint16 // version 4 has no body type
	body, size        int
}

var frames = []frame{
	{version4, 0, headerSize, body10Size},
	{version5, bodyType10, headerSize + descriptorSize, body10Size},
	{version5, bodyType15, headerSize + descriptorSize, body15Size},
}

// end is where the signed bytes end and the size of the signature section stands.
func (f frame) end() int { return f.body + f.size }

// section is where the signature section begins.
func (f frame) section() int { return f.end() + 4 }

// fits reports whether f accounts for every byte of raw.
func (f frame) fits(raw []byte) bool {
	return len(raw) >= f.section() && int64(len(raw)-f.section()) == int64(binary.LittleEndian.Uint32(raw[f.end():]))
}

// named reports whether raw says of itself that it has the frame f.
func (f frame) named(raw []byte) bool {
	if binary.LittleEndian.Uint16(raw) != f.version {
		return false
	}
	return f.bodyType == 0 || binary.LittleEndian.Uint16(raw[headerSize:]) == f.bodyType &&
		int64(binary.LittleEndian.Uint32(raw[headerSize+2:])) == int64(f.size)
}

// frameOf returns the frame of a quote. Bytes that are in every respect a quote but name
// another frame than they have were tampered with, and are no quote of any kind.
func frameOf(raw []byte) (frame, error) {
	for _, f := range frames {
		if f.named(raw) && f.fits(raw) {
			return f, nil
		}
	}
	version := binary.LittleEndian.Uint16(raw)
	for _, f := range frames {
		if f.fits(raw) {
			return frame{}, &mismatch{"tdx.quote_version", fmt.Sprintf("version %d over the frame of version %d", version, f.version),
				fmt.Sprintf("version %d with its body", f.version)}
		}
	}
	return frame{}, fmt.Errorf("quote: of version %d with %d bytes: cut short, longer than its signature section says, or of another version than 4 and 5", version, len(raw))
}

// quote is a view of the parts of a quote. Nothing in it is authentic by itself.
type quote struct {
	frame
	raw       []byte
	td        []byte // the TD report body
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
	if len(raw) < frames[0].section() {
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

// mismatch is a named check that evidence failed: it is not what a platform of Intel's makes.
type mismatch struct{ claim, got, want string }

func (m *mismatch) Error() string { return m.claim + ": got " + m.got + ", want " + m.want }

// checkHeader compares what the header of every TDX quote has.
func checkHeader(raw []byte) error {
	if keyType := binary.LittleEndian.Uint16(raw[2:]); keyType != keyECDSA {
		return &mismatch{"tdx.attestation_key_type", strconv.Itoa(int(keyType)), strconv.Itoa(keyECDSA)}
	}
	if tee := binary.LittleEndian.Uint32(raw[4:]); tee != teeTDX {
		return &mismatch{"tdx.tee_type", fmt.Sprintf("%#x", tee), fmt.Sprintf("%#x", teeTDX)}
	}
	if !bytes.Equal(raw[12:28], intelQE[:]) {
		return &mismatch{"tdx.qe_vendor_id", hex.EncodeToString(raw[12:28]), hex.EncodeToString(intelQE[:])}
	}
	return nil
}

// parseQuote splits a quote and accounts for every byte. A *mismatch says that the bytes
// have the form of a quote, and a value that none of Intel's has.
func parseQuote(raw []byte) (quote, error) {
	if low := frames[0].section(); len(raw) < low || len(raw) > attest.MaxQuote {
		return quote{}, fmt.Errorf("quote: %d bytes, want %d to %d", len(raw), low, attest.MaxQuote)
	}
	f, err := frameOf(raw)
	if err != nil {
		return quote{}, err
	}
	if err := checkHeader(raw); err != nil {
		return quote{}, err
	}
	q := quote{frame: f, raw: raw, td: raw[f.body:f.end()]}
	r := cursor.Little(raw[f.section():])
	q.signature, q.key = r.Take(signatureSize), r.Take(64)
	inner := cursor.Little(certification(&r, certTypeQE, attest.MaxQuote))
	if r.Len() != 0 {
		return quote{}, fmt.Errorf("quote: %d bytes behind the certification data", r.Len())
	}
	q.qeReport, q.qeSig = inner.Take(qeReportSize), inner.Take(signatureSize)
	q.authData = authData(&inner)
	q.chain = certification(&inner, certTypePCK, maxChain)
	if inner.Len() != 0 {
		return quote{}, fmt.Errorf("quote: %d bytes behind the certificates", inner.Len())
	}
	if inner.Short() { // as it is, too, if there was not enough before it
		return quote{}, errors.New("quote: cut short, or a part has another type or size")
	}
	return q, nil
}

// authData takes {u16 size, data}.
func authData(r *cursor.Cursor) []byte {
	size := uint64(r.U16())
	if size > maxAuthData {
		r.Fail()
	}
	return r.Take(size)
}

// certification takes {u16 type, u32 size, data} of one type.
func certification(r *cursor.Cursor, want uint16, limit uint64) []byte {
	kind, size := r.U16(), uint64(r.U32())
	if kind != want || size > limit {
		r.Fail()
	}
	return r.Take(size)
}

// signed is what the attestation key signs: the header and all that names and is the body.
func (q quote) signed() []byte { return q.raw[:q.end()] }

// certification is all that stands between a quote's signature and the root: attestation
// key, QE report with its signature and data, PCK chain. parseQuote accounts for its bytes.
func (q quote) certification() []byte { return q.raw[q.section()+signatureSize:] }
