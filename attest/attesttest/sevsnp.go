package attesttest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/sevsnp"
)

// SEVSNP is a fake AMD. All of one process share one root for each product.
type SEVSNP struct {
	amd     amdPair
	part    snpPart
	version uint32
	vlek    bool
}

// snpPart is a processor: its product line, whose roots it has, and its CPUID.
type snpPart struct {
	product                 string
	family, model, stepping byte
}

var snpParts = map[string]snpPart{
	sevsnp.Milan: {sevsnp.Milan, 0x19, 0x01, 1}, sevsnp.Genoa: {sevsnp.Genoa, 0x19, 0x11, 1}, sevsnp.Turin: {sevsnp.Turin, 0x1a, 0x02, 1},
	"Bergamo": {sevsnp.Genoa, 0x19, 0xa0, 2}, "Siena": {sevsnp.Genoa, 0x19, 0xa0, 1}, "Turin dense": {sevsnp.Turin, 0x1a, 0x11, 0},
}

// snpTCBs are those of all genuine machines.
var snpTCBs = map[string]attest.TCB{
	sevsnp.Milan: {BootLoader: 3, SNP: 8, Microcode: 115}, sevsnp.Genoa: {BootLoader: 3, SNP: 8, Microcode: 115},
	sevsnp.Turin: {FMC: 1, BootLoader: 1, SNP: 2, Microcode: 71},
}

const (
	turinChip   = 8 // bytes of Turin's chip id
	snpProvider = "CN=cc-test.example"
)

// NewSEVSNP returns the forger of reports of a version from 2 to 5 on a part: sevsnp.Milan,
// sevsnp.Genoa, "Bergamo", "Siena", sevsnp.Turin or "Turin dense". They are signed with
// VCEKs. It panics on anything else.
func NewSEVSNP(part string, version uint32) *SEVSNP {
	p, ok := snpParts[part]
	if !ok || version < 2 || version > 5 {
		panic(fmt.Sprintf("attesttest: report version %d of %q, want 2 to 5 of Milan, Genoa, Bergamo, Siena, Turin or Turin dense", version, part))
	}
	return &SEVSNP{amd: amdPairs[p.product](), part: p, version: version}
}

// VLEK returns the forger of the same reports signed with VLEKs, of one provider.
func (f *SEVSNP) VLEK() *SEVSNP {
	g := *f
	g.vlek = true
	return &g
}

// Kind is the kind of evidence the forger makes.
func (*SEVSNP) Kind() string { return attest.KindSEVSNP }

// Roots are those to believe for the forged evidence to be genuine.
func (f *SEVSNP) Roots() sevsnp.Roots {
	a := f.amd.named
	return sevsnp.Roots{a.product: {ARK: a.ark, ASK: a.ask, ASVK: a.asvk}}
}

// Scheme returns a new Scheme that believes the forger's roots.
func (f *SEVSNP) Scheme() attest.Scheme { return must(sevsnp.WithRoots(f.Roots())) }

// CRL returns a current revocation list of the forger's, which names nothing.
func (f *SEVSNP) CRL() []byte { return f.amd.named.current }

// Policy returns a policy that admits genuine evidence of the measurements, and nothing
// more.
func (f *SEVSNP) Policy(measurements ...string) attest.Policy {
	p := attest.StrictPolicy().SEVSNP
	floor := map[string]attest.TCB{f.part.product: snpTCBs[f.part.product]}
	p.MinimumTCB, p.MinimumLaunchTCB, p.MinimumFirmware = floor, floor, map[string]attest.FirmwareVersion{f.part.product: {Major: 1, Minor: 55, Build: 21}}
	p.AllowMaskedID, p.AllowProvisionalFirmware, p.AllowVLEK, p.VMPL = false, false, f.vlek, []uint32{0}
	p.CSPIDs = []string{snpProvider}
	return attest.Policy{Kinds: []string{attest.KindSEVSNP}, References: references(attest.KindSEVSNP, measurements), SEVSNP: p}
}

func references(kind string, measurements []string) (out []attest.Reference) {
	for i, m := range measurements {
		out = append(out, attest.Reference{ID: fmt.Sprintf("reference %d", i), Kind: kind, Measurement: m})
	}
	return out
}

// Attester returns an attester on a machine of its own whose genuine evidence has a
// measurement: 96 characters of lower-case hex, see Measurement. It panics on any other.
func (f *SEVSNP) Attester(measurement string) *Attester {
	m := &snpMachine{SEVSNP: f, key: newP384()}
	id := m.chip[:]
	if f.part.product == sevsnp.Turin {
		id = id[:turinChip]
	}
	_, _ = rand.Read(id)
	m.cert = m.endorsed(f.amd.named, m.key, m.chip, snpTCBs[f.part.product])
	return newAttester(m, measurement)
}

func newP384() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)) }

// snpMachine is a chip with the key and certificate of its TCB.
type snpMachine struct {
	*SEVSNP
	chip [64]byte
	key  *ecdsa.PrivateKey
	cert []byte
}

