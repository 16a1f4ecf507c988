package attesttest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"unicode/utf16"

	"github.com/attestmesh/meshnode/attest"
)

// Numbers of the TPM 2.0 Library, Part 2.
const (
	tpmMagic     = 0xff544347
	tpmQuote     = 0x8018
	tpmCertify   = 0x8017
	tpmRSASSA    = 0x0014
	tpmECDSA     = 0x0018
	tpmRegisters = 24
)

var tpmHashes = map[crypto.Hash]uint16{crypto.SHA1: 0x0004, crypto.SHA256: 0x000b, crypto.SHA384: 0x000c}

// SoftTPM is a TPM made of memory, with banks of SHA-1 and SHA-256: for evidence that no TPM
// would give. It is for one goroutine.
type SoftTPM struct {
	// Key signs quotes; whoever holds a SoftTPM may sign what he likes.
	Key crypto.Signer
	// Resets and Restarts are the counters it shows.
	Resets, Restarts uint32

	banks map[crypto.Hash]*[tpmRegisters][]byte
	log   []byte
	ima   []byte
}

// NewSoftTPM returns a TPM after a reset whose key is of P-256, or RSA of 2048 bits. Only two
// RSA keys are made in a process; TPMs take turns.
func NewSoftTPM(useRSA bool) *SoftTPM {
	t := &SoftTPM{Resets: 3, banks: map[crypto.Hash]*[tpmRegisters][]byte{}, log: logHeader()}
	for h := range tpmHashes {
		if h == crypto.SHA384 {
			continue
		}
		t.banks[h] = new([tpmRegisters][]byte)
		for n := range tpmRegisters {
			t.banks[h][n] = make([]byte, h.Size())
		}
	}
	if useRSA {
		t.Key = tpmRSAKeys()[rsaTurn.Add(1)%2]
	} else {
		t.Key = newP256()
	}
	return t
}

var (
	rsaTurn    atomic.Uint32
	tpmRSAKeys = sync.OnceValue(func() (out [2]*rsa.PrivateKey) {
		for i := range out {
			out[i] = must(rsa.GenerateKey(rand.Reader, 2048))
		}
		return out
	})
)

// Extend extends a register in every bank with the hash of data.
func (t *SoftTPM) Extend(n int, data []byte) {
	for h, bank := range t.banks {
		bank[n] = sum(h, bank[n], sum(h, data))
	}
}

func sum(h crypto.Hash, parts ...[]byte) []byte {
	x := h.New()
	for _, p := range parts {
		x.Write(p)
	}
	return x.Sum(nil)
}

// Measure extends a register with data and logs it as an event of a type.
func (t *SoftTPM) Measure(n int, eventType uint32, data []byte) { t.event(n, eventType, data, data) }

// event extends a register with the hash of what was measured and logs data with it.
func (t *SoftTPM) event(n int, eventType uint32, measured, data []byte) {
	t.Extend(n, measured)
	e := binary.LittleEndian.AppendUint32(nil, uint32(n))
	e = binary.LittleEndian.AppendUint32(e, eventType)
	e = binary.LittleEndian.AppendUint32(e, 2)
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		e = append(binary.LittleEndian.AppendUint16(e, tpmHashes[h]), sum(h, measured)...)
	}
	t.log = append(append(t.log, binary.LittleEndian.AppendUint32(e, uint32(len(data)))...), data...)
}

// logHeader is a crypto-agile log's first event (TCG PC Client Platform Firmware Profile §10.4.5.1).
func logHeader() []byte {
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	spec = binary.LittleEndian.AppendUint32(spec, 2)
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		spec = binary.LittleEndian.AppendUint16(spec, tpmHashes[h])
		spec = binary.LittleEndian.AppendUint16(spec, uint16(h.Size()))
	}
	spec = append(spec, 0)
	e := append(make([]byte, 4), 3, 0, 0, 0)
	e = append(e, make([]byte, 20)...)
	return append(binary.LittleEndian.AppendUint32(e, uint32(len(spec))), spec...)
}

