package eventlog

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"
	"github.com/google/go-eventlog/testdata"
)

// realLogs are logs of machines that others published.
func realLogs() map[string][]byte {
	return map[string][]byte{"arch": testdata.ArchLinuxWorkstationEventLog, "debian 10": testdata.Debian10EventLog,
		"glinux": testdata.GlinuxAlexEventLog, "rhel 8": testdata.Rhel8EventLog, "ubuntu 18.04": testdata.Ubuntu1804AmdSevEventLog,
		"ubuntu 21.04": testdata.Ubuntu2104NoDbxEventLog, "ubuntu 21.04 off": testdata.Ubuntu2104NoSecureBootEventLog,
		"ubuntu 24.04": testdata.Ubuntu2404AmdSevSnpEventLog, "cos 85": testdata.Cos85AmdSevEventLog, "cos 93": testdata.Cos93AmdSevEventLog,
		"cos 101": testdata.Cos101AmdSevEventLog, "cos 121": testdata.Cos121AmdSevEventLog, "server": testdata.GdcHost,
		"ubuntu tdx": testdata.Ubuntu2404IntelTdxA4HighGpu8GEventLog, "cos 125": testdata.Cos125IntelTdxSecureBootA4HighGpu8GEventLog,
		"gmes": testdata.HostGMESEventLog}
}

// TestLibraryReplaysTheSame: every register of ours explains, for go-eventlog, the log.
func TestLibraryReplaysTheSame(t *testing.T) {
	compared := 0
	for name, raw := range realLogs() {
		log, err := Parse(raw)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		parsed, err := tcg.ParseEventLog(raw, tcg.ParseOpts{})
		if err != nil {
			t.Fatal(err)
		}
		for _, alg := range parsed.Algs {
			hash := register.HashAlg(alg).CryptoHash()
			var bank []register.MR
			for n, v := range log.Banks[bankNames[hash]] {
				bank = append(bank, register.PCR{Index: n, Digest: v, DigestAlg: hash})
			}
			if _, err := parsed.Verify(bank); err != nil || len(bank) == 0 {
				t.Errorf("%s, %v: %d registers, %v", name, hash, len(bank), err)
			}
			compared += len(bank)
		}
	}
	if compared < 300 {
		t.Errorf("only %d registers were compared", compared)
	}
}

// TestFactsOfRealLogs: what is known about these machines is found, and nothing in them
// contradicts itself.
func TestFactsOfRealLogs(t *testing.T) {
	on := map[string]bool{"debian 10": true, "rhel 8": true, "cos 85": true, "cos 93": true, "cos 101": true, "cos 121": true, "cos 125": true}
	for name, raw := range realLogs() {
		f := factsOf(t, raw)
		if name == "gmes" { // measured by a board controller, not by UEFI
			if f.SecureBoot != nil || f.DBX != nil {
				t.Errorf("%s: %+v", name, f)
			}
			continue
		}
		if f.SecureBoot == nil || *f.SecureBoot != on[name] || len(f.Contradictions) != 0 || f.FirmwareDebug || f.DMAUnprotected != (name == "server") {
			t.Errorf("%s: %+v", name, f)
		}
		if f.PK == nil || f.KEK == nil || f.DB == nil || f.DBX == nil || len(f.Components) == 0 || *f.SecureBoot && len(f.Authorities) == 0 {
			t.Errorf("%s: %+v", name, f)
		}
		for _, l := range f.CommandLines {
			if l.Source == "unread" || !strings.Contains(l.Text, "vmlinuz") && name != "arch" {
				t.Errorf("%s: command line %+v", name, l)
			}
		}
		if len(f.CommandLines) == 0 && name != "debian 10" && name != "glinux" { // whose GRUB measures nothing
			t.Errorf("%s: no command line", name)
		}
	}
	f := factsOf(t, testdata.Rhel8EventLog)
	if len(f.DBX.Hashes) != 183 || f.Authorities[1].Variable != "Shim" || !strings.Contains(f.Authorities[1].Subject, "Red Hat Secure Boot CA") {
		t.Errorf("rhel 8: %d hashes in dbx, %+v", len(f.DBX.Hashes), f.Authorities)
	}
}

// TestEveryBitOfALog: a log with a bit flipped is refused, does not replay to the quoted
// registers, or proves exactly the same. The smaller log is swept whole, of the one with
// certificates every thirteenth bit.
func TestEveryBitOfALog(t *testing.T) {
	for name, step := range map[string]int{"bios-off": sampled(1, 41), "bios": sampled(13, 337)} {
		raw := bytes.Clone(read(t, "testdata", name))
		log, err := Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		quoted := log.Banks["sha256"]
		want := log.Facts("sha256", quoted)
		same, refused := 0, 0
		for bit := 0; bit < 8*len(raw); bit += step {
			raw[bit/8] ^= 1 << (bit % 8)
			flipped, err := Parse(raw)
			if err == nil && reflect.DeepEqual(flipped.Banks["sha256"], quoted) {
				got := flipped.Facts("sha256", quoted)
				if len(got.Contradictions) > 0 {
					refused++
				} else if same++; !reflect.DeepEqual(got, want) {
					t.Fatalf("%s: bit %d of byte %#x: other facts: %+v", name, bit%8, bit/8, got)
				}
			}
			raw[bit/8] ^= 1 << (bit % 8)
		}
		if same == 0 || refused == 0 {
			t.Errorf("%s: %d flips proved the same, %d were contradictions", name, same, refused)
		}
	}
}