func (*snpMachine) kind() string { return attest.KindSEVSNP }

func (m *snpMachine) forgeries() []Forgery {
	out := []Forgery{OtherTCB, NoCertificate, Unsigned, NewerFormat, RevokedPlatform, DebugGuest, MigratableGuest, WrongVMPL, OldTCB, MaskedChip}
	if !m.vlek { // a VLEK is of no chip
		out = append(out, OtherChip)
	}
	return out
}

// endorsed certifies a key, with the machine's kind of endorsement key.
func (m *snpMachine) endorsed(by fakeAMD, key *ecdsa.PrivateKey, chip [64]byte, tcb attest.TCB) []byte {
	if m.vlek {
		return by.vlek(&key.PublicKey, snpProvider, tcb)
	}
	return by.vcek(&key.PublicKey, chip, tcb)
}

// The signature, from 0x2a0 on, is R and S of 72 bytes each in a field of 512.
const (
	snpReportSize = 0x4a0
	snpSigned     = 0x2a0
	snpSolid      = snpSigned + 2*72
)

func (m *snpMachine) evidence(f Forgery, measurement [measurementSize]byte, data attest.ReportData) (attest.Evidence, int, error) {
	key, cert, tcb, chip := m.key, m.cert, snpTCBs[m.part.product], m.chip
	switch f {
	case WrongRoot:
		cert = m.endorsed(m.amd.foreign, key, chip, tcb)
	case StolenName:
		key = newP384()
	case OtherTCB:
		tcb.Microcode++
	case OtherChip:
		chip[0] ^= 1
	case MaskedChip:
		clear(chip[:])
	case OldTCB:
		tcb.Microcode--
		key = newP384() // an endorsement key is of one TCB
		cert = m.endorsed(m.amd.named, key, chip, tcb)
	}
	raw := m.report(measurement, data, chip, tcb)
	switch f {
	case DebugGuest:
		raw[0x0a] |= 1 << 3
	case MigratableGuest:
		raw[0x0a] |= 1 << 2
	case WrongVMPL:
		raw[0x30] = 3
	case NewerFormat:
		raw[0x208] = 1
	case Unsigned:
		raw[0x48] = 2 | 7<<2 // MASK_CHIP_KEY; no key
	}
	if err := signSNP(raw, key); err != nil {
		return attest.Evidence{}, 0, err
	}
	ev := attest.Evidence{Kind: attest.KindSEVSNP, Items: []attest.Item{{Type: attest.TypeSEVSNPReport, Data: raw}}}
	if f != NoCertificate {
		ev.Items = append(ev.Items, attest.Item{Type: attest.TypeCertificate, Data: cert})
	}
	switch f {
	case Unsigned:
		clear(raw[snpSigned:])
	case RevokedPlatform:
		ev.Items = append(ev.Items, attest.Item{Type: attest.TypeCRL, Data: m.amd.named.listed})
	}
	return ev, snpSolid, nil
}

// report returns an unsigned report (AMD 56860, table "ATTESTATION_REPORT Structure").
func (m *snpMachine) report(measurement [measurementSize]byte, data attest.ReportData, chip [64]byte, tcb attest.TCB) []byte {
	raw := make([]byte, snpReportSize)
	binary.LittleEndian.PutUint32(raw, m.version)
	binary.LittleEndian.PutUint64(raw[0x08:], 1<<17|1<<16) // the bit that must be 1; SMT allowed
	raw[0x34] = 1                                          // ECDSA P-384 with SHA-384
	if m.vlek {
		raw[0x48] = 1 << 2
	}
	copy(raw[0x50:], data[:])
	copy(raw[0x90:], measurement[:])
	version := []byte{tcb.BootLoader, tcb.TEE, 0, 0, 0, 0, tcb.SNP, tcb.Microcode}
	if m.part.product == sevsnp.Turin {
		version = []byte{tcb.FMC, tcb.BootLoader, tcb.TEE, tcb.SNP, 0, 0, 0, tcb.Microcode}
	}
	for _, at := range []int{0x38, 0x180, 0x1e0, 0x1f0} { // current, reported, committed, launch
		copy(raw[at:], version)
	}
	if m.version >= 3 {
		copy(raw[0x188:], []byte{m.part.family, m.part.model, m.part.stepping})
	}
	copy(raw[0x1a0:], chip[:])
	for _, at := range []int{0x1e8, 0x1ec} { // current and committed firmware 1.55.21
		copy(raw[at:], []byte{21, 55, 1})
	}
	if m.version >= 5 {
		raw[0x1f8], raw[0x200] = 1, 1 // mitigation vectors
	}
	return raw
}

func signSNP(raw []byte, key *ecdsa.PrivateKey) error {
	digest := sha512.Sum384(raw[:snpSigned])
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		return err
	}
	for i, v := range [][]byte{r.FillBytes(make([]byte, 72)), s.FillBytes(make([]byte, 72))} {
		slices.Reverse(v)
		copy(raw[snpSigned+72*i:], v)
	}
	return nil
}
