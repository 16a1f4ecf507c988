package attesttest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"slices"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/tdx"
)

// TDX is a fake Intel. It is immutable.
type TDX struct {
	intel, foreign fakeIntel
	items          []attest.Item // current collateral
}

// NewTDX returns the forger of a name: the same name gives the same root in every run.
func NewTDX(name string) *TDX {
	f := &TDX{intel: newFakeIntel(name), foreign: newFakeIntel("not " + name)}
	f.items = f.intel.collateral(validFrom, validTo, nil)
	return f
}

// Kind is the kind of evidence the forger makes.
func (*TDX) Kind() string { return attest.KindTDX }

// Root is the one to believe for the forged evidence to be genuine.
func (f *TDX) Root() *x509.Certificate { return f.intel.root }

// Scheme returns a new Scheme that believes the forger's root.
func (f *TDX) Scheme() attest.Scheme { return must(tdx.WithRoot(f.intel.root)) }

// Policy returns a policy that admits genuine evidence of the measurements, and nothing
// more.
func (f *TDX) Policy(measurements ...string) attest.Policy {
	strict := attest.StrictPolicy().TDX
	strict.TDAttributesAllowed, strict.XFAMAllowed = 0, tdXFAM
	return attest.Policy{Kinds: []string{attest.KindTDX}, References: references(attest.KindTDX, measurements), TDX: strict}
}

// Attester returns an attester on a platform of its own whose genuine evidence has a
// measurement: 96 characters of lower-case hex, see Measurement. It panics on any other.
// The evidence carries collateral, without which no platform is up to date.
func (f *TDX) Attester(measurement string) *Attester {
	m := &tdxMachine{TDX: f, key: newP256(), pckKey: newP256()}
	m.pck = f.intel.pck(&m.pckKey.PublicKey)
	m.certification = certification(&m.key.PublicKey, m.pckKey, f.intel.chainPEM(m.pck), intelQESigner)
	return newAttester(m, measurement)
}

// tdxMachine is a platform: a PCK, and a quoting enclave that had its attestation key
// certified by it once, as real ones do.
type tdxMachine struct {
	*TDX
	key, pckKey   *ecdsa.PrivateKey
	pck           *x509.Certificate
	certification []byte
}

func (*tdxMachine) kind() string { return attest.KindTDX }

func (*tdxMachine) forgeries() []Forgery {
	return []Forgery{ForeignEnclave, RevokedPlatform, DebugGuest, OldTCB, StaleCollateral, NoCollateral}
}

// Sizes of a version 4 quote.
const (
	tdxHeader = 48
	tdxSigned = tdxHeader + 584
)

// The enclave that quotes TDs: Intel's, as in every QE identity it published.
const (
	intelQESigner = "dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5"
	qeProdID      = 2
	qeSVN         = 4
)

// What all TDs and platforms have.
const (
	tdXFAM = 0xe7
	tdxSVN = 3 // of the platform's TDX components
)

func (m *tdxMachine) evidence(f Forgery, measurement [measurementSize]byte, data attest.ReportData) (attest.Evidence, int, error) {
	key, certified, items := m.key, m.certification, m.items
	switch f {
	case WrongRoot:
		pck := m.foreign.pck(&m.pckKey.PublicKey)
		certified = certification(&key.PublicKey, m.pckKey, m.foreign.chainPEM(pck), intelQESigner)
	case StolenName:
		key = newP256()
	case ForeignEnclave:
		certified = certification(&key.PublicKey, m.pckKey, m.intel.chainPEM(m.pck), hex.EncodeToString(make([]byte, 32)))
	case RevokedPlatform:
		items = m.intel.collateral(validFrom, validTo, m.pck)
	case StaleCollateral:
		items = m.intel.collateral(validFrom.AddDate(-1, 0, 0), validFrom.AddDate(0, 0, -1), nil)
	case NoCollateral:
		items = nil
	}
	signed := quoteBody(measurement, data, 4+64+len(certified))
	switch f {
	case DebugGuest:
		signed[tdxHeader+120] |= 1
	case OldTCB:
		signed[tdxHeader+2] = tdxSVN - 1
	}
	signature, err := sign256(key, signed)
	if err != nil {
		return attest.Evidence{}, 0, err
	}
	quote := binary.LittleEndian.AppendUint32(signed, uint32(len(signature)+len(certified)))
	quote = append(append(quote, signature...), certified...)
	ev := attest.Evidence{Kind: attest.KindTDX, Items: append([]attest.Item{{Type: attest.TypeTDXQuote, Data: quote}}, items...)}
	// PEM around the certificates can bear another line end; what is before it cannot.
	return ev, bytes.Index(quote, []byte("-----BEGIN")), nil
}

// quoteBody returns header and TD quote body (Intel TDX DCAP Quoting Library API, A.3), with
// room for more.
func quoteBody(measurement [measurementSize]byte, data attest.ReportData, more int) []byte {
	raw := make([]byte, tdxSigned, tdxSigned+more)
	binary.LittleEndian.PutUint16(raw, 4)
	binary.LittleEndian.PutUint16(raw[2:], 2)
	binary.LittleEndian.PutUint32(raw[4:], 0x81)
	copy(raw[12:], must(hex.DecodeString("939a7233f79c4ca9940a0db3957f0607"))) // Intel's QE vendor id
	body := raw[tdxHeader:]
	copy(body, bytes.Repeat([]byte{tdxSVN}, 16))
	body[0], body[1] = 5, 1                           // TDX module 1.5, at version 5
	body[123] = 1 << 4                                // SEPT_VE_DISABLE
	binary.LittleEndian.PutUint64(body[128:], tdXFAM) // extended features
	copy(body[136:], measurement[:])                  // MRTD
	copy(body[520:], data[:])                         // report data
	for i := range 4 {
		rtmr := sha256.Sum256(binary.LittleEndian.AppendUint32(measurement[:], uint32(i)))
		copy(body[328+48*i:], rtmr[:])
	}
	return raw
}

// certification returns what follows a quote's signature: the attestation key, and the
// report of the enclave that holds it, signed by the PCK, with the PCK's chain.
func certification(key *ecdsa.PublicKey, pck *ecdsa.PrivateKey, chain []byte, signer string) []byte {
	point := must(key.Bytes())[1:]
	auth := make([]byte, 32)
	for i := range auth {
		auth[i] = byte(i)
	}
	report := make([]byte, 384)
	copy(report, bytes.Repeat([]byte{pckSVN}, 16))
	report[48] = 0x15 // attributes: initialised, 64 bit, provisioning key; not in debug mode
	copy(report[128:], must(hex.DecodeString(signer)))
	binary.LittleEndian.PutUint16(report[256:], qeProdID)
	binary.LittleEndian.PutUint16(report[258:], qeSVN)
	named := sha256.Sum256(slices.Concat(point, auth))
	copy(report[320:], named[:])

	inner := slices.Concat(report, must(sign256(pck, report)))
	inner = append(binary.LittleEndian.AppendUint16(inner, uint16(len(auth))), auth...)
	inner = append(typed(inner, 5, len(chain)), chain...)
	return append(typed(slices.Clone(point), 6, len(inner)), inner...)
}

// typed appends the head of certification data.
func typed(dst []byte, kind uint16, size int) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint16(dst, kind), uint32(size))
}
