package measure

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"strings"
	"testing"
)

func encodeTDVF(sections []tdvfSection) []byte {
	n := uint32(len(sections))
	out := append([]byte("TDVF"), u32(16+32*n, 1, n)...)
	for _, s := range sections {
		out = append(out, u32(s.offset, s.size)...)
		out = le.AppendUint64(le.AppendUint64(out, s.gpa), s.memory)
		out = append(out, u32(s.kind, s.attributes)...)
	}
	return out
}

// tdvfImage is a firmware of three pages with TDVF metadata in the last.
func tdvfImage(sections []tdvfSection) []byte {
	out := image(3*pageSize, tableEntry(guid([]byte(strings.Repeat("\x11", 16))), []byte("unrelated")),
		tableEntry(guidTDXMetadata, u32(pageSize)), tableEntry(guid([]byte(strings.Repeat("\x22", 16))), []byte("\xab\xab\xab\xab")))
	copy(out[2*pageSize:], encodeTDVF(sections))
	return out
}

// smallTDVF and MRTD of it are published with aleph-im/aleph-vm (tests/vprogram/
// test_tdx_measurement.py and rust/crates/aleph-tee/src/tdx/measure.rs, two implementations).
func smallTDVF() []tdvfSection {
	return []tdvfSection{
		{0, pageSize, 0xfffff000, pageSize, tdvfBFV, tdvfMRExtend},
		{pageSize, pageSize, 0xffffe000, pageSize, tdvfCFV, tdvfMRExtend},
		{0, 0, 0x809000, 2 * pageSize, tdvfTDHOB, 0},
		{0, 0, 0x80b000, pageSize, tdvfTempMem, tdvfPageAug},
	}
}

func TestMRTDVector(t *testing.T) {
	const want = "168f5582b72265ed01aad1edd402f5d096c12d95385b5f38959b5cc8c128e6efe6e13e854e211a1ee4e4a4eeafa36fa6"
	for _, order := range []PageOrder{SinglePass, TwoPass} { // the same where each section has one page
		if got, err := MRTD(tdvfImage(smallTDVF()), order); err != nil || got.String() != want {
			t.Errorf("%s: got %v, %v, want %s", order, got, err, want)
		}
	}
}

// virtee/tdx-measure, tests/fixtures/canonical-defaults/expected.json, of the firmware that
// tests/fetch_ovmf.sh names: /usr/share/ovmf/OVMF.fd of Ubuntu's ovmf 2025.02-3ubuntu2.
func TestMRTDVectorFile(t *testing.T) {
	const want = "7357a10d2e2724dffe68813e3cc4cfcde6814d749f2fb62e3953e54f6e0b50a219786afe2cd478f684b52c61837e1114"
	firmware := vectorFile(t, "OVMF-2025.02-3ubuntu2.fd", "9e807cb2cd4313406a3aa4becc0836671a5c64ca7bdc08a45e15260184b446bf")
	if got, err := MRTD(firmware, SinglePass); err != nil || got.String() != want {
		t.Errorf("got %v, %v, want %s", got, err, want)
	}
}

// Both orders are what they say: add, add, measure, measure; and add, measure, add, measure.
func TestMRTDOrder(t *testing.T) {
	s := smallTDVF()
	s[0] = tdvfSection{0, 2 * pageSize, 0xffffe000, 2 * pageSize, tdvfBFV, tdvfMRExtend}
	s = s[:1]
	firmware := tdvfImage(s)
	record := func(name string, gpa uint64) []byte {
		out := make([]byte, 128)
		copy(out, name)
		le.PutUint64(out[16:], gpa)
		return out
	}
	page := func(n int) (out []byte) {
		for at := n * pageSize; at < (n+1)*pageSize; at += 256 {
			out = append(append(out, record("MR.EXTEND", 0xffffe000+uint64(at))...), firmware[at:at+256]...)
		}
		return out
	}
	first, second := record("MEM.PAGE.ADD", 0xffffe000), record("MEM.PAGE.ADD", 0xfffff000)
	for order, want := range map[PageOrder]Digest{
		SinglePass: sha384(first, page(0), second, page(1)),
		TwoPass:    sha384(first, second, page(0), page(1)),
	} {
		if got, err := MRTD(firmware, order); err != nil || got != want {
			t.Errorf("%s: got %v, %v, want %v", order, got, err, want)
		}
	}
	if _, err := MRTD(firmware, ""); err == nil {
		t.Error("no order: accepted")
	}
}

