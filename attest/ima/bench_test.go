package ima

import (
	"bytes"
	"crypto"
	"fmt"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/internal/ratio"
)

// manyEntries is a list of ten thousand files and register 10 after it.
func manyEntries() (entries []made, register []byte) {
	register = make([]byte, 32)
	for i := range 10_000 {
		m := ng("sha256", bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 16), fmt.Sprintf("/usr/lib/x86_64-linux-gnu/file-%d", i))
		entries = append(entries, m)
		extend(crypto.SHA256, register, m.digest(crypto.SHA256))
	}
	return entries, register
}

// BenchmarkRatioIMA prints how long it takes to find out what a quote covers of a list of
// 10,000 entries, in milliseconds.
func BenchmarkRatioIMA(b *testing.B) {
	entries, register := manyEntries()
	q := map[int][]byte{Register: register}
	for b.Loop() {
		for name, raw := range map[string][]byte{"attest.ima_10k_ms": asBinary(crypto.SHA1, entries...), "attest.ima_10k_ascii_ms": asText(crypto.SHA1, entries...)} {
			once := ratio.CPU(1, func() {
				if f, err := Explain(raw, "sha256", q); err != nil || len(f.Files) != len(entries) {
					b.Fatal(err)
				}
			})
			var times []time.Duration
			for range 25 {
				times = append(times, once())
			}
			ratio.Print(name, float64(ratio.Median(times))/float64(time.Millisecond))
		}
	}
}
