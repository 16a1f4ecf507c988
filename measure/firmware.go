package measure

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"
)

// guid is a GUID in the byte order of EFI: the first three groups little-endian.
type guid [16]byte

// newGUID is for the constants of this package: a malformed one gives the zero guid, which
// the tests look for.
func newGUID(s string) guid {
	raw, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(raw) != 16 {
		return guid{}
	}
	g := guid(raw)
	g[0], g[1], g[2], g[3] = raw[3], raw[2], raw[1], raw[0]
	g[4], g[5], g[6], g[7] = raw[5], raw[4], raw[7], raw[6]
	return g
}

func (g guid) String() string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(g[0:]), le.Uint16(g[4:]), le.Uint16(g[6:]), g[8:10], g[10:])
}

// GUIDs of OVMF's table (edk2, OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm and
// OvmfPkg/Include/WorkArea.h).
var (
	guidTableFooter   = newGUID("96b582de-1fb2-45f7-baea-a366c55a082d")
	guidSEVHashTable  = newGUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
	guidSEVESReset    = newGUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
	guidSEVMetadata   = newGUID("dc886566-984a-4798-a75e-5585a7bf67cc")
	guidTDXMetadata   = newGUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
	guidSVSMInfo      = newGUID("a789a612-0597-4c4b-a49f-cbb1fe9d1ddd")
	errNoTable        = "no OVMF table at the end: this is no OVMF or TDVF image, or only its CODE or VARS half"
	tableEntryHeader  = 18 // u16 size, GUID
	bytesBehindFooter = 32 // the reset vector
)

// firmware is an OVMF image, or an SVSM of the same shape, with the table at its end.
//
//	… | data | u16 size | GUID |  …  | u16 size of table | footer GUID | 32 bytes | EOF
//
// The table is read backwards. A size counts its own 18 bytes.
type firmware struct {
	data  []byte
	table map[guid][]byte
}

func parseFirmware(data []byte) (*firmware, error) {
	switch {
	case len(data) > MaxFirmware:
		return nil, fmt.Errorf("firmware: %d bytes, the limit is %d", len(data), MaxFirmware)
	case len(data) == 0 || len(data)%pageSize != 0:
		return nil, fmt.Errorf("firmware: %d bytes, want a multiple of %d", len(data), pageSize)
	}
	end := len(data) - bytesBehindFooter
	start := end - tableEntryHeader
	if !bytes.Equal(data[start+2:end], guidTableFooter[:]) {
		return nil, fmt.Errorf("firmware: %s", errNoTable)
	}
	size := int(le.Uint16(data[start:]))
	if size < tableEntryHeader || size-tableEntryHeader > start {
		return nil, fmt.Errorf("firmware: table of %d bytes, want %d to %d", size, tableEntryHeader, start+tableEntryHeader)
	}
	f := &firmware{data: data, table: map[guid][]byte{}}
	return f, f.parseTable(data[start-(size-tableEntryHeader) : start])
}

func (f *firmware) parseTable(rest []byte) error {
	for len(rest) > 0 {
		if len(rest) < tableEntryHeader {
			return fmt.Errorf("firmware: %d bytes of the table belong to no entry", len(rest))
		}
		g := guid(rest[len(rest)-16:])
		size := int(le.Uint16(rest[len(rest)-tableEntryHeader:]))
		if size < tableEntryHeader || size > len(rest) {
			return fmt.Errorf("firmware: table entry %v of %d bytes, want %d to %d", g, size, tableEntryHeader, len(rest))
		}
		if _, twice := f.table[g]; twice {
			return fmt.Errorf("firmware: two table entries %v", g)
		}
		f.table[g] = rest[len(rest)-size : len(rest)-tableEntryHeader]
		rest = rest[:len(rest)-size]
	}
	return nil
}