// TestEveryLengthOfALog: cut anywhere but between two events, or with a byte more, a log is
// refused; cut between events it explains other registers.
func TestEveryLengthOfALog(t *testing.T) {
	raw := read(t, "testdata", "bios")
	whole, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	parsed := 0
	for n := range raw {
		log, err := Parse(raw[:n])
		if err != nil {
			continue
		}
		if parsed++; log.Entries >= whole.Entries || log.Entries > 0 && reflect.DeepEqual(log.Banks, whole.Banks) {
			t.Errorf("%d bytes: %d events", n, log.Entries)
		}
	}
	if parsed != whole.Entries { // after the header and after each event but the last
		t.Errorf("%d prefixes parse, want %d", parsed, whole.Entries)
	}
	for b := range 256 {
		if log, err := Parse(append(bytes.Clone(raw), byte(b))); err == nil {
			t.Errorf("a byte %#x more: %d events", b, log.Entries)
		}
	}
}

// TestPadding: the rest of a copied memory area is not an event, anything else is.
func TestPadding(t *testing.T) {
	raw := read(t, "testdata", "bios")
	want, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		rest []byte
		ok   bool
	}{
		"ones": {bytes.Repeat([]byte{0xff}, 4096), true}, "zeros": {make([]byte, 4096), true}, "few": {bytes.Repeat([]byte{0xff}, minPadding-1), false},
		"mixed": {append(bytes.Repeat([]byte{0xff}, 64), 0xfe), false}, "something behind": {append(make([]byte, 64), 1), false},
	} {
		log, err := Parse(append(bytes.Clone(raw), tc.rest...))
		if (err == nil) != tc.ok || tc.ok && (log.Entries != want.Entries || !reflect.DeepEqual(log.Banks, want.Banks)) {
			t.Errorf("%s: %d events, %v", name, log.Entries, err)
		}
	}
}

// TestHeaderLies: each field of the Spec ID event that could mislead.
func TestHeaderLies(t *testing.T) {
	raw := read(t, "testdata", "bios") // three algorithms
	const spec = 32
	for name, tc := range map[string]struct {
		lie  func([]byte)
		want string
	}{
		"no algorithm":          {func(b []byte) { b[spec+24] = 0 }, "2.0 with 0 algorithms"},
		"four algorithms":       {func(b []byte) { b[spec+24] = 4 }, "digests of algorithm"},
		"nine algorithms":       {func(b []byte) { b[spec+24] = 9 }, "with 9 algorithms"},
		"2^32-1 algorithms":     {func(b []byte) { binary.LittleEndian.PutUint32(b[spec+24:], 0xffffffff) }, "with 4294967295 algorithms"},
		"the same twice":        {func(b []byte) { copy(b[spec+32:], b[spec+28:spec+32]) }, "listed twice"},
		"SHA-1 of 32 bytes":     {func(b []byte) { b[spec+30] = 32 }, "have 32 bytes"},
		"digests of no bytes":   {func(b []byte) { b[spec+28], b[spec+30] = 0x77, 0 }, "have 0 bytes"},
		"digests of 65 bytes":   {func(b []byte) { b[spec+28], b[spec+30] = 0x77, 65 }, "have 65 bytes"},
		"version 1":             {func(b []byte) { b[spec+21] = 1 }, "version 1.0"},
		"version 2.1":           {func(b []byte) { b[spec+20] = 1 }, "version 2.1"},
		"vendor's 255 bytes":    {func(b []byte) { b[spec+28+12] = 255 }, "does not end where it says"},
		"event of 4 GiB":        {func(b []byte) { binary.LittleEndian.PutUint32(b[28:], 0xffffffff) }, "no Spec ID event"},
		"a header that extends": {func(b []byte) { b[4] = 8 }, "no Spec ID event"},
		"register 2":            {func(b []byte) { b[0] = 2 }, "no Spec ID event"},
	} {
		b := bytes.Clone(raw)
		tc.lie(b)
		if log, err := Parse(b); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %d events, %v, want %q", name, log.Entries, err, tc.want)
		}
	}
	header := makeLog(crypto.SHA256)
	header[28]-- // ends before the length of what the vendor says
	if log, err := Parse(header[:len(header)-1]); err == nil || !strings.Contains(err.Error(), "does not end where it says") {
		t.Errorf("no vendor's length: %d events, %v", log.Entries, err)
	}
	header = makeLog(crypto.SHA256)
	header[spec+28] = 0x12 // SM3-256, 32 bytes too
	if log, err := Parse(header); err == nil || !strings.Contains(err.Error(), "no bank of SHA-1 or SHA-2") {
		t.Errorf("SM3 alone: %d events, %v", log.Entries, err)
	}
}

