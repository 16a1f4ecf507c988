package sevsnp

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/attest"
)

// flat is JSON as path and value.
func flat(t *testing.T, v any) map[string]string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber() // 64 bits
	if err := d.Decode(&tree); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	var walk func(string, any)
	walk = func(path string, v any) {
		if m, ok := v.(map[string]any); ok {
			for k, v := range m {
				walk(strings.TrimPrefix(path+"."+k, "."), v)
			}
			return
		}
		raw, _ := json.Marshal(v)
		out[path] = strings.Trim(string(raw), `"`)
	}
	walk("", tree)
	return out
}

// TestEveryFieldIsAClaim changes each field of a report in turn: the claims of that field
// change, and no others.
func TestEveryFieldIsAClaim(t *testing.T) {
	for _, product := range []string{Milan, Genoa, Turin} {
		v := vendors[product]()
		s := v.scheme(t)
		// The reserved bytes of a TCB_VERSION are compared, not claimed; the others are.
		tcb := []string{"boot_loader", "tee", "", "", "", "", "snp", "microcode"}
		if product == Turin {
			tcb = []string{"fmc", "boot_loader", "tee", "snp", "", "", "", "microcode"}
		}
		for _, version := range []byte{2, 3, 4, 5} {
			vcek := v.vcek(nil)
			claims := func(edit func([]byte)) map[string]string {
				t.Helper()
				c, err := s.Verify(context.Background(), evidence(v.report(version, edit), vcek), nil, milanAt)
				if err != nil {
					t.Fatalf("%s v%d: %v", product, version, err)
				}
				return flat(t, c)
			}
			before := claims(nil)
			type field struct {
				off    int
				change []string
			}
			fields := []field{
				{offGuestSVN, []string{"guest_svn"}}, {offPolicy, []string{"policy", "abi.minor"}}, {offPolicy + 1, []string{"policy", "abi.major"}},
				{offFamilyID + 15, []string{"family_id"}}, {offImageID, []string{"image_id"}}, {offVMPL, []string{"vmpl"}},
				{offPlatformInfo, []string{"platform_info", "platform_info_bits"}}, {offPlatformInfo + 7, []string{"platform_info", "platform_info_bits"}},
				{offKeyInfo, []string{"author_key_en"}}, {offHostData + 31, []string{"host_data"}}, {offIDKey + 47, []string{"id_key_digest"}},
				{offAuthorKey, []string{"author_key_digest"}}, {offReportID + 31, []string{"report_id"}}, {offReportIDMA + 31, []string{"report_id_ma"}},
				{offReportData + 63, []string{"^report_data"}}, {offMeasurement + 47, []string{"^measurement"}},
				{offCurrent, []string{"current_version.build"}}, {offCurrent + 1, []string{"current_version.minor"}}, {offCurrent + 2, []string{"current_version.major"}},
				{offCommitted, []string{"committed_version.build"}}, {offCommitted + 1, []string{"committed_version.minor"}}, {offCommitted + 2, []string{"committed_version.major"}},
			}
			if version >= 3 {
				fields = append(fields, field{offCPUID + 2, []string{"cpuid.stepping"}})
			}
			if version >= 5 {
				fields = append(fields, field{offLaunchMit, []string{"launch_mit_vector"}}, field{offCurrentMit + 5, []string{"current_mit_vector"}})
			}
			for i, name := range tcb {
				if name != "" {
					fields = append(fields, field{offCurrentTCB + i, []string{"current_tcb." + name}}, field{offCommittedTCB + i, []string{"committed_tcb." + name}},
						field{offLaunchTCB + i, []string{"launch_tcb." + name}})
				}
			}
			for _, f := range fields {
				var changed []string
				for name, value := range claims(func(b []byte) { b[f.off] ^= 1 }) {
					if value != before[name] {
						changed = append(changed, name)
					}
				}
				want := []string{}
				for _, name := range f.change {
					if top, ok := strings.CutPrefix(name, "^"); ok {
						want = append(want, top)
					} else {
						want = append(want, "sevsnp."+name)
					}
				}
				slices.Sort(changed)
				slices.Sort(want)
				if !slices.Equal(changed, want) {
					t.Errorf("%s v%d: byte %#x changed %v, want %v", product, version, f.off, changed, want)
				}
			}
		}
	}
}

