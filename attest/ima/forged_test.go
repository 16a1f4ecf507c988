package ima

import (
	"bytes"
	"crypto"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// made is one measurement of a made-up kernel.
type made struct {
	template  string
	fields    [][]byte // template data, field by field
	text      string   // the same in ASCII
	violation bool
}

func field(b []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...)
}

// data is what is hashed.
func (m made) data() []byte {
	if m.template == legacyName {
		out := bytes.Join(m.fields, nil)
		return append(out, make([]byte, legacySize-len(out))...)
	}
	var out []byte
	for _, f := range m.fields {
		out = append(out, field(f)...)
	}
	return out
}

func (m made) digest(bank crypto.Hash) []byte {
	if m.violation {
		return make([]byte, bank.Size())
	}
	h := bank.New()
	h.Write(m.data())
	return h.Sum(nil)
}

// asText and asBinary lay out a list with the template digests of a bank.
func asText(bank crypto.Hash, entries ...made) []byte {
	var out bytes.Buffer
	for _, m := range entries {
		fmt.Fprintf(&out, "10 %x %s %s\n", m.digest(bank), m.template, m.text)
	}
	return out.Bytes()
}

func asBinary(bank crypto.Hash, entries ...made) []byte {
	var out []byte
	for _, m := range entries {
		out = binary.LittleEndian.AppendUint32(out, 10)
		out = append(append(out, m.digest(bank)...), field([]byte(m.template))...)
		if m.template == legacyName {
			out = append(append(out, m.fields[0]...), field(m.fields[1])...)
		} else {
			out = append(out, field(m.data())...)
		}
	}
	return out
}

func ng(alg string, digest []byte, path string) made {
	return made{"ima-ng", [][]byte{append([]byte(alg+":\x00"), digest...), append([]byte(path), 0)}, fmt.Sprintf("%s:%x %s", alg, digest, path), false}
}

// with appends fields of bytes to an entry under another template.
func (m made) with(template string, more ...[]byte) made {
	m.template = template
	for _, b := range more {
		m.fields = append(m.fields[:len(m.fields):len(m.fields)], b)
		m.text += " " + hex.EncodeToString(b)
	}
	return m
}

var (
	digest32 = bytes.Repeat([]byte{0xd}, 32)
	digest20 = bytes.Repeat([]byte{0xd}, 20)
)

// everyTemplate has an entry of each kind that the kernel has.
func everyTemplate() []made {
	file := ng("sha256", digest32, "/usr/bin/x")
	v2 := ng("ima:sha256", digest32, "/usr/bin/v2").with("ima-ngv2")
	verity := ng("verity:sha256", digest32, "/usr/bin/verity").with("ima-ngv2")
	evm := file.with("evm-sig", []byte{3, 2, 1})
	evm.fields = append(evm.fields, []byte("security.selinux\x00"), []byte{1, 0, 0, 0}, []byte{7}, []byte{0xe8, 3, 0, 0}, []byte{0, 0, 0, 0}, []byte{0xed, 0x81})
	evm.text += " security.selinux 01000000 07 1000 0 33261"
	return []made{
		{legacyName, [][]byte{digest20, []byte("/legacy")}, hex.EncodeToString(digest20) + " /legacy", false},
		file, ng("sha1", digest20, "/sha1"), ng("sha512", bytes.Repeat([]byte{1}, 64), "/sha512"),
		file.with("ima-sig", []byte{3, 2, 4}), file.with("ima-sig", nil), file.with("ima-buf", []byte("quiet")), v2,
		v2.with("ima-sigv2", []byte{3}), verity, file.with("ima-modsig", nil, nil, nil), evm, file.with("d-ng|n-ng|sig", []byte{9}),
	}
}

