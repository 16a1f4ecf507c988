package main

import (
	"strings"
	"testing"
)

func TestMutantsOf(t *testing.T) {
	const src = `package p

func f(a, b int, err error) error {
	if a > b || (a < 0 && b < 0) {
		return errors.New("x")
	}
	if err != nil {
		return err
	}
	if err := g(); err != nil {
		return err
	}
	if a == 7 {
		return nil
	}
	switch {
	case a == 1, a == 2:
		s.refuse("x")
	case a == 3:
		s.note("x")
	}
	return nil
}
`
	got, err := mutantsOf("p.go", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	var what []string
	for _, m := range got {
		what = append(what, m.what)
		if m.what == "a > b" && (m.line != 4 || !strings.Contains(string(m.src), `if (len("left out") < 0 && (a > b)) || (a < 0`)) {
			t.Errorf("line %d:\n%s", m.line, m.src)
		}
	}
	if want := "a > b|a < 0 && b < 0|err != nil|a == 1|a == 2"; strings.Join(what, "|") != want {
		t.Errorf("got %q, want %q", strings.Join(what, "|"), want)
	}
}
