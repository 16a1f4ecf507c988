package measure

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"slices"
)

// PEDigests are the Authenticode digests of a PE image.
type PEDigests struct {
	SHA256 [sha256.Size]byte
	SHA384 Digest
}

// IsPE reports whether data begins as a PE image does: EFI applications, unified kernel
// images, and Linux kernels with an EFI stub.
func IsPE(data []byte) bool {
	if len(data) < 0x40 || data[0] != 'M' || data[1] != 'Z' {
		return false
	}
	at := uint64(le.Uint32(data[0x3c:]))
	return at+4 <= uint64(len(data)) && string(data[at:at+4]) == "PE\x00\x00"
}

// Authenticode returns the digests that UEFI firmware measures of an image which it loads
// (event EV_EFI_BOOT_SERVICES_APPLICATION, into PCR 4 or RTMR1) and that a signature of it
// signs: headers without checksum and certificate table entry, sections in the order of the
// file, and what follows them without the certificate table (Microsoft, "Windows
// Authenticode Portable Executable Signature Format"; edk2, DxeTpm2MeasureBootLib). Nothing is padded: the firmware
// hashes the file as it is.
func Authenticode(data []byte) (PEDigests, error) {
	parts, err := authenticodeParts(data)
	if err != nil {
		return PEDigests{}, fmt.Errorf("PE image: %w", err)
	}
	all := bytes.Join(parts, nil)
	return PEDigests{sha256.Sum256(all), Digest(sha512.Sum384(all))}, nil
}

// peHeader is what the digest needs of a PE header (Microsoft, "PE Format").
type peHeader struct {
	checksum    int // offset of CheckSum
	certificate int // offset of the certificate table's directory entry, 0 without one
	headers     int // SizeOfHeaders
	certSize    int
	sections    [][2]int // offset and size in the file, not empty
}

func authenticodeParts(data []byte) ([][]byte, error) {
	h, err := parsePE(data)
	if err != nil {
		return nil, err
	}
	parts := [][]byte{data[:h.checksum]}
	if h.certificate == 0 {
		parts = append(parts, data[h.checksum+4:h.headers])
	} else {
		parts = append(parts, data[h.checksum+4:h.certificate], data[h.certificate+8:h.headers])
	}
	hashed := h.headers
	for _, s := range h.sections {
		if s[0] < hashed {
			return nil, fmt.Errorf("sections overlap at %#x, or overlap the headers", s[0])
		}
		if s[0] > hashed {
			return nil, fmt.Errorf("%d bytes at %#x belong to no section and would not be measured", s[0]-hashed, hashed)
		}
		hashed = s[0] + s[1]
		parts = append(parts, data[s[0]:hashed])
	}
	if rest := len(data) - hashed; h.certSize > rest {
		return nil, fmt.Errorf("certificate table of %d bytes, but %d bytes follow the sections", h.certSize, rest)
	}
	return append(parts, data[hashed:len(data)-h.certSize]), nil
}

func parsePE(data []byte) (peHeader, error) {
	const coffSize, sectionSize, securityEntry, maxSections = 20, 40, 4, 96
	var h peHeader
	if !IsPE(data) {
		return h, fmt.Errorf("no MZ and PE signatures")
	}
	coff := int(le.Uint32(data[0x3c:])) + 4
	optional := coff + coffSize
	if optional+2 > len(data) {
		return h, fmt.Errorf("cut off within its headers")
	}
	count, optionalSize := int(le.Uint16(data[coff+2:])), int(le.Uint16(data[coff+16:]))
	directories := optional + 96
	switch magic := le.Uint16(data[optional:]); magic {
	case 0x10b:
	case 0x20b:
		directories = optional + 112
	default:
		return h, fmt.Errorf("optional header of type %#x, want 0x10b or 0x20b", magic)
	}
	table := optional + optionalSize
	if directories > table || table+count*sectionSize > len(data) || count > maxSections {
		return h, fmt.Errorf("optional header of %d bytes and %d sections do not fit", optionalSize, count)
	}
	h.checksum, h.headers = optional+64, int(le.Uint32(data[optional+60:]))
	if h.headers < table+count*sectionSize || h.headers > len(data) {
		return h, fmt.Errorf("SizeOfHeaders %d, want %d to %d", h.headers, table+count*sectionSize, len(data))
	}
	if le.Uint32(data[directories-4:]) > securityEntry {
		h.certificate = directories + 8*securityEntry
		if h.certificate+8 > table {
			return h, fmt.Errorf("data directories reach beyond the optional header of %d bytes", optionalSize)
		}
		at, size := le.Uint32(data[h.certificate:]), le.Uint32(data[h.certificate+4:])
		if size != 0 && uint64(at)+uint64(size) != uint64(len(data)) {
			return h, fmt.Errorf("certificate table at %#x of %d bytes does not end the file of %d", at, size, len(data))
		}
		h.certSize = int(size)
	}
	for i := range count {
		at := data[table+i*sectionSize:]
		size, offset := le.Uint32(at[16:]), le.Uint32(at[20:])
		if size == 0 {
			continue
		}
		if uint64(offset)+uint64(size) > uint64(len(data)) {
			return h, fmt.Errorf("section %d reaches to %#x of %#x", i, uint64(offset)+uint64(size), len(data))
		}
		h.sections = append(h.sections, [2]int{int(offset), int(size)})
	}
	slices.SortStableFunc(h.sections, func(a, b [2]int) int { return cmp.Compare(a[0], b[0]) })
	return h, nil
}
