package eventlog

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/attest"
)

// forged is an event of a made-up log; its digest is over hashed, or data where that is nil.
type forged struct {
	register int
	kind     uint32
	data     []byte
	hashed   []byte
}

// makeLog lays out a crypto-agile log of one bank.
func makeLog(bank crypto.Hash, events ...forged) []byte {
	id := map[crypto.Hash]uint16{crypto.SHA256: 0xb, crypto.SHA384: 0xc, crypto.SHA512: 0xd}[bank]
	spec := append(bytes.Clone(specID), 0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0)
	spec = binary.LittleEndian.AppendUint16(spec, id)
	spec = append(binary.LittleEndian.AppendUint16(spec, uint16(bank.Size())), 0)
	out := make([]byte, 28)
	out[4] = evNoAction
	out = append(binary.LittleEndian.AppendUint32(out, uint32(len(spec))), spec...)
	for _, e := range events {
		hashed := e.hashed
		if hashed == nil {
			hashed = e.data
		}
		h := bank.New()
		h.Write(hashed)
		out = binary.LittleEndian.AppendUint32(out, uint32(e.register))
		out = binary.LittleEndian.AppendUint32(out, e.kind)
		out = binary.LittleEndian.AppendUint32(out, 1)
		out = h.Sum(binary.LittleEndian.AppendUint16(out, id))
		out = append(binary.LittleEndian.AppendUint32(out, uint32(len(e.data))), e.data...)
	}
	return out
}

// factsOf replays a log and takes its own registers as quoted.
func factsOf(t testing.TB, raw []byte) *attest.BootFacts {
	t.Helper()
	log, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return log.Facts(log.Strongest(), log.Banks[log.Strongest()])
}

func list(kind string, entries ...[]byte) []byte {
	out := []byte(kind)
	size := 16 + len(entries[0])
	for _, n := range []int{28 + size*len(entries), 0, size} {
		out = binary.LittleEndian.AppendUint32(out, uint32(n))
	}
	for _, e := range entries {
		out = append(append(out, make([]byte, 16)...), e...)
	}
	return out
}

func variableEvent(register int, kind uint32, guid, name string, value []byte) forged {
	return forged{register: register, kind: kind, data: variable{guid, name, value}.encode()}
}

var (
	hashA, hashB = bytes.Repeat([]byte{0xa}, 32), bytes.Repeat([]byte{0xb}, 32)
	zeroes       = make([]byte, 4)
	peImage      = append([]byte("MZ"), bytes.Repeat([]byte{7}, 100)...)
)

// variables of a good boot, for a register.
func variables(register int, state byte, dbx ...[]byte) []forged {
	return []forged{
		variableEvent(register, evVariableConfig, globalVariable, "SecureBoot", []byte{state}),
		variableEvent(register, evVariableConfig, globalVariable, "PK", list(certSHA256, hashA)),
		variableEvent(register, evVariableConfig, globalVariable, "KEK", nil),
		variableEvent(register, evVariableConfig, securityDatabase, "db", list(certX509, []byte("no certificate"))),
		variableEvent(register, evVariableConfig, securityDatabase, "dbx", list(certSHA256, dbx...)),
	}
}

// goodBoot is a boot of a TPM machine in PFP's order.
func goodBoot() []forged {
	return slices.Concat([]forged{{register: 0, kind: 8, data: []byte("version")}}, variables(7, 1, hashA, hashB), []forged{
		{register: 7, kind: 4, data: zeroes},
		{register: 4, kind: evAction, data: []byte("Calling EFI Application from Boot Option")},
		{register: 4, kind: 4, data: zeroes},
		{register: 5, kind: evGPT, data: []byte("EFI PART table")},
		{register: 2, kind: evGPT, data: []byte("EFI PART table")},
		{register: 4, kind: 0x80000003, data: []byte("where it was"), hashed: peImage},
		variableEvent(7, evVariableAuth, shimLock, "SbatLevel", []byte("sbat,1,2024010100\nshim,4\ngrub,3\n")),
		{register: 14, kind: 0xd, data: []byte("MokList\x00"), hashed: []byte("mok")},
		{register: 8, kind: 0xd, data: []byte("grub_cmd: set x=1\x00"), hashed: []byte("set x=1")},
		{register: 8, kind: 0xd, data: []byte("grub_cmd: linux /vmlinuz ro quiet\x00"), hashed: []byte("linux /vmlinuz ro quiet")},
		{register: 9, kind: 0xd, data: []byte("/vmlinuz\x00"), hashed: []byte("kernel")},
	})
}

