package eventlog

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/cursor"
)

// Facts returns what a log proves about a boot, given quoted register values of one bank
// (RTMRs 0 to 3 in bank "sha384" for a TD). Registers that are not quoted, or whose replay
// differs from the quoted value, contribute nothing. It is nil if the log has no such bank.
//
// A digest is all that a register binds. The type of an event, its data where they do not
// hash to the digest, and names of what was hashed are the log's word, which whoever hands
// the log over can change. So:
//
//   - Secure Boot is on if the digest of that variable with value 1 was extended, once,
//     before the separator that ends the firmware's part, and no digest of any other value
//     anywhere. Types and data are not looked at.
//   - PK, KEK, db and dbx are those whose data hash to the digests that follow directly.
//     In RTMR0 a host can have tables of its making measured too; it cannot put them there.
//   - Authorities and the SBAT level are what follows the separator. An operating system
//     that was started in spite of them could add to them. They are not taken from RTMR0.
//   - Every digest in the registers of images is a component, unless bytes are known that
//     hash to it and are no PE image. Authenticode digests are over bytes that begin with a
//     PE header, so no image can be passed off as something else.
//   - A GRUB command is text that hashes to the digest. One that loads a kernel holds a
//     command line; what cannot be read in a register of command lines counts as one.
//   - Files are all digests in the loader's registers that are no text.
//
// In a TD the registers of command lines and of files are one, RTMR2: a command line that
// was passed off as a file is found only by a policy that lists the files too.
//
// Data that should hash to their digest, by the type the log gives, and do not, are damage:
// a contradiction, as is a log that says two things.
func (l Log) Facts(bank string, quoted map[int][]byte) *attest.BootFacts {
	hash, ok := bankHash(bank)
	if !ok || l.Banks[bank] == nil {
		return nil
	}
	f := &facts{BootFacts: attest.BootFacts{Format: l.Format, Bank: bank, Events: l.Entries}, hash: hash, td: l.confidential()}
	byRegister := map[int][]event{}
	for _, e := range l.events {
		if (e.kind != evNoAction || l.Format == FormatDstack) && e.digests.of(hash) != nil {
			byRegister[e.register] = append(byRegister[e.register], e)
		}
	}
	for n := range maxRegister + 1 {
		events, value := byRegister[n], l.Banks[bank][n]
		if len(events) == 0 || value == nil || !bytes.Equal(quoted[n], value) {
			continue
		}
		f.register(n, events)
	}
	return &f.BootFacts
}

// Strongest names the strongest bank of a log, "" if there is none.
func (l Log) Strongest() string {
	for _, bank := range []string{"sha512", "sha384", "sha256", "sha1"} {
		if len(l.Banks[bank]) > 0 {
			return bank
		}
	}
	return ""
}

func bankHash(name string) (crypto.Hash, bool) {
	for hash, bank := range bankNames {
		if bank == name {
			return hash, true
		}
	}
	return 0, false
}

// facts are facts in the making.
type facts struct {
	attest.BootFacts
	hash crypto.Hash
	td   bool
}

type meaning int

const (
	_ meaning = iota
	separator
	errorSeparator
	secureBootOn
	secureBootOff
	debugMode
	dmaProtectionOff
	action
)

// meanings are the digests of events that are always the same, by bank.
var meanings = func() map[crypto.Hash]map[string]meaning {
	out := map[crypto.Hash]map[string]meaning{}
	for _, hash := range banks {
		out[hash] = meaningsOf(hash)
	}
	return out
}()

func meaningsOf(hash crypto.Hash) map[string]meaning {
	out := map[string]meaning{}
	add := func(m meaning, data ...[]byte) {
		for _, d := range data {
			out[string(sum(hash, d))] = m
		}
	}
	add(separator, make([]byte, 4), bytes.Repeat([]byte{0xff}, 4))
	add(errorSeparator, []byte{1, 0, 0, 0})
	on := variable{guid: globalVariable, name: "SecureBoot", value: []byte{1}}
	off := on
	add(secureBootOn, on.encode())
	for _, v := range [][]byte{nil, {0}} {
		off.value = v
		add(secureBootOff, off.encode())
	}
	// EV_EFI_ACTION strings of PFP §10.4.4; some firmware counts the final zero.
	for m, texts := range map[meaning][]string{
		debugMode:        {"UEFI Debug Mode"},
		dmaProtectionOff: {"DMA Protection Disabled"},
		action: {"Calling EFI Application from Boot Option", "Returning from EFI Application from Boot Option",
			"Calling EFI Application", "Exit Boot Services Invocation", "Exit Boot Services Returned with Failure",
			"Exit Boot Services Returned with Success", "BOOT ATTEMPTS OMITTED", "Entering ROM Based Setup",
			"Booting to ROM Based Setup", "Booting BCV Device", "Returned INT 18", "Returned INT 19"},
	} {
		for _, t := range texts {
			add(m, []byte(t), append([]byte(t), 0))
		}
	}
	return out
}