// value returns the first u32 of an entry.
func (f *firmware) value(g guid, what string) (uint32, error) {
	data, ok := f.table[g]
	if !ok {
		return 0, fmt.Errorf("firmware: no %s (table entry %v)", what, g)
	}
	if len(data) < 4 {
		return 0, fmt.Errorf("firmware: %s of %d bytes, want at least 4", what, len(data))
	}
	return le.Uint32(data), nil
}

// pointed returns the bytes from where an entry points, counted from the end, to the end.
func (f *firmware) pointed(g guid, what string, least int) ([]byte, error) {
	back, err := f.value(g, what)
	if err != nil {
		return nil, err
	}
	if int64(back) > int64(len(f.data)) || int(back) < least {
		return nil, fmt.Errorf("firmware: %s %d bytes before the end, want %d to %d", what, back, least, len(f.data))
	}
	return f.data[len(f.data)-int(back):], nil
}

// gpa is where the image begins when it ends at end.
func (f *firmware) gpa(end uint64) uint64 { return end - uint64(len(f.data)) }

// maxSections bounds both metadata tables; OVMF has 6 to 8.
const maxSections = 64

// sevSection is a range that SEV metadata names.
type sevSection struct {
	gpa, size, kind uint32
}

// Section types of SEV metadata (edk2, OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm).
const (
	sevSecMem       = 1
	sevSecrets      = 2
	sevCPUID        = 3
	sevSVSMCAA      = 4
	sevKernelHashes = 0x10
)

// sevMetadata parses
//
//	"ASEV" | u32 size | u32 version 1 | u32 n | n × (u32 gpa | u32 size | u32 type)
func (f *firmware) sevMetadata() ([]sevSection, error) {
	const header, item, maxBytes = 16, 12, 64 << 20
	data, err := f.pointed(guidSEVMetadata, "SEV metadata", header)
	if err != nil {
		return nil, err
	}
	n := le.Uint32(data[12:])
	switch {
	case string(data[:4]) != "ASEV":
		return nil, fmt.Errorf("firmware: SEV metadata: signature %q, want \"ASEV\"", data[:4])
	case le.Uint32(data[8:]) != 1:
		return nil, fmt.Errorf("firmware: SEV metadata: version %d, want 1", le.Uint32(data[8:]))
	case n == 0 || n > maxSections:
		return nil, fmt.Errorf("firmware: SEV metadata: %d sections, want 1 to %d", n, maxSections)
	case le.Uint32(data[4:]) != header+item*n:
		return nil, fmt.Errorf("firmware: SEV metadata: size %d, want %d for %d sections", le.Uint32(data[4:]), header+item*n, n)
	case int(header+item*n) > len(data):
		return nil, fmt.Errorf("firmware: SEV metadata: %d sections reach beyond the image", n)
	}
	out := make([]sevSection, n)
	total := uint64(0)
	for i := range out {
		at := data[header+item*i:]
		s := sevSection{le.Uint32(at), le.Uint32(at[4:]), le.Uint32(at[8:])}
		total += uint64(s.size)
		if err := s.check(); err != nil {
			return nil, fmt.Errorf("firmware: SEV metadata: section %d: %w", i, err)
		}
		out[i] = s
	}
	if total > maxBytes {
		return nil, fmt.Errorf("firmware: SEV metadata: sections of %d bytes, the limit is %d", total, maxBytes)
	}
	return out, nil
}

func (s sevSection) check() error {
	if s.gpa%pageSize != 0 || s.size%pageSize != 0 || s.size == 0 {
		return fmt.Errorf("address %#x, size %#x, want whole pages", s.gpa, s.size)
	}
	switch s.kind {
	case sevSecMem, sevSVSMCAA:
	case sevSecrets, sevCPUID, sevKernelHashes:
		if s.size != pageSize {
			return fmt.Errorf("size %#x, want one page for type %#x", s.size, s.kind)
		}
	default:
		return fmt.Errorf("unknown type %#x", s.kind)
	}
	return nil
}