func hexSum(data []byte) string { s := sha256.Sum256(data); return hex.EncodeToString(s[:]) }

func TestFactsOfGoodBoot(t *testing.T) {
	on := true
	want := &attest.BootFacts{Format: "tcg", Bank: "sha256", Events: 17, SecureBoot: &on,
		PK: &attest.SignatureDatabase{Hashes: []string{hex.EncodeToString(hashA)}}, KEK: &attest.SignatureDatabase{},
		DB:         &attest.SignatureDatabase{Certificates: []attest.CertificateFact{{Digest: hexSum([]byte("no certificate"))}}},
		DBX:        &attest.SignatureDatabase{Hashes: []string{hex.EncodeToString(hashA), hex.EncodeToString(hashB)}},
		SBAT:       map[string]uint64{"sbat": 1, "sbat.date": 2024010100, "shim": 4, "grub": 3},
		Components: []attest.BootComponent{{Register: "pcr4", Digest: hexSum(peImage)}},
		GRUB:       []string{"set x=1", "linux /vmlinuz ro quiet"}, MOK: []string{hexSum([]byte("mok"))},
		CommandLines: []attest.CommandLine{{Source: "grub", Text: "/vmlinuz ro quiet", Digest: hexSum([]byte("linux /vmlinuz ro quiet"))}},
		Files:        []attest.BootFile{{Register: "pcr9", Digest: hexSum([]byte("kernel"))}},
	}
	if got := factsOf(t, makeLog(crypto.SHA256, goodBoot()...)); !reflect.DeepEqual(got, want) {
		a, _ := json.Marshal(got)
		b, _ := json.Marshal(want)
		t.Errorf("got  %s\nwant %s", a, b)
	}
}

// TestFactsNeedQuotedRegisters (A16): a register that is not quoted, or otherwise, proves nothing.
func TestFactsNeedQuotedRegisters(t *testing.T) {
	log, err := Parse(makeLog(crypto.SHA256, goodBoot()...))
	if err != nil {
		t.Fatal(err)
	}
	for n, check := range map[int]func(*attest.BootFacts) bool{
		7: func(f *attest.BootFacts) bool {
			return f.SecureBoot == nil && f.PK == nil && f.DBX == nil && f.SBAT == nil
		},
		4:  func(f *attest.BootFacts) bool { return len(f.Components) == 0 },
		8:  func(f *attest.BootFacts) bool { return len(f.CommandLines)+len(f.GRUB) == 0 },
		9:  func(f *attest.BootFacts) bool { return len(f.Files) == 0 },
		14: func(f *attest.BootFacts) bool { return len(f.MOK) == 0 },
	} {
		for _, other := range [][]byte{nil, make([]byte, 32)} {
			quoted := map[int][]byte{}
			for i, v := range log.Banks["sha256"] {
				quoted[i] = v
			}
			if quoted[n] = other; other == nil {
				delete(quoted, n)
			}
			if f := log.Facts("sha256", quoted); !check(f) {
				t.Errorf("register %d quoted as %x: %+v", n, other, f)
			}
		}
	}
	if f := log.Facts("sha384", nil); f != nil {
		t.Errorf("a bank the log has not: %+v", f)
	}
}

// TestTypesMeanNothing: whatever types a log gives its events, it proves the same.
func TestTypesMeanNothing(t *testing.T) {
	want := factsOf(t, makeLog(crypto.SHA256, goodBoot()...))
	for _, kind := range []uint32{0x80000003, 4, 0xd, evAction, evVariableAuth, 6, 0x12345678} {
		events := goodBoot()
		for i := range events {
			events[i].kind = kind
		}
		got := factsOf(t, makeLog(crypto.SHA256, events...))
		got.Contradictions = nil // a type may say that data should be authentic where they are not
		if !reflect.DeepEqual(got, want) {
			t.Errorf("all of type %#x: %+v", kind, got)
		}
	}
}