func TestTDVFRefused(t *testing.T) {
	edit := func(i int, f func(*tdvfSection)) []byte { s := smallTDVF(); f(&s[i]); return tdvfImage(s) }
	raw := func(f func(meta []byte)) []byte { b := tdvfImage(smallTDVF()); f(b[2*pageSize:]); return b }
	for _, c := range []struct {
		name, want string
		data       []byte
	}{
		{"no metadata", "no TDVF metadata", sevImage(amdSevReset, amdSevHashTable, amdSevSections)},
		{"signature", "signature", raw(func(b []byte) { b[0] = 'X' })},
		{"length", "length 145", raw(func(b []byte) { b[4]++ })},
		{"version", "version 2", raw(func(b []byte) { b[8]++ })},
		{"no section", "0 sections", tdvfImage(nil)},
		{"many sections", "65 sections, want", raw(func(b []byte) { b[12] = 65 })},
		{"sections beyond", "beyond the image", append(image(pageSize, tableEntry(guidTDXMetadata, u32(16)))[:pageSize-16],
			append([]byte("TDVF"), u32(48, 1, 1)...)...)},
		{"address", "whole pages", edit(2, func(s *tdvfSection) { s.gpa++ })},
		{"memory", "whole pages", edit(2, func(s *tdvfSection) { s.memory++ })},
		{"no memory", "whole pages", edit(2, func(s *tdvfSection) { s.memory = 0 })},
		{"above 4 GiB", "below 4 GiB", edit(2, func(s *tdvfSection) { s.gpa = fourGiB })},
		{"across 4 GiB", "below 4 GiB", edit(2, func(s *tdvfSection) { s.gpa = fourGiB - pageSize })},
		{"address wraps", "below 4 GiB", edit(2, func(s *tdvfSection) { s.gpa, s.memory = 0xfffffffffffff000, 2*pageSize })},
		{"huge", "below 4 GiB", edit(2, func(s *tdvfSection) { s.memory = MaxFirmware + pageSize })},
		{"beyond the image", "of an image", edit(0, func(s *tdvfSection) { s.offset = 0xffffffff })},
		{"partly backed", "want as many", edit(1, func(s *tdvfSection) { s.size = 0x800 })},
		{"code not backed", "want as many", edit(0, func(s *tdvfSection) { s.size = 0 })},
		{"attributes", "unknown attributes", edit(0, func(s *tdvfSection) { s.attributes = 4 })},
		{"measured but not added", "no VMM can do both", edit(0, func(s *tdvfSection) { s.attributes = 3 })},
		{"HOB with contents", "without contents", edit(2, func(s *tdvfSection) { s.size = 1 })},
		{"HOB measured", "without contents", edit(2, func(s *tdvfSection) { s.attributes = tdvfMRExtend })},
		{"more than the image", "sections take", tdvfImage(append(smallTDVF(), smallTDVF()...))},
		{"more memory than", "the limit is", tdvfImage(append(smallTDVF(), tdvfSection{0, 0, 1 << 30, MaxFirmware, tdvfTempMem, 0},
			tdvfSection{0, 0, 2 << 30, MaxFirmware, tdvfTempMem, 0}))},
		{"type", "type 4", edit(2, func(s *tdvfSection) { s.kind = 4 })},
	} {
		if got, err := MRTD(c.data, SinglePass); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, %v, want %q", c.name, got, err, c.want)
		}
	}
}

// The firmware of both quotes below has these sections (Dstack-TEE/dstack publishes them as
// td_hob_witness; OvmfPkgX64 of the time).
var ovmfTDX = []tdvfSection{
	{0, 0, 0x810000, 0x10000, tdvfTempMem, 0},
	{0, 0, 0x80b000, 0x2000, tdvfTempMem, 0},
	{0, 0, 0x809000, 0x2000, tdvfTDHOB, 0},
	{0, 0, 0x800000, 0x6000, tdvfTempMem, 0},
}

