package consensus

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// docs/PROTOCOL.md lists every action with its fields, its class and the version that brought it.
func TestProtocolPageListsActions(t *testing.T) {
	page, err := os.ReadFile("../docs/PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n### 20.3 ")
	section, _, _ = strings.Cut(section, "\n### 20.4 ")
	rows := map[string][]string{}
	for line := range strings.Lines(section) {
		if cells := strings.Split(strings.Trim(line, "| \n"), " | "); strings.HasPrefix(line, "| `") && len(cells) == 4 {
			rows[strings.Trim(cells[0], "`")] = cells
		}
	}
	actions := reflect.TypeFor[Action]()
	if len(rows) != actions.NumField() {
		t.Errorf("%d actions on the page, want %d", len(rows), actions.NumField())
	}
	for i := range actions.NumField() {
		f := actions.Field(i)
		name := jsonName(f)
		a := reflect.New(f.Type.Elem()).Interface().(action)
		row, ok := rows[name]
		if !ok {
			t.Errorf("no row for %s", name)
			continue
		}
		if want := []string{string(a.class()), fmt.Sprint(a.since())}; !slices.Equal(row[2:], want) {
			t.Errorf("%s: the page says %q, want %q", name, row[2:], want)
		}
		said := strings.NewReplacer("a key", "`role` `public` `not_after`", "a scope", "`organisation` `entry`", "the same", "`product` `cpuid` `fmspc`").Replace(row[1])
		for _, field := range fieldNames(f.Type.Elem()) {
			if name != "add_entry" && !regexp.MustCompile("`"+field+"`").MatchString(said) {
				t.Errorf("%s: the page names no %s", name, field)
			}
		}
	}
}

func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}

// fieldNames are the fields of a struct in JSON, with those of what it embeds.
func fieldNames(s reflect.Type) (out []string) {
	for i := range s.NumField() {
		switch f := s.Field(i); {
		case f.Anonymous && f.Type.Kind() == reflect.Struct:
			out = append(out, fieldNames(f.Type)...)
		case f.IsExported() && jsonName(f) != "" && jsonName(f) != "-":
			out = append(out, jsonName(f))
		}
	}
	return out
}

// It has a row for every kind of command of this package.
func TestProtocolPageListsCommands(t *testing.T) {
	page, err := os.ReadFile("../docs/PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n### 20.4 ")
	section, _, _ = strings.Cut(section, "\n### 20.5 ")
	for _, kind := range []Kind{KindBootstrap, KindCredential, KindResults, KindProposal, KindTick, KindSuspension, KindLift, KindDigest, KindRecovery, KindReady,
		KindDrain, KindRetirement, KindWithdrawal} {
		if !regexp.MustCompile("(?m)^\\|[^|]*`" + string(kind) + "`").MatchString(section) {
			t.Errorf("no row for %s", kind)
		}
	}
}