// TestSecureBootCannotBeFaked: each way in which a host that booted without Secure Boot, or
// with an old dbx, might lay out its log.
func TestSecureBootCannotBeFaked(t *testing.T) {
	off, separator := variables(7, 0, hashA), forged{register: 7, kind: 4, data: zeroes}
	on := variables(7, 1, hashA, hashB)
	noise := func(e forged) forged {
		e.hashed, e.data, e.kind = e.data, []byte("nothing to see"), 6
		return e
	}
	for name, tc := range map[string]struct {
		events        []forged
		state         string // "on", "off", ""
		contradiction bool
	}{
		"on":                      {append(slices.Clone(on), separator), "on", false},
		"off":                     {append(slices.Clone(off), separator), "off", false},
		"empty":                   {[]forged{variableEvent(7, evVariableConfig, globalVariable, "SecureBoot", nil), off[1], off[2], off[3], off[4], separator}, "off", false},
		"off, hidden":             {append([]forged{noise(off[0])}, append(slices.Clone(off[1:]), separator)...), "off", false},
		"off, hidden, then on":    {slices.Concat([]forged{noise(off[0])}, off[1:], on, []forged{separator}), "", true},
		"off, on after separator": {slices.Concat(off, []forged{separator}, on[:1]), "", true},
		"on after separator":      {slices.Concat([]forged{separator}, on), "on", true},
		"on twice":                {slices.Concat(on, on, []forged{separator}), "", true},
		"no separator":            {on, "", false},
		"nothing":                 {[]forged{separator}, "", false},
		"on by another owner":     {[]forged{variableEvent(7, evVariableConfig, shimLock, "SecureBoot", []byte{1}), separator}, "", false},
		"firmware's error":        {append(slices.Clone(on), forged{register: 7, kind: 4, data: []byte{1, 0, 0, 0}}, separator), "on", true},
	} {
		f := factsOf(t, makeLog(crypto.SHA256, append([]forged{{register: 0, kind: 8, data: []byte("v")}}, tc.events...)...))
		state := ""
		if f.SecureBoot != nil {
			state = map[bool]string{true: "on", false: "off"}[*f.SecureBoot]
		}
		if state != tc.state || (len(f.Contradictions) > 0) != tc.contradiction {
			t.Errorf("%s: %q, contradictions %q", name, state, f.Contradictions)
		}
	}
}

// TestDatabasesCannotBeFaked: in RTMR0 a host has tables of its own measured too.
func TestDatabasesCannotBeFaked(t *testing.T) {
	rich := variables(0, 1, hashA, hashB)
	for name, tc := range map[string]struct {
		events        []forged
		dbx           int // hashes, -1 for none
		contradiction bool
	}{
		"as it is":             {variables(0, 1, hashA), 1, false},
		"another dbx later":    {append(variables(0, 1, hashA), forged{register: 0, kind: 0xa, data: []byte("ACPI"), hashed: []byte("t")}, rich[4]), 1, false},
		"another dbx at once":  {append(variables(0, 1, hashA), rich[4]), 1, true},
		"hidden, then another": {append(append(variables(0, 1, hashA)[:4], forged{register: 0, kind: 0xa, data: []byte("ACPI"), hashed: variables(0, 1, hashA)[4].data}), rich[4]), -1, true},
		"data changed":         {append(variables(0, 1, hashA)[:4], forged{register: 0, kind: evVariableConfig, data: rich[4].data, hashed: variables(0, 1, hashA)[4].data}), -1, true},
	} {
		var events []forged
		for _, e := range append(tc.events, forged{register: 0, kind: 4, data: zeroes}) {
			e.register++ // RTMR0 is register 1
			events = append(events, e)
		}
		f := factsOf(t, makeLog(crypto.SHA384, events...))
		got := -1
		if f.DBX != nil {
			got = len(f.DBX.Hashes)
		}
		if f.Format != FormatCCEL || got != tc.dbx || (len(f.Contradictions) > 0) != tc.contradiction {
			t.Errorf("%s: %s, dbx %d, %q", name, f.Format, got, f.Contradictions)
		}
	}
	// Nor is an SBAT level taken from there.
	f := factsOf(t, makeLog(crypto.SHA384, slices.Concat([]forged{{register: 1, kind: 4, data: zeroes}},
		[]forged{variableEvent(1, evVariableAuth, shimLock, "SbatLevel", []byte("shim,99\n"))})...))
	if f.SBAT != nil || f.Authorities != nil {
		t.Errorf("a host's table is believed: %+v", f)
	}
}

