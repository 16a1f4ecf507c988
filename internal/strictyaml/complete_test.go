package strictyaml

import (
	"strings"
	"testing"
)

func TestDecodeComplete(t *testing.T) {
	type part struct {
		On   bool   `yaml:"on"`
		Mask uint64 `yaml:"mask"`
	}
	type file struct {
		Kinds []string        `yaml:"kinds"`
		Part  *part           `yaml:"part,omitempty"`
		List  []part          `yaml:"list"`
		By    map[string]part `yaml:"by"`
		Maybe string          `yaml:"maybe,omitempty"`
		Not   string          `yaml:"-"`
		Deep  struct {
			P part `yaml:"p"`
		} `yaml:",inline"`
	}
	whole := "kinds: []\nlist: [{on: true, mask: 1}]\nby: {a: {on: false, mask: 2}}\np: {on: true, mask: 3}\n"
	for name, test := range map[string]struct{ text, want string }{
		"whole":         {whole, ""},
		"missing":       {strings.Replace(whole, "kinds: []\n", "", 1), `"kinds" is missing`},
		"no value":      {strings.Replace(whole, "[]", "", 1), `"kinds" has no value`},
		"in a list":     {strings.Replace(whole, ", mask: 1", "", 1), `"list.mask" is missing`},
		"in a map":      {strings.Replace(whole, "on: false, ", "", 1), `"by.a.on" is missing`},
		"in a section":  {whole + "part: {on: true}\n", `"part.mask" is missing`},
		"empty section": {whole + "part:\n", `"part" has no value`},
		"null scalar":   {strings.Replace(whole, "mask: 2", "mask: ~", 1), `"by.a.mask" has no value`},
		"inlined":       {strings.Replace(whole, "p: {on: true, mask: 3}\n", "", 1), `"p" is missing`},
		"unknown":       {whole + "more: 1\n", `unknown key "more"`},
		"alias":         {"kinds: []\nlist: [&x {on: true, mask: 1}]\nby: {a: *x}\np: *x\n", ""},
	} {
		var f file
		err := DecodeComplete("F", []byte(test.text), &f)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
	}
}