// TestPolicyBits: each bit of the guest policy is its own claim, those nobody knows too.
func TestPolicyBits(t *testing.T) {
	v := vendors[Milan]()
	s, vcek := v.scheme(t), v.vcek(nil)
	names := map[int]string{16: "smt", 18: "migrate_ma", 19: "debug", 20: "single_socket", 21: "cxl_allow", 22: "mem_aes_256_xts",
		23: "rapl_dis", 24: "ciphertext_hiding_dram", 25: "page_swap_disable"}
	for bit := 16; bit < 64; bit++ {
		c, err := s.Verify(context.Background(), evidence(v.report(5, func(b []byte) {
			copy(b[offPolicy:], make([]byte, 8))
			b[offPolicy+bit/8] = 1 << (bit % 8)
		}), vcek), nil, milanAt)
		if err != nil {
			t.Fatal(err)
		}
		for n, name := range names {
			if got := flat(t, c)["sevsnp."+name]; got != fmt.Sprint(n == bit) {
				t.Errorf("bit %d: %s is %s", bit, name, got)
			}
		}
		if c.SEVSNP.Policy != 1<<bit {
			t.Errorf("bit %d: policy %#x", bit, c.SEVSNP.Policy)
		}
	}
}

// TestClaims: values, once, in full.
func TestClaims(t *testing.T) {
	v := vendors[Turin]()
	raw := v.report(5, func(b []byte) { b[offKeyInfo] = 3 })
	c, err := v.scheme(t).Verify(context.Background(), evidence(raw, v.vcek(nil)), nil, milanAt)
	if err != nil {
		t.Fatal(err)
	}
	tcb := func(off int) attest.TCB {
		return attest.TCB{FMC: raw[off], BootLoader: raw[off+1], TEE: raw[off+2], SNP: raw[off+3], Microcode: raw[off+7]}
	}
	at := func(from, to int) string { return hex.EncodeToString(raw[from:to]) }
	want := &attest.SEVSNPClaims{Version: 5, Product: Turin, CPUID: &attest.CPUID{Family: 0x1a, Model: 2, Stepping: 3},
		Policy: 0x30133, ABI: attest.FirmwareVersion{Major: 1, Minor: 0x33}, SMT: true,
		PlatformInfo: 0xf2ebe4ddd6cfc8c1, PlatformInfoBits: attest.SEVSNPPlatformInfo(0xf2ebe4ddd6cfc8c1),
		GuestSVN: 0x322b241d, FamilyID: at(0x10, 0x20), ImageID: at(0x20, 0x30), VMPL: 2, HostData: at(0xc0, 0xe0), IDKeyDigest: at(0xe0, 0x110),
		AuthorKeyEn: true, AuthorKey: at(0x110, 0x140), ReportID: at(0x140, 0x160), ReportIDMA: at(0x160, 0x180),
		SigningKey: "VCEK", ChipID: at(0x1a0, 0x1e0), MaskChipKey: true,
		CurrentTCB: tcb(0x38), ReportedTCB: attest.TCB{FMC: 1, BootLoader: 2, TEE: 3, SNP: 4, Microcode: 200}, CommittedTCB: tcb(0x1e0), LaunchTCB: tcb(0x1f0),
		CurrentVersion:   attest.FirmwareVersion{Build: raw[0x1e8], Minor: raw[0x1e9], Major: raw[0x1ea]},
		CommittedVersion: attest.FirmwareVersion{Build: raw[0x1ec], Minor: raw[0x1ed], Major: raw[0x1ee]},
		LaunchMitVector:  little(raw[0x1f8:0x200]), CurrentMitVector: little(raw[0x200:0x208]), CertificateNotAfter: milanAt.AddDate(6, 0, 0)}
	if !reflect.DeepEqual(c.SEVSNP, want) {
		t.Errorf("got  %+v\nwant %+v", c.SEVSNP, want)
	}
	if c.Kind != attest.KindSEVSNP || c.Measurement != at(0x90, 0xc0) || c.ReportData != at(0x50, 0x90) || c.HardwareID != at(0x1a0, 0x1e0) || !c.At.Equal(milanAt) {
		t.Errorf("got %+v", c)
	}
}