// TestImagesCannotBeHidden: an image's digest is a component whatever the log calls it,
// even if the log holds the very bytes that were hashed.
func TestImagesCannotBeHidden(t *testing.T) {
	for name, e := range map[string]forged{
		"as an action":           {register: 4, kind: evAction, data: peImage},
		"as a separator":         {register: 4, kind: 4, data: zeroes, hashed: peImage},
		"as a partition table":   {register: 2, kind: 6, data: []byte("EFI PART"), hashed: peImage},
		"as a variable":          {register: 4, kind: 6, data: variable{globalVariable, "Boot0000", peImage}.encode(), hashed: peImage},
		"without a DOS header":   {register: 4, kind: 6, data: []byte("PE\x00\x00...")},
		"with no data":           {register: 4, kind: 6, hashed: peImage},
		"as an image of nothing": {register: 4, kind: 0x80000003, hashed: []byte("other")},
	} {
		f := factsOf(t, makeLog(crypto.SHA256, forged{register: 0, kind: 8, data: []byte("v")}, e))
		if len(f.Components) != 1 {
			t.Errorf("%s: %+v", name, f.Components)
		}
	}
	f := factsOf(t, makeLog(crypto.SHA256, forged{register: 0, kind: 8, data: []byte("v")},
		forged{register: 4, kind: evGPT, data: []byte("EFI PART?"), hashed: []byte("EFI PART!")}))
	if len(f.Components) != 1 || len(f.Contradictions) != 1 {
		t.Errorf("a damaged partition table: %+v", f)
	}
}

// TestCommandLinesCannotBeHidden: what loads a kernel is found whatever it is called, and
// what cannot be read counts.
func TestCommandLinesCannotBeHidden(t *testing.T) {
	wide := []byte("r\x00o\x00 \x00x\x00\x00\x00")
	tagged := append([]byte{1, 2, 3, 4, 10, 0, 0, 0}, wide...)
	for name, tc := range map[string]struct {
		e             forged
		source, text  string
		contradiction bool
	}{
		"grub":                {forged{8, 0xd, []byte("grub_cmd: linux /k ro\x00"), []byte("linux /k ro")}, "grub", "/k ro", false},
		"grub, Red Hat's":     {forged{8, 0xd, []byte("grub_cmd linuxefi /k ro\x00"), []byte("linuxefi /k ro\x00")}, "grub", "/k ro", false},
		"as another command":  {forged{8, 0xd, []byte("ignore-me: linux /k ro\x00"), []byte("linux /k ro")}, "unread", "", false},
		"prefix of that size": {forged{8, 0xd, []byte("0123456789linux /k ro\x00"), []byte("linux /k ro")}, "grub", "/k ro", false},
		"as bare text":        {forged{8, 0xd, []byte("linux /k ro\x00"), []byte("linux /k ro")}, "grub", "/k ro", false},
		"as noise":            {forged{8, 6, []byte{1, 2, 3}, []byte("linux /k ro")}, "unread", "", false},
		"changed":             {forged{8, 0xd, []byte("grub_cmd: linux /k rw\x00"), []byte("linux /k ro")}, "unread", "", true},
		"systemd, UTF-16":     {forged{12, 0xd, wide, nil}, "systemd-stub", "ro x", false},
		"systemd, no zero":    {forged{12, 0xd, wide[:8], wide}, "systemd-stub", "ro x", false},
		"systemd, odd zero":   {forged{8, 0xd, wide[:9], wide}, "systemd-stub", "ro x", false},
		"systemd, tagged":     {forged{12, 6, tagged, wide}, "systemd-stub", "ro x", false},
		"plain text in 12":    {forged{12, 0xd, []byte("ro x"), nil}, "systemd-stub", "ro x", false},
		"initrd in 12":        {forged{12, 0xd, []byte("C\x00r\x00"), []byte("cpio")}, "unread", "", false},
	} {
		f := factsOf(t, makeLog(crypto.SHA256, forged{register: 0, kind: 8, data: []byte("v")}, tc.e))
		if len(f.CommandLines) != 1 || f.CommandLines[0].Source != tc.source || f.CommandLines[0].Text != tc.text || (len(f.Contradictions) > 0) != tc.contradiction {
			t.Errorf("%s: %+v, %q", name, f.CommandLines, f.Contradictions)
		}
	}
	// A unified kernel image: the section's name, then its content.
	f := factsOf(t, makeLog(crypto.SHA256, forged{register: 0, kind: 8, data: []byte("v")},
		forged{11, 0xd, []byte(".linux\x00"), nil}, forged{11, 0xd, []byte(".linux\x00"), []byte("kernel")},
		forged{11, 0xd, []byte(".cmdline\x00"), nil}, forged{11, 0xd, []byte(".cmdline\x00"), []byte("ro uki")}))
	if len(f.CommandLines) != 1 || f.CommandLines[0].Digest != hexSum([]byte("ro uki")) {
		t.Errorf("unified kernel image: %+v", f.CommandLines)
	}
}

