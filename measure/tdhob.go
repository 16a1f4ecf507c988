package measure

import (
	"cmp"
	"fmt"
	"slices"
)

// memoryRange is RAM of the guest; added ranges were added at launch, others the guest
// accepts itself.
type memoryRange struct {
	start, end uint64
	added      bool
}

// Bounds of a guest's memory: QEMU's TDVF needs its sections below 2 GiB, and 64 TiB is what
// 46 address bits reach.
const (
	minMemory = 256 << 20
	maxMemory = 64 << 40
)

// ram is the guest's RAM on QEMU's q35: up to 2.75 GiB below 4 GiB, or 2 GiB where there is
// more than that, and the rest from 4 GiB up (QEMU, hw/i386/pc_q35.c).
func ram(memory uint64) ([]memoryRange, error) {
	const most, split = 0xb0000000, 0x80000000
	if memory%pageSize != 0 || memory < minMemory || memory > maxMemory {
		return nil, fmt.Errorf("memory of %d bytes: want whole pages, %d MiB to %d TiB", memory, minMemory>>20, uint64(maxMemory)>>40)
	}
	if memory < most {
		return []memoryRange{{0, memory, false}}, nil
	}
	return []memoryRange{{0, split, false}, {fourGiB, fourGiB + memory - split, false}}, nil
}

// tdHOB is the hand-off block list that QEMU writes into the TD_HOB section (hw/i386/
// tdvf-hob.c): a PHIT, and a resource descriptor for each range of RAM, those that the
// sections take from it being ordinary system memory and the rest unaccepted memory. The
// list is measured without its end marker.
//
//	PHIT:     u16 1 | u16 56 | u32 0 | u32 version 9 | u32 boot mode 0 | 4 × u64 0 | u64 end of list
//	resource: u16 3 | u16 48 | u32 0 | owner GUID 0 | u32 type | u32 attributes 7 | u64 start | u64 length
func tdHOB(sections []tdvfSection, memory uint64) ([]byte, error) {
	home, err := only(sections, tdvfTDHOB, "TD_HOB")
	if err != nil {
		return nil, err
	}
	ranges, err := ram(memory)
	if err != nil {
		return nil, err
	}
	for _, s := range sections {
		if s.kind != tdvfTDHOB && s.kind != tdvfTempMem {
			continue
		}
		if ranges, err = take(ranges, s.gpa, s.gpa+s.memory); err != nil {
			return nil, err
		}
	}
	const phit, resource, end = 56, 48, 8
	const systemMemory, unaccepted, tested = 0, 7, 7
	out := make([]byte, phit, phit+resource*len(ranges))
	le.PutUint16(out, 1)
	le.PutUint16(out[2:], phit)
	le.PutUint32(out[8:], 9)
	le.PutUint64(out[48:], home.gpa+uint64(phit+resource*len(ranges)+end))
	for _, r := range ranges {
		var hob [resource]byte
		le.PutUint16(hob[:], 3)
		le.PutUint16(hob[2:], resource)
		kind := uint32(unaccepted)
		if r.added {
			kind = systemMemory
		}
		le.PutUint32(hob[24:], kind)
		le.PutUint32(hob[28:], tested)
		le.PutUint64(hob[32:], r.start)
		le.PutUint64(hob[40:], r.end-r.start)
		out = append(out, hob[:]...)
	}
	return out, nil
}

// take marks start to end as added; it must lie within one range that is not yet.
func take(ranges []memoryRange, start, end uint64) ([]memoryRange, error) {
	i := slices.IndexFunc(ranges, func(r memoryRange) bool { return !r.added && r.start <= start && end <= r.end })
	if i < 0 {
		return nil, fmt.Errorf("firmware: section %#x to %#x overlaps another or lies outside of the guest's memory", start, end)
	}
	r := ranges[i]
	ranges = slices.Delete(slices.Clone(ranges), i, i+1)
	ranges = append(ranges, memoryRange{start, end, true})
	if r.start < start {
		ranges = append(ranges, memoryRange{r.start, start, false})
	}
	if end < r.end {
		ranges = append(ranges, memoryRange{end, r.end, false})
	}
	slices.SortFunc(ranges, func(a, b memoryRange) int { return cmp.Compare(a.start, b.start) })
	return ranges, nil
}
