package measure

import (
	"crypto/sha512"
	"fmt"
	"hash"
)

// PageOrder is in which order a VMM adds and measures the pages of a section: MRTD depends
// on it.
type PageOrder string

// The orders. Upstream KVM measures each page as it adds it; the patched kernels before it
// added all pages of a section first.
const (
	SinglePass PageOrder = "single-pass"
	TwoPass    PageOrder = "two-pass"
)

// MRTD returns the build-time measurement of a TD with this firmware (Intel TDX Module
// Base Architecture, "MRTD: Build-Time Measurement Register"): the SHA-384 of one
// 128-byte record for each page added at launch, and for each 256 bytes of measured
// contents one record and the bytes.
func MRTD(image []byte, order PageOrder) (Digest, error) {
	if order != SinglePass && order != TwoPass {
		return Digest{}, fmt.Errorf("page order %q: want %s or %s", order, SinglePass, TwoPass)
	}
	f, err := parseFirmware(image)
	if err != nil {
		return Digest{}, err
	}
	sections, err := f.tdvfMetadata()
	if err != nil {
		return Digest{}, err
	}
	m := mrtd{sha512.New384()}
	for _, s := range sections {
		m.section(s, s.contents(f), order)
	}
	return Digest(m.Sum(nil)), nil
}

type mrtd struct{ hash.Hash }

func (m mrtd) section(s tdvfSection, contents []byte, order PageOrder) {
	if order == TwoPass {
		for at := uint64(0); at < s.memory; at += pageSize {
			m.add(s, at)
		}
	}
	for at := uint64(0); at < s.memory; at += pageSize {
		if order == SinglePass {
			m.add(s, at)
		}
		if s.attributes&tdvfMRExtend != 0 {
			m.extend(s.gpa+at, contents[at:at+pageSize])
		}
	}
}

// add is TDH.MEM.PAGE.ADD of one page.
func (m mrtd) add(s tdvfSection, at uint64) {
	if s.attributes&tdvfPageAug == 0 {
		m.record("MEM.PAGE.ADD", s.gpa+at)
	}
}

// extend is TDH.MR.EXTEND of one page.
func (m mrtd) extend(gpa uint64, page []byte) {
	const chunk = 256
	for ; len(page) > 0; page, gpa = page[chunk:], gpa+chunk {
		m.record("MR.EXTEND", gpa)
		m.Write(page[:chunk])
	}
}

// record writes the name of the operation at 0 and the address at 16 of 128 bytes.
func (m mrtd) record(operation string, gpa uint64) {
	var r [128]byte
	copy(r[:], operation)
	le.PutUint64(r[16:], gpa)
	m.Write(r[:])
}
