package measure

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"strings"
	"testing"
)

// installed reads a file of a package that may be installed.
func installed(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Skip("needs a Debian package:", err)
	}
	return data
}

// syntheticPE is published with aleph-im/aleph-vm (tests/vprogram/test_tdx_measurement.py):
// PE32+, two sections out of the order of the file, 32 bytes that follow them, and a
// certificate table.
func syntheticPE(directories, certSize uint32) []byte {
	pe := make([]byte, 0x440)
	for i := range pe {
		pe[i] = byte(i*7 + 3)
	}
	const coff, optional, table = 0x44, 0x58, 0x58 + 240
	clear(pe[:64])
	copy(pe, "MZ")
	pe[0x3c] = 0x40
	copy(pe[0x40:], "PE\x00\x00")
	clear(pe[coff : table+80])
	le.PutUint16(pe[coff:], 0x8664)
	le.PutUint16(pe[coff+2:], 2)
	le.PutUint16(pe[coff+16:], 240)
	le.PutUint16(pe[optional:], 0x20b)
	le.PutUint32(pe[optional+60:], 0x200)
	le.PutUint32(pe[optional+64:], 0x12345678)
	le.PutUint32(pe[optional+108:], directories)
	le.PutUint32(pe[optional+144:], 0x420)
	le.PutUint32(pe[optional+148:], certSize)
	for i, s := range []struct {
		name   string
		offset uint32
	}{{".text", 0x300}, {".data", 0x200}} {
		copy(pe[table+40*i:], s.name)
		le.PutUint32(pe[table+40*i+16:], 0x100)
		le.PutUint32(pe[table+40*i+20:], s.offset)
	}
	return pe
}

func TestAuthenticodeVector(t *testing.T) {
	const want = "27ca0b497c08dcf49e302a2dd4bbe74889b19d0d1af84364c8cad3472d5ba1bfda1e7cfe7fb94848d491cdfd2a163410"
	pe := syntheticPE(16, 0x20)
	if got, err := Authenticode(pe); err != nil || got.SHA384.String() != want {
		t.Errorf("got %v, %v, want %s", got.SHA384, err, want)
	}
	// Few directories: no certificate table to leave out, and all that follows counts.
	const checksum = 0x58 + 64
	pe = syntheticPE(4, 0x20)
	if got, err := Authenticode(pe); err != nil || got.SHA384 != sha384(pe[:checksum], pe[checksum+4:]) {
		t.Errorf("four directories: got %v, %v", got.SHA384, err)
	}
}

// What OVMF measured into PCR 4 of the signed files of Debian 12: from the event log of the
// boot that is kept as measured-boot/secureboot-on (2026-11-23), which replays to the quoted
// PCR 4.
func TestAuthenticodeOfBoot(t *testing.T) {
	for _, c := range []struct{ path, sum, sha256, sha384 string }{
		{"/usr/lib/shim/shimx64.efi.signed", "0fc347af103ec1dfac6e3f184c0a5241a2ce756a0932b359c404d39c45423806",
			"80a66d53a945d2286fcadd780fae1c225aa732079cd67b5225dc78aaab4e2ff8",
			"e6aeca317d23c019051c761a0a73820b0d7b4862e6f919455a68122b057431d652d9c6cc228853580332a8a9899c2f33"},
		{"/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", "78313ff24688c8b2e1d4f4e1eff13236b2bd29b0f76ba749fd7fff4d305a1d94",
			"a68f6d71ebddaa19751ff8d729f67d11b0df8e4c49400c3e7e90de16119e1265",
			"e76b5df31a3a1564e26b1a4d3abe025955a98c6f69704e5953d8e1f8d51693df29af4c9a7e832386528c936827a408b0"},
		{"/boot/vmlinuz-6.1.0-56-amd64", "26f2e57c99338feaf71c46fa4babdc7e1a6c115943002d109fdb746667104f5f",
			"6b1bf35c3bee9918250f593a6fff889c75c1e239cd2fe9e5bb0cd3de9dcb8e51",
			"e494e71ba795e8fc3edc1b3cab678c8c8782a6efe14d2d5a25155dc948b53f7d1dab088ff7005b7e6f9b0534738660e2"},
	} {
		t.Run(c.path, func(t *testing.T) {
			data := installed(t, os.Getenv("MEASURE_ROOT")+c.path)
			if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != c.sum {
				t.Skip("another version of the package")
			}
			got, err := Authenticode(data)
			if err != nil || hex.EncodeToString(got.SHA256[:]) != c.sha256 || got.SHA384.String() != c.sha384 {
				t.Errorf("got %x, %v, %v", got.SHA256, got.SHA384, err)
			}
		})
	}
}

func TestAuthenticodeRefused(t *testing.T) {
	edit := func(f func([]byte)) []byte { pe := syntheticPE(16, 0x20); f(pe); return pe }
	put := func(at int, v uint32) []byte { return edit(func(pe []byte) { le.PutUint32(pe[at:], v) }) }
	const optional, table = 0x58, 0x58 + 240
	for _, c := range []struct {
		name, want string
		data       []byte
	}{
		{"short", "no MZ", []byte("MZ")},
		{"no MZ", "no MZ", edit(func(pe []byte) { pe[0] = 'X' })},
		{"half of MZ", "no MZ", edit(func(pe []byte) { pe[1] = 'X' })},
		{"sections behind the file", "96 sections do not fit", edit(func(pe []byte) { le.PutUint16(pe[0x44+2:], 96) })},
		{"many sections", "97 sections do not fit", append(edit(func(pe []byte) { le.PutUint16(pe[0x44+2:], 97) }), make([]byte, 97*40)...)},
		{"no PE", "no MZ and PE", edit(func(pe []byte) { pe[0x40] = 'X' })},
		{"PE beyond the file", "no MZ and PE", put(0x3c, 0xffffffff)},
		{"cut off", "cut off", syntheticPE(16, 0x20)[:optional]},
		{"magic", "type 0x207", edit(func(pe []byte) { pe[optional] = 7 })},
		{"optional header", "do not fit", edit(func(pe []byte) { le.PutUint16(pe[0x44+16:], 100) })},
		{"sections", "do not fit", edit(func(pe []byte) { le.PutUint16(pe[0x44+2:], 0xffff) })},
		{"small headers", "SizeOfHeaders 407", put(optional+60, table+79)},
		{"large headers", "SizeOfHeaders 1089", put(optional+60, 0x441)},
		{"directories", "beyond the optional header", edit(func(pe []byte) {
			le.PutUint16(pe[0x44+16:], 112+36)
			le.PutUint16(pe[0x44+2:], 0)
		})},
		{"certificates within the file", "does not end the file", syntheticPE(16, 0x10)},
		{"certificates beyond the file", "does not end the file", syntheticPE(16, 0x21)},
		{"certificates in a section", "follow the sections", edit(func(pe []byte) {
			le.PutUint32(pe[optional+144:], 0x3f0)
			le.PutUint32(pe[optional+148:], 0x50)
		})},
		{"section beyond the file", "section 0 reaches", put(table+20, 0x400)},
		{"section wraps", "section 0 reaches", put(table+20, 0xffffffff)},
		{"overlap", "overlap", put(table+20, 0x280)},
		{"gap", "belong to no section", put(table+20, 0x310)},
	} {
		if got, err := Authenticode(c.data); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, %v, want %q", c.name, got.SHA384, err, c.want)
		}
	}
}
