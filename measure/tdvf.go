package measure

import "fmt"

// tdvfSection is a range that TDVF metadata names (Intel TDX Virtual Firmware Design Guide
// 1.01, table 11-2).
type tdvfSection struct {
	offset, size uint32 // in the image
	gpa, memory  uint64 // in the guest
	kind         uint32
	attributes   uint32
}

// Section types: those that QEMU launches.
const (
	tdvfBFV     = 0 // boot firmware volume: code
	tdvfCFV     = 1 // configuration firmware volume: variables
	tdvfTDHOB   = 2
	tdvfTempMem = 3
)

// Section attributes.
const (
	tdvfMRExtend = 1 // contents are measured
	tdvfPageAug  = 2 // pages are not added at launch
)

// tdvfMetadata parses
//
//	"TDVF" | u32 length | u32 version 1 | u32 n | n × (u32 offset | u32 size | u64 gpa |
//	u64 memory size | u32 type | u32 attributes)
func (f *firmware) tdvfMetadata() ([]tdvfSection, error) {
	const header, item = 16, 32
	data, err := f.pointed(guidTDXMetadata, "TDVF metadata", header)
	if err != nil {
		return nil, err
	}
	n := le.Uint32(data[12:])
	switch {
	case string(data[:4]) != "TDVF":
		return nil, fmt.Errorf("firmware: TDVF metadata: signature %q, want \"TDVF\"", data[:4])
	case le.Uint32(data[8:]) != 1:
		return nil, fmt.Errorf("firmware: TDVF metadata: version %d, want 1", le.Uint32(data[8:]))
	case n == 0 || n > maxSections:
		return nil, fmt.Errorf("firmware: TDVF metadata: %d sections, want 1 to %d", n, maxSections)
	case le.Uint32(data[4:]) != header+item*n:
		return nil, fmt.Errorf("firmware: TDVF metadata: length %d, want %d for %d sections", le.Uint32(data[4:]), header+item*n, n)
	case int(header+item*n) > len(data):
		return nil, fmt.Errorf("firmware: TDVF metadata: %d sections reach beyond the image", n)
	}
	out := make([]tdvfSection, n)
	filled, memory := uint64(0), uint64(0)
	for i := range out {
		at := data[header+item*i:]
		out[i] = tdvfSection{le.Uint32(at), le.Uint32(at[4:]), le.Uint64(at[8:]), le.Uint64(at[16:]), le.Uint32(at[24:]), le.Uint32(at[28:])}
		if err := out[i].check(f.data); err != nil {
			return nil, fmt.Errorf("firmware: TDVF metadata: section %d: %w", i, err)
		}
		filled, memory = filled+uint64(out[i].size), memory+out[i].memory
	}
	if memory > 2*MaxFirmware {
		return nil, fmt.Errorf("firmware: TDVF metadata: sections of %#x bytes of memory, the limit is %#x", memory, 2*MaxFirmware)
	}
	if filled > uint64(len(f.data)) {
		return nil, fmt.Errorf("firmware: TDVF metadata: sections take %#x bytes of an image of %#x", filled, len(f.data))
	}
	return out, nil
}

func (s tdvfSection) check(image []byte) error {
	switch {
	case s.gpa%pageSize != 0 || s.memory%pageSize != 0 || s.memory == 0:
		return fmt.Errorf("address %#x, memory %#x, want whole pages", s.gpa, s.memory)
	case s.gpa >= fourGiB || s.memory > fourGiB-s.gpa || s.memory > MaxFirmware:
		return fmt.Errorf("address %#x, memory %#x, want at most %#x bytes below 4 GiB", s.gpa, s.memory, MaxFirmware)
	case uint64(s.offset)+uint64(s.size) > uint64(len(image)):
		return fmt.Errorf("bytes %#x to %#x of an image of %#x", s.offset, uint64(s.offset)+uint64(s.size), len(image))
	case s.attributes&^(tdvfMRExtend|tdvfPageAug) != 0:
		return fmt.Errorf("unknown attributes %#x", s.attributes)
	case s.attributes == tdvfMRExtend|tdvfPageAug:
		return fmt.Errorf("measured, but not added at launch: no VMM can do both")
	}
	switch s.kind {
	case tdvfBFV, tdvfCFV:
		if uint64(s.size) != s.memory {
			return fmt.Errorf("%#x bytes for %#x of memory, want as many", s.size, s.memory)
		}
	case tdvfTDHOB, tdvfTempMem:
		if s.size != 0 || s.attributes&tdvfMRExtend != 0 {
			return fmt.Errorf("%#x bytes, attributes %#x: want memory without contents for type %d", s.size, s.attributes, s.kind)
		}
	default:
		return fmt.Errorf("type %d, want 0 to 3: QEMU launches no other", s.kind)
	}
	return nil
}

// contents are the bytes of the image that a section is filled with.
func (s tdvfSection) contents(f *firmware) []byte { return f.data[s.offset:][:s.size] }

// only returns the one section of a kind.
func only(sections []tdvfSection, kind uint32, name string) (tdvfSection, error) {
	var found []tdvfSection
	for _, s := range sections {
		if s.kind == kind {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		return tdvfSection{}, fmt.Errorf("firmware: TDVF metadata: %d sections of type %s, want one", len(found), name)
	}
	return found[0], nil
}
