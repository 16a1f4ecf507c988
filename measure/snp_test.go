package measure

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func digest(t testing.TB, s string) Digest {
	t.Helper()
	d, err := ParseDigest(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// vectorFile reads a file that others published and that is too large, or not ours, to be
// kept here: from the folder that MEASURE_VECTORS names.
func vectorFile(t testing.TB, name, sum string) []byte {
	t.Helper()
	dir := os.Getenv("MEASURE_VECTORS")
	if dir == "" {
		t.Skip("set MEASURE_VECTORS to a folder with", name)
	}
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Skip(err)
	}
	if got := sha256.Sum256(data); hex.EncodeToString(got[:]) != sum {
		t.Fatalf("%s: SHA-256 %x, want %s", name, got, sum)
	}
	return data
}

// What virtee/sev-snp-measure publishes (v0.0.13, tests/test_guest.py) of the image
// tests/fixtures/ovmf_AmdSev_suffix.bin: the digest of its pages, and launch digests.
const (
	amdSevDigest = "086e2e9149ebf45abdc3445fba5b2da8270bdbb04094d7a2c37faaa4b24af3aa16aff8c374c2a55c467a50da6d466b74"
	amdSevSum    = "8f765dfabc127fc0a938a0744a3103ec15864d7d794eb4c398aa976b6d6ab16c" // of the file, to know it
	ovmfX64Sum   = "b4c021e085fb83ceffe6571a3d357b4a98773c83c474e47f76c876708fe316da"
	svsmSum      = "287fcee67b501b072e4953b5006059d088b454e9197bc318885385acb233d5d1"
	svsmOVMFSum  = "50d1bf8676c7fb2ff6b8e50cf8fc0491534de27c12d6345a2dcefef51cbac97e"
)

type snpVector struct {
	name     string
	vcpus    int
	append   string
	kernel   bool
	features uint64
	vmm      VMM
	want     string
}

// The empty kernel and initrd of these tests are /dev/null there.
var snpVectors = []snpVector{
	{"snp_ovmf_hash_gen_default", 1, "", true, 0x21, QEMU, "329c8ce0972ae52343b64d34a434a86f245dfd74f5ed7aae15d22efc78fb9683632b9b50e4e1d7fa41179ef98a7ef198"},
	{"snp_ovmf_hash_gen_feature_snp_only", 1, "", true, 0x1, QEMU, "ddc5224521617a536ee7ce9dd6224d1b58a8d4fda1c741f3ac99fc4bfa04ba6e9fc98646d4a07a9079397fa3852819b5"},
	{"snp_default", 1, "console=ttyS0 loglevel=7", true, 0x21, QEMU, "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba7e534442e7e1e17895dfe778d0228977"},
	{"snp_guest_feature_snp_only", 1, "console=ttyS0 loglevel=7", true, 0x1, QEMU, "6d287813eb5222d770f75005c664e34c204f385ce832cc2ce7d0d6f354454362f390ef83a92046c042e706363b4b08fa"},
	{"snp_without_kernel_default", 1, "", false, 0x21, QEMU, "e1e1ca029dd7973ab9513295be68198472dcd4fc834bd9af9b63f6e8a1674dbf281a9278a4a2ebe0eed9f22adbcd0e2b"},
	{"snp_without_kernel_feature_snp_only", 1, "", false, 0x1, QEMU, "19358ba9a7615534a9a1e2f0dfc29384dcd4dcb7062ff9c6013b26869a5fc6ecabe033c48dd6f6db5d6d76e7c5df632d"},
	{"snp_with_multiple_vcpus_default", 4, "", true, 0x21, QEMU, "4953b1fb416fa874980e8442b3706d345926d5f38879134e00813c5d7abcbe78eafe7b422907be0b4698e2414a631942"},
	{"snp_with_multiple_vcpus_feature_snp_only", 4, "", true, 0x1, QEMU, "5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a92441310ba6c4933de877c36e23046ad5"},
	{"snp_ec2_default", 1, "", true, 0x21, EC2, "0ce9ccc06bab55eebe8abc234f3df6514883977a68a591b71052498ab52b2f1aa415db338033946ef93aa8278c0d67fb"},
	{"snp_ec2_feature_snp_only", 1, "", true, 0x1, EC2, "0883bd0eeb716e65b7b977a321c278d1e51b33b5c655fab985443bbcc65c086b9c15e8a0bd8811050dec7e24964e5056"},
	{"snp_gce_default", 1, "", true, 0x1, GCE, "5da7106cf14cf46b1725ebab123eb9e53bd46a1e9f400cd0c08e7827b04b688ea8b4e403c8404efed4397ea5d5d0722e"},
	{"snp_gce_with_multiple_vcpus_default", 4, "", true, 0x1, GCE, "5c5debf100fc339f90276e761ee1f1658d08922c3b20e2a2e6c7a6c3370b2452a15a00eae11886a93d6fd1e7ab81e29d"},
}

func (v snpVector) input(t *testing.T, firmware []byte) *SNP {
	s := &SNP{Firmware: firmware, VCPUs: v.vcpus, GuestFeatures: v.features, VMM: v.vmm}
	if v.kernel {
		s.Boot = &Boot{Kernel: []byte{}, CommandLine: v.append}
	}
	if v.vmm == QEMU {
		var err error
		if s.VCPUSignature, err = VCPUSignature("EPYC-v4"); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// A firmware with the same metadata and the published digest of its pages gives all of the
// published launch digests, without the file.
func TestSNPVectors(t *testing.T) {
	firmware := sevImage(amdSevReset, amdSevHashTable, amdSevSections)
	for _, v := range snpVectors {
		s := v.input(t, firmware)
		s.FirmwareDigest = digest(t, amdSevDigest)
		if got, err := s.LaunchDigest(); err != nil || got.String() != v.want {
			t.Errorf("%s: got %v, %v, want %s", v.name, got, err, v.want)
		}
	}
}

// The same with the file, which also shows the page step and the parser on real firmware.
func TestSNPVectorFiles(t *testing.T) {
	firmware := vectorFile(t, "ovmf_AmdSev_suffix.bin", amdSevSum)
	if got, err := FirmwareDigest(firmware); err != nil || got.String() != amdSevDigest {
		t.Errorf("firmware: got %v, %v", got, err)
	}
	for _, v := range snpVectors {
		if got, err := v.input(t, firmware).LaunchDigest(); err != nil || got.String() != v.want {
			t.Errorf("%s: got %v, %v, want %s", v.name, got, err, v.want)
		}
	}
	x64 := vectorFile(t, "ovmf_OvmfX64_suffix.bin", ovmfX64Sum)
	for features, want := range map[uint64]string{
		0x21: "28797ae0afaba4005a81e629acebfb59e6687949d6be44007cd5506823b0dd66f146aaae26ff291eed7b493d8a64c385",
		0x1:  "da0296de8193586a5512078dcd719eccecbd87e2b825ad4148c44f665dc87df21e5b49e21523a9ad993afdb6a30b4005",
	} {
		s := snpVector{vcpus: 1, features: features, vmm: QEMU}.input(t, x64)
		if got, err := s.LaunchDigest(); err != nil || got.String() != want {
			t.Errorf("OvmfX64, features %#x: got %v, %v, want %s", features, got, err, want)
		}
	}
}

// COCONUT-SVSM: the authors launched these two files and took the measurement from the
// hardware (virtee/sev-snp-measure, tests/fixtures/README.md).
func TestSVSMVectorFiles(t *testing.T) {
	ovmf, svsm := vectorFile(t, "svsm_ovmf.fd", svsmOVMFSum), vectorFile(t, "svsm.bin", svsmSum)
	for vcpus, want := range map[int]string{
		2: "9b94745036aafddf4f7f8b00c7513abb5b7703178cb95aaa57928bd963d68d3bfcb715d6019b9167ee2517b11b0d9be7",
		4: "27d154c27b7b359c935e250ec6fee72aa0ae8c1225e3b0e1cf46a9567e938066d7d6f94bbdc4a857818bdb79277a44b2",
	} {
		s := snpVector{vcpus: vcpus, features: 1, vmm: QEMU}.input(t, ovmf)
		s.SVSM, s.VarsSize = svsm, 540672
		if got, err := s.LaunchDigest(); err != nil || got.String() != want {
			t.Errorf("%d vCPUs: got %v, %v, want %s", vcpus, got, err, want)
		}
	}
}

// A Milan chip signed this MEASUREMENT: the report of Dstack-TEE/dstack
// dstack/dstack-attest/tests/sev_snp_attestation.bin (2026-06-17, QEMU, guest features 1),
// which is among the samples that attest/sevsnp verifies; the inputs are what its launcher
// wrote beside it (dstack/dstack-mr/src/sev.rs, REAL_MEASUREMENT_DOC).
func TestSNPSignedMeasurement(t *testing.T) {
	const measurement = "7f51e17f72a04d5422cb2c00998166536019a217376f3aa45a630e59c805a599847ff250dbffcd07e1ba639771d6f05d"
	const cmdline = "console=ttyS0 init=/init panic=1 net.ifnames=0 biosdevname=0 mce=off oops=panic pci=noearly pci=nommconf " +
		"random.trust_cpu=y random.trust_bootloader=n tsc=reliable no-kvmclock " +
		"dstack.rootfs_hash=ca5adaef0ac3a36108035925763b48a5818f634e700fbaab561d419fd30d7121 dstack.rootfs_size=490713088"
	sum := func(s string) (out [sha256.Size]byte) {
		if n, err := hex.Decode(out[:], []byte(s)); err != nil || n != len(out) {
			t.Fatal(n, err)
		}
		return out
	}
	f, err := parseFirmware(sevImage(8433668, 8457216, []sevSection{{8388608, 36864, 1}, {8429568, 12288, 1}, {8441856, 4096, 2},
		{8445952, 4096, 3}, {8450048, 4096, 4}, {8458240, 61440, 1}, {8454144, 4096, 16}}))
	if err != nil {
		t.Fatal(err)
	}
	s := snpVector{vcpus: 2, features: 1, vmm: QEMU}.input(t, nil)
	s.FirmwareDigest = digest(t, "ffb57e393469a497c0e3b07bd1c97d8611e555f464d14491837665893ac642b263a71f9507ff100a847897fe0c3f8c6f")
	hashes := kernelHashes(cmdline, sum("5f844c4a2ca5a3d0711b3db38293b21ba929bb8e0b3c5bc1a779a57f69221c19"),
		sum("dd9ea274ce9a07090b22e8284b0c841b65c021c2d15ca57d0f16731089dd226c"))
	if got, err := s.launch(f, hashes); err != nil || got.String() != measurement {
		t.Errorf("got %v, %v, want %s", got, err, measurement)
	}
}

// google/gce-tcb-verifier, sev/sev_test.go: pages of a pattern, and blank ones.
func TestGCTX(t *testing.T) {
	data := make([]byte, 3*pageSize)
	copy(data, "LGTMLGTMLGTMLGTM")
	copy(data[len(data)-16:], "LGTMLGTMLGTMLGTM")
	var normal, zero gctx
	normal.normal(0, data)
	zero.blank(pageZero, 0x9000, 3*pageSize)
	for _, c := range []struct {
		got  gctx
		want string
	}{
		{normal, "cba1cd767c33b30f96271837dbbae4081a945464a5af397b9b0336b5d8759ee88cc6b62c05d915c4424a9ac5747437d4"},
		{zero, "4bfe18477ba370a50329da74b9621e721c4f29663176e08fbcf088a17c1bc45f133898b86d5082acbe202a6e9419808a"},
	} {
		if c.got.ld.String() != c.want {
			t.Errorf("got %v, want %s", c.got.ld, c.want)
		}
	}
}

// Everything that makes a figure wrong without being seen is refused.
func TestSNPRefused(t *testing.T) {
	good := func() *SNP {
		return &SNP{Firmware: sevImage(amdSevReset, amdSevHashTable, amdSevSections), VCPUs: 1, VCPUSignature: 0x800f12, GuestFeatures: 1, VMM: QEMU}
	}
	if _, err := good().LaunchDigest(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, want string
		edit       func(*SNP)
	}{
		{"no VMM", `VMM ""`, func(s *SNP) { s.VMM = "" }},
		{"no signature", "vCPU signature: none", func(s *SNP) { s.VCPUSignature = 0 }},
		{"a signature that is not measured", "ec2 does not measure it", func(s *SNP) { s.VMM = EC2 }},
		{"the same, gce", "gce does not measure it", func(s *SNP) { s.VMM = GCE }},
		{"no vCPU", "0 vCPUs", func(s *SNP) { s.VCPUs = 0 }},
		{"too many vCPUs", "4097 vCPUs", func(s *SNP) { s.VCPUs = 4097 }},
		{"no SNP", "SNPActive", func(s *SNP) { s.GuestFeatures = 0x20 }},
		{"no firmware", "firmware: 0 bytes", func(s *SNP) { s.Firmware = nil }},
		{"no kernel", "kernel: none", func(s *SNP) { s.Boot = &Boot{} }},
		{"command line", "byte 0x0a", func(s *SNP) { s.Boot = &Boot{Kernel: []byte("k"), CommandLine: "a\nb"} }},
		{"command line of UTF-8", "byte 0xc3", func(s *SNP) { s.Boot = &Boot{Kernel: []byte("k"), CommandLine: "é"} }},
		{"command line with DEL", "byte 0x7f", func(s *SNP) { s.Boot = &Boot{Kernel: []byte("k"), CommandLine: "\x7f"} }},
		{"hashes just before their page", "do not fit", func(s *SNP) {
			s.Firmware, s.Boot = sevImage(amdSevReset, 0x80ffb0, amdSevSections), &Boot{Kernel: []byte("k")}
		}},
		{"kernel that is not measured", "would not measure the kernel", func(s *SNP) {
			s.Firmware, s.Boot = sevImage(amdSevReset, 0, ovmfX64Sections), &Boot{Kernel: []byte("k")}
		}},
		{"hashes outside of their page", "do not fit", func(s *SNP) {
			s.Firmware, s.Boot = sevImage(amdSevReset, 0x810f80, amdSevSections), &Boot{Kernel: []byte("k")}
		}},
		{"hashes before their page", "do not fit", func(s *SNP) {
			s.Firmware, s.Boot = sevImage(amdSevReset, 0x80fc00, amdSevSections), &Boot{Kernel: []byte("k")}
		}},
		{"no place for hashes", "no place for kernel hashes", func(s *SNP) {
			s.Firmware = image(2*pageSize, tableEntry(guidSEVESReset, u32(1)), tableEntry(guidSEVMetadata, u32(2*pageSize)))
			copy(s.Firmware, encodeSEV(amdSevSections))
			s.Boot = &Boot{Kernel: []byte("k")}
		}},
		{"no reset vector", "no AP reset vector", func(s *SNP) {
			s.Firmware = image(2*pageSize, tableEntry(guidSEVMetadata, u32(2*pageSize)))
			copy(s.Firmware, encodeSEV(ovmfX64Sections))
		}},
		{"variables without SVSM", "only with an SVSM", func(s *SNP) { s.VarsSize = pageSize }},
		{"SVSM elsewhere", "known for qemu only", func(s *SNP) { s.SVSM, s.VMM, s.VCPUSignature = []byte{1}, EC2, 0 }},
		{"SVSM with kernel", "beside an SVSM", func(s *SNP) { s.SVSM, s.Boot = []byte{1}, &Boot{Kernel: []byte("k")} }},
		{"SVSM with features", "launched with 0x1", func(s *SNP) { s.SVSM, s.GuestFeatures = []byte{1}, 0x21 }},
		{"no SVSM image", "SVSM: firmware: 1 bytes", func(s *SNP) { s.SVSM = []byte{1} }},
		{"no room", "leave room", func(s *SNP) { s.SVSM, s.VarsSize = s.Firmware, 0xfffff000 }},
		{"part of a page", "whole pages", func(s *SNP) { s.SVSM, s.VarsSize = s.Firmware, 1 }},
		{"SVSM without metadata", "SVSM: firmware: no SEV metadata", func(s *SNP) { s.SVSM = image(pageSize, tableEntry(guidSVSMInfo, u32(16))) }},
		{"no SVSM info", "no SVSM info", func(s *SNP) { s.SVSM = s.Firmware }},
	} {
		s := good()
		c.edit(s)
		if _, err := s.LaunchDigest(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

// svsmImage is an SVSM that begins at an offset.
func svsmImage(offset uint32) []byte {
	out := image(2*pageSize, tableEntry(guidSVSMInfo, u32(offset)), tableEntry(guidSEVMetadata, u32(2*pageSize)))
	copy(out, encodeSEV(ovmfX64Sections))
	return out
}

// Each input moves the digest: nothing that is given is left out.
func TestSNPInputsCount(t *testing.T) {
	good := func() *SNP {
		return &SNP{Firmware: sevImage(amdSevReset, amdSevHashTable, amdSevSections), VCPUs: 2, VCPUSignature: 0x800f12, GuestFeatures: 1,
			VMM: QEMU, Boot: &Boot{Kernel: []byte("k"), Initrd: []byte("i"), CommandLine: "c"}}
	}
	seen := map[Digest]string{}
	for name, edit := range map[string]func(*SNP){
		"unchanged":    func(*SNP) {},
		"firmware":     func(s *SNP) { s.Firmware[1000] ^= 1 },
		"reset vector": func(s *SNP) { s.Firmware = sevImage(amdSevReset+4, amdSevHashTable, amdSevSections) },
		"kernel":       func(s *SNP) { s.Boot.Kernel = []byte("l") },
		"initrd":       func(s *SNP) { s.Boot.Initrd = nil },
		"command line": func(s *SNP) { s.Boot.CommandLine = "" },
		"no boot":      func(s *SNP) { s.Boot = nil },
		"vCPUs":        func(s *SNP) { s.VCPUs = 3 },
		"signature":    func(s *SNP) { s.VCPUSignature++ },
		"features":     func(s *SNP) { s.GuestFeatures = 0x21 },
		"SVSM":         func(s *SNP) { s.Boot, s.SVSM = nil, svsmImage(16) },
		"SVSM entry":   func(s *SNP) { s.Boot, s.SVSM = nil, svsmImage(32) },
		"SVSM place":   func(s *SNP) { s.Boot, s.SVSM, s.VarsSize = nil, svsmImage(16), pageSize },
		"SVSM vCPUs":   func(s *SNP) { s.Boot, s.SVSM, s.VCPUs = nil, svsmImage(16), 3 },
		"SVSM vCPU":    func(s *SNP) { s.Boot, s.SVSM, s.VCPUSignature = nil, svsmImage(16), 1 },
		"ec2":          func(s *SNP) { s.VMM, s.VCPUSignature = EC2, 0 },
		"gce":          func(s *SNP) { s.VMM, s.VCPUSignature = GCE, 0 },
	} {
		s := good()
		edit(s)
		d, err := s.LaunchDigest()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if other, twice := seen[d]; twice {
			t.Errorf("%s and %s give the same digest", name, other)
		}
		seen[d] = name
	}
}

func TestDigestText(t *testing.T) {
	d := sha384([]byte("x"))
	text, err := d.MarshalText()
	var back Digest
	if err != nil || back.UnmarshalText(text) != nil || back != d {
		t.Errorf("got %v of %s, %v", back, text, err)
	}
	for _, s := range []string{"", "00", strings.Repeat("0", 95), strings.Repeat("0", 97), strings.Repeat("0", 98), strings.Repeat("x", 96)} {
		if err := back.UnmarshalText([]byte(s)); err == nil {
			t.Errorf("%q: accepted", s)
		}
	}
}

func TestVCPUSignature(t *testing.T) {
	for name, want := range map[string]uint32{"EPYC": 0x800f12, "EPYC-v4": 0x800f12, "EPYC-Milan-v2": 0xa00f11, "EPYC-Genoa": 0xa10f10} {
		if got, err := VCPUSignature(name); err != nil || got != want {
			t.Errorf("%s: got %#x, %v, want %#x", name, got, err, want)
		}
	}
	for _, name := range []string{"", "epyc", "EPYC-", "EPYC-v", "EPYC-v0", "EPYC-v12", "EPYC-vx", "EPYC-Milan-v1-v2", "Skylake"} {
		if got, err := VCPUSignature(name); err == nil {
			t.Errorf("%q: got %#x", name, got)
		}
	}
	// virtee/sev-snp-measure, tests/test_vcpu_types.py
	if got, err := CPUSignature(14, 1, 2); err != nil || got != 0x0e12 {
		t.Errorf("got %#x, %v", got, err)
	}
	for _, c := range [][3]uint32{{0x10f, 0, 0}, {0, 0x100, 0}, {0, 0, 0x10}} {
		if got, err := CPUSignature(c[0], c[1], c[2]); err == nil {
			t.Errorf("%v: got %#x", c, got)
		}
	}
}