func (f *facts) digest(data []byte) []byte { return sum(f.hash, data) }

func (f *facts) meaning(e event) meaning { return meanings[f.hash][string(e.digests.of(f.hash))] }

// hashes reports whether data are what an event's digest was made of.
func (f *facts) hashes(e event, data []byte) bool {
	return bytes.Equal(f.digest(data), e.digests.of(f.hash))
}

// register takes the facts of one register (PFP §3.3.4; UEFI 2.10 §38.4.1 for RTMRs).
func (f *facts) register(n int, events []event) {
	if f.td {
		switch n {
		case 0:
			f.secureBoot(n, events)
		case 1:
			f.images(n, events)
		case 2:
			f.loader(n, events)
		case 3:
			f.runtime(n, events)
		}
		return
	}
	switch n {
	case 2, 4:
		f.images(n, events)
	case 7:
		f.secureBoot(n, events)
	case 8, 9, 11, 12:
		f.loader(n, events)
	case 14:
		f.mok(events)
	}
}

// name of a register in claims.
func (f *facts) name(n int) string {
	if f.td {
		return fmt.Sprintf("rtmr%d", n)
	}
	return fmt.Sprintf("pcr%d", n)
}

func (f *facts) contradict(format string, args ...any) {
	f.Contradictions = append(f.Contradictions, fmt.Sprintf(format, args...))
}

// images takes what was started. Bytes that hash to the digest and are no image explain
// it; all else is one. That the data of a partition table or a boot option explain nothing
// is damage.
func (f *facts) images(n int, events []event) {
	for _, e := range events {
		switch m := f.meaning(e); {
		case m == errorSeparator && !f.td: // in a TD this may be the value of a boot order
			f.contradict("%s ends with the firmware's error", f.name(n))
		case m != 0 || !image(e.data) && (f.hashes(e, e.data) || f.value(e)):
		default:
			if e.kind == evGPT || e.kind == evVariableBoot || e.kind == evAction {
				f.damaged(n, e)
			}
			f.Components = append(f.Components, attest.BootComponent{Register: f.name(n), Digest: f.hex(e)})
		}
	}
}

// damaged says that an event's data should be what was hashed, by the type that the log
// gives it, and are not. The type decides nothing else.
func (f *facts) damaged(n int, e event) {
	f.contradict("%s: the data of an event of type %#x are not those of its digest %s", f.name(n), e.kind, f.hex(e))
}

// image reports whether bytes begin as what an Authenticode digest is over.
func image(data []byte) bool {
	return bytes.HasPrefix(data, []byte("MZ")) || bytes.HasPrefix(data, []byte("PE"))
}

// value reports whether a digest is that of a variable's value alone, as firmware makes
// it for boot options.
func (f *facts) value(e event) bool {
	v, ok := parseVariable(e.data)
	return ok && !image(v.value) && f.hashes(e, v.value)
}

func (f *facts) hex(e event) string { return hex.EncodeToString(e.digests.of(f.hash)) }

// mok takes the digests of shim's lists.
func (f *facts) mok(events []event) {
	for _, e := range events {
		if f.meaning(e) == 0 {
			f.MOK = append(f.MOK, f.hex(e))
		}
	}
}

// maxLabel bounds texts of the log that are kept.
const maxLabel = 256

// text returns printable ASCII or UTF-8 up to a final zero, "" for anything else.
func text(b []byte) string {
	b = bytes.TrimRight(b, "\x00")
	if len(b) == 0 || len(b) > maxLabel || !utf8.Valid(b) {
		return ""
	}
	for _, r := range string(b) {
		if r < 0x20 && r != '\n' && r != '\t' || r == 0x7f {
			return ""
		}
	}
	return string(b)
}

func decodeUTF16(b []byte) string {
	units := make([]uint16, 0, len(b)/2)
	for i := 0; i+1 < len(b); i += 2 {
		units = append(units, uint16(b[i])|uint16(b[i+1])<<8)
	}
	return strings.TrimRight(string(utf16.Decode(units)), "\x00")
}

// taggedEvent splits an EV_EVENT_TAG's data {u32 id, u32 size, bytes} (PFP §10.4.2.1).
func taggedEvent(data []byte) (bool, []byte) {
	r := cursor.Little(data)
	r.U32()
	content := r.Take(uint64(r.U32()))
	return !r.Short() && r.Len() == 0, content
}