func TestEveryTemplate(t *testing.T) {
	entries := everyTemplate()
	for _, bank := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		want := map[string]string{}
		for name, hash := range banks {
			v := make([]byte, hash.Size())
			for _, m := range entries {
				extend(hash, v, m.digest(hash))
			}
			want[name+":pcr10"] = hex.EncodeToString(v)
		}
		for form, raw := range map[string][]byte{"text": asText(bank, entries...), "binary": asBinary(bank, entries...),
			"trimmed text": bytes.ReplaceAll(asText(bank, entries...), []byte(" \n"), []byte("\r\n"))} {
			r, err := Replay(raw)
			if err != nil || r.Entries != len(entries) || r.Unverified != 0 || !reflect.DeepEqual(r.Registers, want) {
				t.Errorf("%s with digests of %v: %+v, %v", form, bank, r, err)
				continue
			}
			q, _ := hex.DecodeString(want["sha256:pcr10"])
			f, err := Explain(raw, "sha256", map[int][]byte{Register: q})
			if err != nil || f.Unverified != 0 || f.Files[0].Digest != "sha1:"+hex.EncodeToString(digest20) || f.Files[0].Path != "/legacy" {
				t.Errorf("%s with digests of %v: %+v, %v", form, bank, f, err)
			}
			verity := false
			for _, x := range f.Files {
				verity = verity || x.Digest == "verity:sha256:"+hex.EncodeToString(digest32)
				if x.Path == "/usr/bin/verity" && !strings.HasPrefix(x.Digest, "verity:") {
					t.Error("a tree's root is taken for a file's digest")
				}
			}
			if !verity {
				t.Errorf("%s: no fs-verity digest in %+v", form, f.Files)
			}
		}
	}
}

// TestWaysOfExtending: kernels before 5.8 pad SHA-1, newer ones pad where they lack the
// hash; a violation is 0xff in full or in the first 20 bytes.
func TestWaysOfExtending(t *testing.T) {
	broken := ng("sha256", make([]byte, 32), "/var/log/open")
	broken.violation = true
	entries := []made{ng("sha256", digest32, "/a"), broken, ng("sha256", digest32, "/b")}
	pad := func(b []byte, n int) []byte { return append(bytes.Clone(b), make([]byte, n-len(b))...) }
	for bank, hash := range banks {
		for name, one := range map[string]func(made) []byte{
			"hashed": func(m made) []byte {
				if m.violation {
					return ones[:hash.Size()]
				}
				return m.digest(hash)
			},
			"padded": func(m made) []byte {
				if m.violation {
					return ones[:hash.Size()]
				}
				return pad(m.digest(crypto.SHA1), hash.Size())
			},
			"padded throughout": func(m made) []byte {
				if m.violation {
					return pad(ones[:sha1.Size], hash.Size())
				}
				return pad(m.digest(crypto.SHA1), hash.Size())
			},
		} {
			v := make([]byte, hash.Size())
			for _, m := range entries {
				extend(hash, v, one(m))
			}
			for form, raw := range map[string][]byte{"text": asText(crypto.SHA1, entries...), "binary": asBinary(crypto.SHA1, entries...)} {
				f, err := Explain(raw, bank, map[int][]byte{Register: v})
				if err != nil || f.Entries != 3 || f.Violations != 1 || f.Unverified != 0 || len(f.Files) != 2 {
					t.Errorf("%s, %s, %s: %+v, %v", bank, name, form, f, err)
				}
			}
		}
	}
	// A violation that is listed as something else does not replay.
	hidden := bytes.Replace(asText(crypto.SHA1, entries...), []byte(strings.Repeat("0", 40)), []byte(strings.Repeat("1", 40)), 1)
	v := make([]byte, 32)
	for _, m := range entries {
		d := m.digest(crypto.SHA256)
		if m.violation {
			d = ones[:32]
		}
		extend(crypto.SHA256, v, d)
	}
	if f, err := Explain(hidden, "sha256", map[int][]byte{Register: v}); err == nil {
		t.Errorf("a hidden violation: %+v", f)
	}
}

