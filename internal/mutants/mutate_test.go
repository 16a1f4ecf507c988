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
	s, err := mutantsOf("p.go", []byte(src), 5)
	if err != nil {
		t.Fatal(err)
	}
	var what []string
	for i, m := range s.mutants {
		what = append(what, m.what)
		if m.id != 5+i || m.function != "f" {
			t.Errorf("%s: number %d in %s", m, m.id, m.function)
		}
	}
	if want := "a > b|a < 0 && b < 0|err != nil|a == 1|a == 2"; strings.Join(what, "|") != want {
		t.Errorf("got %q, want %q", strings.Join(what, "|"), want)
	}
	out := string(s.instrumented())
	for _, want := range []string{
		"if ((a > b) && mutantHolds(5)) || (((a < 0 && b < 0) && mutantHolds(6))) {",
		"case ((a == 1) && mutantHolds(8)), ((a == 2) && mutantHolds(9)):",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("not %q in\n%s", want, out)
		}
	}
	if got := strings.Count(out, "\n"); got != strings.Count(src, "\n") {
		t.Errorf("%d lines: those of the file should stay where they are", got)
	}
}

func TestExcuses(t *testing.T) {
	got, err := readExcuses(strings.NewReader("# why\n\na/b.go: f: x[1] == y: the caller asks too\n"))
	if err != nil || len(got) != 1 || got["a/b.go: f: x[1] == y"] != "the caller asks too" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := readExcuses(strings.NewReader("a/b.go: x == y: no function\n")); err == nil {
		t.Error("a line without a function was read")
	}
}

// TestJudge runs the program on a package of its own: one check that a test notices, one that
// holds in a test that does not look, and one that holds in no test.
func TestJudge(t *testing.T) {
	all, err := read([]string{"testdata/checked"})
	if err != nil {
		t.Fatal(err)
	}
	trial, err := build(t.Context(), t.TempDir(), all, []string{"testdata/checked"})
	if err != nil {
		t.Fatal(err)
	}
	lives, err := trial.judge(t.Context(), all.mutants())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range lives {
		got = append(got, m.what)
	}
	if want := "n > 20|n == 13"; strings.Join(got, "|") != want || all.count() != 3 {
		t.Errorf("of %d mutants %q survived, want %q", all.count(), strings.Join(got, "|"), want)
	}
}