// The hand-off block of two TDs, from event logs that replay to RTMR0 of genuine quotes: 2 GiB
// from Dstack-TEE/dstack dstack/verifier/fixtures/tdx-lite-getquote.json, 64 GiB from
// quote-report.json beside it.
func TestTDHOBOfQuotes(t *testing.T) {
	for memory, want := range map[uint64]string{
		2 << 30:  "0b8772e5b0b41b83e6044a68397e02f49fb47066b4fbe4917ea2c45c64f323fdacbb37948f821ebaf8bc9c938ba8a749",
		64 << 30: "8ae1e425351df7992c444586eff99d35af3b779aa2b0e981cb4b73bc5b279f2ade19b6a62a203fc3c3bbdaae80af596d",
	} {
		if hob, err := tdHOB(ovmfTDX, memory); err != nil || sha384(hob).String() != want {
			t.Errorf("%d GiB: got %v, %v, want %s", memory>>30, sha384(hob), err, want)
		}
	}
	for memory, ranges := range map[uint64]int{0xb0000000 - pageSize: 1, 0xb0000000: 2} {
		if r, err := ram(memory); err != nil || len(r) != ranges {
			t.Errorf("%#x: got %v, %v, want %d ranges", memory, r, err, ranges)
		}
	}
	for _, memory := range []uint64{0, minMemory - pageSize, 2<<30 + 1, maxMemory + pageSize} {
		if _, err := tdHOB(ovmfTDX, memory); err == nil {
			t.Errorf("memory %d: accepted", memory)
		}
	}
	for name, sections := range map[string][]tdvfSection{
		"none":                 ovmfTDX[:2],
		"two":                  append(ovmfTDX[2:3:3], ovmfTDX[2]),
		"overlap":              append(ovmfTDX[:4:4], tdvfSection{0, 0, 0x81f000, 0x2000, tdvfTempMem, 0}),
		"outside of memory":    append(ovmfTDX[:4:4], tdvfSection{0, 0, 0xc0000000, 0x2000, tdvfTempMem, 0}),
		"across end of memory": append(ovmfTDX[:4:4], tdvfSection{0, 0, 0x7ffff000, 0x2000, tdvfTempMem, 0}),
	} {
		if _, err := tdHOB(sections, 2<<30); err == nil {
			t.Errorf("TD_HOB %s: accepted", name)
		}
	}
}

// A whole TD: registers of a genuine quote and the digests of its event log (Dstack-TEE/
// dstack dstack/verifier/fixtures/tdx-lite-getquote.json; QEMU 8.2.2, edk2 before 202505, 2 GiB).
// Taken from the log are the digests of kernel, initrd, ACPI and the variables' volume;
// command line digest, hand-off block and all else is computed or a constant of ours.
func TestRegistersOfQuote(t *testing.T) {
	const (
		rtmr0 = "f8438db36b96f85d8752ff7f24a89ec05c79ec9eda2ba732c897fb970ca429365b7471b1c054cb84f17b1c2b23ba6640"
		rtmr1 = "2023546e7f3b9d1228e274f70c44d481162540f8452544520a796a52f06879709b81a824a26792a7822327504b0d2aee"
		rtmr2 = "4c1b739ed451a637b0f82642e48a5ea83925d23633c72e7385c8e9aca4175e133ed1625b7d92eb39edf509c27ff392dc"
	)
	hob, err := tdHOB(ovmfTDX, 2<<30)
	if err != nil {
		t.Fatal(err)
	}
	events := configuration(sha384(hob), digest(t, ovmfVars4M), [3]Digest{
		digest(t, "095d04cf26fe03aef6e3561fa24c1aa1cea93f4aeaf563b1f9f7616184c53454875925759434769cec2490acb563a337"),
		digest(t, "8d9a4d4777a1bc77ecd9d8d37a4628129a80052a510320159a20a923bd07a0e90d8d1f2e1ebf088992b25f0d0fa672ef"),
		digest(t, "3070721e169bc41884724cb0e6b3082e1baf249083d8b389181ba50b9afa951057876c380b8870e8c2facf2eff67a2b6"),
	})
	boot := directBoot(digest(t, "ac7e632dcf5cd2a1fe5c1f41f4d9b8219570e64ed3c61038fdbf25404e6f542ffd57f276bc5076307efaf882e6d64177"), "",
		digest(t, "4fe4f7710134a61d7def357add6ac50bdbfeee5032a4c100375e207216ffe42a3bd5822b24e679f91501fff795b81521"))
	// The command line itself is not published, only its digest.
	boot[5].Digest = digest(t, "786280842b7364287a3a70d96f7e309252857beb45fb1f91314a2ea863db0adc04c8431ecbf29a966405604631a5aab8")
	log := []string{
		"0b8772e5b0b41b83e6044a68397e02f49fb47066b4fbe4917ea2c45c64f323fdacbb37948f821ebaf8bc9c938ba8a749",
		"344bc51c980ba621aaa00da3ed7436f7d6e549197dfe699515dfa2c6583d95e6412af21c097d473155875ffd561d6790",
		"9dc3a1f80bcec915391dcda5ffbb15e7419f77eab462bbf72b42166fb70d50325e37b36f93537a863769bcf9bedae6fb",
		"6f2e3cbc14f9def86980f5f66fd85e99d63e69a73014ed8a5633ce56eca5b64b692108c56110e22acadcef58c3250f1b",
		"d607c0efb41c0d757d69bca0615c3a9ac0b1db06c557d992e906c6b7dee40e0e031640c7bfd7bcd35844ef9edeadc6f9",
		"08a74f8963b337acb6c93682f934496373679dd26af1089cb4eaf0c30cf260a12e814856385ab8843e56a9acea19e127",
		"18cc6e01f0c6ea99aa23f8a280423e94ad81d96d0aeb5180504fc0f7a40cb3619dd39bd6a95ec1680a86ed6ab0f9828d",
		"394341b7182cd227c5c6b07ef8000cdfd86136c4292b8e576573ad7ed9ae41019f5818b4b971c9effc60e1ad9f1289f0",
		"095d04cf26fe03aef6e3561fa24c1aa1cea93f4aeaf563b1f9f7616184c53454875925759434769cec2490acb563a337",
		"8d9a4d4777a1bc77ecd9d8d37a4628129a80052a510320159a20a923bd07a0e90d8d1f2e1ebf088992b25f0d0fa672ef",
		"3070721e169bc41884724cb0e6b3082e1baf249083d8b389181ba50b9afa951057876c380b8870e8c2facf2eff67a2b6",
		"1dd6f7b457ad880d840d41c961283bab688e94e4b59359ea45686581e90feccea3c624b1226113f824f315eb60ae0a7c",
		"23ada07f5261f12f34a0bd8e46760962d6b4d576a416f1fea1c64bc656b1d28eacf7047ae6e967c58fd2a98bfa74c298",
	}
	if len(events) != len(log) {
		t.Fatalf("%d events, want %d", len(events), len(log))
	}
	for i, want := range log {
		if events[i].Digest.String() != want {
			t.Errorf("%s: got %v, want %s", events[i].Name, events[i].Digest, want)
		}
	}
	got := Replay(append(events, boot...))
	for i, want := range []string{rtmr0, rtmr1, rtmr2} {
		if got[i].String() != want {
			t.Errorf("RTMR%d: got %v, want %s", i, got[i], want)
		}
	}
}

