package main

import (
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// TestPoliciesPage: the tables of docs/POLICIES.md have each key that an appraisal policy
// may have, and no other, and all that the default policy prints.
func TestPoliciesPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/POLICIES.md")
	if err != nil {
		t.Fatal(err)
	}
	told := policyTables(t, string(page))
	known := map[string][]string{}
	policyKeys(reflect.TypeFor[policyFile](), "", known)
	for path, keys := range known {
		for _, key := range keys {
			if !slices.Contains(told[path], key) {
				t.Errorf("%q: no row for %q", path, key)
			}
		}
		if len(told[path]) > len(keys) {
			t.Errorf("%q: rows %v, want %v", path, told[path], keys)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(told)) {
		if known[path] == nil {
			t.Errorf("a table for %q, which is no section", path)
		}
	}
	var b strings.Builder
	if err := printDefaultPolicy(&b); err != nil {
		t.Fatal(err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(b.String()), &doc); err != nil {
		t.Fatal(err)
	}
	if n := checkPrinted(t, doc.Content[0], "", told); n < 80 {
		t.Errorf("%d keys are printed, want all of them", n)
	}
	if !strings.Contains(b.String(), "docs/POLICIES.md") {
		t.Error("the default policy does not say where its keys are explained")
	}
}

// policyTables reads the keys of each table under the paths that its heading names.
func policyTables(t *testing.T, page string) map[string][]string {
	t.Helper()
	span := regexp.MustCompile("`([a-z_.]+)`")
	row := regexp.MustCompile("^\\| `([a-z_0-9]+)` \\| \\S.* \\|$")
	out := map[string][]string{}
	paths := []string{}
	for line := range strings.Lines(page) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "##") {
			paths = nil
			for _, m := range span.FindAllStringSubmatch(line, -1) {
				paths = append(paths, m[1])
			}
			if paths == nil {
				paths = []string{""}
			}
		}
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		m := row.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("no row of a key and its meaning: %s", line)
			continue
		}
		for _, path := range paths {
			if slices.Contains(out[path], m[1]) {
				t.Errorf("%q: two rows for %q", path, m[1])
			}
			out[path] = append(out[path], m[1])
		}
	}
	return out
}

// policyKeys lists the keys of a section and of those in it by path. Maps of sections, as
// those by product line, have the path of the map.
func policyKeys(typ reflect.Type, path string, out map[string][]string) {
	for slices.Contains([]reflect.Kind{reflect.Pointer, reflect.Slice, reflect.Map}, typ.Kind()) {
		typ = typ.Elem()
	}
	if typ.Kind() != reflect.Struct {
		return
	}
	for i := range typ.NumField() {
		key, _, _ := strings.Cut(typ.Field(i).Tag.Get("yaml"), ",")
		if key == "" || key == "-" {
			continue // a time, or what no file has
		}
		out[path] = append(out[path], key)
		policyKeys(typ.Field(i).Type, strings.TrimPrefix(path+"."+key, "."), out)
	}
}

// checkPrinted demands a row for each key of a node, and counts them.
func checkPrinted(t *testing.T, node *yaml.Node, path string, told map[string][]string) (n int) {
	t.Helper()
	if node.Kind != yaml.MappingNode {
		return 0
	}
	for i := 0; i < len(node.Content); i += 2 {
		key, below := node.Content[i].Value, path
		if !optional(key) { // product lines
			n++
			below = strings.TrimPrefix(path+"."+key, ".")
			if !slices.Contains(told[path], key) {
				t.Errorf("%q: %q is printed and not explained", path, key)
			}
		}
		n += checkPrinted(t, node.Content[i+1], below, told)
	}
	return n
}
