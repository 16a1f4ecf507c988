package attesttest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/tdx"
)

// TDX is a fake Intel. It is immutable.
type TDX struct {
	intel, foreign fakeIntel
	platform       TDXPlatform
	shared         []attest.Item // current collateral, where it names no platform
}

// TDXPlatform is what the platforms and TDs of a forger are, and what Intel says about them.
type TDXPlatform struct {
	Version    uint16 // of the quotes: 4 or 5
	BodyType   uint16 // of version 5: 2 for TD reports of TDX 1.0, 3 for those of 1.5
	Processor  bool   // certified by the processor CA, not the platform CA
	SGXSVN     uint8  // every component of the SGX TCB
	PCESVN     uint16
	Collateral TDXCollateral

	// Header, TD and QE change the header of a quote, the TD report and the report of the
	// quoting enclave before they are signed. Nil changes nothing.
	Header, TD, QE func([]byte)
	// Items changes what goes with a quote. Nil changes nothing.
	Items func([]attest.Item) []attest.Item
}

// NewTDX returns the forger of a name: the same name gives the same root in every run. Its
// quotes are of version 4.
func NewTDX(name string) *TDX {
	f := &TDX{intel: newFakeIntel(name), foreign: newFakeIntel("not " + name)}
	return f.With(func(p *TDXPlatform) {
		*p = TDXPlatform{Version: 4, SGXSVN: 3, PCESVN: 13, Collateral: defaultCollateral()}
	})
}

// With returns a forger under the same root with other platforms.
func (f *TDX) With(edit func(*TDXPlatform)) *TDX {
	out := *f
	out.platform.Collateral = f.platform.Collateral.clone()
	edit(&out.platform)
	if p := out.platform; p.Version != 4 && (p.Version != 5 || p.BodyType != 2 && p.BodyType != 3) {
		panic(fmt.Sprintf("attesttest: no TDX quote of version %d with body %d", p.Version, p.BodyType))
	}
	out.shared = out.intel.items(&out.platform, nil)
	return &out
}

// Kind is the kind of evidence the forger makes.
func (*TDX) Kind() string { return attest.KindTDX }

// Root is the one to believe for the forged evidence to be genuine.
func (f *TDX) Root() *x509.Certificate { return f.intel.root }

// Scheme returns a new Scheme that believes the forger's root.
func (f *TDX) Scheme() attest.Scheme { return must(tdx.WithRoot(f.intel.root)) }

// Collateral returns what the forger's Intel says about all its platforms.
func (f *TDX) Collateral() []attest.Item { return slices.Clone(f.shared) }

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
	m.pck = f.intel.pck(&m.pckKey.PublicKey, &f.platform)
	m.certification = m.certify(f.intel, m.pck, f.platform.QE)
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
	key, certified, items := m.key, m.certification, m.shared
	said := m.platform
	if said.Collateral.RevokePCK {
		items = m.intel.items(&said, m.pck)
	}
	switch f {
	case WrongRoot:
		certified = m.certify(m.foreign, m.foreign.pck(&m.pckKey.PublicKey, &m.platform), m.platform.QE)
	case StolenName:
		key = newP256()
	case ForeignEnclave:
		certified = m.certify(m.intel, m.pck, func(report []byte) { clear(report[128:160]) })
	case RevokedPlatform:
		said.Collateral.RevokePCK = true
		items = m.intel.items(&said, m.pck)
	case StaleCollateral:
		old := Validity{validFrom.AddDate(-1, 0, 0), validFrom.AddDate(0, 0, -1)}
		said.Collateral.Info, said.Collateral.QE, said.Collateral.CRL = old, old, old
		items = m.intel.items(&said, m.pck)
	case NoCollateral:
		items = nil
	}
	signed := m.signed(f, measurement, data)
	signature, err := sign256(key, signed)
	if err != nil {
		return attest.Evidence{}, 0, err
	}
	quote := binary.LittleEndian.AppendUint32(signed, uint32(len(signature)+len(certified)))
	quote = slices.Concat(quote, signature, certified)
	ev := attest.Evidence{Kind: attest.KindTDX, Items: append([]attest.Item{{Type: attest.TypeTDXQuote, Data: quote}}, items...)}
	if m.platform.Items != nil {
		ev.Items = m.platform.Items(ev.Items)
	}
	// PEM around the certificates can bear another line end; what is before it cannot.
	return ev, bytes.Index(quote, []byte("-----BEGIN")), nil
}

// signed returns header and TD report (Intel TDX DCAP Quoting Library API, A.3 and A.4).
func (m *tdxMachine) signed(f Forgery, measurement [measurementSize]byte, data attest.ReportData) []byte {
	header := make([]byte, 48)
	binary.LittleEndian.PutUint16(header, m.platform.Version)
	binary.LittleEndian.PutUint16(header[2:], 2)
	binary.LittleEndian.PutUint32(header[4:], 0x81)
	copy(header[12:], must(hex.DecodeString("939a7233f79c4ca9940a0db3957f0607"))) // Intel's QE vendor id
	body := tdReport(measurement, data)
	if m.platform.Version == 5 {
		if m.platform.BodyType == 2 {
			body = body[:584]
		}
		header = binary.LittleEndian.AppendUint16(header, m.platform.BodyType)
		header = binary.LittleEndian.AppendUint32(header, uint32(len(body)))
	} else {
		body = body[:584]
	}
	switch f {
	case DebugGuest:
		body[120] |= 1
	case OldTCB:
		body[2] = tdxSVN - 1
	}
	if m.platform.TD != nil {
		m.platform.TD(body)
	}
	if m.platform.Header != nil {
		m.platform.Header(header)
	}
	return append(header, body...)
}

// tdReport returns a TD report of TDX 1.5; one of 1.0 is its first 584 bytes.
func tdReport(measurement [measurementSize]byte, data attest.ReportData) []byte {
	body := make([]byte, 648)
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
	copy(body[584:], body[:16]) // the module that runs is the one that launched the TD
	return body
}

// certify returns what follows a quote's signature: the attestation key, and the report of
// the enclave that holds it, signed by the PCK, with the PCK's chain.
func (m *tdxMachine) certify(intel fakeIntel, pck *x509.Certificate, edit func([]byte)) []byte {
	point := must(m.key.PublicKey.Bytes())[1:]
	auth := make([]byte, 32)
	for i := range auth {
		auth[i] = byte(i)
	}
	report := make([]byte, 384)
	copy(report, bytes.Repeat([]byte{m.platform.SGXSVN}, 16))
	report[48] = 0x15 // attributes: initialised, 64 bit, provisioning key; not in debug mode
	copy(report[128:], must(hex.DecodeString(intelQESigner)))
	binary.LittleEndian.PutUint16(report[256:], qeProdID)
	binary.LittleEndian.PutUint16(report[258:], qeSVN)
	named := sha256.Sum256(slices.Concat(point, auth))
	copy(report[320:], named[:])
	if edit != nil {
		edit(report)
	}
	chain := intel.chainPEM(pck, &m.platform)
	inner := slices.Concat(report, must(sign256(m.pckKey, report)))
	inner = append(binary.LittleEndian.AppendUint16(inner, uint16(len(auth))), auth...)
	inner = append(typed(inner, 5, len(chain)), chain...)
	return append(typed(slices.Clone(point), 6, len(inner)), inner...)
}

// typed appends the head of certification data.
func typed(dst []byte, kind uint16, size int) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint16(dst, kind), uint32(size))
}
