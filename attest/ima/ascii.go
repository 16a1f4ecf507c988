package ima

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strconv"
)

var space = []byte{' '}

// ascii reads lines "PCR DIGEST TEMPLATE FIELD…".
func ascii(raw []byte, yield func(*Entry) bool) error {
	var e Entry
	var scratch builder
	templates := map[string][]string{}
	for n := 1; len(raw) > 0; n++ {
		var line []byte
		line, raw, _ = bytes.Cut(raw, []byte{'\n'})
		line = bytes.TrimSuffix(line, []byte{'\r'})
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		var parts [4][]byte
		complete := true
		for i := range 3 {
			var more bool
			parts[i], line, more = bytes.Cut(line, space)
			complete = complete && more
		}
		parts[3] = line
		if !complete || len(parts[2]) > maxName {
			return fmt.Errorf("ima: line %d: want PCR DIGEST TEMPLATE DATA", n)
		}
		pcr, err := strconv.ParseUint(string(parts[0]), 10, 8)
		if err != nil || pcr > 23 {
			return fmt.Errorf("ima: line %d: register %.8q, want 0 to 23", n, parts[0])
		}
		size := hex.DecodedLen(len(parts[1]))
		if bankOf(size) == 0 {
			return fmt.Errorf("ima: line %d: template digest of %d bytes, want 20, 32, 48 or 64", n, size)
		}
		digest := scratch.reset(size)
		if _, err := hex.Decode(digest, parts[1]); err != nil {
			return fmt.Errorf("ima: line %d: template digest %.8q…, want hex", n, parts[1])
		}
		fields, seen := templates[string(parts[2])]
		if !seen {
			name := string(parts[2])
			if fields = template(name); fields == nil {
				return fmt.Errorf("ima: line %d: template %q is not known", n, name)
			}
			templates[name] = fields
		}
		e = Entry{PCR: int(pcr), Template: e.Template, sum: e.sum, Digest: digest, legacy: string(parts[2]) == legacyName}
		if e.Template != string(parts[2]) {
			e.Template = string(parts[2])
		}
		e.fromText(fields, parts[3], &scratch)
		e.check()
		if !yield(&e) {
			return nil
		}
	}
	return nil
}

// fromText makes the template data of a line again. Where that is not possible the entry
// is left without: its digest can be replayed, but says nothing.
func (e *Entry) fromText(fields []string, text []byte, scratch *builder) {
	if bytes.Count(text, space) >= len(fields) {
		return
	}
	start := len(scratch.b)
	for i, id := range fields {
		var v []byte
		v, text, _ = bytes.Cut(text, space) // what is empty at the end of a line may have been trimmed
		at := scratch.begin(e.legacy)
		if !scratch.field(id, v) {
			scratch.b = scratch.b[:start]
			return
		}
		e.take(i, id, scratch.end(at, e.legacy))
	}
	e.Data = scratch.b[start:]
	if e.legacy {
		e.Data = scratch.pad(start)
	}
}

// builder gathers one entry's bytes in memory that the next one uses again.
type builder struct{ b []byte }

func (s *builder) reset(n int) []byte {
	if cap(s.b) < n {
		s.b = make([]byte, n, 512)
	}
	s.b = s.b[:n]
	return s.b
}

// begin leaves room for a field's length, end writes it.
func (s *builder) begin(legacy bool) int {
	if !legacy {
		s.b = append(s.b, 0, 0, 0, 0)
	}
	return len(s.b)
}

func (s *builder) end(at int, legacy bool) []byte {
	if !legacy {
		n := len(s.b) - at
		s.b[at-4], s.b[at-3], s.b[at-2], s.b[at-1] = byte(n), byte(n>>8), byte(n>>16), byte(n>>24)
	}
	return s.b[at:]
}

// pad gives the legacy template its name of 256 bytes.
func (s *builder) pad(start int) []byte {
	for len(s.b)-start < legacySize {
		s.b = append(s.b, 0)
	}
	return s.b[start:]
}

// field appends the bytes of one field from its text.
func (s *builder) field(id string, text []byte) bool {
	switch kind(id) {
	case kindDigest:
		i := bytes.LastIndexByte(text, ':')
		if i >= 0 {
			s.b = append(append(s.b, text[:i+1]...), 0)
		}
		return s.hex(text[i+1:])
	case kindString:
		s.b = append(append(s.b, text...), 0)
		return true
	case kindName:
		s.b = append(s.b, text...)
		return len(text) < legacySize-20
	case kindNumber:
		n, err := strconv.ParseUint(string(text), 10, 32)
		s.b = append(s.b, byte(n), byte(n>>8))
		if id != "imode" {
			s.b = append(s.b, byte(n>>16), byte(n>>24))
		}
		return err == nil && (id != "imode" || n < 1<<16)
	}
	return s.hex(text)
}

func (s *builder) hex(text []byte) bool {
	at := len(s.b)
	s.b = append(s.b, text...)
	n, err := hex.Decode(s.b[at:], text)
	s.b = s.b[:at+n]
	return err == nil
}