// The variables' volume of those TDs: Debian's OVMF_VARS_4M.fd (ovmf 2022.11-6+deb12u2) is the
// same, so that digest is that of a whole section of the firmware.
const ovmfVars4M = "344bc51c980ba621aaa00da3ed7436f7d6e549197dfe699515dfa2c6583d95e6412af21c097d473155875ffd561d6790"

func TestVariablesVolumeFile(t *testing.T) {
	vars := installed(t, os.Getenv("MEASURE_ROOT")+"/usr/share/OVMF/OVMF_VARS_4M.fd")
	if got := sha384(vars); got.String() != ovmfVars4M {
		t.Skipf("other variables, SHA-384 %v", got)
	}
	firmware := append(vars, make([]byte, pageSize)...)
	at := len(vars)
	table := image(pageSize, tableEntry(guidTDXMetadata, u32(pageSize)))
	copy(firmware[at:], table)
	copy(firmware[at:], encodeTDVF(append([]tdvfSection{{0, uint32(at), 0xff800000, uint64(at), tdvfCFV, 0}}, ovmfTDX...)))
	events, err := ConfigurationEvents(firmware, 2<<30, ACPI{[]byte("l"), []byte("r"), []byte("t")})
	if err != nil || events[1].Digest.String() != ovmfVars4M {
		t.Errorf("got %v, %v", events, err)
	}
}