// Types of events (TCG PC Client Platform Firmware Profile §10.4.1).
const (
	evSeparator    = 0x4
	evVersion      = 0x8
	evVariable     = 0x80000001
	evBootServices = 0x80000003
	evAction       = 0x80000007
	// imageLoad is the size of a UEFI_IMAGE_LOAD_EVENT without a path.
	imageLoad = 32
)

// efiGlobal is EFI_GLOBAL_VARIABLE.
var efiGlobal = []byte{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}

// efiVariable is UEFI_VARIABLE_DATA.
func efiVariable(name string, data []byte) []byte {
	text := utf16.Encode([]rune(name))
	out := binary.LittleEndian.AppendUint64(slices.Clone(efiGlobal), uint64(len(text)))
	out = binary.LittleEndian.AppendUint64(out, uint64(len(data)))
	for _, c := range text {
		out = binary.LittleEndian.AppendUint16(out, c)
	}
	return append(out, data...)
}

// Boot measures a boot of firmware and one boot loader, and starts an IMA list.
func (t *SoftTPM) Boot(loader []byte, secureBoot bool) {
	on := []byte{0}
	if secureBoot {
		on[0] = 1
	}
	t.Measure(0, evVersion, []byte("1\x00.\x000\x00\x00\x00"))
	t.Measure(7, evVariable, efiVariable("SecureBoot", on))
	for _, name := range []string{"PK", "KEK"} {
		t.Measure(7, evVariable, efiVariable(name, nil))
	}
	t.Measure(4, evAction, []byte("Calling EFI Application from Boot Option"))
	for n := range 8 {
		t.Measure(n, evSeparator, make([]byte, 4))
	}
	t.event(4, evBootServices, loader, make([]byte, imageLoad))
	var boot []byte
	for n := range 10 {
		boot = append(boot, t.banks[crypto.SHA256][n]...)
	}
	t.Run("boot_aggregate", boot)
}

// Run measures a file into IMA's list and register 10 (template ima-ng).
func (t *SoftTPM) Run(path string, content []byte) {
	field := func(b []byte) []byte { return append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...) }
	data := append(field(append([]byte("sha256:\x00"), sum(crypto.SHA256, content)...)), field([]byte(path+"\x00"))...)
	e := append(binary.LittleEndian.AppendUint32(nil, 10), sum(crypto.SHA1, data)...)
	t.ima = append(append(append(t.ima, e...), field([]byte("ima-ng"))...), field(data)...)
	t.Extend(10, data)
}

// Log returns the TCG event log, IMA the binary list.
func (t *SoftTPM) Log() []byte { return slices.Clone(t.log) }

// IMA returns the list of measured files.
func (t *SoftTPM) IMA() []byte { return slices.Clone(t.ima) }

// Statement is what a quote says; the zero value is a TPM's over no register.
type Statement struct {
	Magic     uint32 // 0: a TPM's
	Type      uint16 // 0: a quote
	Nonce     []byte
	Bank      crypto.Hash
	Registers []int
}

// Quote returns a TPMS_ATTEST and its TPMT_SIGNATURE, made with a hash.
func (t *SoftTPM) Quote(s Statement, with crypto.Hash) (statement, signature []byte) {
	if s.Magic == 0 {
		s.Magic = tpmMagic
	}
	if s.Type == 0 {
		s.Type = tpmQuote
	}
	out := binary.BigEndian.AppendUint32(nil, s.Magic)
	out = binary.BigEndian.AppendUint16(out, s.Type)
	out = sized(out, append([]byte{0, 0x0b}, sum(crypto.SHA256, []byte("name"))...))
	out = sized(out, s.Nonce)
	out = binary.BigEndian.AppendUint64(out, 123456)
	out = binary.BigEndian.AppendUint32(out, t.Resets)
	out = binary.BigEndian.AppendUint32(out, t.Restarts)
	out = append(out, 1)
	out = binary.BigEndian.AppendUint64(out, 0x2020031200120003)
	out = binary.BigEndian.AppendUint32(out, 1)
	out = binary.BigEndian.AppendUint16(out, tpmHashes[s.Bank])
	bits, digest := make([]byte, 3), with.New()
	for _, n := range s.Registers {
		bits[n/8] |= 1 << (n % 8)
	}
	for n := range tpmRegisters {
		if bits[n/8]>>(n%8)&1 == 1 {
			digest.Write(t.banks[s.Bank][n])
		}
	}
	out = sized(append(append(out, 3), bits...), digest.Sum(nil))
	return out, t.Sign(out, with)
}

