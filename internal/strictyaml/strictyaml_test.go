package strictyaml

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestDecode(t *testing.T) {
	type inner struct {
		U string `yaml:"u"`
	}
	type file struct {
		A string        `yaml:"a"`
		L []string      `yaml:"l"`
		E inner         `yaml:"e"`
		D time.Duration `yaml:"d"`
	}
	for _, tc := range []struct{ in, want string }{
		{"a: x\nl: [1, b]\ne: {u: z}\n", ""},
		{"a: x\nbogus: 1\n", `f.yaml: line 2: unknown key "bogus"`},
		{"a: x\ne:\n  v: 1\n  w: 2\n", `f.yaml: line 3: unknown key "v"; line 4: unknown key "w"`},
		{"a: x\na: y\n", `mapping key "a" already defined at line 1`},
		{"l: x\n", "line 1: got `x`, want a list"},
		{"e: x\n", "line 1: got `x`, want keys with values"},
		{"d: soon\n", "line 1: got `soon`, want a duration such as 5m"},
		{"d: 10\n", "line 1: got `10`, want a duration such as 5m"},
		{"a: x\n---\na: y\n", "more than one document"},
		{"", "the file is empty"},
		{"a: [", "f.yaml: "},
		{strings.Repeat("#", MaxSize+1), "over the limit"},
	} {
		var v file
		err := Decode("f.yaml", []byte(tc.in), &v)
		if tc.want == "" {
			if err != nil || v.A != "x" || v.E.U != "z" {
				t.Errorf("%q: got %+v, %v", tc.in, v, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%.20q: got %v, want %q", tc.in, err, tc.want)
		}
	}
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("a: x"), 0o600); err != nil {
		t.Fatal(err)
	}
	var v file
	if err := ReadFile(path, &v); err != nil || v.A != "x" {
		t.Errorf("got %v, %v", v, err)
	}
	if err := ReadFile(path+"x", &v); err == nil {
		t.Error("an absent file was read")
	}
}