func little(b []byte) (v uint64) {
	for i := range b {
		v |= uint64(b[i]) << (8 * i)
	}
	return v
}

// TestReserved: a correctly signed report with a bit where its version has nothing is of a
// firmware that says more, and is not understood.
func TestReserved(t *testing.T) {
	v := vendors[Milan]()
	s, vcek := v.scheme(t), v.vcek(nil)
	type span struct{ from, to int }
	reserved := map[byte][]span{}
	for _, version := range []byte{2, 3, 4, 5} {
		spans := []span{{0x4c, 0x50}, {0x1eb, 0x1ec}, {0x1ef, 0x1f0}, {0x208, 0x2a0}, {0x49, 0x4c}}
		if version < 3 {
			spans = append(spans, span{0x188, 0x1a0})
		} else {
			spans = append(spans, span{0x18b, 0x1a0})
		}
		if version < 5 {
			spans = append(spans, span{0x1f8, 0x208})
		}
		reserved[version] = spans
	}
	for version, spans := range reserved {
		for _, sp := range spans {
			for _, off := range []int{sp.from, (sp.from + sp.to) / 2, sp.to - 1} {
				report := v.report(version, func(b []byte) { b[off] = 0x40 })
				if got := verdict(t, s, evidence(report, vcek), milanAt); got != attest.CodeUnsupported {
					t.Errorf("v%d, byte %#x: got %q", version, off, got)
				}
			}
		}
		report := v.report(version, func(b []byte) { b[offKeyInfo] = 1 << 5 })
		if got := verdict(t, s, evidence(report, vcek), milanAt); got != attest.CodeUnsupported {
			t.Errorf("v%d, key info: got %q", version, got)
		}
	}
}

// TestSigningKeys: only VCEK and VLEK sign; a report that says that nobody signed it, or
// somebody unknown, is never genuine, whatever signature it has.
func TestSigningKeys(t *testing.T) {
	v := vendors[Milan]()
	s := v.scheme(t)
	for key := range byte(8) {
		report := v.report(3, func(b []byte) { b[offKeyInfo] = key << 2 })
		want := map[byte]attest.Code{0: "", 1: "", 7: attest.CodeNotGenuine}
		w, known := want[key]
		if !known {
			w = attest.CodeCertificateMismatch
		}
		certs := [][]byte{v.vcek(nil), v.vlek(nil)}
		if got := verdict(t, s, evidence(report, certs...), milanAt); got != w {
			t.Errorf("key %d: got %q, want %q", key, got, w)
		}
	}
	unsigned := v.report(3, func(b []byte) { b[offKeyInfo] = 7<<2 | 2 })
	clear(unsigned[offSignature:])
	if got := verdict(t, s, evidence(unsigned, v.vcek(nil)), milanAt); got != attest.CodeNotGenuine {
		t.Errorf("unsigned: got %q", got)
	}
}

