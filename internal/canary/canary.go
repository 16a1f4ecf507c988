// Package canary finds values in places where they must not be: what is private to members in what
// everybody can read. It is for tests.
//
// A value is looked for as it is, in hex, in base64 at each of the three places where it can begin
// within a group, and escaped as JSON; and all of that once more in whatever hex and base64 is found, as
// envelopes hold their payloads, three levels deep.
package canary

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// MinSize is the size of the smallest value that is worth looking for: of less, chance makes copies.
const MinSize = 6

const depth = 3

// Set is a set of private values. Its zero value is empty.
type Set struct {
	needles map[string]string // what is looked for → what it is
}

// Add adds a value under a name. Values under MinSize are refused by a panic: a test that looks for
// them finds what it likes.
func (s *Set) Add(name string, value []byte) {
	if len(value) < MinSize {
		panic(fmt.Sprintf("canary: %s has %d bytes, want %d or more", name, len(value), MinSize))
	}
	if s.needles == nil {
		s.needles = map[string]string{}
	}
	for _, form := range forms(value) {
		if _, known := s.needles[form]; !known {
			s.needles[form] = name
		}
	}
}

// AddText adds a text, and the bytes that it is the hex of.
func (s *Set) AddText(name, text string) {
	s.Add(name, []byte(text))
	if raw, err := hex.DecodeString(text); err == nil && len(raw) >= MinSize {
		s.Add(name, raw)
	}
}

// Len is the number of forms that are looked for.
func (s *Set) Len() int { return len(s.needles) }

// forms are the ways in which a value is written.
func forms(value []byte) []string {
	out := []string{string(value), hex.EncodeToString(value), strings.ToUpper(hex.EncodeToString(value))}
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for skip := range 3 {
			text := enc.EncodeToString(append(make([]byte, skip), value...))
			// Whole characters of the value: neither what shares bits with bytes before nor after.
			from, to := (8*skip+5)/6, 8*(skip+len(value))/6
			out = append(out, text[from:to])
		}
	}
	if text, err := json.Marshal(string(value)); err == nil {
		out = append(out, string(text[1:len(text)-1]))
	}
	var escaped strings.Builder
	for _, r := range string(value) {
		fmt.Fprintf(&escaped, `\u%04x`, r)
	}
	return append(out, escaped.String())
}

// runs of what may be encoded bytes.
var runs = regexp.MustCompile(`[A-Za-z0-9+/_-]{16,}`)

// Find returns what of the set is in data, each name once.
func (s *Set) Find(data []byte) []string {
	found := map[string]bool{}
	s.find(data, depth, found)
	var out []string
	for name := range found {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func (s *Set) find(data []byte, depth int, found map[string]bool) {
	for needle, name := range s.needles {
		if !found[name] && bytes.Contains(data, []byte(needle)) {
			found[name] = true
		}
	}
	if depth == 0 {
		return
	}
	var inside []byte // together: there are many, and short
	for _, run := range runs.FindAll(data, -1) {
		for _, decode := range []func([]byte) ([]byte, error){unhex, unbase64(base64.RawStdEncoding), unbase64(base64.RawURLEncoding)} {
			if raw, err := decode(run); err == nil {
				inside = append(append(inside, raw...), 0xff, '\n')
				break
			}
		}
	}
	if len(inside) > 0 {
		s.find(inside, depth-1, found)
	}
}

func unhex(run []byte) ([]byte, error) { return hex.DecodeString(string(run)) }

func unbase64(enc *base64.Encoding) func([]byte) ([]byte, error) {
	return func(run []byte) ([]byte, error) { return enc.DecodeString(string(run)) }
}
