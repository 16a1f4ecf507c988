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
	version uint32
}

// snpTCB is that of all genuine machines.
var snpTCB = attest.TCB{BootLoader: 3, SNP: 8, Microcode: 115}

// NewSEVSNP returns the forger of reports of a version from 2 to 5 on sevsnp.Milan or
// sevsnp.Genoa. It panics on anything else.
func NewSEVSNP(product string, version uint32) *SEVSNP {
	makers := map[string]func() amdPair{sevsnp.Milan: milan, sevsnp.Genoa: genoa}
	if makers[product] == nil || version < 2 || version > 5 {
		panic(fmt.Sprintf("attesttest: report version %d of %q, want 2 to 5 of Milan or Genoa", version, product))
	}
	return &SEVSNP{makers[product](), version}
}

// Kind is the kind of evidence the forger makes.
func (*SEVSNP) Kind() string { return attest.KindSEVSNP }

// Roots are those to believe for the forged evidence to be genuine.
func (f *SEVSNP) Roots() sevsnp.Roots {
	return sevsnp.Roots{f.amd.named.product: {ARK: f.amd.named.ark, ASK: f.amd.named.ask}}
}

// Scheme returns a new Scheme that believes the forger's roots.
func (f *SEVSNP) Scheme() attest.Scheme { return must(sevsnp.WithRoots(f.Roots())) }

// Policy returns a policy that admits genuine evidence of the measurements, and nothing
// more.
func (f *SEVSNP) Policy(measurements ...string) attest.Policy {
	return attest.Policy{Kinds: []string{attest.KindSEVSNP}, References: references(attest.KindSEVSNP, measurements),
		SEVSNP: &attest.SEVSNPPolicy{AllowSMT: true, VMPL: []uint32{0}, MinimumTCB: map[string]attest.TCB{f.amd.named.product: snpTCB}}}
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
	_, _ = rand.Read(m.chip[:])
	m.vcek = f.amd.named.vcek(&m.key.PublicKey, m.chip, snpTCB)
	return newAttester(m, measurement)
}

func newP384() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)) }

// snpMachine is a chip with the key and certificate of its TCB.
type snpMachine struct {
	*SEVSNP
	chip [64]byte
	key  *ecdsa.PrivateKey
	vcek []byte
}

func (*snpMachine) kind() string { return attest.KindSEVSNP }

func (*snpMachine) forgeries() []Forgery {
	return []Forgery{OtherTCB, OtherChip, NoCertificate, DebugGuest, WrongVMPL, OldTCB}
}

// The signature, from 0x2a0 on, is R and S of 72 bytes each in a field of 512.
const (
	snpReportSize = 0x4a0
	snpSigned     = 0x2a0
	snpSolid      = snpSigned + 2*72
)

func (m *snpMachine) evidence(f Forgery, measurement [measurementSize]byte, data attest.ReportData) (attest.Evidence, int, error) {
	key, cert, tcb, chip := m.key, m.vcek, snpTCB, m.chip
	switch f {
	case WrongRoot:
		cert = m.amd.foreign.vcek(&key.PublicKey, chip, tcb)
	case StolenName:
		key = newP384()
	case OtherTCB:
		tcb.Microcode++
	case OtherChip:
		chip[0] ^= 1
	case OldTCB:
		tcb.Microcode--
		key = newP384() // an endorsement key is of one TCB
		cert = m.amd.named.vcek(&key.PublicKey, chip, tcb)
	}
	raw := m.report(measurement, data, chip, tcb)
	switch f {
	case DebugGuest:
		raw[0x0a] |= 1 << 3
	case WrongVMPL:
		raw[0x30] = 3
	}
	if err := signSNP(raw, key); err != nil {
		return attest.Evidence{}, 0, err
	}
	ev := attest.Evidence{Kind: attest.KindSEVSNP, Items: []attest.Item{{Type: attest.TypeSEVSNPReport, Data: raw}}}
	if f != NoCertificate {
		ev.Items = append(ev.Items, attest.Item{Type: attest.TypeCertificate, Data: cert})
	}
	return ev, snpSolid, nil
}

// report returns an unsigned report (AMD 56860, table "ATTESTATION_REPORT Structure").
func (m *snpMachine) report(measurement [measurementSize]byte, data attest.ReportData, chip [64]byte, tcb attest.TCB) []byte {
	raw := make([]byte, snpReportSize)
	binary.LittleEndian.PutUint32(raw, m.version)
	binary.LittleEndian.PutUint64(raw[0x08:], 1<<17|1<<16) // the bit that must be 1; SMT allowed
	raw[0x34] = 1                                          // ECDSA P-384 with SHA-384
	copy(raw[0x50:], data[:])
	copy(raw[0x90:], measurement[:])
	version := []byte{tcb.BootLoader, tcb.TEE, 0, 0, 0, 0, tcb.SNP, tcb.Microcode}
	for _, at := range []int{0x38, 0x180, 0x1e0, 0x1f0} { // current, reported, committed, launch
		copy(raw[at:], version)
	}
	if m.version >= 3 {
		raw[0x188], raw[0x189] = 0x19, 0x01
		if m.amd.named.product == sevsnp.Genoa {
			raw[0x189] = 0x11
		}
	}
	copy(raw[0x1a0:], chip[:])
	for _, at := range []int{0x1e8, 0x1ec} { // current and committed firmware 1.55.21
		copy(raw[at:], []byte{21, 55, 1})
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
