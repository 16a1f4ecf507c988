package eventlog

import (
	"encoding/hex"
	"strings"
)

// imagePath returns the file path of UEFI_IMAGE_LOAD_EVENT {u64 address, u64 length, u64
// link time address, u64 length of the device path, device path} (PFP §10.2.3), "" if the
// data are none. Device paths are nodes {u8 type, u8 subtype, u16 length, bytes}
// (UEFI 2.10 §10.3); file paths are type 4, subtype 4.
func imagePath(data []byte) string {
	r := &reader{raw: data}
	r.u64()
	r.u64()
	r.u64()
	if size := r.u64(); r.bad || size != uint64(len(r.raw)) {
		return ""
	}
	var parts []string
	for len(r.raw) >= 4 {
		kind, subtype, length := r.u8(), r.u8(), r.u16()
		if length < 4 {
			break
		}
		node := r.take(uint32(length) - 4)
		if kind == 0x7f || r.bad {
			break
		}
		if kind == 4 && subtype == 4 {
			if s := wideText(node); s != "" {
				parts = append(parts, s)
			}
		}
	}
	return strings.Join(parts, "")
}

// payload shows text as it is and anything else in hex.
func payload(data []byte) string {
	if s := text(data); s != "" {
		return s
	}
	return hex.EncodeToString(data)
}