// TestEventLies: each length of an event that could mislead.
func TestEventLies(t *testing.T) {
	raw := makeLog(5, goodBoot()...) // crypto.SHA256
	head := 32 + int(binary.LittleEndian.Uint32(raw[28:]))
	for name, tc := range map[string]struct {
		lie  func([]byte)
		want string
	}{
		"register 24":         {func(b []byte) { b[head] = 24 }, "extends register 24"},
		"register 2^32-1":     {func(b []byte) { binary.LittleEndian.PutUint32(b[head:], 0xffffffff) }, "extends register 4294967295"},
		"no digest of 2^32-1": {func(b []byte) { binary.LittleEndian.PutUint32(b[head+8:], 0xffffffff) }, "4294967295 digests"},
		"nine digests":        {func(b []byte) { b[head+8] = 9 }, "9 digests"},
		"unlisted algorithm":  {func(b []byte) { b[head+12] = 0xc }, "does not list"},
		"data of 4 GiB":       {func(b []byte) { binary.LittleEndian.PutUint32(b[head+12+2+32:], 0xffffffff) }, "cut short"},
	} {
		b := slices.Clone(raw)
		tc.lie(b)
		if log, err := Parse(b); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %d events, %v, want %q", name, log.Entries, err, tc.want)
		}
	}
	twice := makeLog(5)
	e := []byte{0, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0, 0}
	for range 2 {
		e = append(append(e, 0xb, 0), make([]byte, 32)...)
	}
	if log, err := Parse(append(twice, append(e, 0, 0, 0, 0)...)); err == nil || !strings.Contains(err.Error(), "two digests") {
		t.Errorf("two digests of one bank: %+v, %v", log, err)
	}
}

// TestMissingDigest: a register with an event that has no digest in a bank is not
// explained in that bank.
func TestMissingDigest(t *testing.T) {
	none := append([]byte{9, 0, 0, 0, 0xd, 0, 0, 0}, make([]byte, 8)...)
	log, err := Parse(append(makeLog(5, goodBoot()...), none...))
	if err != nil || log.Banks["sha256"][9] != nil || log.Banks["sha256"][8] == nil {
		t.Errorf("%v, %v", log.Registers(), err)
	}
	if f := log.Facts("sha256", log.Banks["sha256"]); f == nil || len(f.Files) != 0 {
		t.Errorf("facts of a register nobody can explain: %+v", f)
	}
}

// TestInitialValues of PCR 0.
func TestInitialValues(t *testing.T) {
	locality := func(n byte) forged {
		return forged{register: 0, kind: evNoAction, data: append([]byte("StartupLocality\x00"), n)}
	}
	crtm, first := forged{register: 0, kind: 8, data: []byte("v")}, forged{register: 0, kind: evHCRTM, data: []byte("HCRTM")}
	values := map[string]string{}
	for name, events := range map[string][]forged{"0": {crtm}, "3": {locality(3), crtm}, "4": {locality(4), crtm}, "hcrtm": {first, crtm}} {
		log, err := Parse(makeLog(5, events...))
		if err != nil {
			t.Fatal(err)
		}
		v := fmt.Sprintf("%x", log.Banks["sha256"][0])
		for other, w := range values {
			if v == w {
				t.Errorf("%s and %s give the same", name, other)
			}
		}
		values[name] = v
	}
	if _, err := Parse(makeLog(5, crtm, first)); err == nil {
		t.Error("an H-CRTM event after another was accepted")
	}
}

// TestLegacyLog: SHA-1 only, and nothing that merely looks so.
func TestLegacyLog(t *testing.T) {
	raw := testdata.Debian10EventLog
	log, err := Parse(raw)
	if err != nil || log.Format != FormatLegacy || log.Entries != 25 || !IsTCG(raw) || log.Registers()["sha1:pcr7"] != "9e6c57e850f371c2a7fe02bca552149363952318" {
		t.Errorf("%s, %d events, %v, %v", log.Format, log.Entries, log.Registers(), err)
	}
	for name, bad := range map[string][]byte{"cut": raw[:len(raw)-1], "byte more": append(bytes.Clone(raw), 0), "zeros": make([]byte, 1184),
		"unknown type": append(bytes.Clone(raw), append([]byte{0, 0, 0, 0, 0, 0, 0, 0x10}, make([]byte, 24)...)...),
		"register 24":  append(bytes.Clone(raw), append([]byte{24, 0, 0, 0, 1}, make([]byte, 27)...)...)} {
		if IsTCG(bad) {
			t.Errorf("%s is taken for a log", name)
		}
	}
	if many := bytes.Repeat(append([]byte{0, 0, 0, 0, 1}, make([]byte, 27)...), MaxEvents+1); !IsTCG(many[32:]) || IsTCG(many) {
		t.Errorf("%d events are a log, or one less are none", MaxEvents+1)
	}
}