func TestFirmwareStates(t *testing.T) {
	for _, tc := range []struct {
		data       string
		debug, dma bool
	}{{"UEFI Debug Mode", true, false}, {"UEFI Debug Mode\x00", true, false}, {"DMA Protection Disabled", false, true}, {"DMA Protection Enabled", false, false}} {
		f := factsOf(t, makeLog(crypto.SHA256, forged{register: 0, kind: 8, data: []byte("v")}, forged{register: 7, kind: evAction, data: []byte(tc.data)}))
		if f.FirmwareDebug != tc.debug || f.DMAUnprotected != tc.dma {
			t.Errorf("%q: %+v", tc.data, f)
		}
	}
}

func TestSBAT(t *testing.T) {
	level := func(values ...string) *attest.BootFacts {
		events := []forged{{register: 0, kind: 8, data: []byte("v")}, {register: 7, kind: 4, data: zeroes}}
		for _, v := range values {
			events = append(events, variableEvent(7, evVariableAuth, shimLock, "SbatLevel", []byte(v)))
		}
		return factsOf(t, makeLog(crypto.SHA256, events...))
	}
	if f := level("shim,4\ngrub,5\n", "shim,99\n"); !reflect.DeepEqual(f.SBAT, map[string]uint64{"shim": 4}) {
		t.Errorf("of two levels the lower: %+v", f.SBAT)
	}
	for _, bad := range []string{"shim,x\n", "shim,-1\n", ",1\n", strings.Repeat("a,1\n", 1) + strings.Repeat("b", 300) + ",1\n"} {
		if f := level(bad); f.SBAT != nil || len(f.Contradictions) != 1 {
			t.Errorf("%.20q: %+v", bad, f)
		}
	}
}

// TestSignatureLists: lists that lie about their sizes are counted, not believed.
func TestSignatureLists(t *testing.T) {
	good := list(certSHA256, hashA, hashB)
	withTime := list(certX509SHA256, append(bytes.Clone(hashA), make([]byte, 16)...))
	for name, tc := range map[string]struct {
		value         []byte
		hashes, other int
	}{
		"two": {good, 2, 0}, "two lists": {slices.Concat(good, withTime), 3, 0}, "empty": {nil, 0, 0},
		"cut": {good[:len(good)-1], 0, 1}, "trailing": {append(bytes.Clone(good), 1), 2, 1},
		"unknown type": {list(strings.Repeat("x", 16), hashA), 0, 1}, "header alone": {good[:27], 0, 1},
		"size of one signature 0": {func() []byte { b := bytes.Clone(good); copy(b[24:], zeroes); return b }(), 0, 1},
		"header of 4 GiB":         {func() []byte { b := bytes.Clone(good); binary.LittleEndian.PutUint32(b[20:], 0xffffffff); return b }(), 0, 1},
		"list of 4 GiB":           {func() []byte { b := bytes.Clone(good); binary.LittleEndian.PutUint32(b[16:], 0xffffffff); return b }(), 0, 1},
		"not a whole signature":   {func() []byte { b := bytes.Clone(good); binary.LittleEndian.PutUint32(b[24:], 60); return b }(), 0, 2},
	} {
		if d := parseDatabase(tc.value); len(d.Hashes) != tc.hashes || d.Other != tc.other {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

// TestRuntimeEvents of dstack: names and values where they hash to the digest.
func TestRuntimeEvents(t *testing.T) {
	digest := sha512.Sum384(runtimeData(dstackRuntime, "app-id", []byte{0xab, 0xcd}))
	entry := func(digest, payload string) string {
		return `[{"imr":3,"event_type":134217729,"digest":"` + digest + `","event":"app-id","event_payload":"` + payload + `"}]`
	}
	for _, given := range []string{hex.EncodeToString(digest[:]), ""} { // newer releases leave it out
		f := factsOf(t, []byte(entry(given, "abcd")))
		if len(f.Runtime) != 1 || f.Runtime[0].Name != "app-id" || f.Runtime[0].Value != "abcd" || len(f.Contradictions) != 0 {
			t.Errorf("digest %q: %+v", given, f)
		}
	}
	f := factsOf(t, []byte(entry(hex.EncodeToString(digest[:]), "abce")))
	if f.Runtime[0].Name != "" || f.Runtime[0].Value != "" || len(f.Contradictions) != 1 {
		t.Errorf("another payload is believed: %+v", f)
	}
}
