package ima

import (
	"fmt"
	"strings"

	"github.com/attestmesh/meshnode/internal/cursor"
)

// binaryWithSize returns the reader for the size of template digests in a list, which no
// header tells: that with which the first entry makes sense, 20 if none does.
func binaryWithSize(raw []byte) func([]byte, func(*Entry) bool) error {
	for _, size := range []int{20, 32, 48, 64} {
		sound := false
		if err := entries(raw, size, func(e *Entry) bool { sound = e.Verified || e.Violation; return false }); err == nil && sound {
			return func(raw []byte, yield func(*Entry) bool) error { return entries(raw, size, yield) }
		}
	}
	return func(raw []byte, yield func(*Entry) bool) error { return entries(raw, 20, yield) }
}

// entries reads a binary list with template digests of one size.
func entries(raw []byte, size int, yield func(*Entry) bool) error {
	var e Entry
	var scratch builder
	templates := map[string][]string{}
	r := cursor.Little(raw)
	for n := 1; r.Len() > 0; n++ {
		pcr, digest, length := r.U32(), r.Take(uint64(size)), r.U32()
		if r.Short() {
			return fmt.Errorf("ima: entry %d: cut short", n)
		}
		if pcr > 23 || length == 0 || length > maxName {
			return fmt.Errorf("ima: entry %d: register %d, name of %d bytes", n, pcr, length)
		}
		name := r.Take(uint64(length))
		fields, seen := templates[string(name)]
		if !seen && !r.Short() {
			if fields = template(string(name)); fields == nil {
				return fmt.Errorf("ima: entry %d: template %q is not known", n, name)
			}
			templates[strings.Clone(string(name))] = fields
		}
		e = Entry{PCR: int(pcr), Template: e.Template, sum: e.sum, Digest: digest, legacy: string(name) == legacyName}
		if e.Template != string(name) {
			e.Template = string(name)
		}
		if e.legacy {
			e.Data = legacy(&r, &e, &scratch)
		} else {
			e.Data = r.Take(uint64(r.U32()))
		}
		if r.Short() {
			return fmt.Errorf("ima: entry %d: cut short", n)
		}
		if !e.legacy && !e.split(fields) {
			return fmt.Errorf("ima: entry %d: its data are not the fields of template %s", n, e.Template)
		}
		e.check()
		if !e.Verified && !e.Violation {
			return fmt.Errorf("ima: entry %d: the template digest is not that of its data", n)
		}
		if !yield(&e) {
			return nil
		}
	}
	return nil
}

// legacy reads the fields of the template "ima", which have no total length, and returns
// what is hashed.
func legacy(r *cursor.Cursor, e *Entry, scratch *builder) []byte {
	digest, length := r.Take(20), r.U32()
	if r.Short() || length > legacySize-20 {
		r.Fail()
		return nil
	}
	name := r.Take(uint64(length))
	e.take(0, "d", digest)
	e.take(1, "n", name)
	scratch.b = append(append(scratch.b[:0], digest...), name...)
	return scratch.pad(0)
}

// split takes the fields of template data; every byte must belong to one.
func (e *Entry) split(fields []string) bool {
	r := cursor.Little(e.Data)
	for i, id := range fields {
		v := r.Take(uint64(r.U32()))
		if r.Short() {
			return false
		}
		e.take(i, id, v)
	}
	return r.Len() == 0
}
