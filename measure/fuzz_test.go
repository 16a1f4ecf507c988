package measure

import "testing"

// Whatever the firmware says, measuring it ends, in bounded time, with a digest or an error;
// and bytes that were accepted move the digest.
func FuzzFirmware(f *testing.F) {
	f.Add(sevImage(amdSevReset, amdSevHashTable, amdSevSections))
	f.Add(tdvfImage(smallTDVF()))
	f.Fuzz(func(t *testing.T, data []byte) {
		boot := &Boot{Kernel: []byte("k"), Initrd: []byte("i"), CommandLine: "c"}
		snp := &SNP{Firmware: data, VCPUs: 2, VCPUSignature: 0x800f12, GuestFeatures: 1, VMM: QEMU, Boot: boot}
		if d, err := snp.LaunchDigest(); err == nil {
			data[0] ^= 1
			if other, err := snp.LaunchDigest(); err == nil && other == d {
				t.Error("SNP: another image, the same digest")
			}
			data[0] ^= 1
		}
		if _, err := MRTD(data, TwoPass); err == nil {
			_, _ = ConfigurationEvents(data, 2<<30, ACPI{[]byte("l"), []byte("r"), []byte("t")})
		}
	})
}

// An image that is accepted has every byte measured, but for checksum and certificates.
func FuzzAuthenticode(f *testing.F) {
	f.Add(syntheticPE(16, 0x20))
	f.Add(syntheticPE(4, 0))
	f.Fuzz(func(t *testing.T, data []byte) {
		parts, err := authenticodeParts(data)
		if err != nil {
			return
		}
		h, err := parsePE(data)
		if err != nil {
			t.Fatal(err)
		}
		measured := 0
		for _, p := range parts {
			measured += len(p)
		}
		want := len(data) - 4 - h.certSize
		if h.certificate != 0 {
			want -= 8
		}
		if measured != want {
			t.Errorf("%d of %d bytes measured, want %d", measured, len(data), want)
		}
	})
}