// TestSignatureField: another algorithm, a zero, an oversize or a padded signature.
func TestSignatureField(t *testing.T) {
	v := vendors[Genoa]()
	s, vcek := v.scheme(t), v.vcek(nil)
	for name, edit := range map[string]func([]byte){
		"zero R": func(b []byte) { clear(b[offSignature:][:72]) }, "zero S": func(b []byte) { clear(b[offSignature+72:][:72]) },
		"all zero": func(b []byte) { clear(b[offSignature:]) }, "R above the order": func(b []byte) { b[offSignature+60] = 1 },
		"all ones": func(b []byte) {
			for i := range b[offSignature:offPadding] {
				b[offSignature+i] = 0xff
			}
		},
		"padding, first": func(b []byte) { b[offPadding] = 1 }, "padding, last": func(b []byte) { b[ReportSize-1] = 1 },
	} {
		report := v.report(3, nil)
		edit(report)
		if got := verdict(t, s, evidence(report, vcek), milanAt); got != attest.CodeNotGenuine {
			t.Errorf("%s: got %q", name, got)
		}
	}
	for _, algorithm := range []byte{0, 2, 0x80} {
		if got := verdict(t, s, evidence(v.report(3, func(b []byte) { b[offAlgorithm] = algorithm }), vcek), milanAt); got != attest.CodeNotGenuine {
			t.Errorf("algorithm %d: got %q", algorithm, got)
		}
	}
}

// TestProducts: the parts that AMD 57230 lists, and their neighbours.
func TestProducts(t *testing.T) {
	want := map[byte]map[string][][2]byte{
		0x19: {Milan: {{0, 0x0f}}, Genoa: {{0x10, 0x1f}, {0xa0, 0xaf}}},
		0x1a: {Turin: {{0, 0x11}}},
	}
	for family := range 256 {
		for model := range 256 {
			line := fmt.Sprintf("family %#x model %#x", family, model)
			for product, ranges := range want[byte(family)] {
				for _, r := range ranges {
					if byte(model) >= r[0] && byte(model) <= r[1] {
						line = product
					}
				}
			}
			if got := attest.SEVSNPProduct(byte(family), byte(model)); got != line {
				t.Errorf("%#x/%#x: got %s, want %s", family, model, got, line)
			}
		}
	}
}

// TestEveryPart: each known part is believed under its line's certificates, and under no
// other line's; a part that nobody knows under none.
func TestEveryPart(t *testing.T) {
	parts := map[string][2]byte{"Milan": {0x19, 0x01}, "Milan-X": {0x19, 0x01}, "Genoa": {0x19, 0x11}, "Bergamo": {0x19, 0xa0}, "Siena": {0x19, 0xa0},
		"Zen 4c, another": {0x19, 0xaf}, "Turin": {0x1a, 0x02}, "Turin dense": {0x1a, 0x11}, "Turin, a later model": {0x1a, 0x10}, "Venice": {0x1a, 0x50}, "Zen 7": {0x1c, 0}}
	for name, part := range parts {
		for _, product := range []string{Milan, Genoa, Turin} {
			v := vendors[product]()
			want := attest.CodeCertificateMismatch
			if attest.SEVSNPProduct(part[0], part[1]) == product {
				want = ""
			}
			report := v.report(5, func(b []byte) { b[offCPUID], b[offCPUID+1] = part[0], part[1] })
			if got := verdict(t, v.scheme(t), evidence(report, v.vcek(nil)), milanAt); got != want {
				t.Errorf("%s under %s: got %q, want %q", name, product, got, want)
			}
		}
	}
}

// TestMaskedChip: a report without a chip id is genuine, says so, and has no hardware id.
func TestMaskedChip(t *testing.T) {
	for _, product := range []string{Milan, Turin} {
		v := vendors[product]()
		c, err := v.scheme(t).Verify(context.Background(), evidence(v.report(3, func(b []byte) { clear(b[offChipID:][:64]) }), v.vcek(nil)), nil, milanAt)
		if err != nil || c.HardwareID != "" {
			t.Errorf("%s: got %v, %q", product, err, c.HardwareID)
		}
		p := attest.StrictPolicy()
		p.SEVSNP.AllowMaskedID = false
		if r := attest.Appraise(c, p, milanAt); r.Code() != attest.CodeMaskedChipID {
			t.Errorf("%s: got %v", product, r.Reasons)
		}
	}
}