func TestConfigurationRefused(t *testing.T) {
	s := append(smallTDVF()[:2:2], ovmfTDX...)
	acpi := ACPI{[]byte("l"), []byte("r"), []byte("t")}
	if events, err := ConfigurationEvents(tdvfImage(s), 2<<30, acpi); err != nil || events[8].Digest != sha384([]byte("l")) ||
		events[9].Digest != sha384([]byte("r")) || events[10].Digest != sha384([]byte("t")) {
		t.Fatal(events, err)
	}
	for name, err := range map[string]error{
		"no firmware":  second(ConfigurationEvents(nil, 2<<30, acpi)),
		"no metadata":  second(ConfigurationEvents(sevImage(amdSevReset, 0, amdSevSections), 2<<30, acpi)),
		"no variables": second(ConfigurationEvents(tdvfImage(ovmfTDX), 2<<30, acpi)),
		"no memory":    second(ConfigurationEvents(tdvfImage(s), 0, acpi)),
		"no loader":    second(ConfigurationEvents(tdvfImage(s), 2<<30, ACPI{nil, []byte("r"), []byte("t")})),
		"no RSDP":      second(ConfigurationEvents(tdvfImage(s), 2<<30, ACPI{[]byte("l"), nil, []byte("t")})),
		"no tables":    second(ConfigurationEvents(tdvfImage(s), 2<<30, ACPI{[]byte("l"), []byte("r"), nil})),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// Hardware registers of edk2 202602 and QEMU 10.2.4, published with aleph-im/aleph-vm
// (rust/crates/aleph-tee/src/tdx/measure.rs): command line, digest of the initrd, RTMR2. The
// four constant events after the kernel are in both quotes' logs too.
func TestLoadOptionsFrom202505(t *testing.T) {
	const initrd = "88de90bedcc560064688c74ccd6609a25ed9d48b0a0e13d8b2a558212724d8755b2c8114dcf04b8d51ea4cf7782e3091"
	const rtmr2 = "972547466cb6bcb8a23cd479e9258c3affbbc4f0ba2805d732477200d0dff8432447c7a775e70453cdb51f018a306ece"
	b := &Boot{Kernel: syntheticPE(16, 0x20), Initrd: []byte("i"), CommandLine: "root=LABEL=cloudimg-rootfs ro console=ttyS0"}
	events, err := b.Events(EDK2From202505)
	if err != nil {
		t.Fatal(err)
	}
	if want := "b8c85d40a1d555a451571e24d7d7c4c331bc15721d6e4b2a5cb5093214c44174822a0916aa4d622d4309644de99cd59c"; events[5].Digest.String() != want {
		t.Errorf("load options: got %v, want %s", events[5].Digest, want)
	}
	if events[6].Digest != sha384([]byte("i")) {
		t.Errorf("initrd: got %v", events[6].Digest)
	}
	events[6].Digest = digest(t, initrd)
	if got := Replay(events)[2]; got.String() != rtmr2 {
		t.Errorf("RTMR2: got %v, want %s", got, rtmr2)
	}
}

func TestEvents(t *testing.T) {
	b := func() *Boot { return &Boot{Kernel: syntheticPE(16, 0x20), Initrd: []byte("i"), CommandLine: "quiet"} }
	events, err := b().Events(EDK2Before202505)
	if err != nil || events[5].Digest != sha384([]byte("q\x00u\x00i\x00e\x00t\x00 \x00i\x00n\x00i\x00t\x00r\x00d\x00=\x00i\x00n\x00i\x00t\x00r\x00d\x00\x00\x00")) {
		t.Errorf("got %v, %v", events, err)
	}
	kernel, err := Authenticode(b().Kernel)
	if err != nil || events[0].Digest != kernel.SHA384 {
		t.Errorf("kernel: got %v, %v", events[0], err)
	}
	for name, edit := range map[string]func(*Boot) EDK2{
		"no firmware": func(*Boot) EDK2 { return "" },
		"no initrd":   func(b *Boot) EDK2 { b.Initrd = nil; return EDK2From202505 },
		"no kernel":   func(b *Boot) EDK2 { b.Kernel = nil; return EDK2From202505 },
		"newline":     func(b *Boot) EDK2 { b.CommandLine = "a\nb"; return EDK2From202505 },
		"no PE":       func(b *Boot) EDK2 { b.Kernel = []byte("ELF"); return EDK2From202505 },
	} {
		x := b()
		if _, err := x.Events(edit(x)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// Debian's /usr/share/ovmf/OVMF.fd (ovmf 2022.11-6+deb12u2), measured by another
// implementation: tdx.MRTD of google/gce-tcb-verifier with its default options.
func TestMRTDOfDebianFile(t *testing.T) {
	const want = "4c7206f0f483c524f12c366c711e9049030a8d47c471ee5aa9c4999a08de4057fb887fed0744d5631a212967fb231c47"
	firmware := installed(t, os.Getenv("MEASURE_ROOT")+"/usr/share/ovmf/OVMF.fd")
	if sum := sha256.Sum256(firmware); hex.EncodeToString(sum[:]) != "7b456907dd0786d415999e801a1ac4637b8ed4d7cf5378cfc6edbe5e574dd773" {
		t.Skip("another version of the package")
	}
	if got, err := MRTD(firmware, SinglePass); err != nil || got.String() != want {
		t.Errorf("got %v, %v, want %s", got, err, want)
	}
}