func sized(dst, b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(b))), b...)
}

// Sign returns a TPMT_SIGNATURE over anything.
func (t *SoftTPM) Sign(message []byte, with crypto.Hash) []byte {
	digest := sum(with, message)
	if _, ok := t.Key.(*rsa.PrivateKey); ok {
		out := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, tpmRSASSA), tpmHashes[with])
		return sized(out, must(t.Key.Sign(rand.Reader, digest, with)))
	}
	r, s, err := ecdsa.Sign(rand.Reader, t.Key.(*ecdsa.PrivateKey), digest)
	if err != nil {
		panic(fmt.Sprintf("attesttest: %v", err))
	}
	out := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, tpmECDSA), tpmHashes[with])
	return sized(sized(out, r.FillBytes(make([]byte, 32))), s.FillBytes(make([]byte, 32)))
}

// PCRs returns the values of a bank in JSON.
func (t *SoftTPM) PCRs(bank crypto.Hash) []byte {
	text := map[string]string{}
	for n, v := range t.banks[bank] {
		text[fmt.Sprint(n)] = hex.EncodeToString(v)
	}
	name := map[crypto.Hash]string{crypto.SHA1: "sha1", crypto.SHA256: "sha256"}[bank]
	return must(json.Marshal(map[string]any{name: text}))
}

// stable returns the measurement of the boot: SHA-256 over the registers that stay.
func (t *SoftTPM) stable() string {
	var b bytes.Buffer
	for _, n := range []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 14} {
		b.Write(t.banks[crypto.SHA256][n])
	}
	return hex.EncodeToString(sum(crypto.SHA256, b.Bytes()))
}

// allRegisters are 0 to 23.
func allRegisters() (out []int) {
	for n := range tpmRegisters {
		out = append(out, n)
	}
	return out
}

// items returns a bare quote over a nonce with its logs; f is what is wrong with it.
func (t *SoftTPM) items(f Forgery, nonce []byte) []attest.Item {
	s, with := Statement{Nonce: nonce, Bank: crypto.SHA256, Registers: allRegisters()}, crypto.SHA256
	switch f {
	case ForeignStatement:
		s.Magic = tpmMagic ^ 1
	case OtherStatement:
		s.Type = tpmCertify
	case NoRegisters:
		s.Registers = nil
	case MissingRegisters:
		s.Registers = slices.DeleteFunc(s.Registers, func(n int) bool { return n == 7 })
	case WeakBank:
		s.Bank = crypto.SHA1
	case WeakSignature:
		with = crypto.SHA1
	}
	signer := t
	if f == StolenName {
		signer = &SoftTPM{Key: newP256(), Resets: t.Resets, banks: t.banks}
	}
	statement, signature := signer.Quote(s, with)
	out := []attest.Item{{Type: attest.TypeTPMAttest, Data: statement}, {Type: attest.TypeTPMSignature, Data: signature},
		{Type: attest.TypeTPMPCRs, Data: t.PCRs(s.Bank)}, {Type: attest.TypeEventLog, Data: t.Log()}, {Type: attest.TypeIMALog, Data: t.IMA()}}
	switch f {
	case EditedLog:
		log := out[3].Data
		log[len(log)-imageLoad-4-1] ^= 1 // the last event's digest of SHA-256
	case EditedRegister:
		out[2].Data = bytes.Replace(out[2].Data, []byte(`:"0`), []byte(`:"1`), 1)
	}
	return out
}
