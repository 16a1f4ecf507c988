// Package strictyaml decodes the files people write: one document, known keys only, no
// key twice, and an error that names file, line and key.
package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/attestmesh/meshnode/internal/regular"
)

// MaxSize bounds a file that a person writes.
const MaxSize = 1 << 20

// Error is a refusal of a file: what stands at a line that should not.
type Error struct {
	File    string
	Problem string // "line 3: unknown key \"foo\""
}

// Error returns "FILE: PROBLEM".
func (e *Error) Error() string { return e.File + ": " + e.Problem }

// ReadFile reads and decodes the file at path into v.
func ReadFile(path string, v any) error {
	f, err := regular.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return err
	}
	return Decode(path, data, v)
}

// Decode decodes data, called name in errors, into v.
func Decode(name string, data []byte, v any) error {
	if len(data) > MaxSize {
		return &Error{name, fmt.Sprintf("over the limit of %d bytes", MaxSize)}
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(v); err != nil {
		if errors.Is(err, io.EOF) {
			return &Error{name, "the file is empty"}
		}
		return &Error{name, plain(err.Error())}
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return &Error{name, "more than one document"}
	}
	return nil
}

var (
	unknownField = regexp.MustCompile(`field (\S+) not found in type .*?(;|$)`)
	wrongShape   = regexp.MustCompile("cannot construct !!\\S+ (`[^`]*`) into (\\S+)")
)

// plain turns the library's words into those of the person who wrote the file.
func plain(s string) string {
	s = strings.TrimPrefix(s, "yaml: ")
	s = strings.TrimPrefix(s, "construct errors: ")
	s = unknownField.ReplaceAllString(s, `unknown key "$1"$2`)
	return wrongShape.ReplaceAllStringFunc(s, func(m string) string {
		parts := wrongShape.FindStringSubmatch(m)
		want := "keys with values"
		switch t := parts[2]; {
		case strings.HasPrefix(t, "[]"):
			want = "a list"
		case strings.HasPrefix(t, "int"), strings.HasPrefix(t, "uint"):
			want = "a whole number"
		case strings.HasPrefix(t, "float"):
			want = "a number"
		case t == "time.Duration":
			want = "a duration such as 5m"
		case t == "bool":
			want = "true or false"
		case t == "string":
			want = "text"
		}
		return "got " + parts[1] + ", want " + want
	})
}
