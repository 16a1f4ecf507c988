package measure

import (
	"bytes"
	"strings"
	"testing"
)

// tableEntry encodes one entry of OVMF's table.
func tableEntry(g guid, data []byte) []byte {
	out := append([]byte{}, data...)
	out = le.AppendUint16(out, uint16(len(data)+tableEntryHeader))
	return append(out, g[:]...)
}

// image is a firmware of size bytes of a pattern that ends with the given entries.
func image(size int, entries ...[]byte) []byte {
	out := make([]byte, size)
	for i := range out {
		out[i] = byte(i*13 + 5)
	}
	table := bytes.Join(entries, nil)
	tail := le.AppendUint16(table, uint16(len(table)+tableEntryHeader))
	tail = append(tail, guidTableFooter[:]...)
	tail = append(tail, make([]byte, bytesBehindFooter)...)
	copy(out[size-len(tail):], tail)
	return out
}

func u32(vs ...uint32) []byte {
	var out []byte
	for _, v := range vs {
		out = le.AppendUint32(out, v)
	}
	return out
}

// The metadata of edk2-stable202405's OvmfPkg/AmdSev build and of its OvmfPkgX64 build: the
// facts that the published digests below were computed from.
var (
	amdSevSections = []sevSection{{0x800000, 0x9000, 1}, {0x80a000, 0x3000, 1}, {0x80d000, 0x1000, 2}, {0x80e000, 0x1000, 3},
		{0x80f000, 0x1000, 4}, {0x810000, 0x1000, 0x10}, {0x811000, 0xf000, 1}}
	ovmfX64Sections = []sevSection{{0x800000, 0x9000, 1}, {0x80a000, 0x3000, 1}, {0x80d000, 0x1000, 2}, {0x80e000, 0x1000, 3},
		{0x80f000, 0x1000, 4}, {0x810000, 0x10000, 1}}
)

const (
	amdSevReset     = 0x80b004
	amdSevHashTable = 0x810c00
)

func encodeSEV(sections []sevSection) []byte {
	n := uint32(len(sections))
	out := append([]byte("ASEV"), u32(16+12*n, 1, n)...)
	for _, s := range sections {
		out = append(out, u32(s.gpa, s.size, s.kind)...)
	}
	return out
}

// sevImage is a firmware with SEV metadata at its beginning.
func sevImage(reset, hashTable uint32, sections []sevSection) []byte {
	const size = 2 * pageSize
	out := image(size, tableEntry(guidSEVESReset, u32(reset)), tableEntry(guidSEVHashTable, u32(hashTable, 0x400)),
		tableEntry(guidSEVMetadata, u32(size)))
	copy(out, encodeSEV(sections))
	return out
}

func TestGUIDs(t *testing.T) {
	for _, g := range []guid{guidTableFooter, guidSEVHashTable, guidSEVESReset, guidSEVMetadata, guidTDXMetadata, guidSVSMInfo,
		guidHashTable, guidKernel, guidInitrd, guidCmdline} {
		if g == (guid{}) || newGUID(g.String()) != g {
			t.Errorf("%v is malformed", g)
		}
	}
	if got := guidTableFooter[:4]; !bytes.Equal(got, []byte{0xde, 0x82, 0xb5, 0x96}) {
		t.Errorf("byte order: got %x", got)
	}
}

func TestFirmwareRefused(t *testing.T) {
	good := func() []byte { return sevImage(amdSevReset, amdSevHashTable, amdSevSections) }
	if f, err := parseFirmware(good()); err != nil {
		t.Fatal(err)
	} else if s, err := f.sevMetadata(); err != nil || len(s) != len(amdSevSections) {
		t.Fatalf("got %v, %v", s, err)
	}
	footer := 2*pageSize - bytesBehindFooter - tableEntryHeader
	last := footer - tableEntryHeader // header of the entry before the footer
	edit := func(f func([]byte)) []byte { b := good(); f(b); return b }
	for _, c := range []struct {
		name, want string
		data       []byte
	}{
		{"empty", "want a multiple of", nil},
		{"not whole pages", "want a multiple of", good()[:pageSize+1]},
		{"too large", "the limit is", make([]byte, MaxFirmware+pageSize)},
		{"no table", "no OVMF table", make([]byte, pageSize)},
		{"short table", "table of 17 bytes", edit(func(b []byte) { le.PutUint16(b[footer:], 17) })},
		{"long table", "table of 65535 bytes", edit(func(b []byte) { le.PutUint16(b[footer:], 0xffff) })},
		{"bytes of no entry", "belong to no entry", edit(func(b []byte) { le.PutUint16(b[footer:], le.Uint16(b[footer:])+5) })},
		{"short entry", "of 17 bytes", edit(func(b []byte) { le.PutUint16(b[last:], 17) })},
		{"long entry", "of 4096 bytes", edit(func(b []byte) { le.PutUint16(b[last:], 4096) })},
		{"same entry twice", "two table entries", image(pageSize, tableEntry(guidSEVESReset, u32(1)), tableEntry(guidSEVESReset, u32(1)))},
	} {
		if _, err := parseFirmware(c.data); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
	with := func(s ...sevSection) []byte { return sevImage(amdSevReset, amdSevHashTable, s) }
	for _, c := range []struct {
		name, want string
		data       []byte
	}{
		{"none", "no SEV metadata", image(pageSize, tableEntry(guidSEVESReset, u32(1)))},
		{"short entry", "of 3 bytes, want at least 4", image(pageSize, tableEntry(guidSEVMetadata, []byte{1, 2, 3}))},
		{"beyond the image", "before the end", image(pageSize, tableEntry(guidSEVMetadata, u32(pageSize+1)))},
		{"header cut", "before the end", image(pageSize, tableEntry(guidSEVMetadata, u32(15)))},
		{"signature", "signature", edit(func(b []byte) { b[0] = 'X' })},
		{"size", "size 101", edit(func(b []byte) { b[4]++ })},
		{"version", "version 2", edit(func(b []byte) { b[8]++ })},
		{"no sections", "0 sections", with()},
		{"many sections", "65 sections, want", edit(func(b []byte) { b[12] = 65 })},
		{"sections beyond", "beyond the image", append(image(pageSize, tableEntry(guidSEVMetadata, u32(16)))[:pageSize-16],
			append([]byte("ASEV"), u32(28, 1, 1)...)...)},
		{"address", "whole pages", with(sevSection{1, pageSize, 1})},
		{"part of a page", "whole pages", with(sevSection{0, 1, 1})},
		{"no page", "whole pages", with(sevSection{0, 0, 1})},
		{"type", "unknown type 0x7", with(sevSection{0, pageSize, 7})},
		{"two CPUID pages", "one page", with(sevSection{0, 2 * pageSize, 3})},
		{"two pages of secrets", "one page", with(sevSection{0, 2 * pageSize, 2})},
		{"two pages of hashes", "one page", with(sevSection{0, 2 * pageSize, 0x10})},
		{"too much", "the limit is", with(sevSection{0, 63 << 20, 1}, sevSection{0, 2 << 20, 1})},
	} {
		f, err := parseFirmware(c.data)
		if err == nil {
			_, err = f.sevMetadata()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("metadata, %s: got %v, want %q", c.name, err, c.want)
		}
	}
}
