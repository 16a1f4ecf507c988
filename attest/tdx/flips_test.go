package tdx

import (
	"bytes"
	"context"
	"encoding/binary"
	"reflect"
	"slices"
	"testing"

	"github.com/attestmesh/meshnode/attest"
)

// TestEveryFlippedBit covers header, body, both signatures, the attestation key, the QE
// report and its authentication data, every bit of them where no race detector runs; and
// certificates, sampled but for one quote. Nothing is accepted with other claims.
func TestEveryFlippedBit(t *testing.T) {
	for _, f := range flippable(t) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			s, parsed := scheme(t), quoteOf(t, f.ev)
			genuine, err := s.Verify(context.Background(), f.ev, nil, f.at)
			if err != nil {
				t.Fatal(err)
			}
			q := slices.Clone(parsed.raw)
			chainAt := bytes.Index(q, parsed.chain)
			step := flipStep
			if testing.Short() || f.name != "library sample" && f.name != "tdx-v5-collateral-202602" {
				step = max(step, 41)
			}
			for bit := 0; bit < len(q)*8; bit += step {
				if bit/8 >= chainAt && (step > 1 || f.name != "library sample") {
					bit += 16 * step
				}
				if bit/8 >= len(q) {
					break
				}
				q[bit/8] ^= 1 << (bit % 8)
				c, err := s.Verify(context.Background(), f.with(0, q), nil, f.at)
				switch {
				case err == nil && (bit/8 < chainAt || !reflect.DeepEqual(c, genuine)):
					t.Errorf("bit %d of byte %#x: accepted", bit%8, bit/8)
				case err != nil && c.Genuine:
					t.Errorf("bit %d of byte %#x: refused as genuine", bit%8, bit/8)
				case err != nil && bit/8 < parsed.end() && code(t, err) != attest.CodeNotGenuine:
					t.Errorf("bit %d of byte %#x: %v, want not_genuine", bit%8, bit/8, err)
				}
				q[bit/8] ^= 1 << (bit % 8)
			}
			for bit := range parsed.body * 8 { // every bit of the header
				q[bit/8] ^= 1 << (bit % 8)
				if _, err := s.Verify(context.Background(), f.with(0, q), nil, f.at); err == nil || code(t, err) != attest.CodeNotGenuine {
					t.Errorf("header bit %d: got %v", bit, err)
				}
				if !LooksLike(q) {
					t.Errorf("header bit %d: not taken for a quote", bit)
				}
				q[bit/8] ^= 1 << (bit % 8)
			}
		})
	}
}

// flippable are a genuine quote of version 4 and, where they are at hand, those of version 5
// and one with collateral.
func flippable(t *testing.T) []fixture {
	t.Helper()
	out := fixtures(t)
	return slices.DeleteFunc(out, func(f fixture) bool {
		return f.name != "library sample" && f.name != "tdx-v4-collateral-202506" && quoteOf(t, f.ev).version != version5
	})
}

// TestEveryTruncation: a quote of any version that was cut, or that something follows.
func TestEveryTruncation(t *testing.T) {
	s := scheme(t)
	for _, f := range flippable(t) {
		raw := f.ev.Items[0].Data
		for i := range len(raw) {
			if _, err := parseQuote(raw[:i]); err == nil {
				t.Fatalf("%s: parsed though cut at %d", f.name, i)
			}
		}
		for _, more := range [][]byte{{0}, {'\n'}, raw[:4], raw} {
			longer := append(slices.Clone(raw), more...)
			if _, err := s.Verify(context.Background(), f.with(0, longer), nil, f.at); err == nil || code(t, err) != attest.CodeMalformed {
				t.Errorf("%s: %d bytes behind it: got %v", f.name, len(more), err)
			}
		}
	}
}

// TestLengths (E3, E13): every length field of every version at values that lie. None is
// followed, and none makes us reserve memory.
func TestLengths(t *testing.T) {
	s := scheme(t)
	for _, f := range flippable(t) {
		q := quoteOf(t, f.ev)
		auth := bytes.Index(q.raw, q.qeSig) + signatureSize
		fields := map[string][2]int{"signature section": {q.end(), 4}, "certification data": {q.section() + 128 + 2, 4},
			"QE authentication data": {auth, 2}, "certificates": {auth + 2 + len(q.authData) + 2, 4}}
		if q.version == version5 {
			fields["body"] = [2]int{headerSize + 2, 4}
		}
		for name, field := range fields {
			for _, v := range []uint32{0, 1, 0x10ff, 0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff} {
				raw := slices.Clone(q.raw)
				if field[1] == 2 {
					binary.LittleEndian.PutUint16(raw[field[0]:], uint16(v))
				} else {
					binary.LittleEndian.PutUint32(raw[field[0]:], v)
				}
				if bytes.Equal(raw, q.raw) {
					continue
				}
				allocated := testing.AllocsPerRun(1, func() {
					if _, err := s.Verify(context.Background(), f.with(0, raw), nil, f.at); err == nil {
						t.Errorf("%s: %s of %#x: accepted", f.name, name, v)
					}
				})
				if allocated > 200 {
					t.Errorf("%s: %s of %#x: %.0f allocations", f.name, name, v, allocated)
				}
			}
		}
	}
}
