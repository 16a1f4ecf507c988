package layering

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/modfile"
)

// Every dependency that we chose says in go.mod what for.
func TestEveryDependencyHasReason(t *testing.T) {
	path := filepath.Join(root, "go.mod")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	missing, err := unexplained(data)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range missing {
		t.Errorf("go.mod: %s has no reason: write \"// what for\" behind it", m)
	}
}

// unexplained returns the direct requirements of a go.mod without a comment of their own.
func unexplained(gomod []byte) ([]string, error) {
	f, err := modfile.Parse("go.mod", gomod, nil)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, r := range f.Require {
		if r.Indirect {
			continue
		}
		reason := ""
		for _, c := range r.Syntax.Suffix {
			reason += strings.TrimSpace(strings.TrimPrefix(c.Token, "//"))
		}
		if len(reason) < 10 {
			out = append(out, r.Mod.Path)
		}
	}
	return out, nil
}

func TestUnexplained(t *testing.T) {
	const gomod = `module example.org/m

require (
	example.org/a v1.0.0
	example.org/b v1.0.0 // parses the answers of b
	example.org/c v1.0.0 // indirect
	example.org/d v1.0.0 // ok
)
`
	got, err := unexplained([]byte(gomod))
	if err != nil || fmt.Sprint(got) != "[example.org/a example.org/d]" {
		t.Errorf("got %v, %v", got, err)
	}
}