// TestDigestsOfNothing: a digest that has not its algorithm's size, or an algorithm that
// nobody knows, names no file.
func TestDigestsOfNothing(t *testing.T) {
	for name, m := range map[string]made{
		"short": ng("sha256", digest20, "/x"), "long": ng("sha1", digest32, "/x"), "unknown": ng("sha9", digest32, "/x"), "none": ng("", digest32, "/x"),
	} {
		v := make([]byte, 32)
		extend(crypto.SHA256, v, m.digest(crypto.SHA256))
		f, err := Explain(asBinary(crypto.SHA1, m), "sha256", map[int][]byte{Register: v})
		if err != nil || f.Unverified != 1 || len(f.Files) != 0 {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
	}
	// Nor does an entry that extends another register, which nobody compares.
	other := append(asBinary(crypto.SHA1, ng("sha256", digest32, "/x")), asBinary(crypto.SHA1, ng("sha256", digest32, "/y"))...)
	other[0] = 11
	v := make([]byte, 32)
	extend(crypto.SHA256, v, ng("sha256", digest32, "/y").digest(crypto.SHA256))
	if f, err := Explain(other, "sha256", map[int][]byte{Register: v}); err != nil || f.Unverified != 1 || len(f.Files) != 1 || f.Files[0].Path != "/y" {
		t.Errorf("an entry of register 11: %+v, %v", f, err)
	}
}

// TestRelabelledTemplate: the name of a template is covered by no digest; under another
// one the data mean nothing or the same.
func TestRelabelledTemplate(t *testing.T) {
	m := ng("sha256", digest32, "/x").with("ima-sig", []byte{1})
	v := make([]byte, 32)
	extend(crypto.SHA256, v, m.digest(crypto.SHA256))
	raw := asBinary(crypto.SHA1, m)
	for _, name := range []string{"ima-ng", "ima-buf", "ima-modsig", "ima", "n-ng|d-ng|sig", "d-ng|n-ng|buf"} {
		relabelled := bytes.Replace(raw, field([]byte("ima-sig")), field([]byte(name)), 1)
		f, err := Explain(relabelled, "sha256", map[int][]byte{Register: v})
		if err == nil && (f.Unverified != 1 && (len(f.Files) != 1 || f.Files[0].Digest != "sha256:"+hex.EncodeToString(digest32) || f.Files[0].Path != "/x")) {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

// TestEveryBitOfAList: a list with a bit flipped is refused, does not lead to the quoted
// register, has an entry that is not verified, or says the same.
func TestEveryBitOfAList(t *testing.T) {
	for _, form := range []string{"ima-ascii", "ima-binary"} {
		raw, q := bytes.Clone(read(t, "testdata", form)), quoted(t)["sha256"]
		want, err := Explain(raw, "sha256", q)
		if err != nil {
			t.Fatal(err)
		}
		step := 1
		if testing.Short() {
			step = 11
		}
		for bit := 0; bit < 8*len(raw); bit += step {
			raw[bit/8] ^= 1 << (bit % 8)
			got, err := Explain(raw, "sha256", q)
			if err == nil && got.Unverified == 0 && !reflect.DeepEqual(got, want) {
				t.Fatalf("%s: bit %d of byte %#x: %+v", form, bit%8, bit/8, got)
			}
			raw[bit/8] ^= 1 << (bit % 8)
		}
		for n := range raw {
			if got, err := Explain(raw[:n], "sha256", q); err == nil && !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %d bytes: %+v", form, n, got)
			}
		}
		for b := range 256 {
			if got, err := Explain(append(bytes.Clone(raw), byte(b)), "sha256", q); err == nil && !reflect.DeepEqual(got, want) {
				t.Errorf("%s: a byte %#x more: %+v", form, b, got)
			}
		}
	}
}

// TestLengths: lengths that lie are refused and drive no memory.
func TestLengths(t *testing.T) {
	raw := asBinary(crypto.SHA1, everyTemplate()...)
	for at := 0; at+4 <= len(raw); at++ {
		b := bytes.Clone(raw)
		binary.LittleEndian.PutUint32(b[at:], 0xffffffff)
		if r, err := Replay(b); err == nil && r.Unverified == 0 && bytes.Equal(b, raw) {
			t.Errorf("at %#x: %+v", at, r)
		}
	}
	cost := testing.AllocsPerRun(1, func() {
		b := bytes.Clone(raw[:200])
		binary.LittleEndian.PutUint32(b[24:], 0xfffffff0)
		_, _ = Replay(b)
	})
	if cost > 100 {
		t.Errorf("%v allocations for a length of 4 GiB", cost)
	}
}

func FuzzEntries(f *testing.F) {
	f.Add(read(f, "testdata", "ima-binary"))
	f.Add(read(f, "testdata", "ima-ascii"))
	f.Add(asBinary(crypto.SHA1, everyTemplate()...))
	f.Add(asBinary(crypto.SHA256, everyTemplate()...))
	f.Add(asText(crypto.SHA512, everyTemplate()...))
	f.Fuzz(func(t *testing.T, raw []byte) {
		entries := 0
		for e, err := range Entries(raw) {
			if err != nil {
				return
			}
			entries++
			if e.PCR < 0 || e.PCR > 23 || bankOf(len(e.Digest)) == 0 || e.Verified && e.Violation || e.File != nil && e.Algorithm == "" {
				t.Fatalf("entry %d: %+v", entries, e)
			}
		}
		if r, err := Replay(raw); err != nil || entries == 0 || r.Entries != entries {
			t.Errorf("%d entries, then %+v, %v", entries, r, err)
		}
	})
}

// TestRefusals: each check on the form of a list refuses by itself, and says what is wrong.
func TestRefusals(t *testing.T) {
	good := ng("sha256", digest32, "/x")
	text, raw := string(asText(crypto.SHA1, good)), asBinary(crypto.SHA1, good)
	two := append(bytes.Clone(raw), raw...)
	second := len(raw) // where the second entry begins: the first decides the size of digests
	put := func(at int, n uint32) []byte {
		b := bytes.Clone(two)
		binary.LittleEndian.PutUint32(b[second+at:], n)
		return b
	}
	for name, tc := range map[string]struct {
		raw  []byte
		want string
	}{
		"three parts":        {[]byte("10 " + strings.Repeat("0", 40) + " ima-ng\n"), "want PCR DIGEST TEMPLATE DATA"},
		"long name":          {[]byte(strings.Replace(text, "ima-ng", strings.Repeat("d-ng|", 30)+"n-ng", 1)), "want PCR DIGEST TEMPLATE DATA"},
		"register of words":  {[]byte(strings.Replace(text, "10 ", "1x ", 1)), "want 0 to 23"},
		"register 24":        {[]byte(strings.Replace(text, "10 ", "24 ", 1)), "want 0 to 23"},
		"digest of 19 bytes": {[]byte(strings.Replace(text, "10 ", "10", 1)[:2] + " " + strings.Repeat("0", 38) + " ima-ng sha1:00 /x\n"), "want 20, 32, 48 or 64"},
		"digest not hex":     {[]byte("10 " + strings.Repeat("g", 40) + " ima-ng sha1:00 /x\n"), "want hex"},
		"unknown template":   {[]byte(strings.Replace(text, "ima-ng", "ima-og", 1)), "is not known"},
		"binary register":    {put(0, 24), "register 24"},
		"binary name of 0":   {put(24, 0), "name of 0 bytes"},
		"binary long name":   {put(24, maxName+1), "name of 129 bytes"},
		"binary template":    {bytes.Replace(raw, []byte("ima-ng"), []byte("ima-og"), 1), "is not known"},
		"binary digest":      {func() []byte { b := bytes.Clone(two); b[second+4] ^= 1; return b }(), "not that of its data"},
		"binary fields": {append(bytes.Clone(raw), asBinary(crypto.SHA1, made{"ima-ng", [][]byte{[]byte("sha256:\x00")}, "", false})...),
			"not the fields"},
		"binary field more": {append(bytes.Clone(raw), asBinary(crypto.SHA1, good.with("ima-ng", []byte{1}))...), "not the fields"},
		"binary head cut":   {two[:second+20], "cut short"},
		"binary data cut":   {two[:len(two)-1], "cut short"},
		"legacy cut":        {func() []byte { b := asBinary(crypto.SHA1, everyTemplate()[0]); return b[:len(b)-1] }(), "cut short"},
	} {
		if r, err := Replay(tc.raw); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %+v, %v, want an error with %q", name, r, err, tc.want)
		}
	}
	var m *Mismatch
	if _, err := Explain(raw, "sha256", map[int][]byte{Register: digest20}); err == nil || errors.As(err, &m) {
		t.Errorf("a quoted value of 20 bytes in SHA-256: %v", err)
	}
	if _, err := Explain(two[:len(two)-1], "sha256", map[int][]byte{Register: digest32}); err == nil || errors.As(err, &m) {
		t.Errorf("a list that cannot be read: %v", err)
	}
}
